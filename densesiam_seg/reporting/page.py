"""What the report's page says, as values for its template.

Axes: K clusters, N classes.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from densesiam_seg.errors import counted
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.naming.clusters import Cluster, merged_into
from densesiam_seg.reporting.charts import (
    confusion_picture,
    health_chart,
    loss_chart,
    suggestion_chart,
)
from densesiam_seg.reporting.pictures import Shown
from densesiam_seg.reporting.review import Look
from densesiam_seg.reporting.run_files import RunFiles
from densesiam_seg.reporting.survey import Survey
from densesiam_seg.reporting.templates import css_colour, render

NEIGHBOURS = 3
RARE = 0.1
"""Share of an equal share of the pixels below which a cluster is rare."""
UNSURE = 0.5
"""Mean certainty below which a cluster is unsure."""
LISTED = 200
"""Skipped files that are named."""


@dataclass(frozen=True)
class Neighbour:
    """What a cluster is confused with: the share of its doubt that goes to that cluster."""

    cluster: Cluster
    share: float


@dataclass(frozen=True)
class Card:
    """A cluster as the page shows it."""

    cluster: Cluster
    share: float
    occurrence: float
    certainty: float
    neighbours: tuple[Neighbour, ...]
    flags: tuple[str, ...]
    members: tuple[Cluster, ...]
    """Those merged into it."""
    classes: tuple[tuple[str, float], ...] = ()
    """The classes of its labelled pixels with their shares of them, where labels are known."""
    typical: Sequence[tuple[str, str]] = ()
    """Names of images, and addresses of crops of them."""
    doubtful: Sequence[tuple[str, str]] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "id": self.cluster.id,
            "name": self.cluster.name,
            "share": self.share,
            "images": self.occurrence,
            "certainty": self.certainty,
            "confused_with": [
                {"id": each.cluster.id, "name": each.cluster.name, "share": each.share}
                for each in self.neighbours
            ],
            "flags": list(self.flags),
            "members": [each.id for each in self.members],
        }


@dataclass(frozen=True)
class Contents:
    """All that the page is made of."""

    run: RunFiles
    segmenter: Segmenter
    survey: Survey
    cards: Sequence[Card]
    strip: Sequence[Shown]
    looks: Sequence[Look]
    of_training: bool
    """Whether the images are those of the training."""
    there: int
    """Images that there are, of which as many as the survey has were looked at."""
    evaluation: Evaluation | None = None
    notes: Sequence[str] = field(default=())


def cards_of(
    segmenter: Segmenter,
    survey: Survey,
    evaluation: Evaluation | None = None,
    crops: Mapping[tuple[str, int], Sequence[tuple[str, str]]] | None = None,
) -> list[Card]:
    """The clusters that masks show, the largest first; `crops` by kind and cluster."""
    crops = crops or {}
    share, occurrence = survey.share, survey.occurrence
    shown = segmenter.left
    cards = []
    for cluster in sorted(shown, key=lambda each: (-share[each.id], each.id)):
        own = float(share[cluster.id])
        card = Card(
            cluster,
            own,
            float(occurrence[cluster.id]),
            float(survey.sureness[cluster.id]),
            _neighbours(cluster, shown, survey.doubts[cluster.id]),
            _flags(own, survey, cluster.id, len(shown)),
            tuple(merged_into(segmenter.clusters, cluster.id)),
            _classes(evaluation, cluster.id),
            crops.get(("typical", cluster.id), ()),
            crops.get(("doubtful", cluster.id), ()),
        )
        cards.append(card)
    return cards


def _neighbours(cluster: Cluster, shown: Sequence[Cluster], doubts: Any) -> tuple[Neighbour, ...]:
    total = float(doubts.sum())
    found = [
        Neighbour(other, float(doubts[other.id]) / total)
        for other in shown
        if other.id != cluster.id and total > 0 and doubts[other.id] > 0
    ]
    return tuple(sorted(found, key=lambda each: -each.share)[:NEIGHBOURS])


def _flags(share: float, survey: Survey, cluster: int, count: int) -> tuple[str, ...]:
    if share == 0:
        return ("empty",)
    flags = ["rare"] if share < RARE / count else []
    if len(survey.sources) > 2 and np.count_nonzero(survey.shares[:, cluster]) == 1:
        flags.append("in one image only")
    if survey.sureness[cluster] < UNSURE:
        flags.append("unsure")
    return tuple(flags)


def _classes(evaluation: Evaluation | None, cluster: int) -> tuple[tuple[str, float], ...]:
    """The three classes that most of the cluster's labelled pixels have."""
    if evaluation is None or cluster >= evaluation.counts.shape[1]:
        return ()
    counts = evaluation.counts[:, cluster]
    total = max(int(counts.sum()), 1)
    best = [int(index) for index in np.argsort(-counts, kind="stable")[:3] if counts[index]]
    return tuple((evaluation.scores.names[index], int(counts[index]) / total) for index in best)


def report_page(contents: Contents) -> str:
    """The page as HTML."""
    run, segmenter, survey = contents.run, contents.segmenter, contents.survey
    in_use = sum(card.share > 0 for card in contents.cards)
    manifest = run.manifest
    return render(
        "report.html",
        title=run.name,
        contents=contents,
        cards=contents.cards,
        learned=len(segmenter.clusters),
        seen=_seen(contents),
        facts=_facts(contents, in_use),
        colour=css_colour,
        commands=_commands(run, contents.cards),
        charts=[
            chart
            for chart in (loss_chart(run.steps, run.epochs), health_chart(run.epochs))
            if chart
        ],
        last=run.epochs[-1] if run.epochs else None,
        suggestion=suggestion_chart(run.suggestion),
        suggested=run.suggestion or {},
        skipped=manifest.skipped[:LISTED] if manifest else (),
        skipped_more=max(len(manifest.skipped) - LISTED, 0) if manifest else 0,
        passed_over=str(manifest.passed_over) if manifest else "",
        failed=survey.failed,
        settings=sorted(run.settings.items()),
        environment=_environment(run.environment),
        model=_model(segmenter),
        scores=_scores(contents.evaluation, segmenter),
    )


def _seen(contents: Contents) -> str:
    """How many images of how many, and of which."""
    count = len(contents.survey.sources)
    of = (
        f"{count:,} of {contents.there:,} images"
        if count < contents.there
        else counted(count, "image")
    )
    return f"{of} of the training" if contents.of_training else of


def _facts(contents: Contents, in_use: int) -> list[tuple[str, str]]:
    """Short facts below the title."""
    survey, training = contents.survey, contents.segmenter.card.training
    facts = [
        ("images looked at", f"{len(survey.sources):,}"),
        ("clusters in use", f"{in_use} of {len(contents.cards)}"),
        ("mean certainty", f"{100 * float(survey.confidence.mean()):.0f} %"),
    ]
    if contents.evaluation is not None:
        facts.append(("mean IoU", f"{contents.evaluation.scores.mean_iou:.1f}"))
    if "images" in training:
        facts.append(("trained on", f"{training['images']} images"))
    if "epochs" in training:
        facts.append(("epochs", f"{training['epochs']}"))
    return facts


def _commands(run: RunFiles, cards: Sequence[Card]) -> dict[str, str]:
    """What to type next, with ids of this model."""
    place = shlex.quote(str(run.folder))
    ids = [card.cluster.id for card in cards if card.share > 0] or [0]
    first, second = ids[0], ids[min(1, len(ids) - 1)]
    return {
        "rename": f"densesiam-seg clusters rename {place} {first}=NAME {second}=NAME",
        "merge": f"densesiam-seg clusters merge {place} {first} {second} --as NAME",
        "undo": f"densesiam-seg clusters undo {place}",
        "report": f"densesiam-seg report {place}",
        "review": f"densesiam-seg review {place} IMAGES",
    }


def _environment(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions and machine as rows."""
    rows: list[tuple[str, str]] = []
    for name, value in found.items():
        if name == "fingerprint":
            continue
        if isinstance(value, Mapping):
            rows += [(str(part), str(each)) for part, each in value.items()]
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((str(name), shown or "none"))
    return rows


def _model(segmenter: Segmenter) -> list[tuple[str, str]]:
    """What the model's card says."""
    card = segmenter.card
    rows = [
        ("backbone", card.architecture.backbone),
        ("image size", f"{card.image_size} px"),
        ("read-out", segmenter.readout),
        ("edges", card.refine),
        ("device here", str(segmenter.device)),
    ]
    return rows + [(str(name), str(value)) for name, value in card.training.items()]


@dataclass(frozen=True)
class ScoreRow:
    """A class in the table of scores."""

    name: str
    iou: float | None
    accuracy: float | None
    share: float
    clusters: tuple[Cluster, ...]


def _scores(found: Evaluation | None, segmenter: Segmenter) -> dict[str, Any] | None:
    """The table, the picture of the confusion matrix and what the numbers depend on."""
    if found is None:
        return None
    scores, classes = found.scores, found.matching.cluster_to_class
    shown = [each for each in segmenter.left if each.id < len(classes)]
    rows = [
        ScoreRow(
            name,
            scores.iou[index],
            scores.accuracy[index],
            scores.share[index] / 100,
            tuple(each for each in shown if classes[each.id] == index),
        )
        for index, name in enumerate(scores.names)
    ]
    # By class, so that what is right lies on the diagonal; those without a class last.
    order = sorted((each.id for each in shown), key=lambda k: (classes[k] < 0, classes[k], k))
    names = [each.name for each in segmenter.clusters]
    return {
        "found": found,
        "rows": rows,
        "matrix": confusion_picture(found.counts, scores.names, names, order),
    }


def page_file(run: RunFiles, out: Path | None) -> Path:
    """Where the page goes: into the run, into a folder, or under a name of its own."""
    if out is None:
        return (run.folder / "report" if run.is_run else Path("report")) / "index.html"
    return (
        out if out.suffix.lower() in (".html", ".htm") and not out.is_dir() else out / "index.html"
    )
