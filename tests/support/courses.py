"""A short course of training by one process or by several, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from slim import slim_resnets
from torch import Tensor

from densesiam_seg.config import with_settings
from densesiam_seg.events import StepRecord
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import ImageStore
from densesiam_seg.methods.method import Objective
from densesiam_seg.methods.sampling import pool
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.encoder import Encoder
from densesiam_seg.network.model import DenseSiam, build_network
from densesiam_seg.peers.group import Group
from densesiam_seg.training.loop import Training
from densesiam_seg.training.recipes import CONFIGS, FITS, Command, build_method

STEPS = 3


class DoubleEncoder(Encoder):
    """One that reads images in double precision."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.double())


def courses(
    group: Group, images: Sequence[str], ways: Sequence[tuple[Command, dict[str, Any], float]]
) -> Any:
    """The outcomes of several ways to train, each of a few steps in double precision."""
    torch.set_num_threads(1)
    with slim_resnets(), pytest.MonkeyPatch.context() as patch:
        # What is double stays so: in single precision rounding grows a hundredfold in a step.
        single = Tensor.float
        patch.setattr(
            Tensor, "float", lambda own: own if own.dtype == torch.double else single(own)
        )
        patch.setattr(
            "densesiam_seg.methods.pretraining.pool",
            lambda maps, places: pool(maps, places.double()),
        )
        patch.setattr("densesiam_seg.training.recipes.build_network", double_network)
        return [course(group, images, *way[:2]) for way in ways]


def double_network(architecture: Architecture, seed: int) -> DenseSiam:
    network = build_network(architecture, seed).double()
    network.encoder.__class__ = DoubleEncoder
    return network


def course(
    group: Group, images: Sequence[str], command: Command, settings: dict[str, Any]
) -> dict[str, Any]:
    """Weights and buffers, records and the order of images after a few steps."""
    base = CONFIGS[command]()
    known = {name: value for name, value in settings.items() if hasattr(base, name)}
    config = with_settings(base, known)
    store = ImageStore(
        scan(images), 2 * config.image_size, fit=FITS[command], workers=0, group=group
    )
    for _ in store.prepare():
        pass
    device = torch.device("cpu")
    method = build_method(config, store, device, torch.float32, group)
    order: list[int] = []
    objective = method.objective

    def noting(drawn: Any, indices: Sequence[int], epoch: int) -> Objective:
        order.extend(indices)
        return objective(drawn, indices, epoch)

    method.objective = noting  # type: ignore[method-assign]
    training = Training(method, config, store, device, torch.float32)
    records = []
    for record in training.records():
        if isinstance(record, StepRecord):
            records.append((record.losses, record.disjoint, record.spread))
            if record.step == STEPS:
                break
    # Of every batch the parts of all processes, one after the other.
    parts = [torch.tensor(each).view(STEPS, -1) for each in group.gathered(order)]
    return {
        "network": dict(training.network.state_dict()),
        "records": records,
        "order": torch.cat(parts, 1).tolist(),
    }
