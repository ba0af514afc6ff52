"""What a step sees of its batch: drawn when it is asked for, or on a GPU while the step before it still trains.

Views are functions of (seed, epoch, image), so that when they are drawn changes no number. A GPU draws them in a stream
of its own: it has them ready whenever the loop waits for results, and draws them where the network leaves units idle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from densesiam_seg.images.store import Batch
from densesiam_seg.methods.method import Method

Drawn = tuple[Any, tuple[int, ...]]
"""What `Method.drawn` made of a batch, and the positions of its images."""


class Drawing:
    """What a method draws of batches in main memory or on a GPU, which are `on_device` there; iterate it."""

    def __init__(self, method: Method, batches: Iterator[Batch], epoch: int) -> None:
        self.method = method
        self.batches = batches
        self.epoch = epoch

    def __iter__(self) -> Iterator[Drawn]:
        return self

    def __next__(self) -> Drawn:
        return self._draw()

    def ahead(self) -> None:
        """Called when a step is under way: the time to draw what the next one sees, where that runs beside it."""

    def _draw(self) -> Drawn:
        batch = next(self.batches)
        return self.method.drawn(batch.images, batch.indices, self.epoch), batch.indices


class DrawingAhead(Drawing):
    """The same on a GPU, one batch ahead."""

    def __init__(
        self, method: Method, batches: Iterator[Batch], epoch: int, device: torch.device
    ) -> None:
        super().__init__(method, batches, epoch)
        self.device = device
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.waiting: Drawn | Exception | None = None
        self.arrived: Any = None
        """The moment when all that is `waiting` is drawn."""
        self.begun: Any = None
        """The moment when the step that is under way begins: not earlier, or many batches would be in memory."""

    def __next__(self) -> Drawn:
        if self.waiting is None:
            self.ahead()
        found, self.waiting = self.waiting, None
        if isinstance(found, Exception):
            raise found
        assert found is not None
        main = torch.cuda.current_stream(self.device)
        main.wait_event(self.arrived)
        for tensor in tensors_in(found[0]):
            if tensor.is_cuda:
                # Its memory is not to be used again before the step has read it.
                tensor.record_stream(main)
        self.begun = main.record_event()
        return found

    def ahead(self) -> None:
        """An error, or the end, comes up when the next batch is asked for: the step under way is not lost."""
        if self.begun is not None:
            self.stream.wait_event(self.begun)
        try:
            with torch.cuda.stream(self.stream):
                self.waiting = self._draw()
                self.arrived = self.stream.record_event()
        except Exception as error:  # whatever it is, it is raised again
            self.waiting = error


def drawing(method: Method, batches: Iterator[Batch], epoch: int, device: torch.device) -> Drawing:
    """The form for this device."""
    if device.type == "cuda":
        return DrawingAhead(method, batches, epoch, device)
    return Drawing(method, batches, epoch)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors that lie in a tensor or in dataclasses of them."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for each in fields(value):
            yield from tensors_in(getattr(value, each.name))
