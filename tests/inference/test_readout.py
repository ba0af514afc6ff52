"""Which model is taken, and which images its k-means is fitted to."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densesiam_seg.errors import InputError, ModelError, UsageError
from densesiam_seg.images.decode import load_image
from densesiam_seg.images.scan import scan
from densesiam_seg.inference.centroids import fit_readout
from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.readout import GRID, RESTARTS, Clusters, load_with_readout
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.selection import Choice, judge
from densesiam_seg.network.model import Architecture, build_network

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
    segmenter: Segmenter, folder: Path, clusters: int, seed: int = 0
) -> list[list[list[int]]]:
    manifest = scan([folder])
    images = [load_image(manifest.path(index)) for index in range(len(manifest))]
    read = fit_readout(
        segmenter, lambda: images, len(images), clusters, seed=seed, restarts=RESTARTS
    )
    return [read.predict(image).tolist() for image in images[:2]]


def masks(segmenter: Segmenter, folder: Path) -> list[list[list[int]]]:
    manifest = scan([folder])
    return [segmenter.predict(manifest.path(index)).tolist() for index in range(2)]


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
        for age, stamp in enumerate(("20260102-000000", "20260101-000000", "mine")):
            copy = Path("runs") / "train" / stamp
            shutil.copytree(run, copy)
            card = json.loads((copy / "model" / "config.json").read_text())
            card["training"] = {"stamp": stamp}
            (copy / "model" / "config.json").write_text(json.dumps(card))
            os.utime(copy / "model" / "config.json", (1000 + age, 1000 + age))
        assert load_with_readout(**CPU).card.training == {"stamp": "mine"}

    def test_without_a_name_and_without_a_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelError, match="train one first"):
            load_with_readout()

    def test_device_and_precision_are_passed_on(self, run: Path) -> None:
        with pytest.raises(UsageError, match="--device tpu"):
            load_with_readout(run, device="tpu")
        with pytest.raises(UsageError, match="--precision fp8: give auto, fp32, bf16, fp16"):
            load_with_readout(run, device="cpu", precision="fp8")


class TestOptions:
    def test_unknown_readout(self, run: Path) -> None:
        with pytest.raises(UsageError, match="--readout tree: give head, kmeans, merge or auto"):
            load_with_readout(run, "tree")

    @pytest.mark.parametrize("options", [{"clusters": 3}, {"fit_images": ["images"]}])
    def test_options_of_kmeans_without_it(self, run: Path, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match="belong to --readout kmeans"):
            load_with_readout(run, **options)

    @pytest.mark.parametrize("clusters", [0, -1, 4097])
    def test_numbers_out_of_range(self, run: Path, clusters: int) -> None:
        with pytest.raises(UsageError, match=f"--clusters {clusters}: must be 1 to 4096"):
            load_with_readout(run, "kmeans", clusters, **CPU)


class TestKmeans:
    def test_fitted_to_the_training_images(
        self, run: Path, segmenter: Segmenter, image_folder: Path
    ) -> None:
        """By default with as many clusters as the head has."""
        read = load_with_readout(run, "kmeans", **CPU)
        assert (read.card.readout, read.card.clusters) == ("kmeans", 5)
        assert masks(read, image_folder) == expected_masks(segmenter, image_folder, 5)

    def test_the_model_of_a_run_knows_them_too(self, run: Path, image_folder: Path) -> None:
        one, two = (load_with_readout(path, "kmeans", **CPU) for path in (run, run / "model"))
        assert masks(one, image_folder) == masks(two, image_folder)

    def test_any_number_and_seed(self, run: Path, segmenter: Segmenter, image_folder: Path) -> None:
        read = load_with_readout(run, "kmeans", 9, seed=4, **CPU)
        assert read.card.clusters == 9
        assert masks(read, image_folder) == expected_masks(segmenter, image_folder, 9, seed=4)

    def test_images_of_ones_own(
        self, model_folder: Path, segmenter: Segmenter, image_folder: Path, tmp_path: Path
    ) -> None:
        for name in ("00.jpg", "01.png"):
            shutil.copy(image_folder / name, tmp_path)
        read = load_with_readout(model_folder, "kmeans", 4, [tmp_path], **CPU)
        assert masks(read, tmp_path) == expected_masks(segmenter, tmp_path, 4)

    def test_bad_files_are_passed_over(self, model_folder: Path, tmp_path: Path) -> None:
        draw = np.random.default_rng(0)
        for name in ("a.png", "c.png"):
            pixels = draw.integers(0, 256, (30, 30, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name)
        clean = load_with_readout(model_folder, "kmeans", 4, [tmp_path], **CPU)
        expected = masks(clean, tmp_path)
        (tmp_path / "b.png").write_bytes(b"junk")
        spoilt = load_with_readout(model_folder, "kmeans", 4, [tmp_path], **CPU)
        (tmp_path / "b.png").unlink()
        assert masks(spoilt, tmp_path) == expected

    def test_only_bad_files(self, model_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "b.png").write_bytes(b"junk")
        with pytest.raises(InputError, match="none of the images can be read"):
            load_with_readout(model_folder, "kmeans", 4, [tmp_path], **CPU)

    def test_too_few_pixels(self, model_folder: Path, tmp_path: Path) -> None:
        Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
        with pytest.raises(InputError, match="64 points cannot make 65 clusters"):
            load_with_readout(model_folder, "kmeans", 65, [tmp_path], **CPU)

    def test_a_model_that_does_not_tell_its_images(self, model_folder: Path) -> None:
        with pytest.raises(InputError, match=r"dataset\.json.*--fit-images"):
            load_with_readout(model_folder, "kmeans", **CPU)

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"names": 3}', "[" * 5000])
    def test_a_damaged_list(self, run: Path, content: str) -> None:
        (run / "dataset.json").write_text(content)
        with pytest.raises(InputError):
            load_with_readout(run, "kmeans", **CPU)

    def test_images_that_have_moved(self, run: Path) -> None:
        content = json.loads((run / "dataset.json").read_text())
        content["root"] = "/nowhere"
        (run / "dataset.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"/nowhere/00\.jpg: the training images have moved"):
            load_with_readout(run, "kmeans", **CPU)


class TestAuto:
    def told(
        self,
        run: Path,
        readout: str,
        clusters: Clusters = None,
        fit_images: list[str | Path] | None = None,
        *,
        over_clusters: int | None = None,
        seed: int = 0,
    ) -> tuple[Segmenter, Choice]:
        found: list[Choice] = []
        read = load_with_readout(
            run,
            readout,
            clusters,
            fit_images,
            over_clusters=over_clusters,
            seed=seed,
            tell=found.append,
            **CPU,
        )
        (choice,) = found
        return read, choice

    def test_the_best_of_the_three(self, run: Path) -> None:
        read, choice = self.told(run, "auto", over_clusters=20)
        names = [each.segmenter.readout for each in choice.candidates]
        assert names == ["head", "kmeans", "merge of 20"]
        assert {each.judgement.clusters for each in choice.candidates} == {5}
        assert read is choice.chosen.segmenter

    def test_each_is_fitted_as_by_its_own_name(self, run: Path, image_folder: Path) -> None:
        _, choice = self.told(run, "auto", over_clusters=20, seed=3)
        for each in choice.candidates:
            name = each.segmenter.card.readout
            fine = 20 if name == "merge" else None
            alone = load_with_readout(run, name, over_clusters=fine, seed=3, **CPU)
            assert masks(alone, image_folder) == masks(each.segmenter, image_folder)

    def test_the_judgement_is_that_of_the_training_images(
        self, run: Path, image_folder: Path
    ) -> None:
        _, choice = self.told(run, "auto", over_clusters=20, seed=3)
        manifest = scan([image_folder])
        images = [manifest.path(index) for index in range(len(manifest))]
        for each in choice.candidates:
            assert each.judgement == judge(each.segmenter, images, seed=3)

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
        with pytest.raises(InputError, match="the read-out needs images"):
            load_with_readout(tmp_path, "auto", 5, **CPU)

    def test_a_head_of_another_number_is_left_out(self, run: Path) -> None:
        _, choice = self.told(run, "auto", 7, over_clusters=20)
        assert [each.segmenter.card.readout for each in choice.candidates] == ["kmeans", "merge"]

    @pytest.mark.parametrize("readout", ["kmeans", "merge"])
    def test_a_number_of_clusters(self, run: Path, readout: str) -> None:
        read, choice = self.told(run, readout, "auto")
        tried = [each.judgement.clusters for each in choice.candidates]
        assert tried == sorted({5, *GRID})
        assert read.card.readout == readout
        assert read.card.clusters == choice.chosen.judgement.clusters

    def test_a_merge_has_no_more_than_its_over_clusters(self, run: Path) -> None:
        _, choice = self.told(run, "merge", "auto", over_clusters=10)
        assert [each.judgement.clusters for each in choice.candidates] == [4, 5, 6, 8]

    def test_a_saved_tree_is_cut_and_not_fitted_again(
        self, run: Path, image_folder: Path, tmp_path: Path
    ) -> None:
        saved = load_with_readout(run, "merge", 3, over_clusters=10, **CPU).save(tmp_path / "m")
        shutil.copy(run / "dataset.json", saved)
        _, choice = self.told(saved, "merge", "auto")
        assert [each.judgement.clusters for each in choice.candidates] == [3, 4, 6, 8]
        _, choice = self.told(saved, "merge", "auto", [image_folder])
        assert {each.segmenter.readout for each in choice.candidates} == {"merge of 200"}

    def test_nothing_is_told_where_nothing_is_chosen(self, run: Path) -> None:
        def never(choice: Choice) -> None:
            raise AssertionError

        for readout in ("head", "kmeans", "merge"):
            load_with_readout(run, readout, tell=never, **CPU)


class TestMerge:
    def test_fitted_to_the_training_images(self, run: Path) -> None:
        """By default to as many clusters as the head has, from 200."""
        read = load_with_readout(run, "merge", **CPU)
        assert (read.readout, read.card.clusters) == ("merge of 200", 5)

    def test_any_numbers(self, run: Path, segmenter: Segmenter, image_folder: Path) -> None:
        """The over-clusters are those of one start."""
        read = load_with_readout(run, "merge", 3, over_clusters=20, seed=4, **CPU)
        assert (read.readout, read.card.clusters) == ("merge of 20", 3)
        assert read.centroids is not None
        manifest = scan([image_folder])
        images = [load_image(manifest.path(index)) for index in range(len(manifest))]
        kmeans = fit_readout(segmenter, lambda: images, len(images), 20, seed=4)
        assert kmeans.centroids is not None
        np.testing.assert_array_equal(read.centroids, kmeans.centroids)

    def test_a_saved_one_is_cut_again_without_images(self, run: Path, tmp_path: Path) -> None:
        fitted = load_with_readout(run, "merge", 3, over_clusters=20, **CPU)
        folder = fitted.save(tmp_path / "saved")
        shutil.rmtree(run)
        as_saved = load_with_readout(folder, "merge", **CPU)
        assert as_saved.clusters == fitted.clusters
        assert load_with_readout(folder, **CPU).clusters == fitted.clusters
        assert (
            load_with_readout(folder, "merge", 7, **CPU).clusters
            == fitted.with_clusters(7).clusters
        )
        with pytest.raises(InputError, match="--fit-images"):
            load_with_readout(folder, "merge", 7, over_clusters=30, **CPU)

    @pytest.mark.parametrize(
        ("readout", "options", "words"),
        [
            ("head", {"over_clusters": 50}, "--over-clusters belongs to --readout merge and auto"),
            ("kmeans", {"over_clusters": 50}, "--over-clusters belongs to --readout merge"),
            ("merge", {"over_clusters": 1}, "--over-clusters 1: must be 2 to 1024"),
            ("merge", {"over_clusters": 1025}, "--over-clusters 1025: must be 2 to 1024"),
            ("merge", {"clusters": 0}, "--clusters 0: must be 1 to 4096"),
            ("merge", {"clusters": 201}, "--clusters 201: more than the 200 over-clusters"),
            ("merge", {"clusters": 8, "over_clusters": 7}, "more than the 7 over-clusters"),
        ],
    )
    def test_numbers_out_of_range(
        self, run: Path, readout: str, options: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(UsageError, match=words):
            load_with_readout(run, readout, **options, **CPU)
