"""Batch normalisation with the statistics of the whole batch, of which every process has a part.

Axes: B images of this process's part, C channels, N numbers of a channel in the whole batch.

`torch.nn.SyncBatchNorm` refuses tensors on a processor, and a part without any image. The formulas are those of Ioffe
and Szegedy, "Batch normalization" (ICML 2015): two short messages a layer, one on the way forward, one on the way back.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from densesiam_seg.peers.group import Group


def share_statistics(network: nn.Module, group: Group) -> None:
    """From now on the batch normalisations of a network use, in training, the statistics of all processes."""
    if group.alone:
        return
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            kind: Any = type(module)
            module.__class__ = _shared(kind)
            module.group = group  # type: ignore[assignment]


@lru_cache
def _shared(kind: Any) -> type[_SharedStatistics]:
    """The same layer, of whatever library, whose statistics are shared."""
    return type(f"Shared{kind.__name__}", (_SharedStatistics, kind), {})


class _SharedStatistics(_BatchNorm):
    """What differs from the layer that it is mixed into; names and shapes of its tensors do not."""

    group: Group

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, …) → the same shape."""
        if not self.training:
            return super().forward(maps)
        assert self.momentum is not None
        result, mean, variance, count = _Normalise.apply(
            maps, self.weight, self.bias, self.eps, self.group
        )
        if self.track_running_stats and self.running_mean is not None:
            assert self.running_var is not None and self.num_batches_tracked is not None
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
            self.num_batches_tracked.add_(1)
        # timm's layers go on with these.
        for name in ("drop", "act"):
            result = getattr(self, name, nn.Identity())(result)
        normalised: Tensor = result
        return normalised


class _Normalise(torch.autograd.Function):
    """(x - mean) / deviation · weight + bias; also returns mean, variance (C,) and N, all in double precision."""

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Group
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own = maps.new_full((1,), maps.numel() // maps.shape[1], dtype=torch.float64)
        sums = group.total(torch.cat((_moments(maps) * own, own)))
        count = sums[-1]
        mean, square = (sums[:-1] / count).chunk(2)
        variance = (square - mean.square()).clamp(min=0)
        scale = (variance + eps).rsqrt()
        kind = _at_least_single(maps.dtype)
        result = F.batch_norm(maps, mean.to(kind), variance.to(kind), weight, bias, eps=eps)
        ctx.save_for_backward(maps, weight, mean, scale, count)
        ctx.group = group
        ctx.mark_non_differentiable(mean, variance, count)
        return result, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, mean, scale, count = ctx.saved_tensors
        channels, kind = maps.shape[1], _at_least_single(maps.dtype)
        sums = torch.zeros(2, channels, dtype=torch.float64, device=maps.device)
        if maps.numel():
            # Σ upstream · normalised and Σ upstream, which are the gradients of weight and bias.
            _, *found = torch.ops.aten.native_batch_norm_backward(
                upstream, maps, weight, None, None, mean.to(kind), scale.to(kind), True, 0.0,
                [False, True, True],
            )  # fmt: skip
            sums = torch.stack(found).double()
        total, shift = ctx.group.total(sums) / count
        factor = scale if weight is None else scale * weight
        slope = -factor * total * scale
        shape = (1, channels, *[1] * (maps.dim() - 2))
        first, second, third = (
            each.to(kind).view(shape) for each in (factor, slope, -factor * shift - slope * mean)
        )
        gradient = torch.addcmul(third, maps.to(kind), second).addcmul_(upstream.to(kind), first)
        of_weight, of_bias = (None, None) if weight is None else sums.to(weight.dtype)
        return gradient.to(maps.dtype), of_weight, of_bias, None, None


def _moments(maps: Tensor) -> Tensor:
    """Means of the channels, and then of their squares (2C,), in double precision; zeros without any number."""
    channels = maps.shape[1]
    if not maps.numel():
        return maps.new_zeros(2 * channels, dtype=torch.float64)
    if maps.device.type == "cpu" and maps.dim() == 4 and maps.dtype != torch.float64:
        # torch's own pass is the fastest there is, but loses digits over many numbers. And an image's moments do not
        # depend on the process that it is in.
        each = [torch.ops.aten.batch_norm_update_stats(one[None], None, None, 0.0) for one in maps]
        mean, variance = (torch.stack(part).double() for part in zip(*each, strict=True))
    else:
        dimensions = [each for each in range(1, maps.dim()) if each != 1]
        values = maps.to(_at_least_single(maps.dtype))
        found = (
            torch.var_mean(values, dimensions, correction=0) if dimensions else (0 * values, values)
        )
        variance, mean = (part.double() for part in found)
    return torch.cat((mean.mean(0), (variance + mean.square()).mean(0)))


def _at_least_single(kind: torch.dtype) -> torch.dtype:
    """Single precision for halves; others as they are."""
    return torch.promote_types(kind, torch.float32)
