"""The coarsest stages of a pre-trained backbone as they are: what clustering starts from, with no random layer between.

Axes: B images, N places, C channels of the description, S channels of all stages read, h w = the grid.

Each channel of a stage is standardised over the training images and each stage L2-normalised, so that none outweighs
the others. The stages side by side, averaged over the sizes in which an image was read, are projected onto their
principal axes and normalised again. Then each place takes the mean of the places of its image that are like it, as in
non-local means (Buades et al., 2005): noise goes, things stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densesiam_seg.clustering.resizing import resized
from densesiam_seg.errors import NumericError
from densesiam_seg.io.parallel import on_own_cores
from densesiam_seg.peers.exact import ExactSum
from densesiam_seg.peers.group import ALONE, Group

TEMPERATURE = 0.1
"""Divides the cosines of two places before the softmax that weighs them."""
PAIRS = 2**30
"""Of places that are compared: all of an image with up to 32,768 of them."""
GOLDEN = 0.6180339887498949

Result = TypeVar("Result")
Stages = Sequence[Tensor]
"""(B, S_i, h_i, w_i) each, of the images in one size."""


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

    def forward(self, sizes: Sequence[Stages], grid: tuple[int, int]) -> Tensor:
        """The stages of images read in several sizes → (B, C, h, w) of a grid of that size."""
        return self.smoothed(self.projected(sizes, grid))

    def projected(self, sizes: Sequence[Stages], grid: tuple[int, int]) -> Tensor:
        """The first part of `forward`, place by place: the stages on their principal axes, (B, C, h, w)."""
        # Autocast would round differences of like vectors, and not every operation has half a precision.
        with torch.autocast(self.axes.device.type, enabled=False):
            axes = torch.split(self.axes, self.stages, 1)
            total = -len(sizes) * self.centre.view(-1, 1, 1)
            for stages in sizes:
                for level, own in zip(self._normalised(stages), axes, strict=True):
                    # Linear, so that it may come before the interpolation, where there are fewer places.
                    total = total + _at(F.conv2d(level, own[:, :, None, None]), grid)
            return total

    def smoothed(self, total: Tensor) -> Tensor:
        """The second part: `projected` places (B, C, h, w) → each the mean of those of its image that are like it.

        In very large images these are some of the places, evenly spread.
        """
        with torch.autocast(self.axes.device.type, enabled=False):
            places = F.normalize(total, dim=1).flatten(2).mT[:, None].contiguous()
            count = places.shape[2]
            others = places[:, :, _spread(count)] if count**2 > PAIRS else places
            alike = F.scaled_dot_product_attention(places, others, others, scale=1 / TEMPERATURE)
            return F.normalize(alike[:, 0].mT, dim=1).reshape(total.shape)

    @torch.no_grad()
    def fit(
        self,
        images: Sequence[Sequence[Stages]],
        grid: tuple[int, int],
        *,
        count: int | None = None,
        group: Group = ALONE,
    ) -> None:
        """Learn from the stages of each image (B = 1) in all sizes, on such a grid; computed on the processor.

        In a group the images are this process's own ones of `count` in all. What is learned does not depend on how many
        processes there are: one of them computes the sums of an image on one core, and all images' are added exactly.
        Raises NumericError for stages that are not finite.
        """
        count = len(images) if count is None else count
        mean, deviation = self._moments(images, count, group)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        width, places = sum(self.stages), grid[0] * grid[1]
        # Of vectors no longer than one for each stage; rounding may add a little.
        sums = ExactSum(2.0 * places, max(count, 1))
        for part in _of_each(lambda sizes: self._products(sizes, grid), images):
            sums.add(part)
        total = sums.total(group, torch.zeros(width, width + 1)) / (count * places)
        axes, centre = group.by_first(lambda: _principal(total[:, 0], total[:, 1:]))
        axes, centre = axes[: len(self.axes)], centre[: len(self.axes)]
        self.axes[: len(axes)].copy_(axes)
        self.centre[: len(axes)].copy_(centre)

    def _moments(
        self, images: Sequence[Sequence[Stages]], count: int, group: Group
    ) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel over all places of all images, in double precision."""
        found = list(_of_each(_sums, images))
        sums = torch.zeros(2, sum(self.stages), dtype=torch.float64)
        most = torch.stack([sums, *(part.abs() for part, _ in found)]).amax(0)
        finite = bool(torch.isfinite(most).all())
        exponents = [math.frexp(value)[1] for value in most.flatten().tolist()]
        unsound, *exponents = group.largest([not finite, *exponents])
        if unsound:
            group.by_first(_refuse)
        # Powers of two that no process's numbers exceed: channels are of very unlike size.
        bounds = sums.new_tensor([math.ldexp(1.0, each) for each in exponents]).view_as(sums)
        exact = ExactSum(1.0, max(count, 1))
        for part, _ in found:
            exact.add(part / bounds)
        total = exact.total(group, sums) * bounds
        places = int(group.total(torch.tensor(sum(size for _, size in found))))
        mean, squares = total / places
        deviation = (squares - mean.square()).clamp(min=0).sqrt()
        # Dead channels are not divided by 0.
        return mean, torch.where(deviation > 1e-6, deviation, 1.0)

    def _products(self, sizes: Sequence[Stages], grid: tuple[int, int]) -> Tensor:
        """Sums of an image's vectors and of their products, side by side: (S, 1 + S)."""
        levels = [
            torch.cat([_at(level, grid) for level in self._normalised(stages)], 1)
            for stages in _each(sizes)
        ]
        places = torch.stack(levels).mean((0, 1)).flatten(1)
        # Products in single precision, which is exact enough for the axes and twice as fast.
        return torch.cat((places.double().sum(1, keepdim=True), (places @ places.T).double()), 1)

    def _normalised(self, stages: Stages) -> list[Tensor]:
        """Stages standardised by channel, and at each place L2-normalised."""
        parts = (
            torch.split(each.to(stages[0].device).view(-1, 1, 1), self.stages)
            for each in (self.mean, self.deviation)
        )
        return [
            F.normalize((stage - mean) / deviation, dim=1)
            for stage, mean, deviation in zip(stages, *parts, strict=True)
        ]


def _spread(count: int) -> Tensor:
    """Some of `count` places, so many that `PAIRS` are compared: evenly spread, and never always the same columns."""
    some = torch.arange(PAIRS // count, dtype=torch.float64)
    return (some * GOLDEN % 1 * count).long()


def _each(sizes: Sequence[Stages]) -> Iterator[list[Tensor]]:
    """An image's stages in every size, in single precision on the processor."""
    for stages in sizes:
        yield [stage.cpu().float() for stage in stages]


def _of_each(
    work: Callable[[Sequence[Stages]], Result], images: Sequence[Sequence[Stages]]
) -> Iterator[Result]:
    """`work` of each image on one core, so that its sums do not depend on how many there are."""

    def without_gradients(sizes: Sequence[Stages]) -> Result:
        with torch.no_grad():
            return work(sizes)

    # The products of many channels take much memory.
    with closing(on_own_cores(without_gradients, images, max_waiting=1)) as results:
        for each in results:
            # What is added up meanwhile takes no core from the others; the number is restored at the end.
            torch.set_num_threads(1)
            yield each


def _sums(sizes: Sequence[Stages]) -> tuple[Tensor, int]:
    """Sums (2, S) of an image's channels and of their squares over its places in all sizes, and their number."""
    count, total = 0, torch.zeros((), dtype=torch.float64)
    for stages in _each(sizes):
        values = [stage.double().flatten(2) for stage in stages]
        # Coarser stages have fewer places, which the mean of each weighs out.
        weight = values[0].shape[2]
        means = [torch.stack((each.mean((0, 2)), each.square().mean((0, 2)))) for each in values]
        total = total + weight * torch.cat(means, 1)
        count += weight
    return total, count


def _refuse() -> NoReturn:
    raise NumericError(
        "features of the pre-trained backbone are not finite; give it other --weights"
    )


def _principal(centre: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """The principal axes (S, S) of vectors, the longest first, and their mean on these, from means (S,) and (S, S)."""
    vectors = torch.linalg.eigh(products - centre[:, None] * centre).eigenvectors
    axes = vectors.flip(1).T
    # The sign of an axis is arbitrary, and differs between libraries.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    return axes, axes @ centre


def _at(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, h, w) at another size, bilinearly."""
    # Antialiasing changes nothing where maps are enlarged, and an exported program does not know whether they are.
    smaller = torch.compiler.is_exporting() or maps.shape[-1] > size[1]
    return resized(maps, size, antialias=smaller)
