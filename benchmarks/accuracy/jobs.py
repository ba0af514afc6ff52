"""A row on a data set with a seed: what is known of it, whether it is done, and the child process that does it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from rows import Row
from tasks import Task

import densesiam_seg
from densesiam_seg.io.files import to_json

FORMAT = 3
"""Raised with a change of the package by which a row has other figures with the same settings."""
CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Means:
    """How every job is done."""

    folder: Path
    roots: dict[str, Path]
    quick: bool = False
    ablation: bool = False
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Job:
    """A row on a task with a seed."""

    name: str
    row: Row
    task: Task
    seed: int
    means: Means

    @property
    def path(self) -> Path:
        """Where its result lies once it is there."""
        task = self.task
        return (
            self.means.folder
            / f"{task.name}-{task.scored.split}"
            / f"{self.name}-seed-{self.seed}.json"
        )

    def __str__(self) -> str:
        return f"{self.task.name}, {self.row.title}, seed {self.seed}"

    def settings(self) -> dict[str, Any]:
        """What the result depends on but the code itself, whose revision every result names."""
        means = self.means
        return {
            "format": FORMAT,
            "row": self.name,
            "seed": self.seed,
            "quick": means.quick,
            "device": means.device,
            "task": self.row.task(self.task).facts(),
            "settings": self.row.facts(self.task, quick=means.quick),
        }

    def digest(self) -> str:
        """Results whose digest is another one are made anew."""
        text = json.dumps(json.loads(to_json(self.settings())), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def result(self) -> dict[str, Any] | None:
        """The finished result of these very settings; None where there is none."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("digest") == self.digest() else None

    def order(self) -> dict[str, Any]:
        """What the child is told."""
        means = self.means
        identity = {**self.settings(), "digest": self.digest()}
        return {
            "row": self.name,
            "dataset": self.task.name,
            "split": self.task.scored.split,
            "side": self.task.side,
            "root": str(means.roots[self.task.name]),
            "seed": self.seed,
            "quick": means.quick,
            "ablation": means.ablation,
            "device": means.device,
            "threads": means.threads,
            "out": str(self.path),
            "identity": identity,
        }


class Children:
    """Child processes, so many at a time; leaving the block early ends those that run."""

    def __init__(self, count: int, threads: int) -> None:
        self._pool = ThreadPoolExecutor(count)
        self._threads = threads
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = Lock()
        self._ended = False

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def finish(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str | None]]:
        """Do the jobs; yields each as it ends, with the reason where it failed."""
        futures: dict[Future[str | None], Job] = {
            self._pool.submit(self._do, job): job for job in jobs
        }
        for future in as_completed(futures):
            yield futures[future], future.result()

    def _do(self, job: Job) -> str | None:
        job.path.parent.mkdir(parents=True, exist_ok=True)
        log = job.path.with_suffix(".log")
        with log.open("wb") as file:
            with self._lock:
                if self._ended:
                    return "stopped"
                command = [sys.executable, str(CHILD), json.dumps(job.order())]
                process = subprocess.Popen(
                    command, stdout=file, stderr=file, env=environment(self._threads)
                )
                self._running.add(process)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return f"{lines[-1] if lines else 'no message'} (exit code {code}; see {log})"
        log.unlink()
        return None


def environment(threads: int) -> dict[str, str]:
    """A child runs the code that its parent runs, and as many threads as it is given."""
    tree = str(Path(densesiam_seg.__file__).parents[1])
    paths = [tree, *filter(None, [os.environ.get("PYTHONPATH")])]
    count = str(threads)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
    }
