"""How sure a model is: by hand, and band by band as all at once."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from photographs import centroids_of
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.inference import upsampling
from densesiam_seg.inference.confidence import (
    IGNORED,
    TEMPERATURE,
    confidence,
    entropy,
    grade,
    probabilities,
)
from densesiam_seg.inference.options import PLAIN, Refinement
from densesiam_seg.inference.segmenter import Segmenter


def scores_of(clusters: int, height: int = 6, width: int = 9) -> Tensor:
    draw = torch.Generator().manual_seed(clusters)
    return 3 * torch.randn(1, clusters, height, width, generator=draw)


@pytest.fixture
def merged(segmenter: Segmenter) -> Segmenter:
    """Clusters 1 and 4 are shown as 3."""
    other = copy.copy(segmenter)
    other.clusters = tuple(
        replace(each, merged_into=3 if each.id in (1, 4) else None) for each in segmenter.clusters
    )
    return other


class TestProbabilities:
    def test_of_a_head_are_the_softmax(self, segmenter: Segmenter) -> None:
        scores = scores_of(5)
        found = probabilities(segmenter, scores, PLAIN)
        torch.testing.assert_close(found, scores.exp() / scores.exp().sum(1, keepdim=True))

    def test_means_of_passes_are_probabilities_already(self, segmenter: Segmenter) -> None:
        """Whatever a filter left of their sum; not less than nothing."""
        scores = torch.tensor([0.6, 0.3, 0.2, -0.1, 0.0]).view(1, 5, 1, 1)
        found = probabilities(segmenter, scores, Refinement(refine="guided"))
        expected = torch.tensor([0.6, 0.3, 0.2, 0.0, 0.0]) / 1.1
        torch.testing.assert_close(found.flatten(), expected)
        flipped = probabilities(segmenter, scores_of(5).softmax(1), Refinement(flip=True))
        torch.testing.assert_close(flipped, scores_of(5).softmax(1))

    def test_of_centroids_fall_with_the_squared_distance(self, segmenter: Segmenter) -> None:
        """One that is nearer by TEMPERATURE is e times as likely; passes average distances."""
        other = segmenter.with_centroids(centroids_of(2))
        scores = torch.tensor([0.5, 0.5 - TEMPERATURE]).view(1, 2, 1, 1)
        for refinement in (PLAIN, Refinement(flip=True)):
            found = probabilities(other, scores, refinement).flatten().tolist()
            assert found == pytest.approx([math.e / (1 + math.e), 1 / (1 + math.e)])

    def test_of_merged_clusters_are_added(self, segmenter: Segmenter, merged: Segmenter) -> None:
        own = probabilities(segmenter, scores_of(5), PLAIN)
        found = probabilities(merged, scores_of(5), PLAIN)
        torch.testing.assert_close(found[:, 3], own[:, [1, 3, 4]].sum(1))
        torch.testing.assert_close(found[:, [0, 2]], own[:, [0, 2]])
        assert not found[:, [1, 4]].any()
        torch.testing.assert_close(found.sum(1), torch.ones(1, 6, 9))


class TestNumbers:
    def test_confidence_is_the_largest(self) -> None:
        found = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.4, 0.1]]).T.view(1, 3, 1, 2)
        torch.testing.assert_close(confidence(found), torch.tensor([[[0.7, 0.5]]]))

    def test_entropy_runs_from_0_to_1(self) -> None:
        """1 where the clusters that are left share a pixel evenly, whether others are merged or not."""
        found = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0]]).T.view(1, 3, 1, 2)
        assert entropy(found, 2).flatten().tolist() == pytest.approx([0, 1])
        assert entropy(found, 3).flatten().tolist() == pytest.approx([0, math.log(2, 3)])
        assert not entropy(torch.ones(1, 1, 2, 2), 1).any()


class TestGrades:
    @pytest.mark.parametrize("tile", [1, 400, 2**22])
    def test_bands_are_the_whole(
        self, merged: Segmenter, monkeypatch: pytest.MonkeyPatch, tile: int
    ) -> None:
        monkeypatch.setattr(upsampling, "TILE", tile)
        scores = scores_of(5)
        mask = merged.mask(scores[0], 31, 40)
        found = grade(merged, scores[0], mask.copy(), refinement=PLAIN)
        whole = F.interpolate(scores, (31, 40), mode="bilinear").double().softmax(1).numpy()[0]
        summed = np.stack([whole[0], 0 * whole[0], whole[2], whole[1] + whole[3] + whole[4]])
        own = np.take_along_axis(summed, mask[None].astype(int), 0)[0]
        logs = np.where(summed > 0, np.log(np.where(summed > 0, summed, 1)), 0)
        spread = -(summed * logs).sum(0) / np.log(3)
        assert np.abs(found["confidence"] - 255 * own).max() < 0.51
        assert np.abs(found["entropy"] - 255 * spread).max() < 0.51

    def test_what_the_mask_shows_counts(self, merged: Segmenter) -> None:
        """0 has 0.4, the others 0.3 each together with nothing: the mask shows 0, although 3 has 0.6."""
        scores = torch.tensor([0.4, 0.3, 1e-9, 0.3, 1e-9]).log().view(5, 1, 1)
        mask = merged.mask(scores, 1, 1)
        assert mask.tolist() == [[0]]
        assert grade(merged, scores, mask, refinement=PLAIN)["confidence"].tolist() == [[102]]

    def test_pixels_below_a_confidence_have_no_cluster(self, segmenter: Segmenter) -> None:
        scores = scores_of(5)[0]
        mask = segmenter.mask(scores, 31, 40)
        kept = mask.copy()
        found = grade(segmenter, scores, kept, ("confidence",), PLAIN, least=0.6)
        assert set(found) == {"confidence"}
        gone = kept == IGNORED
        assert 0.1 < gone.mean() < 0.9
        np.testing.assert_array_equal(kept[~gone], mask[~gone])
        assert found["confidence"][gone].max() <= 153 <= found["confidence"][~gone].min()
