"""A cable between two network namespaces that delays every packet and loses some, as the kernel's netem would."""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_SET_NAME, _PLAIN_PACKETS = 0x400454CA, 0x0001 | 0x1000


@contextmanager
def slow_cable(
    namespaces: Sequence[str], addresses: Sequence[str], delay: float, loss: float
) -> Iterator[list[str]]:
    """The names of its ends, devices in the namespaces with those addresses. Raises OSError where it is not allowed."""
    devices = ["ds-slow0", "ds-slow1"]
    ends = [_opened(device) for device in devices]
    over = threading.Event()
    carrier = threading.Thread(target=_carry, args=(ends, delay, loss, over), daemon=True)
    try:
        for namespace, address, device in zip(namespaces, addresses, devices, strict=True):
            _run("ip", "link", "set", device, "netns", namespace)
            inside = ("ip", "netns", "exec", namespace, "ip")
            _run(*inside, "addr", "add", f"{address}/24", "dev", device)
            _run(*inside, "link", "set", device, "up")
        carrier.start()
        yield devices
    finally:
        over.set()
        if carrier.is_alive():
            carrier.join()
        for end in ends:
            os.close(end)


def _run(*words: str) -> None:
    try:
        subprocess.run(words, check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        raise OSError(error.stderr.decode().strip()) from error


def _opened(device: str) -> int:
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _SET_NAME, struct.pack("16sH", device.encode(), _PLAIN_PACKETS))
    return end


def _carry(ends: Sequence[int], delay: float, loss: float, over: threading.Event) -> None:
    draw = random.Random(0)
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    waiting: list[tuple[float, int, int, bytes]] = []
    count = 0
    while not over.is_set():
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, end, packet = heapq.heappop(waiting)
            os.write(end, packet)
        pause = min(waiting[0][0] - now, 0.1) if waiting else 0.1
        for end in select.select(ends, [], [], pause)[0]:
            packet = os.read(end, 1 << 16)
            if draw.random() >= loss:
                count += 1
                heapq.heappush(waiting, (time.monotonic() + delay, count, other[end], packet))
