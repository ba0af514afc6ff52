"""Names for clusters from a few labelled masks, by the matching with which models are scored.

Axes: N classes, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from densesiam_seg.datasets.declaration import Dataset, DatasetClass, Split, load_dataset
from densesiam_seg.datasets.index import files_below, folded, stem
from densesiam_seg.datasets.reader import Sample, Samples
from densesiam_seg.errors import InputError, UsageError, counted
from densesiam_seg.evaluation.evaluate import Benchmark, segmenter_events
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.evaluation.protocol import PROTOCOLS
from densesiam_seg.events import Notice, Progress
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import open_regular
from densesiam_seg.naming.edits import regroup

LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
"""Of label files whose classes a text file names."""
MAX_CLASSES_BYTES = 1 << 16
IGNORED = (255,)
"""Label values of no class where a text file names the classes."""


@dataclass(frozen=True)
class Naming:
    """What labelled masks say of a model's clusters."""

    groups: tuple[int, ...]
    """The id (K) under which each cluster is to be shown."""
    names: Mapping[int, str]
    """Of the clusters that are shown and have a class."""
    unnamed: tuple[int, ...]
    """Clusters that are shown and do not occur in the masks, or have no class."""
    evaluation: Evaluation
    """How well the named clusters meet these same masks."""


def classes_of(dataset: str | None, classes: Path | None) -> Dataset:
    """The classes of labels: a dataset's, or those that a text file names, one on each line, from value 0 on.

    Raises UsageError and InputError.
    """
    if (dataset is None) == (classes is None):
        raise UsageError(
            "name: label values need names; give either --classes names.txt, a name on each line from value 0 on, or "
            "--dataset with a built-in name or your own .toml"
        )
    if dataset is not None:
        return load_dataset(dataset)
    assert classes is not None
    try:
        with open_regular(classes) as file:
            lines = file.read(MAX_CLASSES_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{classes}: cannot be read ({error}); give a text file with a class name on each line"
        ) from error
    names = [" ".join(line.split()) for line in lines]
    while names and not names[-1]:
        names.pop()
    if not 1 <= len(names) <= min(IGNORED) or not all(names) or len(set(names)) < len(names):
        raise InputError(
            f"{classes}: must have 1 to {min(IGNORED)} different names, one on each line; mend it"
        )
    return Dataset(
        name="labels",
        title=str(classes),
        classes=tuple(DatasetClass(name=name, values=(value,)) for value, name in enumerate(names)),
        ignore_values=IGNORED,
        image_suffixes=LABEL_SUFFIXES,
        label_suffix=LABEL_SUFFIXES[0],
        splits={"labels": Split(images=(".",), labels=(".",))},
    )


def pairs(labels: Path, images: Manifest, suffixes: Sequence[str]) -> Samples:
    """Each label below a folder with the image of its name: the same sub-folders and stem, or the same stem alone.

    Raises InputError for a folder without labels, and for a label whose image is not there or one of several.
    """
    found = files_below(labels, labels)
    by_name: dict[str, int] = {}
    by_stem: dict[str, list[int]] = {}
    for index, image in enumerate(images.names):
        whole = PurePosixPath(image).with_suffix("")
        by_name[folded(str(whole))] = index
        by_stem.setdefault(folded(whole.name), []).append(index)
    items = []
    for file in found.names:
        name = stem(file, suffixes)
        if not name:
            continue
        alike = by_stem.get(folded(PurePosixPath(name).name), [])
        index = by_name.get(folded(name), alike[0] if len(alike) == 1 else -1)
        if index < 0:
            what = f"is one of {len(alike)} images" if alike else "has no image"
            raise InputError(
                f"{labels / file}: {what} of that name below {images.root}; give the right ones with --images"
            )
        items.append(Sample(name, Path(images.path(index)), labels / file))
    if not items:
        raise InputError(
            f"{labels}: no label ends in {' or '.join(suffixes)}; give the folder of labelled masks"
        )
    return Samples("labels", tuple(items), (), None, "")


def naming_events(
    segmenter: Segmenter, dataset: Dataset, samples: Samples
) -> Iterator[Notice | Progress | Naming]:
    """Match the clusters that masks show with the classes of labels; the last event is the `Naming`.

    The matching is that of an evaluation at full size (`metrics.match`): one to one where there are no more clusters
    than classes, else each with the class of most of its pixels, so that several become one.
    """
    task = Benchmark(dataset, samples, PROTOCOLS["full-image"])
    for event in segmenter_events(segmenter, task):
        if isinstance(event, Evaluation):
            yield name_clusters_by(segmenter, event)
        else:
            yield event


def name_clusters_by(segmenter: Segmenter, evaluation: Evaluation) -> Naming:
    """The names and groups that an evaluation's matching means.

    Of the clusters of one class the one with most of its pixels shows all. A pair that the matching makes without a
    common pixel, as it must give each cluster a class, is none.
    """
    counts, names = evaluation.counts, evaluation.scores.names
    classes = np.array(evaluation.matching.cluster_to_class)
    found: dict[int, str] = {}
    table = segmenter.grouping
    for number, name in enumerate(names):
        members = np.flatnonzero((classes == number) & (counts[number] > 0))
        if len(members):
            root = int(members[counts[number, members].argmax()])
            # A cluster that had the name before, and does not occur in these masks, is the same thing.
            same = [
                each.id
                for each in segmenter.left
                if each.name == name and not counts[:, each.id].any()
            ]
            table[np.isin(table, [*members, *same])] = root
            found[root] = name
    unnamed = tuple(int(k) for k in np.unique(table) if int(k) not in found)
    return Naming(tuple(table.tolist()), found, unnamed, evaluation)


def apply(folder: Path, naming: Naming, labels: Path) -> Any:
    """Write the names and merges into a model directory, as one edit that can be undone; returns its clusters."""
    return regroup(folder, f"name --from {labels}", naming.groups, naming.names, "labels")


def told(naming: Naming) -> str:
    """One line: how many clusters got how many names, and for how many pixels these are right."""
    named = sum(root in naming.names for root in naming.groups)
    scores = naming.evaluation.scores
    return (
        f"{counted(named, 'cluster')} named as {counted(len(naming.names), 'class', 'classes')}, right for "
        f"{scores.pixel_accuracy:.1f} % of the labelled pixels of {counted(naming.evaluation.images, 'mask')}"
    )
