"""The rows of the table, declared.

Another row is another entry of `ROWS`; another part of the recipe to be left out is one of `ABLATIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from making import (
    FeatureKmeans,
    Maker,
    PlainDescription,
    Recipe,
    frequent_labels,
    kmeans_of,
    mixture_of,
    one_class,
    untrained,
)
from tasks import DATASETS, Task

from densesiam_seg.clustering.mixture import RESTARTS, Search
from densesiam_seg.evaluation.baselines import (
    appearance_points,
    colour_points,
    colour_position_points,
    patch_position_points,
)
from densesiam_seg.network.description import Description


@dataclass(frozen=True)
class Row:
    """How a line of the table is made, and what sets it apart from the others."""

    title: str
    make: Maker
    short: str
    """A title for pictures."""
    labels: bool = False
    """It is made from labels of the training split."""
    whole: bool = False
    """Scored without resizing and crop, so not to be compared with the others."""
    seeded: bool = True
    """False: every seed gives the same."""
    datasets: tuple[str, ...] = tuple(DATASETS)

    @property
    def comparable(self) -> bool:
        """Whether it runs for the best figure of a column."""
        return not (self.labels or self.whole)

    @property
    def pretrained(self) -> bool:
        """Whether it starts from the packaged weights; every other row starts from scratch."""
        return isinstance(self.make, Recipe | FeatureKmeans) and self.make.pretrained

    def task(self, task: Task) -> Task:
        """The task as this row takes it."""
        return task.whole() if self.whole else task

    def facts(self, task: Task, *, quick: bool) -> dict[str, Any]:
        """The settings of a training, every one of them; empty for rows that do not train."""
        return self.make.facts(task, quick=quick) if isinstance(self.make, Recipe) else {}


RGB, RGB_XY, PATCHES_XY = "k-means, RGB", "k-means, RGB + xy", "k-means, 5x5 patches + xy"
COLOUR_POSITION = kmeans_of(colour_position_points, "k-means of RGB + xy")
PATCH_POSITION = kmeans_of(patch_position_points, "k-means of 5x5 patch statistics + xy")

PLAIN = {"batch_size": 16, "rate_scaling": "none"}
"""The paper's settings at a batch that fits, the learning rate left at 0.05 (docs/method.md has the measurement)."""
EPOCH = 22
"""Steps of an epoch on CamVid's 367 images; runs have as many steps on every data set."""
PACKAGED = {"weights": "packaged", "backbone": "timm:tf_efficientnet_lite0"}
OURS = Recipe("balanced", PACKAGED)
SCRATCH = Recipe("balanced")
APPEARANCE = kmeans_of(appearance_points, "k-means of log colour, texture + xy")
MIXTURE = mixture_of("mixture over appearance")

ROWS: Mapping[str, Row] = {
    "one-class": Row("one class everywhere", one_class, "one class", seeded=False),
    "position-labels": Row(
        "the label most frequent at each position (uses labels)",
        frequent_labels,
        "frequent label",
        labels=True,
        seeded=False,
    ),
    "rgb": Row(RGB, kmeans_of(colour_points, "k-means of RGB"), "RGB"),
    "rgb-xy": Row(RGB_XY, COLOUR_POSITION, "RGB + xy"),
    "patches-xy": Row(PATCHES_XY, PATCH_POSITION, "patches + xy"),
    "rgb-xy-whole": Row(
        f"{RGB_XY}, whole images of 480x360",
        COLOUR_POSITION,
        "RGB + xy, whole",
        whole=True,
        datasets=("camvid",),
    ),
    "patches-xy-whole": Row(
        f"{PATCHES_XY}, whole images of 480x360",
        PATCH_POSITION,
        "patches, whole",
        whole=True,
        datasets=("camvid",),
    ),
    "appearance": Row(
        "k-means, what the mixture sees",
        APPEARANCE,
        "appearance",
    ),
    "untrained": Row("k-means, untrained ResNet-18-FPN", untrained, "untrained"),
    "picie": Row("PiCIE", Recipe("paper", {**PLAIN, "method": "picie"}, 5 * EPOCH), "PiCIE"),
    "mdc": Row("MDC", Recipe("paper", {**PLAIN, "method": "mdc"}, 5 * EPOCH), "MDC"),
    "densesiam": Row("DenseSiam as published", Recipe("paper", PLAIN, 10 * EPOCH), "DenseSiam"),
    "mixture": Row("mixture over appearance, no network", MIXTURE, "mixture"),
    "scratch": Row("ours from scratch: `train --weights none`", SCRATCH, "from scratch"),
    "plain-kmeans": Row(
        "k-means of the frozen features as usual + PAMR",
        FeatureKmeans(PlainDescription),
        "plain k-means",
    ),
    "frozen-kmeans": Row(
        "k-means of the frozen features as ours describes them + PAMR",
        FeatureKmeans(Description),
        "frozen k-means",
    ),
    "fine-tuned": Row(
        "DenseSiam as published, fine-tuned from the same weights",
        Recipe("balanced", {**PACKAGED, "features": "fpn"}),
        "fine-tuned",
    ),
    "start": Row(
        "ours without training", replace(OURS, settings={**PACKAGED, "epochs": 0}), "start"
    ),
    "steps-50": Row("ours after 50 steps", replace(OURS, steps=50), "50 steps"),
    "ours": Row("ours: `train` as it comes, PAMR included", OURS, "ours"),
    "steps-200": Row("ours after 200 steps", replace(OURS, steps=200), "200 steps"),
}

ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "with DenseSiam's losses": {
        "pixel_weight": 1.0,
        "segmentation_weight": 1.0,
        "balance": "none",
        "region_weight": 0.1,
    },
    "with over-clustering": {"over_cluster_weight": 1.0},
    "with a cosine schedule": {"schedule": "cosine"},
}
"""What each line of `--ablation` changes in ours; it is scored on the training split, and val is left alone."""


def ablation_rows() -> dict[str, Row]:
    """Ours, and ours with one thing changed."""
    return {
        "default": Row("default recipe", OURS, "default"),
        "start": ROWS["start"],
        "unrefined": Row("without PAMR", replace(OURS, refine="none"), "no PAMR"),
        "start-unrefined": Row(
            "without training and PAMR",
            replace(OURS, settings={**PACKAGED, "epochs": 0}, refine="none"),
            "start, no PAMR",
        ),
        "scratch": Row("from scratch", SCRATCH, "scratch"),
        "head": Row(
            "from scratch, read out by the head alone", replace(SCRATCH, alone=True), "head"
        ),
        "as-it-comes": Row(
            "from scratch, without PAMR", replace(SCRATCH, refine="none"), "scratch, no PAMR"
        ),
        "mixture": Row(
            "without the network", mixture_of("mixture + PAMR", refine="pamr"), "no network"
        ),
        "mixture-unrefined": Row("without the network and PAMR", MIXTURE, "mixture"),
        "mixture-no-gist": Row(
            "without the network, never under the gist",
            mixture_of(
                "mixture without gist + PAMR",
                search=Search(RESTARTS // 2, conditioned=(False,)),
                refine="pamr",
            ),
            "no gist",
        ),
        "mixture-gist": Row(
            "without the network, always under the gist",
            mixture_of(
                "mixture under the gist + PAMR",
                search=Search(RESTARTS // 2, conditioned=(True,)),
                refine="pamr",
            ),
            "gist",
        ),
        "mixture-one-start": Row(
            "without the network, from one start of either kind",
            mixture_of("mixture of 2 starts + PAMR", search=Search(2), refine="pamr"),
            "2 starts",
        ),
        "mixture-all-fits": Row(
            "without the network, every fit kept",
            mixture_of(
                "mixture of every fit + PAMR", search=Search(select_one_in=1), refine="pamr"
            ),
            "every fit",
        ),
        "appearance": Row("k-means of what the mixture sees", APPEARANCE, "appearance"),
        **{
            re.sub("[^a-z0-9.]+", "-", name.lower()): Row(
                f"from scratch, {name}", replace(SCRATCH, settings=settings), name
            )
            for name, settings in ABLATIONS.items()
        },
    }
