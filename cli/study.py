"""`densesiam-seg study`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from densesiam_seg.cli.options import (
    ConfigFile,
    DatasetArgument,
    Json,
    Out,
    Overwrite,
    PresetChoice,
    Quiet,
    Resume,
    Root,
    ScoringProtocol,
    Split,
    TrainSplit,
    import_torch,
    io_option,
    recipe_option,
)
from densesiam_seg.cli.settings import Settings, takes
from densesiam_seg.config import PretrainConfig, read_config

if TYPE_CHECKING:
    from densesiam_seg.cli.console import Console
    from densesiam_seg.studies.study import StudyEvent

SETTINGS = (
    "epochs",
    "batch_size",
    "image_size",
    "learning_rate",
    "weights",
    "backbone",
    "seed",
    "channels",
    "device",
    "precision",
    "workers",
    "threads",
)
"""Settings that no row of a study decides."""
StudyName = Literal["correspondence", "sampling", "similarity", "losses"]


@takes(settings=Settings(PretrainConfig, SETTINGS))
def command(
    study: Annotated[
        StudyName, typer.Argument(help="What the rows differ in.", show_default=False)
    ],
    dataset: DatasetArgument,
    root: Root,
    *,
    images: Annotated[
        list[str] | None,
        io_option(
            "--images",
            help="Unlabelled images to pre-train on: a folder, file, glob or list, several times if need be; "
            "default those of the train split.",
        ),
    ] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    config: ConfigFile = None,
    split: Split = None,
    train_split: TrainSplit = "train",
    json: Json = False,
    quiet: Quiet = False,
    seeds: Annotated[
        int, recipe_option("--seeds", help="Runs of each row: with --seed and the seeds after it.")
    ] = 3,
    preset: PresetChoice = None,
    protocol: ScoringProtocol = None,
    settings: dict[str, Any],
) -> None:
    """Compare the rows of an ablation: pre-train each from the same seeds, and probe it on a labelled set.

    Saves one table beside the paper's own figures, a chart and the cost; stopped, it resumes at the missing rows.
    """
    given = read_config(config, PretrainConfig()) if config else {}

    # Only now, as mistakes need not wait for it.
    import_torch()
    from densesiam_seg.cli.console import Console
    from densesiam_seg.studies.study import study_events

    events = study_events(
        study,
        dataset,
        root,
        images=images or [],
        seeds=seeds,
        split=split,
        train_split=train_split,
        protocol=protocol,
        out=out,
        preset=preset,
        resume=resume,
        overwrite=overwrite,
        **given | settings,
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
