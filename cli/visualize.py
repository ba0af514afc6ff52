"""`densesiam-seg visualize`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densesiam_seg.cli.options import (
    WORK,
    Device,
    FitImages,
    Json,
    MaxPixels,
    OverClusters,
    Overwrite,
    Precision,
    Quiet,
    Readout,
    ReadoutClusters,
    Seed,
    readout_clusters,
)

if TYPE_CHECKING:
    from densesiam_seg.cli.console import Console
    from densesiam_seg.images.manifest import Skipped

SHEET = "Sheet"


def command(
    run: Annotated[
        Path,
        typer.Argument(help="Run or model directory of pretrain or train.", show_default=False),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, globs, .txt lists of paths, or - for a list on stdin.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="PNG file to write.", rich_help_panel=WORK),
    ] = Path("visualize.png"),
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
        int,
        typer.Option("--columns", min=1, help="Images side by side.", rich_help_panel=SHEET),
    ] = 1,
    readout: Readout = "head",
    clusters: ReadoutClusters = None,
    fit_images: FitImages = None,
    over_clusters: OverClusters = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Draw images with their pseudo categories and the masks of some of these, all on one PNG."""
    count = readout_clusters(clusters)
    from densesiam_seg.cli.console import Console
    from densesiam_seg.images.decode import MAX_PIXELS
    from densesiam_seg.images.scan import scan
    from densesiam_seg.inference.readout import load_with_readout
    from densesiam_seg.inference.visualize import (
        require_picture_target,
        spread,
        visualization_events,
    )

    console = Console(quiet=quiet)
    manifest = scan(images)
    every = [manifest.path(index) for index in range(len(manifest))]
    require_picture_target(out, every, overwrite=overwrite)
    sources = [every[index] for index in spread(len(every), limit)]
    segmenter = load_with_readout(
        run,
        readout,
        count,
        fit_images,
        over_clusters=over_clusters,
        seed=seed or 0,
        device=device or "auto",
        precision=precision or "auto",
        tell=console.choosing,
    )
    for item in manifest.skipped:
        console.say(f"skipped ({item.reason}): {item.message}", warning=True)
    if len(sources) < len(every):
        console.say(f"drawing {len(sources)} of {len(every)} images; --limit N draws more")
    events = visualization_events(
        segmenter,
        sources,
        shown=clusters_shown or (),
        columns=columns,
        max_pixels=max_pixels or MAX_PIXELS,
    )
    _finish(console, console.follow(events), manifest.skipped, out, json=json)


def _finish(
    console: Console, events: Sequence[Any], skipped: Sequence[Skipped], out: Path, *, json: bool
) -> None:
    """Write the sheet and tell of it; raises the error that the command ends with."""
    from densesiam_seg.events import Predicted
    from densesiam_seg.inference.predict import overall_error
    from densesiam_seg.inference.visualize import Drawing, Drawn
    from densesiam_seg.io.files import make_folder, replace_file
    from densesiam_seg.pictures.masks import encode_png

    drawn = [event for event in events if isinstance(event, Drawn)]
    failed = [event for event in drawn if event.error is not None]
    drawing = next((event for event in events if isinstance(event, Drawing)), None)
    if len(drawn) > 1:
        for event in failed:
            console.say(f"failed: {event.error}", warning=True)
    if drawing is not None:
        make_folder(out.parent)
        replace_file(out, encode_png(drawing.picture))
    if json:
        console.data(
            {
                "picture": str(out) if drawing else None,
                "images": [event.image for event in drawn if event.error is None],
                "shown": drawing.shown if drawing else [],
                "clusters": [
                    {"id": cluster.id, "name": cluster.name, "share": cluster.share}
                    for cluster in (drawing.clusters if drawing else ())
                ],
                "failed": [{"image": event.image, "message": str(event.error)} for event in failed],
                "skipped": [vars(item) for item in skipped],
            }
        )
    if drawing is not None:
        console.say(f"picture: {out}")
    results = [Predicted(event.image, None, event.error) for event in drawn]
    error = overall_error(results, skipped)
    if error is not None:
        raise error
