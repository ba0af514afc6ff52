"""Which model, and how its features become clusters: what `predict` and `evaluate` both ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from densesiam_seg.centroids import fit_merged, fit_readout
from densesiam_seg.errors import InputError, UsageError
from densesiam_seg.manifest import Manifest
from densesiam_seg.runs import latest_model
from densesiam_seg.scan import scan
from densesiam_seg.segmenter import Segmenter

READOUTS = ("head", "kmeans", "merge")
OVER_CLUSTERS = 200
"""Over-clusters of a merge unless it is told another number."""
MOST_OVER_CLUSTERS = 1024


def load_with_readout(
    model: str | Path | None = None,
    readout: str = "head",
    clusters: int | None = None,
    fit_images: Sequence[str | Path] | None = None,
    *,
    over_clusters: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
) -> Segmenter:
    """The model (default: the latest run's) with the `head` it learned or a fresh `kmeans` or `merge` read-out.

    k-means is fitted to `fit_images`, by default the images the model was trained on, and has `clusters` clusters, by
    default as many as the head. A merge has k-means with `over_clusters` clusters and joins them to `clusters`. A model
    that was saved with a merge read-out brings its own tree: neither images nor a fit are needed to change `clusters`.
    Raises UsageError, ModelError or InputError.
    """
    _check(readout, clusters, fit_images, over_clusters)
    path = Path(model) if model is not None else latest_model()
    segmenter = Segmenter.load(path, device=device, precision=precision)
    if readout == "head":
        return segmenter
    count = clusters or segmenter.card.clusters
    if readout == "merge" and segmenter.merges and not (fit_images or over_clusters):
        return segmenter if clusters is None else segmenter.with_clusters(clusters)
    fine = over_clusters or OVER_CLUSTERS
    if readout == "merge" and count > fine:
        raise UsageError(
            f"--clusters {count}: more than the {fine} over-clusters that are merged; raise --over-clusters"
        )
    manifest = scan(fit_images) if fit_images else _training_images(path)

    def paths() -> Iterator[str]:
        return (manifest.path(index) for index in range(len(manifest)))

    if readout == "merge":
        return fit_merged(segmenter, paths, len(manifest), count, fine, seed=seed)
    return fit_readout(segmenter, paths, len(manifest), count, seed=seed)


def _check(
    readout: str,
    clusters: int | None,
    fit_images: Sequence[str | Path] | None,
    over_clusters: int | None,
) -> None:
    """Raises UsageError for options that contradict each other or are out of range."""
    if readout not in READOUTS:
        raise UsageError(f"--readout {readout}: give head, kmeans or merge")
    if readout == "head" and (clusters is not None or fit_images):
        raise UsageError(
            "--clusters and --fit-images belong to --readout kmeans and merge; the head's clusters are fixed"
        )
    if readout != "merge" and over_clusters is not None:
        raise UsageError("--over-clusters belongs to --readout merge; give that or leave it out")
    if clusters is not None and not 1 <= clusters <= 4096:
        raise UsageError(f"--clusters {clusters}: must be 1 to 4096")
    if over_clusters is not None and not 2 <= over_clusters <= MOST_OVER_CLUSTERS:
        raise UsageError(f"--over-clusters {over_clusters}: must be 2 to {MOST_OVER_CLUSTERS}")


def _training_images(path: Path) -> Manifest:
    """The images that a run was trained on. Raises InputError when they are no longer there."""
    remedy = "name some with --fit-images"
    file = (path.parent if path.name == "model" else path) / "dataset.json"
    try:
        manifest = Manifest.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{file}: the read-out needs images, and the run does not tell its own; {remedy}"
        ) from error
    if not Path(manifest.path(0)).exists():
        raise InputError(f"{manifest.path(0)}: the training images have moved; {remedy}")
    return manifest
