"""densesiam-seg: semantic segmentation from unlabelled images by dense Siamese learning (DenseSiam, ECCV 2022).

import densesiam_seg

densesiam_seg.pretrain("images/", out="runs/pre")        # optional: dense features first
densesiam_seg.train("images/", out="runs/mine", weights="runs/pre")
segmenter = densesiam_seg.Segmenter.load("runs/mine")
mask = segmenter.predict("img.jpg")                      # (H, W) cluster ids
densesiam_seg.predict("images/", "masks/", segmenter)    # a mask for each image
result = densesiam_seg.evaluate("camvid", "camvid/", segmenter)
densesiam_seg.report("runs/mine")                        # what was found, as one HTML page
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from densesiam_seg.evaluation.evaluate import evaluate as evaluate
    from densesiam_seg.inference.options import Refinement as Refinement
    from densesiam_seg.inference.segmenter import Segmenter as Segmenter
    from densesiam_seg.prediction.shards import predict as predict
    from densesiam_seg.reporting.report import report as report
    from densesiam_seg.training.train import pretrain as pretrain
    from densesiam_seg.training.train import train as train

__version__ = "0.1.0"
__all__ = [
    *("Refinement", "Segmenter", "__version__", "evaluate", "predict", "pretrain", "report"),
    "train",
]

_HOMES = {
    "Refinement": "inference.options",
    "Segmenter": "inference.segmenter",
    "evaluate": "evaluation.evaluate",
    "predict": "prediction.shards",
    "pretrain": "training.train",
    "report": "reporting.report",
    "train": "training.train",
}


def __getattr__(name: str) -> object:
    # The program prints its help without loading torch, so the public names are loaded when first asked for.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
