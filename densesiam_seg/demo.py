"""`demo`: the main job end to end on procedural scenes, with nothing to fetch.

Makes scenes with exact labels, trains on the pictures alone, scores held-out scenes, and draws what was found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from densesiam_seg.datasets.labels import read_label
from densesiam_seg.datasets.reader import Sample
from densesiam_seg.datasets.scenes import CLASSES, COLOURS, write_scenes
from densesiam_seg.evaluation.baselines import colour_position_points, kmeans_masks
from densesiam_seg.evaluation.evaluate import (
    Benchmark,
    Reading,
    benchmark,
    scoring_events,
    segmenter_events,
)
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.evaluation.metrics import Matching
from densesiam_seg.evaluation.protocol import PROTOCOLS, MasksOf, prepare_sample
from densesiam_seg.events import Event, Notice, Progress, Trained
from densesiam_seg.images.decode import load_image
from densesiam_seg.images.scan import scan
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import replace_file, replace_text
from densesiam_seg.io.run_directory import new_run_folder, write_status
from densesiam_seg.pictures.masks import colourise, encode_png
from densesiam_seg.pictures.sheet import comparison
from densesiam_seg.prediction.plan import plan
from densesiam_seg.prediction.predict import predict_events
from densesiam_seg.prediction.wanted import Wanted
from densesiam_seg.training.train import training_events

SIDE = 192
TRAINING_SCENES = 240
HELD_OUT_SCENES = 60
SETTINGS: dict[str, Any] = {"image_size": 96, "clusters": len(CLASSES)}
"""The rest is what `train` does as it comes, on any machine."""
DECLARED = "scenes.toml"
PICTURED = 4
PROTOCOL = PROTOCOLS["picie"]
NAMES = frozenset({"scenes", "run", "masks", "demo.png", "run.json"})
"""What the demonstration writes into its folder."""


@dataclass(frozen=True)
class Demonstrated:
    """Where everything lies, and both scores on the held-out scenes."""

    folder: Path
    picture: Path
    learned: Evaluation
    baseline: Evaluation


def demo_events(
    out: Path | None = None, *, overwrite: bool = False, seed: int = 0, epochs: int | None = None
) -> Iterator[Event | Demonstrated]:
    """Run the demonstration in `out` (default `runs/demo/<timestamp>`); the last event is `Demonstrated`."""
    folder = new_run_folder("demo", out, overwrite=overwrite, resume=False, names=NAMES)
    yield Notice(
        f"drawing {TRAINING_SCENES} scenes to learn from and {HELD_OUT_SCENES} held out, into {folder}"
    )
    data = folder / "scenes"
    declared = write_dataset(data, seed)

    settings = {**SETTINGS, "seed": seed} | ({"epochs": epochs} if epochs else {})
    training = data / "images" / "train"
    for event in training_events([training], out=folder / "run", preset="balanced", **settings):
        if isinstance(event, Trained):
            trained = event
        yield event

    segmenter = Segmenter.load(trained.model)
    task = benchmark(declared, data)
    baseline_masks = _baseline(training, seed)
    reading = Reading(len(CLASSES), "colour + position")
    learned = _last(segmenter_events(segmenter, task))
    baseline = _last(scoring_events(task, baseline_masks, [reading], task.side(segmenter)))

    work = plan(scan([data / "images" / "val"]), folder / "masks", wanted=Wanted(overlay=True))
    list(predict_events(segmenter, work))
    picture = folder / "demo.png"
    matchings = learned.matching, baseline.matching
    rows = [
        _row(sample, task, segmenter, baseline_masks, matchings)
        for sample in task.samples.items[:PICTURED]
    ]
    titles = ("image", "densesiam-seg", "k-means colour + xy", "truth")
    sheet = comparison(titles, rows, list(zip(CLASSES, COLOURS, strict=True)))
    replace_file(picture, encode_png(sheet))
    write_status(folder, "done", exit_code=0)
    yield Demonstrated(folder, picture, learned, baseline)


def write_dataset(folder: Path, seed: int) -> Path:
    """Write the scenes of both splits with their labels, and last the file that declares them, which is returned."""
    write_scenes(folder, TRAINING_SCENES, seed=seed, side=SIDE, split="train")
    write_scenes(folder, HELD_OUT_SCENES, seed=seed, side=SIDE, split="val", first=TRAINING_SCENES)
    declared = folder / DECLARED
    replace_text(declared, scenes_toml())
    return declared


def scenes_toml() -> str:
    """The scenes declared as a dataset, so that `evaluate` reads them like any other."""
    classes = "\n".join(
        f'    {{ name = "{name}", colour = {list(colour)}, values = [{index}] }},'
        for index, (name, colour) in enumerate(zip(CLASSES, COLOURS, strict=True))
    )
    splits = "".join(
        f'[splits.{split}]\nimages = ["images/{split}"]\nlabels = ["labels/{split}"]\n'
        for split in ("val", "train")
    )
    return f"""\
title = "Procedural scenes"
protocol = "picie"
image_suffixes = [".jpg"]
label_suffix = ".png"
classes = [
{classes}
]
{splits}"""


def _baseline(folder: Path, seed: int) -> MasksOf:
    manifest = scan([folder])

    def images() -> Iterable[Tensor]:
        return (load_image(manifest.path(index))[:, ::2, ::2] for index in range(len(manifest)))

    return kmeans_masks(colour_position_points, images, len(manifest), len(CLASSES), seed=seed)


def _last(events: Iterable[Notice | Progress | Evaluation]) -> Evaluation:
    *_, result = events
    assert isinstance(result, Evaluation)
    return result


def _row(
    sample: Sample,
    task: Benchmark,
    segmenter: Segmenter,
    baseline_masks: MasksOf,
    matchings: tuple[Matching, Matching],
) -> list[NDArray[np.uint8]]:
    """One scene, each way's clusters in the colours of the classes they match, and the truth."""
    image, _ = prepare_sample(sample, task.dataset, PROTOCOL, task.side(segmenter))
    size = (image.shape[-2], image.shape[-1])
    masks = segmenter.predict(sample.image), baseline_masks(image[None], PROTOCOL, [size])[0][0]
    return [
        load_image(sample.image).permute(1, 2, 0).numpy(),
        *(
            colourise(np.asarray(matching.cluster_to_class)[mask], COLOURS)
            for mask, matching in zip(masks, matchings, strict=True)
        ),
        colourise(read_label(task.dataset, sample.label), COLOURS),
    ]
