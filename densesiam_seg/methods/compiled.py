"""The pixel losses as one function of the features, for torch's compiler: what a GPU computes in few passes.

Axes: B images, K clusters, C channels, h w feature size, N = 2B·h·w pixels of both views, view 1 first.

A GPU waits for its memory in batch norms, ReLUs and losses, each of which reads and writes maps as large as the
features. The compiler makes one pass of neighbours, but only where it sees them: so all heads and losses are one graph,
1×1 convolutions are matrix products of pixels, rows as they lie in channels-last memory, and the losses are the plain
formulas. A processor has `fused_losses` instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densesiam_seg.config import TrainConfig
from densesiam_seg.methods.fused_losses import rows
from densesiam_seg.methods.losses import dissimilarity, label_weights, prior_loss
from densesiam_seg.network.model import SHARPNESS, DenseSiam
from densesiam_seg.views.pair import Colour

MULTIPLE = 8
"""Tensor cores take halves in rows of so many; 27 clusters are products of 32."""


class Pixels(NamedTuple):
    """What the pixel heads make of features (2B, C, h, w): projections (2B, K, h, w), and each loss by its name."""

    z: Tensor
    agreement: Tensor
    """Share of the pixels that both views give the same cluster."""
    histogram: Tensor
    """Pixels per cluster over both views, (K,) int64."""
    losses: dict[str, Tensor]


PixelForm = Callable[[DenseSiam, Tensor, TrainConfig, Tensor | None], Pixels]
"""Network, features, settings, and the prior (B, K, h, w) where there is one → `Pixels`."""


def pixel_losses(
    network: DenseSiam, features: Tensor, config: TrainConfig, prior: Tensor | None
) -> Pixels:
    """What `densesiam` computes head by head, up to rounding; no operation depends on what a tensor holds."""
    images, _, height, width = features.shape
    maps = rows(features)
    z = through(network.projector, maps)
    losses = {}
    if prior is not None:
        losses["prior"] = prior_loss(SHARPNESS * z, rows(prior).repeat(2, 1))
    if config.pixel_weight:
        losses["pixel"] = _siamese_loss(through(network.predictor, z), z, config)
    if config.over_cluster_weight:
        assert network.over_projector is not None and network.over_predictor is not None
        over = through(network.over_projector, maps)
        losses["over_cluster"] = _siamese_loss(through(network.over_predictor, over), over, config)
    with torch.no_grad():
        winners = z.argmax(1).view(2, -1)
        # (2, N/2, K); an index of labels would need additions in no fixed order on the way back.
        chosen = winners.unsqueeze(-1) == torch.arange(z.shape[1], device=z.device)
        counts = chosen.sum(1)
        agreement = (winners[0] == winners[1]).float().mean()
    if config.segmentation_weight:
        log_shares = z.view_as(chosen).float().log_softmax(-1)
        weights = label_weights(counts, config.balance)
        losses["segmentation"] = -(weights.unsqueeze(1) * chosen * log_shares).sum(-1).mean()
    whole = z.view(images, height, width, -1).permute(0, 3, 1, 2)
    return Pixels(whole, agreement, counts.sum(0), losses)


def try_pixels(form: PixelForm, network: DenseSiam, config: TrainConfig, batch_size: int) -> None:
    """Call `form` and its backward pass once on features like those of training; the network stays as it was.

    This compiles both, so that what a compiler refuses comes up before the first step.
    """
    features = _features_like(network, config, batch_size)
    prior = None
    if config.follows_prior():
        shape = batch_size, config.clusters, *features.shape[-2:]
        prior = torch.full(shape, 1 / config.clusters, device=features.device)
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        found = form(network, features, config, prior)
        heads = [p for p in network.parameters() if p.requires_grad]
        # The loss of regions comes back through z, and may be the only one.
        total = sum(found.losses.values(), found.z.float().mean())
        torch.autograd.grad(total, [features, *heads], allow_unused=True)
    finally:
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])


def try_colour(colour: Colour, network: DenseSiam, config: TrainConfig, batch_size: int) -> None:
    """The same of the colour changes of a batch.

    Gradients are on, as where views are drawn: without them it would be another graph.
    """
    device, side = next(network.parameters()).device, 2 * config.image_size
    with torch.autocast(device.type, enabled=False):
        images = torch.zeros((batch_size, 3, side, side), dtype=torch.uint8, device=device)
        colour(images, torch.ones((batch_size, 5), device=device))


def _features_like(network: DenseSiam, config: TrainConfig, batch_size: int) -> Tensor:
    """Noise (2B, C, h, w) in the type and memory layout of the encoder's features."""
    device, side = next(network.parameters()).device, config.image_size
    network.eval()
    try:
        with torch.no_grad():
            one = network.encoder(torch.zeros((1, 3, side, side), device=device))
    finally:
        network.train()
    draw = torch.Generator(device).manual_seed(0)
    noise = torch.randn((2 * batch_size, *one.shape[1:]), generator=draw, device=device)
    return noise.to(one.dtype, memory_format=torch.channels_last).requires_grad_()


def through(head: nn.Module, maps: Tensor) -> Tensor:
    """A head of 1×1 convolutions, batch norms and ReLUs in training, of rows (N, C) → (N, K)."""
    for layer in head.children():
        match layer:
            case nn.Conv2d():
                maps = _product(maps, layer.weight.flatten(1), layer.bias)
            case nn.BatchNorm2d():
                maps = _normalised(maps, layer)
            case nn.ReLU():
                maps = F.relu(maps)
            case _:
                raise AssertionError(f"no layer of a head: {layer}")
    return maps


def _product(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows (N, C) @ weightᵀ (C, K) + bias, with zeros up to the next multiple, which change no sum."""
    outputs, inputs = weight.shape
    more = -outputs % MULTIPLE, -inputs % MULTIPLE
    weight = F.pad(weight, (0, more[1], 0, more[0]))
    bias = None if bias is None else F.pad(bias, (0, more[0]))
    return F.linear(F.pad(maps, (0, more[1])), weight, bias)[:, :outputs]


def _normalised(maps: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    """Batch normalisation of rows (N, C); its statistics are in float32 whatever the rows are."""
    assert layer.running_mean is not None and layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    momentum = 0.1 if layer.momentum is None else layer.momentum
    statistics = layer.running_mean, layer.running_var
    return F.batch_norm(maps, *statistics, layer.weight, layer.bias, True, momentum, layer.eps)


def _siamese_loss(p: Tensor, z: Tensor, config: TrainConfig) -> Tensor:
    """PixSim of rows (N, K): the mean over both views is that of ½ D(p₁, z₂) + ½ D(p₂, z₁)."""
    other = z.view(2, -1, z.shape[1]).flip(0).view_as(p)
    return dissimilarity(p, other, config.similarity)
