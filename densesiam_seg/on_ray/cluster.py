"""The workers of a Ray cluster as hands: work that is sent there once, and the parts that come back.

The one module that imports ray. What is whose work, what is done again where a machine is lost, and how much is under
way at once is left to Ray Data; this module knows only how to reach a cluster, and what its failures mean.

Whoever reaches a port of a Ray cluster can run code on it: it belongs into a network of people you trust.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar

from densesiam_seg import __version__
from densesiam_seg.errors import DenseSiamError, UsageError, WorkerError
from densesiam_seg.events import Notice
from densesiam_seg.io.signals import SIGNALS
from densesiam_seg.peers.outcome import Failed, outcome_of, result_of

Item = TypeVar("Item")
Result = TypeVar("Result")
Given = TypeVar("Given", contravariant=True)
Made = TypeVar("Made", covariant=True)

SECONDS = 5.0
"""In which a cluster has to answer the first knock."""
CORES = 8
"""Most cores of a worker: each holds a model, and beyond so many it cannot keep them busy."""
LOST = 4
"""Workers that may be lost one after the other before they have begun."""
MOST_PARTS = 10_000
"""Of a job, as Ray keeps a record of each."""


class Work(Protocol[Given, Made]):
    """What is sent to the workers: picklable, and made ready once in each of them."""

    def ready(self) -> Callable[[Given], Made]:
        """What does one item after the other; a model is loaded here. Raises DenseSiamError."""
        ...


def unseen_by(host: str, path: str) -> WorkerError:
    """The error for a file that this machine sees and a worker does not."""
    return WorkerError(
        f"--ray: the worker on {host} sees no {path}; "
        "every machine of the cluster must see the same files under the same names (a shared disk)"
    )


def parts_of(items: int, each: int) -> int:
    """How many parts a job has: of about `each` items, unless these are too many."""
    return max(min(-(-items // each), MOST_PARTS), 1)


def require_ray(option: str) -> None:
    """Raises UsageError where Ray Data is not installed."""
    if any(find_spec(name) is None for name in ("ray", "pandas", "pyarrow")):
        raise UsageError(f"{option}: needs Ray; install it with pip install 'densesiam-seg[ray]'")


def on_workers(
    address: str,
    work: Work[Item, Result],
    items: Sequence[Item],
    *,
    device: str = "auto",
    tell: Callable[[Notice], object] = lambda notice: None,
) -> Generator[tuple[int, Result], None, None]:
    """`work` of each item on the workers of a cluster: the item's place with what it gave, as they come.

    `address` is HOST:PORT or `auto`, the cluster that runs on this machine. `device` says whether a worker gets a GPU;
    with `auto` each does where the cluster has any. A worker that is lost is replaced, and what it had not given is
    done again; `tell` gets which machines are. Close the generator if you stop early: the cluster is left then. Until
    it has ended, nothing can be printed on stdout.

    Ask `require_cluster` first. Raises UsageError for a cluster that cannot be reached, the error of an item, and
    WorkerError for workers on which `ready` fails.
    """
    with _joined(address) as ray:
        needs = _needs(ray.nodes(), device)
        machines = _Machines(ray)
        with closing(_streamed(ray, work, items, needs)) as results:
            for result in results:
                for notice in machines.lost():
                    tell(notice)
                yield result


@contextmanager
def _joined(address: str) -> Iterator[Any]:
    """The module ray, connected to a cluster until the block ends."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else each job begins with a warning
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    # What Ray says of lost machines, at length, it would print among the data.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
        import ray

        try:
            with _without_stderr():
                ray.init(address, log_to_driver=False, logging_level="ERROR")
            _restore(handlers)  # Ray takes SIGTERM for itself
            yield ray
        except (ConnectionError, RuntimeError) as error:
            if ray.is_initialized():
                raise
            raise _no_cluster(address, _last_line(str(error))) from error
        finally:
            ray.shutdown()
            _restore(handlers)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Ray's libraries greet on the standard error, whatever they are told; their failures are exceptions."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _restore(handlers: Mapping[int, Any]) -> None:
    with suppress(ValueError):  # outside the main thread, where there are none
        for number, handler in handlers.items():
            signal.signal(number, handler)


def require_cluster(address: str) -> None:
    """Refuse, within seconds, what no cluster answers at; Ray itself would wait for minutes. Raises UsageError."""
    require_ray("--ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    place = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if place != "auto":
        host, colon, port = place.rpartition(":")
        if "://" in place or not (host and colon and port.isdecimal() and int(port) < 2**16):
            raise UsageError(f"--ray {place}: give auto or HOST:PORT, such as 10.0.0.1:6379")
        try:
            socket.create_connection((host.strip("[]"), int(port)), SECONDS).close()
        except OSError as error:
            raise _no_cluster(place, error.strerror or str(error)) from error
    # What listens there may be no cluster, or one of another version. A child that waits for an answer can be ended.
    knock = "import sys, ray; ray.init(sys.argv[1], logging_level='ERROR', log_to_driver=False)"
    words = [sys.executable, "-P", "-c", knock, address]
    try:
        subprocess.run(words, check=True, capture_output=True, text=True, timeout=3 * SECONDS)
    except subprocess.TimeoutExpired as error:
        raise _no_cluster(place, "what is there is no Ray") from error
    except subprocess.CalledProcessError as error:
        raise _no_cluster(place, _last_line(error.stderr)) from error


def _no_cluster(place: str, reason: str) -> UsageError:
    return UsageError(
        f"--ray {place}: no cluster could be joined ({reason}); start one with ray start --head, "
        "or correct the address"
    )


class _Machines:
    """Those of a cluster that were there, and those that are no longer."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._known = self._alive()

    def _alive(self) -> dict[str, str]:
        return {
            node["NodeID"]: node["NodeManagerAddress"]
            for node in self._ray.nodes()
            if node["Alive"]
        }

    def lost(self) -> list[Notice]:
        """A warning for each that is lost since this was asked last."""
        before, self._known = self._known, self._alive()
        return [
            Notice(
                f"{address}: this machine of the cluster is lost; its work is done again",
                warning=True,
            )
            for node, address in before.items()
            if node not in self._known
        ]


def _needs(nodes: Sequence[Mapping[str, Any]], device: str) -> dict[str, float]:
    """What a worker asks Ray for: the cores that every machine has, or a GPU with its share of them."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpu = [node for node in alive if node.get("GPU", 0) >= 1]
    gpus = device.startswith("cuda") or (device == "auto" and bool(with_gpu))
    shares = [node.get("CPU", 0) / node["GPU"] for node in with_gpu]
    if not gpus:
        shares = [node["CPU"] for node in alive if node.get("CPU", 0) >= 1]
    cores = max(min(int(min(shares, default=1)), CORES), 1)
    return {"num_cpus": cores, "num_gpus": 1 if gpus else 0}


def _streamed(
    ray: Any, work: Work[Item, Result], items: Sequence[Item], needs: Mapping[str, float]
) -> Generator[tuple[int, Result], None, None]:
    """The results of Ray Data, as they come. Raises what `on_workers` does."""
    from ray.data import ActorPoolStrategy, DataContext, from_items

    context = DataContext.get_current()
    context.enable_progress_bars = False  # the console has one
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.execution_options.preserve_order = False
    if hasattr(context, "max_consecutive_actor_init_deaths"):
        context.max_consecutive_actor_init_deaths = LOST  # their machine may be lost meanwhile
    rows = [{"place": place, "item": pickle.dumps(item)} for place, item in enumerate(items)]
    resources = ray.cluster_resources()
    what = "num_gpus" if needs["num_gpus"] else "num_cpus"
    room = resources.get("GPU" if needs["num_gpus"] else "CPU", 1) / needs[what]
    first = max(min(int(room), len(rows)), 1)
    # From one worker on, so that the loss of a machine leaves no worker that the work waits for.
    pool = ActorPoolStrategy(
        min_size=1, max_size=len(rows), initial_size=first, max_tasks_in_flight_per_actor=2
    )
    sent = _Sent(pickle.dumps(work), str(Path.cwd()), __version__)
    done = from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        fn_constructor_args=(sent, int(needs["num_cpus"])),
        batch_size=None,
        compute=pool,
        **needs,
    )
    try:
        for row in done.iter_rows():
            yield row["place"], result_of(pickle.loads(row["result"]))
    except DenseSiamError:
        raise
    except Exception as error:
        raise WorkerError(
            f"--ray: {type(error).__name__}: {_last_line(str(error))}; see ray status and its logs"
        ) from error


def _last_line(text: str) -> str:
    """What a failure of Ray comes to: its text has a traceback before it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason is told"


@dataclass(frozen=True)
class _Sent:
    """What a worker is made of."""

    work: bytes
    folder: str
    """Where the program was started, which relative paths begin at."""
    version: str


class _Worker:
    """One process of the cluster: made once, then given items."""

    def __init__(self, sent: _Sent, cores: int) -> None:
        import torch

        torch.set_num_threads(cores)
        self._work: Callable[[Any], Any] | Failed
        try:
            self._work = _made_ready(sent)
        except DenseSiamError as error:
            self._work = Failed(_told_of(error))

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        import numpy as np

        results = np.empty(len(rows["item"]), object)
        for number, item in enumerate(rows["item"]):
            results[number] = pickle.dumps(self._outcome(item))
        return {"place": rows["place"], "result": results}

    def _outcome(self, item: bytes) -> Any:
        return outcome_of(lambda: result_of(self._work)(pickle.loads(item)))


def _made_ready(sent: _Sent) -> Callable[[Any], Any]:
    if sent.version != __version__:
        raise WorkerError(f"has version {__version__} of this program, not {sent.version}")
    with suppress(OSError):  # absolute paths need no such folder
        os.chdir(sent.folder)
    work: Work[Any, Any] = pickle.loads(sent.work)
    return work.ready()


def _told_of(error: DenseSiamError) -> WorkerError:
    return WorkerError(
        f"--ray: the worker on {socket.gethostname()} cannot begin: {error}; "
        "every machine of the cluster must see the same files under the same names, and have the same version"
    )
