"""`densesiam-seg train` and `densesiam-seg pretrain`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from densesiam_seg.backbones import WORDS
from densesiam_seg.cli.options import (
    RunOptions,
    import_torch,
    io_option,
    require_model,
    seconds,
    steps_or_seconds,
)
from densesiam_seg.cli.settings import Settings, takes
from densesiam_seg.config import PretrainConfig, TrainConfig, read_config
from densesiam_seg.errors import DenseSiamError, UsageError
from densesiam_seg.events import Event, Trained
from densesiam_seg.io.lock import run_lock
from densesiam_seg.io.run_directory import noting_failure, read_status
from densesiam_seg.peers.shard import launched

if TYPE_CHECKING:
    from densesiam_seg.cli.console import Console


NoReport = Annotated[
    bool,
    io_option("--no-report", help="Write no report/index.html at the end.", hidden=True),
]


@takes(run=RunOptions, settings=Settings(TrainConfig))
def train(run: RunOptions, settings: dict[str, Any], no_report: NoReport = False) -> None:
    """Learn to segment from a folder of unlabelled images.

    The run directory keeps the settings, records, checkpoints, the model and a report.
    """
    given = _given("train", run, TrainConfig(), settings)
    _refuse_early(given)

    # Only now, as mistakes need not wait for it.
    import_torch()
    from densesiam_seg.training.train import training_events

    follow_up = "predict IMAGE --model {run} --out mask.png"
    device = given.get("device", "auto")
    _show(
        "train", training_events(**given), run, follow_up, report_on=None if no_report else device
    )


@takes(run=RunOptions, settings=Settings(PretrainConfig))
def pretrain(run: RunOptions, settings: dict[str, Any]) -> None:
    """Learn dense features from unlabelled images, for `train --weights RUN` and for other programs.

    The run directory is like that of `train`; its model shows pseudo categories, and `export backbone` writes its
    backbone as a plain state dict of torchvision or timm.
    """
    given = _given("pretrain", run, PretrainConfig(), settings)
    _refuse_early(given)
    import_torch()
    from densesiam_seg.training.train import pretraining_events

    _show("pretrain", pretraining_events(**given), run, "train IMAGES --weights {run}")


def _given(
    command: str, run: RunOptions, base: TrainConfig | PretrainConfig, settings: dict[str, Any]
) -> dict[str, Any]:
    """What the use case is called with."""
    if not run.images and not run.resume:
        raise UsageError(
            f"{command}: name a folder of images, for example densesiam-seg {command} images/"
        )
    steps, every = steps_or_seconds("--checkpoint-every", run.checkpoint_every)
    return {
        "images": run.images or [],
        "follow_links": run.follow_links,
        "out": run.out,
        "preset": run.preset,
        "max_time": seconds("--max-time", run.max_time),
        "max_bad": run.max_bad,
        "init_from": run.init_from,
        "resume": run.resume,
        "overwrite": run.overwrite,
        "accept_data_change": run.accept_data_change,
        "checkpoint_every": every,
        "checkpoint_steps": steps,
        **(read_config(run.config, base) if run.config else {}),
        **settings,
    }


def _refuse_early(given: dict[str, Any]) -> None:
    """Refuse models, weights and checkpoints for what their files alone tell, before torch is imported."""
    word = given.get("weights") in (None, *WORDS)
    weights = None if word else Path(given["weights"])
    # `Path.is_file` and `is_dir` raise for names that are too long.
    if weights and weights.suffix.lower() == ".safetensors" and os.path.isfile(weights):  # noqa: PTH113
        from densesiam_seg.io.tensors import read_layout

        read_layout(weights)
    for source in (given["init_from"], weights):
        if source is not None and os.path.isdir(source):  # noqa: PTH112
            require_model(source)
    folder = given["out"]
    # Of several processes the first one will look, which then holds the folder.
    alone = launched().alone
    if alone and given["resume"] and folder is not None and read_status(folder):
        from densesiam_seg.training.checkpoint import newest_sound

        with run_lock(folder), noting_failure(folder):
            newest_sound(folder / "checkpoints")


def _show(
    command: str,
    events: Iterable[Event],
    run: RunOptions,
    next_command: str,
    report_on: str | None = None,
) -> None:
    """Draw a run, and say where its model lies and what to do with it; `report_on` is the device of a report."""
    from densesiam_seg.cli.console import Console

    if launched().index:
        deque(events, maxlen=0)  # the first process tells
        return
    console = Console(quiet=run.quiet)
    done = console.follow(events)[-1]
    assert isinstance(done, Trained)
    if not done.complete:
        console.say(
            f"stopped by the time limit; go on with densesiam-seg {command} --resume --out {done.run}"
        )
    console.say(f"model: {done.model}")
    page = _report(console, done.run, report_on) if report_on else None
    if run.json:
        console.data(
            {
                "run": str(done.run),
                "model": str(done.model),
                "report": str(page) if page else None,
                "complete": done.complete,
                "last_epoch": asdict(done.last) if done.last else None,
                "passed_over": done.passed_over,
            }
        )
    if page is not None:
        console.say(f"report: {page}")
    console.say(f"next:  densesiam-seg {next_command.format(run=done.run)}")


def _report(console: Console, run: Path, device: str) -> Path | None:
    """Write the run's report. The run is saved, so a failure is only told, and a signal ends the program at once."""
    from densesiam_seg.inference.segmenter import Segmenter
    from densesiam_seg.reporting.report import Reported, plan_report, report_events

    try:
        order = plan_report(run, None, None)
        segmenter = Segmenter.load(run, device=device)
        done = console.follow(report_events(segmenter, order))[-1]
    except Exception as error:
        text = (
            str(error) if isinstance(error, DenseSiamError) else f"{type(error).__name__}: {error}"
        )
        console.say(f"no report: {text}; densesiam-seg report {run} writes it later", warning=True)
        return None
    assert isinstance(done, Reported)
    return done.page
