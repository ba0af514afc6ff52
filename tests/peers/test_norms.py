"""Batch normalisation over parts of a batch, against torch's own over the whole."""

from __future__ import annotations

from typing import Any

import torch
from ranks import in_ranks
from torch import Tensor, nn

from densesiam_seg.peers.group import ALONE, Group
from densesiam_seg.peers.norms import share_statistics


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 1),
            nn.BatchNorm2d(6, affine=False),
            nn.Flatten(),
            nn.Linear(216, 5),
            nn.BatchNorm1d(5),
        )


def batch(images: int) -> Tensor:
    drawn = torch.randn(images, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    # A mean far from 0 shows cancellation.
    return 20 + drawn


def results(model: nn.Sequential, images: Tensor, whole: int) -> dict[str, Any]:
    """Gradients of a mean over the whole batch, running statistics, and the gradient of the images."""
    images = images.clone().requires_grad_()
    outputs = model(images)
    targets = torch.linspace(-1, 1, 5)
    loss = (outputs * targets).cos().sum() / whole
    loss.backward()
    return {
        "outputs": outputs.detach(),
        "images": images.grad,
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "buffers": dict(model.named_buffers()),
    }


def of_two_batches(group: Group) -> list[dict[str, Any]]:
    return [in_parts(group, images) for images in (5, 2)]


def in_parts(group: Group, count: int) -> dict[str, Any]:
    model, images = network(), batch(count)
    share_statistics(model, group)
    part = group.shard.part(count)
    found = results(model, images[part.start : part.stop], count)
    found["gradients"] = {name: group.total(value) for name, value in found["gradients"].items()}
    for name in ("outputs", "images"):
        found[name] = torch.cat(group.gathered(found[name]))
    model.eval()
    found["eval"] = model(images).detach()
    return found


def test_parts_of_a_batch_are_normalised_as_the_whole() -> None:
    expected = of_two_batches(ALONE)
    # Of three processes with 1, 2 and 2 images; and with 0, 1 and 1.
    for found in in_ranks(3, of_two_batches):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
