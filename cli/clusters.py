"""`densesiam-seg clusters`: list, name, merge and count a model's clusters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densesiam_seg.cli.options import IMAGES, Json, Quiet, RunArgument, io_option, recipe_option
from densesiam_seg.errors import UsageError

if TYPE_CHECKING:
    from densesiam_seg.cli.console import Console
    from densesiam_seg.clustering.suggestion import Suggestion
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


def suggest(
    run: RunArgument,
    images: Annotated[list[str] | None, IMAGES] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Recommend a number of clusters, by scores that need no labels, and keep it in clusters.json.

    Looks at up to 200 of IMAGES, by default those the model was trained on. `clusters cut` shows as many.
    """
    from densesiam_seg.cli.console import Console

    console = Console(quiet=quiet)
    found = _suggested(run, images, console)
    if json:
        console.data(found.to_dict())
    else:
        console.suggestion(found)
        console.say(f"next:  densesiam-seg clusters cut {run} -k {found.chosen}")


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
        found = _suggested(run, None, Console(quiet=quiet))
        tree = tree_of(found.to_dict(), len(kept.clusters))
        assert tree is not None
    _edited(cut_to(folder, clusters, tree), "cut", run, json=json, quiet=quiet)


def undo(run: RunArgument, json: Json = False, quiet: Quiet = False) -> None:
    """Take the last edit back; again for the one before."""
    from densesiam_seg.naming import edits

    words, found = edits.undo(_folder(run))
    _edited(found, f"undone: {words}", run, json=json, quiet=quiet)


def _suggested(run: Path, images: list[str] | None, console: Console) -> Suggestion:
    """What is recommended for some images, by default those of the training; kept in the model's `clusters.json`."""
    folder = _folder(run)
    from densesiam_seg.images.scan import scan
    from densesiam_seg.inference.readout import training_images
    from densesiam_seg.inference.segmenter import Segmenter
    from densesiam_seg.inference.suggesting import suggestion_events
    from densesiam_seg.naming import edits

    manifest = scan(images) if images else training_images(run, "name some after the run")
    console.passed_over(manifest.passed_over)
    (found,) = console.follow(suggestion_events(Segmenter.load(folder), manifest))
    edits.suggest(folder, found.to_dict())
    kept: Suggestion = found
    return kept


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
