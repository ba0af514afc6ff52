"""A Ray cluster of two machines, both on this one, each with one core; run as a program it is the cluster itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

MEMORY = 200 * 2**20
"""Of a node's object store."""
KILL = "kill"


class Nodes:
    """The cluster, which another process holds: Ray leaves files and processes open, which these tests count."""

    def __init__(self, holder: subprocess.Popen[str]) -> None:
        self._holder = holder
        self.address = self._answer()

    def kill(self) -> None:
        """End the second machine without a word to anybody."""
        stdin = self._holder.stdin
        assert stdin is not None
        print(KILL, file=stdin, flush=True)
        self._answer()

    def _answer(self) -> str:
        stdout = self._holder.stdout
        assert stdout is not None
        for line in stdout:
            if line.startswith("> "):
                return line[2:].strip()
        raise AssertionError("the cluster has ended")


def on_slim_workers(address: str, work: Any, items: Any, **options: Any) -> Any:
    """`on_workers`, where models have slim backbones."""
    from densesiam_seg.on_ray.cluster import on_workers

    return on_workers(address, Slim(work), items, **options)


class Slim:
    """Work that is made ready with slim backbones."""

    def __init__(self, work: Any) -> None:
        self.work = work

    def ready(self) -> Any:
        from slim import slim_resnets

        slim = slim_resnets()
        slim.__enter__()
        do = self.work.ready()
        return lambda item: (do(item), slim)[0]  # which would end with its last name


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Skips where Ray is not installed."""
    pytest.importorskip("ray.data", reason="the extra [ray] is not installed")
    support = Path(__file__).parent
    paths = [str(support.parents[1]), str(support), os.environ.get("PYTHONPATH", "")]
    with subprocess.Popen(
        [sys.executable, __file__],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as holder:
        try:
            yield Nodes(holder)
        finally:
            assert holder.stdin is not None
            holder.stdin.close()
            holder.wait(60)


def hold(commands: IO[str]) -> None:
    """Keep a cluster until there are no more commands."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        cluster.wait_for_nodes()
        print(f"> {cluster.address}", flush=True)
        for line in commands:
            assert line.strip() == KILL
            cluster.remove_node(second, allow_graceful=False)
            print("> killed", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    hold(sys.stdin)
