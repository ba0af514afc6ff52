"""`densesiam-seg report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densesiam_seg.cli.endings import end
from densesiam_seg.cli.options import (
    DATASETS,
    IMAGES,
    FollowLinks,
    Json,
    Overwrite,
    Quiet,
    RunArgument,
    Split,
    import_torch,
    io_option,
    require_model,
)
from densesiam_seg.cli.settings import checked, takes
from densesiam_seg.config import RunConfig
from densesiam_seg.errors import UsageError

SCORES = "Scores"


@takes(settings=checked("max_pixels", "device", "precision", "page", "bands"))
def command(
    run: RunArgument,
    images: Annotated[list[str] | None, IMAGES] = None,
    *,
    follow_links: FollowLinks = False,
    out: Annotated[
        Path | None,
        io_option(
            "--out",
            "-o",
            help="Folder or .html file to write; default the run's report/index.html.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    limit: Annotated[
        int | None,
        io_option(
            "--limit",
            min=1,
            help="Images to look at, evenly spread; default 300 of the training's, or all that are given.",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help=f"Score the model too: {DATASETS}",
            rich_help_panel=SCORES,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option("--root", help="Folder that holds the dataset.", rich_help_panel=SCORES),
    ] = None,
    split: Split = None,
    settings: RunConfig,
) -> None:
    """Show what a model found, as one HTML page: clusters with crops, curves of the training, images to look at.

    IMAGES are those of the training unless others are given. The page needs no network.
    """
    if (dataset is None) != (root is None) or (split is not None and dataset is None):
        raise UsageError("report: --dataset and --root belong together, and --split to them")
    from densesiam_seg.images.scan import scan

    pages = settings.page == "all"
    found = None
    if images:
        found = scan(images, merge=False, follow_links=follow_links, out=out, pages=pages)
    require_model(run)

    # Only now, as mistakes need not wait for it.
    import_torch()
    from densesiam_seg.cli.console import Console
    from densesiam_seg.evaluation.evaluate import benchmark
    from densesiam_seg.inference.segmenter import Segmenter
    from densesiam_seg.reporting.report import Reported, plan_report, report_events

    sources = None if found is None else [found.path(index) for index in range(len(found))]
    order = plan_report(run, sources, out, limit, overwrite=overwrite)
    task = benchmark(dataset, root, split) if dataset is not None and root is not None else None
    console = Console(quiet=quiet)
    if found is not None:
        console.passed_over(found.passed_over)
        console.skipped(found.skipped)
    segmenter = Segmenter.load(run, device=settings.device, precision=settings.precision)
    decoding = segmenter.new_decoding(settings)
    done = console.follow(report_events(segmenter, order, task, decoding))[-1]
    assert isinstance(done, Reported)
    console.noted(decoding.notes)
    if json:
        console.data(done.to_dict())
    console.say(f"report: {done.page}")
    end(console, done.failed, done.images, found.skipped if found else ())
