"""densesiam-seg: semantic segmentation from unlabelled images by dense Siamese learning (DenseSiam, ECCV 2022)."""

from __future__ import annotations

__version__ = "0.1.0"
