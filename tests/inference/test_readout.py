"""Which model is taken, and which images its k-means is fitted to."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photographs import junk, picture
from stored_models import seal_again

from densesiam_seg.errors import InputError, ModelError, UsageError
from densesiam_seg.images.decode import load_image
from densesiam_seg.images.scan import scan
from densesiam_seg.inference.centroids import fit_readout
from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.readout import GRID, RESTARTS, Clusters, load_with_readout
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.selection import Choice, choose
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import build_network

CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


@pytest.fixture
def run(model_folder: Path, image_folder: Path, tmp_path: Path) -> Path:
    """A finished run, with the list of its training images."""
    folder = tmp_path / "run"
    shutil.copytree(model_folder, folder / "model")
    manifest = scan([image_folder])
    (folder / "dataset.json").write_text(json.dumps(manifest.to_dict()))
    return folder


def expected_masks(
    segmenter: Segmenter, paths: list[str], clusters: int, seed: int = 0
) -> list[list[list[int]]]:
    """By k-means of whole decoded images."""
    images = [load_image(path) for path in paths]
    read = fit_readout(
        segmenter, lambda: images, len(images), clusters, seed=seed, restarts=RESTARTS
    )
    return [read.predict(image).tolist() for image in images[:2]]


def masks(segmenter: Segmenter, paths: list[str]) -> list[list[list[int]]]:
    return [segmenter.predict(path).tolist() for path in paths[:2]]


class TestModel:
    @pytest.mark.parametrize("name", ["", "model"])
    def test_a_run_or_its_model(self, run: Path, segmenter: Segmenter, name: str) -> None:
        loaded = load_with_readout(run / name, **CPU)
        assert loaded.card == segmenter.card
        image = np.full((9, 9, 3), 80, np.uint8)
        np.testing.assert_array_equal(loaded.predict(image), segmenter.predict(image))

    def test_without_a_name_the_latest(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelError, match="train one first"):
            load_with_readout()
        for age, stamp in enumerate(("20260102-000000", "20260101-000000", "mine")):
            copy = Path("runs") / "train" / stamp
            shutil.copytree(run, copy)

            def stamped(card: dict[str, Any], stamp: str = stamp) -> None:
                card["training"] = {"stamp": stamp}

            seal_again(copy / "model", stamped)
            os.utime(copy / "model" / "config.json", (1000 + age, 1000 + age))
        assert load_with_readout(**CPU).card.training == {"stamp": "mine"}


@pytest.mark.parametrize(
    ("readout", "options", "words"),
    [
        ("tree", {}, "--readout tree: give head, kmeans, merge or auto"),
        ("head", {"device": "tpu"}, "--device tpu"),
        ("head", {"precision": "fp8"}, "--precision fp8"),
        ("head", {"clusters": 3}, "belong to --readout kmeans"),
        ("head", {"fit_images": ["images"]}, "belong to --readout kmeans"),
        ("head", {"over_clusters": 50}, "--over-clusters belongs to --readout merge and auto"),
        ("kmeans", {"over_clusters": 50}, "--over-clusters belongs to --readout merge"),
        ("kmeans", {"clusters": 4097}, "--clusters 4097: must be 1 to 4096"),
        ("merge", {"clusters": 0}, "--clusters 0: must be 1 to 4096"),
        ("merge", {"over_clusters": 1}, "--over-clusters 1: must be 2 to 1024"),
        ("merge", {"over_clusters": 1025}, "--over-clusters 1025: must be 2 to 1024"),
        ("merge", {"clusters": 201}, "--clusters 201: more than the 200 over-clusters"),
        ("merge", {"clusters": 8, "over_clusters": 7}, "more than the 7 over-clusters"),
    ],
)
def test_options_that_are_refused(
    run: Path, readout: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        load_with_readout(run, readout, **{**CPU, **options})


class TestKmeans:
    def test_fitted_to_the_training_images(
        self, run: Path, segmenter: Segmenter, paths: list[str]
    ) -> None:
        """By default with as many clusters as the head has; the model of a run knows them too."""
        for path in (run, run / "model"):
            read = load_with_readout(path, "kmeans", **CPU)
            assert (read.card.readout, read.card.clusters) == ("kmeans", 5)
            assert masks(read, paths) == expected_masks(segmenter, paths, 5)

    def test_any_number_and_seed(self, run: Path, segmenter: Segmenter, paths: list[str]) -> None:
        read = load_with_readout(run, "kmeans", 9, seed=4, **CPU)
        assert read.card.clusters == 9
        assert masks(read, paths) == expected_masks(segmenter, paths, 9, seed=4)

    def test_images_of_ones_own(
        self, model_folder: Path, segmenter: Segmenter, paths: list[str], tmp_path: Path
    ) -> None:
        """Those that cannot be read are passed over."""
        read = load_with_readout(model_folder, "kmeans", 4, paths[:2], **CPU)
        expected = expected_masks(segmenter, paths[:2], 4)
        assert masks(read, paths) == expected
        with_bad = [paths[0], str(junk(tmp_path / "b.png")), paths[1]]
        read = load_with_readout(model_folder, "kmeans", 4, with_bad, **CPU)
        assert masks(read, paths) == expected

    def test_too_few_pixels(self, model_folder: Path, tmp_path: Path) -> None:
        picture(tmp_path / "a.png", 32, 32)
        with pytest.raises(InputError, match="64 points cannot make 65 clusters"):
            load_with_readout(model_folder, "kmeans", 65, [tmp_path], **CPU)

    @pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"names": 3}', "[" * 5000])
    def test_a_model_that_does_not_tell_its_images(self, run: Path, content: str | None) -> None:
        (run / "dataset.json").unlink()
        if content is not None:
            (run / "dataset.json").write_text(content)
        with pytest.raises(InputError, match=r"dataset\.json.*--fit-images|list of files: damaged"):
            load_with_readout(run, "kmeans", **CPU)

    def test_images_that_have_moved(self, run: Path) -> None:
        content = json.loads((run / "dataset.json").read_text())
        content["root"] = "/nowhere"
        (run / "dataset.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"/nowhere/00\.jpg: the training images have moved"):
            load_with_readout(run, "kmeans", **CPU)


def told(
    run: Path, readout: str, clusters: Clusters = None, **options: Any
) -> tuple[Segmenter, Choice]:
    """The read-out that was chosen, and what was told of the choice."""
    found: list[Choice] = []
    read = load_with_readout(run, readout, clusters, **options, **CPU, tell=found.append)
    (choice,) = found
    return read, choice


def numbers(choice: Choice) -> list[int]:
    return [each.quality.clusters for each in choice.candidates]


class TestAuto:
    def test_the_best_of_the_three(self, run: Path, paths: list[str]) -> None:
        """Each is fitted as by its own name and judged on the training images."""
        read, choice = told(run, "auto", over_clusters=20, seed=3)
        names = [each.segmenter.readout for each in choice.candidates]
        assert names == ["head", "kmeans", "merge of 20"]
        assert numbers(choice) == [5, 5, 5]
        assert read is choice.chosen.segmenter
        judged = choose([each.segmenter for each in choice.candidates], paths, seed=3)
        assert choice == judged
        for each in choice.candidates:
            name = each.segmenter.card.readout
            fine = 20 if name == "merge" else None
            alone = load_with_readout(run, name, over_clusters=fine, seed=3, **CPU)
            assert masks(alone, paths) == masks(each.segmenter, paths)

    def test_a_model_with_a_mixture_is_read_by_its_head(self, tmp_path: Path) -> None:
        """Without a look at any image, unless another number of clusters is asked for."""
        architecture = Architecture(channels=16, clusters=4, over_clusters=0, mixture=True)
        network = build_network(architecture, seed=0)
        Segmenter(network, ModelCard(architecture, 32, clusters=4), device="cpu").save(
            tmp_path / "model"
        )
        for clusters in (None, 4):
            read = load_with_readout(tmp_path, "auto", clusters, **CPU)
            assert read.card.readout == "head"
        with pytest.raises(InputError, match="images are needed"):
            load_with_readout(tmp_path, "auto", 5, **CPU)

    def test_a_head_of_another_number_is_left_out(self, run: Path) -> None:
        _, choice = told(run, "auto", 7, over_clusters=20)
        assert [each.segmenter.card.readout for each in choice.candidates] == ["kmeans", "merge"]

    @pytest.mark.parametrize("readout", ["kmeans", "merge"])
    def test_a_number_of_clusters(self, run: Path, readout: str) -> None:
        read, choice = told(run, readout, "auto")
        assert numbers(choice) == sorted({5, *GRID})
        assert read.card.readout == readout
        assert read.card.clusters == choice.chosen.quality.clusters

    def test_a_saved_tree_is_cut_and_not_fitted_again(
        self, run: Path, paths: list[str], tmp_path: Path
    ) -> None:
        """It has no more clusters than its over-clusters."""
        saved = load_with_readout(run, "merge", 3, over_clusters=10, **CPU).save(tmp_path / "m")
        shutil.copy(run / "dataset.json", saved)
        _, choice = told(saved, "merge", "auto")
        assert numbers(choice) == [3, 4, 6, 8]
        _, choice = told(saved, "merge", "auto", fit_images=paths, over_clusters=20)
        assert {each.segmenter.readout for each in choice.candidates} == {"merge of 20"}


class TestMerge:
    def test_fitted_to_the_training_images(self, run: Path) -> None:
        """By default to as many clusters as the head has, from 200."""
        read = load_with_readout(run, "merge", **CPU)
        assert (read.readout, read.card.clusters) == ("merge of 200", 5)

    def test_any_numbers(self, run: Path, segmenter: Segmenter, paths: list[str]) -> None:
        """The over-clusters are those of one start."""
        read = load_with_readout(run, "merge", 3, over_clusters=20, seed=4, **CPU)
        assert (read.readout, read.card.clusters) == ("merge of 20", 3)
        kmeans = fit_readout(segmenter, lambda: paths, len(paths), 20, seed=4)
        assert read.centroids is not None and kmeans.centroids is not None
        np.testing.assert_array_equal(read.centroids, kmeans.centroids)

    def test_a_saved_one_is_cut_again_without_images(self, run: Path, tmp_path: Path) -> None:
        fitted = load_with_readout(run, "merge", 3, over_clusters=20, **CPU)
        folder = fitted.save(tmp_path / "saved")
        for readout in ("head", "merge"):
            assert load_with_readout(folder, readout, **CPU).clusters == fitted.clusters
        cut = load_with_readout(folder, "merge", 7, **CPU)
        assert cut.clusters == fitted.with_clusters(7).clusters
        with pytest.raises(InputError, match="--fit-images"):
            load_with_readout(folder, "merge", 7, over_clusters=30, **CPU)
