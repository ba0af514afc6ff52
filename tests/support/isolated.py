"""Work in forked children, which may crash, hang or take too much memory without harm to the tests."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator

from memory import taken

PATIENCE = 120.0
"""Seconds of wall time without a sign of life after which a child hangs, however busy the machine is."""


def in_children(
    work: Callable[[int], str], numbers: range, *, memory: int, seconds: float
) -> Iterator[tuple[int, str]]:
    """Each number with what `work` makes of it, or with `died: …` or `raised: …`; then a new child goes on.

    A child may take `memory` bytes of address space beyond those that it begins with, and `seconds` of processor time
    for each number.
    """
    left = numbers
    while left:
        for number, text in _in_a_child(work, left, memory, seconds):
            yield number, text
            left = left[left.index(number) + 1 :]


def _in_a_child(
    work: Callable[[int], str], numbers: range, memory: int, seconds: float
) -> Iterator[tuple[int, str]]:
    reader, writer = os.pipe()
    "".encode("unicode_escape")  # imports what a child may no longer be allowed to read
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # Python 3.12 warns of threads, of which the child uses none
        child = os.fork()
    if not child:
        try:
            os.close(reader)
            _serve(work, numbers, memory, seconds, writer)
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)
    os.close(writer)
    told, hangs = b"", False
    done = 0
    try:
        while True:
            ready, _, _ = select.select([reader], [], [], PATIENCE)
            if not ready:
                hangs = True
                os.kill(child, signal.SIGKILL)
            part = os.read(reader, 1 << 16) if ready else b""
            told += part
            *lines, told = told.split(b"\n")
            for line in lines:
                yield numbers[done], line.decode()
                done += 1
            if not part:
                break
    finally:
        os.close(reader)
        if done < len(numbers):
            os.kill(
                child, signal.SIGKILL
            )  # a reader that has left; a dead child stays a zombie until the next line
        _, status = os.waitpid(child, 0)
    if done < len(numbers):
        code = os.waitstatus_to_exitcode(status)
        yield numbers[done], f"died: {'no sign of life' if hangs else f'exit code {code}'}"


def _serve(
    work: Callable[[int], str], numbers: range, memory: int, seconds: float, writer: int
) -> None:
    limit = taken("VmSize") + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in numbers:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal kills
        try:
            text = work(number)
        except BaseException:
            text = f"raised: {traceback.format_exc(limit=-3)}"
        os.write(writer, text.encode("unicode_escape") + b"\n")
