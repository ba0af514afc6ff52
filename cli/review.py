"""`densesiam-seg review`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

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
from densesiam_seg.errors import one_line


@takes(settings=checked("max_pixels", "device", "precision", "page", "bands"))
def command(
    run: RunArgument,
    images: ImagesArgument,
    *,
    follow_links: FollowLinks = False,
    reference: Annotated[
        list[str] | None,
        io_option(
            "--reference",
            help="Images that are known, to compare with; default those of the training run.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        io_option("--out", "-o", help="Also write the list to this .csv or, with pictures, .html."),
    ] = None,
    overwrite: Overwrite = False,
    limit: Annotated[int, io_option("--limit", min=1, help="Images to list.")] = 20,
    json: Json = False,
    quiet: Quiet = False,
    settings: RunConfig,
) -> None:
    """List the images to look at first: the least certain ones, and those most unlike the training images, in turn.

    Certainty is the mean probability of an image's pixels. A novelty of 1 is usual; 2 is twice as far from the training
    images as these are from each other.
    """
    from densesiam_seg.images.scan import scan

    pages = settings.page == "all"
    found = scan(images, merge=False, follow_links=follow_links, pages=pages)
    known = None
    if reference:
        listed = scan(reference, follow_links=follow_links, pages=pages)
        known = [listed.path(index) for index in range(len(listed))]
    require_model(run)

    # Only now, as mistakes need not wait for it.
    import_torch()
    from densesiam_seg.cli.console import Console
    from densesiam_seg.inference.segmenter import Segmenter
    from densesiam_seg.packed.members import as_shown
    from densesiam_seg.reporting.review import (
        Reviewed,
        require_list_target,
        review_events,
        write_csv,
        write_page,
    )
    from densesiam_seg.reporting.run_files import read_run

    sources = [found.path(index) for index in range(len(found))]
    require_list_target(out, sources, overwrite=overwrite)
    files = read_run(run)
    console = Console(quiet=quiet)
    console.passed_over(found.passed_over)
    console.skipped(found.skipped)
    segmenter = Segmenter.load(run, device=settings.device, precision=settings.precision)
    decoding = segmenter.new_decoding(settings)
    events = review_events(
        segmenter, sources, files, limit=limit, reference=known, decoding=decoding
    )
    done = console.follow(events)[-1]
    assert isinstance(done, Reviewed)
    console.noted(decoding.notes)
    if json:
        skipped = [asdict(item) for item in found.skipped]
        console.data({**done.to_dict(), "skipped": skipped, "page": str(out) if out else None})
    else:
        print("certainty  novelty  why        image")
        for each in done.findings:
            novelty = "–" if each.novelty is None else f"{each.novelty:.2f}"
            print(
                f"{each.certainty:9.3f}  {novelty:>7}  {each.why:9}  {one_line(as_shown(each.image))}"
            )
    if out is not None and out.suffix.lower() == ".csv":
        write_csv(out, done)
    elif out is not None:
        write_page(out, segmenter, files.name, done)
    if out is not None:
        console.say(f"list: {out}")
    end(console, done.failed, done.images, found.skipped)
