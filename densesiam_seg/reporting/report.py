"""`report`: a model and images → one file of HTML that shows what was found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densesiam_seg.errors import ImageError, OutputError, UsageError, counted
from densesiam_seg.evaluation.evaluate import Benchmark, benchmark, segmenter_events
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.events import Notice, Progress
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.scan import scan
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.visualize import spread
from densesiam_seg.io.files import make_folder, means_a_file, open_regular, replace_text
from densesiam_seg.io.run_directory import latest_model
from densesiam_seg.reporting.novelty import Reference
from densesiam_seg.reporting.page import Card, Contents, cards_of, page_file, report_page
from densesiam_seg.reporting.pictures import crop_addresses, show_images
from densesiam_seg.reporting.review import Finding, Look, look_first, reference_events
from densesiam_seg.reporting.run_files import RunFiles, read_run
from densesiam_seg.reporting.survey import Survey, survey_events
from densesiam_seg.reporting.templates import GENERATOR

LIMIT = 300
"""Training images that are looked at unless more are asked for."""
STRIP = 5
"""Images at the top of the page."""
LOOKS = 12
"""Images to look at first."""
REMEDY = "give images: densesiam-seg report RUN IMAGES"
NOVELTY_REMEDY = "densesiam-seg review has --reference for images to compare with"

Images = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Reported:
    """The end: the page, and what it says in short."""

    page: Path
    images: int
    cards: tuple[Card, ...]
    findings: tuple[Finding, ...]
    evaluation: Evaluation | None
    failed: tuple[ImageError, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "page": str(self.page),
            "looked_at": self.images,
            "clusters": [card.to_dict() for card in self.cards],
            "review": [vars(finding) for finding in self.findings],
            "evaluation": self.evaluation.to_dict() if self.evaluation else None,
            "failed": [{"image": each.path, "message": str(each)} for each in self.failed],
        }


@dataclass(frozen=True)
class Order:
    """What is to be reported, checked before a model is loaded."""

    run: RunFiles
    page: Path
    sources: tuple[str, ...]
    there: int
    of_training: bool


def report(
    run: str | Path | None = None,
    images: Images | None = None,
    out: str | Path | None = None,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    dataset: str | Path | None = None,
    root: str | Path | None = None,
    split: str | None = None,
    device: str = "auto",
) -> Reported:
    """Write the page of a run (default: the latest) and return what it says.

    `images` are by default those of the training, at most `LIMIT` of them or `limit`; `out` is a folder or a name that
    ends in `.html`, by default the run's own `report/index.html`. With `dataset` and `root` the model is scored too.
    """
    if (dataset is None) != (root is None):
        raise UsageError("report: dataset and root belong together; give both or neither")
    path = Path(run) if run is not None else latest_model()
    sources = None
    if images is not None:
        given = [images] if isinstance(images, str | Path) else images
        manifest = scan(given, merge=False)
        sources = [manifest.path(index) for index in range(len(manifest))]
    task = benchmark(dataset, root, split) if dataset is not None and root is not None else None
    order = plan_report(path, sources, Path(out) if out else None, limit, overwrite=overwrite)
    *_, last = report_events(Segmenter.load(path, device=device), order, task)
    assert isinstance(last, Reported)
    return last


def plan_report(
    path: Path,
    sources: Sequence[str] | None,
    out: Path | None,
    limit: int | None = None,
    *,
    overwrite: bool = False,
) -> Order:
    """Find the run's files, the images and the place of the page. Raises a DenseSiamError.

    Without `out` an earlier page of the run is replaced; elsewhere that needs `overwrite`.
    """
    run = read_run(path)
    page = page_file(run, out)
    _require_place(page, out, overwrite=overwrite)
    every: Sequence[str]
    if sources is None:
        manifest = run.training_images(REMEDY)
        every = [manifest.path(index) for index in range(len(manifest))]
        limit = LIMIT if limit is None else limit
    else:
        every = sources
    if os.path.realpath(page) in {os.path.realpath(source) for source in every}:
        raise UsageError(f"{page}: would overwrite an input; give another --out")
    chosen = spread(len(every), limit or len(every))
    return Order(run, page, tuple(every[place] for place in chosen), len(every), sources is None)


def _require_place(page: Path, out: Path | None, *, overwrite: bool) -> None:
    """Raises UsageError for a place that holds something else, OutputError for one that is no file."""
    if out is not None and page.parent == out and means_a_file(out):
        raise UsageError(f"--out {out}: give a folder, or a file name ending in .html")
    if not os.path.lexists(page):
        return
    if out is not None and not overwrite:
        raise UsageError(f"{page}: exists already; give --overwrite or another --out")
    try:
        with open_regular(page) as file:
            own = GENERATOR.encode() in file.read(1 << 12)
    except OSError as error:
        raise OutputError(
            f"{page}: is no file that could be replaced; give another --out"
        ) from error
    if not own:
        raise UsageError(f"{page}: was not written by this program; give another --out")


def report_events(
    segmenter: Segmenter,
    order: Order,
    task: Benchmark | None = None,
    decoding: Decoding | None = None,
) -> Iterator[Notice | Progress | Reported]:
    """Write the page; the last event is `Reported`. Images that cannot be read are listed on it."""
    decoding = decoding or segmenter.new_decoding()
    survey, evaluation = None, None
    for event in survey_events(segmenter, order.sources, decoding):
        if isinstance(event, Survey):
            survey = event
        else:
            yield event
    assert survey is not None
    known: Reference | None = survey.reference() if order.of_training else None
    if not order.of_training:
        known = yield from reference_events(segmenter, order.run, remedy=NOVELTY_REMEDY)
    for scored in segmenter_events(segmenter, task) if task else ():
        if isinstance(scored, Evaluation):
            evaluation = scored
        else:
            yield scored
    novelty = known.novelty(survey.sources, survey.descriptions) if known else None
    findings = look_first(survey, novelty, LOOKS)
    yield Progress("drawing the page", 0, 1)
    contents = _drawn(segmenter, order, survey, findings, evaluation, decoding)
    make_folder(order.page.parent)
    replace_text(order.page, report_page(contents))
    yield Progress("drawing the page", 1, 1)
    if len(order.sources) < order.there:
        yield Notice(
            f"looked at {len(order.sources)} of {counted(order.there, 'image')}, evenly spread; --limit N takes more"
        )
    yield Reported(
        order.page,
        len(survey.sources),
        tuple(contents.cards),
        tuple(findings),
        evaluation,
        tuple(survey.failed),
    )


def _drawn(
    segmenter: Segmenter,
    order: Order,
    survey: Survey,
    findings: Sequence[Finding],
    evaluation: Evaluation | None,
    decoding: Decoding,
) -> Contents:
    """All that is on the page, with its pictures."""
    rows = spread(len(survey.sources), STRIP)
    pictured = [*(survey.sources[row] for row in rows), *(each.image for each in findings)]
    shown = list(show_images(segmenter, pictured, decoding))
    crops: dict[tuple[str, int], list[tuple[str, str]]] = {}
    names = dict(enumerate(order.sources))
    for kind, found in (("typical", survey.typical), ("doubtful", survey.doubtful)):
        flat = [crop for own in found for crop in own]
        drawn = {
            id(crop): each
            for crop, each in crop_addresses(flat, names, segmenter.palette, decoding)
        }
        for crop in flat:
            if id(crop) in drawn:
                name = Path(names[crop.place]).name
                crops.setdefault((kind, crop.cluster), []).append((name, drawn[id(crop)]))
    return Contents(
        order.run,
        segmenter,
        survey,
        cards_of(segmenter, survey, evaluation, crops),
        shown[: len(rows)],
        [Look(*pair) for pair in zip(findings, shown[len(rows) :], strict=True)],
        order.of_training,
        order.there,
        evaluation,
        decoding.notes.lines(),
    )
