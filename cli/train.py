"""`densesiam-seg train`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from densesiam_seg.cli.options import (
    MACHINE,
    METHOD,
    RECIPE,
    WORK,
    Device,
    Json,
    MaxPixels,
    Out,
    Overwrite,
    Precision,
    Quiet,
    Seed,
    number_or_auto,
    seconds,
)


class PresetName(StrEnum):
    fast = "fast"
    balanced = "balanced"
    paper = "paper"


def command(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders, files, globs, .txt lists of paths, or - for a list on stdin.",
            show_default=False,
        ),
    ] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out (else the latest), to the same weights.",
            rich_help_panel=WORK,
        ),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="TOML file of settings; options win over it.", rich_help_panel=WORK
        ),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            "--init-from",
            help="Start from the weights of another run or model.",
            rich_help_panel=WORK,
        ),
    ] = None,
    max_bad: Annotated[
        float,
        typer.Option(
            "--max-bad",
            min=0,
            max=1,
            help="Refuse when more than this share of the files is unusable.",
            rich_help_panel=WORK,
        ),
    ] = 1.0,
    json: Json = False,
    quiet: Quiet = False,
    preset: Annotated[
        PresetName | None,
        typer.Option(
            "--preset",
            help="fast: minutes on a laptop. balanced: the default. paper: 320 px, batch 256, 10 epochs (the default "
            "for 10,000 images or more on a GPU).",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(
            "--clusters", "-k", help="Clusters K to learn; 27 unless given.", rich_help_panel=RECIPE
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Passes over the images.", rich_help_panel=RECIPE)
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            "--batch-size", "-b", help="Images per step, or auto.", rich_help_panel=RECIPE
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option("--image-size", help="Side of a view in pixels.", rich_help_panel=RECIPE),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="SGD's rate.", rich_help_panel=RECIPE)
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="auto, imagenet, none, or a .safetensors or .pth file.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="resnet18, resnet34 or resnet50.", rich_help_panel=RECIPE),
    ] = None,
    max_time: Annotated[
        str | None,
        typer.Option(
            "--max-time",
            help="Stop with a model after this long: 90s, 15m, 2h.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    seed: Seed = None,
    over_clusters: Annotated[
        int | None, typer.Option("--over-clusters", help="Over-clusters A.", rich_help_panel=METHOD)
    ] = None,
    channels: Annotated[
        int | None, typer.Option("--channels", help="Feature channels C.", rich_help_panel=METHOD)
    ] = None,
    similarity: Annotated[
        str | None,
        typer.Option("--similarity", help="cross-entropy or cosine.", rich_help_panel=METHOD),
    ] = None,
    balance: Annotated[
        str | None,
        typer.Option(
            "--balance",
            help="Pseudo-label weights: inverse (re-balancing), frequency (the released code's) or none.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    pixel_weight: Annotated[
        float | None,
        typer.Option("--pixel-weight", help="Factor on the pixel loss.", rich_help_panel=METHOD),
    ] = None,
    over_cluster_weight: Annotated[
        float | None,
        typer.Option(
            "--over-cluster-weight",
            help="Factor on the over-clustering loss.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    segmentation_weight: Annotated[
        float | None,
        typer.Option(
            "--segmentation-weight", help="Weight of the pseudo-label loss.", rich_help_panel=METHOD
        ),
    ] = None,
    region_weight: Annotated[
        float | None,
        typer.Option("--region-weight", help="Weight of the region loss.", rich_help_panel=METHOD),
    ] = None,
    region_start: Annotated[
        float | None,
        typer.Option(
            "--region-start",
            help="Share of the epochs before the region loss starts.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    region_stop_gradient: Annotated[
        bool | None,
        typer.Option(
            "--region-stop-gradient/--no-region-stop-gradient",
            help="Stop the gradient at region targets (the paper does, its code does not).",
            show_default=False,
            rich_help_panel=METHOD,
        ),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(
            "--replay",
            help="Draw views anew each epoch, or once for the run.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    rate_scaling: Annotated[
        str | None,
        typer.Option(
            "--rate-scaling",
            help="batch: rate times batch / 256; none: as given.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    momentum: Annotated[
        float | None, typer.Option("--momentum", help="SGD's momentum.", rich_help_panel=METHOD)
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option("--weight-decay", help="SGD's weight decay.", rich_help_panel=METHOD),
    ] = None,
    device: Device = None,
    precision: Precision = None,
    workers: Annotated[
        str | None,
        typer.Option("--workers", "-j", help="Decoding threads, or auto.", rich_help_panel=MACHINE),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            help="Processor threads of the network; 0: all cores.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Learn to segment from a folder of unlabelled images.

    The run directory keeps the settings, records, checkpoints and the model.
    """
    given: dict[str, Any] = {
        "clusters": clusters,
        "epochs": epochs,
        "batch_size": number_or_auto("--batch-size", batch_size),
        "image_size": image_size,
        "learning_rate": learning_rate,
        "weights": weights,
        "backbone": backbone,
        "seed": seed,
        "over_clusters": over_clusters,
        "channels": channels,
        "similarity": similarity,
        "balance": balance,
        "pixel_weight": pixel_weight,
        "over_cluster_weight": over_cluster_weight,
        "segmentation_weight": segmentation_weight,
        "region_weight": region_weight,
        "region_start": region_start,
        "region_stop_gradient": region_stop_gradient,
        "replay": replay,
        "rate_scaling": rate_scaling,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "device": device,
        "precision": precision,
        "workers": number_or_auto("--workers", workers),
        "threads": threads,
        "max_pixels": max_pixels,
    }
    limit = seconds("--max-time", max_time)

    from densesiam_seg.cli.console import Console
    from densesiam_seg.config import read_config
    from densesiam_seg.errors import UsageError
    from densesiam_seg.training import training_events

    if not images and not resume:
        raise UsageError("train: name a folder of images, for example densesiam-seg train images/")
    settings = read_config(config) if config else {}
    settings |= {name: value for name, value in given.items() if value is not None}
    events = training_events(
        images or [],
        out=out,
        preset=preset.value if preset else None,
        max_time=limit,
        max_bad=max_bad,
        init_from=init_from,
        resume=resume,
        overwrite=overwrite,
        **settings,
    )
    Console(quiet=quiet).training(events, json=json)
