"""The training loop: one step, one epoch, all epochs, as a stream of records.

Axes: B images, K clusters, S stored side.

The loop's whole state is the network, the optimiser's momentum, the number of finished steps and the sums of the
epoch under way. Views and order are functions of (seed, epoch, image), so a loop restored from that state goes on to
the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from densesiam_seg.batches import Batch, ImageStore, epoch_batches
from densesiam_seg.config import TrainConfig
from densesiam_seg.devices import autocast
from densesiam_seg.errors import InputError, NumericError
from densesiam_seg.model import DenseSiam
from densesiam_seg.objective import Objective, objective
from densesiam_seg.views import view_pair

IN_USE = 0.001
"""A cluster counts as in use from this share of an epoch's pixels on."""


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step: losses before weighting and `total` after, view agreement in [0, 1], wall time."""

    step: int
    epoch: int
    losses: dict[str, float]
    agreement: float
    seconds: float


@dataclass(frozen=True)
class EpochRecord:
    """Means over an epoch's steps, and how its pixels spread over the clusters."""

    step: int
    epoch: int
    losses: dict[str, float]
    agreement: float
    clusters_in_use: int
    entropy: float
    """Entropy of the cluster shares over log K: 1 when all are alike, 0 when one cluster has everything."""
    shares: list[float]

    def __str__(self) -> str:
        parts = [f"{name} {value:.3f}" for name, value in self.losses.items() if name != "total"]
        return (
            f"epoch {self.epoch + 1}: loss {self.losses['total']:.3f} ({', '.join(parts)}), views agree "
            f"{100 * self.agreement:.0f} %, clusters in use {self.clusters_in_use}/{len(self.shares)}"
        )

    def collapsed(self) -> bool:
        """True when fewer than half of the clusters are in use, or one has almost everything."""
        return self.clusters_in_use < len(self.shares) / 2 or max(self.shares) > 0.9


@dataclass
class EpochSums:
    """Running sums of the epoch under way; float64 and int64, so that they survive JSON unchanged."""

    steps: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    agreement: float = 0.0
    histogram: list[int] = field(default_factory=list)

    def add(self, record: StepRecord, histogram: list[int]) -> None:
        self.steps += 1
        for name, value in record.losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value
        self.agreement += record.agreement
        old = self.histogram or [0] * len(histogram)
        self.histogram = [a + b for a, b in zip(old, histogram, strict=True)]

    def record(self, step: int, epoch: int) -> EpochRecord:
        pixels = sum(self.histogram)
        shares = [count / pixels for count in self.histogram]
        return EpochRecord(
            step=step,
            epoch=epoch,
            losses={name: value / self.steps for name, value in self.losses.items()},
            agreement=self.agreement / self.steps,
            clusters_in_use=sum(share >= IN_USE for share in shares),
            entropy=-sum(s * math.log(s) for s in shares if s) / math.log(len(shares)),
            shares=shares,
        )


class Training:
    """A network under training; iterate `records` to advance it."""

    def __init__(
        self,
        network: DenseSiam,
        config: TrainConfig,
        store: ImageStore,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        if len(store) < config.batch_size:
            raise InputError(
                f"{len(store)} usable images cannot fill a batch of {config.batch_size}; "
                "give more images or a smaller --batch-size"
            )
        self.network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.config = config
        self.store = store
        self.device = device
        self.precision = precision
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            config.rate(),
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        self.step = 0
        self.sums = EpochSums()
        self.last_epoch: EpochRecord | None = None

    @property
    def steps_per_epoch(self) -> int:
        return len(self.store) // self.config.batch_size

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def records(self) -> Iterator[StepRecord | EpochRecord]:
        """Train from the current step to the last; the state is consistent whenever a record is yielded."""
        while self.step < self.total_steps:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            groups = epoch_batches(
                len(self.store), self.config.batch_size, seed=self.config.seed, epoch=epoch
            )
            for batch in self.store.batches(groups[done:]):
                start = time.perf_counter()
                result = self._advance(batch, epoch)
                self.step += 1
                *values, agreement = torch.stack(
                    [*result.parts.values(), result.total.detach(), result.agreement]
                ).tolist()
                losses = dict(zip([*result.parts, "total"], values, strict=True))
                record = StepRecord(
                    self.step, epoch, losses, agreement, time.perf_counter() - start
                )
                self.sums.add(record, result.histogram.tolist())
                last = self.step % self.steps_per_epoch == 0
                if last:
                    self.last_epoch = self.sums.record(self.step, epoch)
                    self.sums = EpochSums()
                yield record
                if last and self.last_epoch:
                    yield self.last_epoch

    def _advance(self, batch: Batch, epoch: int) -> Objective:
        """One optimiser step. Raises NumericError, with the weights as they were, when something is not finite."""
        config = self.config
        images = batch.images.to(self.device, non_blocking=True)
        views = view_pair(
            images,
            batch.indices,
            seed=config.seed,
            round_=epoch if config.replay == "epoch" else 0,
        )
        with autocast(self.device, self.precision):
            result = objective(self.network, views, config, regions=epoch >= config.region_epoch())
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(result.total))
        self._require_finite(result, batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return result

    def _require_finite(self, result: Objective, batch: Batch) -> None:
        sound = torch.isfinite(result.total.detach())
        if not self.scaler.is_enabled():
            # With fp16 the scaler itself skips steps whose scaled gradients overflow.
            gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
            sound = sound & torch.isfinite(torch.nn.utils.get_total_norm(gradients))
        if not bool(sound):
            names = ", ".join(self.store.manifest.names[index] for index in batch.indices[:4])
            more = ", …" if len(batch.indices) > 4 else ""
            raise NumericError(
                f"loss or gradient is not finite at step {self.step + 1} (batch with {names}{more}); "
                "the last checkpoint is kept: lower --learning-rate or use --precision fp32"
            )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on: tensors, and a JSON object."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{name}"] = buffer
        return tensors, {
            "step": self.step,
            "sums": asdict(self.sums),
            "last_epoch": asdict(self.last_epoch) if self.last_epoch else None,
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take over what `state` returned for a network of the same architecture."""
        self.network.load_state_dict(
            {
                name.removeprefix("network."): value
                for name, value in tensors.items()
                if name.startswith("network.")
            }
        )
        for name, parameter in self.network.named_parameters():
            buffer = tensors.get(f"momentum.{name}")
            if buffer is not None:
                # The buffer's memory layout is the parameter's: another one would add up in another order.
                momentum = torch.empty_like(parameter).copy_(buffer)
                self.optimizer.state[parameter] = {"momentum_buffer": momentum}
        self.step = state["step"]
        self.sums = EpochSums(**state["sums"])
        self.last_epoch = EpochRecord(**state["last_epoch"]) if state["last_epoch"] else None
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
