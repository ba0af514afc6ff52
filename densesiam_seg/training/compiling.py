"""Whether a training compiles its heads and losses, and how that went."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from densesiam_seg.config import RunConfig
from densesiam_seg.events import Event, Notice, Progress
from densesiam_seg.io import devices
from densesiam_seg.training.loop import Training

PAYS = 200_000
"""Images in all epochs from which on compiling pays: half a minute, for what was reckoned to save 0.2 ms an image."""


def pays(config: RunConfig, images: int) -> bool:
    """Whether it is asked for and there are enough images."""
    return config.compile and not config.exact() and config.epochs * images >= PAYS


def supported(training: Training) -> bool:
    """Several processes do without: their batch norms talk to each other in the middle of the heads."""
    return training.device.type == "cuda" and training.group.alone


def compiling(training: Training) -> Iterator[Event]:
    """Compile what pays on a GPU; where that fails, one line says so and the training goes on without."""
    wanted = pays(training.config, len(training.store)) and training.method.compilable()
    if not wanted or not supported(training):
        return
    what = "compiling heads and losses"
    yield Progress(what, 0, 1)
    began = time.perf_counter()
    try:
        # What earlier trainings of this process have compiled counts against a limit.
        torch.compiler.reset()
        with devices.autocast(training.device, training.precision):
            training.method.compile(training.config.batch_size)
        training.compiled = time.perf_counter() - began
    except Exception as error:  # a compiler fails in many ways, and none of them is worth a run
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        yield Notice(f"heads and losses are not compiled, and somewhat slower ({reason})")
        return
    yield Progress(what, 1, 1)
    yield Notice(
        f"heads and losses compiled in {training.compiled:.0f} s; what the compiler made lies in "
        f"{devices.compiler_cache()} for later runs"
    )
