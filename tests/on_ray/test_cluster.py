"""Reaching a cluster, what workers are asked for, and a worker without Ray; with `-m cluster` Ray itself."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_nodes import Nodes, two_nodes

from densesiam_seg import __version__
from densesiam_seg.errors import InputError, ModelError, UsageError, WorkerError
from densesiam_seg.on_ray import cluster
from densesiam_seg.on_ray.cluster import (
    _needs,
    _Sent,
    _Worker,
    on_workers,
    parts_of,
    require_cluster,
)
from densesiam_seg.peers.outcome import Failed, result_of

Patch = pytest.MonkeyPatch


class Squares:
    """Squares numbers, but not 13; where `broken`, nothing."""

    def __init__(self, broken: bool = False, seconds: float = 0.0) -> None:
        self.broken, self.seconds = broken, seconds

    def ready(self) -> Callable[[int], tuple[int, str]]:
        if self.broken:
            raise ModelError("no model here")
        return self.square

    def square(self, number: int) -> tuple[int, str]:
        time.sleep(self.seconds)
        if number == 13:
            raise InputError("not 13")
        return number * number, str(Path.cwd())


def worker(work: Squares, folder: Path, version: str = __version__) -> _Worker:
    return _Worker(_Sent(pickle.dumps(work), str(folder), version), torch.get_num_threads())


def outcomes(made: _Worker, *numbers: int) -> list[Any]:
    rows = {"place": list(numbers), "item": [pickle.dumps(number) for number in numbers]}
    found = made(rows)
    assert found["place"] == list(numbers)
    return [pickle.loads(each) for each in found["result"]]


class TestWorker:
    @pytest.fixture(autouse=True)
    def _back(self, monkeypatch: Patch) -> None:
        monkeypatch.chdir(Path.cwd())

    def test_items_one_by_one_where_the_program_was_started(self, tmp_path: Path) -> None:
        made = worker(Squares(), tmp_path)
        one, failed, two = outcomes(made, 3, 13, 4)
        assert (one, two) == ((9, str(tmp_path)), (16, str(tmp_path)))
        assert isinstance(failed, Failed)
        with pytest.raises(InputError, match="not 13"):
            result_of(failed)

    def test_a_folder_that_is_not_there_is_no_error(self, tmp_path: Path) -> None:
        before = str(Path.cwd())
        assert outcomes(worker(Squares(), tmp_path / "none"), 2) == [(4, before)]

    @pytest.mark.parametrize("how", ["model", "version"])
    def test_a_worker_that_cannot_begin_says_so_of_every_item(
        self, tmp_path: Path, how: str
    ) -> None:
        version = "0.0.1" if how == "version" else __version__
        made = worker(Squares(broken=how == "model"), tmp_path, version)
        words = "no model here" if how == "model" else "not 0.0.1"
        for failed in outcomes(made, 1, 2):
            with pytest.raises(WorkerError, match=words) as found:
                result_of(failed)
            assert socket.gethostname() in str(found.value)
            assert found.value.exit_code == 8


def test_parts_have_about_so_many_items_but_are_not_too_many() -> None:
    assert [parts_of(items, 16) for items in (0, 1, 16, 17, 200)] == [1, 1, 1, 2, 13]
    assert parts_of(50_000_000, 16) == cluster.MOST_PARTS


def node(cpus: float, gpus: float = 0, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


@pytest.mark.parametrize(
    ("nodes", "device", "cpus", "gpus"),
    [
        ([node(1), node(1)], "auto", 1, 0),
        ([node(64), node(4), node(1, alive=False)], "auto", 4, 0),
        ([node(64)], "auto", 8, 0),
        ([node(64, 8), node(16)], "auto", 8, 1),
        ([node(12, 4), node(64, 8)], "cuda", 3, 1),
        ([node(12, 4)], "cpu", 8, 0),
        ([node(12)], "cuda", 1, 1),
        ([node(0)], "auto", 1, 0),
    ],
)
def test_a_worker_has_a_gpu_or_the_cores_that_every_machine_has(
    nodes: list[Any], device: str, cpus: int, gpus: int
) -> None:
    assert _needs(nodes, device) == {"num_cpus": cpus, "num_gpus": gpus}


class TestReaching:
    def test_without_the_extra(self, monkeypatch: Patch) -> None:
        monkeypatch.setattr(cluster, "find_spec", lambda name: None if name == "ray" else 1)
        with pytest.raises(UsageError, match=r"pip install 'densesiam-seg\[ray\]'"):
            require_cluster("auto")

    @pytest.fixture
    def _installed(self, monkeypatch: Patch) -> None:
        monkeypatch.setattr(cluster, "find_spec", lambda name: 1)

    @pytest.mark.usefixtures("_installed")
    @pytest.mark.parametrize(
        "address", ["", "here", "10.0.0.1", "ray://x:10001", ":6379", "x:99999"]
    )
    def test_no_address(self, address: str) -> None:
        with pytest.raises(UsageError, match="give auto or HOST:PORT"):
            require_cluster(address)

    @pytest.mark.usefixtures("_installed")
    def test_nobody_there(self, monkeypatch: Patch) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = f"127.0.0.1:{free.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UsageError, match=f"--ray {place}: .*ray start --head"):
            require_cluster(place)
        monkeypatch.setenv("RAY_ADDRESS", place)
        with pytest.raises(UsageError, match=f"--ray {place}: "):
            require_cluster("auto")
        assert time.monotonic() - started < 5

    @pytest.mark.usefixtures("_installed")
    def test_something_else_there(self, monkeypatch: Patch) -> None:
        monkeypatch.setattr(cluster, "SECONDS", 0.1)
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            with pytest.raises(UsageError, match=r"is no Ray|No module named"):
                require_cluster(f"127.0.0.1:{other.getsockname()[1]}")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as found:
        yield found


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")  # Ray's own
class TestRay:
    """In this order: the last test kills a machine."""

    def test_every_item_once_from_both_machines(self, nodes: Nodes, capsys: Any) -> None:
        require_cluster(nodes.address)
        handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
        found = list(on_workers(nodes.address, Squares(), range(12)))
        assert sorted(place for place, _ in found) == list(range(12))
        assert {place: number for place, (number, _) in found} == {n: n * n for n in range(12)}
        assert {folder for _, (_, folder) in found} == {str(Path.cwd())}
        assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
        assert capsys.readouterr() == ("", "")

    def test_errors(self, nodes: Nodes) -> None:
        with pytest.raises(InputError, match="not 13"):
            list(on_workers(nodes.address, Squares(), [1, 13]))
        with pytest.raises(WorkerError, match=r"cannot begin: no model here.*same files"):
            list(on_workers(nodes.address, Squares(broken=True), [1, 2]))

    def test_whoever_stops_early_leaves(self, nodes: Nodes) -> None:
        import ray

        with closing(on_workers(nodes.address, Squares(seconds=0.5), range(40))) as results:
            next(results)
            assert ray.is_initialized()
        assert not ray.is_initialized()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_it(self, nodes: Nodes, number: int) -> None:
        program = (
            "import sys, time\n"
            "from densesiam_seg.cli import app\n"
            "from densesiam_seg.on_ray.cluster import on_workers\n"
            "from tests.on_ray.test_cluster import Squares\n"
            "def work(**_):\n"
            "    for _ in on_workers(sys.argv[1], Squares(seconds=1), range(100)):\n"
            "        print('one', file=sys.stderr, flush=True)\n"
            "app.app = work\n"
            "app.main()\n"
        )
        paths = os.pathsep.join([*sys.path, str(Path(__file__).parents[2])])
        child = subprocess.Popen(
            [sys.executable, "-c", program, nodes.address],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stderr is not None and child.stdout is not None
        assert child.stderr.readline() == "one\n"
        child.send_signal(number)
        started = time.monotonic()
        out, error = child.communicate(timeout=60)
        assert (child.returncode, out) == (128 + number, "")
        assert "error[stopped]" in error and "Traceback" not in error
        assert time.monotonic() - started < 20

    def test_a_lost_machine(self, nodes: Nodes, capsys: Any) -> None:
        told: list[Any] = []
        found: dict[int, Any] = {}
        work = Squares(seconds=0.3)
        for place, (number, _) in on_workers(nodes.address, work, range(40, 80), tell=told.append):
            found[place] = number
            if len(found) == 10:
                nodes.kill()
        assert found == {n: (n + 40) ** 2 for n in range(40)}
        assert len(told) <= 1 and all(each.warning for each in told)
        assert capsys.readouterr().out == ""
