"""ResNets against torchvision's own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from densesiam_seg.backbones import TORCHVISION
from densesiam_seg.network.encoder import Backbone
from densesiam_seg.network.resnet import SIZES, ResNet

KINDS = ("resnet18", "resnet50", "resnext50_32x4d")
"""One of each; the others have more blocks or channels."""


def torchvisions(name: str) -> nn.Module:
    """Without the classifier, which has no counterpart here."""
    model: Any = getattr(torchvision.models, name)(weights=None)
    del model.fc
    assert isinstance(model, nn.Module)
    return model


def settings(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """What numbers depend on beside the tensors, by the name of each module."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            yield name, (module.stride, module.padding, module.dilation, module.groups)
        elif isinstance(module, nn.BatchNorm2d):
            yield name, (module.eps, module.momentum)
        elif isinstance(module, nn.MaxPool2d):
            yield name, (module.kernel_size, module.stride, module.padding)


def test_all_of_them_are_here() -> None:
    assert set(SIZES) == {name for name, of in TORCHVISION.items() if of.path[0][0] == "conv1"}


@pytest.mark.parametrize("name", SIZES)
def test_names_shapes_and_settings(name: str) -> None:
    with torch.device("meta"):
        own, reference = ResNet(SIZES[name]), torchvisions(name)
    shapes = [
        [(key, each.shape) for key, each in of.state_dict().items()] for of in (own, reference)
    ]
    assert shapes[0] == shapes[1]
    assert sorted(settings(own)) == sorted(settings(reference))


@pytest.mark.parametrize("name", KINDS)
def test_a_seed_gives_the_same_first_weights(name: str) -> None:
    """And leaves the generator where torchvision leaves it."""
    torch.manual_seed(1)
    own, after = ResNet(SIZES[name]), torch.get_rng_state()
    torch.manual_seed(1)
    reference = torchvisions(name).state_dict()
    assert torch.equal(after, torch.get_rng_state())
    assert all(torch.equal(each, reference[key]) for key, each in own.state_dict().items())


@pytest.mark.parametrize("name", KINDS)
def test_the_same_numbers_to_the_last_bit(name: str) -> None:
    """Of stages, gradients and batch statistics."""
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    own, reference = Backbone(name).train(), torchvisions(name).train()
    reference.load_state_dict(own.state_dict())
    found, wanted = own(images), stages(reference, images)
    assert all(map(torch.equal, found, wanted))
    for each in (found, wanted):
        sum(stage.square().mean() for stage in each).backward()  # type: ignore[union-attr]
    gradients = dict(reference.named_parameters())
    for key, value in own.named_parameters():
        theirs = gradients[key].grad
        assert value.grad is not None and theirs is not None and torch.equal(value.grad, theirs)
    after = reference.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in own.state_dict().items())


def stages(reference: Any, images: Tensor) -> list[Tensor]:
    """What torchvision's network gives after each of its four layers."""
    maps = reference.maxpool(reference.relu(reference.bn1(reference.conv1(images))))
    found = [reference.layer1(maps)]
    for layer in (reference.layer2, reference.layer3, reference.layer4):
        found.append(layer(found[-1]))
    assert all(one.shape[-1] == 2 * other.shape[-1] for one, other in pairwise(found))
    return found
