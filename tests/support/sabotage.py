"""What is done to the program in a child of `children`, before it begins; nothing of this is ever undone.

Names of the program's inner functions stand in this file alone.
"""

from __future__ import annotations

import builtins
import os
import pkgutil
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import children
import pytest
import torch
from disturbance import Disturbance
from memory import taken
from saving import save
from slim import slim_resnets
from torch import Tensor

_kept: list[object] = []


def slim() -> None:
    """Slim backbones."""
    stack = ExitStack()
    stack.enter_context(slim_resnets())
    _kept.append(stack)  # or the context would end


def threads(number: int) -> None:
    """So many threads of torch."""
    torch.set_num_threads(number)


ADVANCE = "densesiam_seg.training.loop:Training", "_advance"
"""A step of the optimiser; where it is called, `step` is the number of those that are done."""
LOAD = "densesiam_seg.images.store", "load_square"
PHASES = {
    "reading": [LOAD],
    "clustering": [
        ("densesiam_seg.methods.picie", "sampled_kmeans"),
        ("densesiam_seg.methods.picie", "refine"),
    ],
    "training": [ADVANCE],
    "saving": [("densesiam_seg.training.train", "save_checkpoint")],
    "deleting": [("densesiam_seg.training.checkpoint", "discard")],
    "model": [("densesiam_seg.inference.segmenter:Segmenter", "save")],
}
"""The calls that a phase begins with."""


def _replace(place: tuple[str, str], make: Callable[[Callable[..., Any]], object]) -> None:
    """Put what `make` returns for a function in its place."""
    owner, name = pkgutil.resolve_name(place[0]), place[1]
    setattr(owner, name, make(getattr(owner, name)))


def _before(place: tuple[str, str], action: Callable[..., None]) -> None:
    """Do something before each call, with its arguments."""

    def make(call: Callable[..., Any]) -> object:
        def called(*args: Any, **options: Any) -> Any:
            action(*args, **options)
            return call(*args, **options)

        return called

    _replace(place, make)


def tell_phases() -> None:
    """Tell where the run is, each time that it gets there; what a phase does comes right after."""
    for phase, places in PHASES.items():
        for place in places:
            _before(place, lambda *_, _phase=phase, **__: children.tell(_phase))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(number: int) -> None:
    """Death in place of the n-th call that changes the disk."""
    _kept.append(Disturbance(pytest.MonkeyPatch(), number, _die))


def fail_at(number: int, code: int) -> None:
    """The n-th call that changes the disk fails; the test is told whether there was one, and which."""

    def fail() -> None:
        children.tell(f"failed {disturbance.seen[-1]}")
        raise OSError(code, os.strerror(code))

    disturbance = Disturbance(pytest.MonkeyPatch(), number, fail)
    _kept.append(disturbance)


class _Dying(Disturbance):
    """Every call from the n-th on fails."""

    def __init__(self, number: int, code: int) -> None:
        self.code = code
        super().__init__(pytest.MonkeyPatch(), number, None)

    def count(self, name: str = "") -> bool:
        self.left -= 1
        if self.left <= 0:
            if self.left == 0:
                children.tell(f"failed {name}")
            raise OSError(self.code, os.strerror(self.code))
        return False


def fail_from(number: int, code: int) -> None:
    """The n-th call that changes the disk fails, and all after it: the disk is full for good."""
    _kept.append(_Dying(number, code))


class _Short(Disturbance):
    """Every write takes half of what it is given."""

    def count(self, name: str = "") -> bool:
        self.left = 1
        return True


def short_writes() -> None:
    """Every write takes half of what it is given, which is no error."""
    _kept.append(_Short(pytest.MonkeyPatch(), 1, None))


def fill_disk(step: int, left: int, folder: str) -> None:
    """Before that step, fill the disk of `folder` but for some bytes."""

    def fill(*_: Any) -> None:
        path = Path(folder, "filler")
        free = shutil.disk_usage(folder).free
        with path.open("wb") as file:
            file.write(b"x" * max(0, free - left))

    _before_step(step, fill)


def _before_step(step: int, action: Callable[[], None]) -> None:
    def look(training: Any, *_: Any) -> None:
        if training.step + 1 == step:
            action()

    _before(ADVANCE, look)


def _after_step(step: int, action: Callable[[], None]) -> None:
    def make(advance: Callable[..., Any]) -> object:
        def advanced(training: Any, *args: Any) -> Any:
            result = advance(training, *args)
            if training.step == step:
                action()
            return result

        return advanced

    _replace(ADVANCE, make)


def spoil_loss(step: int) -> None:
    """The loss of that step and of those after it is not a number."""
    wrong: list[bool] = []
    _before_step(step, lambda: wrong.append(True))

    def make(objective: Callable[..., Any]) -> object:
        def spoiled(*args: Any, **options: Any) -> Any:
            result = objective(*args, **options)
            return replace(result, total=result.total * float("nan")) if wrong else result

        return spoiled

    _replace(("densesiam_seg.methods.densesiam:DenseSiamMethod", "objective"), make)
    _replace(("densesiam_seg.methods.picie:PiCIE", "objective"), make)


def spoil_gradient(step: int) -> None:
    """One gradient of that step is infinite."""

    def look(training: Any, result: Any) -> None:
        if training.step + 1 == step:
            parameter = next(p for p in training.network.parameters() if p.grad is not None)
            parameter.grad[(0,) * parameter.grad.dim()] = float("inf")

    _before(("densesiam_seg.training.loop:Training", "_sound"), look)


_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda features: features * float("nan"),
    "inf": lambda features: features + float("inf"),
    "huge": lambda features: features * 0 + 1e19 * torch.sign(features - features.mean()),
    "constant": lambda features: features * 0 + 1,
}


def spoil_features(kind: str, step: int = 0) -> None:
    """What the encoder gives for that step and from then on (0: always), clustering before the step included."""
    wrong = [True] if not step else []
    if step:
        _after_step(step - 1, lambda: wrong.append(True))

    def make(dense: Callable[..., Tensor]) -> object:
        def spoiled(*args: Any) -> Tensor:
            features = dense(*args)
            return _VALUES[kind](features) if wrong else features

        return spoiled

    _replace(("densesiam_seg.network.encoder:Encoder", "dense"), make)


def spoil_decoding(number: int, error: str) -> None:
    """The n-th image that is read raises an error of this name, or hangs."""
    lock, left = threading.Lock(), [number]

    def look(*_: Any, **__: Any) -> None:
        with lock:
            left[0] -= 1
            hit = left[0] == 0
        if hit:
            children.tell(f"decoding {error}")
            while error == "hang":
                time.sleep(3600)
            raise getattr(builtins, error)("injected")

    _before(LOAD, look)


def less_patience(seconds: float) -> None:
    """What an image may take to be read."""
    _replace(("densesiam_seg.images.store", "PATIENCE"), lambda _: seconds)


def watch_resources(every: int) -> None:
    """Before every so many epochs, when no image is being read: their number, resident kB, descriptors, threads."""

    def look(training: Any, epoch: int) -> None:
        if epoch % every == 0:
            resident = taken("VmRSS") // 1024
            handles = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
            for _ in range(1000):
                threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
                if threads == threading.active_count():
                    break
                time.sleep(
                    0.002
                )  # a thread that has ended for Python ends for the system a little later
            children.tell(f"resources {epoch} {resident} {handles} {threads}")

    _before(("densesiam_seg.training.loop:Training", "_prepare"), look)


def stop_itself(step: int, numbers: list[int]) -> None:
    """A signal to this process after that step; a second one in the middle of the save that the first asks for."""
    first, *others = numbers
    stopping: list[bool] = []

    def stop() -> None:
        stopping.append(True)
        os.kill(os.getpid(), first)

    _after_step(step, stop)

    def look(*_: Any) -> None:
        if stopping and others:
            os.kill(os.getpid(), others[0])

    _before(("densesiam_seg.training.checkpoint", "write_safetensors"), look)


def save_again(folder: str, step: int, size: int, warm: bool = False, wait: bool = False) -> int:
    """Save a checkpoint; the exit code is the program's. `wait`: for a signal, by a call that no tracer counts."""
    from densesiam_seg.errors import DenseSiamError

    if warm:
        save(Path(folder).parent / "warm", 1, size)
    if wait:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        children.tell("ready")
        signal.sigwait([signal.SIGUSR1])
    try:
        save(Path(folder), step, size)
    except DenseSiamError as error:
        print(f"error[{error.name}]: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def save_for_ever(folder: str, first: int, size: int) -> None:
    """One checkpoint after the other, each told when it is there."""
    for step in range(first, first + 100_000):
        save(Path(folder), step, size)
        children.tell("saved")
