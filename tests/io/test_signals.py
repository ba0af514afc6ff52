"""Stop signals: the first is noted, the second ends the process, and handlers come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from densesiam_seg.io.signals import SIGNALS, stop_requests


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_in_its_block_alone(number: int) -> None:
    with stop_requests() as stop:
        assert not stop and stop.number == 0
        os.kill(os.getpid(), number)
        assert stop and stop.number == number
    with stop_requests() as second:
        assert not second


def test_handlers_are_the_old_ones_afterwards() -> None:
    def own(number: int, frame: object) -> None:
        raise AssertionError("not to be called")

    before = [signal.signal(number, own) for number in SIGNALS]
    try:
        with pytest.raises(KeyError), stop_requests():
            assert all(signal.getsignal(number) is not own for number in SIGNALS)
            raise KeyError
        assert all(signal.getsignal(number) is own for number in SIGNALS)
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def test_an_inner_block_passes_its_signal_on() -> None:
    with stop_requests() as outer:
        with stop_requests() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner and not outer
        assert outer.number == signal.SIGTERM
    with stop_requests() as outer:
        with stop_requests():
            pass
        assert not outer
        os.kill(os.getpid(), signal.SIGINT)
        assert outer.number == signal.SIGINT


def test_outside_the_main_thread_there_are_no_handlers() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]

    def work() -> bool:
        with stop_requests() as stop:
            return not stop and [signal.getsignal(number) for number in SIGNALS] == before

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result()


CHILD = """
import os, signal
from densesiam_seg.io.signals import stop_requests
try:
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        print("noted", stop.number, flush=True)
        os.kill(os.getpid(), signal.{second})
        print("never here", flush=True)
finally:
    print("nor here", flush=True)
"""


@pytest.mark.parametrize("second", ["SIGINT", "SIGTERM"])
def test_the_second_signal_ends_the_process_at_once(second: str) -> None:
    command = [sys.executable, "-c", CHILD.format(second=second)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.stdout == f"noted {int(signal.SIGINT)}\n"
    assert child.returncode == 128 + signal.Signals[second]
    assert child.stderr == ""
