"""`densesiam-seg pretrain`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from densesiam_seg.cli.options import (
    METHOD,
    RECIPE,
    Backbone,
    BatchSize,
    Cache,
    CacheDir,
    Channels,
    ConfigFile,
    Device,
    Epochs,
    Freeze,
    ImagesArgument,
    ImageSize,
    ImageWeight,
    InitFrom,
    Json,
    LearningRate,
    MaxBad,
    MaxPixels,
    MaxTime,
    Momentum,
    Optimizer,
    Out,
    Overwrite,
    PixelWeight,
    Precision,
    PresetName,
    Quiet,
    RateScaling,
    RegionStopGradient,
    RegionWeight,
    Resume,
    Schedule,
    Seed,
    Similarity,
    Threads,
    VisualizeEvery,
    WeightDecay,
    Weights,
    Workers,
    number_or_auto,
    seconds,
)


def command(
    images: ImagesArgument = None,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    config: ConfigFile = None,
    init_from: InitFrom = None,
    max_bad: MaxBad = 1.0,
    visualize_every: VisualizeEvery = None,
    json: Json = False,
    quiet: Quiet = False,
    preset: Annotated[
        PresetName | None,
        typer.Option(
            "--preset",
            help="fast: minutes on a laptop. balanced: the default. paper: ResNet-50, res5, 224 px, batch 256, "
            "100 epochs (the default for 10,000 images or more on a GPU).",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    image_size: ImageSize = None,
    learning_rate: LearningRate = None,
    weights: Weights = None,
    backbone: Backbone = None,
    freeze: Freeze = None,
    features: Annotated[
        str | None,
        typer.Option(
            "--features",
            help="Dense features: fpn (stride 4) or res5 (stride 32).",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    max_time: MaxTime = None,
    seed: Seed = None,
    channels: Channels = None,
    categories: Annotated[
        int | None,
        typer.Option(
            "--categories", help="Pseudo categories K of the pixels.", rich_help_panel=METHOD
        ),
    ] = None,
    correspondence: Annotated[
        str | None,
        typer.Option(
            "--correspondence",
            help="location, feature-similarity, pixel-distance, candidate-regions or none.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    sampling: Annotated[
        str | None,
        typer.Option(
            "--sampling",
            help="Places in the overlap: regular grid, uniform or biased.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    grid: Annotated[
        int | None,
        typer.Option("--grid", help="Side of the grid of places.", rich_help_panel=METHOD),
    ] = None,
    oversample: Annotated[
        int | None,
        typer.Option(
            "--oversample",
            help="Biased sampling's k: candidates per place.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    importance: Annotated[
        float | None,
        typer.Option(
            "--importance",
            help="Biased sampling's beta: share of the most dissimilar places.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    distance_threshold: Annotated[
        float | None,
        typer.Option(
            "--distance-threshold",
            help="Pixel distance's threshold, in diagonals of a grid cell.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    similarity: Similarity = None,
    image_weight: ImageWeight = None,
    pixel_weight: PixelWeight = None,
    region_weight: RegionWeight = None,
    region_stop_gradient: RegionStopGradient = None,
    min_scale: Annotated[
        float | None,
        typer.Option(
            "--min-scale", help="Least share of the image's area in a view.", rich_help_panel=METHOD
        ),
    ] = None,
    max_scale: Annotated[
        float | None,
        typer.Option(
            "--max-scale",
            help="Largest share of the image's area in a view.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    optimizer: Optimizer = None,
    schedule: Schedule = None,
    rate_scaling: RateScaling = None,
    momentum: Momentum = None,
    weight_decay: WeightDecay = None,
    device: Device = None,
    precision: Precision = None,
    workers: Workers = None,
    threads: Threads = None,
    cache: Cache = None,
    cache_dir: CacheDir = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Learn dense features from unlabelled images, for `train --weights RUN` and for other programs.

    The run directory is like that of `train`; its model shows pseudo categories, and `export --backbone` writes its
    backbone as a plain torchvision state dict.
    """
    given: dict[str, Any] = {
        "visualize_every": visualize_every,
        "epochs": epochs,
        "batch_size": number_or_auto("--batch-size", batch_size),
        "image_size": image_size,
        "learning_rate": learning_rate,
        "weights": weights,
        "backbone": backbone,
        "freeze": freeze,
        "features": features,
        "seed": seed,
        "channels": channels,
        "categories": categories,
        "correspondence": correspondence,
        "sampling": sampling,
        "grid": grid,
        "oversample": oversample,
        "importance": importance,
        "distance_threshold": distance_threshold,
        "similarity": similarity,
        "image_weight": image_weight,
        "pixel_weight": pixel_weight,
        "region_weight": region_weight,
        "region_stop_gradient": region_stop_gradient,
        "min_scale": min_scale,
        "max_scale": max_scale,
        "optimizer": optimizer,
        "schedule": schedule,
        "rate_scaling": rate_scaling,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "device": device,
        "precision": precision,
        "workers": number_or_auto("--workers", workers),
        "threads": threads,
        "cache": cache,
        "cache_dir": cache_dir,
        "max_pixels": max_pixels,
    }
    limit = seconds("--max-time", max_time)

    from densesiam_seg.config import PretrainConfig, read_config
    from densesiam_seg.errors import UsageError

    if not images and not resume:
        raise UsageError(
            "pretrain: name a folder of images, for example densesiam-seg pretrain images/"
        )
    settings = read_config(config, PretrainConfig()) if config else {}
    settings |= {name: value for name, value in given.items() if value is not None}

    # Only now, as torch comes with it, which mistakes need not wait for.
    from densesiam_seg.cli.console import Console
    from densesiam_seg.training.pretrain import pretraining_events

    events = pretraining_events(
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
    Console(quiet=quiet).training(events, command="pretrain", json=json)
