"""`densesiam-seg demo`."""

from __future__ import annotations

from typing import Annotated

from densesiam_seg.cli.options import Json, Out, Overwrite, Quiet, recipe_option
from densesiam_seg.cli.settings import checked, takes
from densesiam_seg.config import RunConfig


@takes(settings=checked("seed"))
def command(
    *,
    out: Out = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    epochs: Annotated[
        int | None, recipe_option("--epochs", min=1, help="Passes over the scenes.")
    ] = None,
    settings: RunConfig,
) -> None:
    """See the whole job in three minutes on procedural scenes: train, score, masks and a picture. Needs no data."""
    from densesiam_seg.cli.console import Console
    from densesiam_seg.demo import Demonstrated, demo_events

    console = Console(quiet=quiet)
    events = demo_events(out, overwrite=overwrite, epochs=epochs, seed=settings.seed)
    done = console.follow(events)[-1]
    assert isinstance(done, Demonstrated)
    if json:
        evaluations = {"learned": done.learned.to_dict(), "baseline": done.baseline.to_dict()}
        console.data({"folder": str(done.folder), "picture": str(done.picture), **evaluations})
    else:
        console.scores(done.learned)
        learned, baseline = done.learned.scores, done.baseline.scores
        print(
            f"held-out scenes: densesiam-seg {learned.mean_iou:.1f} mean IoU, {learned.pixel_accuracy:.1f} pixel "
            f"accuracy; k-means on colour + position {baseline.mean_iou:.1f} and {baseline.pixel_accuracy:.1f}"
        )
    console.say(f"picture: {done.picture}")
    console.say(f"masks:   {done.folder / 'masks'}")
    console.say("next:    densesiam-seg train YOUR_IMAGES/")
