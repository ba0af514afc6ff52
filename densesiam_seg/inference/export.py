"""`export`: a model's backbone as a plain state dict of torchvision or timm, for programs elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from densesiam_seg.errors import UsageError
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import make_folder, replace_file
from densesiam_seg.io.tensors import write_safetensors

SUFFIXES = (".safetensors", ".pth")


def backbone_tensors(segmenter: Segmenter) -> dict[str, Tensor]:
    """The library's names (a ResNet's `conv1.weight`, `layer1.0.bn1.bias`, …, without `fc`) and copies on the CPU.

    They are contiguous. Parameters and statistics are float32, the counters of batch normalisation int64.
    """
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in segmenter.network.encoder.backbone.plain.state_dict().items()
    }


def require_export_target(out: Path, *, overwrite: bool = False) -> None:
    """Raises UsageError for a file of another kind, and for one that exists unless `overwrite`."""
    if out.suffix not in SUFFIXES:
        raise UsageError(f"--out {out}: give a name ending in {' or '.join(SUFFIXES)}")
    if out.exists() and not overwrite:
        raise UsageError(f"--out {out}: exists already; give --overwrite or another name")


def export_backbone(segmenter: Segmenter, out: Path, *, overwrite: bool = False) -> Path:
    """Write the backbone to `out`, whole or not at all, in the format that its suffix names.

    A `.pth` file holds what `torch.save(model.state_dict(), path)` would: a dict of tensors and nothing else. Raises
    UsageError and OutputError.
    """
    require_export_target(out, overwrite=overwrite)
    tensors = backbone_tensors(segmenter)
    make_folder(out.parent)
    if out.suffix == ".safetensors":
        write_safetensors(out, tensors)
    else:
        # Into memory first: on a full disk torch would raise an error of its own.
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        replace_file(out, buffer.getvalue())
    return out
