"""Where the time of training steps goes, by part: views, network, heads, losses, optimiser, checks.

    python benchmarks/speed --profile              # on this machine's best device; --rehearse makes it small

torch's profiler tells what each operation takes by itself. Parts are named around the functions that they consist of;
an operation on the way back belongs to the part that it comes from on the way there (both have one sequence number).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from densesiam_seg.events import StepRecord
from densesiam_seg.methods import densesiam, fused_losses
from densesiam_seg.network import model
from densesiam_seg.training import loop
from densesiam_seg.training.loop import Training

PART = "part: "
OTHER = "other"
BACKWARD = "autograd::engine::evaluate_function"


@dataclass(frozen=True)
class Share:
    """Milliseconds of a part in a step: of the processor, and of the GPU where there is one."""

    part: str
    processor: float
    gpu: float


def shares(training: Training, steps: int, *, warm: int = 1) -> list[Share]:
    """What each part takes in a step of a training, the longest first, after some that do not count."""
    records = training.records()
    _advance(records, warm)
    cuda = training.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with named_parts(training), profile(activities=kinds) as found:
        _advance(records, steps)
        if cuda:
            torch.cuda.synchronize()
    times: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event, part in by_part(found.events()):
        times[part][0] += event.self_cpu_time_total / 1e3 / steps
        times[part][1] += event.self_device_time_total / 1e3 / steps
    place = 1 if cuda else 0
    ordered = sorted(times.items(), key=lambda item: -item[1][place])
    return [Share(part, *both) for part, both in ordered]


def table(found: list[Share]) -> str:
    """As Markdown; shares are those of the device that computes."""
    gpu = any(share.gpu for share in found)
    total = sum(share.gpu if gpu else share.processor for share in found)
    lines = ["| part | GPU, ms | processor, ms | share |" if gpu else "| part | ms | share |"]
    lines.append("|---" * (4 if gpu else 3) + "|")
    for share in found:
        part = (share.gpu if gpu else share.processor) / total
        times = f"{share.gpu:.1f} | {share.processor:.1f}" if gpu else f"{share.processor:.1f}"
        lines.append(f"| {share.part} | {times} | {100 * part:.1f} % |")
    lines.append(f"| all | {total:.1f} |{' |' if gpu else ''} |")
    return "\n".join(lines)


@contextmanager
def named_parts(training: Training) -> Iterator[None]:
    """Every part of a step under its name, in this block alone: the program itself has no names in it."""
    network, method = training.network, training.method
    parts: list[tuple[Any, str, str]] = [
        (densesiam, "view_pair", "views"),
        (network.encoder, "forward", "backbone and decoder"),
        (model, "warp", "warp"),
        (densesiam, "prior_shares", "prior"),
        (network.projector, "forward", "projector, K clusters"),
        (network.predictor, "forward", "predictor, K clusters"),
        (fused_losses, "siamese_loss", "losses of pixels"),
        (densesiam, "_segmentation_loss", "loss of pseudo-labels"),
        (densesiam, "_winners", "winners and counts"),
        (densesiam, "label_counts", "winners and counts"),
        (fused_losses, "region_embeddings", "regions"),
        (densesiam, "region_loss", "regions"),
        (densesiam, "sound_features", "checks of soundness"),
        (training, "_sound", "checks of soundness"),
        (loop, "_numbers", "reading numbers"),
        (training, "_read", "reading numbers"),
        (training.optimizer, "step", "optimiser"),
        (training.optimizer, "zero_grad", "optimiser"),
    ]
    for name in ("over_projector", "over_predictor"):
        if (head := getattr(network, name)) is not None:
            parts.append((head, "forward", name.replace("over_", "") + ", A over-clusters"))
    if getattr(method, "pixels", None) is not None:
        parts.append((method, "pixels", "heads and losses, compiled"))
    with ExitStack() as stack:
        for owner, name, part in parts:
            stack.enter_context(patch.object(owner, name, _named(getattr(owner, name), part)))
        yield


def _named(function: Callable[..., Any], part: str) -> Callable[..., Any]:
    @wraps(function)
    def named(*arguments: Any, **options: Any) -> Any:
        with record_function(PART + part):
            return function(*arguments, **options)

    return named


def by_part(events: Any) -> Iterator[tuple[Any, str]]:
    """The profiler's events on the processor, each with its part; what a GPU does is told with what asked for it."""
    processor = [event for event in events if event.device_type.name == "CPU"]
    forward: dict[int, str] = {}
    for event in sorted(processor, key=lambda event: event.time_range.start):
        # The last of those with a number has made what goes back under it.
        if event.sequence_nr >= 0 and _engine(event) is None:
            forward[event.sequence_nr] = _enclosing(event)
    for event in processor:
        engine = _engine(event)
        yield event, _enclosing(event) if engine is None else forward.get(engine.sequence_nr, OTHER)


def _engine(event: Any) -> Any:
    """The step of the backward pass that an event belongs to, or None."""
    while event is not None and not event.name.startswith(BACKWARD):
        event = event.cpu_parent
    return event


def _enclosing(event: Any) -> str:
    """The innermost part around an event."""
    while event is not None and not event.name.startswith(PART):
        event = event.cpu_parent
    return OTHER if event is None else str(event.name).removeprefix(PART)


def _advance(records: Iterator[Any], steps: int) -> None:
    done = 0
    while done < steps:
        done += isinstance(next(records), StepRecord)
