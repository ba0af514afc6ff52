"""`pretrain` from end to end on tiny images: its run directory, its model, every strategy, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import tomllib
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from PIL import Image

from densesiam_seg.config import PretrainConfig, RunConfig
from densesiam_seg.errors import InputError, ModelError, StoppedError, UsageError
from densesiam_seg.events import EpochRecord, Event, Notice, Progress, Started, StepRecord, Trained
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.lock import LOCK
from densesiam_seg.io.records import read_records
from densesiam_seg.io.run_directory import RUN_NAMES, read_status
from densesiam_seg.network.model import Architecture
from densesiam_seg.training import loop
from densesiam_seg.training.pretrain import pretrain, pretraining_events
from densesiam_seg.training.train import train

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
HINTS = get_type_hints(PretrainConfig)

pytestmark = pytest.mark.usefixtures("slim_module")


@pytest.fixture(scope="module")
def tiny(tiny_settings: dict[str, Any]) -> dict[str, Any]:
    """Three epochs of three steps on 5 pseudo categories and 2 × 2 places."""
    known = vars(PretrainConfig())
    common = {name: value for name, value in tiny_settings.items() if name in known}
    return {**common, "categories": 5, "grid": 2}


@pytest.fixture(scope="module")
def one_epoch(tiny: dict[str, Any]) -> dict[str, Any]:
    return {**tiny, "epochs": 1}


@pytest.fixture(scope="module")
def finished(
    image_folder: Path, tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Event]]:
    """An uninterrupted run, for reading only, and its events."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, list(pretraining_events([image_folder], out=out, **tiny))


@pytest.fixture(scope="module")
def reference(finished: tuple[Path, list[Event]]) -> Path:
    return finished[0]


def same_end(run: Path, reference: Path) -> None:
    """Every byte of the model, every record but its time, and the status are the reference's."""
    for path in (reference / "model").iterdir():
        assert (run / "model" / path.name).read_bytes() == path.read_bytes(), path.name
    one, two = (
        [{**record, "seconds": 0.0} for record in read_records(folder / "metrics.jsonl")]
        for folder in (run, reference)
    )
    assert one == two
    assert read_status(run)["status"] == "done"


def stop_after(step: int, images: Path, out: Path, **options: Any) -> StoppedError:
    with pytest.raises(StoppedError) as caught:
        for event in pretraining_events([images], out=out, **options):
            if isinstance(event, StepRecord) and event.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
    return caught.value


class TestRun:
    def test_events_come_in_order(self, finished: tuple[Path, list[Event]]) -> None:
        run, events = finished
        assert events[:12] == [Progress("reading images", done, 12) for done in range(1, 13)]
        assert [type(event).__name__ for event in events[12:]] == [
            *["Notice", "Notice", "Started"],
            *["StepRecord", "StepRecord", "StepRecord", "EpochRecord"] * 3,
            "Trained",
        ]
        last = events[-2]
        assert isinstance(last, EpochRecord)
        assert events[-1] == Trained(run, run / "model", last, complete=True)
        assert not [event for event in events if isinstance(event, Notice) and event.warning]

    def test_the_folder_is_like_that_of_train(self, reference: Path, tiny: dict[str, Any]) -> None:
        names = {path.name for path in reference.iterdir()}
        assert names - {LOCK} == RUN_NAMES - {"report"}
        config = PretrainConfig(**tomllib.loads((reference / "config.toml").read_text()))
        assert config == PretrainConfig(features="fpn", rate_scaling="none", **tiny)
        assert (reference / "config.toml").read_text().startswith("# preset balanced")
        names = {path.name for path in (reference / "checkpoints").iterdir()}
        assert names == {"step-00000000", "step-00000009"}
        log = (reference / "train.log").read_text()
        for part in ("correspondence location", "weights: none", "epoch 3: ", "spread 0."):
            assert part in log

    def test_every_record_has_all_losses_and_a_spread(self, reference: Path) -> None:
        records = read_records(reference / "metrics.jsonl")
        assert len(records) == 12
        for record in records:
            losses = record["losses"]
            assert list(losses) == ["image", "pixel", "region", "total"]
            total = losses["image"] + losses["pixel"] + 0.1 * losses["region"]
            assert losses["total"] == pytest.approx(total, rel=1e-5, abs=1e-6)
            assert 0.3 < record["spread"] <= 1
            assert 0 <= record["disjoint"] <= 12
            if record["record"] == "epoch":
                assert len(record["shares"]) == 5 and sum(record["shares"]) == pytest.approx(1)

    def test_the_model_shows_pseudo_categories(self, reference: Path, image_folder: Path) -> None:
        segmenter = Segmenter.load(reference, device="cpu", precision="fp32")
        assert segmenter.card.architecture == Architecture(
            channels=16, clusters=5, over_clusters=0, image_head=True
        )
        assert (segmenter.card.readout, segmenter.card.image_size) == ("head", 32)
        assert segmenter.card.training["command"] == "pretrain"
        assert segmenter.card.training["steps"] == 9
        mask = segmenter.predict(image_folder / "00.jpg")
        assert mask.shape == (64, 64) and set(mask.flat) <= set(range(5))
        shares = [cluster.share for cluster in segmenter.clusters]
        assert shares == read_records(reference / "metrics.jsonl")[-1]["shares"]

    def test_pretrain_is_the_last_event(
        self, image_folder: Path, tiny: dict[str, Any], tmp_path: Path, reference: Path
    ) -> None:
        trained = pretrain(str(image_folder), str(tmp_path / "run"), **tiny)
        assert trained.complete and trained.model == tmp_path / "run" / "model"
        same_end(tmp_path / "run", reference)

    def test_without_a_place_it_makes_one_of_its_own(
        self,
        image_folder: Path,
        one_epoch: dict[str, Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        trained = pretrain([image_folder], **one_epoch)
        assert trained.run.parent == Path("runs/pretrain")
        assert (tmp_path / "runs/pretrain/latest/model").is_dir()
        assert pretrain([], resume=True).run.resolve() == trained.run.resolve()

    def test_images_of_any_shape(self, one_epoch: dict[str, Any], tmp_path: Path) -> None:
        """Narrow ones too, of which no crop of the wanted aspect has the wanted area."""
        (tmp_path / "images").mkdir()
        for number, size in enumerate([(64, 64), (200, 20), (20, 200), (90, 60)]):
            Image.radial_gradient("L").resize(size).save(tmp_path / "images" / f"{number}.png")
        last = pretrain(tmp_path / "images", tmp_path / "run", **one_epoch).last
        assert last is not None
        assert all(math.isfinite(value) for value in last.losses.values())

    def test_one_image_is_a_batch(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path
    ) -> None:
        for correspondence in ("location", "none"):
            options = {**one_epoch, "grid": 1, "batch_size": 1, "correspondence": correspondence}
            last = pretrain(image_folder / "00.jpg", tmp_path / correspondence, **options).last
            assert last is not None
            assert all(math.isfinite(value) for value in last.losses.values())

    def test_features_of_a_few_channels(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path
    ) -> None:
        """A quarter of which would be none at all."""
        assert pretrain(image_folder, tmp_path, **{**one_epoch, "channels": 2}).complete

    def test_pictures(self, image_folder: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
        options = {**tiny, "visualize_every": 2, "features": "res5"}
        pretrain(image_folder, tmp_path, **options)
        assert [path.name for path in (tmp_path / "report").iterdir()] == ["epoch-0002.png"]


@posix
class TestResume:
    @pytest.mark.parametrize("step", [1, 3, 5, 9])
    def test_a_stopped_run_goes_on_to_the_same_bits(
        self, image_folder: Path, tiny: dict[str, Any], tmp_path: Path, reference: Path, step: int
    ) -> None:
        run = tmp_path / "run"
        error = stop_after(step, image_folder, run, **tiny)
        assert error.exit_code == 128 + signal.SIGTERM
        assert f"go on with densesiam-seg pretrain --resume --out {run}" in str(error)
        assert not (run / "model").exists()
        events = list(pretraining_events([], out=run, resume=True))
        assert next(event.step for event in events if isinstance(event, Started)) == step
        assert not [event for event in events if isinstance(event, Notice) and event.warning]
        same_end(run, reference)

    def test_also_with_random_places_adam_and_half_floats(
        self, image_folder: Path, tiny: dict[str, Any], tmp_path: Path
    ) -> None:
        options = {**tiny, "epochs": 2, "sampling": "biased", "precision": "bf16"}
        options |= {"optimizer": "adam", "learning_rate": 0.001, "features": "res5"}
        pretrain(image_folder, tmp_path / "whole", **options)
        stop_after(4, image_folder, tmp_path / "run", **options)
        pretrain([], tmp_path / "run", resume=True)
        same_end(tmp_path / "run", tmp_path / "whole")

    def test_a_finished_run_ends_at_once(
        self, reference: Path, tiny: dict[str, Any], tmp_path: Path
    ) -> None:
        run = shutil.copytree(reference, tmp_path / "run")
        notice, trained = pretraining_events([], out=run, resume=True, **tiny)
        assert str(notice) == "this run had finished; nothing to do"
        assert trained == Trained(run, run / "model", None, complete=True)
        same_end(run, reference)

    def test_a_run_of_train_is_refused(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        train(image_folder, tmp_path, **{**tiny_settings, "epochs": 1})
        with pytest.raises(ModelError, match="no run of pretrain to resume here") as caught:
            pretrain([], tmp_path, resume=True)
        assert caught.value.exit_code == 4
        assert read_status(tmp_path)["status"] == "done"


class TestStrategies:
    @pytest.mark.parametrize("correspondence", get_args(HINTS["correspondence"]))
    def test_every_correspondence(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path, correspondence: str
    ) -> None:
        last = pretrain(image_folder, tmp_path, correspondence=correspondence, **one_epoch).last
        assert last is not None
        dense = correspondence != "none"
        assert ("pixel" in last.losses, "region" in last.losses) == (dense, dense)
        assert len(last.shares) == (5 if dense else 0)
        config = tomllib.loads((tmp_path / "config.toml").read_text())
        assert config["correspondence"] == correspondence
        segmenter = Segmenter.load(tmp_path, device="cpu")
        assert segmenter.predict(image_folder / "00.jpg").max() < 5
        shares = [cluster.share for cluster in segmenter.clusters]
        assert segmenter.card.readout == ("head" if dense else "kmeans")
        if dense:
            assert shares == last.shares
        assert sum(share or 0.0 for share in shares) == pytest.approx(1.0)

    @pytest.mark.parametrize("sampling", get_args(HINTS["sampling"]))
    @pytest.mark.parametrize("features", ["fpn", "res5"])
    def test_every_sampling_on_either_features(
        self,
        image_folder: Path,
        one_epoch: dict[str, Any],
        tmp_path: Path,
        sampling: str,
        features: str,
    ) -> None:
        options = {**one_epoch, "sampling": sampling, "features": features}
        last = pretrain(image_folder, tmp_path, **options).last
        assert last is not None and last.losses.keys() == {"image", "pixel", "region", "total"}
        assert all(math.isfinite(value) for value in last.losses.values())
        network = Segmenter.load(tmp_path, device="cpu").network
        assert (network.encoder.decoder is None) == (features == "res5")

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
        self,
        image_folder: Path,
        one_epoch: dict[str, Any],
        tmp_path: Path,
        weights: dict[str, float],
        losses: set[str],
    ) -> None:
        last = pretrain(image_folder, tmp_path, **one_epoch, **weights).last
        assert last is not None and last.losses.keys() == losses | {"total"}
        head = Segmenter.load(tmp_path, device="cpu").network.image_projector
        assert (head is None) == ("image" not in losses)


class TestSchedule:
    def test_the_rate_falls_by_half_a_cosine_and_predictors_keep_theirs(
        self, image_folder: Path, tiny: dict[str, Any], tmp_path: Path
    ) -> None:
        """Nine steps: the fourth at (1 + cos 60°) / 2 of the rate, the seventh at (1 + cos 120°) / 2."""
        rates: list[tuple[float, float]] = []
        advance = loop.Training._advance

        def spy(training: loop.Training, *rest: Any) -> Any:
            result = advance(training, *rest)
            others, predictors = (group["lr"] for group in training.optimizer.param_groups)
            rates.append((others, predictors))
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop.Training, "_advance", spy)
            pretrain(image_folder, tmp_path, **{**tiny, "learning_rate": 0.04})
        assert len(rates) == 9
        assert [rates[step][0] for step in (0, 3, 6)] == pytest.approx([0.04, 0.03, 0.01])
        assert {predictors for _, predictors in rates} == {0.04}


class TestHealth:
    def test_collapse_is_told(
        self,
        image_folder: Path,
        one_epoch: dict[str, Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(loop, "COLLAPSED", 2.0)
        events = list(pretraining_events([image_folder], out=tmp_path, **one_epoch))
        (warning,) = [event for event in events if isinstance(event, Notice) and event.warning]
        assert "collapsing onto one direction (spread 0." in warning.text
        assert "--learning-rate" in warning.text
        assert warning.text in (tmp_path / "train.log").read_text()

    def test_pairs_without_overlap_are_counted(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path
    ) -> None:
        """Of crops of a tenth of the area many pairs miss each other, and not all."""
        options = {**one_epoch, "min_scale": 0.1, "max_scale": 0.1}
        events = list(pretraining_events([image_folder], out=tmp_path, **options))
        *steps, epoch = (e for e in events if isinstance(e, StepRecord | EpochRecord))
        assert 0 < epoch.disjoint < 12
        assert epoch.disjoint == sum(step.disjoint for step in steps)
        assert f"{epoch.disjoint} pairs of views without overlap" in str(epoch)

    @pytest.mark.parametrize("correspondence", ["location", "pixel-distance"])
    def test_views_that_never_meet_are_refused(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path, correspondence: str
    ) -> None:
        options = {**one_epoch, "min_scale": 1e-4, "max_scale": 1e-4}
        with pytest.raises(InputError, match="no two views of any image overlap") as caught:
            pretrain(image_folder, tmp_path, correspondence=correspondence, **options)
        assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
        assert "--min-scale or --max-scale" in str(caught.value)
        status = read_status(tmp_path)
        assert (status["status"], status["exit_code"]) == ("failed", 3)
        assert not (tmp_path / "model").exists()

    def test_but_without_dense_losses_they_need_not_meet(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path
    ) -> None:
        options = {**one_epoch, "min_scale": 1e-4, "max_scale": 1e-4, "correspondence": "none"}
        assert pretrain(image_folder, tmp_path, **options).complete


class TestRefusals:
    def test_fewer_images_than_a_batch(
        self, image_folder: Path, tiny: dict[str, Any], tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match="12 usable images cannot fill a batch of 13") as found:
            pretrain(image_folder, tmp_path, **{**tiny, "batch_size": 13})
        assert found.value.exit_code == 3

    @pytest.mark.parametrize(
        "settings",
        [
            {"clusters": 5},
            {"method": "picie"},
            {"balance": "none"},
            {"region_start": 0.5},
            {"correspondence": "flow"},
            {"sampling": "biased", "correspondence": "none"},
            {"max_scale": 0.1},
        ],
    )
    def test_wrong_settings_leave_no_folder(
        self, image_folder: Path, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        with pytest.raises(UsageError) as caught:
            pretrain(image_folder, tmp_path / "run", **settings)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


class TestUse:
    """What a pre-trained run is for."""

    @pytest.mark.parametrize("features", ["fpn", "res5"])
    def test_train_starts_from_its_weights(
        self,
        image_folder: Path,
        one_epoch: dict[str, Any],
        tiny_settings: dict[str, Any],
        tmp_path: Path,
        features: str,
    ) -> None:
        source = pretrain(image_folder, tmp_path / "old", features=features, **one_epoch).run
        trained = train(
            image_folder,
            tmp_path / "new",
            **{**tiny_settings, "weights": str(source), "learning_rate": 1e-12, "epochs": 1},
        )
        assert trained.complete
        old, new = (
            Segmenter.load(run, device="cpu").network.encoder.state_dict()
            for run in (source, trained.run)
        )
        parts = {"fpn": ("backbone.", "decoder."), "res5": ("backbone.",)}[features]
        learned = [
            name
            for name in new
            if name.startswith(parts) and "running_" not in name and "num_batches" not in name
        ]
        assert len(learned) > 10
        for name in learned:
            torch.testing.assert_close(new[name], old[name], rtol=0, atol=1e-6)
        config = tomllib.loads((trained.run / "config.toml").read_text())
        assert config["weights"] == str(source)

    def test_and_so_does_another_pre_training(
        self, image_folder: Path, one_epoch: dict[str, Any], tmp_path: Path, reference: Path
    ) -> None:
        events = list(
            pretraining_events([image_folder], out=tmp_path, init_from=reference, **one_epoch)
        )
        assert f"initial weights: {reference}" in [str(event) for event in events]

    def test_its_card_is_of_the_format_that_train_writes(self, reference: Path) -> None:
        card = json.loads((reference / "model" / "config.json").read_text())
        assert card["format"] == 1
        assert card["clusters"] == card["architecture"]["clusters"] == 5


def test_the_common_settings_are_those_of_train() -> None:
    """So that what is learned of one command holds for the other."""
    for name, value in vars(RunConfig()).items():
        if name not in ("image_size", "epochs", "schedule"):
            assert getattr(PretrainConfig(), name) == value
