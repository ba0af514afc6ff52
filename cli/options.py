"""Options that several commands share, under the same names everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densesiam_seg.errors import UsageError

WORK = "Input and output"
RECIPE = "Recipe"
METHOD = "Method (defaults: the paper's)"
MACHINE = "Machine"

Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Where to write; default runs/COMMAND/TIMESTAMP.", rich_help_panel=WORK
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace what an earlier run wrote there.", rich_help_panel=WORK
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=WORK)
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print warnings and errors only.", rich_help_panel=WORK),
]
Model = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "-m",
        help="Run or model directory; default the latest run under runs/.",
        rich_help_panel=WORK,
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=MACHINE),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="auto, fp32, bf16 or fp16.", rich_help_panel=MACHINE),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        max=2**63 - 1,
        help="Seed of every random choice; 0 unless given.",
        rich_help_panel=RECIPE,
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels", help="Refuse larger images (default 89 million).", rich_help_panel=MACHINE
    ),
]

Readout = Annotated[
    str,
    typer.Option(
        "--readout",
        help="head: the learned clusters. kmeans: k-means of the features, any K.",
        rich_help_panel=RECIPE,
    ),
]
ReadoutClusters = Annotated[
    int | None,
    typer.Option(
        "--clusters", "-k", help="Clusters of the k-means read-out.", rich_help_panel=RECIPE
    ),
]
FitImages = Annotated[
    list[str] | None,
    typer.Option(
        "--fit-images",
        help="Images for k-means; default those of the training run.",
        rich_help_panel=RECIPE,
    ),
]


def number_or_auto(option: str, text: str | None) -> int | None:
    """The number of an option that also takes `auto`, which is None. Raises UsageError."""
    if text is None or text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} {text}: give a whole number or auto") from None


def seconds(option: str, text: str | None) -> float | None:
    """`90`, `90s`, `15m` or `2h` in seconds. Raises UsageError."""
    if text is None:
        return None
    factor = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    try:
        value = float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise UsageError(f"{option} {text}: give seconds, or a number with s, m or h, such as 15m")
    return value
