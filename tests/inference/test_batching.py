"""Which images share a batch: those of one working size, near one another, as many as are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from densesiam_seg.inference import batching as grouping
from densesiam_seg.inference.batching import Group, groups, images_together
from densesiam_seg.inference.segmenter import Segmenter


def pictures(folder: Path, sizes: list[tuple[int, int]]) -> list[str]:
    """Files of these widths and heights; 0, 0 is no image at all."""
    paths = []
    for index, size in enumerate(sizes):
        path = folder / f"{index:03}.png"
        if size == (0, 0):
            path.write_bytes(b"junk")
        else:
            Image.new("RGB", size).save(path)
        paths.append(str(path))
    return paths


class TestGroups:
    def test_one_at_a_time_looks_at_no_file(self, segmenter: Segmenter) -> None:
        paths = ["/nowhere/a", "/nowhere/b"]
        expected = [Group((0,), 1), Group((1,), 1)]
        assert list(groups(segmenter, paths, 1)) == expected

    def test_as_many_as_suit_the_size(self, segmenter: Segmenter, tmp_path: Path) -> None:
        """What is missing from the four that small images make is filled up."""
        paths = pictures(tmp_path, [(64, 48)] * 5 + [(256, 32)] * 3)
        found = list(groups(segmenter, paths, None))
        assert found == [Group((0, 1, 2, 3), 4), Group((4,), 4), Group((5, 6, 7), 4)]

    def test_by_working_size(self, segmenter: Segmenter, tmp_path: Path) -> None:
        """At 32 pixels 64x48 and 128x96 are 42x32, and 48x64 is 32x42."""
        sizes = [(64, 48), (48, 64), (128, 96), (64, 48), (0, 0), (48, 64)]
        found = list(groups(segmenter, pictures(tmp_path, sizes), 2))
        assert found == [Group((0, 2), 2), Group((3,), 2), Group((1, 5), 2), Group((4,), 2)]

    def test_a_rotated_image_has_the_size_that_is_displayed(
        self, segmenter: Segmenter, tmp_path: Path
    ) -> None:
        paths = pictures(tmp_path, [(64, 48), (48, 64)])
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (64, 48)).save(paths[0], exif=exif)
        assert list(groups(segmenter, paths, 4)) == [Group((0, 1), 4)]

    def test_nobody_waits_for_far_images(
        self, segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(grouping, "WINDOW", 3)
        paths = pictures(tmp_path, [(40, 40)] * 2 + [(40, 50)] + [(40, 40)] * 5)
        found = [group.places for group in groups(segmenter, paths, 2)]
        assert found == [(0, 1), (2,), (3, 4), (5,), (6, 7)]

    def test_no_images(self, segmenter: Segmenter) -> None:
        assert list(groups(segmenter, [], 4)) == []


class TestImagesTogether:
    @pytest.mark.parametrize(
        ("size", "expected"), [((32, 32), 4), ((160, 160), 4), ((160, 213), 3), ((320, 320), 1)]
    )
    def test_few_on_a_processor(self, size: tuple[int, int], expected: int) -> None:
        assert images_together(torch.device("cpu"), size) == expected

    @pytest.mark.parametrize(
        ("size", "expected"),
        [((320, 320), 10), ((256, 341), 12), ((2048, 2048), 1), ((32, 42), 16)],
    )
    def test_a_million_pixels_on_a_gpu(
        self, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], expected: int
    ) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**36, 2**37))
        assert images_together(torch.device("cuda"), size) == expected

    def test_fewer_where_memory_is_short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A quarter of 1 GiB holds 2**18 pixels of 1 KiB: two images of 320x320."""
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**37))
        assert images_together(torch.device("cuda"), (320, 320)) == 2
