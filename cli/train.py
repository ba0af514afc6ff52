"""`densesiam-seg train`."""

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
            help="fast: minutes on a laptop. balanced: the default. paper: 320 px, batch 256, 10 epochs (the default "
            "for 10,000 images or more on a GPU).",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="densesiam, pixsim (without regions), simsiam (whole images only), or the baselines picie and mdc.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(
            "--clusters", "-k", help="Clusters K to learn; 27 unless given.", rich_help_panel=RECIPE
        ),
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    image_size: ImageSize = None,
    learning_rate: LearningRate = None,
    weights: Weights = None,
    backbone: Backbone = None,
    freeze: Freeze = None,
    max_time: MaxTime = None,
    seed: Seed = None,
    over_clusters: Annotated[
        int | None,
        typer.Option("--over-clusters", help="Over-clusters A.", rich_help_panel=METHOD),
    ] = None,
    channels: Channels = None,
    prior: Annotated[
        str | None,
        typer.Option(
            "--prior",
            help="mixture: start from Gaussians over colour, texture and position, and read out with them (the default "
            "of fast and balanced where no weights are loaded, but with --freeze). none: the plain method.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    prior_weight: Annotated[
        float | None,
        typer.Option(
            "--prior-weight",
            help="Weight of the loss that follows the mixture's clusters.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    similarity: Similarity = None,
    balance: Annotated[
        str | None,
        typer.Option(
            "--balance",
            help="Pseudo-label weights: inverse (re-balancing), frequency (the released code's) or none.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    image_weight: ImageWeight = None,
    pixel_weight: PixelWeight = None,
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
    region_weight: RegionWeight = None,
    region_start: Annotated[
        float | None,
        typer.Option(
            "--region-start",
            help="Share of the epochs before the region loss starts.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    region_stop_gradient: RegionStopGradient = None,
    replay: Annotated[
        str | None,
        typer.Option(
            "--replay",
            help="Draw views anew each epoch, or once for the run.",
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
    """Learn to segment from a folder of unlabelled images.

    The run directory keeps the settings, records, checkpoints and the model.
    """
    given: dict[str, Any] = {
        "visualize_every": visualize_every,
        "method": method,
        "clusters": clusters,
        "epochs": epochs,
        "batch_size": number_or_auto("--batch-size", batch_size),
        "image_size": image_size,
        "learning_rate": learning_rate,
        "weights": weights,
        "backbone": backbone,
        "freeze": freeze,
        "seed": seed,
        "over_clusters": over_clusters,
        "channels": channels,
        "prior": prior,
        "prior_weight": prior_weight,
        "similarity": similarity,
        "balance": balance,
        "image_weight": image_weight,
        "pixel_weight": pixel_weight,
        "over_cluster_weight": over_cluster_weight,
        "segmentation_weight": segmentation_weight,
        "region_weight": region_weight,
        "region_start": region_start,
        "region_stop_gradient": region_stop_gradient,
        "replay": replay,
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

    from densesiam_seg.config import read_config
    from densesiam_seg.errors import UsageError

    if not images and not resume:
        raise UsageError("train: name a folder of images, for example densesiam-seg train images/")
    settings = read_config(config) if config else {}
    settings |= {name: value for name, value in given.items() if value is not None}

    # Only now, as torch comes with it, which mistakes need not wait for.
    from densesiam_seg.cli.console import Console
    from densesiam_seg.training.train import training_events

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
