"""Probes of frozen features: labels at feature cells by hand, the linear solver against L-BFGS, what uses labels."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Generator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from torch import Tensor, nn
from torch.nn import functional as F

from densesiam_seg.clustering.kmeans import Centroids, kmeans
from densesiam_seg.errors import InputError, ModelError, NumericError, UsageError
from densesiam_seg.evaluation import probe as probe_module
from densesiam_seg.evaluation.evaluate import benchmark
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.evaluation.probe import (
    DECAY,
    Probe,
    cell_labels,
    fit_linear,
    ready_probe,
    sample_points,
)
from densesiam_seg.evaluation.protocol import PROTOCOLS, dense_features, prepare_sample
from densesiam_seg.events import Notice, Progress
from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import to_json
from densesiam_seg.io.randomness import Stream, generator
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import build_network

Value = TypeVar("Value")
Run = Callable[..., dict[str, Evaluation]]

COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))
TOML = """
title = "Plain"
image_suffixes = [".png"]
label_suffix = ".png"
ignore_values = [255]
classes = [
    { name = "red", kind = "thing", values = [1] },
    { name = "green", kind = "stuff", values = [2] },
    { name = "blue", kind = "stuff", values = [3] },
]
"""
SPLITS = ("val", "train", "wrong", "void")


def plain_images(root: Path, split: str, count: int, label_of: Callable[[int], int]) -> None:
    """Images of one noisy colour each, red, green and blue in turn, whose every pixel has one label."""
    for folder in ("images", "labels"):
        (root / folder / split).mkdir(parents=True)
    draw = np.random.default_rng(count)
    for index in range(count):
        image = np.asarray(COLOURS[index % 3]) + draw.integers(-30, 31, (40, 48, 3))
        label = np.full((40, 48), label_of(index), np.uint8)
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / split / f"{index}.png")
        Image.fromarray(label).save(root / "labels" / split / f"{index}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain images: `val` and `train` are labelled right, `wrong` one class further, `void` not at all."""
    root = tmp_path_factory.mktemp("plain")
    plain_images(root, "val", 3, lambda index: index % 3 + 1)
    plain_images(root, "train", 6, lambda index: index % 3 + 1)
    plain_images(root, "wrong", 6, lambda index: (index + 1) % 3 + 1)
    plain_images(root, "void", 3, lambda _: 255)
    splits = "".join(
        f'[splits.{each}]\nimages = ["images/{each}"]\nlabels = ["labels/{each}"]\n'
        for each in SPLITS
    )
    (root / "plain.toml").write_text(TOML + splits)
    return root


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for colours that lie far apart."""
    monkeypatch.setattr(probe_module, "STEPS", 100)


class MeanColours(nn.AvgPool2d):
    """An encoder whose features are the mean colours of 4×4 pixels."""

    width, zoom, description = 3, 1, None

    def local(self, images: Tensor) -> Tensor:
        """All there is."""
        found: Tensor = self(images)
        return found

    def settled(self, local: Tensor) -> Tensor:
        """The same."""
        return local


@pytest.fixture(scope="module")
def clear(segmenter: Segmenter) -> Segmenter:
    network = copy.deepcopy(segmenter.network)
    network.encoder = cast(Any, MeanColours(4))
    return Segmenter(network, segmenter.card, device="cpu", precision="fp32")


def probed(model: Path | Segmenter, data: Path, root: Path | None = None, **options: Any) -> Probe:
    *_, result = ready_probe(model, data / "plain.toml", root or data, **options)
    assert isinstance(result, Probe)
    return result


@pytest.fixture
def run(data: Path, clear: Segmenter, few_steps: None) -> Run:
    """The scores of the probes of `clear`, by the names of the probes."""

    def probe_plain(**options: Any) -> dict[str, Evaluation]:
        result = probed(clear, data, **options)
        both = {"linear": result.linear, "kmeans": result.kmeans}
        return {name: each for name, each in both.items() if each is not None}

    return probe_plain


def finished(work: Generator[Notice | Progress, None, Value]) -> Value:
    """What a generator returns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            value: Value = end.value
            return value


class TestProbe:
    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_plain_colours_are_told_apart(self, run: Run, name: str) -> None:
        result = run(protocol=name)
        side = 40 * 48 if name == "full-image" else 32 * 32
        assert set(result) == {"linear", "kmeans"}
        for each in result.values():
            assert each.scores.mean_iou == 100
            assert each.counts.sum(1).tolist() == [side] * 3
            assert each.protocol == PROTOCOLS[name].describe(32)
            assert (each.dataset, each.split, each.images, each.clusters) == ("Plain", "val", 3, 3)

    def test_shifted_training_labels_ruin_the_linear_probe_alone(self, run: Run) -> None:
        """The linear probe's ids are scored as they are, not matched; k-means has not seen the labels."""
        right, wrong = run(), run(train_split="wrong")
        linear, clustered = wrong["linear"], wrong["kmeans"]
        assert linear.scores.mean_iou == linear.scores.pixel_accuracy == 0
        assert linear.counts[[0, 1, 2], [1, 2, 0]].tolist() == [40 * 48] * 3
        assert linear.matching.cluster_to_class == (0, 1, 2)
        assert "supervised: uses the labels of the wrong split" in linear.readout
        np.testing.assert_array_equal(clustered.counts, right["kmeans"].counts)
        assert clustered.matching.kind == "hungarian"
        assert "label-free" in clustered.readout

    def test_kmeans_with_any_number_of_clusters_needs_no_labelled_training_pixel(
        self, run: Run
    ) -> None:
        result = run(kind="kmeans", clusters=7, train_split="void")["kmeans"]
        assert (result.clusters, result.counts.shape) == (7, (3, 7))
        assert result.matching.kind == "many-to-one"
        assert result.scores.mean_iou == 100

    def test_one_alone_is_the_same(self, run: Run) -> None:
        both = run()
        for kind in ("linear", "kmeans"):
            ((name, alone),) = run(kind=kind).items()
            assert name == kind
            np.testing.assert_array_equal(both[kind].counts, alone.counts)

    def test_equal_for_a_seed_and_blind_to_global_state(self, run: Run) -> None:
        states = torch.random.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
        first = run(seed=3, clusters=9)
        assert torch.equal(torch.random.get_rng_state(), states[0])
        assert str(np.random.get_state()) == states[1]  # noqa: NPY002
        torch.manual_seed(99)
        with torch.no_grad():  # no gradients are needed of the caller
            again, other = run(seed=3, clusters=9), run(seed=4, clusters=9)
        values = [
            to_json([each.to_dict() for each in result.values()])
            for result in (first, again, other)
        ]
        assert values[0] == values[1] != values[2]

    def test_a_models_folder(
        self, data: Path, segmenter: Segmenter, model_folder: Path, few_steps: None
    ) -> None:
        """The same scores, and the segmenter stays as it is."""
        before = copy.deepcopy(segmenter.network.state_dict())
        loaded = probed(model_folder, data, device="cpu", precision="fp32")
        same = probed(segmenter, data)
        assert loaded.linear is not None
        assert same.linear is not None
        np.testing.assert_array_equal(loaded.linear.counts, same.linear.counts)
        assert loaded.linear.scores.mean_iou > 50
        assert segmenter.card.readout == "head"
        after = segmenter.network.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_warnings_of_the_train_split(
        self, data: Path, clear: Segmenter, few_steps: None, tmp_path: Path
    ) -> None:
        shutil.copytree(data, tmp_path, dirs_exist_ok=True)
        folder = tmp_path / "images" / "train"
        (folder / "more").symlink_to(data)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 3
        with Image.open(folder / "4.png") as image:
            image.save(folder / "4.png", exif=exif)
        events = ready_probe(clear, tmp_path / "plain.toml", tmp_path, kind="kmeans")
        linked, turned = (str(each) for each in events if isinstance(each, Notice))
        assert "1 linked folder" in linked
        assert "train/4.png (EXIF orientation 3, its label 1)" in turned

    def test_progress_then_the_result_as_json(
        self, data: Path, clear: Segmenter, few_steps: None
    ) -> None:
        *events, last = ready_probe(clear, data / "plain.toml", data)
        assert events == [
            Progress("features", 6, 6),
            Progress("linear probe", 50, 100),
            Progress("linear probe", 100, 100),
            Progress("k-means", 0, 1),
            Progress("k-means", 1, 1),
            *(Progress("scoring", done, 3) for done in (1, 2, 3)),
        ]
        assert isinstance(last, Probe)
        value = json.loads(to_json(last.to_dict()))
        assert value["linear"]["supervised"] is True
        assert value["kmeans"]["supervised"] is False
        assert value["linear"]["counts"] == (np.eye(3, dtype=int) * 40 * 48).tolist()
        assert 0 < value["seconds"] < 60
        assert replace(last, linear=None).to_dict()["linear"] is None


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"kind": "tree"}, UsageError, "--kind tree"),
            ({"kind": "linear", "clusters": 4}, UsageError, "--clusters belongs to the k-means"),
            ({"clusters": 0}, UsageError, "--clusters 0"),
            ({"protocol": "voc"}, UsageError, "--protocol voc"),
            ({"image_size": 8}, UsageError, "--image-size 8"),
            ({"train_split": "x"}, UsageError, "no split 'x'"),
            ({"split": "train"}, UsageError, "--train-split train and --split train share 6"),
            ({"train_split": "wrong+val"}, UsageError, "share 3 images"),
            ({"train_split": "void"}, InputError, "no pixel of the train split has a label"),
            ({"split": "void"}, InputError, "no pixel has a label"),
            ({"clusters": 1000}, InputError, "432 points cannot make 1000 clusters"),
        ],
    )
    def test_options(
        self, run: Run, options: dict[str, Any], error: type[Exception], words: str
    ) -> None:
        with pytest.raises(error, match=words):
            run(**options)

    @pytest.mark.parametrize("gone", ["images", "labels"])
    @pytest.mark.parametrize("split", ["train", "val"])
    def test_splits_without_labels(
        self, segmenter: Segmenter, data: Path, tmp_path: Path, split: str, gone: str
    ) -> None:
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir()
            for each in {"train", "val"} - ({split} if folder == gone else set()):
                (tmp_path / folder / each).symlink_to(data / folder / each)
        with pytest.raises(InputError, match=rf"probe needs labelled images: .*{gone}/{split} for"):
            probed(segmenter, data, tmp_path)

    def test_splits_that_share_labels(
        self, segmenter: Segmenter, data: Path, tmp_path: Path
    ) -> None:
        text = (data / "plain.toml").read_text().replace("labels/val", "labels/train")
        (tmp_path / "mixed.toml").write_text(text)
        with pytest.raises(UsageError, match="share 3 labels"):
            ready_probe(segmenter, tmp_path / "mixed.toml", data)

    def test_a_model_with_a_mixture(self, data: Path, few_steps: None) -> None:
        """Its dense maps hold the mixture's posteriors too, which no probe sees."""
        architecture = Architecture(channels=4, clusters=3, over_clusters=0, mixture=True)
        network = build_network(architecture, seed=0)
        card = ModelCard(architecture, 32, clusters=3)
        result = probed(Segmenter(network, card, device="cpu", precision="fp32"), data)
        assert result.linear is not None and result.kmeans is not None
        assert result.linear.images == result.kmeans.images == 3

    def test_everything_else_is_checked_before_the_model_is_read(self, data: Path) -> None:
        with pytest.raises(UsageError, match="share 3 images"):
            probed(data / "nowhere", data, train_split="val")
        with pytest.raises(ModelError, match="no model here"):
            probed(data / "nowhere", data)

    def test_features_that_are_not_finite(
        self, segmenter: Segmenter, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The fourth image of a batch is the one that is named."""

        def spoilt(*arguments: Any) -> Tensor:
            features = dense_features(*arguments).clone()
            features[3, 1, 2, 3] = math.inf
            return features

        monkeypatch.setattr(probe_module, "dense_features", spoilt)
        with pytest.raises(NumericError, match=r"train/3\.png: its features are not finite"):
            probed(segmenter, data)


class TestSamplePoints:
    def sampled(
        self, segmenter: Segmenter, root: Path, name: str = "full-image", seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        task = benchmark(root / "plain.toml", root, "train", protocol=name)
        return finished(sample_points(segmenter, task, task.samples, seed=seed))

    @pytest.fixture
    def mixed(self, data: Path, tmp_path: Path) -> Path:
        """Five images of two sizes, upright and lying in turn, with labels that differ from pixel to pixel."""
        draw = np.random.default_rng(0)
        for folder in ("images", "labels"):
            (tmp_path / folder / "train").mkdir(parents=True)
        for index, size in enumerate([(40, 48), (40, 48), (48, 40), (40, 48), (40, 48)]):
            image = draw.integers(0, 256, (*size, 3), np.uint8)
            label = draw.choice(np.array([1, 2, 3, 255], np.uint8), size)
            Image.fromarray(image).save(tmp_path / "images" / "train" / f"{index}.png")
            Image.fromarray(label).save(tmp_path / "labels" / "train" / f"{index}.png")
        (tmp_path / "plain.toml").write_text((data / "plain.toml").read_text())
        return tmp_path

    @pytest.mark.parametrize("batch", [1, 2 * 32 * 38, 2**20])
    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_features_and_labels_of_drawn_pixels(
        self,
        segmenter: Segmenter,
        mixed: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        batch: int,
    ) -> None:
        """Image by image, whatever batches they pass the network in; 20 pixels of each, in the order drawn."""
        monkeypatch.setattr(probe_module, "VALUES", 5 * 20 * 8 + 39)
        monkeypatch.setattr(probe_module, "BATCH", batch)
        features, labels = self.sampled(segmenter, mixed, name, seed=6)
        assert features.shape == (5 * 20, 8)
        assert labels.dtype == torch.uint8
        task = benchmark(mixed / "plain.toml", mixed, "train")
        for index, sample in enumerate(task.samples):
            image, label = prepare_sample(sample, task.dataset, PROTOCOLS[name], 32)
            expected = dense_features(segmenter, image[None], PROTOCOLS[name])[0]
            height, width = expected.shape[-2:]
            drawn = generator(6, Stream.PIXELS, 0, index).permutation(height * width)[:20]
            rows, columns = drawn // width, drawn % width
            part = slice(20 * index, 20 * index + 20)
            torch.testing.assert_close(features[part], expected[:, rows, columns].T)
            at_cells = cell_labels(label, height, width)[rows, columns]
            np.testing.assert_array_equal(labels[part].numpy(), at_cells)

    @pytest.mark.parametrize(("values", "points"), [(2**20, 4 * 8 * 10 + 10 * 8), (1, 5)])
    def test_every_pixel_where_all_fit_and_one_of_each_image_at_least(
        self,
        segmenter: Segmenter,
        mixed: Path,
        monkeypatch: pytest.MonkeyPatch,
        values: int,
        points: int,
    ) -> None:
        monkeypatch.setattr(probe_module, "VALUES", values)
        features, labels = self.sampled(segmenter, mixed)
        assert len(features) == len(labels) == points
        assert len({tuple(row) for row in features.tolist()}) == points

    def test_features_keep_the_networks_precision(self, segmenter: Segmenter, mixed: Path) -> None:
        half = Segmenter(segmenter.network, segmenter.card, device="cpu", precision="bf16")
        assert self.sampled(segmenter, mixed)[0].dtype == torch.float32
        assert self.sampled(half, mixed)[0].dtype == torch.bfloat16


class TestCellLabels:
    def test_by_hand(self) -> None:
        """Cells of 2×2 pixels have their centre on a corner, and take the pixel below and right of it.

        5 pixels in 2 cells: centres at 1.25 and 3.75. 4 pixels in 3 cells: at 2/3, 2 and 10/3.
        """
        even = np.arange(24, dtype=np.uint8).reshape(4, 6)
        assert cell_labels(even, 2, 3).tolist() == [[7, 9, 11], [19, 21, 23]]
        odd = np.arange(20, dtype=np.uint8).reshape(5, 4)
        assert cell_labels(odd, 2, 3).tolist() == [[4, 6, 7], [12, 14, 15]]

    @settings(max_examples=30)
    @given(st.integers(1, 255), st.integers(1, 20))
    def test_the_nearest_pixel_in_exact_arithmetic(self, pixels: int, cells: int) -> None:
        label = np.arange(pixels, dtype=np.uint8)[None]
        half = Fraction(1, 2)
        for cell, found in enumerate(cell_labels(label, 1, cells)[0].tolist()):
            centre = (cell + half) * pixels / cells
            expected = min(range(pixels), key=lambda pixel: (abs(pixel + half - centre), -pixel))
            assert found == expected


def mixture(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (count, 6) of three overlapping classes, of mixed channels and scales, and labels, a tenth ignored."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=draw)
    centres = 0.8 * torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    points = centres[labels] + torch.randn(count, 6, generator=draw)
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(2))
    scales = torch.tensor([100.0, 1.0, 0.01, 1.0, 5.0, 1.0])
    features = points @ mixing * scales + torch.tensor([0.0, 5.0, 0.2, -3.0, 0.0, 9.0])
    labels[torch.rand(count, generator=draw) < 0.1] = 255
    return features, labels.to(torch.uint8)


def objective(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """What the linear probe minimises, over the whole of it."""
    standard = (features - features.mean(0)) / features.std(0, correction=0)
    known = labels != 255
    scores = standard[known] @ weight.T + bias
    loss = F.cross_entropy(scores, labels[known].long())
    return loss + 0.5 * DECAY * weight.square().sum()


def test_the_linear_probe_ends_at_the_optimum_of_another_solver() -> None:
    """L-BFGS on all points in fp64; 6000 points make three mini-batches."""
    features, labels = mixture(6000, 0)
    exact = features.double()
    best = [torch.zeros(size, dtype=torch.float64, requires_grad=True) for size in ((3, 6), (3,))]
    solver = torch.optim.LBFGS(best, max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        solver.zero_grad()
        loss = objective(best[0], best[1], exact, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    solver.step(closure)  # type: ignore[no-untyped-call]
    weight, bias = finished(fit_linear(features, labels, 3))
    assert weight.shape == (3, 6, 1, 1)
    mean, deviation = exact.mean(0), exact.std(0, correction=0)
    standard = weight[:, :, 0, 0].double() * deviation
    shift = bias.double() + weight[:, :, 0, 0].double() @ mean
    lowest = float(objective(best[0].detach(), best[1].detach(), exact, labels))
    assert lowest > 0.2  # the classes overlap
    assert float(objective(standard, shift, exact, labels)) < 1.001 * lowest
    found = (features @ weight[:, :, 0, 0].T + bias).argmax(1)
    wanted = ((exact - mean) / deviation @ best[0].T + best[1]).argmax(1)
    assert (found == wanted).double().mean() > 0.995


@pytest.mark.usefixtures("few_steps")
class TestFitLinear:
    def test_scales_and_offsets_of_channels_do_not_matter(self) -> None:
        features, labels = mixture(500, 1)
        change = torch.tensor([64.0, 0.25, 8.0, 1.0, 2.0, 0.5])
        shifted = features * change + 3.0
        one = F.conv2d(features.T[None, :, :, None], *finished(fit_linear(features, labels, 3)))
        two = F.conv2d(shifted.T[None, :, :, None], *finished(fit_linear(shifted, labels, 3)))
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize("constant", [0.0, 0.1, 1e4])
    def test_a_constant_channel(self, constant: float) -> None:
        features, labels = mixture(3000, 2)
        features[:, 4] = constant
        weight, bias = finished(fit_linear(features, labels, 3))
        assert weight.isfinite().all() and bias.isfinite().all()
        assert float(weight[:, 4].abs().max()) * max(constant, 1) < 10

    def test_low_precision_features(self) -> None:
        """bf16 features are used as they are; the classifier is fp32."""
        features, labels = mixture(500, 3)
        half = features.bfloat16()
        for one, two in zip(
            finished(fit_linear(half, labels, 3)),
            finished(fit_linear(half.float(), labels, 3)),
            strict=True,
        ):
            assert one.dtype == torch.float32
            assert torch.equal(one, two)

    def test_a_class_without_pixels_is_never_predicted(self) -> None:
        features, labels = mixture(500, 4)
        weight, bias = finished(fit_linear(features, labels, 5))
        assert (features @ weight[:, :, 0, 0].T + bias).argmax(1).max() < 3


def test_kmeans_sees_the_directions_of_an_even_sample(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def spy(points: Tensor, clusters: int, *, seed: int) -> Centroids:
        seen.append(points)
        return kmeans(points, clusters, seed=seed)

    monkeypatch.setattr(probe_module, "kmeans", spy)
    run(kind="kmeans")
    monkeypatch.setattr(probe_module, "SAMPLE", len(seen[0]) // 2 - 1)
    run(kind="kmeans")
    torch.testing.assert_close(seen[0].norm(dim=1), torch.ones(len(seen[0])))
    torch.testing.assert_close(seen[1], seen[0][::3])
