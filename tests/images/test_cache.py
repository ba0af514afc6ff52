"""Decoded images on the disk: the same pixels, found again by later stores, and never believed when damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from densesiam_seg.errors import OutputError, UsageError
from densesiam_seg.images import store as batches
from densesiam_seg.images.cache import Cache
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import Fit, ImageStore, Keep

SIDE = 32


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    """Four images and a file that is none."""
    images = tmp_path / "images"
    images.mkdir()
    for name in ("01.png", "02.jpg", "03.png", "04.jpg"):
        shutil.copy2(image_folder / name, images)
    (images / "00.png").write_bytes(b"not an image")
    return images


def store_of(
    folder: Path, caches: Path, keep: Keep = "disk", side: int = SIDE, fit: Fit = "crop"
) -> ImageStore:
    store = ImageStore(
        scan([folder]), side, fit=fit, workers=0, max_pixels=10**6, keep=keep, caches=caches
    )
    assert list(store.prepare())[-1] in (4, 5)
    return store


def pixels(store: ImageStore) -> Tensor:
    (batch,) = store.batches([(3, 0, 2, 1)])
    return batch.images


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever decodes an image fails."""
    for name in ("load_square", "load_stretched"):
        monkeypatch.setattr(batches, name, Mock(side_effect=AssertionError("decoded")))


class TestDisk:
    @pytest.mark.parametrize("fit", ["crop", "stretch"])
    def test_pixels_and_what_was_skipped_are_those_of_memory(
        self, folder: Path, tmp_path: Path, fit: Fit
    ) -> None:
        memory = store_of(folder, tmp_path / "c", "ram", fit=fit)
        disk = store_of(folder, tmp_path / "c", fit=fit)
        assert memory.file is None and disk.file is not None
        assert disk.file.stat().st_size == 4 * 3 * SIDE**2
        assert disk.manifest == memory.manifest
        assert torch.equal(disk.aspects, memory.aspects)
        assert torch.equal(pixels(disk), pixels(memory))

    def test_a_later_store_reads_no_image(
        self, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        first = store_of(folder, tmp_path / "c")
        expected = pixels(first)
        request.getfixturevalue("no_decoding")
        for keep in ("disk", "auto"):
            later = store_of(folder, tmp_path / "c", keep)
            assert later.file == first.file
            assert later.manifest == first.manifest
            assert torch.equal(pixels(later), expected)

    def test_batches_are_copies(self, folder: Path, tmp_path: Path) -> None:
        store = store_of(folder, tmp_path / "c")
        expected = pixels(store)
        pixels(store).zero_()
        assert torch.equal(pixels(store), expected)

    @pytest.mark.parametrize(
        "change",
        [
            lambda folder: (folder / "04.jpg").unlink(),
            lambda folder: os.utime(folder / "04.jpg", (1, 1)),
            lambda folder: shutil.copy(folder / "04.jpg", folder / "05.jpg"),
        ],
    )
    def test_other_images_have_another_cache(
        self, folder: Path, tmp_path: Path, change: Mock
    ) -> None:
        first = store_of(folder, tmp_path / "c")
        change(folder)
        assert store_file(folder, tmp_path / "c") != first.file

    def test_another_form_has_another_cache(self, folder: Path, tmp_path: Path) -> None:
        caches = tmp_path / "c"
        files = {
            store_file(folder, caches),
            store_file(folder, caches, side=16),
            store_file(folder, caches, fit="stretch"),
        }
        assert len(files) == 3


def store_file(folder: Path, caches: Path, *, side: int = SIDE, fit: Fit = "crop") -> Path | None:
    store = ImageStore(
        scan([folder]), side, fit=fit, workers=0, max_pixels=10**6, keep="disk", caches=caches
    )
    list(store.prepare())
    return store.file


class TestDamage:
    @pytest.mark.parametrize("place", [0, 5000, -1])
    def test_a_flipped_bit_is_found_and_mended(
        self, folder: Path, tmp_path: Path, place: int
    ) -> None:
        store = store_of(folder, tmp_path / "c")
        expected = pixels(store)
        assert store.file is not None
        data = bytearray(store.file.read_bytes())
        data[place] ^= 1
        store.file.write_bytes(data)
        assert torch.equal(pixels(store_of(folder, tmp_path / "c")), expected)
        assert torch.equal(pixels(store_of(folder, tmp_path / "c", "auto")), expected)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            lambda path: path.write_bytes(b""),
            lambda path: path.unlink(),
            lambda path: path.with_suffix(".json").unlink(),
            lambda path: path.with_suffix(".json").write_text("{"),
            lambda path: path.with_suffix(".json").write_text("[]"),
            lambda path: path.with_suffix(".json").write_text(json.dumps({"aspects": [1, 2]})),
        ],
    )
    def test_files_that_do_not_fit_are_written_anew(
        self, folder: Path, tmp_path: Path, damage: Mock
    ) -> None:
        store = store_of(folder, tmp_path / "c")
        expected, file = pixels(store), store.file
        assert file is not None
        damage(file)
        again = store_of(folder, tmp_path / "c")
        assert again.file == file
        assert torch.equal(pixels(again), expected)

    def test_a_stop_while_writing_leaves_nothing(self, folder: Path, tmp_path: Path) -> None:
        store = ImageStore(
            scan([folder]), SIDE, workers=0, max_pixels=10**6, keep="disk", caches=tmp_path / "c"
        )
        looking = store.prepare()
        next(looking)
        next(looking)
        looking.close()  # type: ignore[attr-defined]
        assert list((tmp_path / "c").iterdir()) == []


class TestPlace:
    def test_auto_is_memory_then_disk_then_nothing(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """5 squares of 3 x 32 x 32 bytes: four times that of memory, or else twice that of disk."""
        need = 5 * 3 * SIDE**2
        kinds = []
        for index, (memory, disk) in enumerate([(4 * need, 0), (0, 2 * need), (0, 2 * need - 1)]):
            monkeypatch.setattr(batches, "free_memory", Mock(return_value=memory))
            monkeypatch.setattr(batches, "free_space", Mock(return_value=disk))
            store = store_of(folder, tmp_path / str(index), "auto")
            kinds.append((store._squares is not None, store.file is not None))
        assert kinds == [(True, False), (True, True), (False, False)]

    def test_none_decodes_every_time(self, folder: Path, tmp_path: Path) -> None:
        store = store_of(folder, tmp_path / "c", "none")
        expected = pixels(store_of(folder, tmp_path / "c", "ram"))
        assert store._squares is None and store.file is None
        assert torch.equal(pixels(store), expected)
        assert not (tmp_path / "c").exists()

    def test_memory_that_is_not_there(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(batches, "free_memory", Mock(return_value=100))
        with pytest.raises(UsageError, match="--cache disk"):
            store_of(folder, tmp_path / "c", "ram")

    def test_a_place_that_cannot_be_written(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "c").write_bytes(b"a file")
        with pytest.raises(OutputError):
            store_of(folder, tmp_path / "c")


def test_nothing_is_found_in_an_empty_place(folder: Path, tmp_path: Path) -> None:
    cache = Cache.of(tmp_path, scan([folder]), side=SIDE, fit="crop", max_pixels=10**6)
    assert cache.open(SIDE) is None
