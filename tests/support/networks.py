"""What the tests of methods ask of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from densesiam_seg.methods.method import Method, Objective
from densesiam_seg.network.model import DenseSiam


def objective_of(method: Method, images: Tensor, indices: Sequence[int], epoch: int) -> Objective:
    """What the loop computes of a batch."""
    return method.objective(method.drawn(images, indices, epoch), indices, epoch)


def gradients(network: DenseSiam, total: Tensor) -> dict[str, Tensor | None]:
    """Of a loss, by the parameter's name; None where it has no part in it."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    values = torch.autograd.grad(total, parameters, allow_unused=True)
    return dict(zip(names, values, strict=True))


def require_alike(
    found: dict[str, Tensor | None], wanted: dict[str, Tensor | None], tolerance: float
) -> None:
    """Gradients that differ by this part of the largest number of each, or of 1."""
    assert found.keys() == wanted.keys()
    for name, expected in wanted.items():
        gradient = found[name]
        if expected is None or gradient is None:
            assert gradient is expected, name
            continue
        bound = tolerance * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(gradient, expected.float(), atol=bound, rtol=0, msg=name)


def batches_seen(network: nn.Module) -> dict[str, set[int]]:
    """How many batches the norms of each part of a network have seen."""
    return {
        name: {
            int(part.num_batches_tracked)  # type: ignore[arg-type]
            for part in head.modules()
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)
        }
        for name, head in network.named_children()
    }
