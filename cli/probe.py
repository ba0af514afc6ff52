"""`densesiam-seg probe`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densesiam_seg.cli.options import (
    RECIPE,
    WORK,
    Device,
    Json,
    Overwrite,
    Precision,
    Quiet,
    ScoringProtocol,
    Seed,
)

if TYPE_CHECKING:
    from densesiam_seg.cli.console import Console
    from densesiam_seg.evaluation.probe import Probe
    from densesiam_seg.events import Progress


def command(
    run: Annotated[
        Path,
        typer.Argument(
            help="Run or model directory, of pre-training or segmentation.", show_default=False
        ),
    ],
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            help="coco-stuff, cityscapes, potsdam, camvid, or your own .toml.",
            rich_help_panel=WORK,
        ),
    ],
    root: Annotated[
        Path, typer.Option("--root", help="Folder that holds the dataset.", rich_help_panel=WORK)
    ],
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="Split to score; default val. Join with +.", rich_help_panel=WORK
        ),
    ] = None,
    train_split: Annotated[
        str,
        typer.Option("--train-split", help="Split that probes learn from.", rich_help_panel=WORK),
    ] = "train",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Also write the JSON object to this file.", rich_help_panel=WORK
        ),
    ] = None,
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
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            help="Shorter side in pixels; default the model's.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(
            "--clusters",
            "-k",
            help="Clusters of the k-means probe; default the number of classes.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
) -> None:
    """Score a model's frozen features: by a linear probe, which uses labels, and by k-means, which does not."""
    from densesiam_seg.errors import UsageError

    if out is not None and out.exists() and not overwrite:
        raise UsageError(f"--out {out}: exists already; give --overwrite or another name")

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
        seed=seed or 0,
        device=device or "auto",
        precision=precision or "auto",
    )
    render(Console(quiet=quiet), events, json=json, out=out)


def render(
    console: Console,
    events: Iterable[Progress | Probe],
    *,
    json: bool = False,
    out: Path | None = None,
) -> None:
    """Draw a probe; its tables go to stdout, being the command's data, and then both numbers with what each used."""
    from densesiam_seg.cli.console import print_evaluation
    from densesiam_seg.evaluation.probe import Probe
    from densesiam_seg.io.files import replace_text, to_json

    result = console.follow(events)[-1]
    assert isinstance(result, Probe)
    if json:
        console.data(result.to_dict())
    else:
        found = [each for each in (result.linear, result.kmeans) if each is not None]
        for each in found:
            print_evaluation(each)
            print()
        for each in found:
            scores = each.scores
            print(each.readout)
            print(
                f"    mean IoU {scores.mean_iou:.2f}; mean accuracy {scores.mean_accuracy:.2f}; "
                f"pixel accuracy {scores.pixel_accuracy:.2f}"
            )
    console.say(f"processor time: {result.seconds:.0f} s")
    # Last, so that the result has been shown where the file cannot be written.
    if out is not None:
        replace_text(out, to_json(result.to_dict(), indent=2) + "\n")
