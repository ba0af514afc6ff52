"""`densesiam-seg evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densesiam_seg.cli.options import (
    RECIPE,
    WORK,
    Device,
    FitImages,
    Flip,
    Json,
    Model,
    OverClusters,
    Overwrite,
    Precision,
    Quiet,
    Readout,
    ReadoutClusters,
    Refine,
    Scales,
    ScoringProtocol,
    Seed,
    readout_clusters,
)


def command(
    dataset: Annotated[
        str,
        typer.Argument(
            help="coco-stuff, cityscapes, potsdam, camvid, or your own .toml.", show_default=False
        ),
    ],
    root: Annotated[
        Path, typer.Option("--root", help="Folder that holds the dataset.", rich_help_panel=WORK)
    ],
    model: Model = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="Split to score; default val. Join with +.", rich_help_panel=WORK
        ),
    ] = None,
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
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Also write the JSON object to this file.", rich_help_panel=WORK
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    protocol: ScoringProtocol = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            help="Shorter side in pixels; default the model's.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    readout: Readout = "head",
    clusters: ReadoutClusters = None,
    fit_images: FitImages = None,
    over_clusters: OverClusters = None,
    seed: Seed = None,
    flip: Flip = False,
    scales: Scales = None,
    refine: Refine = "auto",
    device: Device = None,
    precision: Precision = None,
) -> None:
    """Score a model on a labelled dataset; labels are used for scoring only."""
    from densesiam_seg.errors import UsageError
    from densesiam_seg.inference.test_time import refinement

    if out is not None and out.exists() and not overwrite:
        raise UsageError(f"--out {out}: exists already; give --overwrite or another name")
    how = refinement(flip, scales, refine)
    count = readout_clusters(clusters)
    from densesiam_seg.cli.console import Console
    from densesiam_seg.evaluation.evaluate import benchmark, segmenter_events
    from densesiam_seg.inference.readout import load_with_readout

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
    segmenter = load_with_readout(
        model,
        readout,
        count,
        fit_images,
        over_clusters=over_clusters,
        seed=seed or 0,
        device=device or "auto",
        precision=precision or "auto",
        tell=console.choosing,
    )
    events = segmenter_events(segmenter, task, how)
    console.evaluating(events, json=json, out=out)
