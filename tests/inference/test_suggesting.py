"""The pass over images that finds how many clusters there are: what is counted, and which files are left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from photographs import junk

from densesiam_seg.clustering import suggestion
from densesiam_seg.clustering.suggestion import Points, Tally
from densesiam_seg.errors import InputError, PartialError, UsageError
from densesiam_seg.events import Notice, Progress
from densesiam_seg.images.scan import scan
from densesiam_seg.inference import suggesting
from densesiam_seg.inference.centroids import fit_readout
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.suggesting import Suggested, suggestion_events

Given = list[tuple[list[Tally], Points]]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """What each suggestion was made of."""
    found: Given = []

    def record(parts: list[Tally], points: Points, *, seed: int) -> suggestion.Suggestion:
        found.append((parts, points))
        return suggestion.suggest(parts, points, seed=seed)

    monkeypatch.setattr(suggesting, "suggest", record)
    return found


def suggested(segmenter: Segmenter, *images: str | Path) -> Suggested:
    *_, last = suggestion_events(segmenter, scan(images))
    assert isinstance(last, Suggested)
    return last


def test_what_is_counted(segmenter: Segmenter, paths: list[str], given: Given) -> None:
    """As a slow reference has it, place by place."""
    suggested(segmenter, *paths)
    ((parts, points),) = given
    assert len(parts) == 10
    pixels, sums, overlap = np.zeros(5, np.int64), np.zeros((5, 8)), np.zeros((5, 5))
    for path in paths:
        images, _ = segmenter.read(path)
        features = segmenter.features(segmenter.normalised(images))
        likely = segmenter.logits(segmenter.normalised(images))[0].softmax(0).flatten(1).T.double()
        units = torch.nn.functional.normalize(features[0].flatten(1).T.float(), dim=1)
        for place, unit in zip(likely.numpy(), units.numpy(), strict=True):
            cluster = int(place.argmax())
            pixels[cluster] += 1
            sums[cluster] += unit
            overlap += np.outer(place, place)
    whole = sum(parts[1:], parts[0])
    np.testing.assert_array_equal(whole.pixels, pixels)
    np.testing.assert_allclose(whole.sums, sums, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(whole.overlap, overlap, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(points.features, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(np.bincount(points.clusters, minlength=5) > 0, pixels > 0)


def test_progress_and_result(segmenter: Segmenter, paths: list[str]) -> None:
    *events, last = suggestion_events(segmenter, scan(paths))
    assert [(each.done, each.total) for each in events if isinstance(each, Progress)] == [
        (done, 12) for done in range(1, 13)
    ]
    assert isinstance(last, Suggested) and last.error is None
    assert last.best.counts == (2, 3, 4, 5) and len(last.best.tree) == 4


def test_merges_that_are_there_change_nothing(segmenter: Segmenter, paths: list[str]) -> None:
    merged = suggested(segmenter, *paths)
    clusters = segmenter.clusters
    try:
        segmenter.clusters = (clusters[0], *(replace(each, merged_into=0) for each in clusters[1:]))
        assert suggested(segmenter, *paths) == merged
    finally:
        segmenter.clusters = clusters


def test_other_readouts(segmenter: Segmenter, paths: list[str], given: Given) -> None:
    """Centroids have distances in place of probabilities."""
    read = fit_readout(segmenter, lambda: iter(paths), len(paths), 7, seed=0)
    assert len(suggested(read, *paths).best.tree) == 6
    assert sum(tally.overlap.sum() for tally in given[0][0]) == pytest.approx(
        sum(tally.pixels.sum() for tally in given[0][0])
    )


def test_few_images(segmenter: Segmenter, paths: list[str]) -> None:
    """One has no halves, two have one each."""
    assert set(suggested(segmenter, paths[0]).best.scores["stability"]) == {None}
    assert suggested(segmenter, *paths[:2]).best.counts[0] == 2


def test_what_cannot_be_read_is_left_out(
    segmenter: Segmenter, paths: list[str], tmp_path: Path
) -> None:
    *events, last = suggestion_events(segmenter, scan([*paths, junk(tmp_path / "z.png")]))
    assert isinstance(last, Suggested) and isinstance(last.error, PartialError)
    assert "1 of 13" in str(last.error) and "z.png" in str(last.error)
    warnings = [each for each in events if isinstance(each, Notice)]
    assert len(warnings) == 1 and warnings[0].warning
    with pytest.raises(InputError, match="none of the images"):
        suggested(segmenter, tmp_path / "z.png")


def test_too_many_clusters(
    segmenter: Segmenter, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suggesting, "MAX_CLUSTERS", 4)
    with pytest.raises(UsageError, match="2 to 4"):
        suggested(segmenter, *paths)


def test_many_images_are_sampled(
    segmenter: Segmenter, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suggesting, "IMAGES", 5)
    assert suggested(segmenter, *paths).images == 4
