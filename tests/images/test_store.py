"""Batches: their order, their pixels, and that neither depends on workers or memory."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from ranks import in_ranks
from tar_files import pack_in_two

from densesiam_seg.errors import ImageError, InputError, WorkerError
from densesiam_seg.images import store as batches
from densesiam_seg.images.decode import load_square, load_stretched
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import (
    Batch,
    Fit,
    ImageStore,
    UnreadError,
    epoch_batches,
    left_out,
    on_device,
    used_range,
)
from densesiam_seg.peers.group import Group
from densesiam_seg.peers.shard import Shard

SIDE = 64


def store_of(
    folder: Path, *, workers: int = 0, fit: Fit = "crop", processes: bool = False
) -> ImageStore:
    store = ImageStore(scan([folder]), SIDE, fit=fit, workers=workers, processes=processes)
    assert (store._crew is not None) == (processes and workers >= 4)
    count = len(store)
    assert list(store.prepare()) == list(range(1, count + 1))
    return store


@pytest.fixture(params=[0, 10**9], ids=["decoded anew", "in memory"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether squares fit into memory."""
    monkeypatch.setattr(batches, "free_memory", lambda: request.param)


@given(
    images=st.integers(1, 200),
    batch=st.integers(1, 32),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=50)
def test_an_epoch_is_full_batches_of_different_images(
    images: int, batch: int, seed: int, epoch: int
) -> None:
    """The batch size cuts one and the same order."""
    groups = epoch_batches(images, batch, seed=seed, epoch=epoch)
    flat = [index for group in groups for index in group]
    order = epoch_batches(images, images, seed=seed, epoch=epoch)[0]
    assert len(groups) == images // batch
    assert all(len(group) == batch for group in groups)
    assert flat == list(order)[: len(flat)]
    assert sorted(order) == list(range(images))
    count = min(batch, 3)
    parts = [groups.part(Shard(index, count)) for index in range(count)]
    assert [list(group) for group in groups] == [
        [index for part in together for index in part] for together in zip(*parts, strict=True)
    ]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    pairs = [(seed, epoch) for seed in range(5) for epoch in range(5)]
    orders = [epoch_batches(20, 15, seed=seed, epoch=epoch)[0] for seed, epoch in pairs]
    assert len(set(orders)) == 25
    assert {index for order in orders[:5] for index in order} == set(range(20))


def two_epochs(store: ImageStore) -> list[Batch]:
    return [
        batch
        for epoch in range(2)
        for batch in store.batches(epoch_batches(len(store), 4, seed=0, epoch=epoch))
    ]


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize(("workers", "processes"), [(0, True), (1, False), (3, True), (4, True)])
def test_pixels_are_those_of_the_named_files(
    image_folder: Path, workers: int, processes: bool
) -> None:
    names = sorted(path.name for path in image_folder.iterdir())
    found = two_epochs(store_of(image_folder, workers=workers, processes=processes))
    groups = [epoch_batches(12, 4, seed=0, epoch=epoch) for epoch in range(2)]
    assert [batch.indices for batch in found] == [*groups[0], *groups[1]]
    for batch in on_device(iter(found), torch.device("cpu")):
        assert batch.images.dtype == torch.uint8
        for square, index in zip(batch.images, batch.indices, strict=True):
            assert torch.equal(square, load_square(image_folder / names[index], SIDE))


def test_no_global_generator_is_touched(image_folder: Path) -> None:
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    two_epochs(store_of(image_folder, workers=1))
    after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    """Images of aspect 2, ½ and 1¼, bad ones between them."""
    for name, size in (("b.png", (60, 30)), ("d.jpg", (30, 60)), ("e.png", (50, 40))):
        with Image.open(image_folder / "01.png") as picture:
            picture.resize(size).save(tmp_path / name)
    (tmp_path / "a.png").write_bytes(b"not an image")
    (tmp_path / "c.jpg").write_bytes((tmp_path / "d.jpg").read_bytes()[:300])
    return tmp_path


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("workers", [0, 2, 4])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_bad_files_leave_the_list_before_positions_count(
    folder: Path, workers: int, fit: Fit
) -> None:
    store = store_of(folder, workers=workers, fit=fit, processes=True)
    assert store.manifest.names == ("b.png", "d.jpg", "e.png")
    assert [item.path for item in store.manifest.skipped] == ["a.png", "c.jpg"]
    for item in store.manifest.skipped:
        assert item.reason and str(folder / item.path) in item.message
    assert store.aspects.dtype == torch.float32
    assert store.aspects.tolist() == ([2.0, 0.5, 1.25] if fit == "stretch" else [1.0] * 3)
    (batch,) = store.batches([(2, 0, 1)])
    for square, name in zip(batch.images, ("e.png", "b.png", "d.jpg"), strict=True):
        path = folder / name
        whole = load_stretched(path, SIDE)[0] if fit == "stretch" else load_square(path, SIDE)
        assert torch.equal(square, whole)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_file_that_goes_bad_later_is_an_error_that_names_it(
    folder: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "free_memory", lambda: 0)
    store = store_of(folder, workers=1, fit=fit)
    (folder / "d.jpg").unlink()
    with pytest.raises(ImageError, match=r"d\.jpg"):
        list(store.batches([(0, 1)]))


def test_squares_in_memory_need_no_files(image_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(image_folder, tmp_path / "images")
    store = store_of(copy)
    shutil.rmtree(copy)
    assert len(two_epochs(store)) == 6


class TestProcesses:
    """What becomes of a training where one that decodes dies or hangs."""

    @pytest.fixture
    def store(self, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
        """One that decodes in each epoch, with a single process at work."""
        monkeypatch.setattr(batches, "free_memory", lambda: 0)
        store = store_of(image_folder, workers=4, processes=True)
        assert store._crew is not None
        store._crew.close()
        store._load((0, None))
        return store

    def process(self, store: ImageStore) -> int:
        assert store._crew is not None
        (only,) = store._crew._alive
        return only.popen.pid

    def test_one_is_killed(self, store: ImageStore) -> None:
        os.kill(self.process(store), signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"\d\.(jpg|png): the process .*SIGKILL"):
            list(store.batches(epoch_batches(12, 4, seed=0, epoch=0)))
        assert len(list(store.batches(epoch_batches(12, 4, seed=0, epoch=0)))) == 3

    def test_one_hangs(self, store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
        pid = self.process(store)
        monkeypatch.setattr(batches, "PATIENCE", 0.5)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(WorkerError, match=r"\.(jpg|png): has not been read"):
            list(store.batches(epoch_batches(12, 4, seed=0, epoch=0)))
        assert not Path(f"/proc/{pid}").exists()
        monkeypatch.undo()
        assert len(list(store.batches([(0, 1)]))) == 1

    def test_none_is_left_when_all_is_read(self, image_folder: Path) -> None:
        store = ImageStore(scan([image_folder]), SIDE, workers=4, keep="ram", processes=True)
        list(store.prepare(left_out(12, 5, seed=0, epoch=0)))
        for epoch in range(2):
            list(store.batches(epoch_batches(12, 5, seed=0, epoch=epoch)))
            assert store._crew is not None
            assert bool(store._crew._alive) == (epoch == 0)

    def test_none_is_left_of_a_store(self, image_folder: Path) -> None:
        store = ImageStore(scan([image_folder]), SIDE, workers=4, processes=True)
        store._load((0, None))
        pid = self.process(store)
        del store
        gc.collect()
        assert not Path(f"/proc/{pid}").exists()

    def test_threads_do_it_where_none_starts(
        self, image_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("densesiam_seg.images.crew._CODE", "raise SystemExit(3)")
        store = ImageStore(scan([image_folder]), SIDE, workers=4, processes=True)
        list(store.prepare())
        assert "exit code 3" in str(store.fallback)
        assert len(two_epochs(store)) == 6


class TestLate:
    """Images that training itself reads."""

    @pytest.mark.usefixtures("memory")
    @pytest.mark.parametrize("workers", [0, 3])
    def test_batches_are_the_same(self, image_folder: Path, workers: int) -> None:
        """Of twelve images five fill a batch twice, and the rest is read first."""
        late, plain = (ImageStore(scan([image_folder]), SIDE, workers=workers) for _ in range(2))
        list(plain.prepare())
        rest = left_out(12, 5, seed=0, epoch=0)
        groups = epoch_batches(12, 5, seed=0, epoch=0)
        assert {*rest, *(i for group in groups for i in group)} == set(range(12))
        assert list(late.prepare(rest)) == [6, 12]
        assert late.late and late.unread and not plain.late
        for epoch in range(3):
            groups = epoch_batches(12, 5, seed=0, epoch=epoch)
            for one, two in zip(late.batches(groups), plain.batches(groups), strict=True):
                assert one.indices == two.indices and torch.equal(one.images, two.images)
            assert not late.unread

    def test_only_the_first_are_read_before(
        self, image_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[str] = []

        def noted(path: str, *more: Any) -> torch.Tensor:
            read.append(Path(path).name[:2])
            return load_square(path, *more)

        monkeypatch.setattr(batches, "load_square", noted)
        store = ImageStore(scan([image_folder]), SIDE, workers=0)
        list(store.prepare([3, 7]))
        assert read == ["03", "07"]
        next(iter(store.batches([(5, 3, 1), (0,)])))
        assert read == ["03", "07", "05", "01"]
        list(store.batches([(0, 1), (5, 2)]))
        assert read[4:] == ["00", "02"]

    @pytest.mark.usefixtures("memory")
    def test_a_bad_file_is_met_by_training(self, folder: Path) -> None:
        """`a.png`, `c.jpg` are bad, in positions 0 and 2."""
        store = ImageStore(scan([folder]), SIDE, workers=0)
        list(store.prepare([1]))
        assert store.manifest.names == ("a.png", "b.png", "c.jpg", "d.jpg", "e.png")
        with pytest.raises(UnreadError, match=r"/c\.jpg: ") as caught:
            list(store.batches([(3, 4), (2, 0)]))
        assert caught.value.path == "c.jpg" and caught.value.reason

    @pytest.mark.usefixtures("memory")
    def test_a_bad_file_among_the_first_is_skipped_as_ever(self, folder: Path) -> None:
        store = ImageStore(scan([folder]), SIDE, workers=0)
        list(store.prepare([1, 2]))
        assert not store.late and store.manifest.names == ("b.png", "d.jpg", "e.png")

    def test_a_file_of_squares_and_whole_images_are_read_before(
        self, image_folder: Path, tmp_path: Path
    ) -> None:
        stores = [
            ImageStore(scan([image_folder]), SIDE, keep="disk", caches=tmp_path),
            ImageStore(scan([image_folder]), SIDE, fit="stretch"),
        ]
        for store in stores:
            list(store.prepare([0]))
            assert not store.late and not store.unread


class TestNotes:
    """What is worth telling of the files is told once for the whole set."""

    @pytest.fixture
    def deep(self, tmp_path: Path) -> Path:
        folder = tmp_path / "deep"
        folder.mkdir()
        for number in range(3):
            values = np.linspace(0, 1000 + 500 * number, 900).astype(np.uint16).reshape(30, 30)
            Image.fromarray(values).save(folder / f"{number}.png")
        return folder

    def test_they_tell_of_the_set_and_are_kept_beside_squares_on_the_disk(
        self, deep: Path, tmp_path: Path
    ) -> None:
        told = []
        for _ in range(2):
            store = ImageStore(scan([deep]), 8, workers=2, keep="disk", caches=tmp_path / "caches")
            list(store.prepare())
            list(store.batches([(0, 1, 2)]))
            told.append(store.notes)
        assert told[0] == told[1]
        (line,) = told[0]
        assert line.startswith("3 of 3 images") and "of 65535" in line

    def test_hosts_of_which_one_has_decoded_images_read_them_together(
        self, deep: Path, tmp_path: Path
    ) -> None:
        images = [str(path) for path in sorted(deep.iterdir())]
        one = ImageStore(scan(images), 8, workers=0, keep="disk", caches=tmp_path / "0")
        list(one.prepare())
        assert one.file is not None
        # The warning counts the images of both.
        assert in_ranks(2, prepared, images, str(tmp_path)) == [(False, one.notes)] * 2

    def test_a_stretch_spreads_what_the_set_uses(self, deep: Path, tmp_path: Path) -> None:
        Image.new("L", (4, 4)).save(deep / "a.tif")
        (deep / "a.tif").write_bytes(
            (deep / "a.tif").read_bytes()[:20]
        )  # told when all are decoded
        low, high = used_range(scan([deep]), Decoding())
        # Each image is a ramp: the 1st and 99th percentile of three ramps to 1000, 1500 and 2000.
        assert low == pytest.approx(14 / 65535, abs=3 / 65535)
        assert high == pytest.approx(1940 / 65535, abs=10 / 65535)
        store = ImageStore(scan([deep]), 8, workers=0, decoding=Decoding(stretch=(low, high)))
        list(store.prepare())
        assert not [line for line in store.notes if "--stretch" in line]
        (batch,) = store.batches([(2,)])
        assert batch.images.max() > 240 and batch.images.min() < 20

    def test_equal_values_have_a_range(self, tmp_path: Path) -> None:
        Image.new("L", (4, 4), 51).save(tmp_path / "a.png")
        low, high = used_range(scan([tmp_path]), Decoding())
        assert low == pytest.approx(0.2) and high > low

    def test_ranges_that_have_nothing_in_common_are_refused(self, deep: Path) -> None:
        Image.new("RGB", (4, 4)).save(deep / "z.png")
        with pytest.raises(InputError, match=r"0\.png holds integers up to 65535, z\.png .* 255"):
            used_range(scan([deep]), Decoding())


def test_batches_of_an_epoch_are_cut_when_they_are_asked_for() -> None:
    count = 100_000
    tracemalloc.start()
    groups = epoch_batches(count, 64, seed=0, epoch=0)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < 9 * count  # eight bytes for each position
    assert len(groups) == count // 64
    assert list(groups[3:]) == list(groups)[3:]
    assert list(groups[:5:2]) == [groups[0], groups[2], groups[4]]
    assert groups[-1] == list(groups)[-1]
    assert all(type(index) is int for index in groups[7])
    with pytest.raises(IndexError):
        groups[len(groups)]
    assert len(epoch_batches(3, 4, seed=0, epoch=0)) == 0


@pytest.mark.usefixtures("memory")
def test_images_in_tars_give_the_same_batches(image_folder: Path, tmp_path: Path) -> None:
    files, tars = store_of(image_folder), store_of(pack_in_two(image_folder, tmp_path / "tars"))
    assert [name[6:] for name in tars.manifest.names] == list(files.manifest.names)
    for one, two in zip(two_epochs(files), two_epochs(tars), strict=True):
        assert one.indices == two.indices
        assert torch.equal(one.images, two.images)


def prepared(group: Group, images: Sequence[str], caches: str) -> tuple[bool, list[str]]:
    """By a process whose host has a folder of decoded images of its own: whether they came from there, and notes."""
    place = Path(caches, str(group.index))
    store = ImageStore(scan(images), 8, workers=0, caches=place, group=group)
    list(store.prepare())
    assert len(store) == len(images)
    return store.file is not None, store.notes
