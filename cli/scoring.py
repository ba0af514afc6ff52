"""How `evaluate` carries its job out: in one process, in several, in part, or on the workers of a Ray cluster."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from densesiam_seg.cli.options import ReadoutOptions
from densesiam_seg.config import RunConfig
from densesiam_seg.errors import UsageError, counted
from densesiam_seg.io.files import make_folder
from densesiam_seg.peers.shard import Shard, launched

if TYPE_CHECKING:
    from densesiam_seg.cli.console import Console
    from densesiam_seg.evaluation.evaluate import Benchmark
    from densesiam_seg.evaluation.job import Evaluation
    from densesiam_seg.inference.options import Refinement
    from densesiam_seg.inference.segmenter import Segmenter
    from densesiam_seg.peers.group import Group


@dataclass(frozen=True)
class Output:
    """What is done with a result."""

    out: Path | None
    overwrite: bool
    json: bool
    quiet: bool

    def console(self) -> Console:
        from densesiam_seg.cli.console import Console

        return Console(quiet=self.quiet)

    def show(self, console: Console, result: Evaluation) -> None:
        """A score: on stdout, and in a file where one was asked for."""
        if self.json:
            console.data(result.to_dict())
        else:
            console.scores(result)
        if result.missing:
            console.say(
                f"{len(result.missing)} images were missing, first {result.missing[0]}",
                warning=True,
            )
        console.keep(result.to_dict(), self.out)


@dataclass(frozen=True)
class Scoring:
    """What is scored, and how; in this process, in several, or in part."""

    task: Callable[[], Benchmark]
    model: Path | None
    reading: ReadoutOptions
    refinement: Refinement
    settings: RunConfig

    def score(self, output: Output) -> None:
        """By this process, or by all that a launcher started, of which the first tells the score."""
        from densesiam_seg.evaluation.evaluate import segmenter_events
        from densesiam_seg.io.devices import use_own_cores
        from densesiam_seg.peers.group import joined

        with joined(self.settings.device) as group:
            if not group.alone:
                use_own_cores()
            console = output.console()
            task = group.by_first(self.task)
            segmenter = group.by_each(lambda: self._segmenter(console, group))
            events = segmenter_events(segmenter, task, self.refinement, group)
            if group.first:
                output.show(console, console.follow(events)[-1])
            else:
                deque(events, maxlen=0)

    def _segmenter(self, console: Console, group: Group) -> Segmenter:
        """The model; a read-out is fitted by the first process alone."""
        from densesiam_seg.inference.segmenter import Segmenter
        from densesiam_seg.io.run_directory import latest_model

        if group.alone or self.reading.readout == "head":
            segmenter: Segmenter = self.reading.load(self.model, self.settings, console.choosing)
            return segmenter
        fitted = group.by_first(
            lambda: self.reading.load(self.model, self.settings, console.choosing).fitted
        )
        path = self.model or latest_model()
        machine = self.settings
        plain = Segmenter.load(path, device=machine.device, precision=machine.precision)
        return plain.fitted_as(fitted)

    def score_part(self, part: Shard, output: Output) -> None:
        """One part, into a file; a part that is there already stays."""
        from densesiam_seg.evaluation.parts import Part, part_events, read_part, write_part

        out, console = output.out, output.console()
        assert out is not None
        make_folder(out.parent)
        there = os.path.lexists(out) and not output.overwrite
        earlier = read_part(out) if there else None
        task = self.task()
        segmenter = self.reading.load(self.model, self.settings, console.choosing)
        events = part_events(segmenter, task, part, self.refinement, earlier=earlier)
        result = console.follow(events)[-1]
        assert isinstance(result, Part)
        if output.json:
            print(result.data().decode("ascii"))
        if earlier is None:
            write_part(out, result)
            console.say(f"part {part}, {counted(result.tally.images, 'image')}: {out}")

    def score_on_ray(self, address: str, output: Output) -> None:
        """By the workers of a Ray cluster."""
        from densesiam_seg.io.run_directory import latest_model
        from densesiam_seg.on_ray.scoring import ray_events
        from densesiam_seg.on_ray.sent_model import SentModel

        task, console = self.task(), output.console()
        path = self.model or latest_model()
        segmenter = self.reading.load(path, self.settings, console.choosing)
        model = SentModel.of(segmenter, path, self.settings.device)
        events = ray_events(address, segmenter, model, task, self.refinement)
        output.show(console, console.follow(events)[-1])


def merge_parts(parts: list[str], output: Output) -> None:
    """All parts of an evaluation → its score. Raises UsageError under a launcher, which would print it often."""
    if not launched().alone:
        raise UsageError("--merge: works in one process; give it no launcher")
    from densesiam_seg.evaluation.parts import joined_events

    console = output.console()
    output.show(console, console.follow(joined_events(parts))[-1])


def require_one_way(part: Shard | None, ray: str | None, out: Path | None) -> None:
    """Refuse several ways at once to share the work. Raises UsageError."""
    alone = launched().alone
    if part is not None and ray is not None:
        raise UsageError("--shard and --ray: Ray gets all parts; give one of both")
    if ray is not None and not alone:
        raise UsageError(
            "--ray: works in one process, which Ray's workers help; give it no launcher"
        )
    if part is not None and not alone and part != launched():
        raise UsageError(
            f"--shard {part}: this is process {launched()} of a launcher, and every process would do that part; "
            "leave --shard out"
        )
    if part is not None and out is None:
        raise UsageError(f"--shard {part}: needs --out PART.json, which evaluate --merge takes")
    if part is not None and out is not None and out.suffix.lower() != ".json":
        raise UsageError(f"--out {out}: the file holds JSON; give a name ending in .json")
