"""Batches: their order, their pixels, and that neither depends on workers or memory."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from densesiam_seg.errors import ImageError
from densesiam_seg.images import store as batches
from densesiam_seg.images.decode import load_square, load_stretched
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import Batch, Fit, ImageStore, epoch_batches
from densesiam_seg.views.pair import view_pair

SIDE = 64


def store_of(folder: Path, *, workers: int = 0, fit: Fit = "crop") -> ImageStore:
    store = ImageStore(scan([folder]), SIDE, fit=fit, workers=workers, max_pixels=10**6)
    count = len(store)
    assert list(store.prepare()) == list(range(1, count + 1))
    return store


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fits: images are decoded anew in every epoch."""
    monkeypatch.setattr(batches, "free_memory", lambda: 0)


class TestOrder:
    @given(
        images=st.integers(1, 200),
        batch=st.integers(1, 32),
        seed=st.integers(0, 2**63 - 1),
        epoch=st.integers(0, 1000),
    )
    @settings(deadline=None, max_examples=50)
    def test_an_epoch_is_full_batches_of_different_images(
        self, images: int, batch: int, seed: int, epoch: int
    ) -> None:
        groups = epoch_batches(images, batch, seed=seed, epoch=epoch)
        flat = [index for group in groups for index in group]
        assert len(groups) == images // batch
        assert all(len(group) == batch for group in groups)
        assert len(set(flat)) == len(flat) and set(flat) <= set(range(images))
        assert groups == epoch_batches(images, batch, seed=seed, epoch=epoch)

    def test_the_batch_size_cuts_one_and_the_same_order(self) -> None:
        orders = [
            [index for group in epoch_batches(50, size, seed=1, epoch=2) for index in group]
            for size in (1, 7, 50)
        ]
        assert orders[1] == orders[0][:49]
        assert orders[2] == orders[0]
        assert sorted(orders[0]) == list(range(50))

    def test_epochs_and_seeds_have_orders_of_their_own(self) -> None:
        orders = {
            tuple(epoch_batches(20, 20, seed=seed, epoch=epoch)[0])
            for seed in range(5)
            for epoch in range(5)
        }
        assert len(orders) == 25

    def test_the_remainder_of_one_epoch_is_seen_in_others(self) -> None:
        seen = {
            index
            for epoch in range(20)
            for group in epoch_batches(7, 4, seed=0, epoch=epoch)
            for index in group
        }
        assert seen == set(range(7))

    def test_fewer_images_than_a_batch_make_none(self) -> None:
        assert epoch_batches(3, 4, seed=0, epoch=0) == []


def two_epochs(store: ImageStore) -> list[Batch]:
    return [
        batch
        for epoch in range(2)
        for batch in store.batches(epoch_batches(len(store), 4, seed=0, epoch=epoch))
    ]


def same(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(
        a.indices == b.indices and torch.equal(a.images, b.images)
        for a, b in zip(one, two, strict=True)
    )


@pytest.fixture(scope="module")
def expected(image_folder: Path) -> list[Batch]:
    return two_epochs(store_of(image_folder))


class TestReplay:
    def test_pixels_are_those_of_the_named_files(
        self, image_folder: Path, expected: list[Batch]
    ) -> None:
        names = sorted(path.name for path in image_folder.iterdir())
        assert len(expected) == 6
        for batch in expected:
            assert batch.images.dtype == torch.uint8
            assert batch.images.shape == (4, 3, SIDE, SIDE)
            for square, index in zip(batch.images, batch.indices, strict=True):
                assert torch.equal(square, load_square(image_folder / names[index], SIDE))

    @pytest.mark.parametrize("workers", [0, 1, 3])
    def test_equal_from_memory(
        self, image_folder: Path, expected: list[Batch], workers: int
    ) -> None:
        assert same(two_epochs(store_of(image_folder, workers=workers)), expected)

    @pytest.mark.usefixtures("no_memory")
    @pytest.mark.parametrize("workers", [0, 1, 3])
    def test_equal_when_decoded_anew(
        self, image_folder: Path, expected: list[Batch], workers: int
    ) -> None:
        store = store_of(image_folder, workers=workers)
        assert same(two_epochs(store), expected)

    @pytest.mark.usefixtures("no_memory")
    def test_equal_from_the_middle_of_an_epoch(
        self, image_folder: Path, expected: list[Batch]
    ) -> None:
        store = store_of(image_folder, workers=1)
        groups = epoch_batches(len(store), 4, seed=0, epoch=1)
        assert same(list(store.batches(groups[2:])), expected[5:])

    @pytest.mark.parametrize("workers", [1, 3])
    def test_views_are_equal_too(
        self,
        image_folder: Path,
        expected: list[Batch],
        workers: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def views(found: list[Batch]) -> Iterator[Tensor]:
            for batch in found:
                pair = view_pair(batch.images, batch.indices, seed=5, round_=1)
                yield from (pair.image_1, pair.image_2, pair.geometry.top, pair.geometry.flip)

        monkeypatch.setattr(batches, "free_memory", lambda: 0)
        found = two_epochs(store_of(image_folder, workers=workers))
        pairs = zip(views(found[:3]), views(expected[:3]), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)

    def test_no_global_generator_is_touched(self, image_folder: Path) -> None:
        before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
        two_epochs(store_of(image_folder, workers=1))
        after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


class TestBadFiles:
    @pytest.fixture
    def folder(self, image_folder: Path, tmp_path: Path) -> Path:
        """Four good images and two bad ones among them, first and in the middle."""
        for name in ("01.png", "02.jpg", "03.png", "04.jpg"):
            shutil.copy(image_folder / name, tmp_path)
        (tmp_path / "00.png").write_bytes(b"not an image")
        (tmp_path / "02b.jpg").write_bytes((tmp_path / "02.jpg").read_bytes()[:300])
        return tmp_path

    @pytest.mark.parametrize("memory", [0, 10**9])
    def test_they_leave_the_list_before_positions_count(
        self, folder: Path, memory: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(batches, "free_memory", Mock(return_value=memory))
        store = store_of(folder, workers=1)
        assert len(store) == 4
        assert store.manifest.names == ("01.png", "02.jpg", "03.png", "04.jpg")
        assert [item.path for item in store.manifest.skipped] == ["00.png", "02b.jpg"]
        for item in store.manifest.skipped:
            assert item.reason and str(folder / item.path) in item.message
        (batch,) = store.batches([(3, 0, 1, 2)])
        for square, name in zip(batch.images, ("04.jpg", "01.png", "02.jpg"), strict=False):
            assert torch.equal(square, load_square(folder / name, SIDE))

    def test_only_bad_ones_leave_an_empty_store(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"")
        assert len(store_of(tmp_path)) == 0

    @pytest.mark.usefixtures("no_memory")
    def test_a_file_that_goes_bad_later_is_an_error_that_names_it(self, folder: Path) -> None:
        store = store_of(folder, workers=1)
        (folder / "03.png").unlink()
        with pytest.raises(ImageError, match=r"03\.png"):
            list(store.batches([(0, 1), (2, 3)]))


class TestStretched:
    """Whole images at another aspect, and their own widths over heights beside them."""

    @pytest.fixture
    def folder(self, image_folder: Path, tmp_path: Path) -> Path:
        """Images of aspect 2, ½ and 1¼, bad ones between them."""
        for name, size in (("b.png", (60, 30)), ("d.jpg", (30, 60)), ("e.png", (50, 40))):
            with Image.open(image_folder / "01.png") as picture:
                picture.resize(size).save(tmp_path / name)
        (tmp_path / "a.png").write_bytes(b"not an image")
        (tmp_path / "c.jpg").write_bytes((tmp_path / "d.jpg").read_bytes()[:300])
        return tmp_path

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("memory", [0, 10**9])
    def test_squares_and_aspects_are_those_of_the_usable_files(
        self, folder: Path, memory: int, workers: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(batches, "free_memory", Mock(return_value=memory))
        store = store_of(folder, workers=workers, fit="stretch")
        assert store.manifest.names == ("b.png", "d.jpg", "e.png")
        assert store.aspects.dtype == torch.float32
        assert store.aspects.tolist() == [2.0, 0.5, 1.25]
        (batch,) = store.batches([(2, 0, 1)])
        assert batch.indices == (2, 0, 1)
        for square, name in zip(batch.images, ("e.png", "b.png", "d.jpg"), strict=True):
            assert torch.equal(square, load_stretched(folder / name, SIDE)[0])
        # `aspects` is read at the positions that a batch names.
        assert store.aspects[list(batch.indices)].tolist() == [1.25, 2.0, 0.5]

    def test_aspects_are_one_for_each_image_before_they_are_known(self, folder: Path) -> None:
        store = ImageStore(scan([folder]), SIDE, fit="stretch", workers=0, max_pixels=10**6)
        assert store.aspects.tolist() == [1.0] * 5

    def test_centres_have_aspect_one(self, folder: Path) -> None:
        store = store_of(folder)
        assert store.fit == "crop"
        assert store.aspects.tolist() == [1.0, 1.0, 1.0]
        (batch,) = store.batches([(0,)])
        assert torch.equal(batch.images[0], load_square(folder / "b.png", SIDE))

    def test_only_bad_ones_leave_no_aspects(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"")
        assert store_of(tmp_path, fit="stretch").aspects.tolist() == []

    @pytest.mark.usefixtures("no_memory")
    def test_a_file_that_goes_bad_later_is_an_error_that_names_it(self, folder: Path) -> None:
        store = store_of(folder, fit="stretch")
        (folder / "d.jpg").unlink()
        with pytest.raises(ImageError, match=r"d\.jpg"):
            list(store.batches([(0, 1)]))


def test_memory_decides_whether_squares_are_kept(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of the free memory is the limit: 12 squares of 3 x 64 x 64 bytes need four times that."""
    need = 4 * 12 * 3 * SIDE**2
    copy = shutil.copytree(image_folder, tmp_path / "images")
    stores = []
    for memory in (need, need - 1):
        monkeypatch.setattr(batches, "free_memory", Mock(return_value=memory))
        stores.append(store_of(copy))
    shutil.rmtree(copy)
    assert len(list(stores[0].batches([(0, 1)]))) == 1
    with pytest.raises(ImageError):
        list(stores[1].batches([(0, 1)]))
