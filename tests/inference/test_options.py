"""Options at test time as a value: what is allowed, in which order passes run, what is printed of them."""

from __future__ import annotations

from typing import Any

import pytest

from densesiam_seg.errors import UsageError
from densesiam_seg.inference.options import PLAIN, Refinement, refinement


def test_auto_is_settled_by_the_model() -> None:
    assert Refinement().settled("none") == PLAIN
    assert Refinement(flip=True).settled("pamr") == Refinement(flip=True, refine="pamr")
    assert PLAIN.settled("pamr") == PLAIN


def test_passes_are_every_scale_and_its_mirror_image() -> None:
    assert PLAIN.passes == ((1.0, False),)
    how = Refinement(flip=True, scales=(0.5, 1.0))
    assert how.passes == ((0.5, False), (0.5, True), (1.0, False), (1.0, True))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (Refinement(flip=True), ["mirrored image"]),
        (Refinement(scales=(0.75, 1.0)), ["scales 0.75,1"]),
        (Refinement(True, (2.0,), "guided"), ["mirrored image", "scales 2", "guided filter"]),
    ],
)
def test_each_part_is_told(how: Refinement, words: list[str]) -> None:
    parts = how.describe().split(", ")
    assert len(parts) == len(words)
    assert all(word in part for word, part in zip(words, parts, strict=True))
    assert not how.plain
    assert PLAIN.plain and PLAIN.describe() == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scales": ()}, "1 to 8 different"),
        ({"scales": (1.0, 1.0)}, "--scales 1,1: give 1 to 8 different"),
        ({"scales": tuple(1 + k / 10 for k in range(9))}, "1 to 8 different"),
        ({"scales": (0.2,)}, "--scales 0.2: must be 0.25 to 4"),
        ({"scales": (1.0, 5.0)}, "--scales 5: must be"),
        ({"scales": (float("nan"),)}, "--scales nan: must be"),
        ({"refine": "crf"}, "--refine crf"),
    ],
)
def test_others_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Refinement(**options)


@pytest.mark.parametrize(
    ("text", "scales"), [(None, (1.0,)), ("0.75, 1,1.25", (0.75, 1.0, 1.25)), ("2", (2.0,))]
)
def test_scales_as_text(text: str | None, scales: tuple[float, ...]) -> None:
    assert refinement(True, text, "pamr") == Refinement(True, scales, "pamr")


@pytest.mark.parametrize("text", ["", "big", "1;2", "1,,2", "0.5,x"])
def test_other_texts_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"--scales .*such as 0\.75,1,1\.25"):
        refinement(scales=text)
