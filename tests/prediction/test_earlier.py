"""Files of an earlier prediction: whole, damaged, out of date, or somebody else's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densesiam_seg.errors import UsageError
from densesiam_seg.events import Notice
from densesiam_seg.images.scan import scan
from densesiam_seg.peers.record import Record
from densesiam_seg.pictures.masks import palette, write_array, write_grey, write_mask
from densesiam_seg.prediction.earlier import (
    Earlier,
    State,
    is_whole,
    require_own,
    require_own_list,
    state_of,
)
from densesiam_seg.prediction.plan import plan
from densesiam_seg.prediction.wanted import Wanted

IDS = np.arange(6000).reshape(60, 100) % 7
WRITERS: dict[str, Callable[[Path], None]] = {
    "mask.png": lambda path: write_mask(path, IDS, palette(7)),
    "mask.tif": lambda path: write_mask(path, IDS, palette(7)),
    "deep.TIFF": lambda path: write_mask(path, IDS, palette(300)),
    "grey.tif": lambda path: write_grey(path, IDS.astype(np.uint8)),
    "mask.npy": lambda path: write_array(path, IDS.astype(np.uint8)),
}


@pytest.mark.parametrize("name", WRITERS)
class TestWhole:
    def test_as_it_was_written(self, tmp_path: Path, name: str) -> None:
        WRITERS[name](tmp_path / name)
        assert is_whole(tmp_path / name)

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_a_copy_that_broke_off(self, tmp_path: Path, name: str, share: float) -> None:
        WRITERS[name](tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        assert not is_whole(tmp_path / name)

    def test_zeros(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"\0" * 500)
        assert not is_whole(tmp_path / name)

    def test_of_another_kind(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("my notes")
        with pytest.raises(UsageError, match="is no mask of an earlier run"):
            is_whole(tmp_path / name)


def test_photographs_and_other_arrays(tmp_path: Path) -> None:
    Image.new("RGB", (5, 5)).save(tmp_path / "a.tif")
    np.save(tmp_path / "a.npy", np.zeros((3, 3)))
    np.save(tmp_path / "b.npy", np.zeros(3, np.uint8))
    for name in ("a.tif", "a.npy", "b.npy"):
        with pytest.raises(UsageError, match="is no mask of an earlier run"):
            is_whole(tmp_path / name)


def test_what_is_not_there(tmp_path: Path) -> None:
    assert not is_whole(tmp_path / "a.png")


def test_lists_of_failures(tmp_path: Path) -> None:
    path = tmp_path / "failed.jsonl"
    require_own_list(path)
    path.write_text('{"path": "a", "reason": "empty", "message": "a: is empty"}\n')
    require_own_list(path)
    path.write_text('{"job": 7}\n')
    with pytest.raises(UsageError, match="is no list"):
        require_own_list(path)


SECOND = 10**9
TIME = 1_700_000_000 * SECOND
"""Of the masks of the tests, in nanoseconds."""


def earlier(path: Path, time: int = TIME) -> Path:
    """A mask or an overlay of an earlier run, written at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("P" if path.suffix == ".png" else "RGB", (30, 20)).save(path)
    os.utime(path, ns=(time, time))
    return path


def old(folder: Path) -> None:
    """Images from before the masks."""
    for path in folder.rglob("*.*"):
        os.utime(path, ns=(TIME - SECOND, TIME - SECOND))


class TestStates:
    def test_by_the_times_of_image_and_files(self, tmp_path: Path) -> None:
        """All of them must be as new as the image, to the millisecond."""
        files = [earlier(tmp_path / "a_overlay.jpg", TIME + SECOND), earlier(tmp_path / "a.png")]
        for image, expected in ((0, State.KEPT), (1, State.OUTDATED)):
            assert state_of(files, TIME // 10**6 + image, None) is expected
        assert state_of([*files, tmp_path / "a.npy"], 0, None) is State.ABSENT
        files[0].write_bytes(files[0].read_bytes()[:-1])
        assert state_of(files, 0, None) is State.DAMAGED
        (tmp_path / "b.png").mkdir()
        assert state_of([tmp_path / "b.png"], 0, None) is State.ABSENT

    def test_what_was_there_before_the_record(self, tmp_path: Path) -> None:
        files = [earlier(tmp_path / "a.png"), earlier(tmp_path / "a.npy.png", TIME + SECOND)]
        for since, expected in ((0, State.KEPT), (TIME, State.KEPT), (TIME + 1, State.ABSENT)):
            assert state_of(files, 0, Record({}, since, replaces=True)) is expected
        with pytest.raises(UsageError, match=r"a\.png: was there before the masks of this job"):
            state_of(files, 0, Record({}, TIME + 1))
        with pytest.raises(UsageError, match=r"a\.png: was there before"):
            require_own(files, Record({}, TIME + 1))
        require_own([*files, tmp_path / "none"], Record({}, TIME))

    def test_strangers_are_replaced_only_where_that_was_said(self, tmp_path: Path) -> None:
        """Also beside a file that is not whole."""
        (tmp_path / "a.png").write_bytes(b"")
        (tmp_path / "b.png").write_text("my notes")
        files = [tmp_path / "a.png", tmp_path / "b.png"]
        for record in (None, Record({})):
            with pytest.raises(UsageError, match=r"b\.png: exists already and is no mask"):
                state_of(files, 0, record)
        assert state_of(files, 0, Record({}, replaces=True)) is State.DAMAGED


class TestEarlier:
    def kept(
        self, images: Path, out: Path, record: Record | None = None, **options: Any
    ) -> tuple[list[str], list[str], list[str]]:
        """Images that are left as they are, those that are done, and what is told."""
        told: list[Notice] = []
        work = plan(scan([images]), out, resume=True, **options)
        found = Earlier(work, record, told.append)
        kept = [Path(event.image).name for event in found.kept() if event.kept]
        left = [Path(source).name for source in work.left(found.left).sources]
        return kept, left, [notice.text for notice in told]

    def test_what_is_there_is_left(self, images: Path, tmp_path: Path) -> None:
        """A mask without its overlay is made again."""
        old(images)
        out = tmp_path / "out"
        for name in ("a.png", "a_overlay.jpg", "b.png"):
            earlier(out / name)
        assert self.kept(images, out) == (["a.jpg", "b.png"], ["c.webp"], [])
        wanted = Wanted(overlay=True)
        assert self.kept(images, out, wanted=wanted) == (["a.jpg"], ["b.png", "c.webp"], [])

    @pytest.mark.parametrize("damage", [b"", b"\0" * 500, b"\x89PNG\r\n", None])
    def test_what_is_not_whole_is_made_again(
        self, images: Path, tmp_path: Path, damage: bytes | None
    ) -> None:
        """As a power cut leaves it: empty, zeros, a part; also the overlay alone."""
        old(images)
        out = tmp_path / "out"
        for name in ("a.png", "a_overlay.jpg", "b.png", "b_overlay.jpg"):
            earlier(out / name)
        for name in ("a_overlay.jpg", "b.png"):
            whole = (out / name).read_bytes()
            (out / name).write_bytes(whole[:-1] if damage is None else damage[: len(whole)])
            if name == "a_overlay.jpg" and damage and damage[0]:
                (out / name).write_bytes(b"\xff\xd8")
        kept, left, told = self.kept(images, out)
        assert (kept, left) == (["a.jpg"], ["b.png", "c.webp"])
        assert told == ["1 mask of an earlier run not whole: made again"]
        kept, left, told = self.kept(images, out, wanted=Wanted(overlay=True))
        assert (kept, left) == ([], ["a.jpg", "b.png", "c.webp"])
        assert told == ["2 masks of an earlier run not whole: made again"]

    def test_an_image_that_changed_since(self, images: Path, tmp_path: Path) -> None:
        old(images)
        for name in ("a.png", "b.png"):
            earlier(tmp_path / "out" / name)
        os.utime(images / "b.png", ns=(TIME + SECOND, TIME + SECOND))
        kept, left, told = self.kept(images, tmp_path / "out")
        assert (kept, left) == (["a.jpg"], ["b.png", "c.webp"])
        assert told == ["1 mask of an earlier run older than the image: made again"]

    def test_other_peoples_files_stay(self, images: Path, tmp_path: Path) -> None:
        old(images)
        out = tmp_path / "out"
        out.mkdir()
        (out / "b.png").write_text("my notes")
        with pytest.raises(UsageError, match=r"b\.png: exists already and is no mask"):
            self.kept(images, out)
        for mode in ("RGB", "RGBA", "LA"):
            Image.new(mode, (5, 5)).save(out / "b.png")
            with pytest.raises(UsageError, match=r"b\.png: exists already and is no mask"):
                self.kept(images, out)
        for mode in ("P", "L", "I;16"):
            Image.new(mode, (5, 5)).save(out / "b.png")
            assert self.kept(images, out)[0] == ["b.png"]

    def test_frames_from_before(self, images: Path, tmp_path: Path) -> None:
        (images / "clip.mp4").touch()
        earlier(tmp_path / "out" / "clip.mp4" / "frame_000003.png")
        work = plan(scan([images / "clip.mp4"]), tmp_path / "out", resume=True)
        assert list(Earlier(work, Record({}, TIME), print).kept()) == []
        with pytest.raises(UsageError, match=r"frame_000003\.png: was there before"):
            list(Earlier(work, Record({}, TIME + 1), print).kept())
