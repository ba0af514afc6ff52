"""What makes masks, as facts and digests: where they are the same, so are the masks, on one kind of machine."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import JSON, to_json
from densesiam_seg.io.tensors import digest_of

FORMAT = 3
"""Of all that is written; raised with a change by which the same facts give other bytes."""


def facts_of(
    segmenter: Segmenter,
    decoding: Decoding,
    refinement: Refinement,
    batch_size: int | None,
    *,
    names: bool,
) -> dict[str, Any]:
    """All that scores and masks depend on beside the image, as JSON; with `names` those of the clusters too.

    Left out is what only lets an image pass or fail, such as the most pixels.
    """
    how = refinement.settled(segmenter.card.refine)
    return {
        "format": FORMAT,
        "model": digest_of_network(segmenter),
        "clusters": digest_of_clusters(segmenter, names=names),
        "refine": how.refine,
        "flip": how.flip,
        "scales": list(how.scales),
        "page": decoding.page,
        "bands": None if decoding.bands is None else list(decoding.bands),
        "stretch": None if decoding.stretch is None else list(decoding.stretch),
        "batch_size": batch_size,
        "device": segmenter.device.type,
        "precision": str(segmenter.precision).removeprefix("torch."),
        "exact": segmenter.exact,
    }


def digest_of_model(segmenter: Segmenter) -> str:
    """SHA-256 of all that a segmenter's masks depend on, apart from how images are read and refined."""
    parts = digest_of_network(segmenter), digest_of_clusters(segmenter, names=False)
    return hashlib.sha256("".join(parts).encode("ascii")).hexdigest()


def digest_of_network(segmenter: Segmenter) -> str:
    """SHA-256 of the network as it is in memory, of what it is shown, and of a read-out by centroids."""
    shape: JSON = [
        asdict(segmenter.card.architecture),
        segmenter.card.image_size,
        segmenter.card.readout,
    ]
    tensors = {f"network.{name}": value for name, value in segmenter.network.state_dict().items()}
    if segmenter.centroids is not None:
        tensors["centroids"] = segmenter.centroids
    return digest_of(tensors, to_json(shape).encode("ascii"))


def digest_of_clusters(segmenter: Segmenter, *, names: bool) -> str:
    """SHA-256 of how masks show the clusters: ids, colours, merges and members, and with `names` these too."""
    rows: list[list[JSON]] = [
        [each.id, list(each.colour), each.merged_into, list(each.members or ())]
        for each in segmenter.clusters
    ]
    if names:
        rows = [[*row, each.name] for row, each in zip(rows, segmenter.clusters, strict=True)]
    return hashlib.sha256(to_json(rows).encode("ascii")).hexdigest()
