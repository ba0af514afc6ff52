"""Networks without memory: shapes, and that torch's compiler stays away."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import DenseSiam, build_network
from densesiam_seg.network.weightless import weightless

ARCHITECTURES = [
    Architecture("resnet18", 8, 5, 6, image_head=True, mixture=True),
    Architecture("timm:tf_efficientnet_lite0", 8, 5, 0, features="stages", mixture=True),
    Architecture("swin_t", 8, 5, 6),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shapes_are_those_of_a_network_with_memory(architecture: Architecture) -> None:
    with weightless():
        found = DenseSiam(architecture).state_dict()
    wanted = build_network(architecture, seed=0).state_dict()
    assert all(each.is_meta for each in found.values())
    assert {key: (each.shape, each.dtype) for key, each in found.items()} == {
        key: (each.shape, each.dtype) for key, each in wanted.items()
    }
    assert list(found) == list(wanted)


def test_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    with weightless():
        DenseSiam(ARCHITECTURES[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.zeros(1).is_meta
    assert torch.nn.init.normal_(torch.zeros(9)).any()


def test_neither_compiler_nor_libraries_are_imported() -> None:
    code = f"""
import sys
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.network.weightless import weightless
for architecture in {ARCHITECTURES[:2]!r}:
    with weightless():
        DenseSiam(architecture)
heavy = {{"torch._dynamo", "torch._inductor", "sympy", "torchvision", "timm"}} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
