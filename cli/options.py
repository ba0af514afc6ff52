"""Options that several commands share, under the same names everywhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

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
ImagesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Folders, files, globs, .txt lists of paths, or - for a list on stdin.",
        show_default=False,
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
InitFrom = Annotated[
    Path | None,
    typer.Option(
        "--init-from", help="Start from the weights of another run or model.", rich_help_panel=WORK
    ),
]
MaxBad = Annotated[
    float,
    typer.Option(
        "--max-bad",
        min=0,
        max=1,
        help="Refuse when more than this share of the files is unusable.",
        rich_help_panel=WORK,
    ),
]
VisualizeEvery = Annotated[
    int | None,
    typer.Option(
        "--visualize-every",
        metavar="EPOCHS",
        help="Draw a picture of the clusters after every so many epochs.",
        rich_help_panel=WORK,
    ),
]


class PresetName(StrEnum):
    """Presets, as typer wants them."""

    fast = "fast"
    balanced = "balanced"
    paper = "paper"


Epochs = Annotated[
    int | None, typer.Option("--epochs", help="Passes over the images.", rich_help_panel=RECIPE)
]
BatchSize = Annotated[
    str | None,
    typer.Option("--batch-size", "-b", help="Images per step, or auto.", rich_help_panel=RECIPE),
]
ImageSize = Annotated[
    int | None,
    typer.Option("--image-size", help="Side of a view in pixels.", rich_help_panel=RECIPE),
]
LearningRate = Annotated[
    float | None,
    typer.Option("--learning-rate", help="The optimiser's rate.", rich_help_panel=RECIPE),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="auto, imagenet, none, a .safetensors or .pth file, or a run of pretrain.",
        rich_help_panel=RECIPE,
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="A model of torchvision (resnet18 …, convnext_tiny …, swin_t …) or, with the extra [timm], timm:NAME.",
        rich_help_panel=RECIPE,
    ),
]
Freeze = Annotated[
    bool | None,
    typer.Option(
        "--freeze/--no-freeze",
        help="Keep the backbone as its weights are; train the decoder and the heads.",
        show_default=False,
        rich_help_panel=RECIPE,
    ),
]
MaxTime = Annotated[
    str | None,
    typer.Option(
        "--max-time",
        help="Stop with a model after this long: 90s, 15m, 2h.",
        rich_help_panel=RECIPE,
    ),
]
Channels = Annotated[
    int | None,
    typer.Option("--channels", help="Channels C of the FPN's features.", rich_help_panel=METHOD),
]
Similarity = Annotated[
    str | None,
    typer.Option("--similarity", help="cross-entropy or cosine.", rich_help_panel=METHOD),
]
ImageWeight = Annotated[
    float | None,
    typer.Option(
        "--image-weight", help="Factor on SimSiam's loss of whole images.", rich_help_panel=METHOD
    ),
]
PixelWeight = Annotated[
    float | None,
    typer.Option("--pixel-weight", help="Factor on the pixel loss.", rich_help_panel=METHOD),
]
RegionWeight = Annotated[
    float | None,
    typer.Option("--region-weight", help="Weight of the region loss.", rich_help_panel=METHOD),
]
RegionStopGradient = Annotated[
    bool | None,
    typer.Option(
        "--region-stop-gradient/--no-region-stop-gradient",
        help="Stop the gradient at region targets (the paper does, its code does not).",
        show_default=False,
        rich_help_panel=METHOD,
    ),
]
Optimizer = Annotated[
    str | None, typer.Option("--optimizer", help="sgd or adam.", rich_help_panel=METHOD)
]
Schedule = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        help="Rate: constant, or cosine (the predictors keep theirs).",
        rich_help_panel=METHOD,
    ),
]
RateScaling = Annotated[
    str | None,
    typer.Option(
        "--rate-scaling",
        help="batch: rate times batch / 256; none: as given.",
        rich_help_panel=METHOD,
    ),
]
Momentum = Annotated[
    float | None, typer.Option("--momentum", help="SGD's momentum.", rich_help_panel=METHOD)
]
WeightDecay = Annotated[
    float | None, typer.Option("--weight-decay", help="Weight decay.", rich_help_panel=METHOD)
]
Workers = Annotated[
    str | None,
    typer.Option("--workers", "-j", help="Decoding threads, or auto.", rich_help_panel=MACHINE),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", help="Processor threads of the network; 0: all cores.", rich_help_panel=MACHINE
    ),
]
Cache = Annotated[
    str | None,
    typer.Option(
        "--cache",
        help="Where decoded images stay: ram, disk (for later runs too), none (decoded every epoch) or auto.",
        rich_help_panel=MACHINE,
    ),
]
CacheDir = Annotated[
    str | None,
    typer.Option(
        "--cache-dir",
        help="Folder of decoded images on the disk; runs/cache unless given.",
        rich_help_panel=MACHINE,
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels", help="Refuse larger images (default 89 million).", rich_help_panel=MACHINE
    ),
]

ImagesTogether = Annotated[
    str | None,
    typer.Option(
        "--batch-size",
        "-b",
        help="Images of one size that pass the network together, or auto.",
        rich_help_panel=MACHINE,
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
Readout = Annotated[
    str,
    typer.Option(
        "--readout",
        help="head: the learned clusters. kmeans: k-means of the features, any K. "
        "merge: many of those, joined to K. auto: the one of them that changed "
        "views agree on best; the head where training started from a mixture.",
        rich_help_panel=RECIPE,
    ),
]
ReadoutClusters = Annotated[
    str | None,
    typer.Option(
        "--clusters",
        "-k",
        help="Clusters of a read-out by kmeans or merge; auto chooses among 4 to 32 as --readout auto does.",
        rich_help_panel=RECIPE,
    ),
]
FitImages = Annotated[
    list[str] | None,
    typer.Option(
        "--fit-images",
        help="Images for kmeans, merge and auto; default those of the training run.",
        rich_help_panel=RECIPE,
    ),
]
OverClusters = Annotated[
    int | None,
    typer.Option(
        "--over-clusters",
        help="Clusters that a merge begins with; 200 unless given.",
        rich_help_panel=RECIPE,
    ),
]
Flip = Annotated[
    bool,
    typer.Option(
        "--flip",
        help="Average the scores of each image and its mirror image.",
        rich_help_panel=RECIPE,
    ),
]
Scales = Annotated[
    str | None,
    typer.Option(
        "--scales",
        metavar="FACTOR,…",
        help="Average the scores of each image at these scales, such as 0.75,1,1.25.",
        rich_help_panel=RECIPE,
    ),
]
Refine = Annotated[
    str,
    typer.Option(
        "--refine",
        help="Sharpen edges by the image: none, guided (a guided filter), pamr, or auto: as the model was trained for, "
        "which is pamr where training started from a mixture, else none.",
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


def readout_clusters(text: str | None) -> int | Literal["auto"] | None:
    """What `--clusters` of a read-out means. Raises UsageError."""
    return "auto" if text == "auto" else number_or_auto("--clusters", text)


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
