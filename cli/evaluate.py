"""`densesiam-seg evaluate` and `densesiam-seg probe`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densesiam_seg.cli.options import (
    WORK,
    DatasetArgument,
    Json,
    JsonFile,
    Model,
    Overwrite,
    Quiet,
    ReadoutOptions,
    RefineOptions,
    Root,
    RunArgument,
    ScoringProtocol,
    ScoringSize,
    Split,
    TrainSplit,
    require_new,
)
from densesiam_seg.cli.settings import machine, takes
from densesiam_seg.config import RECIPE, RunConfig

if TYPE_CHECKING:
    from densesiam_seg.cli.console import Console
    from densesiam_seg.evaluation.probe import Probe
    from densesiam_seg.events import Progress


@takes(reading=ReadoutOptions, refining=RefineOptions, settings=machine("seed"))
def evaluate(
    dataset: DatasetArgument,
    root: Root,
    *,
    model: Model = None,
    split: Split = None,
    list_file: Annotated[
        Path | None,
        typer.Option(
            "--list", help="File naming the images to score, one a line.", rich_help_panel=WORK
        ),
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing", help="Go on without images that are missing.", rich_help_panel=WORK
        ),
    ] = False,
    out: JsonFile = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    protocol: ScoringProtocol = None,
    image_size: ScoringSize = None,
    reading: ReadoutOptions,
    refining: RefineOptions,
    settings: RunConfig,
) -> None:
    """Score a model on a labelled dataset; labels are used for scoring only."""
    require_new(out, overwrite)
    refinement = refining.refinement()
    reading.count()

    # Only now, as torch comes with it, which mistakes need not wait for.
    from densesiam_seg.cli.console import Console
    from densesiam_seg.evaluation.evaluate import Evaluation, benchmark, segmenter_events

    task = benchmark(
        dataset,
        root,
        split,
        protocol=protocol,
        image_size=image_size,
        list_file=list_file,
        allow_missing=allow_missing,
    )
    console = Console(quiet=quiet)
    segmenter = reading.load(model, settings, console.choosing)
    result = console.follow(segmenter_events(segmenter, task, refinement))[-1]
    assert isinstance(result, Evaluation)
    if json:
        console.data(result.to_dict())
    else:
        console.scores(result)
    if result.missing:
        console.say(
            f"{len(result.missing)} images were missing, first {result.missing[0]}", warning=True
        )
    console.keep(result.to_dict(), out)


@takes(settings=machine("seed"))
def probe(
    run: RunArgument,
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            help="coco-stuff, cityscapes, potsdam, camvid, or your own .toml.",
            rich_help_panel=WORK,
        ),
    ],
    root: Root,
    *,
    split: Split = None,
    train_split: TrainSplit = "train",
    out: JsonFile = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            help="linear: learned from labels. kmeans: label-free. both: one after the other.",
            rich_help_panel=RECIPE,
        ),
    ] = "both",
    protocol: ScoringProtocol = None,
    image_size: ScoringSize = None,
    clusters: Annotated[
        int | None,
        typer.Option(
            "--clusters",
            "-k",
            help="Clusters of the k-means probe; default the number of classes.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    settings: RunConfig,
) -> None:
    """Score a model's frozen features: by a linear probe, which uses labels, and by k-means, which does not."""
    require_new(out, overwrite)

    # Only now, as torch comes with it, which mistakes need not wait for.
    from densesiam_seg.cli.console import Console
    from densesiam_seg.evaluation.probe import ready_probe

    events = ready_probe(
        run,
        dataset,
        root,
        train_split=train_split,
        split=split,
        protocol=protocol,
        image_size=image_size,
        kind=kind,
        clusters=clusters,
        seed=settings.seed,
        device=settings.device,
        precision=settings.precision,
    )
    _show_probe(Console(quiet=quiet), events, json=json, out=out)


def _show_probe(
    console: Console, events: Iterable[Progress | Probe], *, json: bool, out: Path | None
) -> None:
    """Draw a probe; its tables go to stdout, being the command's data, and then both numbers with what each used."""
    from densesiam_seg.evaluation.probe import Probe

    result = console.follow(events)[-1]
    assert isinstance(result, Probe)
    if json:
        console.data(result.to_dict())
    else:
        found = [each for each in (result.linear, result.kmeans) if each is not None]
        for each in found:
            console.scores(each)
            print()
        for each in found:
            scores = each.scores
            print(each.readout)
            print(
                f"    mean IoU {scores.mean_iou:.2f}; mean accuracy {scores.mean_accuracy:.2f}; "
                f"pixel accuracy {scores.pixel_accuracy:.2f}"
            )
    console.say(f"processor time: {result.seconds:.0f} s")
    console.keep(result.to_dict(), out)
