"""Work on cores of its own: results in order, one torch thread inside, nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from densesiam_seg.io.parallel import ahead, on_own_cores, turns


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def threads_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


class TestOnOwnCores:
    def test_results_keep_the_order(self) -> None:
        """The first item is the last to be done."""
        others = threading.Semaphore(0)

        def work(item: int) -> int:
            if item == 0:
                assert others.acquire(timeout=10)
                assert others.acquire(timeout=10)
            else:
                others.release()
            return item * item

        assert list(on_own_cores(work, range(20))) == [k * k for k in range(20)]

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
        assert (torch.get_num_threads(), threads_of_a_new_thread()) == (3, 3)

    def test_inside_one_another(self) -> None:
        """The inner work has the one core of its thread."""

        def outer(item: int) -> list[int]:
            return list(on_own_cores(lambda other: item + other, range(3)))

        assert list(on_own_cores(outer, (0, 10))) == [[0, 1, 2], [10, 11, 12]]
        assert threads_of_a_new_thread() == 3

    def test_the_first_error_in_order_comes_after_what_is_before_it(self) -> None:
        def work(item: int) -> int:
            if item in (2, 4):
                raise ValueError(str(item))
            return item

        results = on_own_cores(work, range(9))
        assert (next(results), next(results)) == (0, 1)
        with pytest.raises(ValueError, match="2"):
            next(results)
        assert threads_of_a_new_thread() == 3

    def test_whoever_looks_away_leaves_no_thread(self) -> None:
        before = threading.active_count()
        results = on_own_cores(lambda item: item, range(100))
        next(results)
        results.close()
        assert threading.active_count() == before
        assert threads_of_a_new_thread() == 3

    def test_items_are_taken_as_they_are_needed(self) -> None:
        taken: list[int] = []

        def items() -> Iterator[int]:
            for item in range(1000):
                taken.append(item)
                yield item

        results = on_own_cores(lambda item: item, items(), each=2)
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
        assert len(taken) <= 5 + 2 * 3 + 1
        results.close()


class TestTurns:
    def test_on_a_processor_nobody_waits(self) -> None:
        turn = turns(torch.device("cpu"))
        with turn, turn:
            pass

    def test_on_a_gpu_one_at_a_time(self) -> None:
        turn = turns(torch.device("cuda"))
        inside = most = 0

        def enter() -> None:
            nonlocal inside, most
            for _ in range(200):
                with turn:
                    inside += 1
                    most = max(most, inside)
                    inside -= 1

        crowd = [threading.Thread(target=enter) for _ in range(4)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        assert (inside, most) == (0, 1)


class TestAhead:
    @pytest.mark.parametrize("workers", [0, 1, 3])
    def test_results_come_in_order(self, workers: int) -> None:
        assert list(ahead(lambda n: n * n, range(100), workers)) == [n * n for n in range(100)]
        assert list(ahead(lambda n: n, [], workers)) == []

    @pytest.mark.parametrize("workers", [0, 2])
    def test_an_error_comes_at_its_place(self, workers: int) -> None:
        def work(n: int) -> int:
            if n == 3:
                raise KeyError(n)
            return n

        results = ahead(work, range(10), workers)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError):
            next(results)

    def test_without_workers_nothing_is_done_early_or_elsewhere(self) -> None:
        done: list[int] = []
        results = ahead(recorder(done), range(10), 0)
        assert done == []
        next(results)
        assert done == [0]

    def test_the_work_in_hand_is_bounded(self) -> None:
        """Decoded images wait in memory, so only some are made before they are asked for."""
        taken: list[int] = []
        results = ahead(lambda n: n, map(recorder(taken), range(1000)), 2)
        next(results)
        assert len(taken) == 17
        next(results)
        assert len(taken) == 18

    def test_threads_end_with_the_iterator(self) -> None:
        before = set(threading.enumerate())
        results = ahead(lambda n: n, range(100), 2)
        next(results)
        assert set(threading.enumerate()) > before
        results.close()
        assert set(threading.enumerate()) <= before


def recorder(done: list[int]) -> Callable[[int], int]:
    def work(n: int) -> int:
        done.append(n)
        return n

    return work
