"""The network under training as a `Segmenter`, and a picture of its clusters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
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
LEFT_OUT = 0.05
"""An epoch whose whole batches leave out more than this share of the images does not tell how large clusters are."""
COUNTED = 100
"""Images in which clusters are counted then."""


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
    segmenter = Segmenter(
        training.network,
        card,
        name_clusters(clusters),
        device=str(training.device),
        precision=config.precision,
    )
    if config.learns_clusters():
        shares = _shares(training, segmenter, images, group)
        segmenter.clusters = tuple(name_clusters(clusters, shares))
        return segmenter

    def squares() -> Iterator[Tensor]:
        own = own_places(len(images), group)
        for batch in store.batches([(images[place],) for place in own]):
            yield batch.images[0]

    return fit_readout(segmenter, squares, len(images), clusters, seed=config.seed, group=group)


def _shares(
    training: Training, segmenter: Segmenter, images: Sequence[int], group: Group
) -> list[float]:
    """The share of the area that each cluster has: in the last epoch, or in some of `images` where it left out many."""
    store, last = training.store, training.last_epoch
    seen = training.steps_per_epoch * training.config.batch_size
    if last is not None and seen >= (1 - LEFT_OUT) * len(store):
        return last.shares
    chosen = [images[place] for place in spread(len(images), COUNTED)]
    counts = torch.zeros(len(segmenter.clusters), dtype=torch.long)
    for batch in store.batches([(chosen[place],) for place in own_places(len(chosen), group)]):
        images_read, _ = segmenter.read(batch.images[0])
        (scores,) = segmenter.scores(images_read, only_largest=True)
        counts += scores.argmax(0).flatten().bincount(minlength=len(counts)).cpu()
    counts = group.total(counts)
    # Where a time limit came before the first image there is none.
    return (counts / counts.sum().clamp(min=1)).tolist()


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
