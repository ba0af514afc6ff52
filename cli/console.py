"""Events → terminal. Everything for people goes to stderr; stdout carries only data.

The one module that knows Rich. It draws what all commands have in common; what only one of them shows is in its file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console as Terminal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from densesiam_seg.errors import one_line
from densesiam_seg.events import (
    EpochRecord,
    Notice,
    Predicted,
    Progress,
    Started,
    StepRecord,
)
from densesiam_seg.io.files import replace_text, to_json
from densesiam_seg.packed.members import as_shown

SHOWN_COUNTS = 12
"""Up to so many clusters each number has a row in the table of a suggestion, beyond it every fourth."""

if TYPE_CHECKING:
    from densesiam_seg.clustering.suggestion import Suggestion
    from densesiam_seg.evaluation.job import Evaluation
    from densesiam_seg.evaluation.metrics import Scores
    from densesiam_seg.images.decoding import Notes
    from densesiam_seg.images.manifest import PassedOver, Skipped
    from densesiam_seg.inference.selection import Choice
    from densesiam_seg.naming.clusters import Cluster
    from densesiam_seg.on_ray.predicting import RayJob
    from densesiam_seg.reporting.comparing import Compared


class Console:
    """Draws the events of one command."""

    def __init__(self, *, quiet: bool = False, bars: bool = True) -> None:
        """`bars`: whether progress is drawn; of several processes on one terminal one alone should."""
        self.quiet, self.bars = quiet, bars
        self.terminal = Terminal(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str, *, warning: bool = False) -> None:
        """One line on stderr; warnings also when quiet."""
        # As Text, since Rich would read names such as [red].jpg and :cat:.jpg as markup.
        line = Text(one_line(text))
        if warning:
            self.terminal.print(Text.assemble(("warning:", "yellow"), " ", line))
        elif not self.quiet:
            self.terminal.print(line)

    def data(self, value: Any) -> None:
        """One JSON object on stdout."""
        print(to_json(value, indent=2))

    def _progress(self) -> ProgressBar:
        return ProgressBar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.terminal,
            transient=True,
            disable=self.quiet or not self.bars or not self.terminal.is_terminal,
        )

    def follow(self, events: Iterable[Any]) -> list[Any]:
        """Draw events as they come; returns those that are not progress alone."""
        kept: list[Any] = []
        epochs = steps = 0
        with self._progress() as progress:
            bar = _Bar(progress)
            for event in events:
                match event:
                    case Notice():
                        self.say(event.text, warning=event.warning)
                    case Progress():
                        bar.show(event.what, event.done, event.total)
                    case Started():
                        self.say(str(event))
                        steps, epochs = event.total_steps, event.config.epochs
                    case StepRecord():
                        losses = " ".join(
                            f"{name} {value:.3f}" for name, value in event.losses.items()
                        )
                        bar.show(f"epoch {event.epoch + 1}/{epochs}", event.step, steps, losses)
                    case EpochRecord():
                        self.say(str(event))
                        kept.append(event)
                    case Predicted():
                        kept.append(event)
                        bar.show("masks", len(kept), None)
                    case _:
                        kept.append(event)
        return kept

    def notice(self, event: Notice) -> None:
        """A line of a library that yields other things."""
        self.say(event.text, warning=event.warning)

    def masks(self, results: Iterable[Predicted], total: int | None) -> Iterator[Predicted]:
        """The same results, drawn as they pass; none is kept. `total` is how many come, where that is known."""
        with self._progress() as progress:
            bar = _Bar(progress)
            for count, result in enumerate(results, 1):
                bar.show("masks", count, total)
                yield result

    def choosing(self, choice: Choice) -> None:
        """What was chosen without labels, and among what."""
        for line in choice.lines:
            self.say(line)

    def passed_over(self, found: PassedOver) -> None:
        """What lay among the images and was not taken, if there was anything."""
        if str(found):
            self.say(f"passed over: {found}", warning=found.doubtful)

    def noted(self, notes: Notes | RayJob) -> None:
        """Warn of what was noticed while images were decoded."""
        for line in notes.lines():
            self.say(line, warning=True)

    def skipped(self, items: Sequence[Skipped]) -> None:
        """Warn of files that were passed over."""
        for item in items:
            self.say(f"skipped ({item.reason}): {item.message}", warning=True)

    def failed(self, results: Sequence[Predicted]) -> None:
        """Warn of images that could not be read."""
        for result in results:
            self.say(f"failed: {result.error}", warning=True)

    def keep(self, result: dict[str, Any], out: Path | None) -> None:
        """Write a result to a file where one was asked for; last, so that it has been shown where that fails."""
        if out is not None:
            replace_text(out, to_json(result, indent=2) + "\n")

    def clusters(self, found: Sequence[tuple[Cluster, Sequence[int]]]) -> None:
        """The table of a model's clusters on stdout, each with the ids of those that are merged into it."""
        table = Table()
        table.add_column("id", justify="right")
        table.add_column("name", overflow="fold")
        table.add_column("share", justify="right")
        any_merged = any(merged for _, merged in found)
        if any_merged:
            table.add_column("merged into it")
        for cluster, merged in found:
            share = "–" if cluster.share is None else f"{100 * cluster.share:.1f} %"
            colour = "#{:02x}{:02x}{:02x}".format(*cluster.colour)
            name = Text.assemble(("■ ", colour), one_line(cluster.name))
            others = [" ".join(map(str, merged))] if any_merged else []
            table.add_row(str(cluster.id), name, share, *others)
        Terminal(highlight=False).print(table)

    def suggestion(self, found: Suggestion) -> None:
        """The scores of the numbers of clusters that are worth a look on stdout, and the one that is recommended."""
        table = Table()
        table.add_column("clusters", justify="right")
        for name in found.scores:
            table.add_column(name, justify="right")
        for place, count in enumerate(found.counts):
            if count > SHOWN_COUNTS and count % 4 and abs(count - found.chosen) > 1:
                continue
            scores = [each[place] for each in found.scores.values()]
            values = ["–" if value is None else f"{value:.3f}" for value in scores]
            style = "bold" if count == found.chosen else None
            table.add_row(str(count), *values, style=style)
        terminal = Terminal(highlight=False)
        terminal.print(table)
        terminal.print(f"recommended: {found.chosen} clusters")

    def comparison(self, found: Compared, limit: int) -> None:
        """The table of clusters that correspond and the images where two models differ most, on stdout."""
        terminal = Terminal(highlight=False)
        table = Table()
        for title in ("first", "second"):
            table.add_column(title, overflow="fold")
        for title in ("IoU", "share of pixels"):
            table.add_column(title, justify="right")
        for pair in found.pairs:
            names = [f"{each.id} {one_line(each.name)}" for each in (pair.first, pair.second)]
            shares = [f"{100 * value:.1f} %" for value in (pair.iou, pair.share)]
            table.add_row(*map(Text, names), *shares)
        terminal.print(table)
        for which, only in (("first", found.only_first), ("second", found.only_second)):
            if only:
                names = [f"{each.id} {each.name}" for each in only]
                print(one_line(f"only in the {which}: {', '.join(names)}"))
        print(
            f"agreement {100 * found.agreement:.1f} % of the pixels; "
            f"normalised mutual information {found.information:.3f}"
        )
        print("least agreement:")
        for each in found.differences[:limit]:
            print(one_line(f"{100 * each.agreement:5.1f} %  {as_shown(each.image)}"))

    def scores(self, result: Evaluation) -> None:
        """The table of an evaluation on stdout, then what fixes its numbers, the means last."""
        terminal = Terminal(highlight=False)
        scores = result.scores
        table = Table(
            title=Text(one_line(f"{result.dataset}, {result.split}")), title_justify="left"
        )
        table.add_column("class", overflow="fold")
        for title in ("IoU", "accuracy", "share of pixels", "clusters"):
            table.add_column(title, justify="right")
        for index, name in enumerate(scores.names):
            members = [str(k) for k, c in enumerate(result.matching.cluster_to_class) if c == index]
            values = (scores.iou[index], scores.accuracy[index], scores.share[index])
            table.add_row(Text(one_line(name)), *map(_percent, values), " ".join(members) or "–")
        terminal.print(table)
        of = f" of {result.expected}" if result.expected not in (None, result.images) else ""
        print(
            f"images {result.images}{of}; clusters {result.clusters} ({result.readout}), "
            f"in use {scores.clusters_in_use}"
        )
        print(f"protocol {result.protocol}; matching {result.matching.kind}, one for the whole set")
        if scores.absent:
            print(f"absent classes, left out of the means: {one_line(', '.join(scores.absent))}")
        kinds = [("things", scores.things_iou), ("stuff", scores.stuff_iou)]
        parts = "".join(f", {name} {value:.2f}" for name, value in kinds if value is not None)
        print(means(scores, parts))


class _Bar:
    """The one progress bar of a command, renamed as the work goes from one part to the next."""

    def __init__(self, progress: ProgressBar) -> None:
        self.progress = progress
        self.task: TaskID | None = None
        self.part = ""

    def show(self, what: str, done: int, total: int | None, note: str = "") -> None:
        part = what.split(" ")[0]
        if self.task is None or part != self.part:
            if self.task is not None:
                self.progress.remove_task(self.task)
            self.task = self.progress.add_task(what, total=total, note=note)
            self.part = part
        self.progress.update(self.task, completed=done, description=what, note=note)


def means(scores: Scores, parts: str = "") -> str:
    """The means over classes and pixels; `parts` follow the first."""
    return (
        f"mean IoU {scores.mean_iou:.2f}{parts}; mean accuracy {scores.mean_accuracy:.2f}; "
        f"pixel accuracy {scores.pixel_accuracy:.2f}"
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
