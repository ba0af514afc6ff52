"""A run directory becomes a training, fresh or resumed; `test_running` has whole runs and their refusals."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from PIL import Image

from densesiam_seg.config import PretrainConfig, TrainConfig, read_config
from densesiam_seg.errors import InputError, ModelError, StoppedError, UsageError
from densesiam_seg.events import Event, Notice, Progress, StepRecord, Trained
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.images.scan import scan
from densesiam_seg.io.run_directory import read_status, write_status
from densesiam_seg.io.signals import StopRequest
from densesiam_seg.methods import feature_cache as stagecache
from densesiam_seg.methods.densesiam import Siamese
from densesiam_seg.methods.feature_cache import StageCache
from densesiam_seg.network.model import Architecture, DenseSiam, build_network
from densesiam_seg.training.checkpoint import save_checkpoint
from densesiam_seg.training.loop import Training
from densesiam_seg.training.pretrain import RECIPE as PRETRAINING
from densesiam_seg.training.setup import Recipe, Run, fresh, numerics, resumed
from densesiam_seg.training.train import RECIPE as TRAINING

Value = TypeVar("Value")

pytestmark = pytest.mark.usefixtures("slim_module")


def drained(events: Generator[Event, None, Value]) -> tuple[list[Event], Value]:
    """All events, and what the generator returns."""
    seen: list[Event] = []
    while True:
        try:
            seen.append(next(events))
        except StopIteration as end:
            return seen, end.value


def run_in(folder: Path, recipe: Recipe = TRAINING) -> Run:
    folder.mkdir(exist_ok=True)
    return Run(recipe, folder, StopRequest(), time.monotonic(), None)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return run_in(tmp_path / "run")


def begun(
    run: Run,
    images: list[Path],
    settings: dict[str, Any],
    initial: tuple[DenseSiam, str] | None = None,
) -> tuple[list[Event], Training]:
    return drained(fresh(run, scan(images), None, settings, 1.0, initial))


class TestRun:
    def test_time_counts_from_the_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = Run(TRAINING, tmp_path, StopRequest(), 100.0, 60.0)
        for now, over in ((100.0, False), (159.9, False), (160.0, True)):
            monkeypatch.setattr(time, "monotonic", lambda now=now: now)
            assert run.out_of_time() is over

    def test_without_a_limit_it_never_ends(self, tmp_path: Path) -> None:
        assert not Run(TRAINING, tmp_path, StopRequest(), -1e9, None).out_of_time()

    def test_a_signal_before_the_first_step(self, run: Run) -> None:
        run.require_going_on()
        run.stop.number = 15
        with pytest.raises(StoppedError, match="nothing is lost") as caught:
            run.require_going_on()
        assert caught.value.exit_code == 143


class TestFresh:
    def test_the_folder_says_what_is_trained_on_what(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        events, training = begun(run, [image_folder], tiny_settings)
        assert events[:12] == [Progress("reading images", done, 12) for done in range(1, 13)]
        assert [type(event) for event in events[12:]] == [Notice, Notice]
        assert training.step == 0
        assert training.config == TrainConfig(**asdict(training.config) | tiny_settings)
        assert read_config(run.folder / "config.toml") == asdict(training.config)
        saved = json.loads((run.folder / "dataset.json").read_text())
        assert Manifest.from_dict(saved) == training.store.manifest
        facts = json.loads((run.folder / "env.json").read_text())
        assert facts["fingerprint"] == numerics(training)
        assert read_status(run.folder)["status"] == "running"

    def test_initial_weights_are_those_of_the_seed(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        _, training = begun(run, [image_folder], tiny_settings | {"seed": 5})
        expected = build_network(Architecture("resnet18", 16, 4, 6), 5).state_dict()
        found = training.network.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_the_preset_counts_only_usable_images(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        """Twelve good images make 500 steps at one step an epoch, had the limit of 60 epochs not come first."""
        junk = [tmp_path / f"{k}.jpg" for k in range(8)]
        for path in junk:
            path.write_bytes(b"junk")
        settings = {k: v for k, v in tiny_settings.items() if k not in ("epochs", "batch_size")}
        _, training = begun(run, [image_folder, *junk], settings)
        assert (training.config.batch_size, training.config.epochs) == (12, 60)
        assert len(training.store) == 12

    def test_too_many_bad_files(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        (tmp_path / "bad.jpg").touch()
        manifest = scan([image_folder, tmp_path / "bad.jpg"])
        with pytest.raises(InputError, match=r"1 of 13 files cannot be used .*--max-bad"):
            drained(fresh(run, manifest, None, tiny_settings, 0.05, None))
        (line,) = (run.folder / "skipped.jsonl").read_text().splitlines()
        assert json.loads(line)["reason"] == "empty"


class TestRecipes:
    """Whatever tells one kind of run from another comes with its recipe."""

    def test_a_methods_own_settings_lose_against_what_is_given(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        settings = {**tiny_settings, "method": "picie", "balance": "inverse"}
        events, training = begun(run, [image_folder], settings)
        config = training.config
        assert isinstance(config, TrainConfig)
        found = (config.optimizer, config.learning_rate, config.balance)
        assert found == ("adam", 1e-4, "inverse")
        assert isinstance(training.optimizer, torch.optim.Adam)
        assert read_config(run.folder / "config.toml") == asdict(config)
        told = [event.text for event in events if isinstance(event, Notice)]
        assert told[0].startswith("preset balanced: ") and "method picie" in told[0]

    def test_pre_training_sees_whole_images_and_their_aspects(
        self, tmp_path: Path, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        Image.new("RGB", (96, 48)).save(tmp_path / "wide.png")
        known = vars(PretrainConfig())
        settings = {name: value for name, value in tiny_settings.items() if name in known}
        run = run_in(tmp_path / "run", PRETRAINING)
        events, training = begun(run, [image_folder, tmp_path / "wide.png"], settings)
        store = training.store
        assert (store.fit, store.side) == ("stretch", 2 * training.config.image_size)
        found = dict(zip((Path(n).name for n in store.manifest.names), store.aspects, strict=True))
        assert found.pop("wide.png") == 2 and set(map(float, found.values())) == {1.0}
        architecture = Architecture(channels=16, clusters=128, over_clusters=0, image_head=True)
        assert training.network.architecture == architecture
        told = [event.text for event in events if isinstance(event, Notice)]
        assert "correspondence location" in told[0] and "categories 128" in told[0]

    def test_the_same_images_are_cut_for_training(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        _, training = begun(run, [image_folder], tiny_settings)
        assert training.store.fit == "crop"
        assert training.network.image_projector is None


class TestInitial:
    """`--init-from`."""

    ARCHITECTURE = Architecture("resnet18", 16, 4, 6, mixture=True)

    def taken(
        self,
        run: Run,
        images: Path,
        settings: dict[str, Any],
        source: Architecture,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], str]:
        """The new network's tensors, those of the trained one, and the line that tells of it."""
        trained = build_network(source, seed=8)
        events, training = begun(run, [images], settings, (trained, "old"))
        line = events[-1]
        assert isinstance(line, Notice) and not line.warning
        return dict(training.network.state_dict()), dict(trained.state_dict()), line.text

    def test_the_same_architecture_is_taken_over_whole(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        new, old, line = self.taken(run, image_folder, tiny_settings, self.ARCHITECTURE)
        assert line == "initial weights: old"
        assert new.keys() == old.keys()
        assert all(torch.equal(new[name], old[name]) for name in new)

    def test_heads_of_other_clusters_are_new(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        settings = {**tiny_settings, "clusters": 5}
        new, old, line = self.taken(run, image_folder, settings, self.ARCHITECTURE)
        assert line == "initial weights: old (new: predictor, projector)"
        for name, value in new.items():
            if name.split(".")[0] not in ("predictor", "projector", "mixture", "usual"):
                assert torch.equal(value, old[name]), name
        assert new["projector.6.weight"].shape[0] == 5

    def test_a_pre_trained_network_lends_what_it_has(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        """Features of res5 have no decoder and another width."""
        source = Architecture("resnet18", 16, 9, over_clusters=0, features="res5", image_head=True)
        new, old, line = self.taken(run, image_folder, tiny_settings, source)
        kept = {name for name in new if name.startswith("encoder.backbone.")}
        assert kept and all(torch.equal(new[name], old[name]) for name in kept)
        assert line.startswith("initial weights: old (new: encoder.decoder, over_predictor, ")
        assert "encoder.backbone" not in line

    def test_another_backbone_is_refused(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        settings = {**tiny_settings, "backbone": "resnet34"}
        with pytest.raises(
            ModelError, match=r"--init-from old: .*give --backbone resnet18"
        ) as caught:
            self.taken(run, image_folder, settings, self.ARCHITECTURE)
        assert caught.value.exit_code == 4


class TestResumed:
    def test_it_is_the_training_that_was_saved(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        _, before = begun(run, [image_folder], tiny_settings)
        next(record for record in before.records() if isinstance(record, StepRecord))
        tensors, state = before.state()
        state = {**state, "fingerprint": numerics(before)}
        save_checkpoint(run.folder / "checkpoints", tensors, state, step=before.step)
        events, after = drained(resumed(run_in(run.folder), {}))
        assert after is not None
        assert (after.step, after.config) == (1, before.config)
        assert all(isinstance(event, Progress) for event in events)
        restored = after.state()[0]
        assert restored.keys() == tensors.keys()
        assert all(torch.equal(restored[name], tensors[name]) for name in tensors)

    def test_a_finished_run_has_nothing_left(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        begun(run, [image_folder], tiny_settings)
        write_status(run.folder, "done", exit_code=0)
        events, training = drained(resumed(run, {}))
        assert training is None
        assert events[-1] == Trained(run.folder, run.folder / "model", None, complete=True)

    def test_other_settings(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        begun(run, [image_folder], tiny_settings)
        with pytest.raises(UsageError, match="--resume: clusters is 4"):
            drained(resumed(run, {"clusters": 5}))


class TestKeptStages:
    """What a frozen backbone makes of views that are drawn once."""

    @pytest.fixture
    def settings(
        self, tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> dict[str, Any]:
        monkeypatch.setattr(stagecache, "free_space", lambda folder: 10**9)
        caches = {"cache": "disk", "cache_dir": str(tmp_path / "cache")}
        return {**tiny_settings, **caches, "freeze": True, "replay": "run"}

    def kept(self, training: Training) -> StageCache | None:
        assert isinstance(training.method, Siamese)
        return training.method.kept

    def texts(self, events: list[Event]) -> str:
        return "\n".join(str(event) for event in events if isinstance(event, Notice))

    def test_are_written_once(
        self, tmp_path: Path, image_folder: Path, settings: dict[str, Any]
    ) -> None:
        events, training = begun(run_in(tmp_path / "a"), [image_folder], settings)
        cache = self.kept(training)
        assert cache is not None and cache.path.stat().st_size == cache.size
        assert [e for e in events if isinstance(e, Progress)] == [
            Progress("features of the frozen backbone", k, 12) for k in (4, 8, 12)
        ]
        text = self.texts(events)
        assert "the frozen backbone's features are written once, 0 MB" in text
        assert text.index("written once") < text.index(f"lie in {cache.path}")
        assert "warning: the frozen backbone is untrained" in text

        events, training = begun(run_in(tmp_path / "b"), [image_folder], settings)
        assert self.kept(training) == cache
        assert not any(isinstance(event, Progress) for event in events)

    @pytest.mark.parametrize(
        "other",
        [{"replay": "epoch"}, {"freeze": False}, {"cache": "none"}, {"cache": "ram"}],
    )
    def test_are_not_kept_where_they_change_or_no_one_wants_them(
        self, run: Run, image_folder: Path, settings: dict[str, Any], other: dict[str, Any]
    ) -> None:
        _, training = begun(run, [image_folder], {**settings, **other})
        assert self.kept(training) is None
        assert not list(run.folder.parent.glob("cache/*.stages"))

    def test_nor_where_there_is_little_room(
        self,
        run: Run,
        image_folder: Path,
        settings: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(stagecache, "free_space", lambda folder: 1000)
        events, training = begun(run, [image_folder], {**settings, "cache": "auto"})
        assert self.kept(training) is None
        assert "features would take 0 MB" in self.texts(events)
        with pytest.raises(UsageError, match="--cache disk: the frozen backbone's features"):
            begun(run_in(run.folder.parent / "b"), [image_folder], settings)

    def test_a_signal_meanwhile(
        self, run: Run, image_folder: Path, settings: dict[str, Any]
    ) -> None:
        with pytest.raises(StoppedError):
            for event in fresh(run, scan([image_folder]), None, settings, 1.0, None):
                if isinstance(event, Progress):
                    run.stop.number = 15
        (cached,) = {path.suffix for path in (run.folder.parent / "cache").iterdir()} - {".json"}
        assert cached == ".u8"

    def test_a_resumed_run_has_them_again(
        self, run: Run, image_folder: Path, settings: dict[str, Any]
    ) -> None:
        _, training = begun(run, [image_folder], settings)
        cache = self.kept(training)
        assert cache is not None
        tensors, state = training.state()
        state = {**state, "fingerprint": numerics(training)}
        save_checkpoint(run.folder / "checkpoints", tensors, state, step=0)
        for deleted in (False, True):
            if deleted:
                cache.path.unlink()
            events, going_on = drained(resumed(run, {}))
            assert going_on is not None and self.kept(going_on) == cache
            assert any(isinstance(event, Progress) for event in events) is deleted
