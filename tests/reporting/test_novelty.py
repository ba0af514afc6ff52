"""Novelty: distances worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from densesiam_seg.reporting.novelty import Reference

LINE = np.array([[0.0], [1.0], [2.0], [3.0], [4.0]], np.float32)
"""Five images whose nearest three others are 2, 4/3, 4/3, 4/3 and 2 away on average: the median is 4/3."""


@pytest.fixture
def known(tmp_path: Path) -> Reference:
    return Reference(tuple(str(tmp_path / f"{k}.png") for k in range(5)), LINE)


def test_an_image_is_compared_with_the_others(known: Reference) -> None:
    found = known.novelty(known.sources, known.descriptions)
    np.testing.assert_allclose(found, [1.5, 1, 1, 1, 1.5])  # type: ignore[arg-type]


def test_another_image(known: Reference) -> None:
    """At 10 it is 6, 7 and 8 away: 7 over 4/3. One at 2 is like the others, 2/3 over 4/3."""
    found = known.novelty(["far.png", "near.png"], np.array([[10.0], [2.0]], np.float32))
    np.testing.assert_allclose(found, [5.25, 0.5])  # type: ignore[arg-type]


def test_the_same_file_by_another_name(known: Reference, tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("2.png")
    found = known.novelty([str(tmp_path / "link.png")], np.array([[2.0]], np.float32))
    np.testing.assert_allclose(found, [1])  # type: ignore[arg-type]


def test_too_few_images_say_nothing() -> None:
    few = Reference(("a", "b", "c"), LINE[:3])
    assert not few.usable and few.novelty(["d"], LINE[:1]) is None


def test_copies_of_one_image_are_no_error() -> None:
    same = Reference(tuple("abcde"), np.zeros((5, 2), np.float32))
    found = same.novelty(["f"], np.ones((1, 2), np.float32))
    assert found is not None and np.isfinite(found).all() and found[0] > 1000
