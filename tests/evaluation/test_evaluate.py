"""Scores of a labelled set: confusion matrices against hand counts, and files that spoil them."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor

from densesiam_seg.datasets.scenes import scene
from densesiam_seg.errors import ImageError, InputError, UsageError
from densesiam_seg.evaluation.evaluate import (
    Benchmark,
    Reading,
    benchmark,
    evaluate,
    known_classes,
    scoring_events,
)
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.evaluation.metrics import Matching
from densesiam_seg.evaluation.protocol import (
    PROTOCOLS,
    Mask,
    MasksOf,
    Protocol,
    Size,
    masks_made_by,
    one_by_one,
    prepare_sample,
)
from densesiam_seg.events import Notice, Progress
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import to_json

TOML = """
title = "Tiny"
image_suffixes = [".png"]
label_suffix = ".png"
ignore_values = [255]
classes = [
    { name = "a", kind = "thing", values = [10] },
    { name = "b", kind = "stuff", values = [20] },
    { name = "c", kind = "stuff", values = [30, 31] },
]
[splits.val]
images = ["images"]
labels = ["labels"]
expected = 5
"""
COUNTS = [[1, 3, 0], [0, 1, 3], [3, 0, 1]]
"""Of `root`, worked out by hand: rows a, b, c, columns clusters 0, 1, 2."""


def put(root: Path, name: str, clusters: list[list[int]], label: list[list[int]]) -> None:
    """A sample whose red channel is the cluster that `red` gives each pixel."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(exist_ok=True)
    red = np.array(clusters, np.uint8)
    Image.fromarray(np.stack([red, red * 0, red * 0], -1)).save(root / "images" / f"{name}.png")
    Image.fromarray(np.array(label, np.uint8)).save(root / "labels" / f"{name}.png")


def red(image: Tensor, height: int, width: int) -> Mask:
    assert image.shape[-2:] == (height, width)
    return image[0].numpy()


def task_of(root: Path, **options: Any) -> Benchmark:
    (root / "tiny.toml").write_text(TOML)
    return benchmark(root / "tiny.toml", root, **options)


def events(
    root: Path, clusters: int, matching: Matching | None = None, **options: Any
) -> Iterator[Notice | Progress | Evaluation]:
    """Score `red` at the images' own size, which is 2 pixels high."""
    reading = Reading(clusters, "head", matching)
    return scoring_events(task_of(root, **options), one_by_one(red), [reading], 2)


def score(
    root: Path, clusters: int, matching: Matching | None = None, **options: Any
) -> Evaluation:
    *_, result = events(root, clusters, matching, **options)
    assert isinstance(result, Evaluation)
    return result


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images; clusters 1, 2, 0 mean a, b, c, with one wrong pixel in each column of the matrix."""
    put(tmp_path, "one", [[1, 1, 2], [2, 2, 0]], [[10, 10, 20], [255, 20, 30]])
    put(tmp_path, "two", [[1, 2, 2, 0], [0, 1, 0, 1]], [[10, 20, 30, 31], [10, 20, 30, 255]])
    return tmp_path


class TestCounts:
    def test_by_hand(self, root: Path) -> None:
        """Each class has 4 pixels, 3 of them right, and one foreign pixel: IoU 3 / 5, accuracy 3 / 4."""
        result = score(root, 3)
        assert result.counts.tolist() == COUNTS
        assert result.matching == Matching((2, 0, 1), "hungarian")
        assert result.scores.iou == pytest.approx((60, 60, 60))
        assert result.scores.pixel_accuracy == pytest.approx(75)
        assert (result.images, result.expected, result.clusters) == (2, 5, 3)
        assert (result.dataset, result.split, result.readout) == ("Tiny", "val", "head")

    def test_classes_that_are_known(self, root: Path) -> None:
        """The diagonal alone is right: 1, 1, 1 of 4 pixels each, and each class is predicted 4 times."""
        result = score(root, 3, known_classes(3))
        assert result.counts.tolist() == COUNTS
        assert result.matching == Matching((0, 1, 2), "identity")
        assert result.scores.iou == pytest.approx((100 / 7, 100 / 7, 100 / 7))

    def test_progress_then_the_result_as_json(self, root: Path) -> None:
        *progress, last = events(root, 3)
        assert progress == [Progress("scoring", 1, 2), Progress("scoring", 2, 2)]
        assert isinstance(last, Evaluation)
        value = json.loads(to_json(last.to_dict()))
        assert value["counts"] == COUNTS
        assert value["protocol"].startswith("full-image: shorter side 2 ")
        assert value["scores"]["names"] == ["a", "b", "c"]


def test_each_of_several_masks_is_scored_as_if_alone(root: Path) -> None:
    seen: list[Tensor] = []

    def masks_of(images: Tensor, protocol: Protocol, sizes: Sequence[Size]) -> list[list[Mask]]:
        seen.append(images)
        mask = red(images[0], *sizes[0])
        return [[mask, mask + 2, (mask + 1) % 3]]

    fixed = Matching((1, 2, 0), "hungarian")
    readings = [Reading(3, "head"), Reading(5, "b"), Reading(3, "c", fixed)]
    *progress, one, two, three = scoring_events(task_of(root), MasksOf(masks_of), readings, 2)
    assert len(progress) == len(seen) == 2
    assert isinstance(one, Evaluation)
    assert isinstance(two, Evaluation)
    assert isinstance(three, Evaluation)
    assert to_json(one.to_dict()) == to_json(score(root, 3).to_dict())
    assert two.counts.tolist() == [[0, 0, *row] for row in COUNTS]
    assert (two.readout, two.clusters, two.matching.kind) == ("b", 5, "many-to-one")
    assert three.counts.tolist() == [row[2:] + row[:2] for row in COUNTS]
    assert three.matching is fixed


def test_masks_say_how_large_they_take_their_images(root: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def masks_of(images: Tensor, protocol: Protocol, sizes: Sequence[Size]) -> list[list[Mask]]:
        seen.append(tuple(images.shape[-2:]))
        return [[np.zeros(size, np.int32)] for size in sizes]

    task, readings = task_of(root, protocol="picie"), [Reading(3, "head")]
    *_, result = scoring_events(task, MasksOf(masks_of, zoom=3), readings, 2)
    assert isinstance(result, Evaluation)
    assert set(seen) == {(6, 6)}
    assert "shorter side 2 (bilinear, read at 6)" in result.protocol
    assert result.counts.sum() <= 2 * 2 * 2


def test_images_of_one_size_are_masked_in_full_batches(tmp_path: Path) -> None:
    """Of six images one cannot be read and fills no place: three and two are left, each filled up to four."""
    for index in range(6):
        put(tmp_path, f"{index}", [[index % 3] * 32] * (32 + index), [[10] * 32] * (32 + index))
    (tmp_path / "images" / "2.png").write_bytes(b"junk")
    seen: list[tuple[int, ...]] = []

    def masks_of(images: Tensor, protocol: Protocol, sizes: Sequence[Size]) -> list[list[Mask]]:
        seen.append((*images.shape, len(sizes)))
        assert torch.equal(images[-1], images[len(sizes) - 1])
        return [[image[0].numpy()] for image in images[: len(sizes)]]

    task = task_of(tmp_path, protocol="picie", allow_missing=True)
    *progress, result = scoring_events(task, MasksOf(masks_of), [Reading(3, "red")], 32)
    assert sorted(seen) == [(4, 3, 32, 32, 2), (4, 3, 32, 32, 3)]
    assert progress == [Progress("scoring", done, 6) for done in range(1, 7)]
    assert isinstance(result, Evaluation)
    assert result.missing == ("2",)
    assert result.counts.tolist() == [[2 * 32**2, 2 * 32**2, 32**2], [0] * 3, [0] * 3]


def test_whoever_looks_away_leaves_no_thread(root: Path) -> None:
    before = threading.active_count()
    started = events(root, 3)
    next(started)
    started.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


class TestFiles:
    @pytest.mark.parametrize("bad", [None, b"<html>"])
    def test_what_is_missing_is_counted_where_that_is_allowed(
        self, root: Path, bad: bytes | None
    ) -> None:
        """An image without a label, and one that cannot be read."""
        if bad is None:
            (root / "labels" / "one.png").unlink()
        else:
            (root / "images" / "one.png").write_bytes(bad)
        with pytest.raises(InputError, match="--allow-missing" if bad is None else r"one\.png"):
            score(root, 3)
        result = score(root, 3, allow_missing=True)
        assert (result.images, result.missing) == (1, ("one",))
        assert result.counts.sum() == 7

    def test_the_first_bad_file_is_the_error(self, root: Path) -> None:
        """Whatever is bad behind it, and although several are looked at at once; a label is never passed over."""
        for index in range(20):
            put(root, f"x{index:02}", [[0, 1], [0, 1]], [[10, 20], [20, 10]])
        (root / "images" / "x03.png").write_bytes(b"<html>")
        (root / "labels" / "x05.png").write_bytes(b"")
        put(root, "x07", [[0, 1], [0, 1]], [[10, 7], [7, 10]])
        for _ in range(5):
            with pytest.raises(ImageError, match=r"images/x03\.png"):
                score(root, 3)
            with pytest.raises(ImageError, match=r"labels/x05\.png"):
                score(root, 3, allow_missing=True)


class TestWarnings:
    def turn(self, root: Path, name: str, orientation: int, folder: str = "images") -> None:
        """Give a file the tag, its pixels as they are."""
        path = root / folder / f"{name}.png"
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        with Image.open(path) as image:
            image.save(path, exif=exif)

    @pytest.mark.parametrize("orientation", range(2, 9))
    def test_images_turned_otherwise_than_their_labels(self, root: Path, orientation: int) -> None:
        for name in ("x", "y", "z"):
            put(root, name, [[0, 1], [0, 1]], [[10, 20], [10, 20]])
            self.turn(root, name, 1)
        for name in ("x", "y"):
            self.turn(root, name, orientation)
        *_, notice, result = events(root, 3)
        assert isinstance(notice, Notice)
        assert notice.warning
        assert notice.text.startswith("2 images with an EXIF tag")
        assert f"images/x.png (EXIF orientation {orientation}, its label 1)" in notice.text
        assert isinstance(result, Evaluation)
        assert json.loads(to_json(result.to_dict()))["notes"] == [notice.text]

    def test_a_label_with_the_same_tag_is_right(self, root: Path) -> None:
        for folder in ("images", "labels"):
            self.turn(root, "one", 6, folder)
        assert score(root, 3).notes == ()
        self.turn(root, "one", 8)
        (note,) = score(root, 3).notes
        assert "(EXIF orientation 8, its label 6)" in note

    def test_what_the_folders_hold_besides_comes_first(self, root: Path) -> None:
        (root / "images" / "more").symlink_to(root)
        first, *_, result = events(root, 3)
        assert isinstance(first, Notice)
        assert isinstance(result, Evaluation)
        assert "1 linked folder" in first.text
        assert result.notes == (first.text,)


class TestEvaluate:
    @pytest.fixture
    def scenes(self, tmp_path: Path) -> Path:
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir()
        for index in range(3):
            image, label = scene(9, index, 48)
            Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
            Image.fromarray((10 * (label % 3 + 1)).astype(np.uint8)).save(
                tmp_path / "labels" / f"{index}.png"
            )
        (tmp_path / "tiny.toml").write_text(TOML)
        return tmp_path

    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_it_is_the_sum_over_the_set(
        self, scenes: Path, segmenter: Segmenter, name: str
    ) -> None:
        """Of whole images the masks are those that `predict` writes."""
        protocol = PROTOCOLS[name]
        result = evaluate(scenes / "tiny.toml", scenes, segmenter, protocol=name)
        task = task_of(scenes)
        expected = np.zeros((3, 5), np.int64)
        for sample in task.samples:
            image, label = prepare_sample(sample, task.dataset, protocol, 32)
            size = (label.shape[0], label.shape[1])
            mask = masks_made_by(segmenter)(image[None], protocol, [size])[0][0]
            np.add.at(expected, (label.ravel(), mask.ravel()), 1)
            if name == "full-image":
                np.testing.assert_array_equal(mask, segmenter.predict(sample.image))
        np.testing.assert_array_equal(result.counts, expected)
        assert result.protocol == protocol.describe(32)
        assert result.counts.sum() == 3 * (48 if name == "full-image" else 32) ** 2

    def test_a_models_folder_and_the_datasets_own_protocol(
        self, scenes: Path, model_folder: Path
    ) -> None:
        loaded = evaluate(str(scenes / "tiny.toml"), str(scenes), model_folder, device="cpu")
        same = Segmenter.load(model_folder, device="cpu")
        direct = evaluate(scenes / "tiny.toml", scenes, same, protocol="full-image")
        assert to_json(loaded.to_dict()) == to_json(direct.to_dict())

    def test_refinement_is_told_beside_the_protocol(
        self, scenes: Path, segmenter: Segmenter
    ) -> None:
        how = Refinement(True, (0.75, 1.0), "guided")
        result = evaluate(scenes / "tiny.toml", scenes, segmenter, refinement=how)
        plain = evaluate(scenes / "tiny.toml", scenes, segmenter)
        assert result.protocol == plain.protocol + how.describe() != plain.protocol
        assert result.counts.sum() == plain.counts.sum()
        assert (result.counts != plain.counts).any()

    @pytest.mark.parametrize("refine", ["none", "guided"])
    def test_merged_clusters_are_scored_as_one(
        self, scenes: Path, segmenter: Segmenter, refine: str
    ) -> None:
        """The columns of the confusion matrix add up."""
        how = Refinement(refine=refine)
        before = evaluate(scenes / "tiny.toml", scenes, segmenter, refinement=how).counts
        merged = copy.copy(segmenter)
        into = {0: 3, 4: 3}
        merged.clusters = tuple(
            replace(each, merged_into=into.get(each.id)) for each in segmenter.clusters
        )
        found = evaluate(scenes / "tiny.toml", scenes, merged, refinement=how)
        wanted = np.zeros_like(before)
        for k in range(5):
            wanted[:, into.get(k, k)] += before[:, k]
        assert found.counts.tolist() == wanted.tolist() and found.clusters == 3
        assert [found.matching.cluster_to_class[k] for k in into] == [-1, -1]

    def test_another_size_and_a_list(self, scenes: Path, segmenter: Segmenter) -> None:
        (scenes / "some.txt").write_text("2\n0\n")
        options: dict[str, Any] = {"image_size": 40, "list_file": scenes / "some.txt"}
        result = evaluate(scenes / "tiny.toml", scenes, segmenter, protocol="picie", **options)
        assert result.images == 2
        assert result.counts.sum() == 2 * 40**2
        assert "shorter side 40" in result.protocol

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"protocol": "voc"}, "--protocol voc"),
            ({"image_size": 31}, "--image-size 31"),
            ({"image_size": 4097}, "--image-size 4097"),
            ({"split": "test"}, "no split 'test'"),
            ({"dataset": "mine"}, "no dataset is named 'mine'"),
        ],
    )
    def test_what_is_scored_is_checked_before_the_model_is_read(
        self, scenes: Path, options: dict[str, Any], words: str
    ) -> None:
        given: dict[str, Any] = {"dataset": scenes / "tiny.toml", **options}
        with pytest.raises(UsageError, match=words):
            evaluate(root=scenes, model=scenes / "nowhere", **given)

    def test_cores_do_not_matter(self, scenes: Path, segmenter: Segmenter) -> None:
        before = torch.get_num_threads()
        results = set()
        for cores in (1, 2, 5):
            torch.set_num_threads(cores)
            result = evaluate(scenes / "tiny.toml", scenes, segmenter, protocol="picie")
            results.add(to_json(result.to_dict()))
        torch.set_num_threads(before)
        assert len(results) == 1
