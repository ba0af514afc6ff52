"""Projectors and predictors of a Siamese network (DenseSiam, section 3; SimSiam's two-part head).

Axes: B images, C features, K outputs (clusters or over-clusters), N embeddings.
"""

from __future__ import annotations

from torch import nn


def pixel_projector(channels: int, outputs: int) -> nn.Sequential:
    """Features (B, C, h, w) → projection z (B, K, h, w), each output of zero mean and unit deviation."""
    return nn.Sequential(
        *_pixel_layer(channels, channels),
        *_pixel_layer(channels, channels),
        # No bias: the batch norm behind it would take it away.
        nn.Conv2d(channels, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs, affine=False),
    )


def pixel_predictor(outputs: int, channels: int) -> nn.Sequential:
    """Projection z (B, K, h, w) → prediction p (B, K, h, w), through C hidden channels."""
    return nn.Sequential(*_pixel_layer(outputs, channels), nn.Conv2d(channels, outputs, 1))


def vector_projector(channels: int) -> nn.Sequential:
    """Embeddings (N, C) of regions or images → projections (N, C), normalised as above (SimSiam, section 3)."""
    return nn.Sequential(
        *_vector_layer(channels),
        *_vector_layer(channels),
        nn.Linear(channels, channels, bias=False),
        nn.BatchNorm1d(channels, affine=False),
    )


def region_predictor(channels: int) -> nn.Sequential:
    """Projections u (N, C) → predictions q (N, C)."""
    return nn.Sequential(*_vector_layer(channels), nn.Linear(channels, channels))


def image_predictor(width: int) -> nn.Sequential:
    """Projection (B, C) → prediction (B, C) through SimSiam's bottleneck of C / 4, at least 1."""
    narrow = max(width // 4, 1)
    return nn.Sequential(
        nn.Linear(width, narrow, bias=False),
        nn.BatchNorm1d(narrow),
        nn.ReLU(inplace=True),
        nn.Linear(narrow, width),
    )


def _pixel_layer(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def _vector_layer(channels: int) -> tuple[nn.Module, ...]:
    return (
        nn.Linear(channels, channels, bias=False),
        nn.BatchNorm1d(channels),
        nn.ReLU(inplace=True),
    )
