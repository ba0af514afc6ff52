"""Work on many images in threads, one image to a processor core, from the file to the result.

A forward pass on several cores waits for the slowest of them at every layer, and competes with decoding for the cores.
With one image to a core nothing waits, and no result depends on the number of cores.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

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


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, *, max_waiting: int = 8
) -> Generator[Result, None, None]:
    """`work` of each item, in order, computed ahead of its use by threads; with 0 workers when it is asked for.

    At most `max_waiting` results per worker wait, which bounds memory. Threads are enough for decoding and writing
    images: Pillow releases Python's lock.
    """
    if workers == 0:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="ahead") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > max_waiting * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def device_lock(device: torch.device) -> AbstractContextManager[object]:
    """A lock for threads that use a device: on a GPU one at a time, which bounds its memory; none on a processor."""
    return nullcontext() if device.type == "cpu" else threading.Lock()
