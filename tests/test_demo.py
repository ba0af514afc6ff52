"""The demonstration end to end with few and tiny scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densesiam_seg import demo
from densesiam_seg.datasets.declaration import load_dataset
from densesiam_seg.datasets.reader import samples
from densesiam_seg.datasets.scenes import CLASSES, COLOURS, scene, write_scenes
from densesiam_seg.demo import Demonstrated, demo_events, scenes_toml
from densesiam_seg.errors import UsageError
from densesiam_seg.evaluation.evaluate import evaluate
from densesiam_seg.events import EpochRecord, Notice, Trained
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.pictures.sheet import GAP


@pytest.fixture
def small(slim: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight scenes to learn from and four held out, 48 pixels each, one epoch."""
    monkeypatch.setattr(demo, "SIDE", 48)
    monkeypatch.setattr(demo, "TRAINING_SCENES", 8)
    monkeypatch.setattr(demo, "HELD_OUT_SCENES", 4)
    settings = {"image_size": 32, "batch_size": 4, "epochs": 1, "channels": 8, "threads": 1}
    monkeypatch.setattr(demo, "SETTINGS", demo.SETTINGS | settings | {"device": "cpu"})


def run(out: Path, *, overwrite: bool = False, epochs: int | None = None) -> Demonstrated:
    *_, result = demo_events(out, overwrite=overwrite, epochs=epochs)
    assert isinstance(result, Demonstrated)
    return result


class TestEndToEnd:
    @pytest.mark.usefixtures("small")
    def test_everything_it_promises_lies_in_its_folder(self, tmp_path: Path) -> None:
        out = tmp_path / "demo"
        events = list(demo_events(out))
        done = events[-1]
        assert isinstance(done, Demonstrated)
        assert isinstance(events[0], Notice)
        assert "drawing 8 scenes to learn from and 4 held out" in events[0].text
        assert sum(isinstance(event, Trained) for event in events) == 1

        names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
        assert names == set(demo.NAMES)
        masks = {path.name for path in (out / "masks").iterdir()}
        stems = [f"{k:04}" for k in range(1, 5)]
        assert masks == {s + end for s in stems for end in (".png", "_overlay.jpg")}
        assert Segmenter.load(out / "run").card.clusters == len(CLASSES)
        assert json.loads((out / "run.json").read_text())["status"] == "done"

        with Image.open(done.picture) as picture:
            assert done.picture == out / "demo.png"
            assert picture.width == 4 * 192 + 5 * GAP
            colours = {colour for _, colour in picture.getcolors(1 << 24) or []}
        assert colours >= set(COLOURS)

    @pytest.mark.usefixtures("small")
    def test_both_scores_are_those_of_the_same_held_out_scenes(self, tmp_path: Path) -> None:
        done = run(tmp_path / "demo")
        data = tmp_path / "demo" / "scenes"
        again = evaluate(data / "scenes.toml", data, tmp_path / "demo" / "run")
        np.testing.assert_array_equal(again.counts, done.learned.counts)
        assert done.baseline.digest == done.learned.digest == again.digest
        assert done.learned.protocol == again.protocol == f"{done.baseline.protocol}; on top: PAMR"
        assert (done.learned.readout, done.baseline.readout) == ("head", "colour + position")
        assert done.learned.images == done.baseline.images == 4
        assert done.learned.counts.sum() == done.baseline.counts.sum() == 4 * 32 * 32

    @pytest.mark.usefixtures("small")
    def test_held_out_scenes_are_other_scenes(self, tmp_path: Path) -> None:
        """They are numbered on from the training scenes."""
        run(tmp_path / "demo")
        labels = tmp_path / "demo" / "scenes" / "labels"
        for path, index in (("train/0001.png", 0), ("train/0008.png", 7), ("val/0001.png", 8)):
            with Image.open(labels / path) as label:
                np.testing.assert_array_equal(np.asarray(label), scene(0, index, 48)[1])

    @pytest.mark.usefixtures("small")
    def test_a_second_time(self, tmp_path: Path) -> None:
        first = run(tmp_path / "demo")
        with pytest.raises(UsageError, match="--overwrite"):
            run(tmp_path / "demo")
        again = run(tmp_path / "demo", overwrite=True)
        np.testing.assert_array_equal(first.learned.counts, again.learned.counts)

    @pytest.mark.usefixtures("small")
    def test_epochs(self, tmp_path: Path) -> None:
        events = list(demo_events(tmp_path / "demo", epochs=2))
        assert sum(isinstance(event, EpochRecord) for event in events) == 2


class TestScenesToml:
    def test_it_declares_the_scenes(self, tmp_path: Path) -> None:
        (tmp_path / "scenes.toml").write_text(scenes_toml())
        dataset = load_dataset(tmp_path / "scenes.toml")
        assert dataset.title == "Procedural scenes"
        assert dataset.names == CLASSES
        assert dataset.colours == COLOURS
        assert [each.raw for each in dataset.classes] == [(k,) for k in range(len(CLASSES))]
        assert (dataset.default_split, set(dataset.splits)) == ("val", {"val", "train"})
        assert dataset.protocol == demo.PROTOCOL.name

    def test_it_finds_what_the_demonstration_draws(self, tmp_path: Path) -> None:
        write_scenes(tmp_path, 2, seed=0, side=16, split="train")
        (tmp_path / "scenes.toml").write_text(scenes_toml())
        found = samples(load_dataset(tmp_path / "scenes.toml"), tmp_path, "train")
        assert [sample.name for sample in found] == ["0001", "0002"]


def test_as_shipped() -> None:
    assert (demo.TRAINING_SCENES, demo.HELD_OUT_SCENES) == (240, 60)
    assert demo.PICTURED <= demo.HELD_OUT_SCENES
    assert demo.SETTINGS["clusters"] == len(CLASSES)
    assert demo.SETTINGS["weights"] == "none"
