"""Loading a model with a read-out, how its features become clusters: for `predict` and `evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from densesiam_seg.errors import InputError, UsageError
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.images.scan import scan
from densesiam_seg.inference.centroids import fit_merged, fit_readout
from densesiam_seg.inference.model_card import Readout
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.selection import Choice, choose, sampled_indices
from densesiam_seg.io.run_directory import latest_model

READOUTS: tuple[Readout, ...] = get_args(Readout)
AUTO: Literal["auto"] = "auto"
GRID = (4, 6, 8, 11, 16, 22, 27, 32)
"""Numbers of clusters that `auto` chooses from, beside the head's own."""
RESTARTS = 3
"""Runs of k-means for a read-out; the one with the least sum of squared distances is used."""
OVER_CLUSTERS = 200
"""Default number of over-clusters of a merge."""
MAX_OVER_CLUSTERS = 1024

Clusters: TypeAlias = int | Literal["auto"] | None


def load_with_readout(
    model: str | Path | None = None,
    readout: str = "head",
    clusters: Clusters = None,
    fit_images: Sequence[str | Path] | None = None,
    *,
    over_clusters: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    tell: Callable[[Choice], object] | None = None,
) -> Segmenter:
    """The model (default: the latest run's) with the `head` it learned or a fresh `kmeans` or `merge` read-out.

    k-means is fitted to `fit_images`, by default the images the model was trained on, and has `clusters` clusters, by
    default as many as the head. A merge has k-means with `over_clusters` clusters and joins them to `clusters`. A model
    that was saved with a merge read-out brings its own tree: neither images nor a fit are needed to change `clusters`.

    With `auto` for the read-out, for the clusters (those of `GRID`) or for both, the candidate with the best score of
    `selection` on these images is used; `tell` is called with all of them. A model with a mixture is read by its head
    unless another number of clusters is asked for: only the head uses the mixture, and the score prefers balanced
    clusters (docs/selection.md).

    Raises UsageError, ModelError or InputError.
    """
    _check(readout, clusters, fit_images, over_clusters)
    path = Path(model) if model is not None else latest_model()
    segmenter = Segmenter.load(path, device=device, precision=precision)
    own = segmenter.card.clusters
    mixture = segmenter.network.mixture is not None and clusters in (None, own)
    if readout == "head" or (readout == AUTO and mixture):
        return segmenter
    fixed = AUTO not in (readout, clusters)
    own_tree = segmenter.merges is not None and not (fit_images or over_clusters)
    if fixed and readout == "merge" and own_tree:
        return segmenter if clusters is None else segmenter.with_clusters(int(clusters))
    fine = over_clusters or OVER_CLUSTERS
    counts = sorted({*GRID, own}) if clusters == AUTO else [own if clusters is None else clusters]
    if clusters != AUTO and readout == "merge" and counts[0] > fine:
        raise UsageError(
            f"--clusters {counts[0]}: more than the {fine} over-clusters that are merged; raise --over-clusters"
        )
    manifest = (
        scan(fit_images) if fit_images else training_images(path, "name some with --fit-images")
    )
    readouts = READOUTS if readout == AUTO else (readout,)
    wanted = None if own_tree else fine
    found = list(candidates(segmenter, manifest, readouts, counts, wanted, seed=seed))
    if fixed:
        return found[0]
    chosen_from = [manifest.path(index) for index in sampled_indices(len(manifest))]
    choice = choose(found, chosen_from, seed=seed)
    if tell is not None:
        tell(choice)
    return choice.chosen.segmenter


def candidates(
    segmenter: Segmenter,
    manifest: Manifest,
    readouts: Sequence[str],
    counts: Sequence[int],
    over_clusters: int | None,
    *,
    seed: int,
) -> Iterator[Segmenter]:
    """The model by each of the read-outs with each of the numbers of clusters, fitted to the images of a manifest.

    The head comes where it has one of these numbers. A merge is fitted once, as its tree has all numbers up to
    `over_clusters`; None: the tree that the model was saved with.
    """

    def paths() -> Iterator[str]:
        return (manifest.path(index) for index in range(len(manifest)))

    images = len(manifest)
    if "head" in readouts and segmenter.card.clusters in counts:
        yield segmenter
    if "kmeans" in readouts:
        for count in counts:
            yield fit_readout(segmenter, paths, images, count, seed=seed, restarts=RESTARTS)
    if "merge" in readouts:
        merged = segmenter
        if over_clusters is not None:
            merged = fit_merged(segmenter, paths, images, over_clusters, seed=seed)
        assert merged.merges is not None
        most = merged.merges.over_clusters
        yield from (merged.with_clusters(count) for count in counts if count <= most)


def _check(
    readout: str,
    clusters: Clusters,
    fit_images: Sequence[str | Path] | None,
    over_clusters: int | None,
) -> None:
    """Raises UsageError for options that contradict each other or are out of range."""
    if readout not in (*READOUTS, AUTO):
        raise UsageError(f"--readout {readout}: give head, kmeans, merge or auto")
    if readout == "head" and (clusters is not None or fit_images):
        raise UsageError(
            "--clusters and --fit-images belong to --readout kmeans, merge and auto; the head's clusters are fixed"
        )
    if readout in ("head", "kmeans") and over_clusters is not None:
        raise UsageError(
            "--over-clusters belongs to --readout merge and auto; give one of them or leave it out"
        )
    if clusters not in (None, AUTO) and not 1 <= int(clusters) <= 4096:
        raise UsageError(f"--clusters {clusters}: must be 1 to 4096")
    if over_clusters is not None and not 2 <= over_clusters <= MAX_OVER_CLUSTERS:
        raise UsageError(f"--over-clusters {over_clusters}: must be 2 to {MAX_OVER_CLUSTERS}")


def training_images(path: Path, remedy: str) -> Manifest:
    """The images of a run. Raises InputError, which ends in `remedy`, when they are no longer there."""
    file = (path.parent if path.name == "model" else path) / "dataset.json"
    try:
        manifest = Manifest.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: images are needed, and the run does not tell its own; {remedy}"
        ) from error
    if not manifest.is_there(0):
        raise InputError(f"{manifest.shown(0)}: the training images have moved; {remedy}")
    return manifest
