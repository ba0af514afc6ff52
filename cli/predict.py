"""`densesiam-seg predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densesiam_seg.cli.options import (
    WORK,
    Device,
    FitImages,
    Flip,
    ImagesTogether,
    Json,
    MaxPixels,
    Model,
    Out,
    OverClusters,
    Overwrite,
    Precision,
    Quiet,
    Readout,
    ReadoutClusters,
    Refine,
    Scales,
    Seed,
    number_or_auto,
    readout_clusters,
)


def command(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, globs, .txt lists of paths, or - for a list on stdin.",
            show_default=False,
        ),
    ],
    model: Model = None,
    out: Out = None,
    overlay: Annotated[
        bool,
        typer.Option(
            "--overlay",
            help="Also write each image with its mask laid over it.",
            rich_help_panel=WORK,
        ),
    ] = False,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Keep masks that exist, do the missing ones.", rich_help_panel=WORK
        ),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
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
    batch_size: ImagesTogether = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Write a mask for each image: a palette PNG of its own size, under its own name."""
    together = number_or_auto("--batch-size", batch_size)
    from densesiam_seg.inference.test_time import refinement

    how = refinement(flip, scales, refine)
    count = readout_clusters(clusters)
    from densesiam_seg.images.scan import scan

    # A wrong path need not wait for torch.
    manifest = scan(images)
    from datetime import datetime

    from densesiam_seg.cli.console import Console
    from densesiam_seg.images.decode import MAX_PIXELS
    from densesiam_seg.inference.predict import plan, predict_events
    from densesiam_seg.inference.readout import load_with_readout

    folder = out or Path("runs") / "predict" / datetime.now().strftime("%Y%m%d-%H%M%S")
    work = plan(manifest, folder, overwrite=overwrite, resume=resume, overlays=overlay)
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
    events = predict_events(
        segmenter,
        work,
        overlays=overlay,
        max_pixels=max_pixels or MAX_PIXELS,
        batch_size=together,
        refinement=how,
    )
    console.predicting(work, manifest.skipped, events, json=json)
