"""Processes of one start find each other, though another start's places lie in the store that they are lent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from densesiam_seg.errors import WorkerError
from densesiam_seg.peers.meeting import meet, own_address
from densesiam_seg.peers.shard import Shard

PATIENCE = timedelta(seconds=30)


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A store that torchrun lends to all starts of a job."""
    store: Any = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    yield store


def met(count: int) -> list[Any]:
    """The stores that so many processes share, which come one after the other."""
    stores: list[Any] = [None] * count

    def come(index: int) -> None:
        stores[index] = meet(Shard(index, count), PATIENCE)

    threads = [threading.Thread(target=come, args=(index,)) for index in range(count)]
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join()
    return stores


def test_each_start_has_a_store_of_its_own(lent: Any) -> None:
    first = met(3)
    first[0].set("where", "of the first start")
    # The first start is lost, but what it left in torchrun's store is still there.
    second = met(3)
    second[0].set("where", "of the second start")
    assert [store.get("where") for store in second] == [b"of the second start"] * 3
    assert first[1].get("where") == b"of the first start"


def test_a_first_process_that_is_lost_is_not_waited_for(lent: Any) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    lent.set("densesiam-seg/meeting", f"127.0.0.1 {port} of-before")
    one, two = met(2)
    one.set("where", "here")
    assert two.get("where") == b"here"


def test_nobody_waits_for_ever(lent: Any) -> None:
    for index in range(2):
        with pytest.raises(WorkerError, match=f"process {index} of 2 has met not all"):
            meet(Shard(index, 2), timedelta(seconds=2))


def test_other_launchers_have_a_new_store_for_every_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert meet(Shard(0, 2), PATIENCE) is None


def test_the_own_address_is_that_of_the_network(lent: Any) -> None:
    assert own_address("127.0.0.1", lent.port) == "127.0.0.1"
