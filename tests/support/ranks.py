"""A function run by several processes that are one group, as torchrun would start them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from densesiam_seg.peers.group import Group, joined

SECONDS = 120


def in_ranks(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`work(group, *arguments)` in `count` processes with a thread each; returns what each gave, by rank."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    receivers, processes = [], []
    with _importable():
        for rank in range(count):
            receiver, sender = context.Pipe(duplex=False)
            target = (rank, count, port, sender, work, arguments)
            processes.append(context.Process(target=_rank, args=target, daemon=True))
            processes[-1].start()
            sender.close()
            receivers.append(receiver)
    try:
        results = [_received(receiver) for receiver in receivers]
    finally:
        for process in processes:
            process.join(SECONDS)
            process.kill()
    failed = [text for ok, text in results if not ok]
    assert not failed, "\n".join(failed)
    return [value for _, value in results]


@contextmanager
def _importable() -> Iterator[None]:
    """New processes take over the path of imports, and find `tests.room.test_x` from the root."""
    sys.path.append(str(Path(__file__).parents[2]))
    try:
        yield
    finally:
        sys.path.pop()


def _received(receiver: Any) -> tuple[bool, Any]:
    try:
        if receiver.poll(SECONDS):
            # Not by `recv`: multiprocessing would fetch tensors from a process that has ended.
            found: tuple[bool, Any] = pickle.loads(receiver.recv_bytes())
            return found
    except EOFError:
        return False, "a process ended without a word"
    return False, "a process took too long"


def _rank(
    rank: int, count: int, port: int, sender: Any, work: Callable[..., Any], arguments: Any
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DENSESIAM_SEG_TIMEOUT": str(SECONDS),
    }
    torch.set_num_threads(1)
    try:
        with joined("cpu") as group:
            assert isinstance(group, Group)
            result = work(group, *arguments)
    except BaseException:
        result, ok = f"rank {rank}: {traceback.format_exc()}", False
    else:
        ok = True
    sender.send_bytes(pickle.dumps((ok, result)))
