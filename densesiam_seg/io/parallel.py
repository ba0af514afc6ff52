"""Many images through a network: a processor core takes an image from the file to the result.

A forward pass that several cores share waits at the end of each layer for the last of them, and its threads take the
cores from those that decode. With an image to a core nobody waits, and no result depends on how many cores there are.
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
    work: Callable[[Item], Result], items: Iterable[Item], *, each: int = 8
) -> Generator[Result, None, None]:
    """`work` of each item, in order, in as many threads as the caller's torch has; inside each torch has one.

    `each` bounds how many results wait, as in `ahead`. The caller's own number of threads stays what it is. Whoever may
    leave before the end closes it, as the threads cannot end where one of them happens to collect garbage.
    """
    cores = torch.get_num_threads()

    def alone(item: Item) -> Result:
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
        return work(item)

    try:
        yield from ahead(alone, items, cores, each=each)
    finally:
        # torch keeps the number for each thread, but begins new threads with the one that was set last.
        torch.set_num_threads(cores)


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, *, each: int = 8
) -> Generator[Result, None, None]:
    """`work` of each item, in order, done by threads ahead of its use; 0 workers: when it is asked for.

    At most `each` times `workers` results wait, so that large ones do not fill the memory. Threads are enough for
    decoding and writing images: Pillow works outside Python's lock.
    """
    if workers == 0:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="ahead") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > each * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def turns(device: torch.device) -> AbstractContextManager[object]:
    """What threads enter to use a device: a GPU one at a time, so that only one needs its memory."""
    return nullcontext() if device.type == "cpu" else threading.Lock()
