"""Heads: METHOD's table of layers, and their sums in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from densesiam_seg.network.heads import predictor, projector

Array = NDArray[np.float64]

C, K = 6, 4


def described(head: nn.Sequential) -> list[str]:
    """One word per layer: what it is, its sizes, and whether it has a bias or an affine part."""
    words = []
    for layer in head:
        match layer:
            case nn.Conv2d():
                assert layer.kernel_size == (1, 1) and layer.stride == (1, 1)
                assert layer.groups == 1
                bias = "" if layer.bias is None else "+b"
                words.append(f"conv {layer.in_channels}→{layer.out_channels}{bias}")
            case nn.Linear():
                bias = "" if layer.bias is None else "+b"
                words.append(f"linear {layer.in_features}→{layer.out_features}{bias}")
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                assert layer.track_running_stats
                assert isinstance(layer, nn.BatchNorm2d) == any(
                    isinstance(other, nn.Conv2d) for other in head
                )
                words.append(f"norm {layer.num_features}{'' if layer.affine else ' plain'}")
            case nn.ReLU():
                words.append("relu")
            case _:
                pytest.fail(f"unexpected layer {layer}")
    return words


@pytest.mark.parametrize(("pixels", "kind"), [(True, "conv"), (False, "linear")])
def test_layers(pixels: bool, kind: str) -> None:
    hidden = [f"{kind} {C}→{C}", f"norm {C}", "relu"]
    # The table leaves the last bias open: the batch norm behind it takes any bias away.
    last = [f"{kind} {C}→{K}", f"norm {K} plain"]
    assert described(projector(C, K, pixels=pixels)) == [*hidden, *hidden, *last]
    assert described(predictor(K, C, pixels=pixels)) == [
        f"{kind} {K}→{C}",
        f"norm {C}",
        "relu",
        f"{kind} {C}→{K}+b",
    ]


def slow(head: nn.Sequential, rows: Array) -> Array:
    """The head in training mode over rows (N, C), batch statistics in float64."""
    for layer in head:
        state = {name: value.double().numpy() for name, value in layer.state_dict().items()}
        if isinstance(layer, nn.ReLU):
            rows = np.maximum(rows, 0)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            rows = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
            rows = rows * state.get("weight", 1.0) + state.get("bias", 0.0)
        else:
            weight = state["weight"].reshape(len(state["weight"]), -1)
            rows = rows @ weight.T + state.get("bias", 0.0)
    return rows


def varied(head: nn.Sequential) -> nn.Sequential:
    """Weights that leave no part of the sum at its neutral initial value."""
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source))
    return head


def rows_of(maps: Tensor) -> Array:
    rows: Array = maps.detach().double().numpy().transpose(0, 2, 3, 1).reshape(-1, maps.shape[1])
    return rows


@pytest.mark.parametrize("make", [projector, predictor])
def test_heads_equal_the_slow_sum(make: Callable[..., nn.Sequential]) -> None:
    draw = torch.Generator().manual_seed(1)
    maps, vectors = torch.randn(2, C, 3, 5, generator=draw), torch.randn(20, C, generator=draw)
    of_maps, of_vectors = varied(make(C, K, pixels=True)), varied(make(C, K, pixels=False))
    found = rows_of(of_maps(maps))
    np.testing.assert_allclose(found, slow(of_maps, rows_of(maps)), atol=1e-5)
    expected = slow(of_vectors, vectors.double().numpy())
    np.testing.assert_allclose(of_vectors(vectors).detach().numpy(), expected, atol=1e-5)


def test_projections_have_zero_mean_and_unit_deviation() -> None:
    source = torch.Generator().manual_seed(3)
    z = projector(C, K, pixels=True)(torch.randn(4, C, 8, 8, generator=source))
    u = projector(C, C, pixels=False)(torch.randn(64, C, generator=source))
    for rows in (rows_of(z), u.detach().double().numpy()):
        np.testing.assert_allclose(rows.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(rows.std(0), 1, atol=2e-3)
