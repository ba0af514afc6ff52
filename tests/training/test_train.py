"""What is `train`'s own: its methods, what each of them learns and is read out by; `test_running` has the runs."""

from __future__ import annotations

import os
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densesiam_seg.config import TrainConfig
from densesiam_seg.errors import InputError, StoppedError, UsageError
from densesiam_seg.events import Event, StepRecord, Trained
from densesiam_seg.images.decode import load_square
from densesiam_seg.inference.centroids import fit_readout
from densesiam_seg.inference.segmenter import ModelCard, Segmenter
from densesiam_seg.methods import feature_cache as stagecache
from densesiam_seg.network.model import Architecture, DenseSiam, build_network
from densesiam_seg.presets import METHODS
from densesiam_seg.training.train import train, training_events

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
LOSSES = {
    "densesiam": {"prior"},
    "pixsim": {"pixel", "over_cluster", "segmentation"},
    "simsiam": {"image"},
    "picie": {"within", "across"},
    "mdc": {"within"},
}
OWN_HEAD = ("densesiam", "pixsim")

pytestmark = pytest.mark.usefixtures("slim_module")


@pytest.fixture
def one_epoch(tiny_settings: dict[str, Any]) -> dict[str, Any]:
    """With the region loss from its beginning on."""
    return {**tiny_settings, "epochs": 1, "region_start": 0}


class TestTrain:
    def test_it_returns_the_last_event(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path
    ) -> None:
        paths: list[str | Path] = [str(path) for path in image_folder.iterdir()]
        trained = train(paths, str(tmp_path / "a"), **one_epoch)
        assert trained.complete and trained.model == tmp_path / "a" / "model"
        *_, last = training_events([image_folder], out=tmp_path / "b", **one_epoch)
        assert isinstance(last, Trained) and last.last == trained.last

    def test_one_folder_needs_no_list(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path
    ) -> None:
        assert train(str(image_folder), tmp_path / "run", **one_epoch).complete

    def test_settings_of_pre_training_are_unknown(self, image_folder: Path, tmp_path: Path) -> None:
        for name, value in (("categories", 5), ("grid", 3), ("correspondence", "none")):
            with pytest.raises(UsageError, match=f"unknown setting '{name}'"):
                train(image_folder, tmp_path / "run", **{name: value})
        assert not (tmp_path / "run").exists()


def network_of(run: Path) -> DenseSiam:
    network: DenseSiam = Segmenter.load(run, device="cpu").network
    return network


def same_weights(one: nn.Module, other: nn.Module) -> None:
    """But for what an optimiser's step or two at hardly any rate changes; statistics of batches are left out."""
    first, second = one.state_dict(), other.state_dict()
    for name in (name for name in first if name.endswith("weight")):
        torch.testing.assert_close(first[name], second[name])


class TestMethods:
    @pytest.mark.parametrize("method", list(METHODS))
    def test_each_learns_what_it_says_and_ends_with_a_model(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path, method: str
    ) -> None:
        trained = train(image_folder, tmp_path, method=method, **one_epoch)
        assert trained.complete and trained.last is not None
        assert trained.last.losses.keys() == LOSSES[method] | {"total"}
        config = tomllib.loads((tmp_path / "config.toml").read_text())
        wanted = {**METHODS[method], **one_epoch, "method": method}
        assert {name: config[name] for name in wanted} == wanted
        segmenter = Segmenter.load(tmp_path, device="cpu", precision="fp32")
        assert segmenter.card.readout == ("head" if method in OWN_HEAD else "kmeans")
        assert (segmenter.card.clusters, len(segmenter.clusters)) == (4, 4)
        assert sum(cluster.share or 0.0 for cluster in segmenter.clusters) == pytest.approx(1)
        assert segmenter.card.training["command"] == "train"
        mask = segmenter.predict(image_folder / "00.jpg")
        assert mask.shape == (64, 64) and set(mask.flat) <= set(range(4))

    def test_pixsim_is_densesiam_without_regions(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path
    ) -> None:
        train(image_folder, tmp_path / "a", **one_epoch, method="pixsim")
        train(image_folder, tmp_path / "b", **one_epoch, region_weight=0.0, prior="none")
        one, two = (
            (tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("a", "b")
        )
        assert one == two

    def test_what_is_given_wins_over_the_methods_own(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path
    ) -> None:
        train(
            image_folder,
            tmp_path,
            **{**one_epoch, "method": "picie", "optimizer": "sgd", "learning_rate": 0.01},
        )
        config = TrainConfig(**tomllib.loads((tmp_path / "config.toml").read_text()))
        assert (config.optimizer, config.learning_rate) == ("sgd", 0.01)
        assert (config.rate_scaling, config.balance) == ("none", "none")

    def test_the_image_loss_beside_the_others(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path
    ) -> None:
        last = train(image_folder, tmp_path, image_weight=0.5, **one_epoch).last
        assert last is not None and last.spread is not None
        assert last.losses.keys() == LOSSES["densesiam"] | {"image", "total"}
        assert len(last.shares) == 4
        assert Segmenter.load(tmp_path, device="cpu").card.readout == "head"

    def test_weights_make_it_the_plain_method_unless_a_prior_is_given(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path
    ) -> None:
        train(image_folder, tmp_path / "a", **one_epoch)
        options = {**one_epoch, "learning_rate": 1e-12, "weights": str(tmp_path / "a")}
        for out, given, losses in (
            ("plain", {}, LOSSES["pixsim"] | {"region"}),
            ("mixture", {"prior": "mixture"}, LOSSES["densesiam"]),
        ):
            last = train(image_folder, tmp_path / out, **options, **given).last
            assert last is not None and last.losses.keys() == losses | {"total"}
            one, other = (network_of(tmp_path / run).encoder.backbone for run in ("a", out))
            same_weights(one, other)

    @pytest.mark.parametrize(
        ("first", "given", "losses"),
        [
            ("none", {}, LOSSES["pixsim"] | {"region"}),
            ("mixture", {}, LOSSES["densesiam"]),
            ("none", {"prior": "mixture"}, LOSSES["densesiam"]),
        ],
    )
    def test_a_run_that_starts_from_another_has_its_method(
        self,
        image_folder: Path,
        one_epoch: dict[str, Any],
        tmp_path: Path,
        first: str,
        given: dict[str, Any],
        losses: set[str],
    ) -> None:
        train(image_folder, tmp_path / "a", **one_epoch, prior=first)
        options = {**one_epoch, "learning_rate": 1e-12, "init_from": tmp_path / "a", **given}
        last = train(image_folder, tmp_path / "b", **options).last
        assert last is not None and last.losses.keys() == losses | {"total"}
        same_weights(*(network_of(tmp_path / run).projector for run in ("a", "b")))

    def test_more_clusters_than_pixels_are_refused(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path
    ) -> None:
        """Twelve views of 8 × 8 features each."""
        options = {**one_epoch, "method": "picie", "clusters": 769}
        with pytest.raises(InputError, match="768 points cannot make 769 clusters") as caught:
            train(image_folder, tmp_path, **options)
        assert caught.value.exit_code == 3


class TestReadout:
    """Where no head learns the clusters, k-means of the features of the training images finds them at the end."""

    def squares(self, folder: Path) -> Iterator[Tensor]:
        for path in sorted(folder.iterdir()):
            yield load_square(path, 64)

    @pytest.mark.parametrize("method", ["simsiam", "mdc"])
    def test_it_is_that_of_the_trained_features(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path, method: str
    ) -> None:
        train(image_folder, tmp_path, method=method, **one_epoch)
        found = Segmenter.load(tmp_path, device="cpu", precision="fp32")
        network = found.network
        card = ModelCard(network.architecture, 32, clusters=4)
        fitted = fit_readout(
            Segmenter(network, card, device="cpu", precision="fp32"),
            lambda: self.squares(image_folder),
            12,
            4,
            seed=0,
        )
        assert found.centroids is not None and fitted.centroids is not None
        assert torch.equal(found.centroids, fitted.centroids)
        assert found.clusters == fitted.clusters
        assert found.card.training["steps"] == 3

    def test_a_head_that_only_over_clusters_is_not_read_out(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path
    ) -> None:
        weights = {"pixel_weight": 0.0, "segmentation_weight": 0.0, "region_weight": 0.0}
        weights |= {"prior_weight": 0.0, "over_cluster_weight": 1.0}
        last = train(image_folder, tmp_path, **{**one_epoch, **weights}).last
        assert last is not None and last.losses.keys() == {"over_cluster", "total"}
        assert Segmenter.load(tmp_path, device="cpu").card.readout == "kmeans"

    @pytest.mark.parametrize("method", ["simsiam", "picie"])
    def test_a_run_that_ran_out_of_time_has_one_too(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path, method: str
    ) -> None:
        trained = train(image_folder, tmp_path, method=method, max_time=0, **one_epoch)
        assert not trained.complete and trained.last is None
        segmenter = Segmenter.load(tmp_path, device="cpu")
        assert (segmenter.card.readout, segmenter.card.training["steps"]) == ("kmeans", 1)
        assert train([], tmp_path, resume=True).complete

    @posix
    def test_a_stop_before_it_changes_nothing(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path
    ) -> None:
        options = {**one_epoch, "method": "simsiam"}
        train(image_folder, tmp_path / "whole", **options)
        with pytest.raises(StoppedError, match="after step 3 of 3"):
            for event in training_events([image_folder], out=tmp_path / "run", **options):
                self.stop_at_the_last_step(event)
        assert not (tmp_path / "run" / "model").exists()
        train([], tmp_path / "run", resume=True)
        for path in (tmp_path / "whole" / "model").iterdir():
            assert path.read_bytes() == (tmp_path / "run" / "model" / path.name).read_bytes()

    def stop_at_the_last_step(self, event: Event) -> None:
        if isinstance(event, StepRecord) and event.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


class TestFrozenBackbone:
    @pytest.fixture
    def settings(
        self, tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> dict[str, Any]:
        monkeypatch.setattr(stagecache, "free_space", lambda folder: 10**9)
        caches = {"cache_dir": str(tmp_path / "cache"), "cache": "none"}
        return {**tiny_settings, **caches, "freeze": True, "replay": "run"}

    def test_kept_features_lead_to_the_same_model(
        self, image_folder: Path, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        train(image_folder, tmp_path / "without", **settings)
        for name in ("written", "read"):
            train(image_folder, tmp_path / name, **{**settings, "cache": "disk"})
            found = (tmp_path / name / "model" / "model.safetensors").read_bytes()
            assert found == (tmp_path / "without" / "model" / "model.safetensors").read_bytes()

    @posix
    def test_a_stopped_run_goes_on_to_it_too(
        self, image_folder: Path, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        settings = {**settings, "cache": "disk"}
        train(image_folder, tmp_path / "whole", **settings)
        with pytest.raises(StoppedError):
            for event in training_events([image_folder], out=tmp_path / "run", **settings):
                if isinstance(event, StepRecord) and event.step == 4:
                    os.kill(os.getpid(), signal.SIGTERM)
        train([], tmp_path / "run", resume=True)
        found = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
        assert found == (tmp_path / "whole" / "model" / "model.safetensors").read_bytes()

    @pytest.mark.parametrize("method", ["densesiam", "picie"])
    def test_pictures_and_other_methods_leave_it_alone(
        self, image_folder: Path, settings: dict[str, Any], tmp_path: Path, method: str
    ) -> None:
        more = {"method": method, "visualize_every": 1, "replay": "epoch"}
        train(image_folder, tmp_path / "run", **{**settings, **more})
        architecture = Architecture("resnet18", 16, 4, 6)
        born = build_network(architecture, 0).encoder.backbone.state_dict()
        network = Segmenter.load(tmp_path / "run", device="cpu").network
        found = network.encoder.backbone.state_dict()
        assert all(torch.equal(found[name], value) for name, value in born.items())
