"""Pre-trained stages as they are: what clustering starts from, with no random layer in between.

Axes: B images, N places, C channels of the description, S channels of all stages read, h w = the grid.

Each channel of a stage is standardised over the training images and each stage L2-normalised, so that none outweighs
the others; they are projected onto the principal axes of all stages side by side and normalised again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PYRAMID_STAGES = 2
"""Of a pyramid the two coarsest stages are read, at strides 16 and 32; of a plain transformer the last one."""


class Description(nn.Module):
    """Stages → unit vectors of C channels, one for each place. `fit` learns its numbers; gradients do not."""

    mean: Tensor
    deviation: Tensor
    axes: Tensor
    centre: Tensor

    def __init__(self, stages: Sequence[int], channels: int) -> None:
        super().__init__()
        self.stages = list(stages)
        """Channels of each stage that is read."""
        width = sum(stages)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.register_buffer("axes", torch.zeros(channels, width))
        self.register_buffer("centre", torch.zeros(channels))

    def forward(self, stages: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Stages (B, S_i, h_i, w_i) → (B, C, h, w) of a grid of that size."""
        total = -self.centre.view(-1, 1, 1)
        axes = torch.split(self.axes, self.stages, 1)
        levels = self._normalised(stages, self.mean, self.deviation)
        for level, own in zip(levels, axes, strict=True):
            # Linear, so that it may come before the interpolation, where there are fewer places.
            total = total + _at(F.conv2d(level, own[:, :, None, None]), size)
        return F.normalize(total, dim=1)

    @torch.no_grad()
    def fit(self, images: Iterable[Sequence[Tensor]], grid: Sequence[int]) -> None:
        """Learn from the stages (S_i, h_i, w_i) of each image, on a grid of that size; computed on the processor."""
        images = [[stage.cpu().float() for stage in stages] for stages in images]
        means, deviations = [], []
        for level in zip(*images, strict=True):
            values = torch.cat([stage.flatten(1).double() for stage in level], 1)
            means.append(values.mean(1))
            deviation = values.std(1, unbiased=False)
            # Dead channels are not divided by 0.
            deviations.append(torch.where(deviation > 1e-6, deviation, 1.0))
        mean, deviation = torch.cat(means), torch.cat(deviations)
        total = torch.zeros(len(mean), dtype=torch.float64)
        squares = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        count = 0
        for stages in images:
            whole = [stage[None] for stage in stages]
            levels = self._normalised(whole, mean.float(), deviation.float())
            places = torch.cat([_at(level, grid)[0].flatten(1) for level in levels])
            total += places.double().sum(1)
            # In single precision, which is exact enough for the axes and twice as fast.
            squares += (places @ places.T).double()
            count += places.shape[1]
        centre = total / count
        vectors = torch.linalg.eigh(squares / count - centre[:, None] * centre).eigenvectors
        axes = vectors.flip(1)[:, : len(self.axes)].T
        # The sign of an axis is arbitrary, and differs between libraries.
        axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        self.axes[: len(axes)].copy_(axes)
        self.centre[: len(axes)].copy_(axes @ centre)

    def _normalised(
        self, stages: Sequence[Tensor], mean: Tensor, deviation: Tensor
    ) -> list[Tensor]:
        """Stages standardised by channel, and at each place L2-normalised."""
        parts = (torch.split(each, self.stages) for each in (mean, deviation))
        return [
            F.normalize((stage - own.view(-1, 1, 1)) / width.view(-1, 1, 1), dim=1)
            for stage, own, width in zip(stages, *parts, strict=True)
        ]


def _at(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, h, w) at another size, bilinearly."""
    if maps.shape[-2:] == tuple(size):
        return maps
    smaller = maps.shape[-1] > size[1]
    return F.interpolate(maps, tuple(size), mode="bilinear", antialias=smaller)
