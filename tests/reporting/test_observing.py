"""What one image says, compared with sums by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from densesiam_seg.inference.options import PLAIN
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.reporting.observing import SIDE, Crop, doubts_of, map_of, observe

HALVES = torch.full((5, SIDE, SIDE), -20.0)
"""Scores of an image whose left half is cluster 1 with 0.9 (then 2), its right half cluster 3 with 0.6 (then 0)."""
HALVES[1, :, : SIDE // 2], HALVES[2, :, : SIDE // 2] = np.log(0.9), np.log(0.1)
HALVES[3, :, SIDE // 2 :], HALVES[0, :, SIDE // 2 :] = np.log(0.6), np.log(0.4)


def test_shares_certainty_and_doubts(segmenter: Segmenter) -> None:
    found = observe(segmenter, 7, HALVES, torch.ones(8), PLAIN)
    np.testing.assert_allclose(found.shares, [0, 0.5, 0, 0.5, 0])
    np.testing.assert_allclose(found.sureness, [0, 0.45, 0, 0.3, 0], atol=1e-6)
    doubts = np.zeros((5, 5))
    doubts[1, 2], doubts[3, 0] = 0.05, 0.2
    np.testing.assert_allclose(found.doubts, doubts, atol=1e-6)
    assert abs(found.confidence - 0.75) < 1e-6
    spread = [-(p * np.log(p) + (1 - p) * np.log(1 - p)) / np.log(5) for p in (0.9, 0.6)]
    assert abs(found.entropy - np.mean(spread)) < 1e-5


def test_merged_clusters_count_as_one(segmenter: Segmenter) -> None:
    """2 is shown as 1: the left half is sure, and no doubt is left there."""
    merged = Segmenter(
        segmenter.network,
        segmenter.card,
        [replace(each, merged_into=1 if each.id == 2 else None) for each in segmenter.clusters],
        device="cpu",
    )
    found = observe(merged, 0, HALVES, torch.ones(8), PLAIN)
    np.testing.assert_allclose(found.sureness, [0, 0.5, 0, 0.3, 0], atol=1e-6)
    assert found.doubts[1].sum() < 1e-6 and found.doubts[3, 0] > 0.1
    assert {crop.cluster for crop in found.typical} == {1, 3}


def test_small_scores_are_looked_at_in_the_size_of_the_masks(segmenter: Segmenter) -> None:
    scores = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
    found = map_of(segmenter, scores, PLAIN)
    assert found.mask.shape == (SIDE, 240)
    np.testing.assert_array_equal(found.mask, segmenter.mask(scores, SIDE, 240))


def test_doubts_against_a_loop() -> None:
    draw = torch.Generator().manual_seed(3)
    found = torch.rand(4, 5, 6, generator=draw).softmax(0)
    ids = found.argmax(0)
    wanted = np.zeros((4, 4))
    for y in range(5):
        for x in range(6):
            order = found[:, y, x].argsort(descending=True).tolist()
            wanted[order[0], order[1]] += float(found[order[1], y, x])
    np.testing.assert_allclose(doubts_of(ids, found), wanted, atol=1e-6)
    assert doubts_of(torch.zeros(2, 2, dtype=torch.int64), torch.ones(1, 2, 2)).tolist() == [[0]]


def crop_of(crops: tuple[Crop, ...], cluster: int) -> Crop:
    (found,) = (crop for crop in crops if crop.cluster == cluster)
    return found


def test_crops_show_the_cluster_where_it_is_surest_and_where_it_is_least_sure(
    segmenter: Segmenter,
) -> None:
    """Cluster 1 on cluster 0 in two squares, of which the upper left one is sure."""
    scores = torch.full((5, SIDE, SIDE), -20.0)
    scores[0] = np.log(0.8)
    for start, probability in ((10, 0.95), (110, 0.55)):
        square = (slice(start, start + 30), slice(start, start + 30))
        scores[1][square], scores[0][square] = np.log(probability), np.log(1 - probability)
    found = observe(segmenter, 4, scores, torch.ones(8), PLAIN)
    surest, least = crop_of(found.typical, 1), crop_of(found.doubtful, 1)
    for crop, start in ((surest, 10), (least, 110)):
        top, left, height, width = (round(value * SIDE) for value in crop.box)
        assert top <= start + 5 and top + height >= start + 25
        assert left <= start + 5 and left + width >= start + 25
        assert crop.inside.shape == (height, width) and 0.3 < crop.inside.mean() < 0.95
        assert crop.place == 4
    assert surest.box[:2] != least.box[:2]


def test_a_crop_is_never_mostly_of_others(segmenter: Segmenter) -> None:
    """A thin frame of pixels that are unsure lies around a sure square."""
    scores = torch.full((5, SIDE, SIDE), -20.0)
    scores[0] = np.log(0.9)
    ring, core = slice(48, 112), slice(50, 110)
    for square, probability in ((ring, 0.52), (core, 0.95)):
        scores[1, square, square] = np.log(probability)
        scores[0, square, square] = np.log(1 - probability)
    found = observe(segmenter, 0, scores, torch.ones(8), PLAIN)
    assert all(crop.inside.mean() >= 0.1 for crop in found.doubtful)
    for rows, clusters in ((5, {0, 1}), (1, {0})):
        line = torch.full((5, SIDE, SIDE), -20.0)
        line[0], line[1, 80 : 80 + rows] = np.log(0.9), np.log(0.6)
        line[0, 80 : 80 + rows] = np.log(0.4)
        thin = observe(segmenter, 0, line, torch.ones(8), PLAIN)
        assert {crop.cluster for crop in thin.doubtful} == clusters


def test_what_is_hardly_there_gives_no_crop(segmenter: Segmenter) -> None:
    scores = torch.zeros(5, SIDE, SIDE)
    scores[0] = 1
    scores[4, :8, :8] = 5
    found = observe(segmenter, 0, scores, torch.ones(8), PLAIN)
    assert found.shares[4] > 0
    assert {crop.cluster for crop in (*found.typical, *found.doubtful)} == {0}
