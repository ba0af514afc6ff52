"""The network under training as a `Segmenter`, and a picture of its clusters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from densesiam_seg.inference.centroids import fit_readout, own_places
from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.visualize import spread, training_picture
from densesiam_seg.io.files import make_folder, replace_file
from densesiam_seg.naming.clusters import name_clusters
from densesiam_seg.peers.group import ALONE, Group
from densesiam_seg.pictures.masks import encode_png
from densesiam_seg.training.loop import Training

PICTURES = 4
"""Images in a picture drawn during training."""


def segmenter_of(
    training: Training, images: Sequence[int], facts: Mapping[str, Any], *, group: Group = ALONE
) -> Segmenter:
    """The network read out by the head that learned clusters, else by a fresh k-means of the features of `images`.

    `facts` are what its card says of the training. The processes of a group share the k-means.
    """
    config, store = training.config, training.store
    architecture = training.network.architecture
    clusters = architecture.clusters
    card = ModelCard(
        architecture,
        config.image_size,
        clusters=clusters,
        refine="pamr" if architecture.mixture else "none",
        bands=store.decoding.bands,
        stretch=store.decoding.stretch,
        training=dict(facts),
    )
    shares = training.last_epoch.shares if training.last_epoch else None
    segmenter = Segmenter(
        training.network,
        card,
        name_clusters(clusters, shares or None),
        device=str(training.device),
        precision=config.precision,
    )
    if config.learns_clusters():
        return segmenter

    def squares() -> Iterator[Tensor]:
        own = own_places(len(images), group)
        for batch in store.batches([(images[place],) for place in own]):
            yield batch.images[0]

    return fit_readout(segmenter, squares, len(images), clusters, seed=config.seed, group=group)


def draw_clusters(training: Training, path: Path) -> None:
    """Write a picture of a few images with their clusters as the network sees them now. Raises OutputError."""
    chosen = spread(len(training.store), PICTURES)
    batch = next(training.store.batches([tuple(chosen)]))
    try:
        picture = training_picture(segmenter_of(training, chosen, {}), batch.images)
    finally:
        # A segmenter puts its network into inference form.
        training.network.train()
    make_folder(path.parent)
    replace_file(path, encode_png(picture))
