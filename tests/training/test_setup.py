"""A run directory becomes a training; `test_train` has whole runs, how they are resumed, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_runs import TinyRuns, end, warnings_of

from densesiam_seg.errors import ModelError, StoppedError, UsageError
from densesiam_seg.events import Event, Notice, Progress
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.scan import scan
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.signals import StopRequest
from densesiam_seg.methods import stage_cache
from densesiam_seg.methods.densesiam import DenseSiamMethod
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import build_network
from densesiam_seg.training.loop import Training
from densesiam_seg.training.recipes import Command
from densesiam_seg.training.setup import Beginning, Run, fresh, resumed
from densesiam_seg.training.snapshot import segmenter_of

pytestmark = pytest.mark.usefixtures("slim_module")


def drained(events: Generator[Event, None, Training | None]) -> tuple[list[Event], Training]:
    """All events, and what the generator returns."""
    seen: list[Event] = []
    while True:
        try:
            seen.append(next(events))
        except StopIteration as last:
            assert isinstance(last.value, Training)
            return seen, last.value


def begun(
    runs: TinyRuns,
    out: str = "run",
    *,
    command: Command = "train",
    more: tuple[Path, ...] = (),
    **options: Any,
) -> tuple[list[Event], Training]:
    """A fresh training of the twelve images and `more`; settings that are None are left out."""
    (runs.folder / out).mkdir()
    run = Run(command, runs.folder / out, StopRequest())
    settings = {**runs.settings[command], **options}
    given = {name: value for name, value in settings.items() if value is not None}
    return drained(fresh(run, Beginning(scan([runs.images, *more]), None, given, 1.0, None)))


def test_initial_weights_are_those_of_the_seed(runs: TinyRuns) -> None:
    _, training = begun(runs, seed=5)
    expected = build_network(Architecture("resnet18", 16, 4, 6), 5).state_dict()
    found = training.network.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_preset_counts_only_usable_images(runs: TinyRuns) -> None:
    """Twelve good images make 500 steps at one step an epoch, had the limit of 60 epochs not come first."""
    junk = tuple(runs.folder / f"{k}.jpg" for k in range(8))
    for path in junk:
        path.write_bytes(b"junk")
    _, training = begun(runs, more=junk, epochs=None, batch_size=None)
    assert (training.config.batch_size, training.config.epochs) == (12, 60)
    assert len(training.store) == 12


def test_pre_training_sees_whole_images_and_their_aspects(runs: TinyRuns) -> None:
    wide = runs.folder / "wide.png"
    Image.new("RGB", (96, 48)).save(wide)
    events, training = begun(runs, command="pretrain", more=(wide,))
    store = training.store
    assert (store.fit, store.side) == ("stretch", 2 * training.config.image_size)
    found = dict(zip((Path(n).name for n in store.manifest.names), store.aspects, strict=True))
    assert found.pop("wide.png") == 2 and set(map(float, found.values())) == {1.0}
    assert any("correspondence location" in str(event) for event in events)
    _, training = begun(runs, "cut")
    assert training.store.fit == "crop"


class TestKeptStages:
    """What a frozen backbone makes of views that are drawn once."""

    @pytest.fixture
    def settings(self, runs: TinyRuns, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        monkeypatch.setattr(stage_cache, "free_space", lambda folder: 10**9)
        caches = {"cache": "disk", "cache_dir": str(runs.folder / "cache")}
        return {**caches, "freeze": True, "replay": "run"}

    def kept(self, training: Training) -> stage_cache.StageCache | None:
        assert isinstance(training.method, DenseSiamMethod)
        return training.method.stage_cache

    def progress(self, events: list[Event]) -> list[Event]:
        return [e for e in events if isinstance(e, Progress) and "backbone" in e.what]

    def test_are_written_once(self, runs: TinyRuns, settings: dict[str, Any]) -> None:
        events, training = begun(runs, "a", **settings)
        cache = self.kept(training)
        assert cache is not None and cache.path.stat().st_size == cache.size + 32
        assert self.progress(events) == [
            Progress("features of the frozen backbone", k, 12) for k in (4, 8, 12)
        ]
        text = "\n".join(map(str, events))
        assert text.index("written once, 0 MB") < text.index(f"lie in {cache.path}")
        assert any("frozen backbone is untrained" in text for text in warnings_of(events))

        events, training = begun(runs, "b", **settings)
        again = self.kept(training)
        assert again is not None and again.path == cache.path
        assert not self.progress(events)

    @pytest.mark.parametrize(
        "other", [{"replay": "epoch"}, {"freeze": False}, {"cache": "none"}, {"cache": "ram"}]
    )
    def test_are_not_kept_where_they_change_or_no_one_wants_them(
        self, runs: TinyRuns, settings: dict[str, Any], other: dict[str, Any]
    ) -> None:
        _, training = begun(runs, **{**settings, **other})
        assert self.kept(training) is None
        assert not list(runs.folder.glob("cache/*.stages"))

    def test_nor_where_there_is_little_room(
        self, runs: TinyRuns, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stage_cache, "free_space", lambda folder: 1000)
        events, training = begun(runs, **{**settings, "cache": "auto"})
        assert self.kept(training) is None
        assert any("features would take 0 MB" in str(event) for event in events)
        with pytest.raises(UsageError, match="--cache disk: the frozen backbone's features"):
            begun(runs, "b", **settings)

    def test_a_signal_meanwhile(self, runs: TinyRuns, settings: dict[str, Any]) -> None:
        runs.path.mkdir()
        run, given = Run("train", runs.path, StopRequest()), runs.settings["train"] | settings
        with pytest.raises(StoppedError, match="before the first step"):
            for event in fresh(run, Beginning(scan([runs.images]), None, given, 1.0, None)):
                if self.progress([event]):
                    run.stop.number = 15
        assert not list(runs.folder.glob("cache/*.stages"))

    def test_a_resumed_run_has_them_again(self, runs: TinyRuns, settings: dict[str, Any]) -> None:
        end(runs.begin(max_time=0, **settings))
        (path,) = runs.folder.glob("cache/*.stages")
        for deleted in (False, True):
            if deleted:
                path.unlink()
            events, training = drained(resumed(Run("train", runs.path, StopRequest()), {}))
            cache = self.kept(training)
            assert cache is not None and cache.path == path
            assert bool(self.progress(events)) is deleted


class TestStretch:
    """The range that the images use is found once, and kept by run and model."""

    def test_it_is_told_and_kept(self, runs: TinyRuns) -> None:
        events, training = begun(runs, stretch=True, bands="3,2,1")
        assert any("stretch" in event.text for event in events if isinstance(event, Notice))
        stretch = training.store.decoding.stretch
        assert stretch is not None and 0 <= stretch[0] < stretch[1] <= 1
        assert training.store.decoding.bands == (3, 2, 1)
        saved = segmenter_of(training, [0], {}).save(runs.folder / "model")
        loaded = Segmenter.load(saved)
        assert loaded.decoding == Decoding(bands=(3, 2, 1), stretch=stretch)

    def test_a_resumed_run_has_the_same(self, runs: TinyRuns) -> None:
        end(runs.begin(max_time=0, stretch=True))
        facts = json.loads((runs.path / "dataset.json").read_text())
        _, training = drained(resumed(Run("train", runs.path, StopRequest()), {}))
        assert list(training.store.decoding.stretch or ()) == facts["stretch"]
        facts["stretch"] = [0.1]
        (runs.path / "dataset.json").write_text(json.dumps(facts))
        with pytest.raises(ModelError, match="stretch"):
            drained(resumed(Run("train", runs.path, StopRequest()), {}))
