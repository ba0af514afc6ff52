"""`densesiam-seg predict`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densesiam_seg.cli.options import (
    FollowLinks,
    HelpAll,
    ImagesArgument,
    Json,
    Model,
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
from densesiam_seg.prediction.wanted import TILE, Wanted, file_names

if TYPE_CHECKING:
    from densesiam_seg.cli.console import Console
    from densesiam_seg.images.decoding import Notes
    from densesiam_seg.images.manifest import Manifest
    from densesiam_seg.naming.clusters import Cluster
    from densesiam_seg.prediction.plan import Plan


@dataclass(frozen=True)
class FileOptions:
    """What is written for each image."""

    form: Annotated[
        str | None,
        io_option(
            "--format",
            metavar="png|tiff|npy",
            help="Of masks. Default: by --out, else png. tiff keeps a GeoTIFF's place.",
        ),
    ] = None
    overlay: Annotated[
        bool, io_option("--overlay", help="Also write each image with its mask laid over it.")
    ] = False
    legend: Annotated[
        bool, io_option("--legend", help="The same with the names of its clusters below it.")
    ] = False
    confidence: Annotated[
        bool, io_option("--confidence", help="Also write how sure the model is: grey, 255 is 1.")
    ] = False
    entropy: Annotated[
        bool,
        io_option(
            "--entropy", help="Also write how evenly the clusters share each pixel: 255 is evenly."
        ),
    ] = False
    min_confidence: Annotated[
        float | None,
        io_option(
            "--min-confidence", help="Pixels below it become 255, no cluster: a number from 0 to 1."
        ),
    ] = None
    only: Annotated[
        str | None,
        io_option(
            "--only",
            metavar="NAME|ID,…",
            help="In place of masks: for each of these clusters where it is, 255 or 0.",
        ),
    ] = None
    npy: Annotated[bool, io_option("--npy", help="Also write cluster ids as .npy.")] = False
    tile: Annotated[
        int,
        io_option(
            "--tile",
            help="Above this longer side look for small things in tiles; 0: never.",
        ),
    ] = TILE
    every: Annotated[
        int, io_option("--every", help="Of videos take every Nth frame.", metavar="N")
    ] = 1

    def wanted(self, ids: Mapping[int, str]) -> Wanted:
        """What they mean; `ids` are those of `--only` with their names. Raises UsageError."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return Wanted(**given | {"only": file_names(ids)})


RARE = (
    *("follow_links", "seed", "precision", "max_pixels", "page", "bands", "fit_images"),
    *("over_clusters", "entropy", "npy", "every", "scales"),
)


@takes(
    rare=RARE,
    files=FileOptions,
    reading=ReadoutOptions,
    refining=RefineOptions,
    settings=checked("seed", "max_pixels", "device", "precision", "page", "bands"),
)
def command(
    images: ImagesArgument,
    *,
    model: Model = None,
    follow_links: FollowLinks = False,
    out: Annotated[
        Path | None,
        io_option(
            "--out",
            "-o",
            help="A folder; for one image also its mask, .png, .tif or .npy. Default: under runs/.",
        ),
    ] = None,
    files: FileOptions,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, io_option("--resume", help="Keep masks that exist, do the missing ones.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    help_all: HelpAll = False,
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
    """Write a mask for each image, of its own size and under its own name; of videos (.mp4, …) for each frame."""
    together = number_or_auto("--batch-size", batch_size)
    refinement = refining.refinement()
    reading.count()
    wanted = files.wanted({})
    from densesiam_seg.images.scan import scan

    folder = out or next(p for p in stamped_folders(RUNS / "predict") if not p.exists())
    # A wrong path or model need not wait for torch.
    pages = settings.page == "all"
    manifest = scan(images, merge=False, follow_links=follow_links, out=folder, pages=pages)
    require_model(model)
    from densesiam_seg.cli.console import Console
    from densesiam_seg.prediction.plan import plan

    console = Console(quiet=quiet)
    segmenter = None
    if files.only is not None:
        # Names are those of the clusters of the read-out, which may be a fresh one.
        segmenter = reading.load(model, settings, console.choosing)
        wanted = files.wanted(_chosen(segmenter.clusters, files.only))
    work = plan(manifest, folder, overwrite=overwrite, resume=resume, wanted=wanted)
    segmenter = segmenter or reading.load(model, settings, console.choosing)
    decoding = segmenter.new_decoding(settings)
    if work.damaged:
        console.say(
            f"{counted(work.damaged, 'mask')} of an earlier run not whole: made again", warning=True
        )
    from densesiam_seg.prediction.predict import predict_events

    events = predict_events(
        segmenter, work, decoding=decoding, batch_size=together, refinement=refinement
    )
    console.passed_over(manifest.passed_over)
    if work.shortened:
        console.say(
            f"{counted(work.shortened, 'name')} too long for a mask on this disk: cut, with a digest at the end"
        )
    _show(console, work, manifest, events, decoding.notes, json=json)


def _chosen(clusters: Sequence[Cluster], named: str) -> dict[int, str]:
    """The names of the clusters that are meant, by id. Raises UsageError."""
    from densesiam_seg.naming.clusters import chosen

    ids = chosen(clusters, [named], what="--only")
    return {each: clusters[each].name for each in ids}


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
    from densesiam_seg.packed.members import as_shown
    from densesiam_seg.prediction.predict import overall_error

    skipped = manifest.skipped
    console.skipped(skipped)
    results: list[Predicted] = console.follow(events)
    console.noted(notes)
    failed = [result for result in results if result.error is not None]
    done = [result for result in results if result.mask is not None and not result.kept]
    kept_count = work.done + sum(result.kept for result in results)
    if len(work.sources) > 1:
        console.failed(failed)
    if json:
        console.data(
            {
                "masks": [{"image": as_shown(r.image), **_listed(r)} for r in done],
                "failed": [{"image": as_shown(r.image), "message": str(r.error)} for r in failed],
                "skipped": [asdict(item) for item in skipped],
                "kept": kept_count,
                "shortened": work.shortened,
                "passed_over": asdict(manifest.passed_over),
                "notes": notes.lines(),
            }
        )
    kept = f", {kept_count} kept" if kept_count else ""
    if done or kept_count:
        one = work.single or (len(work.targets) == 1 and not work.wanted.only)
        where = done[0].mask if done and one else work.folder
        console.say(f"{len(done)} {'mask' if len(done) == 1 else 'masks'} written{kept}: {where}")
    error = overall_error(results, skipped, work.done)
    if error is not None:
        raise error


def _listed(result: Predicted) -> dict[str, Any]:
    """The files of an image by what they are; those of `--only` by cluster id."""
    files = {what: str(path) for what, path in result.files.items()}
    only = {what.split()[1]: files.pop(what) for what in list(files) if what.startswith("only ")}
    return files | ({"only": only} if only else {})
