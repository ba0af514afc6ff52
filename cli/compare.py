"""`densesiam-seg compare`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from densesiam_seg.cli.endings import end
from densesiam_seg.cli.options import (
    FollowLinks,
    ImagesArgument,
    Json,
    Overwrite,
    Quiet,
    RunArgument,
    import_torch,
    io_option,
    require_model,
)
from densesiam_seg.cli.settings import checked, takes
from densesiam_seg.config import RunConfig


@takes(settings=checked("max_pixels", "device", "precision", "page", "bands"))
def command(
    run: RunArgument,
    other: Annotated[
        Path, typer.Argument(help="Run or model directory to compare with.", show_default=False)
    ],
    images: ImagesArgument,
    *,
    follow_links: FollowLinks = False,
    out: Annotated[
        Path | None,
        io_option("--out", "-o", help="Also write a page with the images where they differ most."),
    ] = None,
    overwrite: Overwrite = False,
    limit: Annotated[
        int, io_option("--limit", min=1, help="Images to list, those with least agreement.")
    ] = 10,
    json: Json = False,
    quiet: Quiet = False,
    settings: RunConfig,
) -> None:
    """Tell which clusters of two models correspond, and in which images the models differ."""
    from densesiam_seg.images.scan import scan

    pages = settings.page == "all"
    found = scan(images, merge=False, follow_links=follow_links, pages=pages)
    require_model(run)
    require_model(other)

    # Only now, as mistakes need not wait for it.
    import_torch()
    from densesiam_seg.cli.console import Console
    from densesiam_seg.inference.segmenter import Segmenter
    from densesiam_seg.reporting.comparing import Compared, compare_events, write_comparison
    from densesiam_seg.reporting.run_files import read_run
    from densesiam_seg.reporting.templates import require_page_target

    sources = [found.path(index) for index in range(len(found))]
    require_page_target(out, sources, overwrite=overwrite)
    console = Console(quiet=quiet)
    console.passed_over(found.passed_over)
    console.skipped(found.skipped)
    first, second = (
        Segmenter.load(path, device=settings.device, precision=settings.precision)
        for path in (run, other)
    )
    decodings = first.new_decoding(settings), second.new_decoding(settings)
    done = console.follow(compare_events(first, second, sources, decodings))[-1]
    assert isinstance(done, Compared)
    for decoding in decodings:
        console.noted(decoding.notes)
    if json:
        skipped = [asdict(item) for item in found.skipped]
        console.data({**done.to_dict(limit), "skipped": skipped, "page": str(out) if out else None})
    else:
        console.comparison(done, limit)
    if out is not None:
        names = read_run(run).name, read_run(other).name
        write_comparison(out, names, first, second, done)
        console.say(f"page: {out}")
    end(console, done.failed, len(done.differences), found.skipped)
