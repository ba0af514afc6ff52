"""Which images share a batch: those of one working size, near one another, as many as are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from photographs import junk, picture
from PIL import Image

from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.prediction import batching
from densesiam_seg.prediction.batching import (
    Group,
    groups,
    images_together,
    in_order,
    read_batches,
)


def pictures(folder: Path, sizes: list[tuple[int, int]]) -> list[str]:
    """Files of these heights and widths; 0, 0 is no image at all."""
    paths = [folder / f"{index:03}.png" for index in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        picture(path, *size) if all(size) else junk(path)
    return list(map(str, paths))


class TestGroups:
    def test_one_at_a_time_looks_at_no_file(self, segmenter: Segmenter) -> None:
        assert list(groups(segmenter, ["/nowhere/a", "/nowhere/b"], 1, Decoding())) == [
            Group((0,), 1),
            Group((1,), 1),
        ]

    def test_as_many_as_suit_the_size(self, segmenter: Segmenter, tmp_path: Path) -> None:
        """What is missing from the four that small images make is filled up."""
        paths = pictures(tmp_path, [(48, 64)] * 5 + [(32, 256)] * 3)
        found = list(groups(segmenter, paths, None, Decoding()))
        assert found == [Group((0, 1, 2, 3), 4), Group((4,), 4), Group((5, 6, 7), 4)]
        assert list(groups(segmenter, [], 4, Decoding())) == []

    def test_by_working_size(self, segmenter: Segmenter, tmp_path: Path) -> None:
        """At 32 pixels 48x64 and 96x128 are 32x42, and 64x48 is 42x32, also where EXIF rotates it."""
        sizes = [(48, 64), (64, 48), (96, 128), (48, 64), (0, 0), (48, 64)]
        paths = pictures(tmp_path, sizes)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (64, 48)).save(paths[5], exif=exif)
        found = list(groups(segmenter, paths, 2, Decoding()))
        assert found == [Group((0, 2), 2), Group((3,), 2), Group((1, 5), 2), Group((4,), 2)]

    def test_nobody_waits_for_far_images(
        self, segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(batching, "WINDOW", 3)
        paths = pictures(tmp_path, [(40, 40)] * 2 + [(50, 40)] + [(40, 40)] * 5)
        found = [group.places for group in groups(segmenter, paths, 2, Decoding())]
        assert found == [(0, 1), (2,), (3, 4), (5,), (6, 7)]


@pytest.mark.parametrize(
    ("device", "size", "expected"),
    [
        *(("cpu", (32, 32), 4), ("cpu", (160, 213), 3), ("cpu", (320, 320), 1)),
        *(("cuda", (320, 320), 10), ("cuda", (2048, 2048), 1), ("cuda", (32, 42), 16)),
    ],
)
def test_few_images_on_a_processor_and_a_million_pixels_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, size: tuple[int, int], expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**36, 2**37))
    assert images_together(torch.device(device), size) == expected


def test_fewer_images_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of 1 GiB holds 2**18 pixels of 1 KiB: two images of 320x320."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**37))
    assert images_together(torch.device("cuda"), (320, 320)) == 2


def test_large_images_have_groups_of_their_own(segmenter: Segmenter, tmp_path: Path) -> None:
    """In tiles; also where one at a time is asked for."""
    paths = pictures(tmp_path, [(20, 30), (20, 40), (20, 30), (0, 0)])
    for size in (1, 2, None):
        found = list(groups(segmenter, paths, size, Decoding(), tile=30))
        assert [group for group in found if group.tiled] == [Group((1,), 1, (20, 40))]
        assert sorted(place for group in found for place in group.places) == [0, 1, 2, 3]


def test_batches_are_full_and_of_one_shape(segmenter: Segmenter, tmp_path: Path) -> None:
    """Also where a file has changed since its header was read, or is no image."""
    paths = pictures(tmp_path, [(48, 64), (64, 48), (0, 0), (96, 128)])
    batches, failed = read_batches(segmenter, paths, Group((0, 1, 2, 3), 4), Decoding())
    assert list(failed) == [2]
    wide, high = batches
    assert (wide.places, wide.sizes) == ((0, 3), ((48, 64), (96, 128)))
    assert (high.places, high.sizes) == ((1,), ((64, 48),))
    assert wide.images.shape == (4, 3, 32, 42) and high.images.shape == (4, 3, 42, 32)
    assert torch.equal(wide.images[1], wide.images[3])


def test_in_the_order_of_places() -> None:
    found = in_order(iter([{1: "b", 3: "d"}, {0: "a"}, {2: "c"}]))
    assert list(found) == ["a", "b", "c", "d"]
