"""The rows of the studies: settings that hold, names that differ, and the paper's figures as printed."""

from __future__ import annotations

from typing import Any

import pytest

from densesiam_seg.config import PretrainConfig, with_settings
from densesiam_seg.errors import UsageError
from densesiam_seg.studies.ablations import STUDIES, require_free, rows_of


def configs(study: str) -> list[PretrainConfig]:
    return [with_settings(PretrainConfig(), row.settings) for row in rows_of(study)]


@pytest.mark.parametrize("study", STUDIES)
def test_every_row_is_a_setting_of_its_own(study: str) -> None:
    found = configs(study)
    slugs = {row.slug for row in rows_of(study)}
    assert len(set(found)) == len(slugs) == len(found)
    assert study != "sampling" or "mildly-biased-k-3-0-75" in slugs
    assert all(slug.isascii() and " " not in slug and "/" not in slug for slug in slugs)


def test_only_densesiam_has_region_embeddings_among_the_correspondences() -> None:
    found = configs("correspondence")
    assert [each.region_weight for each in found] == [0, 0, 0, 0, 0, PretrainConfig().region_weight]
    assert [each.dense() for each in found] == [False] + 5 * [True]


def test_losses_are_switched_off_by_their_weights() -> None:
    on = [
        tuple(bool(weight) for weight in (each.image_weight, each.pixel_weight, each.region_weight))
        for each in configs("losses")
    ]
    assert on == [(1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 1, 1), (1, 1, 1)]


def test_an_unknown_study() -> None:
    with pytest.raises(UsageError, match="no study is named 'loss'; give correspondence, sampling"):
        rows_of("loss")


@pytest.mark.parametrize(
    ("study", "settings", "free"),
    [
        ("correspondence", {"correspondence": "location"}, False),
        ("correspondence", {"region_weight": 0.0}, False),
        ("sampling", {"epochs": 2, "importance": 0.5}, False),
        ("losses", {"image_weight": 0}, False),
        ("correspondence", {"region_weight": 0.3, "grid": 5}, True),
        ("sampling", {"epochs": 2, "similarity": "cosine"}, True),
        ("losses", {"image_weight": 0.5, "correspondence": "pixel-distance"}, True),
    ],
)
def test_what_the_rows_decide_cannot_be_given(
    study: str, settings: dict[str, Any], free: bool
) -> None:
    if free:
        require_free(study, settings)
        return
    with pytest.raises(UsageError, match=f"rows of the {study} study"):
        require_free(study, settings)
