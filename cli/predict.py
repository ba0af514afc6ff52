"""`densesiam-seg predict`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
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
    RayOption,
    ReadoutOptions,
    RefineOptions,
    ShardOption,
    io_option,
    require_model,
)
from densesiam_seg.cli.settings import checked, number_or_auto, takes
from densesiam_seg.config import MACHINE, RunConfig
from densesiam_seg.errors import UsageError, counted
from densesiam_seg.events import Predicted
from densesiam_seg.io.run_directory import RUNS, latest_model, stamped_folders
from densesiam_seg.peers.shard import Shard, own_shard, parse_shard
from densesiam_seg.prediction.wanted import TILE, Wanted, file_names

if TYPE_CHECKING:
    from densesiam_seg.cli.console import Console
    from densesiam_seg.images.decoding import Notes
    from densesiam_seg.images.manifest import Manifest
    from densesiam_seg.naming.clusters import Cluster
    from densesiam_seg.on_ray.predicting import RayJob
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
    *("over_clusters", "entropy", "npy", "every", "scales", "ray"),
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
    shard: ShardOption = None,
    ray: RayOption = None,
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
    part = _part(shard, images, out)
    _require_one_way(ray, part)
    from densesiam_seg.images.scan import scan

    folder = out or next(p for p in stamped_folders(RUNS / "predict") if not p.exists())
    # A wrong path or model need not wait for torch.
    pages = settings.page == "all"
    manifest = scan(images, merge=False, follow_links=follow_links, out=folder, pages=pages)
    require_model(model)
    from densesiam_seg.cli.console import Console
    from densesiam_seg.prediction.plan import plan

    own = part.shard
    console = Console(quiet=quiet, bars=own is None or not part.launched or own.index == 0)
    segmenter = None
    if files.only is not None:
        # Names are those of the clusters of the read-out, which may be a fresh one.
        segmenter = reading.load(model, settings, console.choosing)
        wanted = files.wanted(_chosen(segmenter.clusters, files.only))
    whole = Shard() if ray is not None else own
    with _own_mistakes():
        work = plan(
            manifest, folder, overwrite=overwrite, resume=resume, wanted=wanted, shard=whole
        )
    segmenter = segmenter or reading.load(model, settings, console.choosing)
    part.spread()
    if part.speaks:
        console.passed_over(manifest.passed_over)
        if work.shortened:
            console.say(
                f"{counted(work.shortened, 'name')} too long for a mask on this disk: cut, with a digest at the end"
            )
    if ray is not None:
        from densesiam_seg.on_ray.predicting import RayJob
        from densesiam_seg.on_ray.sent_model import SentModel

        sent = SentModel.of(segmenter, model or latest_model(), settings.device)
        work = replace(work, shard=None)
        job = RayJob(ray, segmenter, sent, work, settings, refinement, together, console.notice)
        _show(console, work, manifest, job.events(), job, part, json=json)
        return
    from densesiam_seg.prediction.predict import predict_events

    decoding = segmenter.new_decoding(settings)
    events = predict_events(
        segmenter,
        work,
        decoding=decoding,
        batch_size=together,
        refinement=refinement,
        tell=console.notice,
    )
    with _own_mistakes():
        _show(console, work, manifest, events, decoding.notes, part, json=json)


@contextmanager
def _own_mistakes() -> Iterator[None]:
    """Each process tells what it is refused for: what lies in the way may lie in the way of its part alone."""
    try:
        yield
    except UsageError as error:
        error.own = True
        raise


def _require_one_way(ray: str | None, part: _Part) -> None:
    """Refuse Ray beside another way to share the work, and a cluster that does not answer. Raises UsageError."""
    if ray is None:
        return
    if part.shard is not None:
        raise UsageError("--ray: Ray gets all shards; give it neither --shard nor a launcher")
    from densesiam_seg.on_ray.cluster import require_cluster

    require_cluster(ray)


@dataclass(frozen=True)
class _Part:
    """What of the job this process does."""

    shard: Shard | None
    """None for all of it."""
    launched: bool
    """Whether a launcher started it beside others."""

    @property
    def speaks(self) -> bool:
        """Whether it tells what concerns the images of all parts."""
        return self.shard is None or self.shard.index == 0

    def spread(self) -> None:
        """Take as many cores as this process has for its own; launchers leave torch a single one."""
        if self.launched:
            from densesiam_seg.io.devices import use_own_cores

            use_own_cores()


def _part(text: str | None, images: Sequence[str], out: Path | None) -> _Part:
    """What `--shard` or a launcher says. Raises UsageError for what its processes could not agree on."""
    given = parse_shard(text) if text is not None else None
    own = own_shard(given)
    part = _Part(own, given is None and own is not None)
    if part.shard is not None and out is None:
        raise UsageError("--out is missing: all shards of a job write into one folder; name it")
    if part.launched and "-" in images:
        raise UsageError(
            "-: the processes of a launcher would take lines of it from each other; name a list file"
        )
    return part


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
    notes: Notes | RayJob,
    part: _Part,
    *,
    json: bool,
) -> None:
    """Draw a prediction; raises the error that the command ends with."""
    from densesiam_seg.packed.members import as_shown
    from densesiam_seg.prediction.shards import ImageTally

    skipped = manifest.skipped if part.speaks else ()
    console.skipped(skipped)
    total = len(work.places) if work.stills == len(work.places) else None
    tally, listed, first = ImageTally(), list[dict[str, Any]](), None
    # A million images leave nothing but numbers, unless they are to be listed.
    for result in tally.counting(console.masks(events, total)):
        if result.mask is not None and not result.kept:
            first = first or result.mask
            if json:
                listed.append({"image": as_shown(result.image), **_listed(result)})
    console.noted(notes)
    if len(work.places) > 1 or work.shard is not None:
        console.failed(tally.failed)
    if json:
        console.data(
            {
                "masks": listed,
                "failed": [
                    {"image": as_shown(r.image), "message": str(r.error)} for r in tally.failed
                ],
                "skipped": [asdict(item) for item in skipped],
                "kept": tally.kept,
                "shortened": work.shortened,
                "passed_over": asdict(manifest.passed_over),
                "notes": notes.lines(),
                **({} if work.shard is None else {"shard": str(work.shard)}),
            }
        )
    kept = f", {tally.kept} kept" if tally.kept else ""
    shard = "" if work.shard is None else f"shard {work.shard}: "
    if tally.done or tally.kept or shard:
        one = work.single or (tally.images - tally.kept == 1 and not work.wanted.only and not shard)
        where = first if first and one else work.folder
        console.say(f"{shard}{counted(tally.done, 'mask')} written{kept}: {where}")
    error = tally.error(skipped, work.shard)
    if error is not None and part.launched:
        # A launcher ends all processes when one of them fails; the others' images may be sound.
        console.say(f"{error} (listed in {work.failures})", warning=True)
    elif error is not None:
        raise error


def _listed(result: Predicted) -> dict[str, Any]:
    """The files of an image by what they are; those of `--only` by cluster id."""
    files = {what: str(path) for what, path in result.files.items()}
    only = {what.split()[1]: files.pop(what) for what in list(files) if what.startswith("only ")}
    return files | ({"only": only} if only else {})
