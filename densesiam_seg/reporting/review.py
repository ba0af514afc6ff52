"""`review`: which images a person should look at first.

Two scores: **certainty**, the mean over an image's pixels of the probability of their cluster, and **novelty**, how far
the image lies from the training images (`novelty`). The list takes turns: the least certain image, the most unlike one,
the second least certain, and so on, each once.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.errors import ImageError, InputError
from densesiam_seg.events import Notice, Progress
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import make_folder, replace_text
from densesiam_seg.packed.members import as_shown
from densesiam_seg.reporting.novelty import REFERENCE, Reference
from densesiam_seg.reporting.pictures import Shown, show_images
from densesiam_seg.reporting.run_files import RunFiles
from densesiam_seg.reporting.survey import Survey, described_events, survey_events
from densesiam_seg.reporting.templates import PAGES, render, require_page_target

Why = Literal["uncertain", "unlike"]
LIMIT = 20
REMEDY = "name images to compare with by --reference"


@dataclass(frozen=True)
class Finding:
    """An image worth a look: its scores, and which of them put it on the list."""

    image: str
    certainty: float
    novelty: float | None
    why: Why


@dataclass(frozen=True)
class Look:
    """A finding as a page shows it."""

    finding: Finding
    shown: Shown


@dataclass(frozen=True)
class Reviewed:
    """The images to look at first, and those that could not be read."""

    findings: tuple[Finding, ...]
    images: int
    failed: tuple[ImageError, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "images": [
                {**asdict(finding), "image": as_shown(finding.image)} for finding in self.findings
            ],
            "looked_at": self.images,
            "failed": [{"image": each.path, "message": str(each)} for each in self.failed],
        }


def review_events(
    segmenter: Segmenter,
    sources: Sequence[str],
    run: RunFiles,
    *,
    limit: int = LIMIT,
    reference: Sequence[str] | None = None,
    decoding: Decoding | None = None,
) -> Iterator[Notice | Progress | Reviewed]:
    """Rank images; the last event is `Reviewed`. `reference` are images to compare with, by default the training's."""
    known = yield from reference_events(segmenter, run, reference)
    survey = None
    for event in survey_events(segmenter, sources, decoding):
        if isinstance(event, Survey):
            survey = event
        else:
            yield event
    assert survey is not None
    novelty = known.novelty(survey.sources, survey.descriptions) if known else None
    findings = look_first(survey, novelty, limit)
    yield Reviewed(tuple(findings), len(survey.sources), tuple(survey.failed))


def reference_events(
    segmenter: Segmenter,
    run: RunFiles,
    given: Sequence[str] | None = None,
    remedy: str = REMEDY,
) -> Generator[Notice | Progress, None, Reference | None]:
    """Describe some training images, or those given; returns the `Reference`, or None with a warning."""
    if given is None:
        try:
            manifest = run.training_images(remedy)
        except InputError as error:
            yield Notice(f"novelty is left out: {error}", warning=True)
            return None
        given = [manifest.path(index) for index in range(len(manifest))]
    places = np.unique(np.linspace(0, len(given) - 1, REFERENCE).round().astype(int))
    found = yield from described_events(segmenter, [given[place] for place in places])
    known = Reference(*found)
    if not known.usable:
        yield Notice(
            f"novelty is left out: only {len(known.sources)} images to compare with could be read; {remedy}",
            warning=True,
        )
        return None
    return known


def look_first(survey: Survey, novelty: NDArray[np.float64] | None, limit: int) -> list[Finding]:
    """At most `limit` images, the least certain and the most unlike in turn."""
    uncertain = np.argsort(survey.confidence, kind="stable").tolist()
    unlike = [] if novelty is None else np.argsort(-novelty, kind="stable").tolist()
    reasons: list[tuple[Why, list[int]]] = [("uncertain", uncertain), ("unlike", unlike)]
    turns = chain.from_iterable(
        zip_longest(*([(row, why) for row in rows] for why, rows in reasons))
    )
    found: dict[int, Why] = {}
    for turn in turns:
        if turn is not None and len(found) < limit:
            found.setdefault(*turn)
    return [
        Finding(
            survey.sources[row],
            float(survey.confidence[row]),
            None if novelty is None else float(novelty[row]),
            why,
        )
        for row, why in found.items()
    ]


def require_list_target(
    out: Path | None, inputs: Sequence[str] = (), *, overwrite: bool = False
) -> None:
    """Raises UsageError unless `out` names a CSV or HTML file that may be written."""
    require_page_target(out, inputs, overwrite=overwrite, suffixes=(".csv", *PAGES))


def write_csv(path: Path, found: Reviewed) -> None:
    """The list as a table for spreadsheets, whole or not at all. Raises OutputError."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "certainty", "novelty", "why"])
    for each in found.findings:
        novelty = "" if each.novelty is None else f"{each.novelty:.4f}"
        writer.writerow(
            [printable(as_shown(each.image)), f"{each.certainty:.4f}", novelty, each.why]
        )
    make_folder(path.parent)
    replace_text(path, text.getvalue())


def write_page(path: Path, segmenter: Segmenter, title: str, found: Reviewed) -> None:
    """The list as a page with the images and their masks. Raises OutputError."""
    images = [finding.image for finding in found.findings]
    shown = show_images(segmenter, images, segmenter.new_decoding())
    looks = [Look(*pair) for pair in zip(found.findings, shown, strict=True)]
    make_folder(path.parent)
    replace_text(path, render("review.html", title=title, found=found, shown=looks))


def printable(name: str) -> str:
    """A file's name as text: bytes that are none become escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
