"""`densesiam-seg clusters`: list, name, merge and count a model's clusters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densesiam_seg.cli.options import (
    DATASETS,
    IMAGES,
    Json,
    Quiet,
    RunArgument,
    import_torch,
    io_option,
    recipe_option,
)
from densesiam_seg.cli.settings import checked, takes
from densesiam_seg.config import FINE_CLUSTERS, RunConfig
from densesiam_seg.errors import UsageError

if TYPE_CHECKING:
    from densesiam_seg.cli.console import Console
    from densesiam_seg.inference.suggesting import Suggested
    from densesiam_seg.naming.clusters import Cluster, ClusterFile

ClustersArgument = Annotated[
    list[str],
    typer.Argument(metavar="ID|NAME…", help="Clusters, by id or name.", show_default=False),
]
As = Annotated[
    str | None,
    io_option("--as", help="Name of the merged cluster; default that of the first, or one given."),
]


def list_clusters(run: RunArgument, json: Json = False) -> None:
    """List the clusters that masks show: id, name, share of the training images, what is merged into it."""
    from densesiam_seg.inference.model_card import model_folder
    from densesiam_seg.naming.clusters import CLUSTERS, read_clusters

    _show(read_clusters(model_folder(run) / CLUSTERS), json=json)


def rename(
    run: RunArgument,
    names: Annotated[
        list[str],
        typer.Argument(metavar="ID=NAME…", help="Such as 7=sky 3=road.", show_default=False),
    ],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Give clusters names: densesiam-seg clusters rename RUN 7=sky 3=road."""
    pairs: dict[str, str] = {}
    for text in names:
        old, equals, new = text.partition("=")
        if not equals:
            raise UsageError(f"rename {text}: give a cluster, =, and its name, such as 7=sky")
        if old.strip() in pairs:
            raise UsageError(f"rename {text}: cluster {old} is named twice; give one name")
        pairs[old.strip()] = new
    from densesiam_seg.naming import edits

    found = edits.rename(_folder(run), pairs)
    _edited(found, f"{len(pairs)} named", run, json=json, quiet=quiet)


def merge(
    run: RunArgument,
    clusters: ClustersArgument,
    name: As = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show clusters as one, under the id of the first: densesiam-seg clusters merge RUN 3 5 9 --as road."""
    from densesiam_seg.naming import edits

    found = edits.merge(_folder(run), clusters, name)
    _edited(found, "merged", run, json=json, quiet=quiet)


@takes(settings=checked("seed", "device", "precision"))
def suggest(
    run: RunArgument,
    images: Annotated[list[str] | None, IMAGES] = None,
    json: Json = False,
    quiet: Quiet = False,
    *,
    settings: RunConfig,
) -> None:
    """Recommend a number of clusters, by scores that need no labels, and keep it in clusters.json.

    Looks at up to 200 of IMAGES, by default those the model was trained on. `clusters cut` shows as many.
    """
    from densesiam_seg.cli.console import Console

    console = Console(quiet=quiet)
    found = _suggested(run, images, console, settings, "name some after the run")
    if json:
        console.data(found.best.to_dict())
    else:
        console.suggestion(found.best)
        console.say(f"next:  densesiam-seg clusters cut {run} -k {found.best.chosen}")
        if found.best.counts[-1] == found.best.learned < FINE_CLUSTERS:
            console.say(
                f"all {found.best.learned} clusters are in use, so that there may be more to find: "
                f"train --clusters auto learns {FINE_CLUSTERS}"
            )
    if found.error is not None:
        raise found.error


def cut(
    run: RunArgument,
    clusters: Annotated[
        int, recipe_option("--clusters", "-k", help="Clusters to show, at most those learned.")
    ],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show fewer clusters, or more again, without training: densesiam-seg clusters cut RUN -k 12.

    Those that share the most places are merged, in place of all earlier merges, by the tree that `clusters suggest`
    kept (made now where there is none).
    """
    from densesiam_seg.cli.console import Console
    from densesiam_seg.clustering.suggestion import tree_of
    from densesiam_seg.naming.clusters import CLUSTERS, read_clusters
    from densesiam_seg.naming.cuts import cut_to, require_count

    folder = _folder(run)
    kept = read_clusters(folder / CLUSTERS)
    require_count(clusters, len(kept.clusters))
    tree = tree_of(kept.suggestion, len(kept.clusters))
    if tree is None:
        remedy = f"name some first: densesiam-seg clusters suggest {run} IMAGES"
        found = _suggested(run, None, Console(quiet=quiet), RunConfig(), remedy)
        tree = tree_of(found.best.to_dict(), len(kept.clusters))
        assert tree is not None
    _edited(cut_to(folder, clusters, tree), "cut", run, json=json, quiet=quiet)


def undo(run: RunArgument, json: Json = False, quiet: Quiet = False) -> None:
    """Take the last edit back; again for the one before."""
    from densesiam_seg.naming import edits

    words, found = edits.undo(_folder(run))
    _edited(found, f"undone: {words}", run, json=json, quiet=quiet)


@takes(settings=checked("device", "precision"))
def name(
    run: RunArgument,
    labels: Annotated[
        Path, io_option("--from", help="Folder of labelled masks: a handful is enough.")
    ],
    images: Annotated[
        list[str] | None,
        io_option("--images", help="Their images, of the same names; default the training images."),
    ] = None,
    dataset: Annotated[
        str | None, io_option("--dataset", help=f"Whose label values these are: {DATASETS}")
    ] = None,
    classes: Annotated[
        Path | None,
        io_option(
            "--classes", help="Or a text file of class names, one on each line from value 0 on."
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    *,
    settings: RunConfig,
) -> None:
    """Name and merge clusters after a handful of labelled masks, by the matching with which models are scored."""
    folder = _folder(run)
    # Only now, as mistakes need not wait for it.
    import_torch()
    from densesiam_seg.cli.console import Console
    from densesiam_seg.evaluation.naming import (
        LABEL_SUFFIXES,
        Naming,
        apply,
        classes_of,
        naming_events,
        pairs,
        told,
    )
    from densesiam_seg.images.scan import scan
    from densesiam_seg.inference.readout import training_images
    from densesiam_seg.inference.segmenter import Segmenter

    declared = classes_of(dataset, classes)
    suffixes = LABEL_SUFFIXES if dataset is None else [declared.label_suffix]
    manifest = scan(images) if images else training_images(run, "name them with --images")
    samples = pairs(labels, manifest, suffixes)
    console = Console(quiet=quiet)
    segmenter = Segmenter.load(run, device=settings.device, precision=settings.precision)
    found = console.follow(naming_events(segmenter, declared, samples))[-1]
    assert isinstance(found, Naming)
    edited = apply(folder, found, labels)
    console.say(told(found))
    if found.unnamed:
        without = " ".join(map(str, found.unnamed))
        console.say(f"without a name, as these masks do not have them: {without}")
    _edited(edited, "named", run, json=json, quiet=quiet)


def _suggested(
    run: Path, images: list[str] | None, console: Console, settings: RunConfig, remedy: str
) -> Suggested:
    """What is recommended for some images, by default those of the training; kept in the model's `clusters.json`.

    `remedy` is what to do where these have moved.
    """
    folder = _folder(run)
    from densesiam_seg.images.scan import scan
    from densesiam_seg.inference.readout import training_images
    from densesiam_seg.inference.segmenter import Segmenter
    from densesiam_seg.inference.suggesting import Suggested, suggestion_events
    from densesiam_seg.naming import edits

    manifest = scan(images) if images else training_images(run, remedy)
    if images:
        console.passed_over(manifest.passed_over)
    segmenter = Segmenter.load(folder, device=settings.device, precision=settings.precision)
    (found,) = console.follow(suggestion_events(segmenter, manifest, seed=settings.seed))
    assert isinstance(found, Suggested)
    edits.suggest(folder, found.best.to_dict())
    return found


def _folder(run: Path) -> Path:
    """The model directory of a run, verified. Raises ModelError."""
    from densesiam_seg.inference.model_card import stored_model

    return stored_model(run).tensors.parent


def _edited(found: ClusterFile, what: str, run: Path, *, json: bool, quiet: bool) -> None:
    """Tell of an edit, on stdout only with `--json`."""
    from densesiam_seg.cli.console import Console

    if json:
        _show(found, json=True)
    console = Console(quiet=quiet)
    count = sum(each.left for each in found.clusters)
    console.say(f"{what}; {count} of {len(found.clusters)} clusters are shown")
    console.say(f"back:  densesiam-seg clusters undo {run}")


def _show(found: ClusterFile, *, json: bool) -> None:
    from densesiam_seg.cli.console import Console
    from densesiam_seg.naming.clusters import left

    shown = left(found.clusters)
    if json:
        Console().data(
            {
                "revision": found.revision,
                "clusters": [
                    {**each.entry(), "merged": _merged(found.clusters, each)} for each in shown
                ],
                "edits": [edit["edit"] for edit in found.history],
            }
        )
        return
    Console().clusters([(each, _merged(found.clusters, each)) for each in shown])


def _merged(clusters: Sequence[Cluster], root: Cluster) -> list[int]:
    """The ids that are shown as `root`."""
    return [each.id for each in clusters if each.merged_into == root.id]
