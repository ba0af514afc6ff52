"""The demonstration end to end with few and tiny scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densesiam_seg import demo
from densesiam_seg.datasets.declaration import load_dataset
from densesiam_seg.datasets.scenes import CLASSES, COLOURS, scene
from densesiam_seg.demo import Demonstrated, demo_events, scenes_toml
from densesiam_seg.evaluation.evaluate import evaluate
from densesiam_seg.events import EpochRecord, Notice
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.pictures.sheet import GAP


@pytest.mark.usefixtures("small_demo")
def test_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    events = list(demo_events(out, epochs=2))
    assert sum(isinstance(event, EpochRecord) for event in events) == 2
    done = events[-1]
    assert isinstance(done, Demonstrated)
    assert isinstance(events[0], Notice)
    assert "drawing 8 scenes to learn from and 4 held out" in events[0].text

    # Everything that it promises lies in its folder.
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert names == set(demo.NAMES)
    stems = [f"{k:04}" for k in range(1, 5)]
    masks = {path.name for path in (out / "masks").glob("[!.]*")}
    written = {stem + end for stem in stems for end in (".png", "_overlay.jpg")}
    assert masks == written | {"predict.json"}
    assert Segmenter.load(out / "run").card.clusters == len(CLASSES)
    assert json.loads((out / "run.json").read_text())["status"] == "done"
    with Image.open(done.picture) as picture:
        assert done.picture == out / "demo.png"
        assert picture.width == 4 * 192 + 5 * GAP
        colours = {colour for _, colour in picture.getcolors(1 << 24) or []}
    assert colours >= set(COLOURS)

    # Both scores are those of the same held-out scenes.
    data = out / "scenes"
    again = evaluate(data / "scenes.toml", data, out / "run")
    np.testing.assert_array_equal(again.counts, done.learned.counts)
    assert done.baseline.digest == done.learned.digest == again.digest
    assert done.learned.protocol == again.protocol
    read_at, plain = "bilinear, read at 96", done.baseline.protocol
    assert again.protocol == f"{plain.replace('bilinear', read_at)}; on top: PAMR"
    assert (done.learned.readout, done.baseline.readout) == ("head", "colour + position")
    assert done.learned.counts.sum() == done.baseline.counts.sum() == 4 * 32 * 32

    # Those are other scenes than the training's: they are numbered on from them.
    for path, index in (("train/0001.png", 0), ("train/0008.png", 7), ("val/0001.png", 8)):
        with Image.open(data / "labels" / path) as label:
            np.testing.assert_array_equal(np.asarray(label), scene(0, index, 48)[1])


def test_the_scenes_are_declared(tmp_path: Path) -> None:
    (tmp_path / "scenes.toml").write_text(scenes_toml())
    dataset = load_dataset(tmp_path / "scenes.toml")
    assert (dataset.title, dataset.protocol) == ("Procedural scenes", demo.PROTOCOL.name)
    assert (dataset.names, dataset.colours) == (CLASSES, COLOURS)
    assert [each.raw for each in dataset.classes] == [(k,) for k in range(len(CLASSES))]
    assert (dataset.default_split, set(dataset.splits)) == ("val", {"val", "train"})
