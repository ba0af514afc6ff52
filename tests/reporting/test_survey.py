"""One pass over images, compared with what `predict` gives image by image."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from densesiam_seg.clustering.kmeans import unit_features
from densesiam_seg.errors import ImageError, InputError
from densesiam_seg.events import Progress
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.reporting.observing import SIDE, Crop
from densesiam_seg.reporting.survey import (
    SHOWN,
    Best,
    Survey,
    described_events,
    seen,
    survey_events,
)


def surveyed(events: Iterable[Progress | Survey]) -> Survey:
    *before, last = events
    assert isinstance(last, Survey)
    counts = [event.done for event in before if isinstance(event, Progress)]
    assert counts == sorted(counts)
    return last


def test_shares_are_those_of_the_masks(segmenter: Segmenter, paths: list[str]) -> None:
    found = surveyed(survey_events(segmenter, paths))
    assert found.sources == tuple(paths)
    for path, shares in zip(paths, found.shares, strict=True):
        scores = segmenter.scores(segmenter.read(path)[0])[0]
        mask = segmenter.mask(scores, SIDE, SIDE)
        np.testing.assert_allclose(shares, np.bincount(mask.ravel(), minlength=5) / SIDE**2)
    np.testing.assert_allclose(found.share, found.shares.mean(0))
    assert found.share.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.occurrence, (found.shares >= 0.01).mean(0))


def test_means_over_images_of_different_certainty(segmenter: Segmenter, paths: list[str]) -> None:
    """The mean certainty of the clusters, weighted by their shares, is that of the images."""
    found = surveyed(survey_events(segmenter, paths))
    assert (found.sureness * found.share).sum() == pytest.approx(found.confidence.mean(), rel=1e-5)
    assert (found.confidence > 0.2).all() and (found.confidence < 1).all()
    assert (found.doubts.sum(1) <= 1 - found.sureness + 1e-6).all()
    assert found.doubts.diagonal().max() == 0


def test_the_order_and_the_groups_do_not_matter(segmenter: Segmenter, paths: list[str]) -> None:
    there = surveyed(survey_events(segmenter, paths))
    back = surveyed(survey_events(segmenter, paths[::-1]))
    np.testing.assert_allclose(there.shares, back.shares[::-1], atol=1e-3)
    np.testing.assert_allclose(there.sureness, back.sureness, atol=1e-4)


@pytest.mark.parametrize("how", [Refinement(), Refinement(flip=True, refine="guided")])
def test_scores_are_the_segmenters_own(
    segmenter: Segmenter, paths: list[str], how: Refinement
) -> None:
    images, _ = segmenter.read(paths[0])
    settled = how.settled(segmenter.card.refine)
    scores, means = seen(segmenter, images, settled, 1)
    torch.testing.assert_close(scores, segmenter.scores(images, how))
    if not how.flip:
        features = segmenter.features(segmenter.normalised(images))
        wanted = unit_features(segmenter.learned(features)).mean((-2, -1))
        torch.testing.assert_close(means, wanted)


def test_descriptions_alone_are_the_same(segmenter: Segmenter, paths: list[str]) -> None:
    events = described_events(segmenter, [*paths[:3], "none.png"])
    while True:
        try:
            next(events)
        except StopIteration as end:
            sources, described = end.value
            break
    assert sources == tuple(paths[:3])
    whole = surveyed(survey_events(segmenter, paths[:3]))
    np.testing.assert_allclose(described, whole.descriptions, atol=1e-5)


def test_bad_images_are_listed(segmenter: Segmenter, paths: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"junk")
    found = surveyed(survey_events(segmenter, [paths[0], str(bad), paths[1]]))
    assert found.sources == (paths[0], paths[1])
    assert [error.path for error in found.failed] == [str(bad)]
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        list(survey_events(segmenter, [str(bad)]))
    other = tmp_path / "worse.jpg"
    shutil.copy(bad, other)
    with pytest.raises(InputError, match="none of the 2 images"):
        list(survey_events(segmenter, [str(bad), str(other)]))


def test_crops_are_few_and_of_different_images(segmenter: Segmenter, paths: list[str]) -> None:
    found = surveyed(survey_events(segmenter, paths))
    for crops in (*found.typical, *found.doubtful):
        assert len(crops) <= SHOWN
        assert len({crop.place for crop in crops}) == len(crops)
        assert [crop.score for crop in crops] == sorted((c.score for c in crops), reverse=True)
    assert all(
        {crop.cluster for crop in crops} <= {cluster} for cluster, crops in enumerate(found.typical)
    )


def held(*scores: float) -> list[int]:
    """The places of the crops that are kept of images with these scores."""
    best = Best(len(scores))
    for place, score in enumerate(scores):
        best.add(Crop(place, 0, (0, 0, 1, 1), score, np.ones((1, 1), bool)))
    return [crop.place for crop in best.crops()]


def test_the_best_of_each_stretch_then_the_best_of_the_rest() -> None:
    """Twelve images are six stretches of two, of which each gives its better one."""
    assert held(9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0.5, 0.4) == [0, 2, 4, 6, 8, 10]
    assert held(1, 2, 3) == [2, 1, 0]
    best = Best(60)
    for place in (0, 1, 2, 3, 30, 31, 32, 33):
        best.add(Crop(place, 0, (0, 0, 1, 1), float(place), np.ones((1, 1), bool)))
    assert [crop.place for crop in best.crops()] == [33, 32, 31, 30, 3, 2]


def test_some_images_for_others_to_be_compared_with(
    segmenter: Segmenter, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("densesiam_seg.reporting.survey.REFERENCE", 4)
    found = surveyed(survey_events(segmenter, paths))
    known = found.reference()
    assert known.sources == (paths[0], paths[4], paths[7], paths[11])
    np.testing.assert_array_equal(known.descriptions, found.descriptions[[0, 4, 7, 11]])
