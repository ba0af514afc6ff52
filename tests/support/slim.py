"""Slim stand-ins for ResNets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from torch import nn

from densesiam_seg.backbones import TORCHVISION
from densesiam_seg.network import resnet
from densesiam_seg.network.resnet import Size


@contextmanager
def slim_resnets() -> Iterator[None]:
    """Every ResNet is a network of the same strides and a ten-thousandth of their size, in this block.

    A run of nine steps then takes a fraction of a second; each step and save of a ResNet-18 takes as long.
    """

    def stage(source: int, target: int, stride: int) -> nn.Sequential:
        convolution = nn.Conv2d(source, target, 3, stride, 1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(target), nn.ReLU())

    def slim(size: Size) -> SimpleNamespace:
        parts: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(3, 4, 3, 2, 1, bias=False),
            "bn1": nn.BatchNorm2d(4),
            "relu": nn.ReLU(),
            "maxpool": nn.MaxPool2d(3, 2, 1),
        }
        for number, (source, target) in enumerate(((4, 4), (4, 8), (8, 8), (8, 16)), 1):
            parts[f"layer{number}"] = stage(source, target, 1 if number == 1 else 2)
        return SimpleNamespace(**parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "ResNet", slim)
        for name, declared in TORCHVISION.items():
            if declared.path[0][0] == "conv1":
                patch.setitem(TORCHVISION, name, replace(declared, channels=(4, 8, 8, 16)))
        yield
