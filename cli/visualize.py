"""`densesiam-seg visualize`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densesiam_seg.cli.options import (
    FollowLinks,
    ImagesArgument,
    Json,
    Overwrite,
    Quiet,
    ReadoutOptions,
    RunArgument,
    import_torch,
    io_option,
    require_model,
)
from densesiam_seg.cli.settings import checked, takes
from densesiam_seg.config import RunConfig
from densesiam_seg.events import Predicted

if TYPE_CHECKING:
    from densesiam_seg.cli.console import Console
    from densesiam_seg.images.manifest import Manifest
    from densesiam_seg.inference.visualize import Drawing

SHEET = "Sheet"


@takes(
    reading=ReadoutOptions,
    settings=checked("seed", "max_pixels", "device", "precision", "page", "bands"),
)
def command(
    run: RunArgument,
    images: ImagesArgument,
    *,
    follow_links: FollowLinks = False,
    out: Annotated[Path, io_option("--out", "-o", help="PNG file to write.")] = Path(
        "visualize.png"
    ),
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    clusters_shown: Annotated[
        list[str] | None,
        typer.Option(
            "--clusters-shown",
            metavar="ID,NAME,…",
            help="Categories whose masks are drawn; default the largest.",
            rich_help_panel=SHEET,
        ),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            "--limit",
            min=1,
            help="Images to draw, evenly spread over those given.",
            rich_help_panel=SHEET,
        ),
    ] = 8,
    columns: Annotated[
        int, typer.Option("--columns", min=1, help="Images side by side.", rich_help_panel=SHEET)
    ] = 1,
    reading: ReadoutOptions,
    settings: RunConfig,
) -> None:
    """Draw images with their pseudo categories and the masks of some of these, all on one PNG."""
    reading.count()
    from densesiam_seg.images.scan import scan

    pages = settings.page == "all"
    manifest = scan(images, merge=False, follow_links=follow_links, pages=pages)
    require_model(run)
    # Only now, as mistakes need not wait for it.
    import_torch()
    from densesiam_seg.cli.console import Console
    from densesiam_seg.inference.visualize import draw_files, require_picture_target, spread
    from densesiam_seg.packed.members import as_shown

    console = Console(quiet=quiet)
    every = [manifest.path(index) for index in range(len(manifest))]
    require_picture_target(out, every, overwrite=overwrite)
    sources = [every[index] for index in spread(len(every), limit)]
    segmenter = reading.load(run, settings, console.choosing)
    console.passed_over(manifest.passed_over)
    console.skipped(manifest.skipped)
    if len(sources) < len(every):
        console.say(f"drawing {len(sources)} of {len(every)} images; --limit N draws more")
    decoding = segmenter.new_decoding(settings)
    drawing, errors = draw_files(
        segmenter,
        sources,
        shown=clusters_shown or (),
        columns=columns,
        decoding=decoding,
    )
    console.noted(decoding.notes)
    reasons = {error.path: error for error in errors}
    results = [Predicted(source, None, reasons.get(source)) for source in map(as_shown, sources)]
    _show(console, drawing, results, manifest, out, json=json)


def _show(
    console: Console,
    drawing: Drawing | None,
    results: Sequence[Predicted],
    manifest: Manifest,
    out: Path,
    *,
    json: bool,
) -> None:
    """Write the sheet and tell of it; raises the error that the command ends with."""
    from densesiam_seg.io.files import make_folder, replace_file
    from densesiam_seg.pictures.masks import encode_png
    from densesiam_seg.prediction.predict import overall_error

    failed = [result for result in results if result.error is not None]
    if len(results) > 1:
        console.failed(failed)
    if drawing is not None:
        make_folder(out.parent)
        replace_file(out, encode_png(drawing.picture))
    if json:
        console.data(
            {
                "picture": str(out) if drawing else None,
                "images": [each.image for each in results if each.error is None],
                "shown": drawing.shown if drawing else [],
                "clusters": [
                    {"id": cluster.id, "name": cluster.name, "share": cluster.share}
                    for cluster in (drawing.clusters if drawing else ())
                ],
                "failed": [{"image": each.image, "message": str(each.error)} for each in failed],
                "skipped": [asdict(item) for item in manifest.skipped],
                "passed_over": asdict(manifest.passed_over),
            }
        )
    if drawing is not None:
        console.say(f"picture: {out}")
    error = overall_error(results, manifest.skipped)
    if error is not None:
        raise error
