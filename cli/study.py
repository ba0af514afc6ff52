"""`densesiam-seg study`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densesiam_seg.cli.options import (
    RECIPE,
    WORK,
    Backbone,
    BatchSize,
    Channels,
    ConfigFile,
    Device,
    Epochs,
    ImageSize,
    Json,
    LearningRate,
    Out,
    Overwrite,
    Precision,
    PresetName,
    Quiet,
    Resume,
    ScoringProtocol,
    Seed,
    Threads,
    Weights,
    Workers,
    number_or_auto,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from densesiam_seg.cli.console import Console
    from densesiam_seg.studies.study import StudyEvent


class StudyName(StrEnum):
    """The ablations, as typer wants them."""

    correspondence = "correspondence"
    sampling = "sampling"
    similarity = "similarity"
    losses = "losses"


def command(
    study: Annotated[
        StudyName,
        typer.Argument(help="What the rows differ in.", show_default=False),
    ],
    dataset: Annotated[
        str,
        typer.Argument(
            help="The labelled set of the probes: coco-stuff, cityscapes, potsdam, camvid, or your own .toml.",
            show_default=False,
        ),
    ],
    root: Annotated[
        Path, typer.Option("--root", help="Folder that holds the dataset.", rich_help_panel=WORK)
    ],
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images",
            help="Unlabelled images to pre-train on: a folder, file, glob or list, several times if need be; "
            "default those of the train split.",
            rich_help_panel=WORK,
        ),
    ] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    config: ConfigFile = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="Split to score; default val. Join with +.", rich_help_panel=WORK
        ),
    ] = None,
    train_split: Annotated[
        str,
        typer.Option(
            "--train-split",
            help="Split whose labels the linear probe is trained on.",
            rich_help_panel=WORK,
        ),
    ] = "train",
    json: Json = False,
    quiet: Quiet = False,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            help="Runs of each row: with --seed and the seeds after it.",
            rich_help_panel=RECIPE,
        ),
    ] = 3,
    seed: Seed = None,
    preset: Annotated[
        PresetName | None,
        typer.Option(
            "--preset",
            help="The budget of each run, as in pretrain: fast, balanced or paper.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    image_size: ImageSize = None,
    learning_rate: LearningRate = None,
    weights: Weights = None,
    backbone: Backbone = None,
    channels: Channels = None,
    protocol: ScoringProtocol = None,
    device: Device = None,
    precision: Precision = None,
    workers: Workers = None,
    threads: Threads = None,
) -> None:
    """Compare the rows of an ablation: pre-train each from the same seeds, and probe it on a labelled set.

    Saves one table beside the paper's own figures, a chart and the cost; stopped, it resumes at the missing rows.
    """
    given: dict[str, Any] = {
        "seed": seed,
        "epochs": epochs,
        "batch_size": number_or_auto("--batch-size", batch_size),
        "image_size": image_size,
        "learning_rate": learning_rate,
        "weights": weights,
        "backbone": backbone,
        "channels": channels,
        "device": device,
        "precision": precision,
        "workers": number_or_auto("--workers", workers),
        "threads": threads,
    }

    from densesiam_seg.config import PretrainConfig, read_config

    settings = read_config(config, PretrainConfig()) if config else {}
    settings |= {name: value for name, value in given.items() if value is not None}

    # Only now, as torch comes with it, which mistakes need not wait for.
    from densesiam_seg.cli.console import Console
    from densesiam_seg.studies.study import study_events

    events = study_events(
        study.value,
        dataset,
        root,
        images=images or [],
        seeds=seeds,
        split=split,
        train_split=train_split,
        protocol=protocol,
        out=out,
        preset=preset.value if preset else None,
        resume=resume,
        overwrite=overwrite,
        **settings,
    )
    _show(Console(quiet=quiet), events, json=json)


def _show(console: Console, events: Iterable[StudyEvent], *, json: bool) -> None:
    """Draw a study; its table goes to stdout, being the command's data. Raises the error that it ends with."""
    from densesiam_seg.studies.study import Studied

    done = console.follow(events)[-1]
    assert isinstance(done, Studied)
    if json:
        console.data(done.to_dict())
    else:
        print(done.table.markdown(), end="")
    console.say(f"table: {done.folder / 'table.md'}")
    console.say(f"plot:  {done.plot}")
    error = done.error()
    if error is not None:
        raise error
