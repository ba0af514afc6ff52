"""What each method and each kind of pre-training makes of a tiny run, from its settings to its model."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import pytest
import safetensors.torch
import torch
from PIL import Image
from tiny_runs import TinyRuns, end, files_of, stop_after
from torch import nn

from densesiam_seg.config import PretrainConfig, TrainConfig
from densesiam_seg.errors import InputError
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.images.store import ImageStore
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.methods import stage_cache
from densesiam_seg.network.architecture import Architecture, Features
from densesiam_seg.network.model import DenseSiam, build_network
from densesiam_seg.presets import METHODS
from densesiam_seg.training import setup
from densesiam_seg.training.recipes import begun, choose_settings
from densesiam_seg.training.train import run_events, train

HINTS = get_type_hints(PretrainConfig)
LOSSES = {
    "densesiam": {"prior"},
    "pixsim": {"pixel", "over_cluster", "segmentation"},
    "simsiam": {"image"},
    "picie": {"within", "across"},
    "mdc": {"within"},
}
PLAIN = LOSSES["pixsim"] | {"region"}

pytestmark = pytest.mark.usefixtures("slim_module")


def network_of(run: Path) -> DenseSiam:
    network: DenseSiam = Segmenter.load(run, device="cpu").network
    return network


def same_weights(one: nn.Module, other: nn.Module) -> None:
    """But for what an optimiser's step or two at hardly any rate changes; statistics of batches are left out."""
    first, second = one.state_dict(), other.state_dict()
    for name in (name for name in first if name.endswith("weight")):
        torch.testing.assert_close(first[name], second[name])


class TestSettings:
    def test_what_is_given_wins_over_the_methods_own(self) -> None:
        given = {"method": "picie", "optimizer": "sgd", "learning_rate": 0.01}
        name, config = choose_settings("train", None, 12, False, given)
        assert isinstance(config, TrainConfig) and name == "balanced"
        assert (config.optimizer, config.learning_rate) == ("sgd", 0.01)
        assert (config.rate_scaling, config.balance) == ("none", "none")

    def test_a_frozen_backbone_needs_no_prior(self) -> None:
        for given, prior in (({}, "mixture"), ({"freeze": True}, "none")):
            _, config = choose_settings("train", None, 12, False, given)
            assert isinstance(config, TrainConfig) and config.prior == prior


LITE = "timm:tf_efficientnet_lite0"
LEARNED = {"features": "stages", "freeze": True, "prior": "mixture"}


class TestHowTrainingBegins:
    """Which backbone is taken, and whether its weights count as pre-trained."""

    @pytest.mark.parametrize(
        ("given", "backbone", "learned"),
        [
            ({}, LITE, True),
            ({"weights": "packaged"}, LITE, True),
            ({"weights": "none"}, None, False),
            ({"weights": "imagenet"}, None, True),
            ({"backbone": "resnet18"}, "resnet18", False),
            ({"prior": "none"}, None, False),
            ({"method": "picie"}, None, False),
            ({"preset": "paper"}, None, False),
        ],
    )
    def test_by_what_is_given(
        self, given: dict[str, Any], backbone: str | None, learned: bool
    ) -> None:
        settings = {name: value for name, value in given.items() if name != "preset"}
        found, expected = begun("train", given.get("preset"), settings, None)
        assert (found.get("backbone"), expected) == (backbone, learned)
        assert begun("pretrain", None, settings, None) == (settings, False)

    def test_a_trained_network_goes_on_as_it_began(self) -> None:
        cases: tuple[tuple[Features, bool], ...] = (("stages", True), ("fpn", True), ("fpn", False))
        for features, mixture in cases:
            source = Architecture("resnet50", features=features, mixture=mixture)
            given, learned = begun("train", None, {}, source)
            assert given["backbone"] == "resnet50" and learned == (features == "stages")
            assert given.get("prior") == (None if mixture else "none")

    def test_another_runs_folder_brings_its_decoder(self, tmp_path: Path) -> None:
        given, learned = begun("train", None, {"weights": str(tmp_path)}, None)
        assert (given["prior"], given["features"], learned) == ("none", "fpn", False)

    @pytest.mark.parametrize(
        ("given", "learned", "changed"),
        [
            ({}, True, LEARNED),
            ({"prior": "none"}, True, {"features": "fpn", "freeze": False, "prior": "none"}),
            ({"features": "fpn"}, True, {"features": "fpn", "freeze": False, "prior": "none"}),
            ({}, False, {"features": "fpn", "freeze": False, "prior": "mixture"}),
        ],
    )
    def test_what_the_weights_change(
        self, given: dict[str, Any], learned: bool, changed: dict[str, Any]
    ) -> None:
        _, config = choose_settings("train", "balanced", 100, False, given, learned=learned)
        assert changed.items() <= vars(config).items()
        _, paper = choose_settings("train", "paper", 100, False, given, learned=learned)
        assert isinstance(paper, TrainConfig) and paper.prior == "none"


class TestFromPretrainedStages:
    @pytest.fixture
    def learned(self, one_epoch: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
        """Weights of a slim ResNet as a file."""
        path = tmp_path / "weights.safetensors"
        backbone = build_network(Architecture(channels=8, clusters=4), seed=3).encoder.backbone
        safetensors.torch.save_file(backbone.state_dict(), path)
        wanted = {**one_epoch, "weights": str(path), "epochs": 2}
        return {name: value for name, value in wanted.items() if name != "prior"}

    def test_the_backbone_is_as_it_was_and_the_model_segments(
        self, learned: dict[str, Any], tmp_path: Path
    ) -> None:
        trained = train(out=tmp_path / "a", **learned)
        assert trained.last is not None and trained.last.losses.keys() == {"pixel", "total"}
        config = tomllib.loads((tmp_path / "a/config.toml").read_text())
        assert LEARNED.items() <= config.items()
        segmenter = Segmenter.load(tmp_path / "a", device="cpu", precision="fp32")
        backbone = safetensors.torch.load_file(learned["weights"])
        for name, value in segmenter.network.encoder.backbone.state_dict().items():
            assert torch.equal(value, backbone[name])
        mask = segmenter.predict(learned["images"] / "00.jpg")
        assert mask.shape == (64, 64) and set(mask.flat) <= set(range(4))
        on = train(out=tmp_path / "b", **{**learned, "init_from": str(tmp_path / "a")})
        assert on.complete

    def test_no_epochs_are_the_start_alone(self, learned: dict[str, Any], tmp_path: Path) -> None:
        trained = train(out=tmp_path / "a", **{**learned, "epochs": 0})
        assert trained.complete and trained.last is None
        network = network_of(tmp_path / "a")
        weight, bias = network.projector.parameters()
        assert network.mixture is not None
        found = bool(weight.any()), bool(network.mixture.centres.any())
        assert sorted(found) == [False, True] and bool(bias.any()) == found[0]

    def test_images_are_stored_as_large_as_the_model_reads_them(
        self, learned: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sides = []

        def spied(manifest: Manifest, side: int, **options: Any) -> ImageStore:
            sides.append(side)
            return ImageStore(manifest, side, **options)

        monkeypatch.setattr(setup, "ImageStore", spied)
        train(out=tmp_path / "a", **{**learned, "epochs": 0})
        segmenter = Segmenter.load(tmp_path / "a", device="cpu", precision="fp32")
        assert sides == [segmenter.shown_side] == [3 * segmenter.card.image_size]

    def test_a_run_that_goes_on_ends_with_the_same_bytes(
        self, learned: dict[str, Any], tmp_path: Path
    ) -> None:
        end(run_events("train", out=tmp_path / "a", **learned))
        for step in (1, 3, 4):
            run = tmp_path / f"b{step}"
            stop_after(step, run_events("train", out=run, **learned))
            end(run_events("train", [], out=run, resume=True))
            assert files_of(tmp_path / "a/model") == files_of(run / "model")


@pytest.fixture
def one_epoch(runs: TinyRuns, tiny_settings: dict[str, Any]) -> dict[str, Any]:
    """Of `train` as its preset would have it; the region loss, if there is one, is on from the beginning."""
    return {"images": runs.images, **tiny_settings, "epochs": 1, "region_start": 0}


class TestMethods:
    @pytest.mark.parametrize("method", list(METHODS))
    def test_each_learns_what_it_says_and_ends_with_a_model(
        self, one_epoch: dict[str, Any], tmp_path: Path, method: str
    ) -> None:
        trained = train(out=tmp_path, method=method, **one_epoch)
        assert trained.complete and trained.last is not None
        assert trained.last.losses.keys() == LOSSES[method] | {"total"}
        config = tomllib.loads((tmp_path / "config.toml").read_text())
        assert METHODS[method].items() <= config.items()
        segmenter = Segmenter.load(tmp_path, device="cpu", precision="fp32")
        own_head = method in ("densesiam", "pixsim")
        assert segmenter.card.readout == ("head" if own_head else "kmeans")
        assert (segmenter.card.clusters, len(segmenter.clusters)) == (4, 4)
        assert sum(cluster.share or 0.0 for cluster in segmenter.clusters) == pytest.approx(1)
        mask = segmenter.predict(one_epoch["images"] / "00.jpg")
        assert mask.shape == (64, 64) and set(mask.flat) <= set(range(4))

    def test_pixsim_is_densesiam_without_regions(
        self, one_epoch: dict[str, Any], tmp_path: Path
    ) -> None:
        train(out=tmp_path / "a", **one_epoch, method="pixsim")
        train(out=tmp_path / "b", **one_epoch, region_weight=0.0, prior="none")
        assert files_of(tmp_path / "a/model") == files_of(tmp_path / "b/model")

    def test_the_image_loss_beside_the_others(
        self, one_epoch: dict[str, Any], tmp_path: Path
    ) -> None:
        last = train(out=tmp_path, image_weight=0.5, **one_epoch).last
        assert last is not None and last.spread is not None
        assert last.losses.keys() == LOSSES["densesiam"] | {"image", "total"}
        assert len(last.shares) == 4
        assert Segmenter.load(tmp_path, device="cpu").card.readout == "head"

    @pytest.mark.parametrize("option", ["weights", "init_from"])
    @pytest.mark.parametrize(
        ("first", "given", "losses"),
        [
            ("none", {}, PLAIN),
            ("mixture", {}, LOSSES["densesiam"]),
            ("none", {"prior": "mixture"}, LOSSES["densesiam"]),
        ],
    )
    def test_weights_make_it_the_plain_method_unless_a_prior_taught_them_or_is_given(
        self,
        one_epoch: dict[str, Any],
        tmp_path: Path,
        option: str,
        first: str,
        given: dict[str, Any],
        losses: set[str],
    ) -> None:
        train(out=tmp_path / "a", **one_epoch, prior=first)
        options = {**one_epoch, "learning_rate": 1e-12, option: str(tmp_path / "a"), **given}
        last = train(out=tmp_path / "b", **options).last
        if option == "weights" and not given:
            losses = PLAIN  # an encoder is all that is taken over, whatever taught it
        assert last is not None and last.losses.keys() == losses | {"total"}
        one, other = (network_of(tmp_path / run) for run in ("a", "b"))
        same_weights(one.encoder.backbone, other.encoder.backbone)
        if option == "init_from":
            same_weights(one.projector, other.projector)

    def test_more_clusters_than_pixels_are_refused(
        self, one_epoch: dict[str, Any], tmp_path: Path
    ) -> None:
        """Twelve views of 8 × 8 features each."""
        options = {**one_epoch, "method": "picie", "clusters": 769}
        with pytest.raises(InputError, match="768 points cannot make 769 clusters"):
            train(out=tmp_path, **options)


class TestFrozenBackbone:
    def test_kept_features_lead_to_the_same_model(
        self, runs: TinyRuns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stage_cache, "free_space", lambda folder: 10**9)
        options: dict[str, Any] = {
            "freeze": True,
            "replay": "run",
            "cache_dir": str(runs.folder / "cache"),
        }
        for name, cache in (("without", "none"), ("written", "disk"), ("read", "disk")):
            end(runs.begin(name, **options, cache=cache))
            found = files_of(runs.folder / name / "model")
            assert found == files_of(runs.folder / "without" / "model")

    @pytest.mark.parametrize("method", ["densesiam", "picie"])
    def test_pictures_and_other_methods_leave_it_alone(self, runs: TinyRuns, method: str) -> None:
        end(runs.begin(method=method, visualize_every=1, freeze=True))
        born = build_network(Architecture("resnet18", 16, 4, 6), 0).encoder.backbone.state_dict()
        found = network_of(runs.path).encoder.backbone.state_dict()
        assert all(torch.equal(found[name], value) for name, value in born.items())


class TestPretraining:
    @pytest.mark.parametrize("correspondence", get_args(HINTS["correspondence"]))
    def test_every_correspondence(self, runs: TinyRuns, correspondence: str) -> None:
        last = end(runs.begin(command="pretrain", epochs=1, correspondence=correspondence)).last
        assert last is not None
        dense = correspondence != "none"
        assert last.losses.keys() == {"image", "total"} | ({"pixel", "region"} if dense else set())
        assert len(last.shares) == (5 if dense else 0)
        segmenter = Segmenter.load(runs.path, device="cpu")
        assert segmenter.predict(runs.images / "00.jpg").max() < 5
        shares = [cluster.share for cluster in segmenter.clusters]
        assert segmenter.card.readout == ("head" if dense else "kmeans")
        assert shares == last.shares or not dense
        assert sum(share or 0.0 for share in shares) == pytest.approx(1.0)

    @pytest.mark.parametrize("sampling", get_args(HINTS["sampling"]))
    @pytest.mark.parametrize("features", ["fpn", "res5"])
    def test_every_sampling_on_either_features(
        self, runs: TinyRuns, sampling: str, features: Literal["fpn", "res5"]
    ) -> None:
        options: dict[str, Any] = {"epochs": 1, "sampling": sampling, "features": features}
        last = end(runs.begin(command="pretrain", **options)).last
        assert last is not None and last.losses.keys() == {"image", "pixel", "region", "total"}
        assert all(math.isfinite(value) for value in last.losses.values())
        total = last.losses["image"] + last.losses["pixel"] + 0.1 * last.losses["region"]
        assert last.losses["total"] == pytest.approx(total, rel=1e-5, abs=1e-6)
        assert last.spread is not None and 0.3 < last.spread <= 1
        architecture = Architecture(
            channels=16, clusters=5, over_clusters=0, features=features, image_head=True
        )
        assert network_of(runs.path).architecture == architecture

    @pytest.mark.parametrize(
        ("weights", "losses"),
        [
            ({"image_weight": 0.0}, {"pixel", "region"}),
            ({"region_weight": 0.0}, {"image", "pixel"}),
            ({"pixel_weight": 0.0}, {"image", "region"}),
            ({"pixel_weight": 0.0, "region_weight": 0.0}, {"image"}),
        ],
    )
    def test_a_loss_of_no_weight_is_not_there(
        self, runs: TinyRuns, weights: dict[str, Any], losses: set[str]
    ) -> None:
        last = end(runs.begin(command="pretrain", epochs=1, **weights)).last
        assert last is not None and last.losses.keys() == losses | {"total"}
        assert (network_of(runs.path).image_projector is None) == ("image" not in losses)

    def test_few_images_of_any_shape_and_few_channels(self, runs: TinyRuns) -> None:
        """Narrow ones too, of which no crop of the wanted aspect has the wanted area; a quarter of two channels."""
        folder = runs.folder / "images"
        folder.mkdir()
        for number, size in enumerate([(64, 64), (200, 20), (20, 200), (90, 60)]):
            Image.radial_gradient("L").resize(size).save(folder / f"{number}.png")
        courses: dict[str, dict[str, Any]] = {
            "many": {"images": folder, "channels": 2},
            "one": {"images": folder / "0.png", "grid": 1, "batch_size": 1},
            "plain": {"images": folder / "0.png", "batch_size": 1, "correspondence": "none"},
        }
        for out, options in courses.items():
            last = end(runs.begin(out, command="pretrain", epochs=1, **options)).last
            assert last is not None
            assert all(math.isfinite(value) for value in last.losses.values())

    @pytest.mark.parametrize("features", ["fpn", "res5"])
    def test_train_starts_from_its_weights(self, runs: TinyRuns, features: str) -> None:
        source = end(runs.begin("old", command="pretrain", epochs=1, features=features)).run
        trained = end(runs.begin("new", weights=str(source), learning_rate=1e-12, epochs=1))
        old, new = network_of(source).encoder, network_of(trained.run).encoder
        same_weights(old.backbone, new.backbone)
        if features == "fpn":
            assert old.decoder is not None and new.decoder is not None
            same_weights(old.decoder, new.decoder)
