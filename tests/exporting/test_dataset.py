"""What all layouts share: labels, and every layout read back by a slow reader of our own."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from exported import FILES, NAMES, export, odd_clusters
from image_files import noise, pixels_of, saved, turned
from PIL import Image
from slow_readers import READERS, same

from densesiam_seg.errors import ImageError, UsageError
from densesiam_seg.events import Notice
from densesiam_seg.exporting.dataset import image_file, labels_of
from densesiam_seg.exporting.masks import LAYOUTS
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.naming.clusters import name_clusters

DEEP = sorted(set(READERS) - {"voc", "mmseg"})


def test_every_layout_has_a_reader() -> None:
    assert READERS.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("layout", READERS)
def test_the_masks_are_there_to_the_pixel(tmp_path: Path, layout: str) -> None:
    e = export(tmp_path, layout)
    assert len(e.masks) == len(FILES) and {-1, 0, 8} <= set(np.unique(e.masks["plain"]).tolist())
    same(READERS[layout](e), e)


@pytest.mark.parametrize("layout", DEEP)
def test_more_than_255_clusters(tmp_path: Path, layout: str) -> None:
    e = export(tmp_path, layout, 300)
    assert 299 in e.masks["plain"]
    same(READERS[layout](e), e)


@pytest.mark.parametrize("layout", ["voc", "mmseg"])
def test_more_than_the_format_holds(tmp_path: Path, layout: str) -> None:
    with pytest.raises(UsageError, match="merge clusters or choose another format"):
        export(tmp_path, layout, 300)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks", "my photos"]


class TestLabels:
    def test_names_and_colours_are_unique(self) -> None:
        labels = labels_of(odd_clusters(), without=":#").entries
        assert [label.cluster for label in labels] == [0, 1, 2, 4, 5, 6, 7, 8]
        names = ["sky", "road_ wet", "a, b", "Bäume _1", "Ω{x}", "empty", "road_ wet (7)", "|"]
        assert [label.name for label in labels] == names
        assert len({label.colour for label in labels} | {(0, 0, 0)}) == 9

    def test_numbers(self) -> None:
        assert [e.number for e in labels_of(odd_clusters()).entries] == [0, 1, 2, 4, 5, 6, 7, 8]
        assert [e.number for e in labels_of(odd_clusters(), consecutive=True).entries] == [
            *range(8)
        ]

    def test_a_background_is_black(self) -> None:
        first, second = name_clusters(2)
        labels = labels_of([first, replace(second, name="background")]).entries
        assert labels[1].colour == (0, 0, 0) != labels[0].colour

    def test_names_that_cannot_be_shown(self) -> None:
        clusters = [
            replace(each, name=name)
            for each, name in zip(name_clusters(2), ["\x07\udcff", " "], strict=True)
        ]
        assert [e.name for e in labels_of(clusters).entries] == ["__", "cluster_01"]

    def test_changed_names_are_told(self, tmp_path: Path) -> None:
        (notice,) = [e for e in export(tmp_path, "voc").events if isinstance(e, Notice)]
        assert NAMES[4] in notice.text and "Bäume _1" in notice.text


class TestImages:
    @pytest.mark.parametrize(
        ("name", "suffix"), [("a.jpg", ".jpg"), ("a.png", ".png"), ("a.JPEG", ".jpg")]
    )
    def test_what_every_program_reads_is_copied(
        self, tmp_path: Path, name: str, suffix: str
    ) -> None:
        path = saved(tmp_path, name, noise(9, 7))
        assert image_file(str(path), Decoding()) == (path.read_bytes(), suffix)

    def test_others_become_what_the_network_sees(self, tmp_path: Path) -> None:
        clear = np.dstack([noise(9, 7), noise(9, 7, 1)])
        for path in (
            saved(tmp_path, "turned.jpg", noise(9, 7), exif=turned(6)),
            saved(tmp_path, "clear.png", clear),
            saved(tmp_path, "a.webp", noise(9, 7), lossless=True),
            saved(tmp_path, "a.tif", noise(9, 7)),
            saved(tmp_path, "palette.png", Image.fromarray(noise(9, 7)).quantize(9)),
            saved(tmp_path, "deep.png", noise(9, 7, 1).astype(np.uint16) * 257),
        ):
            data, suffix = image_file(str(path), Decoding())
            again = tmp_path / "again.png"
            again.write_bytes(data)
            assert suffix == ".png" and Image.open(BytesIO(data)).mode == "RGB"
            np.testing.assert_array_equal(pixels_of(again), pixels_of(path))
            data, suffix = image_file(str(path), Decoding(), jpeg=True)
            again.write_bytes(data)
            assert (suffix, Image.open(BytesIO(data)).format) == (".jpg", "JPEG")
            assert pixels_of(again).shape == pixels_of(path).shape

    def test_bands_that_were_chosen(self, tmp_path: Path) -> None:
        path = saved(tmp_path, "a.png", noise(9, 7))
        (tmp_path / "again.png").write_bytes(image_file(str(path), Decoding(bands=(3, 1, 2)))[0])
        np.testing.assert_array_equal(
            pixels_of(tmp_path / "again.png"), noise(9, 7)[..., [2, 0, 1]]
        )

    def test_a_file_that_breaks_off(self, tmp_path: Path) -> None:
        path = saved(tmp_path, "a.jpg", noise(90, 70))
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(ImageError):
            image_file(str(path), Decoding())


def test_the_numbers_of_a_deep_mask() -> None:
    labels = labels_of(name_clusters(300))
    found = labels.numbered(np.array([[0, 299, -1]], np.int32))
    assert (found.dtype.name, found.tolist()) == ("uint16", [[0, 299, 65535]])
    assert labels_of(name_clusters(3)).numbered(np.array([[2, -1]], np.int32)).tolist() == [
        [2, 255]
    ]
