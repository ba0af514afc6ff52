"""The rows of the paper's ablations, as settings of `PretrainConfig`, with the figures that the paper gives for them.

Tables A1 and A2 of the supplement, which has no such figures for the similarity and the losses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from densesiam_seg.errors import UsageError


@dataclass(frozen=True)
class Row:
    """One row of an ablation: its name, the settings that make it, and the paper's AP, AP50 and AP75 for it."""

    name: str
    settings: Mapping[str, Any]
    paper: tuple[float, float, float] | None = None

    @property
    def slug(self) -> str:
        """The name as a part of a file's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


def _pixels(correspondence: str = "location", **settings: Any) -> dict[str, Any]:
    """Settings without region embeddings."""
    return {"correspondence": correspondence, "region_weight": 0.0, **settings}


STUDIES: Mapping[str, tuple[Row, ...]] = {
    "correspondence": (
        Row("SimSiam (image level only)", _pixels("none"), (53.5, 79.7, 59.3)),
        Row("feature similarity (DenseCL)", _pixels("feature-similarity"), (36.3, 63.5, 36.1)),
        Row("pixel distance (PixPro)", _pixels("pixel-distance"), (53.7, 79.3, 58.5)),
        Row("candidate regions (ReSim)", _pixels("candidate-regions"), (54.7, 79.9, 60.5)),
        Row("location", _pixels(), (54.9, 80.8, 60.9)),
        Row("location + region embeddings", {"correspondence": "location"}, (55.5, 81.1, 61.5)),
    ),
    "sampling": (
        Row("regular grid, 7x7", _pixels(sampling="regular", grid=7), (54.9, 80.8, 60.9)),
        Row("uniform random", _pixels(sampling="uniform", grid=7), (54.7, 80.7, 60.3)),
        Row(
            "mildly biased (k = 3, β = 0.75)",
            _pixels(sampling="biased", grid=7, oversample=3, importance=0.75),
            (55.0, 80.7, 60.8),
        ),
        Row(
            "heavily biased (k = 10, β = 1)",
            _pixels(sampling="biased", grid=7, oversample=10, importance=1.0),
            (54.3, 80.3, 60.0),
        ),
    ),
    "similarity": (
        Row("cross-entropy", {"similarity": "cross-entropy"}),
        Row("cosine", {"similarity": "cosine"}),
    ),
    "losses": (
        Row("image", {"pixel_weight": 0.0, "region_weight": 0.0}),
        Row("pixel", {"image_weight": 0.0, "region_weight": 0.0}),
        Row("image + pixel", {"region_weight": 0.0}),
        Row("pixel + region", {"image_weight": 0.0}),
        Row("image + pixel + region", {}),
    ),
}


def rows_of(study: str) -> tuple[Row, ...]:
    """The rows of a study. Raises UsageError for an unknown one."""
    if study not in STUDIES:
        raise UsageError(f"no study is named {study!r}; give {', '.join(STUDIES)}")
    return STUDIES[study]


def require_free(study: str, settings: Mapping[str, Any]) -> None:
    """Raises UsageError for a setting that the rows decide.

    A loss's weight may be given, for the rows that do not switch it off; 0 would make a row other than its name says.
    """
    decided = {name for row in rows_of(study) for name in row.settings}
    for name, value in settings.items():
        if name in decided and not (name.endswith("_weight") and value):
            raise UsageError(
                f"{name} = {value!r}: is what the rows of the {study} study differ in; leave it out"
            )
