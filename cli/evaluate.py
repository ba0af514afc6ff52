"""`densesiam-seg evaluate` and `densesiam-seg probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from densesiam_seg.cli.options import (
    DATASETS,
    DatasetArgument,
    Json,
    JsonFile,
    Model,
    Overwrite,
    Quiet,
    ReadoutOptions,
    RefineOptions,
    Root,
    RunArgument,
    ScoringProtocol,
    ScoringSize,
    Split,
    TrainSplit,
    io_option,
    recipe_option,
    require_model,
    require_new,
)
from densesiam_seg.cli.settings import checked, takes
from densesiam_seg.config import RunConfig

AllowOutside = Annotated[
    bool,
    io_option(
        "--allow-outside", help="Let lists name files outside --root; for lists that you trust."
    ),
]


@takes(
    reading=ReadoutOptions, refining=RefineOptions, settings=checked("seed", "device", "precision")
)
def evaluate(
    dataset: DatasetArgument,
    root: Root,
    *,
    model: Model = None,
    split: Split = None,
    list_file: Annotated[
        Path | None,
        io_option(
            "--list",
            help="File naming the images to score, one per line, or an image and its label.",
        ),
    ] = None,
    allow_missing: Annotated[
        bool, io_option("--allow-missing", help="Go on without images that are missing.")
    ] = False,
    allow_outside: AllowOutside = False,
    out: JsonFile = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    protocol: ScoringProtocol = None,
    image_size: ScoringSize = None,
    reading: ReadoutOptions,
    refining: RefineOptions,
    settings: RunConfig,
) -> None:
    """Score a model on a labelled dataset; labels are used for scoring only."""
    require_new(out, overwrite)
    refinement = refining.refinement()
    reading.count()
    require_model(model)

    # Only now, as torch comes with it, which mistakes need not wait for.
    from densesiam_seg.cli.console import Console
    from densesiam_seg.evaluation.evaluate import benchmark, segmenter_events
    from densesiam_seg.evaluation.job import Evaluation

    task = benchmark(
        dataset,
        root,
        split,
        protocol=protocol,
        image_size=image_size,
        list_file=list_file,
        allow_missing=allow_missing,
        allow_outside=allow_outside,
    )
    console = Console(quiet=quiet)
    segmenter = reading.load(model, settings, console.choosing)
    result = console.follow(segmenter_events(segmenter, task, refinement))[-1]
    assert isinstance(result, Evaluation)
    if json:
        console.data(result.to_dict())
    else:
        console.scores(result)
    if result.missing:
        console.say(
            f"{len(result.missing)} images were missing, first {result.missing[0]}", warning=True
        )
    console.keep(result.to_dict(), out)


@takes(settings=checked("seed", "device", "precision"))
def probe(
    run: RunArgument,
    dataset: Annotated[str, io_option("--dataset", help=DATASETS)],
    root: Root,
    *,
    split: Split = None,
    train_split: TrainSplit = "train",
    allow_outside: AllowOutside = False,
    out: JsonFile = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    kind: Annotated[
        str,
        recipe_option(
            "--kind",
            help="linear: learned from labels. kmeans: label-free. both: one after the other.",
        ),
    ] = "both",
    protocol: ScoringProtocol = None,
    image_size: ScoringSize = None,
    clusters: Annotated[
        int | None,
        recipe_option(
            "--clusters", "-k", help="Clusters of the k-means probe; default the number of classes."
        ),
    ] = None,
    settings: RunConfig,
) -> None:
    """Score a model's frozen features: by a linear probe, which uses labels, and by k-means, which does not."""
    require_new(out, overwrite)
    require_model(run)

    # Only now, as torch comes with it, which mistakes need not wait for.
    from densesiam_seg.cli.console import Console, means
    from densesiam_seg.evaluation.probe import Probe, ready_probe

    events = ready_probe(
        run,
        dataset,
        root,
        train_split=train_split,
        split=split,
        protocol=protocol,
        image_size=image_size,
        kind=kind,
        clusters=clusters,
        allow_outside=allow_outside,
        seed=settings.seed,
        device=settings.device,
        precision=settings.precision,
    )
    console = Console(quiet=quiet)
    result = console.follow(events)[-1]
    assert isinstance(result, Probe)
    if json:
        console.data(result.to_dict())
    else:
        found = [each for each in (result.linear, result.kmeans) if each is not None]
        for each in found:
            console.scores(each)
            print()
        for each in found:
            print(f"{each.readout}\n    {means(each.scores)}")
    console.say(f"processor time: {result.seconds:.0f} s")
    console.keep(result.to_dict(), out)
