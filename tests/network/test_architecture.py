"""What a model's card says of its network: the paper's, and read without torch."""

from __future__ import annotations

import subprocess
import sys

from densesiam_seg.network.architecture import Architecture


def test_the_defaults_are_the_papers() -> None:
    network = Architecture()
    assert (network.backbone, network.channels, network.features) == ("resnet18", 128, "fpn")
    assert (network.clusters, network.over_clusters) == (27, 128)
    assert not (network.image_head or network.mixture)


def test_torch_is_not_needed() -> None:
    """Nor for the files of models and checkpoints: whatever they alone can tell is told at once."""
    code = (
        "import sys, densesiam_seg.inference.model_card, densesiam_seg.training.checkpoint;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
