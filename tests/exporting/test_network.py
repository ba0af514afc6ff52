"""What is exported does what the segmenter does, in eager mode and as a program of torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from densesiam_seg.clustering.kmeans import Centroids
from densesiam_seg.clustering.merging import Merges
from densesiam_seg.exporting import network as module
from densesiam_seg.exporting.network import MaskNetwork
from densesiam_seg.inference import refinement
from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import build_network

SIZES = ((45, 70), (64, 64), (130, 50))


def drawn(*shape: int) -> Tensor:
    """An image with areas, uint8 (1, 3, H, W)."""
    draw = torch.Generator().manual_seed(2)
    coarse = torch.randint(0, 256, (1, 3, 6, 7), dtype=torch.uint8, generator=draw)
    return torch.nn.functional.interpolate(coarse, shape, mode="bilinear")


def stages() -> Segmenter:
    """A model of pre-trained stages and appearance: an image in three sizes."""
    architecture = Architecture(
        "timm:tf_efficientnet_lite0", 8, 4, 0, features="stages", mixture=True
    )
    network = build_network(architecture, seed=1)
    draw = torch.Generator().manual_seed(0)
    described, mixture = network.encoder.description, network.mixture
    assert described is not None and mixture is not None
    described.axes.add_(torch.randn(described.axes.shape, generator=draw))
    # Of the place alone, so that there are several clusters.
    mixture.centres[:, -2:] = torch.tensor([[-1.0, -1], [1, -1], [-1, 1], [1, 1]])
    card = ModelCard(architecture, 64, clusters=4, refine="pamr")
    return Segmenter(network, card, device="cpu", precision="fp32")


def agree(segmenter: Segmenter, refine: str, atol: float = 2e-3) -> None:
    how = Refinement(refine=refine)
    network = MaskNetwork(segmenter, refine).eval()
    for size in SIZES:
        shown, _ = segmenter.read(drawn(*size)[0])
        wanted = segmenter.scores(shown, how)[0]
        with torch.no_grad():
            mask, scores = network(shown, torch.tensor(size))
        torch.testing.assert_close(scores[0], wanted, atol=atol, rtol=1e-3)
        ids = segmenter.mask(wanted, *size)
        assert mask.numpy().dtype == ids.dtype
        assert (mask.numpy() == ids).mean() > 0.999 and len(np.unique(ids)) > 1


class TestScores:
    @pytest.mark.parametrize("refine", ["none", "guided", "pamr"])
    def test_of_a_head(self, segmenter: Segmenter, refine: str) -> None:
        agree(segmenter, refine)

    def test_of_stages_and_appearance(self) -> None:
        # Its edges are those of a smaller image, in which some values are rounded to the next one (see below).
        agree(stages(), "pamr", atol=5e-3)

    def test_of_centroids(self, segmenter: Segmenter) -> None:
        draw = torch.Generator().manual_seed(0)
        centres = torch.nn.functional.normalize(torch.randn(6, 8, generator=draw), dim=1)
        agree(segmenter.with_centroids(Centroids(centres, torch.ones(6))), "none")
        merges = Merges(np.array([[0, 1], [2, 3], [6, 4], [8, 7], [9, 5]]), np.ones(6, np.int64))
        agree(segmenter.with_merges(centres, merges, 3), "pamr")

    def test_merged_clusters(self, segmenter: Segmenter) -> None:
        clusters = [
            replace(each, merged_into=0) if each.id in (2, 4) else each
            for each in segmenter.clusters
        ]
        merged = Segmenter(
            segmenter.network, segmenter.card, clusters, device="cpu", precision="fp32"
        )
        agree(merged, "none")
        assert MaskNetwork(merged, "none").grouping.tolist() == [0, 1, 0, 3, 0]


class TestFilters:
    def test_pamr(self) -> None:
        guide, maps = drawn(19, 31) / 255.0, torch.rand(1, 3, 19, 31)
        torch.testing.assert_close(module.pamr(guide, maps), refinement.pamr(guide, maps))

    @pytest.mark.parametrize("radius", [1, 4, 40])
    def test_box_mean(self, radius: int) -> None:
        maps = torch.rand(1, 3, 19, 31)
        torch.testing.assert_close(module.box_mean(maps, radius), refinement.box_mean(maps, radius))

    def test_a_smaller_image_is_rounded_as_8_bit_images_are(self) -> None:
        image = torch.randint(0, 256, (1, 3, 90, 120), dtype=torch.uint8)
        for size in ((30, 40), (29, 41)):
            wanted = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)
            found = module.smaller(image, size)
            assert (found == wanted).float().mean() > 0.99
            assert (found - wanted).abs().max() <= 1
