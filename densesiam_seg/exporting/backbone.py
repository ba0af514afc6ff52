"""`export backbone`: a model's backbone as a plain state dict of torchvision or timm, for programs elsewhere."""

from __future__ import annotations

import io
import os
from pathlib import Path

import torch

from densesiam_seg.errors import UsageError
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import make_folder, replace_file
from densesiam_seg.io.tensors import write_safetensors

SUFFIXES = (".safetensors", ".pth")


def require_export_target(out: Path, *, overwrite: bool = False) -> None:
    """Raises UsageError for a file of another kind, and for one that exists unless `overwrite`."""
    if out.suffix not in SUFFIXES:
        raise UsageError(f"--out {out}: give a name ending in {' or '.join(SUFFIXES)}")
    if os.path.exists(out) and not overwrite:  # noqa: PTH110
        raise UsageError(f"--out {out}: exists already; give --overwrite or another name")


def export_backbone(segmenter: Segmenter, out: Path) -> None:
    """Write the backbone's tensors to `out`, whole or not at all, in the format that its suffix names.

    They have the library's names (a ResNet's `conv1.weight`, `layer1.0.bn1.bias`, …, without `fc`), are contiguous and
    in float32, counters of batch normalisation in int64. A `.pth` file holds what `torch.save(model.state_dict(),
    path)` would. Raises OutputError.
    """
    tensors = {
        name: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in segmenter.network.encoder.backbone.plain.state_dict().items()
    }
    make_folder(out.parent)
    if out.suffix == ".safetensors":
        write_safetensors(out, tensors)
    else:
        # Into memory first: on a full disk torch would raise an error of its own.
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        replace_file(out, buffer.getvalue())
