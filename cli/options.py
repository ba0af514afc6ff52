"""Options that several commands share, under the same names everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from densesiam_seg.cli.settings import number_or_auto
from densesiam_seg.config import RECIPE, RunConfig
from densesiam_seg.errors import UsageError

WORK = "Input and output"

ImagesArgument = Annotated[
    list[str],
    typer.Argument(
        help="Folders, files, globs, .txt lists of paths, or - for a list on stdin.",
        show_default=False,
    ),
]
RunArgument = Annotated[
    Path,
    typer.Argument(help="Run or model directory of train or pretrain.", show_default=False),
]
DatasetArgument = Annotated[
    str,
    typer.Argument(
        help="coco-stuff, cityscapes, potsdam, camvid, or your own .toml.", show_default=False
    ),
]
Root = Annotated[
    Path, typer.Option("--root", help="Folder that holds the dataset.", rich_help_panel=WORK)
]
Split = Annotated[
    str | None,
    typer.Option("--split", help="Split to score; default val. Join with +.", rich_help_panel=WORK),
]
TrainSplit = Annotated[
    str,
    typer.Option(
        "--train-split", help="Split whose labels the linear probe learns.", rich_help_panel=WORK
    ),
]
ScoringProtocol = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="picie, stego or full-image; default the dataset's.",
        rich_help_panel=RECIPE,
    ),
]
ScoringSize = Annotated[
    int | None,
    typer.Option(
        "--image-size", help="Shorter side in pixels; default the model's.", rich_help_panel=RECIPE
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Where to write; default runs/COMMAND/TIMESTAMP.", rich_help_panel=WORK
    ),
]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Also write the JSON object to this file.", rich_help_panel=WORK
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace what an earlier run wrote there.", rich_help_panel=WORK
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the run in --out (else the latest), to the same weights.",
        rich_help_panel=WORK,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", help="TOML file of settings; options win over it.", rich_help_panel=WORK
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


class PresetName(StrEnum):
    """Presets, as typer wants them."""

    fast = "fast"
    balanced = "balanced"
    paper = "paper"


PresetChoice = Annotated[
    PresetName | None,
    typer.Option(
        "--preset",
        help="fast: minutes on a laptop. balanced: the default. paper: the paper's recipe (the default for 10,000 "
        "images or more on a GPU).",
        rich_help_panel=RECIPE,
    ),
]


def _show_all(context: typer.Context, wanted: bool) -> None:
    if wanted:
        for parameter in context.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]
        print(context.get_help(), end="")
        raise typer.Exit


HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all",
        callback=_show_all,
        is_eager=True,
        help="Show every option; docs/settings.md tells their defaults.",
    ),
]


@dataclass(frozen=True)
class RunOptions:
    """What `train` and `pretrain` take beside their settings."""

    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders, files, globs, .txt lists of paths, or - for a list on stdin.",
            show_default=False,
        ),
    ] = None
    out: Out = None
    overwrite: Overwrite = False
    resume: Resume = False
    config: ConfigFile = None
    init_from: Annotated[
        Path | None,
        typer.Option(
            "--init-from",
            help="Start from the weights of another run or model.",
            rich_help_panel=WORK,
            hidden=True,
        ),
    ] = None
    max_bad: Annotated[
        float,
        typer.Option(
            "--max-bad",
            min=0,
            max=1,
            help="Refuse when more than this share of the files is unusable.",
            rich_help_panel=WORK,
            hidden=True,
        ),
    ] = 1.0
    json: Json = False
    quiet: Quiet = False
    help_all: HelpAll = False
    preset: PresetChoice = None
    max_time: Annotated[
        str | None,
        typer.Option(
            "--max-time",
            help="Stop with a model after this long: 90s, 15m, 2h.",
            rich_help_panel=RECIPE,
        ),
    ] = None


@dataclass(frozen=True)
class ReadoutOptions:
    """How a model's features become clusters."""

    readout: Annotated[
        str,
        typer.Option(
            "--readout",
            help="head: the learned clusters. kmeans: k-means of the features, any K. merge: many of those, joined to "
            "K. auto: the one on which changed views agree best; the head where training started from a mixture.",
            rich_help_panel=RECIPE,
        ),
    ] = "head"
    clusters: Annotated[
        str | None,
        typer.Option(
            "--clusters",
            "-k",
            help="Clusters of a read-out by kmeans or merge; auto chooses among 4 to 32 as --readout auto does.",
            rich_help_panel=RECIPE,
        ),
    ] = None
    fit_images: Annotated[
        list[str] | None,
        typer.Option(
            "--fit-images",
            help="Images for kmeans, merge and auto; default those of the training run.",
            rich_help_panel=RECIPE,
        ),
    ] = None
    over_clusters: Annotated[
        int | None,
        typer.Option(
            "--over-clusters",
            help="Clusters that a merge begins with; 200 unless given.",
            rich_help_panel=RECIPE,
        ),
    ] = None

    def count(self) -> int | Literal["auto"] | None:
        """What `--clusters` means. Raises UsageError."""
        return "auto" if self.clusters == "auto" else number_or_auto("--clusters", self.clusters)

    def load(self, model: Path | None, machine: RunConfig, tell: Callable[[Any], None]) -> Any:
        """The `Segmenter` that is read out so; `tell` gets what was chosen without labels."""
        from densesiam_seg.inference.readout import load_with_readout

        return load_with_readout(
            model,
            self.readout,
            self.count(),
            self.fit_images,
            over_clusters=self.over_clusters,
            seed=machine.seed,
            device=machine.device,
            precision=machine.precision,
            tell=tell,
        )


@dataclass(frozen=True)
class RefineOptions:
    """What is done at test time beyond one pass of the image."""

    flip: Annotated[
        bool,
        typer.Option(
            "--flip",
            help="Average the scores of each image and its mirror image.",
            rich_help_panel=RECIPE,
        ),
    ] = False
    scales: Annotated[
        str | None,
        typer.Option(
            "--scales",
            metavar="FACTOR,…",
            help="Average the scores of each image at these scales, such as 0.75,1,1.25.",
            rich_help_panel=RECIPE,
        ),
    ] = None
    refine: Annotated[
        str,
        typer.Option(
            "--refine",
            help="Sharpen edges by the image: none, guided (a guided filter), pamr, or auto: as the model was trained "
            "for, which is pamr where training started from a mixture, else none.",
            rich_help_panel=RECIPE,
        ),
    ] = "auto"

    def refinement(self) -> Any:
        """The `Refinement` that they mean. Raises UsageError."""
        from densesiam_seg.inference.test_time import refinement

        return refinement(self.flip, self.scales, self.refine)


def require_new(out: Path | None, overwrite: bool) -> None:
    """Refuse a file that is there already. Raises UsageError."""
    if out is not None and out.exists() and not overwrite:
        raise UsageError(f"--out {out}: exists already; give --overwrite or another name")


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
