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


def new_store(folder: Path, keep: Keep = "disk", side: int = SIDE, fit: Fit = "crop") -> ImageStore:
    """Its cache would lie beside the folder of images."""
    caches = folder.parent / "caches"
    return ImageStore(scan([folder]), side, fit=fit, workers=0, keep=keep, caches=caches)


def store_of(folder: Path, keep: Keep = "disk", side: int = SIDE, fit: Fit = "crop") -> ImageStore:
    store = new_store(folder, keep, side, fit)
    assert list(store.prepare())[-1] in (4, 5)
    return store


def pixels(store: ImageStore) -> Tensor:
    (batch,) = store.batches([(3, 0, 2, 1)])
    return batch.images


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_pixels_and_what_was_skipped_are_those_of_memory(folder: Path, fit: Fit) -> None:
    memory, disk = store_of(folder, "ram", fit=fit), store_of(folder, fit=fit)
    assert memory.file is None and disk.file is not None
    assert disk.file.stat().st_size == 4 * 3 * SIDE**2
    assert disk.manifest == memory.manifest
    assert torch.equal(disk.aspects, memory.aspects)
    expected = pixels(memory)
    pixels(disk).zero_()  # batches are copies
    assert torch.equal(pixels(disk), expected)


def test_a_later_store_reads_no_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store_of(folder)
    for name in ("load_square", "load_stretched"):
        monkeypatch.setattr(batches, name, Mock(side_effect=AssertionError("decoded")))
    for keep in ("disk", "auto"):
        later = store_of(folder, keep)
        assert later.file == first.file
        assert later.manifest == first.manifest
        assert torch.equal(pixels(later), pixels(first))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "04.jpg").unlink(),
        lambda folder: os.utime(folder / "04.jpg", (1, 1)),
        lambda folder: shutil.copy(folder / "04.jpg", folder / "05.jpg"),
    ],
)
def test_other_images_or_another_form_have_another_cache(folder: Path, change: Mock) -> None:
    stores = [store_of(folder), store_of(folder, side=16), store_of(folder, fit="stretch")]
    change(folder)
    stores.append(new_store(folder))
    list(stores[-1].prepare())
    assert len({store.file for store in stores} - {None}) == 4


def flipped(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flipped(path, 0),
        lambda path: flipped(path, 5000),
        lambda path: flipped(path, -1),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: path.with_suffix(".json").unlink(),
        lambda path: path.with_suffix(".json").write_text("{"),
        lambda path: path.with_suffix(".json").write_text("[]"),
        lambda path: path.with_suffix(".json").write_text(json.dumps({"aspects": [1, 2]})),
    ],
)
def test_damaged_files_are_written_anew(folder: Path, damage: Mock) -> None:
    expected = pixels(store_of(folder, "none"))
    file = store_of(folder).file
    assert file is not None
    damage(file)
    again = store_of(folder)
    assert again.file == file
    assert torch.equal(pixels(again), expected)
    damage(file)
    assert torch.equal(pixels(store_of(folder, "auto")), expected)


def test_a_stop_while_writing_leaves_nothing(folder: Path) -> None:
    store = new_store(folder)
    looking = store.prepare()
    next(looking)
    next(looking)
    looking.close()  # type: ignore[attr-defined]
    assert list(store.caches.iterdir()) == []


@pytest.mark.parametrize("keep", ["ram", "disk", "none"])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_only_bad_files_leave_an_empty_store(tmp_path: Path, keep: Keep, fit: Fit) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    store = new_store(tmp_path / "images", keep, fit=fit)
    assert list(store.prepare()) == [1]
    assert len(store) == 0
    assert store.aspects.tolist() == []
    assert [item.reason for item in store.manifest.skipped] == ["empty"]


def test_auto_is_memory_then_disk_then_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 squares of 3 x 32 x 32 bytes: four times that of memory, or else twice that of disk."""
    need = 5 * 3 * SIDE**2
    expected = pixels(store_of(folder, "none"))
    assert not (folder.parent / "caches").exists()
    kinds = []
    for memory, disk in [(4 * need, 0), (4 * need - 1, 2 * need - 1), (0, 2 * need)]:
        monkeypatch.setattr(batches, "free_memory", Mock(return_value=memory))
        monkeypatch.setattr(batches, "free_space", Mock(return_value=disk))
        store = store_of(folder, "auto")
        kinds.append((store._squares is not None, store.file is not None))
        assert torch.equal(pixels(store), expected)
    assert kinds == [(True, False), (False, False), (True, True)]


def test_places_without_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "free_memory", Mock(return_value=100))
    with pytest.raises(UsageError, match="--cache disk"):
        store_of(folder, "ram")
    (folder.parent / "caches").write_bytes(b"a file")
    with pytest.raises(OutputError):
        store_of(folder)
