"""Where do feature similarity's links lead? Before training, and with each backbone of a correspondence study.

    python -P benchmarks/links.py IMAGES… --models STUDY/runs/*

Two views of 60 images are drawn as in pre-training; each 7×7 place is linked with the most similar place of the other
view. Prints the share of links whose ends lie within a tenth of the image of each other, and what chance would give.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from densesiam_seg.config import PretrainConfig
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import ImageStore
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.methods.correspondence import STRATEGIES, to_image
from densesiam_seg.methods.sampling import grid_draws
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import DenseSiam, build_network
from densesiam_seg.views.pair import IndependentPair, independent_views

NEAR = 0.1
IMAGES = 60


def main() -> None:
    """Look at the untrained network and at each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+")
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    store = ImageStore(scan(arguments.images), 256, fit="stretch")
    for _ in store.prepare():
        pass
    chosen = tuple(sorted({i * len(store) // IMAGES for i in range(IMAGES)}))
    batch = next(store.batches([chosen]))
    views = independent_views(batch.images, chosen, store.aspects[list(chosen)], seed=9, round_=0)
    report("untrained", build_network(Architecture(over_clusters=0), 0), views)
    for model in arguments.models:
        report(model.name, Segmenter.load(model, device="cpu").network, views)


@torch.no_grad()
def report(name: str, network: DenseSiam, views: IndependentPair) -> None:
    """One line about the links that a network's features make."""
    config = PretrainConfig()
    features = network.train().encoder(torch.cat((views.image_1, views.image_2)))
    first, second = features.chunk(2)
    draws = grid_draws(config, 0, range(len(first)), "cpu")
    found = STRATEGIES["feature-similarity"](
        (views.geometry_1, views.geometry_2), (first, second), config, draws
    )
    ends_1 = to_image(found.places_1[:, :, 0], views.geometry_1)
    ends_2 = to_image(found.places_2[:, :, 0], views.geometry_2)
    near = (ends_1.unsqueeze(2) - ends_2.unsqueeze(1)).norm(dim=-1) < NEAR
    right = (found.weight * near).sum() / found.weight.sum()
    chance = near[found.linked].float().mean()
    print(f"{name}: {100 * right:.0f} % of the links are near, {100 * chance:.0f} % by chance")


if __name__ == "__main__":
    main()
