"""The whole way from an image to its mask as one module that torch can export, with sizes that are not fixed.

Axes: K clusters, A over-clusters, C channels, h w image as the network gets it, H W mask, n m maps.

It is what `Segmenter.scores` and `Segmenter.mask` do in single precision, in operations that other programs have:
filters whose size depends on the image's become products with matrices.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densesiam_seg.clustering.kmeans import Centroids, unit_features
from densesiam_seg.clustering.resizing import opaque, resized, scaled, triangles
from densesiam_seg.inference.refinement import (
    CONTRAST,
    DILATIONS,
    ITERATIONS,
    guided_filter,
    window,
)
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.network.timm_backbones import TimmBackbone
from densesiam_seg.pictures.masks import LARGEST_8_BIT
from densesiam_seg.views.photometric import normalise


class MaskNetwork(nn.Module):
    """A model with its read-out, edge filter and merges: an image and the size of a mask → mask and scores."""

    weight: Tensor
    bias: Tensor
    grouping: Tensor

    def __init__(self, segmenter: Segmenter, refine: str) -> None:
        """`refine` is none, guided or pamr. The segmenter is on the processor, in single precision."""
        super().__init__()
        self.network = copy.deepcopy(segmenter.network)
        if isinstance(self.network.encoder.backbone, TimmBackbone):
            self.network.encoder.backbone.pad_constantly()
        self.refine = refine
        self.zoom = segmenter.network.encoder.zoom
        self.finer = segmenter.network.finer
        """Asked here, since a program that is exported has no tensors to ask."""
        self.width = segmenter.network.encoder.width
        self.groups: list[int] = []
        """How many over-clusters each cluster has, in the order of `weight`; empty where nothing is merged so."""
        self.reads_head = segmenter.centroids is None
        if segmenter.centroids is not None:
            weight, bias = Centroids(segmenter.centroids, torch.empty(0)).classifier()
            if segmenter.merges is not None:
                members = [cluster.members or () for cluster in segmenter.clusters]
                order = [member for group in members for member in group]
                self.groups = [len(group) for group in members]
                weight, bias = weight[order], bias[order]
            self.register_buffer("weight", weight)
            self.register_buffer("bias", bias)
        kind = torch.uint8 if len(segmenter.clusters) <= LARGEST_8_BIT else torch.int32
        self.register_buffer("grouping", torch.from_numpy(segmenter.grouping).to(kind))

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (1, 3, h, w) and int64 (H, W) → ids (H, W), and the scores (1, K, n, m) that they were made of."""
        height, width = size.tolist()
        for side in (height, width):
            torch._check(side >= 1)
        scores = self.sharpened(image, self.scores(image))
        whole = F.interpolate(scores, (height, width), mode="bilinear")
        return self.grouping[whole.argmax(1)[0]], scores

    def scores(self, image: Tensor) -> Tensor:
        """Scores (1, K, n, m) of the read-out; a head's are probabilities where edges are sharpened."""
        shown = normalise(image.float() / 255.0)
        local, logs = self.network.parts(shown, finer=self.finer)
        features = self.network.joined(local, logs, self.finer)
        if not self.reads_head:
            return self.nearest(features[:, : self.width])
        scores: Tensor = self.network.scores(features).float()
        return scores if self.refine == "none" else scores.softmax(1)

    def nearest(self, features: Tensor) -> Tensor:
        """Features (1, C, n, m) → scores (1, K, n, m) whose largest is the nearest centroid's."""
        fine = F.conv2d(unit_features(features), self.weight, self.bias)
        if not self.groups:
            return fine
        return torch.stack([part.amax(1) for part in torch.split(fine, self.groups, 1)], 1)

    def sharpened(self, image: Tensor, scores: Tensor) -> Tensor:
        """Scores that follow the image's edges, as `inference.refinement` has it."""
        if self.refine == "none":
            return scores
        size = [opaque(scaled(side, 1, self.zoom)) for side in image.shape[-2:]]
        guide = smaller(image, size) if self.zoom > 1 else image.float()
        guide = guide / 255.0
        if self.refine == "pamr":
            return pamr(guide, resized(scores, size))
        return guided_filter(guide, scores, window(scores.shape[-2:]), box=box_mean)


def smaller(image: Tensor, size: Sequence[int]) -> Tensor:
    """uint8 (1, 3, h, w) → the same image at a smaller size, as 8-bit images are resized: first its rows, which are
    rounded, then its columns. An edge filter looks at differences as small as this rounding."""
    rows, columns = (
        triangles(old, new, image.device) for old, new in zip(image.shape[-2:], size, strict=True)
    )
    narrow = (image.float() @ columns.mT).add(0.5).floor()
    return (rows @ narrow).add(0.5).floor().clamp(0, 255)


def pamr(guide: Tensor, maps: Tensor) -> Tensor:
    """`inference.refinement.pamr` of a guide (1, 3, H, W) and maps (1, K, H, W).

    Neighbours are gathered by their places, eight at a time: hundreds of moved copies of the maps, which are faster
    in torch, would make a program of thousands of operations.
    """
    height, width = maps.shape[-2:]
    rows, columns = (torch.arange(side, device=maps.device) for side in (height, width))
    neighbours = [_neighbours(rows, columns, step) for step in DILATIONS]
    colours = guide[0].flatten(1).mT  # (H·W, 3)
    around = [colours[places] for places in neighbours]
    count = 9 * len(DILATIONS)
    mean = (len(DILATIONS) * colours + sum(each.sum(0) for each in around)) / count
    squares = len(DILATIONS) * (colours - mean).square()
    squares = squares + sum((each - mean).square().sum(0) for each in around)
    # A least value, as the exporter leaves out what adds so little, and one colour would be divided by 0.
    scale = (CONTRAST * (squares / (count - 1)).sqrt()).clamp(min=1e-8)
    unlike = torch.cat([((each - colours).abs() / scale).mean(2) for each in around])
    weights = torch.split(unlike.neg().softmax(0)[..., None], 8)  # (8, H·W, 1) each
    values = maps[0].flatten(1).mT  # (H·W, K)
    for _ in range(ITERATIONS):
        parts = zip(neighbours, weights, strict=True)
        values = torch.stack([(values[places] * weight).sum(0) for places, weight in parts]).sum(0)
    return values.mT.reshape(maps.shape)


def _neighbours(rows: Tensor, columns: Tensor, step: int) -> Tensor:
    """The places (8, H·W) of the eight neighbours at a distance, border pixels repeated beyond the image."""
    height, width = rows.shape[0], columns.shape[0]
    return torch.stack(
        [
            (
                (rows + down).clamp(0, height - 1)[:, None] * width
                + (columns + right).clamp(0, width - 1)
            ).flatten()
            for down in (-step, 0, step)
            for right in (-step, 0, step)
            if down or right
        ]
    )


def box_mean(maps: Tensor, radius: int) -> Tensor:
    """`inference.refinement.box_mean` for a radius that depends on the image."""
    rows, columns = (_box(side, radius, maps) for side in maps.shape[-2:])
    return rows @ maps @ columns.mT


def _box(side: int, radius: int, like: Tensor) -> Tensor:
    """Weights (side, side) of the means of windows that reach `radius` to each side."""
    places = torch.arange(side, device=like.device)
    inside = ((places[:, None] - places).abs() <= radius).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)
