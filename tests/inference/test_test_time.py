"""Passes at test time as a value: what is allowed, in which order they run, what is printed of them."""

from __future__ import annotations

from typing import Any

import pytest

from densesiam_seg.errors import UsageError
from densesiam_seg.inference.test_time import PLAIN, Refinement, refinement


class TestRefinement:
    def test_plain_is_one_pass(self) -> None:
        assert Refinement().settled("none") == PLAIN
        assert Refinement(flip=True).settled("pamr") == Refinement(flip=True, refine="pamr")
        assert PLAIN.settled("pamr") == PLAIN
        assert PLAIN.plain
        assert PLAIN.passes == ((1.0, False),)
        assert PLAIN.describe() == ""

    def test_passes_are_every_scale_and_its_mirror_image(self) -> None:
        how = Refinement(flip=True, scales=(0.5, 1.0))
        assert how.passes == ((0.5, False), (0.5, True), (1.0, False), (1.0, True))
        assert not how.plain

    @pytest.mark.parametrize(
        ("how", "words"),
        [
            (Refinement(flip=True), "; on top: mean of scores over the mirrored image too"),
            (Refinement(scales=(0.75, 1.0)), "; on top: mean of scores at scales 0.75,1"),
            (Refinement(refine="pamr"), "; on top: PAMR"),
            (
                Refinement(True, (2.0,), "guided"),
                "; on top: mean of scores over the mirrored image too, mean of scores at scales 2, guided filter",
            ),
        ],
    )
    def test_each_part_is_told(self, how: Refinement, words: str) -> None:
        assert how.describe() == words
        assert not how.plain

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"scales": ()}, "give 1 to 8 different factors"),
            ({"scales": (1.0, 1.0)}, "--scales 1,1: give 1 to 8 different factors"),
            ({"scales": tuple(1 + k / 10 for k in range(9))}, "give 1 to 8"),
            ({"scales": (0.2,)}, "--scales 0.2: must be 0.25 to 4"),
            ({"scales": (1.0, 5.0)}, "--scales 5: must be 0.25 to 4"),
            ({"scales": (float("nan"),)}, "--scales nan: must be"),
            ({"refine": "crf"}, "--refine crf: give one of auto, none, guided, pamr"),
        ],
    )
    def test_others_are_refused(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(UsageError, match=words):
            Refinement(**options)


class TestText:
    def test_the_defaults_of_the_command_line_are_plain(self) -> None:
        assert refinement() == Refinement()

    @pytest.mark.parametrize(
        ("text", "scales"), [("1", (1.0,)), ("0.75, 1,1.25", (0.75, 1.0, 1.25)), ("2", (2.0,))]
    )
    def test_scales(self, text: str, scales: tuple[float, ...]) -> None:
        assert refinement(True, text, "pamr") == Refinement(True, scales, "pamr")

    @pytest.mark.parametrize("text", ["", "big", "1;2", "1,,2", "0.5,x", "nan", "1,nan"])
    def test_others_are_refused_with_an_example(self, text: str) -> None:
        with pytest.raises(UsageError, match=r"--scales .*such as 0\.75,1,1\.25"):
            refinement(scales=text)
