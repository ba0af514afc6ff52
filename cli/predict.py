"""`densesiam-seg predict`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from densesiam_seg.cli.options import (
    FollowLinks,
    ImagesArgument,
    Json,
    Model,
    Out,
    Overwrite,
    Quiet,
    ReadoutOptions,
    RefineOptions,
    io_option,
    require_model,
)
from densesiam_seg.cli.settings import checked, number_or_auto, takes
from densesiam_seg.config import MACHINE, RunConfig
from densesiam_seg.errors import counted
from densesiam_seg.events import Predicted
from densesiam_seg.io.run_directory import RUNS, stamped_folders

if TYPE_CHECKING:
    from densesiam_seg.cli.console import Console
    from densesiam_seg.images.decoding import Notes
    from densesiam_seg.images.manifest import Manifest
    from densesiam_seg.prediction.plan import Plan


@takes(
    reading=ReadoutOptions,
    refining=RefineOptions,
    settings=checked("seed", "max_pixels", "device", "precision", "page", "bands"),
)
def command(
    images: ImagesArgument,
    *,
    model: Model = None,
    follow_links: FollowLinks = False,
    out: Out = None,
    overlay: Annotated[
        bool, io_option("--overlay", help="Also write each image with its mask laid over it.")
    ] = False,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, io_option("--resume", help="Keep masks that exist, do the missing ones.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    batch_size: Annotated[
        str | None,
        typer.Option(
            "--batch-size",
            "-b",
            help="Images of one size that pass the network together, or auto.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    reading: ReadoutOptions,
    refining: RefineOptions,
    settings: RunConfig,
) -> None:
    """Write a mask for each image: a palette PNG of its own size, under its own name."""
    together = number_or_auto("--batch-size", batch_size)
    refinement = refining.refinement()
    reading.count()
    from densesiam_seg.images.scan import scan

    folder = out or next(p for p in stamped_folders(RUNS / "predict") if not p.exists())
    # A wrong path or model need not wait for torch.
    pages = settings.page == "all"
    manifest = scan(images, merge=False, follow_links=follow_links, out=folder, pages=pages)
    require_model(model)
    from densesiam_seg.cli.console import Console
    from densesiam_seg.prediction.plan import plan
    from densesiam_seg.prediction.predict import predict_events

    work = plan(manifest, folder, overwrite=overwrite, resume=resume, overlays=overlay)
    console = Console(quiet=quiet)
    segmenter = reading.load(model, settings, console.choosing)
    decoding = segmenter.new_decoding(settings)
    if work.damaged:
        console.say(
            f"{counted(work.damaged, 'mask')} of an earlier run not whole: made again", warning=True
        )
    events = predict_events(
        segmenter,
        work,
        overlays=overlay,
        decoding=decoding,
        batch_size=together,
        refinement=refinement,
    )
    console.passed_over(manifest.passed_over)
    if work.shortened:
        console.say(
            f"{counted(work.shortened, 'name')} too long for a mask on this disk: cut, with a digest at the end"
        )
    _show(console, work, manifest, events, decoding.notes, json=json)


def _show(
    console: Console,
    work: Plan,
    manifest: Manifest,
    events: Iterable[Predicted],
    notes: Notes,
    *,
    json: bool,
) -> None:
    """Draw a prediction; raises the error that the command ends with."""
    from densesiam_seg.prediction.predict import overall_error

    skipped = manifest.skipped
    console.skipped(skipped)
    results: list[Predicted] = console.follow(events)
    console.noted(notes)
    failed = [result for result in results if result.error is not None]
    done = [result for result in results if result.mask is not None]
    if len(work.sources) > 1:
        console.failed(failed)
    if json:
        console.data(
            {
                "masks": [{"image": r.image, "mask": str(r.mask)} for r in done],
                "failed": [{"image": r.image, "message": str(r.error)} for r in failed],
                "skipped": [asdict(item) for item in skipped],
                "kept": work.done,
                "shortened": work.shortened,
                "passed_over": asdict(manifest.passed_over),
                "notes": notes.lines(),
            }
        )
    kept = f", {work.done} kept" if work.done else ""
    if done or work.done:
        where = done[0].mask if done and len(work.targets) == 1 else work.folder
        console.say(f"{len(done)} {'mask' if len(done) == 1 else 'masks'} written{kept}: {where}")
    error = overall_error(results, skipped, work.done)
    if error is not None:
        raise error
