"""Files of an earlier prediction: whole, damaged, or somebody else's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densesiam_seg.errors import UsageError
from densesiam_seg.pictures.masks import palette, write_array, write_grey, write_mask
from densesiam_seg.prediction.earlier import is_whole, require_own_list

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
