"""What a score depends on beside its confusion matrix, and the score with all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.datasets.declaration import Kind
from densesiam_seg.evaluation.metrics import Counts, Matching, Scores, match, score


@dataclass(frozen=True)
class Evaluation:
    """A score with everything that it depends on."""

    dataset: str
    split: str
    protocol: str
    images: int
    expected: int | None
    missing: tuple[str, ...]
    digest: str
    clusters: int
    readout: str
    matching: Matching
    scores: Scores
    counts: NDArray[np.int64]
    notes: tuple[str, ...] = ()
    """What may be wrong with the data: the texts of the warnings that were given."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "counts": self.counts.tolist()}


@dataclass(frozen=True)
class Job:
    """All that an evaluation depends on beside what its images came to: equal in all parts of one."""

    dataset: str
    split: str
    protocol: str
    samples: int
    expected: int | None
    missing: tuple[str, ...]
    digest: str
    clusters: int
    """K of the confusion matrix."""
    readout: str
    left: tuple[int, ...] | None
    """The clusters that occur where others are merged into them; None: all."""
    names: tuple[str, ...]
    kinds: tuple[Kind | None, ...]
    notes: tuple[str, ...]
    """Warnings of the data set."""
    model: str = ""
    """The digest of the segmenter."""
    arithmetic: str = ""
    """The kind of device and the precision, which the last bits depend on."""

    def result(
        self,
        counts: Counts,
        unreadable: Sequence[str],
        notes: Sequence[str],
        matching: Matching | None = None,
    ) -> Evaluation:
        """The score of the matrix (N K) of all images; `notes` are warnings of these."""
        found = matching or match(counts, self.left)
        return Evaluation(
            dataset=self.dataset,
            split=self.split,
            protocol=self.protocol,
            images=self.samples - len(unreadable),
            expected=self.expected,
            missing=(*self.missing, *unreadable),
            digest=self.digest,
            clusters=self.clusters if self.left is None else len(self.left),
            readout=self.readout,
            matching=found,
            scores=score(counts, found, self.names, self.kinds),
            counts=counts,
            notes=(*self.notes, *notes),
        )
