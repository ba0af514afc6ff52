"""Faster forms of `losses`, for all but exact mode: loss and gradient are computed together, block by block.

Axes: B images, K clusters, C channels, h w feature size, N = 2B·h·w pixels of both views, view 1 first.

The plain formulas hold several maps of probabilities in float32 at once, each of them larger than the features. Here a
block of pixels fits in the processor's cache, and only the gradient, in the prediction's own precision, is saved for
the backward pass. Pixels are rows of K neighbouring numbers, as they lie in channels-last memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BLOCK = 2**18
"""Numbers of a block: 1 MB in float32, which stays in a processor's cache."""
GPU_BLOCK = 2**26


def rows(maps: Tensor) -> Tensor:
    """(B, K, h, w) → (B·h·w, K); no copy where the memory is channels-last."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def siamese_loss(p: Tensor, z: Tensor) -> Tensor:
    """`losses.pixel_loss` in its cross-entropy form, of maps (2B, K, h, w) of both views."""
    loss: Tensor = _SiameseCrossEntropy.apply(p, z)
    return loss


def region_embeddings(z: Tensor, features: Tensor) -> Tensor:
    """`losses.region_embeddings` in the features' own precision: (B, K, h, w) and (B, C, h, w) → (B, K, C)."""
    images, clusters = z.shape[:2]
    shares = torch.softmax(rows(z), 1, dtype=torch.float32).view(images, -1, clusters)
    return shares.to(features.dtype).mT @ rows(features).view(images, -1, features.shape[1])


def with_immediate_gradient(
    compute: Callable[[Tensor], Tensor], maps: Tensor, *heads: nn.Module, weight: float = 1.0
) -> Tensor:
    """Computes the backward pass of `heads` inside the forward pass of their loss, which frees their activations.

    `compute(maps)` is the loss. A head's activations are about ten maps as large as the features; this way only one
    head holds them at a time. Not in fp16, where gradients of the unscaled loss would vanish.

    `weight` is how much the loss counts among those of other processes, whose gradients a head adds to its own where
    batch normalisation shares its statistics.
    """
    if not torch.is_grad_enabled() or not maps.requires_grad or maps.dtype == torch.float16:
        return compute(maps)
    parameters = [p for head in heads for p in head.parameters() if p.requires_grad]
    loss: Tensor = _ImmediateGradient.apply(compute, weight, maps, *parameters)
    return loss


class _ImmediateGradient(torch.autograd.Function):
    """A loss whose gradients are computed in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        compute: Callable[[Tensor], Tensor],
        weight: float,
        maps: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        with torch.enable_grad():
            inputs = maps.detach().requires_grad_()
            loss = compute(inputs)
        upstream = torch.full_like(loss, weight)
        ctx.save_for_backward(*torch.autograd.grad(loss, (inputs, *parameters), upstream))
        ctx.weight = weight
        return loss.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        factor = upstream / ctx.weight
        return None, None, *(gradient * factor for gradient in ctx.saved_tensors)


class _SiameseCrossEntropy(torch.autograd.Function):
    """½ D(p₁, z₂) + ½ D(p₂, z₁); with softmax t of the target, dD/dp = (softmax(p) - t) / pixels."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, z: Tensor) -> Tensor:
        predictions, projections = rows(p), rows(z)
        pixels, clusters = predictions.shape
        block = max((BLOCK if p.device.type == "cpu" else GPU_BLOCK) // clusters, 1)
        gradient = torch.empty_like(predictions)
        total = torch.zeros((), device=p.device)
        half = pixels // 2
        for view in (0, half):
            for first in range(0, half, block):
                own = slice(view + first, view + min(first + block, half))
                other = slice(half - view + first, half - view + min(first + block, half))
                target = torch.softmax(projections[other], 1, dtype=torch.float32)
                log_share = torch.log_softmax(predictions[own], 1, dtype=torch.float32)
                total -= torch.dot(target.flatten(), log_share.flatten())
                gradient[own] = log_share.exp_().sub_(target)
        ctx.save_for_backward(gradient)
        ctx.shape = p.shape
        return total / pixels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        images, clusters, height, width = ctx.shape
        # Divided by the number of pixels only here, after loss scaling: half precision would underflow before it.
        gradient = gradient * (upstream / len(gradient))
        return gradient.view(images, height, width, clusters).permute(0, 3, 1, 2), None
