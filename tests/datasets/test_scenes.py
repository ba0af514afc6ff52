"""Scenes: pure, labelled to the pixel, varied, and written in the layout of CamVid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.datasets.scenes import (
    CLASSES,
    COLOURS,
    GRASS,
    Canvas,
    blend,
    scene,
    write_scenes,
)
from densesiam_seg.errors import OutputError


def canvas(seed: int = 0, side: int = 64) -> Canvas:
    return Canvas(np.random.Generator(np.random.Philox(key=[seed, 0])), side)


@pytest.mark.parametrize("side", [32, 96, 101])
def test_shapes_and_types(side: int) -> None:
    image, label = scene(3, 1, side)
    assert image.shape == (side, side, 3) and image.dtype == np.uint8
    assert label.shape == (side, side) and label.dtype == np.uint8
    assert label.max() < len(CLASSES)


def test_a_scene_depends_on_its_arguments_alone() -> None:
    """And leaves the global generator as it is."""
    first = scene(4, 2, 64)
    np.random.seed(1)  # noqa: NPY002
    before = str(np.random.get_state())  # noqa: NPY002
    scene(4, 3, 64)
    again = scene(4, 2, 64)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert str(np.random.get_state()) == before  # noqa: NPY002


def test_seed_and_index_are_not_interchangeable() -> None:
    images = [scene(seed, index, 48)[0] for seed, index in ((0, 1), (1, 0), (0, 0), (1, 1))]
    assert len({image.tobytes() for image in images}) == 4


def test_every_class_has_a_fair_share_and_no_fixed_place() -> None:
    labels = np.stack([scene(7, index, 64)[1] for index in range(60)])
    assert all(len(np.unique(label)) >= 3 for label in labels)
    share = np.bincount(labels.ravel(), minlength=len(CLASSES)) / labels.size
    assert share.min() > 0.06 and share.max() < 0.35
    # Knowing the position alone: the commonest class of each place is right for few pixels.
    counts = np.stack([(labels == kind).sum(0) for kind in range(len(CLASSES))])
    assert counts.max(0).sum() / labels.size < 0.6


def boundary_contrast(image: NDArray[np.uint8], label: NDArray[np.uint8], shift: int) -> float:
    """Mean colour step across the label's vertical edges, with the label moved aside by `shift`."""
    margin = 8
    edges = np.nonzero(label[:, margin:-margin][:, 1:] != label[:, margin:-margin][:, :-1])
    rows, columns = edges[0], edges[1] + margin + shift
    values = image.astype(np.float64)
    return float(np.abs(values[rows, columns + 1] - values[rows, columns]).mean())


def test_labels_lie_on_the_edges_of_the_image() -> None:
    scenes = [scene(11, index, 128) for index in range(8)]
    contrast = {
        shift: np.mean([boundary_contrast(image, label, shift) for image, label in scenes])
        for shift in range(-4, 5)
    }
    assert max(contrast, key=lambda shift: float(contrast[shift])) == 0
    assert contrast[0] > 1.5 * max(contrast[-4], contrast[4])


def test_blend_weights_by_hand() -> None:
    # At place 1.5 the cells 0..3 lie 1.5, 0.5, 0.5, 1.5 away: exp(-4.5) and exp(-0.5), unit length.
    far, near = np.exp(-4.5), np.exp(-0.5)
    length = np.sqrt(2 * far**2 + 2 * near**2)
    got = blend(np.eye(4, dtype=np.float32), np.array([1.5], np.float32))
    np.testing.assert_allclose(
        got, [[far / length, near / length, near / length, far / length]], 1e-5
    )


def test_written_scenes_have_the_camvid_layout(tmp_path: Path) -> None:
    write_scenes(tmp_path, 2, seed=5, side=48, split="train")
    write_scenes(tmp_path, 1, seed=5, side=48, split="val", first=2)
    files = sorted(str(path.relative_to(tmp_path).as_posix()) for path in tmp_path.rglob("*.*"))
    names = ("train/0001", "train/0002", "val/0001")
    assert files == [f"images/{n}.jpg" for n in names] + [f"labels/{n}.png" for n in names]
    for index, name in enumerate(names):
        image, label = scene(5, index, 48)
        with Image.open(tmp_path / "images" / f"{name}.jpg") as photo:
            assert np.abs(np.asarray(photo, np.float64) - image).mean() < 8
        with Image.open(tmp_path / "labels" / f"{name}.png") as mask:
            assert mask.mode == "P" and np.array_equal(np.asarray(mask), label)
            assert tuple((mask.getpalette() or [])[3 * GRASS : 3 * GRASS + 3]) == COLOURS[GRASS]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match="taken"):
        write_scenes(tmp_path / "taken", 1, seed=0, side=32, split="train")
