"""`densesiam-seg demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from densesiam_seg.cli.options import RECIPE, Json, Out, Overwrite, Quiet, Seed


def command(
    out: Out = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    seed: Seed = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Passes over the scenes.", rich_help_panel=RECIPE),
    ] = None,
) -> None:
    """See the whole job in three minutes on procedural scenes: train, score, masks and a picture. Needs no data."""
    from densesiam_seg.cli.console import Console
    from densesiam_seg.demo import demo_events

    Console(quiet=quiet).demonstrating(
        demo_events(out, overwrite=overwrite, seed=seed or 0, epochs=epochs), json=json
    )
