"""Scores of a labelled set: confusion matrices against hand counts, and files that spoil them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering.kmeans import Centroids
from densesiam_seg.datasets.declaration import load_dataset
from densesiam_seg.datasets.reader import samples
from densesiam_seg.datasets.scenes import scene
from densesiam_seg.errors import ImageError, InputError, UsageError
from densesiam_seg.evaluation.evaluate import (
    PROTOCOLS,
    Evaluation,
    Mask,
    Protocol,
    Reading,
    benchmark,
    evaluate,
    evaluation_events,
    known_classes,
    scoring_events,
    segmenter_events,
    segmenter_masks,
    shown,
)
from densesiam_seg.evaluation.metrics import Matching
from densesiam_seg.events import Progress
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.test_time import Refinement
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


def put(root: Path, name: str, clusters: list[list[int]], label: list[list[int]]) -> None:
    """A sample whose red channel is the cluster that `red_masks` gives each pixel."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(exist_ok=True)
    red = np.array(clusters, np.uint8)
    Image.fromarray(np.stack([red, red * 0, red * 0], -1)).save(root / "images" / f"{name}.png")
    Image.fromarray(np.array(label, np.uint8)).save(root / "labels" / f"{name}.png")


def red_masks(image: Tensor, protocol: Protocol, height: int, width: int) -> Mask:
    assert image.shape[-2:] == (height, width)
    return image[0].numpy()


def events(
    root: Path, clusters: int, *, allow_missing: bool = False, matching: Matching | None = None
) -> Iterator[Progress | Evaluation]:
    """Score `red_masks` at the images' own size, which is 2 pixels high."""
    (root / "tiny.toml").write_text(TOML)
    dataset = load_dataset(root / "tiny.toml")
    return evaluation_events(
        dataset,
        samples(dataset, root, allow_missing=allow_missing),
        red_masks,
        clusters=clusters,
        readout="head",
        protocol=PROTOCOLS["full-image"],
        side=2,
        allow_missing=allow_missing,
        matching=matching,
    )


def score(
    root: Path, clusters: int, *, allow_missing: bool = False, matching: Matching | None = None
) -> Evaluation:
    *_, result = events(root, clusters, allow_missing=allow_missing, matching=matching)
    assert isinstance(result, Evaluation)
    return result


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images; clusters 1, 2, 0 mean a, b, c, with one wrong pixel in each column of the matrix."""
    put(tmp_path, "one", [[1, 1, 2], [2, 2, 0]], [[10, 10, 20], [255, 20, 30]])
    put(tmp_path, "two", [[1, 2, 2, 0], [0, 1, 0, 1]], [[10, 20, 30, 31], [10, 20, 30, 255]])
    return tmp_path


COUNTS = [[1, 3, 0], [0, 1, 3], [3, 0, 1]]
"""Worked out by hand: rows a, b, c, columns clusters 0, 1, 2."""


class TestCounts:
    def test_by_hand(self, root: Path) -> None:
        """Each class has 4 pixels, 3 of them right, and one foreign pixel: IoU 3 / 5, accuracy 3 / 4."""
        result = score(root, 3)
        assert result.counts.tolist() == COUNTS
        assert result.matching.cluster_to_class == (2, 0, 1)
        assert result.matching.kind == "hungarian"
        assert result.scores.iou == pytest.approx((60, 60, 60))
        assert result.scores.mean_iou == pytest.approx(60)
        assert result.scores.pixel_accuracy == pytest.approx(75)
        assert (result.images, result.expected, result.clusters) == (2, 5, 3)
        assert (result.dataset, result.split, result.readout) == ("Tiny", "val", "head")

    def test_more_clusters_than_classes(self, root: Path) -> None:
        """Cluster 3 takes b's wrong pixel; clusters go to the class of most of their pixels."""
        put(root, "two", [[1, 2, 2, 0], [0, 3, 0, 1]], [[10, 20, 30, 31], [10, 20, 30, 255]])
        result = score(root, 5)
        assert result.counts.tolist() == [[1, 3, 0, 0, 0], [0, 0, 3, 1, 0], [3, 0, 1, 0, 0]]
        assert result.matching.kind == "many-to-one"
        assert result.matching.cluster_to_class == (2, 0, 1, 1, -1)
        assert result.scores.pixel_accuracy == pytest.approx(100 * 10 / 12)
        assert result.scores.clusters_in_use == 4

    def test_fewer_clusters_than_classes(self, root: Path) -> None:
        put(root, "one", [[1, 1, 0], [0, 0, 0]], [[10, 10, 20], [255, 20, 30]])
        put(root, "two", [[1, 0, 0, 0], [1, 0, 0, 0]], [[10, 20, 30, 31], [10, 20, 30, 31]])
        result = score(root, 2)
        assert result.counts.tolist() == [[0, 4], [4, 0], [5, 0]]
        assert result.matching.cluster_to_class == (2, 0)
        assert result.scores.iou == pytest.approx((100, 0, 100 * 5 / 9))

    def test_an_image_that_is_all_ignored_adds_nothing(self, root: Path) -> None:
        put(root, "void", [[0, 1], [2, 0]], [[255, 255], [255, 255]])
        result = score(root, 3)
        assert result.counts.tolist() == COUNTS
        assert result.images == 3

    def test_a_set_that_is_all_ignored(self, tmp_path: Path) -> None:
        put(tmp_path, "void", [[0, 1], [2, 0]], [[255, 255], [255, 255]])
        with pytest.raises(InputError, match="no pixel has a label"):
            score(tmp_path, 3)

    def test_an_absent_class_is_left_out_and_said(self, tmp_path: Path) -> None:
        put(tmp_path, "one", [[0, 0], [1, 2]], [[10, 10], [20, 20]])
        scores = score(tmp_path, 3).scores
        assert scores.absent == ("c",)
        assert scores.iou == pytest.approx((100, 50, None))
        assert scores.mean_iou == pytest.approx(75)

    def test_progress_then_the_result(self, root: Path) -> None:
        *progress, last = events(root, 3)
        assert progress == [Progress("scoring", 1, 2), Progress("scoring", 2, 2)]
        assert isinstance(last, Evaluation)

    def test_the_result_is_a_json_object(self, root: Path) -> None:
        value = score(root, 3).to_dict()
        assert json.loads(json.dumps(value)) == json.loads(to_json(value))
        assert value["counts"] == COUNTS
        assert value["protocol"].startswith("full-image: shorter side 2 ")
        assert value["matching"]["kind"] == "hungarian"
        assert value["scores"]["names"] == ("a", "b", "c")


class TestKnownClasses:
    def test_by_hand(self, root: Path) -> None:
        """The diagonal alone is right: 1, 1, 1 of 4 pixels each, and each class is predicted 4 times."""
        result = score(root, 3, matching=known_classes(3))
        assert result.counts.tolist() == COUNTS
        assert result.matching.cluster_to_class == (0, 1, 2)
        assert str(result.matching.kind) == "identity"
        assert result.scores.iou == pytest.approx((100 / 7, 100 / 7, 100 / 7))
        assert result.scores.pixel_accuracy == pytest.approx(25)

    def test_shifted_classes_are_wrong_and_not_matched(self, tmp_path: Path) -> None:
        put(tmp_path, "one", [[1, 2], [0, 1]], [[10, 20], [30, 10]])
        assert score(tmp_path, 3).scores.mean_iou == 100
        shifted = score(tmp_path, 3, matching=known_classes(3)).scores
        assert shifted.mean_iou == shifted.pixel_accuracy == 0


class TestSeveralMasks:
    def test_each_is_scored_as_if_alone(self, root: Path) -> None:
        (root / "tiny.toml").write_text(TOML)
        dataset = load_dataset(root / "tiny.toml")
        seen: list[Tensor] = []

        def masks_of(
            images: Tensor, protocol: Protocol, sizes: Sequence[tuple[int, int]]
        ) -> list[list[Mask]]:
            seen.append(images)
            mask = red_masks(images[0], protocol, *sizes[0])
            return [[mask, mask + 2, (mask + 1) % 3]]

        fixed = Matching((1, 2, 0), "hungarian")
        readings = [Reading(3, "a"), Reading(5, "b"), Reading(3, "c", fixed)]
        *progress, one, two, three = scoring_events(
            dataset,
            samples(dataset, root),
            masks_of,
            readings,
            protocol=PROTOCOLS["full-image"],
            side=2,
        )
        assert progress == [Progress("scoring", 1, 2), Progress("scoring", 2, 2)]
        assert len(seen) == 2
        assert isinstance(one, Evaluation)
        assert isinstance(two, Evaluation)
        assert isinstance(three, Evaluation)
        assert to_json({**one.to_dict(), "readout": "head"}) == to_json(score(root, 3).to_dict())
        assert two.counts.tolist() == [[0, 0, *row] for row in COUNTS]
        assert (two.readout, two.clusters, two.matching.kind) == ("b", 5, "many-to-one")
        assert three.counts.tolist() == [row[2:] + row[:2] for row in COUNTS]
        assert three.matching is fixed


class TestBatches:
    """Protocols that crop show images of one size, which pass together."""

    def test_masks_are_asked_for_in_full_batches(self, tmp_path: Path) -> None:
        """Of six images one cannot be read and fills no place: three and two are left, each filled up to four."""
        for index in range(6):
            put(tmp_path, f"{index}", [[index % 3] * 32] * (32 + index), [[10] * 32] * (32 + index))
        (tmp_path / "images" / "2.png").write_bytes(b"junk")
        (tmp_path / "tiny.toml").write_text(TOML)
        dataset = load_dataset(tmp_path / "tiny.toml")
        seen: list[tuple[int, ...]] = []

        def masks_of(
            images: Tensor, protocol: Protocol, sizes: Sequence[tuple[int, int]]
        ) -> list[list[Mask]]:
            seen.append((*images.shape, len(sizes)))
            assert torch.equal(images[-1], images[len(sizes) - 1])
            return [[image[0].numpy()] for image in images[: len(sizes)]]

        *progress, result = scoring_events(
            dataset,
            samples(dataset, tmp_path),
            masks_of,
            [Reading(3, "red")],
            protocol=PROTOCOLS["picie"],
            side=32,
            allow_missing=True,
        )
        assert sorted(seen) == [(4, 3, 32, 32, 2), (4, 3, 32, 32, 3)]
        assert progress == [Progress("scoring", done, 6) for done in range(1, 7)]
        assert isinstance(result, Evaluation)
        assert result.missing == ("2",)
        assert result.counts.tolist() == [[2 * 32**2, 2 * 32**2, 32**2], [0] * 3, [0] * 3]

    def test_whoever_looks_away_leaves_no_thread(self, root: Path) -> None:
        before = threading.active_count()
        started = events(root, 3)
        next(started)
        started.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before


class TestFiles:
    def test_sizes_that_differ(self, root: Path) -> None:
        put(root, "three", [[0, 1, 1], [0, 1, 1]], [[10, 10], [10, 10]])
        with pytest.raises(InputError, match=r"labels/three\.png: is 2x2 but its image is 3x2"):
            score(root, 3)

    def test_a_rotated_image_with_an_unrotated_label(self, root: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        path = root / "images" / "one.png"
        with Image.open(path) as image:
            turned = image.copy()
        turned.save(path, exif=exif)
        with pytest.raises(InputError, match=r"labels/one\.png: is 3x2 but its image is 2x3"):
            score(root, 3)

    def test_values_without_a_meaning(self, root: Path) -> None:
        put(root, "three", [[0, 1], [0, 1]], [[10, 7], [7, 10]])
        with pytest.raises(InputError, match=r"labels/three\.png: .*7 \(2 px\)"):
            score(root, 3)

    def test_colour_labels(self, root: Path) -> None:
        Image.new("RGB", (3, 2)).save(root / "labels" / "one.png")
        with pytest.raises(InputError, match=r"labels/one\.png: a colour label"):
            score(root, 3)

    def test_palette_labels_are_indices(self, root: Path) -> None:
        path = root / "labels" / "one.png"
        with Image.open(path) as grey:
            indexed = Image.fromarray(np.asarray(grey))
        indexed.putpalette([value for index in range(256) for value in (255 - index, 3, index)])
        indexed.save(path)
        assert score(root, 3).counts.tolist() == COUNTS

    def test_16_bit_labels_are_numbers(self, root: Path) -> None:
        path = root / "labels" / "one.png"
        with Image.open(path) as grey:
            deep = np.asarray(grey).astype(np.uint16)
        Image.fromarray(deep).save(path)
        assert score(root, 3).counts.tolist() == COUNTS

    def test_images_without_labels(self, root: Path) -> None:
        (root / "labels" / "one.png").unlink()
        with pytest.raises(InputError, match="--allow-missing"):
            score(root, 3)
        result = score(root, 3, allow_missing=True)
        assert (result.images, result.missing) == (1, ("one",))
        assert result.counts.sum() == 7

    def test_the_first_bad_file_is_the_error(self, root: Path) -> None:
        """Whatever is bad behind it, and although several are looked at at once."""
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

    def test_an_image_that_cannot_be_read(self, root: Path) -> None:
        (root / "images" / "one.png").write_bytes(b"<html>")
        with pytest.raises(ImageError, match=r"images/one\.png"):
            score(root, 3)
        result = score(root, 3, allow_missing=True)
        assert (result.images, result.missing) == (1, ("one",))

    def test_a_label_that_cannot_be_read_is_never_passed_over(self, root: Path) -> None:
        (root / "labels" / "one.png").write_bytes(b"")
        with pytest.raises(ImageError, match=r"labels/one\.png: is empty"):
            score(root, 3, allow_missing=True)

    def test_no_image_that_can_be_read(self, root: Path) -> None:
        for name in ("one", "two"):
            (root / "images" / f"{name}.png").write_bytes(b"x")
        with pytest.raises(InputError, match="no pixel has a label"):
            score(root, 3, allow_missing=True)


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
        result = evaluate(scenes / "tiny.toml", scenes, segmenter, protocol=name)
        dataset = load_dataset(scenes / "tiny.toml")
        expected = np.zeros((3, 5), np.int64)
        for sample in samples(dataset, scenes):
            image, label = shown(sample, dataset, PROTOCOLS[name], 32)
            mask = segmenter_masks(segmenter)(image, PROTOCOLS[name], *label.shape)
            np.add.at(expected, (label.ravel(), mask.ravel()), 1)
        np.testing.assert_array_equal(result.counts, expected)
        assert result.protocol == PROTOCOLS[name].describe(32)
        assert result.counts.sum() == 3 * (48 if name == "full-image" else 32) ** 2

    def test_a_models_folder_and_the_datasets_own_protocol(
        self, scenes: Path, model_folder: Path
    ) -> None:
        loaded = evaluate(str(scenes / "tiny.toml"), str(scenes), model_folder, device="cpu")
        same = Segmenter.load(model_folder, device="cpu")
        direct = evaluate(scenes / "tiny.toml", scenes, same, protocol="full-image")
        np.testing.assert_array_equal(loaded.counts, direct.counts)
        assert loaded.protocol == direct.protocol
        assert loaded.digest == direct.digest

    def test_full_image_scores_the_masks_that_predict_writes(
        self, scenes: Path, segmenter: Segmenter
    ) -> None:
        dataset = load_dataset(scenes / "tiny.toml")
        for sample in samples(dataset, scenes):
            image, label = shown(sample, dataset, PROTOCOLS["full-image"], 32)
            mask = segmenter_masks(segmenter)(image, PROTOCOLS["full-image"], *label.shape)
            np.testing.assert_array_equal(mask, segmenter.predict(sample.image))

    @pytest.mark.parametrize(
        "how", [Refinement(True, (0.75, 1.0), "guided"), Refinement(refine="pamr")]
    )
    def test_full_image_scores_refined_masks_too(
        self, scenes: Path, segmenter: Segmenter, how: Refinement
    ) -> None:
        """The masks that `predict` writes, and the options beside the protocol."""
        result = evaluate(scenes / "tiny.toml", scenes, segmenter, refinement=how)
        plain = evaluate(scenes / "tiny.toml", scenes, segmenter)
        assert result.protocol == plain.protocol + how.describe()
        assert how.describe().startswith("; on top: ")
        dataset = load_dataset(scenes / "tiny.toml")
        expected = np.zeros((3, 5), np.int64)
        for sample in samples(dataset, scenes):
            _, label = shown(sample, dataset, PROTOCOLS["full-image"], 32)
            mask = segmenter.predict(sample.image, refinement=how)
            np.add.at(expected, (label.ravel(), mask.ravel()), 1)
        # The batch is filled, which may round differently.
        assert np.abs(result.counts - expected).sum() <= 0.01 * expected.sum()
        assert (result.counts != plain.counts).any()

    def test_another_size(self, scenes: Path, segmenter: Segmenter) -> None:
        result = evaluate(scenes / "tiny.toml", scenes, segmenter, protocol="picie", image_size=40)
        assert result.counts.sum() == 3 * 40**2
        assert "shorter side 40" in result.protocol

    def test_a_list(self, scenes: Path, segmenter: Segmenter, tmp_path: Path) -> None:
        (tmp_path / "some.txt").write_text("2\n0\n")
        result = evaluate(scenes / "tiny.toml", scenes, segmenter, list_file=tmp_path / "some.txt")
        assert result.images == 2

    def test_unknown_protocol(self, scenes: Path, segmenter: Segmenter) -> None:
        with pytest.raises(UsageError, match="--protocol voc"):
            evaluate(scenes / "tiny.toml", scenes, segmenter, protocol="voc")

    @pytest.mark.parametrize("side", [0, 31, 4097])
    def test_sizes_out_of_range(self, scenes: Path, segmenter: Segmenter, side: int) -> None:
        with pytest.raises(UsageError, match=f"--image-size {side}: must be 32 to 4096"):
            evaluate(scenes / "tiny.toml", scenes, segmenter, image_size=side)

    def test_what_is_scored_is_known_before_the_model_is_read(self, scenes: Path) -> None:
        with pytest.raises(UsageError, match="no split 'test'"):
            evaluate(scenes / "tiny.toml", scenes, scenes / "nowhere", split="test")

    def test_a_benchmark_serves_any_model(self, scenes: Path, segmenter: Segmenter) -> None:
        task = benchmark(scenes / "tiny.toml", scenes, protocol="picie", image_size=40)
        assert (task.found.split, task.protocol, task.image_size) == ("val", PROTOCOLS["picie"], 40)
        centres = F.normalize(torch.randn(7, 8, generator=torch.Generator().manual_seed(0)), dim=1)
        read = segmenter.with_centroids(Centroids(centres, torch.ones(7, dtype=torch.int64)))
        *_, first = segmenter_events(segmenter, task)
        *_, second = segmenter_events(read, task)
        assert isinstance(first, Evaluation)
        assert isinstance(second, Evaluation)
        assert (first.readout, first.clusters) == ("head", 5)
        assert (second.readout, second.clusters) == ("kmeans", 7)
        assert benchmark(scenes / "tiny.toml", scenes).protocol == PROTOCOLS["full-image"]

    def test_unknown_dataset(self, scenes: Path, segmenter: Segmenter) -> None:
        with pytest.raises(UsageError, match="no dataset is named 'mine'"):
            evaluate("mine", scenes, segmenter)

    def test_cores_do_not_matter(self, scenes: Path, segmenter: Segmenter) -> None:
        before = torch.get_num_threads()
        found = []
        for cores in (1, 2, 5):
            torch.set_num_threads(cores)
            found.append(evaluate(scenes / "tiny.toml", scenes, segmenter, protocol="picie"))
        torch.set_num_threads(before)
        assert to_json(found[0].to_dict()) == to_json(found[1].to_dict())
        assert to_json(found[0].to_dict()) == to_json(found[2].to_dict())

    def test_order_does_not_matter(self, scenes: Path, segmenter: Segmenter) -> None:
        dataset = load_dataset(scenes / "tiny.toml")
        found = samples(dataset, scenes)
        turned = replace(found, items=found.items[::-1])
        results = [
            list(
                evaluation_events(
                    dataset,
                    each,
                    segmenter_masks(segmenter),
                    clusters=5,
                    readout="head",
                    protocol=PROTOCOLS["picie"],
                    side=32,
                )
            )[-1]
            for each in (found, turned)
        ]
        assert isinstance(results[0], Evaluation)
        assert isinstance(results[1], Evaluation)
        assert results[0].scores == results[1].scores
