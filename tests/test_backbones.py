"""Names of backbones: which may be one, and what a mistyped one is told."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torchvision

from densesiam_seg.backbones import TORCHVISION, plausible, require_plausible
from densesiam_seg.errors import UsageError


def test_torchvision_has_every_model() -> None:
    assert TORCHVISION.keys() <= set(torchvision.models.list_models(torchvision.models))
    assert all(map(plausible, TORCHVISION))


@pytest.mark.parametrize(
    "name", ["timm:vit_small_patch14_reg4_dinov2.lvd142m", "timm:convnext_tiny", "timm:anything"]
)
def test_names_of_timm_need_its_form_alone(name: str) -> None:
    assert plausible(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "vit", "resnet99", "ResNet18", "resnet18 "),
        *("timm:", "timm:a.b.c", "timm:../model", "timm:vit\n", "timm:" + 101 * "x"),
        # What would make timm fetch a model that it does not have itself.
        *(
            "timm:hf-hub:someone/model",
            "timm:hf_hub:model",
            "timm:timm/vit",
            "hf-hub:someone/model",
        ),
    ],
)
def test_what_is_no_name(name: str) -> None:
    assert not plausible(name)


def test_the_remedy_names_what_is_near() -> None:
    with pytest.raises(UsageError, match=r"did you mean resnet18 or .*swin_v2_b"):
        require_plausible("resnet19")
    with pytest.raises(UsageError, match="timm:NAME; known are"):
        require_plausible("?")


def test_names_are_checked_without_any_of_the_libraries() -> None:
    code = (
        "import sys, densesiam_seg.backbones;"
        "assert not {'torch', 'torchvision', 'timm', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
