"""The rows of the studies: settings that hold, names that differ, and the paper's figures as printed."""

from __future__ import annotations

from typing import Any

import pytest

from densesiam_seg.config import PretrainConfig, with_settings
from densesiam_seg.errors import UsageError
from densesiam_seg.studies.ablations import PAPER_TASK, STUDIES, require_free, rows_of

PAPER = {
    "correspondence": {
        "SimSiam (image level only)": (53.5, 79.7, 59.3),
        "feature similarity (DenseCL)": (36.3, 63.5, 36.1),
        "pixel distance (PixPro)": (53.7, 79.3, 58.5),
        "candidate regions (ReSim)": (54.7, 79.9, 60.5),
        "location": (54.9, 80.8, 60.9),
        "location + region embeddings": (55.5, 81.1, 61.5),
    },
    "sampling": {
        "regular grid, 7x7": (54.9, 80.8, 60.9),
        "uniform random": (54.7, 80.7, 60.3),
        "mildly biased (k = 3, β = 0.75)": (55.0, 80.7, 60.8),
        "heavily biased (k = 10, β = 1)": (54.3, 80.3, 60.0),
    },
    "similarity": {"cross-entropy": None, "cosine": None},
    "losses": {
        "image": None,
        "pixel": None,
        "image + pixel": None,
        "pixel + region": None,
        "image + pixel + region": None,
    },
}
"""Tables A1 and A2 of the supplement."""


def config(study: str, row: int) -> PretrainConfig:
    return with_settings(PretrainConfig(), rows_of(study)[row].settings)


def test_rows_and_figures() -> None:
    assert {name: {row.name: row.paper for row in rows} for name, rows in STUDIES.items()} == PAPER
    assert "another task" in PAPER_TASK


@pytest.mark.parametrize("study", STUDIES)
def test_every_row_is_a_setting_of_its_own(study: str) -> None:
    configs = [config(study, index) for index in range(len(rows_of(study)))]
    assert len(set(configs)) == len(configs)
    slugs = [row.slug for row in rows_of(study)]
    assert len(set(slugs)) == len(slugs)
    assert all(slug.isascii() and " " not in slug and "/" not in slug for slug in slugs)


def test_a_slug() -> None:
    assert rows_of("correspondence")[0].slug == "simsiam-image-level-only"
    assert rows_of("sampling")[2].slug == "mildly-biased-k-3-0-75"


def test_only_densesiam_has_region_embeddings_among_the_correspondences() -> None:
    weights = [config("correspondence", row).region_weight for row in range(6)]
    assert weights == [0, 0, 0, 0, 0, PretrainConfig().region_weight]
    assert not config("correspondence", 0).dense()
    assert all(config("correspondence", row).dense() for row in range(1, 6))


def test_sampling_is_measured_with_pixels_alone() -> None:
    found = [config("sampling", row) for row in range(4)]
    assert [each.sampling for each in found] == ["regular", "uniform", "biased", "biased"]
    assert [(each.oversample, each.importance) for each in found[2:]] == [(3, 0.75), (10, 1.0)]
    assert {(each.correspondence, each.grid, each.region_weight) for each in found} == {
        ("location", 7, 0.0)
    }


def test_losses_are_switched_off_by_their_weights() -> None:
    found = [config("losses", row) for row in range(5)]
    on = [
        tuple(bool(weight) for weight in (each.image_weight, each.pixel_weight, each.region_weight))
        for each in found
    ]
    assert on == [
        (True, False, False),
        (False, True, False),
        (True, True, False),
        (False, True, True),
        (True, True, True),
    ]


def test_an_unknown_study() -> None:
    with pytest.raises(UsageError, match="no study is named 'loss'; give correspondence, sampling"):
        rows_of("loss")


@pytest.mark.parametrize(
    ("study", "settings"),
    [
        ("correspondence", {"correspondence": "location"}),
        ("correspondence", {"region_weight": 0.0}),
        ("sampling", {"epochs": 2, "importance": 0.5}),
        ("similarity", {"similarity": "cosine"}),
        ("losses", {"image_weight": 0}),
    ],
)
def test_what_the_rows_decide_cannot_be_given(study: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"is what the rows of the {study} study differ in"):
        require_free(study, settings)


@pytest.mark.parametrize(
    ("study", "settings"),
    [
        ("correspondence", {"region_weight": 0.3, "grid": 5}),
        ("sampling", {"epochs": 2, "similarity": "cosine"}),
        ("losses", {"image_weight": 0.5, "correspondence": "pixel-distance"}),
    ],
)
def test_what_they_leave_open_can(study: str, settings: dict[str, Any]) -> None:
    require_free(study, settings)
