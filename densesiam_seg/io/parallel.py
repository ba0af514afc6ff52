"""Work on many images in threads, one image to a processor core, from the file to the result.

A forward pass on several cores waits for the slowest of them at every layer, and competes with decoding for the cores.
With one image to a core nothing waits, and no result depends on the number of cores.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def on_own_cores(
    work: Callable[[Item], Result], items: Iterable[Item], *, max_waiting: int = 8
) -> Generator[Result, None, None]:
    """`work` of each item, in order, in as many threads as the caller's torch has; inside each torch has one.

    `max_waiting` is that of `ahead`. The caller's number of threads is restored. Close the generator if you stop early;
    otherwise its threads may deadlock.
    """
    cores = torch.get_num_threads()

    def single_threaded(item: Item) -> Result:
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
        return work(item)

    try:
        yield from ahead(single_threaded, items, cores, max_waiting=max_waiting)
    finally:
        # torch has a number for each thread, but gives new threads the one that was set last.
        torch.set_num_threads(cores)


class HungError(Exception):
    """Work that a thread has not finished in time; `item` is what it was given."""

    def __init__(self, item: object) -> None:
        super().__init__(f"{item!r} is not finished in time")
        self.item = item


def ahead(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    *,
    max_waiting: int = 8,
    patience: float | None = None,
) -> Generator[Result, None, None]:
    """`work` of each item, in order, computed ahead of its use by threads; with 0 workers when it is asked for.

    At most `max_waiting` results per worker wait, which bounds memory. Threads are enough for decoding and writing
    images: Pillow releases Python's lock. Raises HungError for an item that takes a thread longer than `patience`
    seconds; that thread is left behind, since nothing can end it, and does not keep the process from ending.
    """
    if workers == 0:
        for item in items:  # a StopIteration of the work would end a `map` like the last item
            yield work(item)
        return
    pool = _Pool(work, workers)
    waiting: deque[tuple[Item, Future[Result]]] = deque()

    def first() -> Result:
        item, future = waiting.popleft()
        try:
            return future.result(patience)
        except TimeoutError:
            if future.done():  # the work's own
                raise
            pool.abandoned = True
            raise HungError(item) from None

    try:
        for item in items:
            waiting.append((item, pool.submit(item)))
            if len(waiting) > max_waiting * workers:
                yield first()
        while waiting:
            yield first()
    finally:
        for _, future in waiting:
            future.cancel()
        pool.close()


class _Pool(Generic[Item, Result]):
    """Threads that do the same work. Those of `concurrent.futures` would be waited for when the process ends."""

    def __init__(self, work: Callable[[Item], Result], workers: int) -> None:
        self.abandoned = False
        self._work = work
        self._queue: SimpleQueue[tuple[Item, Future[Result]] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"ahead_{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, item: Item) -> Future[Result]:
        future: Future[Result] = Future()
        self._queue.put((item, future))
        return future

    def close(self) -> None:
        """Let the threads end, and wait for them unless one hangs."""
        for _ in self._threads:
            self._queue.put(None)
        if not self.abandoned:
            for thread in self._threads:
                thread.join()

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            item, future = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._work(item))
                except BaseException as error:  # raised again where the result is asked for
                    future.set_exception(error)
            # Else a thread that waits would keep what it has done in memory.
            del job, item, future


def device_lock(device: torch.device) -> AbstractContextManager[object]:
    """A lock for threads that use a device: on a GPU one at a time, which bounds its memory; none on a processor."""
    return nullcontext() if device.type == "cpu" else threading.Lock()
