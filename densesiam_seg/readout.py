"""Which model, and how its features become clusters: what `predict` and `evaluate` both ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from densesiam_seg.centroids import fit_readout
from densesiam_seg.errors import InputError, UsageError
from densesiam_seg.manifest import Manifest
from densesiam_seg.runs import latest_model
from densesiam_seg.scan import scan
from densesiam_seg.segmenter import Segmenter


def load_with_readout(
    model: str | Path | None = None,
    readout: str = "head",
    clusters: int | None = None,
    fit_images: Sequence[str | Path] | None = None,
    *,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
) -> Segmenter:
    """The model (default: the latest run's) with the `head` it learned or a fresh `kmeans` read-out.

    k-means is fitted to `fit_images`, by default the images the model was trained on, and has `clusters` clusters, by
    default as many as the head. Raises UsageError, ModelError or InputError.
    """
    if readout not in ("head", "kmeans"):
        raise UsageError(f"--readout {readout}: give head or kmeans")
    if readout == "head" and (clusters is not None or fit_images):
        raise UsageError(
            "--clusters and --fit-images belong to --readout kmeans; the head's clusters are fixed"
        )
    path = Path(model) if model is not None else latest_model()
    segmenter = Segmenter.load(path, device=device, precision=precision)
    if readout == "head":
        return segmenter
    manifest = scan(fit_images) if fit_images else _training_images(path)
    if clusters is not None and not 1 <= clusters <= 4096:
        raise UsageError(f"--clusters {clusters}: must be 1 to 4096")
    count = clusters or segmenter.card.clusters

    def paths() -> Iterator[str]:
        return (manifest.path(index) for index in range(len(manifest)))

    return fit_readout(segmenter, paths, len(manifest), count, seed=seed)


def _training_images(path: Path) -> Manifest:
    """The images that a run was trained on. Raises InputError when they are no longer there."""
    remedy = "name some with --fit-images"
    file = (path.parent if path.name == "model" else path) / "dataset.json"
    try:
        manifest = Manifest.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{file}: k-means needs images, and the run does not tell its own; {remedy}"
        ) from error
    if not Path(manifest.path(0)).exists():
        raise InputError(f"{manifest.path(0)}: the training images have moved; {remedy}")
    return manifest
