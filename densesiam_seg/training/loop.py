"""The training loop: one step, one epoch, all epochs, as a stream of records.

Axes: B images, K clusters, S stored side.

The loop's whole state is the network, the optimiser's moments, the method's state, the number of finished steps and the
sums of the current epoch. Views and order are functions of (seed, epoch, image), so a loop restored from that
state reaches the same weights.

Of a group of processes each takes a part of every batch, always the same places of it, so that the order of images does
not depend on how many there are. All have the same weights and the same state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from densesiam_seg.config import RunConfig
from densesiam_seg.errors import InputError, NumericError, UsageError
from densesiam_seg.events import EpochRecord, Progress, StepRecord
from densesiam_seg.images.store import ImageStore, epoch_batches, on_device
from densesiam_seg.io.devices import autocast, exact_device
from densesiam_seg.methods.method import Method, Objective, diverged
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.peers.group import watched
from densesiam_seg.peers.norms import share_statistics
from densesiam_seg.training.drawing import Drawn, drawing

IN_USE = 0.001
"""A cluster counts as in use from this share of an epoch's pixels on."""
MOMENTUM = 0.9
"""Of SGD, the paper's."""
READ_SECONDS = 0.25
"""Interval of reading results from a GPU, since each reading waits for all work queued on it."""


@dataclass(frozen=True)
class UnreadStep:
    """A finished step whose results are not read yet; on a GPU they may not be computed yet."""

    step: int
    epoch: int
    indices: tuple[int, ...]
    """The images of the whole batch."""
    result: Objective
    numbers: Tensor
    """Of the whole batch, in double precision (`_numbers`)."""

    def is_sound(self) -> bool:
        """Whether loss and gradients are finite."""
        return not self.numbers[0]


@dataclass
class EpochSums:
    """Running sums of the current epoch, in float64 and int64, which JSON stores exactly."""

    steps: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    agreement: float = 0.0
    histogram: list[int] = field(default_factory=list)
    disjoint: int = 0
    spread: float | None = None

    def add(self, record: StepRecord, histogram: list[int]) -> None:
        self.steps += 1
        for name, value in record.losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value
        self.agreement += record.agreement
        self.disjoint += record.disjoint
        if record.spread is not None:
            self.spread = (self.spread or 0.0) + record.spread
        old = self.histogram or [0] * len(histogram)
        self.histogram = [a + b for a, b in zip(old, histogram, strict=True)]

    def record(self, step: int, epoch: int) -> EpochRecord:
        pixels = sum(self.histogram)
        shares = [count / pixels for count in self.histogram]
        uniform = math.log(len(shares)) if shares else 1.0
        return EpochRecord(
            step=step,
            epoch=epoch,
            losses={name: value / self.steps for name, value in self.losses.items()},
            agreement=self.agreement / self.steps,
            clusters_in_use=sum(share >= IN_USE for share in shares),
            entropy=-sum(s * math.log(s) for s in shares if s) / uniform,
            shares=shares,
            disjoint=self.disjoint,
            spread=None if self.spread is None else self.spread / self.steps,
        )


class Training:
    """A method's network under training; iterate `records` to advance it."""

    def __init__(
        self,
        method: Method,
        config: RunConfig,
        store: ImageStore,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        if len(store) < config.batch_size:
            raise InputError(
                f"{len(store)} usable images cannot fill a batch of {config.batch_size}; "
                "give more images or a smaller --batch-size"
            )
        self.method = method
        self.group = method.group
        if self.group.count > config.batch_size:
            raise UsageError(
                f"{self.group.count} processes cannot share a batch of {config.batch_size} images; "
                "start fewer or give a larger --batch-size"
            )
        self.network: DenseSiam = method.network.to(
            device, memory_format=torch.channels_last
        ).train()  # type: ignore[call-overload]
        share_statistics(self.network, self.group)
        self.config = config
        self.store = store
        self.device = device
        self.precision = precision
        self.optimizer = _optimizer(self.network, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        self.step = 0
        self.steps_per_epoch = len(store) // config.batch_size
        self.total_steps = self.steps_per_epoch * config.epochs
        self.sums = EpochSums()
        self.last_epoch: EpochRecord | None = None
        self.compiled: float | None = None
        """Seconds in which parts of the step were compiled; None where they were not."""
        self.read_seconds = READ_SECONDS if device.type == "cuda" else 0.0
        """0: every step's results are read before the weights change."""

    @cached_property
    def _averaged(self) -> DistributedDataParallel:
        """The method's objective, with gradients that are the mean over the processes of the group.

        Made at the first step, when all processes are known to have the same network.
        """
        with watched():
            # Which parts have gradients changes in the course of a training.
            return DistributedDataParallel(_WithGradients(self.method), find_unused_parameters=True)

    def records(self) -> Iterator[Progress | StepRecord | EpochRecord]:
        """Train from the current step to the last; the state is consistent whenever a record is yielded.

        Where results are read less often than every step, the records of several steps come at once; the state is that
        after the last of them, whose `step` equals `self.step`.
        """
        if not self.total_steps:
            yield from self._prepare(0)
        while self.step < self.total_steps:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            groups = epoch_batches(
                len(self.store), self.config.batch_size, seed=self.config.seed, epoch=epoch
            )
            yield from self._prepare(epoch)
            pinned = self.device.type == "cuda"
            own = groups[done:].part(self.group.shard)
            batches = on_device(self.method.batches(self.store, own, pinned=pinned), self.device)
            views = drawing(self.method, batches, epoch, self.device)
            unread: list[UnreadStep] = []
            for whole in groups[done:]:
                if not unread:
                    began = time.perf_counter()
                unread.append(self._advance(views, whole, epoch))
                # Before results are waited for, so that the GPU goes on meanwhile.
                views.ahead()
                last = self.step % self.steps_per_epoch == 0
                if last or self._is_time_to_read(began):
                    records = self._read(unread, began)
                    unread = []
                    if last:
                        self.last_epoch = self.sums.record(self.step, epoch)
                        self.sums = EpochSums()
                    yield from records
            assert self.last_epoch is not None
            yield self.last_epoch

    def _is_time_to_read(self, began: float) -> bool:
        """The same in all processes, though each has a clock of its own."""
        if not self.read_seconds:
            return True
        return any(self.group.largest([time.perf_counter() - began >= self.read_seconds]))

    def _prepare(self, epoch: int) -> Iterator[Progress]:
        for images in self.method.prepare(self.store, epoch):
            what = f"clustering for epoch {epoch + 1}"
            yield Progress(what, images, self.steps_per_epoch * self.config.batch_size)

    def _read(self, unread: Sequence[UnreadStep], began: float) -> list[StepRecord]:
        """The records of steps, added to the epoch's sums. Raises NumericError."""
        # A single copy from the device for all steps.
        numbers = torch.stack([step.numbers for step in unread]).tolist()
        seconds = (time.perf_counter() - began) / len(unread)
        records = []
        for step, (unsound, disjoint, agreement, spread, *more) in zip(
            unread, numbers, strict=True
        ):
            if unsound:
                raise self._diverged(step)
            names = [*step.result.parts, "total"]
            record = StepRecord(
                step.step,
                step.epoch,
                losses=dict(zip(names, more, strict=False)),
                agreement=agreement,
                seconds=seconds,
                disjoint=int(disjoint),
                spread=None if step.result.spread is None else spread,
            )
            self.sums.add(record, [int(count) for count in more[len(names) :]])
            records.append(record)
        return records

    def _advance(self, views: Iterator[Drawn], whole: tuple[int, ...], epoch: int) -> UnreadStep:
        """One optimiser step with this process's part of a `whole` batch, the next of the `views`.

        Raises NumericError, with the weights as they were, when something is not finite and results are read at once.
        """
        seen, indices = next(views)
        weight = len(indices) / len(whole)
        factor = self.config.decay(self.step / self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate() * (factor if group["decays"] else 1.0)
        with autocast(self.device, self.precision):
            objective = self.method.objective if self.group.alone else self._averaged
            result = objective(seen, indices, epoch)
        # What the way back needs of it is kept elsewhere, in half precision where there is one.
        del seen
        self.optimizer.zero_grad(set_to_none=True)
        # Gradients become the mean over processes, so that each is multiplied by its share of the images.
        with nullcontext() if self.group.alone else watched():
            torch.autograd.backward(self.scaler.scale(result.total * (weight * self.group.count)))
        numbers = self.group.total(_numbers(result, self._sound(result), weight))
        step = UnreadStep(self.step + 1, epoch, whole, result, numbers)
        if not self.read_seconds and not step.is_sound():
            raise self._diverged(step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        return step

    def _sound(self, result: Objective) -> Tensor:
        # A running variance overflows where features are too large for the loss to show it, as they are normalised.
        buffers = [b for b in self.network.buffers() if b.is_floating_point()]
        sound = torch.isfinite(result.total.detach())
        sound = sound & torch.isfinite(torch.nn.utils.get_total_norm(buffers))
        if result.sound is not None:
            sound = sound & result.sound
        if not self.scaler.is_enabled():
            # With fp16 the scaler itself skips steps whose scaled gradients overflow.
            gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
            sound = sound & torch.isfinite(torch.nn.utils.get_total_norm(gradients))
        return sound

    def _diverged(self, step: UnreadStep) -> NumericError:
        return diverged(
            "loss, gradient or features are not finite, too large or all the same",
            step.step,
            [self.store.manifest.names[index] for index in step.indices],
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on: tensors, and a JSON object."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{moment}.{name}"] = value
        for name, value in self.method.state().items():
            tensors[f"method.{name}"] = value
        return tensors, {
            "step": self.step,
            "sums": asdict(self.sums),
            "last_epoch": asdict(self.last_epoch) if self.last_epoch else None,
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take over what `state` returned for a network of the same architecture."""
        self.network.load_state_dict(_below("network.", tensors))
        parameters = dict(self.network.named_parameters())
        for name, value in _below("optimizer.", tensors).items():
            moment, _, owner = name.partition(".")
            parameter = parameters[owner]
            # In its parameter's memory layout, which fixes the order of sums; Adam's step count has another shape.
            same = value.shape == parameter.shape
            copied = torch.empty_like(parameter).copy_(value) if same else value.clone()
            self.optimizer.state[parameter][moment] = copied
        self.method.restore(_below("method.", tensors))
        self.step = state["step"]
        self.sums = EpochSums(**state["sums"])
        self.last_epoch = EpochRecord(**state["last_epoch"]) if state["last_epoch"] else None
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}


def _numbers(result: Objective, sound: Tensor, weight: float) -> Tensor:
    """What is read of a step, so that the sum over all processes, whose parts have such weights, is that of the batch.

    It is unsound or not, images without an overlap, agreement, spread (or 0), losses and their total, the histogram.
    """
    spread = torch.zeros_like(result.agreement) if result.spread is None else result.spread
    means = [result.agreement, spread, *result.parts.values(), result.total.detach()]
    vector = torch.stack([(~sound).float(), *(value.float() for value in means)])
    vector = vector.to(exact_device(vector.device)).double()
    # Filled on the device: a copy to a GPU would wait for all work queued on it.
    counts = vector.new_full((1,), result.disjoint)
    return torch.cat((vector[:1], counts, weight * vector[1:], result.histogram.to(vector)))


class _WithGradients(nn.Module):
    """A method's objective as a module, whose gradients torch averages over all processes while it computes them."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        # Without buffers: they are the same everywhere by themselves.
        self.trained = nn.ParameterList(p for p in method.trained().parameters() if p.requires_grad)
        self.method = method

    def forward(self, drawn: Any, indices: Sequence[int], epoch: int) -> Objective:
        return self.method.objective(drawn, indices, epoch)


def _optimizer(network: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """SGD or Adam of two groups: the predictors, whose rate stays, and everything else but a frozen backbone."""
    # Not fused: torch's SGD then refuses weights that get their first gradient later, as those of regions do.
    predictors = [p for name, p in network.named_parameters() if "predictor." in name]
    known = set(predictors)
    others = [p for p in network.parameters() if p not in known and p.requires_grad]
    groups = [{"params": others, "decays": True}, {"params": predictors, "decays": False}]
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, config.rate(), weight_decay=config.weight_decay)
    return torch.optim.SGD(
        groups, config.rate(), momentum=MOMENTUM, weight_decay=config.weight_decay
    )
