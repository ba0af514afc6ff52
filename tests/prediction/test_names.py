"""The names of masks: those of their images, each once, cut where they are too long."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densesiam_seg.errors import UsageError
from densesiam_seg.prediction.names import Derived, fitting_names, mask_names, stem_of


class TestNames:
    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (["a.jpg", "b.png"], ["a.png", "b.png"]),
            (["d/a.jpg", "d/e/a.jpg", "a.jpg"], ["d/a.png", "d/e/a.png", "a.png"]),
            (["a.jpg", "a.png", "b.png"], ["a.jpg.png", "a.png.png", "b.png"]),
            (["a.b.jpg", "a.c.jpg"], ["a.b.png", "a.c.png"]),
            (["a", "a.jpg"], ["a.png", "a.jpg.png"]),
            (["a.jpg", "a.png/b.jpg"], ["a.jpg.png", "a.png/b.png"]),
            (["x.jpg", "x.png", "x.jpg.jpg"], ["x.jpg.png", "x.png.png", "x.jpg.jpg.png"]),
            ([".hidden.jpg", ".jpg"], [".hidden.png", ".jpg.png"]),
        ],
    )
    def test_stems_are_kept_unless_two_images_share_one(
        self, names: list[str], expected: list[str]
    ) -> None:
        assert [f"{name}.png" for name in mask_names(names)] == expected

    @settings(max_examples=50)
    @given(st.sets(st.from_regex(r"\A(d/)?[ab.]{0,4}[ab][ab.]?\Z")))
    def test_no_two_masks_share_a_name(self, names: set[str]) -> None:
        assert len(set(mask_names(sorted(names)))) == len(names)

    def test_long_names_are_cut_and_get_a_digest(self) -> None:
        """SHA-256 of the whole name; 16 bytes here, of which the digest and the suffix take 13."""
        digest = hashlib.sha256(b"x" * 13 + b".png").hexdigest()
        names = ["x" * 12, "x" * 13, "dd/e"]
        found = ["x" * 12 + ".png", f"xxx-{digest[:8]}.png", "dd/e.png"]
        assert fitting_names(names, 16) == found
        assert fitting_names(names, 16).cut == {1: found[1]}

    @pytest.mark.parametrize(
        ("stem", "kept"), [("木" * 9, "木"), ("xe\u0301" + "x" * 20, "x"), ("\u0301" * 20, "")]
    )
    def test_letters_stay_whole(self, stem: str, kept: str) -> None:
        """With their accents."""
        (name,) = fitting_names([stem], 16)
        assert name.startswith(f"{kept}-") and len(name) == len(kept) + 13

    def test_long_folders_are_cut_too(self) -> None:
        (name,) = fitting_names(["d" * 30 + "/e/a"], 16)
        assert [len(part) for part in name.split("/")] == [16, 1, 5]

    def test_equal_digests_are_made_longer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ends = {"a": "1" * 64, "b": "1" * 8 + "2" * 56}
        monkeypatch.setattr(
            hashlib, "sha256", lambda name: SimpleNamespace(hexdigest=lambda: ends[chr(name[40])])
        )
        names = [f"{'x' * 40}{end}" for end in "ab"]
        one, other = fitting_names(names, 30)
        assert one == "x" * 17 + "-" + "1" * 8 + ".png"
        assert other == "x" * 9 + "-" + "1" * 8 + "2" * 8 + ".png"

    @settings(max_examples=50)
    @given(st.sets(st.from_regex(r"\A[xé]{1,20}(/[xé]{1,20})?\Z")))
    def test_no_two_of_them_are_the_same(self, names: set[str]) -> None:
        found = fitting_names(sorted(names), 20)
        assert len(set(found)) == len(names)
        assert all(len(os.fsencode(part)) <= 20 for name in found for part in name.split("/"))


class TestSeveralFiles:
    """What any image writes is no other image's."""

    ENDS = ("_confidence.png", ".png")

    def test_a_mask_and_a_map(self) -> None:
        names = ["a.jpg", "a_confidence.jpg", "b.jpg"]
        assert mask_names(names, self.ENDS) == ["a.jpg", "a_confidence.jpg", "b"]

    def test_pictures_of_clusters(self) -> None:
        """`x` and `b_x` of `a_b` and `a`."""
        assert mask_names(["a.jpg", "a_b.jpg"], ("_x.png", "_b_x.png")) == ["a.jpg", "a_b.jpg"]
        assert mask_names(["a.jpg", "c.jpg"], ("_x.png", "_b_x.png")) == ["a", "c"]

    def test_names_that_no_rule_tells_apart(self) -> None:
        names = ["a.jpg", "a.png", "a.jpg_confidence.jpg", "a.jpg_confidence.png"]
        names += ["a.jpg_confidence"]
        with pytest.raises(UsageError, match="would both have this file"):
            mask_names(names, self.ENDS)

    @settings(max_examples=50)
    @given(st.sets(st.from_regex(r"\A(d/)?[ab_]{1,4}[.][jp]\Z")))
    def test_never_share_one(self, names: set[str]) -> None:
        ends = ("_a.png", "_b.png", "_a_b.png", ".png")
        found = mask_names(sorted(names), ends)
        files = [name + end for name in found for end in ends]
        assert len(set(files)) == len(files)


def test_other_suffixes() -> None:
    assert fitting_names(["a", "x" * 20], 16, ".tif")[0] == "a.tif"
    assert len(fitting_names(["a", "x" * 20], 16, ".tif")[1]) == 16


def slow_mask_names(names: Sequence[str], ends: Sequence[str]) -> list[str] | None:
    """The rule with everything in memory; None where it cannot tell names apart."""
    stems = [stem_of(name) for name in names]
    taken = Counter([*stems, *names])
    folders = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    for end in ends:
        taken.update(folder.removesuffix(end) for folder in folders if folder.endswith(end))
    if len(ends) > 1:
        written = Counter(stem + end for stem in stems for end in ends)
        taken.update(stem for stem in stems if any(written[stem + end] > 1 for end in ends))
    found = [stem if taken[stem] == 1 else name for stem, name in zip(stems, names, strict=True)]
    files = {own + end: None for own in found for end in ends}
    return found if len(files) == len(found) * len(ends) else None


class TestWithoutAnObjectPerName:
    @settings(max_examples=300)
    @given(
        st.sets(st.from_regex(r"\A(d/|a[.]png/|d/e/)?[ab._]{0,3}[ab]([.][jp])?\Z")),
        st.sampled_from([(".png",), ("_b.png", ".png"), ("_a.png", "_b.png", "_a_b.png", ".png")]),
    )
    def test_the_names_of_the_slow_rule(self, names: set[str], ends: tuple[str, ...]) -> None:
        listed = sorted(names)
        expected = slow_mask_names(listed, ends)
        if expected is None:
            with pytest.raises(UsageError, match="would both have this file"):
                mask_names(listed, ends)
        else:
            assert mask_names(listed, ends) == expected

    @settings(max_examples=200)
    @given(st.from_regex(r"\A(d[.]/)?[ab.]{0,3}[ab]([.][jp]?)?\Z"))
    def test_stems(self, name: str) -> None:
        """As pathlib has them, whose versions do not agree on names that begin or end with a dot."""
        last = PurePosixPath(name).name
        if not last.startswith(".") and not last.endswith("."):
            assert stem_of(name) == str(PurePosixPath(name).with_suffix(""))
        assert name.startswith(stem_of(name)) and stem_of(name).strip("./")

    def test_only_exceptions_are_kept(self) -> None:
        """So what is sent to another process is the names themselves and little more."""
        names = (*(f"{number:06}.jpg" for number in range(2000)), "a.jpg", "a.png")
        found = fitting_names(mask_names(names), 12)
        assert len(pickle.dumps(found)) < len(pickle.dumps(names)) + 1000
        again = pickle.loads(pickle.dumps(found))
        assert again == found and again[-1] == "a.png.png" and again[0] == "000000.png"


def test_a_derived_sequence_is_a_tuples_equal() -> None:
    squares = Derived(lambda number: number * number, range(5))
    assert squares == (0, 1, 4, 9, 16) == squares and squares == [*squares]
    assert squares != (0, 1, 4, 9) and squares[:4] == (0, 1, 4, 9) and squares != 7
    assert (squares[-1], len(squares[1:3]), len(squares[3:2])) == (16, 2, 0)
    with pytest.raises(IndexError):
        squares[5]
