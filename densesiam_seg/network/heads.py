"""Projectors and predictors of a Siamese network (DenseSiam, section 3; SimSiam, section 3).

Axes: B images, N vectors of regions or images, C features, K outputs (clusters or over-clusters).

Heads of pixels are 1×1 convolutions over maps (B, C, h, w), all others linear layers over vectors (N, C).
"""

from __future__ import annotations

from torch import nn


def projector(channels: int, outputs: int, *, pixels: bool) -> nn.Sequential:
    """Features (B, C, h, w) or (N, C) → projection z (B, K, h, w) or (N, K), of zero mean and unit deviation."""
    return nn.Sequential(
        *_hidden(channels, channels, pixels),
        *_hidden(channels, channels, pixels),
        # No bias: the batch norm behind it would take it away.
        _linear(channels, outputs, pixels, bias=False),
        nn.BatchNorm2d(outputs, affine=False) if pixels else nn.BatchNorm1d(outputs, affine=False),
    )


def predictor(outputs: int, hidden: int, *, pixels: bool) -> nn.Sequential:
    """Projection z → prediction p of the same shape, through `hidden` channels."""
    return nn.Sequential(
        *_hidden(outputs, hidden, pixels), _linear(hidden, outputs, pixels, bias=True)
    )


def _hidden(inputs: int, outputs: int, pixels: bool) -> tuple[nn.Module, ...]:
    norm = nn.BatchNorm2d(outputs) if pixels else nn.BatchNorm1d(outputs)
    return _linear(inputs, outputs, pixels, bias=False), norm, nn.ReLU(inplace=True)


def _linear(inputs: int, outputs: int, pixels: bool, *, bias: bool) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 1, bias=bias) if pixels else nn.Linear(inputs, outputs, bias)
