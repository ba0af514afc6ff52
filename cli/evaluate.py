"""`densesiam-seg evaluate` and `densesiam-seg probe`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densesiam_seg.cli.options import (
    DATASETS,
    HelpAll,
    Json,
    JsonFile,
    Model,
    Overwrite,
    Quiet,
    RayOption,
    ReadoutOptions,
    RefineOptions,
    Root,
    RunArgument,
    ScoringProtocol,
    ScoringSize,
    ShardOption,
    Split,
    TrainSplit,
    import_torch,
    io_option,
    recipe_option,
    require_model,
    require_new,
)
from densesiam_seg.cli.scoring import Output, Scoring, merge_parts, require_one_way
from densesiam_seg.cli.settings import checked, takes
from densesiam_seg.config import RunConfig
from densesiam_seg.errors import UsageError
from densesiam_seg.peers.shard import parse_shard

if TYPE_CHECKING:
    from densesiam_seg.evaluation.evaluate import Benchmark

AllowOutside = Annotated[
    bool,
    io_option(
        "--allow-outside", help="Let lists name files outside --root; for lists that you trust."
    ),
]


RARE = ("allow_outside", "ray", "fit_images", "over_clusters", "scales", "seed", "precision")


@takes(
    rare=RARE,
    reading=ReadoutOptions,
    refining=RefineOptions,
    settings=checked("seed", "device", "precision"),
)
def evaluate(
    dataset: Annotated[
        list[str],
        typer.Argument(
            help=f"{DATASETS} With --merge: parts, or folders that hold them.", show_default=False
        ),
    ],
    *,
    root: Annotated[Path | None, io_option("--root", help="Folder that holds the dataset.")] = None,
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
    shard: ShardOption = None,
    merge: Annotated[
        bool, io_option("--merge", help="Join all parts that --shard made to one score.")
    ] = False,
    ray: RayOption = None,
    out: JsonFile = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    help_all: HelpAll = False,
    protocol: ScoringProtocol = None,
    image_size: ScoringSize = None,
    reading: ReadoutOptions,
    refining: RefineOptions,
    settings: RunConfig,
) -> None:
    """Score a model on a labelled dataset; labels are used for scoring only."""
    output = Output(out, overwrite, json, quiet)
    part = parse_shard(shard) if shard else None
    if merge:
        require_new(out, overwrite)
        given = (root, model, split, list_file, protocol, image_size, shard, ray)
        if any(each is not None for each in given) or allow_missing or allow_outside:
            raise UsageError(
                "--merge: parts hold all that a score depends on; give them alone, with --out and --json"
            )
        merge_parts(dataset, output)
        return
    if len(dataset) != 1:
        raise UsageError(f"evaluate {' '.join(dataset)}: give one dataset, or parts with --merge")
    if root is None:
        raise UsageError("Missing option '--root': the folder that holds the dataset")
    require_one_way(part, ray, out)
    if part is None:
        require_new(out, overwrite)
    refinement = refining.refinement()
    reading.count()
    require_model(model)
    if ray is not None:
        from densesiam_seg.on_ray.cluster import require_cluster

        require_cluster(ray)

    # Only now, as mistakes need not wait for it.
    import_torch()
    from densesiam_seg.evaluation.evaluate import benchmark

    def task() -> Benchmark:
        return benchmark(
            dataset[0],
            root,
            split,
            protocol=protocol,
            image_size=image_size,
            list_file=list_file,
            allow_missing=allow_missing,
            allow_outside=allow_outside,
        )

    job = Scoring(task, model, reading, refinement, settings)
    if part is not None:
        job.score_part(part, output)
    elif ray is not None:
        job.score_on_ray(ray, output)
    else:
        job.score(output)


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

    # Only now, as mistakes need not wait for it.
    import_torch()
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
