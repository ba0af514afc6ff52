"""Options that several commands share, under the same names everywhere."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from densesiam_seg.cli.settings import number_or_auto
from densesiam_seg.config import MACHINE, RECIPE, RunConfig
from densesiam_seg.errors import UsageError
from densesiam_seg.io.files import means_a_file
from densesiam_seg.presets import Preset

io_option = partial(typer.Option, rich_help_panel="Input and output")
recipe_option = partial(typer.Option, rich_help_panel=RECIPE)

IMAGES = typer.Argument(
    help="Folders, files, tars, globs, .txt lists of paths, or - for a list on stdin.",
    show_default=False,
)
DATASETS = "coco-stuff, cityscapes, potsdam, camvid, or your own .toml."

ImagesArgument = Annotated[list[str], IMAGES]
RunArgument = Annotated[
    Path, typer.Argument(help="Run or model directory of train or pretrain.", show_default=False)
]
DatasetArgument = Annotated[str, typer.Argument(help=DATASETS, show_default=False)]
Root = Annotated[Path, io_option("--root", help="Folder that holds the dataset.")]
Split = Annotated[
    str | None, io_option("--split", help="Split to score, or several as train+val; default val.")
]
TrainSplit = Annotated[
    str, io_option("--train-split", help="Split whose labels the linear probe learns.")
]
ScoringProtocol = Annotated[
    str | None,
    recipe_option("--protocol", metavar="picie|stego|full-image", help="Default: the dataset's."),
]
ScoringSize = Annotated[
    int | None, recipe_option("--image-size", help="Shorter side in pixels; default the model's.")
]
Out = Annotated[
    Path | None, io_option("--out", "-o", help="Where to write; default runs/COMMAND/TIMESTAMP.")
]
JsonFile = Annotated[
    Path | None, io_option("--out", "-o", help="Also write the JSON object to this file.")
]
FollowLinks = Annotated[
    bool, io_option("--follow-links", help="Read folders behind links too, each once.")
]
Overwrite = Annotated[
    bool, io_option("--overwrite", help="Replace what an earlier run wrote there.")
]
Resume = Annotated[
    bool,
    io_option(
        "--resume", help="Go on with the run in --out (else the latest); with images begin it."
    ),
]
ConfigFile = Annotated[
    Path | None, io_option("--config", help="TOML file of settings; options win over it.")
]
Json = Annotated[bool, io_option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, io_option("--quiet", "-q", help="Print warnings and errors only.")]
ShardOption = Annotated[
    str | None,
    io_option("--shard", metavar="I/N", help="Part I of N alone, counted from 0."),
]
RayOption = Annotated[
    str | None,
    io_option(
        "--ray",
        metavar="auto|ADDRESS",
        help="Let the workers of a Ray cluster do it; needs the extra [ray].",
    ),
]
Model = Annotated[
    Path | None,
    io_option("--model", "-m", help="Run or model directory; default the latest run under runs/."),
]


PresetChoice = Annotated[
    Preset | None,
    recipe_option(
        "--preset",
        help="fast: minutes on a laptop. balanced: the default. paper: the paper's recipe (the default for 10,000 "
        "images or more on a GPU).",
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
        help="Show every option and exit.",
    ),
]


@dataclass(frozen=True)
class RunOptions:
    """What `train` and `pretrain` take beside their settings."""

    images: Annotated[list[str] | None, IMAGES] = None
    follow_links: FollowLinks = False
    out: Out = None
    overwrite: Overwrite = False
    resume: Resume = False
    config: ConfigFile = None
    init_from: Annotated[
        Path | None,
        io_option(
            "--init-from", help="Start from the weights of another run or model.", hidden=True
        ),
    ] = None
    max_bad: Annotated[
        float,
        io_option(
            "--max-bad",
            min=0,
            max=1,
            help="Refuse when more than this share of the files is unusable.",
            hidden=True,
        ),
    ] = 1.0
    accept_data_change: Annotated[
        bool,
        io_option(
            "--accept-data-change",
            help="Resume although images changed or came since: with those it began with, as they are now.",
            hidden=True,
        ),
    ] = False
    json: Json = False
    quiet: Quiet = False
    help_all: HelpAll = False
    checkpoint_every: Annotated[
        str | None,
        typer.Option(
            "--checkpoint-every",
            metavar="STEPS|TIME",
            help="Save a checkpoint so often: 500 (steps), 90s, 5m, 2h. Default: 1m.",
            rich_help_panel=MACHINE,
            hidden=True,
        ),
    ] = None
    preset: PresetChoice = None
    max_time: Annotated[
        str | None,
        recipe_option("--max-time", help="Stop with a model after this long: 90s, 15m, 2h."),
    ] = None


@dataclass(frozen=True)
class ReadoutOptions:
    """How a model's features become clusters."""

    readout: Annotated[
        str,
        recipe_option(
            "--readout",
            metavar="head|kmeans|merge|auto",
            help="head: the learned clusters. kmeans: k-means of the features, any K. merge: many k-means clusters, "
            "merged to K. auto: the one of them on which augmented views agree best; the head where training started "
            "from a mixture.",
        ),
    ] = "head"
    clusters: Annotated[
        str | None,
        recipe_option(
            "--clusters",
            "-k",
            help="Clusters K of --readout kmeans or merge; auto chooses from 4 to 32 as --readout auto does.",
        ),
    ] = None
    fit_images: Annotated[
        list[str] | None,
        recipe_option(
            "--fit-images",
            help="Images for kmeans, merge and auto; default the training's.",
        ),
    ] = None
    over_clusters: Annotated[
        int | None,
        recipe_option(
            "--over-clusters", help="Clusters that a merge begins with; 200 unless given."
        ),
    ] = None

    def count(self) -> int | Literal["auto"] | None:
        """What `--clusters` means. Raises UsageError."""
        return "auto" if self.clusters == "auto" else number_or_auto("--clusters", self.clusters)

    def load(self, model: Path | None, machine: RunConfig, tell: Callable[[Any], None]) -> Any:
        """The `Segmenter` that is read out so; `tell` gets what was chosen without labels."""
        import_torch()
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
        bool, recipe_option("--flip", help="Average the scores of each image and its mirror image.")
    ] = False
    scales: Annotated[
        str | None,
        recipe_option(
            "--scales",
            metavar="FACTOR,…",
            help="Average the scores at several scales, such as 0.75,1,1.25.",
        ),
    ] = None
    refine: Annotated[
        str,
        recipe_option(
            "--refine",
            metavar="auto|none|guided|pamr",
            help="Make masks follow the image's edges: guided is a guided filter, pamr pixel-adaptive refinement. "
            "auto: pamr where training started from a mixture, else none.",
        ),
    ] = "auto"

    def refinement(self) -> Any:
        """The `Refinement` that they mean. Raises UsageError."""
        from densesiam_seg.inference.options import refinement

        return refinement(self.flip, self.scales, self.refine)


def import_torch() -> None:
    """Import torch without what the collector of garbage would do meanwhile, an eighth of the time.

    What the import makes is many, and stays: the collector need not look at it later either.
    """
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.enable()
    gc.freeze()


def require_model(model: Path | None) -> None:
    """Refuse a model (default: the latest run's) for what its files alone tell, before torch is imported."""
    from densesiam_seg.inference.model_card import stored_model
    from densesiam_seg.io.run_directory import latest_model

    stored_model(model or latest_model())


def require_new(out: Path | None, overwrite: bool) -> None:
    """Refuse a name for a JSON file that is another file's, or is there already. Raises UsageError."""
    if out is None:
        return
    if os.path.exists(out) and not overwrite:  # noqa: PTH110
        raise UsageError(f"--out {out}: exists already; give --overwrite or another name")
    if means_a_file(out) and out.suffix.lower() not in (".json", ".txt"):
        raise UsageError(f"--out {out}: the file holds JSON; give a name ending in .json")


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


def steps_or_seconds(option: str, text: str | None) -> tuple[int | None, float | None]:
    """`500` is a number of steps, `90s`, `5m` or `2h` a time in seconds. Raises UsageError."""
    if text is None or not text.strip().isdecimal():
        return None, seconds(option, text)
    if int(text) == 0:
        raise UsageError(f"{option} {text}: must be at least 1 step")
    return int(text), None
