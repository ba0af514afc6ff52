"""A Ray cluster of two machines, both on this one, each with one core."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

MEMORY = 200 * 2**20
"""Of a node's object store."""


@dataclass
class Nodes:
    """The cluster, and the node that may be killed."""

    cluster: Any
    second: Any
    killed: bool = field(default=False)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def kill(self) -> None:
        """End the second machine without a word to anybody."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.killed = True


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Skips where Ray is not installed."""
    pytest.importorskip("ray.data", reason="the extra [ray] is not installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        cluster.wait_for_nodes()
        yield Nodes(cluster, second)
    finally:
        cluster.shutdown()
