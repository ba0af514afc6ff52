"""What is shown of a model and its images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tar_files import pack_in_two

from densesiam_seg.errors import ImageError, ModelError
from densesiam_seg.images.scan import scan
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.naming import edits
from densesiam_seg.serving.view import LONGEST, THUMBNAIL, View, fitting


def size_of(jpeg: bytes) -> tuple[int, int]:
    """Height and width."""
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert picture.format == "JPEG"
        return picture.height, picture.width


def test_sizes() -> None:
    assert fitting((3000, 4000), 1600) == (1200, 1600)
    assert fitting((4000, 3000), 1600) == (1600, 1200)
    assert fitting((30, 40), 1600) == (30, 40)
    assert fitting((1, 20_000), 1600) == (1, 1600)


def test_large_images_are_reduced_with_their_masks(
    model: Path, segmenter: Segmenter, tmp_path: Path
) -> None:
    """Also one that is stored lying: its EXIF orientation is obeyed."""
    folder = tmp_path / "large"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((2 * LONGEST, LONGEST))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "turned.jpg", exif=exif)
    picture.save(folder / "wide.png")
    view = View(model, segmenter, scan([folder]))
    for place, size in enumerate([(LONGEST, LONGEST // 2), (LONGEST // 2, LONGEST)]):
        assert view.mask(place).shape == size == size_of(view.picture(place))
        assert view.confidence(place).shape == size
        assert max(size_of(view.thumbnail(place))) == THUMBNAIL


def test_an_unreadable_image(view: View) -> None:
    assert view.names(1, 1) == ["damaged.jpg"]
    for ask in (view.mask, view.picture, view.thumbnail, view.confidence):
        with pytest.raises(ImageError, match=r"damaged\.jpg"):
            ask(1)


def test_the_next_mask_is_made_ahead(
    view: View, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    read = segmenter.read

    def noted(path: str, **how: Any) -> Any:
        made.append(path)
        return read(path, **how)

    monkeypatch.setattr(segmenter, "read", noted)
    view.mask(0)
    view.mask(2)  # the last: nothing comes after it
    view.close()
    assert [Path(each).name for each in made] == ["a <b>&.jpg", "damaged.jpg", "c.png"]


def test_shares_are_those_of_what_is_shown(model: Path, segmenter: Segmenter, view: View) -> None:
    path = model / "clusters.json"
    text = path.read_text()
    for share in ("0.1", "0.2", "0.3", "0.15", "0.25"):
        text = text.replace('"share": null', f'"share": {share}', 1)
    path.write_text(text)
    edits.merge(model, ["1", "4"])
    found = view.state()["clusters"]
    assert [each["share"] for each in found] == pytest.approx([0.1, 0.45, 0.3, 0.15, 0.25])
    assert [each["shownAs"] for each in found] == [0, 1, 2, 3, 1]


def test_another_model_in_its_place(model: Path, view: View) -> None:
    (model / "config.json").write_bytes(b"{}")
    with pytest.raises(ModelError, match="replaced"):
        view.state()
    with pytest.raises(ModelError, match="replaced"):
        view.undo(0)


def test_images_in_tars_are_shown_as_files_are(
    model: Path, segmenter: Segmenter, image_folder: Path, tmp_path: Path
) -> None:
    tars = pack_in_two(image_folder, tmp_path / "tars")
    one, two = (View(model, segmenter, scan([images])) for images in (image_folder, tars))
    assert two.names(5, 2) == ["a.tar/05.png", "b.tar/06.jpg"]
    for place in (0, 7):
        assert one.picture(place) == two.picture(place)
        assert one.thumbnail(place) == two.thumbnail(place)
        np.testing.assert_array_equal(one.mask(place), two.mask(place))
    one.close()
    two.close()
