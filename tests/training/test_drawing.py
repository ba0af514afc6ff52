"""Views drawn when asked for, and ahead of their step on a GPU, of which there is a stand-in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from densesiam_seg.errors import WorkerError
from densesiam_seg.images.store import Batch
from densesiam_seg.methods.method import Method, Objective
from densesiam_seg.training import drawing as drawn_ahead
from densesiam_seg.training.drawing import DrawingAhead, drawing, tensors_in

CPU = torch.device("cpu")


class Doubles(Method):
    """Draws twice the images."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def drawn(self, images: Tensor, indices: Sequence[int], epoch: int) -> Tensor:
        self.log.append(f"draw {indices[0]}")
        return 2 * images + epoch

    def objective(self, drawn: Any, indices: Sequence[int], epoch: int) -> Objective:
        raise NotImplementedError


def batches(count: int, error: Exception | None = None) -> Iterator[Batch]:
    for number in range(count):
        yield Batch(torch.full((2,), number), (number,))
    if error is not None:
        raise error


def test_a_processor_draws_when_it_is_asked() -> None:
    log: list[str] = []
    views = drawing(Doubles(log), batches(2), 5, CPU)
    seen, indices = next(views)
    views.ahead()
    assert (seen.tolist(), indices, log) == ([5, 5], (0,), ["draw 0"])
    assert [seen.tolist() for seen, _ in views] == [[7, 7]]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a GPU is asked for, in order."""
    log: list[str] = []

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = "main" if name == "main" else "side"

        def wait_event(self, event: str) -> None:
            log.append(f"{self.name} waits for {event}")

        def record_event(self) -> str:
            log.append(f"{self.name} marks")
            return f"{self.name}'s mark {len(log)}"

        def __enter__(self) -> None:
            log.append("enter side")

        def __exit__(self, *error: object) -> None:
            log.append("leave side")

    fake = SimpleNamespace(
        cuda=SimpleNamespace(
            Stream=Stream,
            current_stream=lambda device: Stream("main"),
            stream=lambda stream: stream,
        ),
        device=torch.device,
    )
    monkeypatch.setattr(drawn_ahead, "torch", fake)
    return log


def test_a_gpu_draws_the_next_batch_beside_a_step(gpu: list[str]) -> None:
    views = DrawingAhead(Doubles(gpu), batches(2), 0, CPU)
    next(views)
    assert gpu == [
        "enter side", "draw 0", "side marks", "leave side", "main waits for side's mark 3", "main marks",
    ]  # fmt: skip
    gpu.clear()
    gpu.append("step 0")
    views.ahead()
    # Not before step 0 begins, that is after the mark of the main stream.
    assert gpu == [
        "step 0", "side waits for main's mark 6", "enter side", "draw 1", "side marks", "leave side",
    ]  # fmt: skip
    seen, indices = next(views)
    assert (seen.tolist(), indices) == ([2, 2], (1,))
    views.ahead()
    with pytest.raises(StopIteration):
        next(views)


@pytest.mark.usefixtures("gpu")
def test_an_error_comes_up_when_its_batch_is_asked_for() -> None:
    views = DrawingAhead(Doubles([]), batches(1, WorkerError("gone")), 0, CPU)
    next(views)
    views.ahead()
    with pytest.raises(WorkerError, match="gone"):
        next(views)


def test_the_same_numbers_in_the_same_order(gpu: list[str]) -> None:
    ahead = [
        (seen.tolist(), indices) for seen, indices in DrawingAhead(Doubles(gpu), batches(4), 1, CPU)
    ]
    assert ahead == [([2 * n + 1] * 2, (n,)) for n in range(4)]


def test_tensors_are_found_in_dataclasses_of_dataclasses() -> None:
    @dataclass(frozen=True)
    class Inner:
        one: Tensor
        name: str = "no tensor"

    @dataclass(frozen=True)
    class Outer:
        inner: Inner
        two: Tensor

    one, two = torch.zeros(1), torch.ones(1)
    assert list(tensors_in(Outer(Inner(one), two))) == [one, two]
    assert list(tensors_in(one)) == [one]
