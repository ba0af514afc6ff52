"""Where the processes of one start of a job find each other.

torchrun starts a group again when one of its processes is lost, and lends all starts one store (torch 2.15): a process
may read there where another was before it was lost, which nothing answers. So the first process of every start opens a
store of its own, and tells in torchrun's where that is; the others try until they are answered.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

from densesiam_seg.errors import WorkerError
from densesiam_seg.peers.shard import Shard

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PAUSE = 0.1
"""Seconds between looks, in which signals are heeded."""
PATIENCE = timedelta(seconds=5)
"""For a store to answer."""
_PLACE, _HERE, _ALL = "densesiam-seg/meeting", "here", "all"


def meet(shard: Shard, patience: timedelta) -> Store | None:
    """The store that the processes of this start share, once all are there; None where the launcher's is new anyway.

    Raises WorkerError after so long.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    import torch.distributed as dist

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    lent = dist.TCPStore(host, port, is_master=False, timeout=patience)  # type: ignore[attr-defined]
    until = time.monotonic() + patience.total_seconds()
    if shard.index == 0:
        return _opened(lent, own_address(host, port), shard.count, until)
    while time.monotonic() < until:
        place = lent.get(_PLACE).decode() if _has(lent, _PLACE) else ""
        store = _entered(place, shard.index) if place else None
        if store is None:
            time.sleep(PAUSE)
        # Until all are there the first process may be lost as well, and another come in its place.
        while store is not None and lent.get(_PLACE).decode() == place:
            if _has(store, _ALL):
                return store
            if time.monotonic() > until:
                break
    raise _nobody(shard)


def own_address(host: str, port: int) -> str:
    """This machine's address on the network by which another one is reached."""
    with socket.create_connection((host, port), timeout=PATIENCE.total_seconds()) as there:
        address: str = there.getsockname()[0]
        return address


def _opened(lent: Store, address: str, count: int, until: float) -> Store:
    """A new store, to which all others have come."""
    import torch.distributed as dist

    store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    lent.set(_PLACE, f"{address} {store.port} {uuid.uuid4()}")
    for index in range(1, count):
        while not _has(store, f"{_HERE}/{index}"):
            if time.monotonic() > until:
                raise _nobody(Shard(0, count))
    store.set(_ALL, "")
    return store


def _entered(place: str, index: int) -> Store | None:
    """The store that the first process of this start has opened, if it is that and still there."""
    import torch.distributed as dist

    address, port, _ = place.split()
    try:
        store = dist.TCPStore(address, int(port), is_master=False, timeout=PATIENCE)  # type: ignore[attr-defined]
        if store.check([f"{_HERE}/{index}"]):
            return None  # where this process's forerunner has been
        store.set(f"{_HERE}/{index}", "")
    except (dist.DistError, RuntimeError):
        return None
    found: Store = store
    return found


def _has(store: Store, name: str) -> bool:
    """Whether a store has that name, after a pause if not; also not where it is gone."""
    import torch.distributed as dist

    try:
        there = store.check([name])
    except (dist.DistError, RuntimeError):
        there = False
    if not there:
        time.sleep(PAUSE)
    return there


def _nobody(shard: Shard) -> WorkerError:
    return WorkerError(
        f"process {shard.index} of {shard.count} has met not all of the others; look whether all were started and "
        "reach each other"
    )
