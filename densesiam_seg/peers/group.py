"""The processes that a launcher started, as one group: what they add up, share and agree on.

Each has a rank from 0. Whoever is alone is a group of one, for which nothing is sent, so that no caller has to ask.
Every method but `joined` must be called by all processes of a group, in the same order. A peer that is gone or silent
is a WorkerError in all others: nothing waits for ever.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from densesiam_seg.errors import UsageError, WorkerError
from densesiam_seg.peers.meeting import meet
from densesiam_seg.peers.outcome import Failed, outcome_of, result_of
from densesiam_seg.peers.shard import Shard, launched

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")

TIMEOUT = "DENSESIAM_SEG_TIMEOUT"
"""In the environment: seconds after which a silent peer counts as lost."""
SECONDS = 600.0
"""Unless the environment has another."""
WAIT = timedelta(days=7)
"""For what one process does alone while the others wait, such as listing fifty million files. One that dies is noticed
at once, as its connections close; one whose machine is cut off is noticed by torchrun, whose agents ask each other."""


class Group:
    """The processes of a job; by default this one alone."""

    def __init__(
        self, shard: Shard | None = None, waiting: dist.ProcessGroup | None = None
    ) -> None:
        self.shard = shard or Shard()
        self._waiting = waiting

    @property
    def index(self) -> int:
        """This process's rank."""
        return self.shard.index

    @property
    def count(self) -> int:
        """How many there are."""
        return self.shard.count

    @property
    def alone(self) -> bool:
        """Whether there is one."""
        return self.shard.alone

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.shard.index == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes; of int64 the same bits for any number of them."""
        if self.alone:
            return values
        import torch.distributed as dist

        total = values.detach().clone().contiguous()
        with watched():
            dist.all_reduce(total)
        return total

    def mean(self, values: Tensor, weight: float) -> Tensor:
        """The mean over all processes, each of which counts by its weight."""
        if self.alone:
            return values
        import torch

        sums = self.total(torch.cat((values.flatten() * weight, values.new_tensor([weight]))))
        return (sums[:-1] / sums[-1]).view(values.shape)

    def largest(self, values: Sequence[int]) -> list[int]:
        """Of each number the largest that any process has."""
        if self.alone:
            return list(values)
        import torch
        import torch.distributed as dist

        most = torch.tensor(values)
        with watched():
            dist.all_reduce(most, dist.ReduceOp.MAX)
        found: list[int] = most.tolist()
        return found

    def gathered(self, value: Result, *, patient: bool = False) -> list[Result]:
        """The values of all processes, by rank; `patient` where their work takes unlike time."""
        if self.alone:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        with watched():
            dist.all_gather_object(found, value, group=self._waiting if patient else None)
        return found

    def by_first(self, work: Callable[[], Result]) -> Result:
        """What `work` gives the first process; the others wait for it. Its errors are raised in all."""
        if self.alone:
            return work()
        import torch.distributed as dist

        sent: list[Any] = [outcome_of(work) if self.first else None]
        with watched():
            dist.broadcast_object_list(sent, group=self._waiting)
        outcome: Result | Failed = sent[0]
        return self._value(outcome)

    def by_each(self, work: Callable[[], Result]) -> Result:
        """What `work` gives this process. Where it fails in any, the first one's error is raised in all."""
        if self.alone:
            return work()
        outcome = outcome_of(work)
        for found in self.gathered(outcome if isinstance(outcome, Failed) else None):
            if found is not None:
                self._value(found)
        assert not isinstance(outcome, Failed)
        return outcome

    def dealt(
        self, work: Callable[[Item], Result], items: Sequence[Item]
    ) -> Generator[Result, None, None]:
        """`work` of each item, in order: every process does some of them on its own cores, and all get all results.

        An error of one item is raised in all processes. Close the generator if you stop early.
        """
        import torch

        from densesiam_seg.io.parallel import on_own_cores

        if self.alone:
            yield from on_own_cores(work, items)
            return
        (cores,) = self.largest([torch.get_num_threads()])
        step = self.count * cores
        for start in range(0, len(items), step):
            own = items[start : start + step][self.index :: self.count]
            with closing(on_own_cores(lambda item: outcome_of(lambda: work(item)), own)) as done:
                found = self.gathered(list(done))
            for place in range(min(step, len(items) - start)):
                yield self._value(found[place % self.count][place // self.count])

    def _value(self, outcome: Result | Failed) -> Result:
        """What a process sent; an error that all of them raise is told by the first."""
        if isinstance(outcome, Failed):
            outcome.error.told = not self.first
        return result_of(outcome)


ALONE = Group()


@contextmanager
def joined(device: str = "auto") -> Iterator[Group]:
    """The group of the processes that a launcher started, until the block ends. Raises UsageError and WorkerError.

    It uses gloo for what lies in the processor's memory and NCCL for what lies on a GPU.
    """
    shard = launched()
    if shard.alone:
        yield ALONE
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"WORLD_SIZE={shard.count}: {' and '.join(missing)} must name where the first process is met; "
            "start with torchrun, or set them"
        )
    import torch
    import torch.distributed as dist

    from densesiam_seg.io.devices import pick_device

    if device == "mps":
        raise UsageError("--device mps: works in one process; give cpu")
    gpus = device.startswith(("auto", "cuda")) and torch.cuda.is_available()
    if gpus:
        # Else every process would open the first one too, for memory that a GPU copies from by itself.
        torch.cuda.set_device(pick_device("cuda" if device == "auto" else device))
    with watched():
        store = meet(shard, _patience())
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=store,
            timeout=_patience(),
            rank=shard.index,
            world_size=shard.count,
        )
    try:
        with watched():
            waiting = dist.new_group(backend="gloo", timeout=WAIT)
        assert isinstance(waiting, dist.ProcessGroup)
        yield Group(shard, waiting)
    finally:
        dist.destroy_process_group()


def _patience() -> timedelta:
    text = os.environ.get(TIMEOUT, str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise UsageError(f"{TIMEOUT}={text}: give a number of seconds")
    return timedelta(seconds=seconds)


@contextmanager
def watched() -> Iterator[None]:
    """A lost connection is a WorkerError."""
    import torch.distributed as dist

    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, dist.DistError) or _is_of_connection(error):
            reason = " ".join(str(error).split())[:300]
            raise WorkerError(
                f"another process of this job is gone or does not answer ({reason}); start the job again: "
                "with --resume it goes on from the last checkpoint"
            ) from error
        raise


def _is_of_connection(error: RuntimeError) -> bool:
    """gloo tells of lost peers by RuntimeErrors without a class of their own."""
    text = str(error).lower()
    return any(word in text for word in ("gloo", "nccl", "connection", "timed out", "socket"))
