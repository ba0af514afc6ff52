"""Work on cores of its own: results in order, one torch thread inside, nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from densesiam_seg.io.parallel import ahead, device_lock, on_own_cores


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == threads_of_a_new_thread() == 3
    torch.set_num_threads(before)


def threads_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


Each = Callable[..., Generator[int, None, None]]


@pytest.mark.parametrize("each", [on_own_cores, *[partial(ahead, workers=n) for n in (0, 1, 3)]])
class TestEither:
    def test_results_keep_the_order(self, each: Each) -> None:
        assert list(each(lambda n: n * n, range(100))) == [n * n for n in range(100)]
        assert list(each(lambda n: n, [])) == []

    def test_the_first_error_comes_at_its_place(self, each: Each) -> None:
        def work(item: int) -> int:
            if item in (2, 4):
                raise ValueError(str(item))
            return item

        results = each(work, range(9))
        assert (next(results), next(results)) == (0, 1)
        with pytest.raises(ValueError, match="2"):
            next(results)

    def test_no_error_passes_for_the_end(self, each: Each) -> None:
        def work(item: int) -> int:
            raise StopIteration

        with pytest.raises(RuntimeError, match="StopIteration"):
            list(each(work, range(3)))

    def test_whoever_looks_away_leaves_no_thread(self, each: Each) -> None:
        before = threading.active_count()
        results = each(lambda item: item, range(100))
        next(results)
        results.close()
        assert threading.active_count() == before


class TestOnOwnCores:
    def test_a_slow_first_item_is_still_the_first(self) -> None:
        others = threading.Semaphore(0)

        def work(item: int) -> int:
            if item == 0:
                assert others.acquire(timeout=10)
                assert others.acquire(timeout=10)
            else:
                others.release()
            return item

        assert list(on_own_cores(work, range(20))) == list(range(20))

    def test_as_many_at_once_as_torch_has_threads(self) -> None:
        together = threading.Barrier(3)

        def work(_: int) -> int:
            together.wait(timeout=10)
            return threading.get_ident()

        assert len(set(on_own_cores(work, range(6)))) == 3

    def test_one_torch_thread_inside_and_the_callers_number_outside(self) -> None:
        inside = []
        for count in on_own_cores(lambda _: torch.get_num_threads(), range(10)):
            inside.append(count)
            assert torch.get_num_threads() == 3
        assert inside == [1] * 10

    def test_inside_one_another_the_inner_has_one_core(self) -> None:
        def outer(item: int) -> list[int]:
            return list(on_own_cores(lambda other: item + other, range(3)))

        assert list(on_own_cores(outer, (0, 10))) == [[0, 1, 2], [10, 11, 12]]


class TestAhead:
    def test_without_workers_nothing_is_done_early(self) -> None:
        done: list[int] = []
        results = ahead(done.append, range(10), 0)
        assert done == []
        next(results)
        assert done == [0]

    @pytest.mark.parametrize(("each", "first"), [(8, 17), (2, 5)])
    def test_the_work_in_hand_is_bounded(self, each: int, first: int) -> None:
        """Decoded images wait in memory, so only some are made before they are asked for."""
        taken: list[int] = []
        items = (taken.append(n) or n for n in range(1000))  # type: ignore[func-returns-value]
        results = ahead(lambda n: n, items, 2, max_waiting=each)
        next(results)
        assert len(taken) == first
        next(results)
        assert len(taken) == first + 1
        results.close()


def test_on_a_processor_nobody_waits_and_on_a_gpu_all_but_one() -> None:
    lock = device_lock(torch.device("cpu"))
    with lock, lock:
        pass
    lock = device_lock(torch.device("cuda"))
    with lock:
        assert lock.locked()  # type: ignore[attr-defined]


HANGS = """
import sys, threading
from densesiam_seg.io.parallel import HungError, ahead
for_ever = threading.Event()
results = ahead(lambda n: for_ever.wait() if n == 2 else n, range(9), 2, patience=0.2)
print(next(results), next(results))
try:
    next(results)
except HungError as error:
    print(error.item)
"""


def test_work_that_hangs_is_named_and_keeps_no_process_alive() -> None:
    command = [sys.executable, "-c", HANGS]
    child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (child.returncode, child.stdout) == (0, "0 1\n2\n"), child.stderr


@pytest.mark.parametrize("workers", [0, 2])
def test_a_timeout_of_the_works_own_is_the_works(workers: int) -> None:
    def work(_: int) -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        list(ahead(work, [1], workers, patience=60))
