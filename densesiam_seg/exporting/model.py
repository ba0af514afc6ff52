"""`export model`: a model as one file of ONNX or torch.export, with a description of what it takes and gives.

Axes: K clusters, h w image as the network gets it, H W mask.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densesiam_seg import __version__
from densesiam_seg.datasets.scenes import scene
from densesiam_seg.errors import ModelError, UsageError
from densesiam_seg.exporting.network import MaskNetwork
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.segmenter import MAX_ASPECT, Segmenter
from densesiam_seg.io.files import means_a_file, new_folder, replace_file, replace_json
from densesiam_seg.views.photometric import MEAN, STD

FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
DESCRIPTION = "model.json"
OPSET = 18
LEAST_EQUAL = 0.995
"""Share of the pixels of a drawn image that must be as this program predicts them. The rest are ties: pixels on borders
between clusters, where sums that are rounded in another order decide."""
DRAWN = 256
"""Side of the drawn image, whose height is cut to three quarters of that."""


def require_model_target(out: Path, format: str, *, overwrite: bool = False) -> None:
    """Raises UsageError for a place that is taken (unless `overwrite` and by a model), and for a missing package."""
    missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if find_spec(n) is None]
    if format == "onnx" and missing:
        raise UsageError(
            f"--format onnx: needs {' and '.join(missing)}; pip install 'densesiam-seg[onnx]'"
        )
    exists = os.path.lexists(out)
    if means_a_file(out) or (exists and not os.path.isdir(out)):  # noqa: PTH112
        raise UsageError(f"--out {out}: is a folder with two files; give the name of one")
    if exists and any(out.iterdir()):
        if not overwrite:
            raise UsageError(f"--out {out}: exists already; give --overwrite or another folder")
        if not os.path.isfile(out / DESCRIPTION):  # noqa: PTH113
            raise UsageError(
                f"--out {out}: is not empty, and holds no exported model; give another folder"
            )


def export_model(
    segmenter: Segmenter, out: Path, format: str, refinement: Refinement
) -> dict[str, Any]:
    """Write the model to the folder `out`, whole or not at all; returns its description.

    `segmenter` is on the processor, in single precision. Raises ModelError for a backbone that torch cannot export with
    sizes that are not fixed, and where the file's mask of a drawn image is not the segmenter's; OutputError.
    """
    refine = refinement.settled(segmenter.card.refine).refine
    how = Refinement(refine=refine)
    pixels = torch.from_numpy(scene(0, 0, DRAWN)[0][: DRAWN * 3 // 4]).movedim(-1, 0)
    shown, size = segmenter.read(pixels)
    # Before tracing: constants that are made once must not be those of a trace.
    wanted = segmenter.mask(segmenter.scores(shown, how)[0], *size)
    with _quiet():
        program = _traced(MaskNetwork(segmenter, refine), shown, size, segmenter)
        with new_folder(out) as folder:
            path = folder / FILES[format]
            found = (_onnx if format == "onnx" else _torch)(program, path, shown, size)
            equal = float((found == wanted).mean())
            if equal < LEAST_EQUAL:
                raise ModelError(
                    f"export model: only {100 * equal:.2f} % of the pixels of a drawn image are as predicted here; "
                    "nothing was written; try --format torch or --refine none, and report it"
                )
            content = {**_description(segmenter, format, refine), "equal_pixels": round(equal, 6)}
            replace_json(folder / DESCRIPTION, content)
            # A file of another format from an earlier export is not this model's.
            stale = {out / name for kind, name in FILES.items() if kind != format}
        for each in stale:
            each.unlink(missing_ok=True)
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and remarks of torch's exporters, which no user can act on."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _traced(
    network: MaskNetwork, shown: Tensor, size: tuple[int, int], segmenter: Segmenter
) -> torch.export.ExportedProgram:
    """The program, for images and masks of any size. Raises ModelError."""
    any_size = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    try:
        with torch.no_grad():
            return torch.export.export(
                network.eval(),
                (shown, torch.tensor(size)),
                dynamic_shapes={"image": any_size, "size": None},
            )
    except Exception as error:  # torch has no common class for them
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"export model: torch cannot export the backbone {segmenter.card.architecture.backbone} for images of any "
            f"size ({reason}); train with another --backbone"
        ) from error


def _torch(
    program: torch.export.ExportedProgram, path: Path, shown: Tensor, size: tuple[int, int]
) -> NDArray[Any]:
    """Write the program; returns the mask of what was written."""
    import io

    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    replace_file(path, buffer.getvalue())
    module = torch.export.load(path).module()
    with torch.no_grad():
        mask: Tensor = module(shown, torch.tensor(size))[0]
    return mask.numpy()


def _onnx(
    program: torch.export.ExportedProgram, path: Path, shown: Tensor, size: tuple[int, int]
) -> NDArray[Any]:
    """Write the program as ONNX; returns the mask that onnxruntime makes of what was written. Raises ModelError."""
    import onnxruntime

    try:
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["image", "size"],
            output_names=["mask", "scores"],
            verbose=False,
        )
    except Exception as error:  # it has a class of its own for each step
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"export model: cannot be written as ONNX ({reason}); try --format torch"
        ) from error
    assert made is not None
    replace_file(path, made.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = {"image": shown.numpy(), "size": np.array(size, np.int64)}
    mask: NDArray[Any] = session.run(["mask"], given)[0]
    return mask


def _description(segmenter: Segmenter, format: str, refine: str) -> dict[str, Any]:
    """What `model.json` says beside the check."""
    deep = len(segmenter.clusters) > 255
    return {
        "format": format,
        "file": FILES[format],
        "made_by": f"densesiam-seg {__version__}",
        "opset": OPSET if format == "onnx" else None,
        "inputs": {
            "image": {"type": "uint8", "shape": [1, 3, "h", "w"], "channels": "RGB"},
            "size": {"type": "int64", "shape": [2], "is": "height H and width W of the mask"},
        },
        "outputs": {
            "mask": {
                "type": "int32" if deep else "uint8",
                "shape": ["H", "W"],
                "is": "cluster ids",
            },
            "scores": {"type": "float32", "shape": [1, len(segmenter.clusters), "n", "m"]},
        },
        "preprocessing": {
            "orientation": "upright, as EXIF says",
            "image_size": segmenter.card.image_size,
            "shorter_side": segmenter.shown_side,
            "most_aspect": MAX_ASPECT,
            "resize": "shorter side to shorter_side, the longer one to most_aspect times that at most, both cut to "
            "whole pixels",
            "interpolation": "bilinear with antialiasing, as Pillow's BILINEAR",
            "bands": list(segmenter.card.bands) if segmenter.card.bands else None,
            "stretch": list(segmenter.card.stretch) if segmenter.card.stretch else None,
        },
        "inside_the_model": {
            "scale": 1 / 255,
            "mean": list(MEAN),
            "std": list(STD),
            "readout": segmenter.readout,
            "refine": refine,
            "zoom": segmenter.network.encoder.zoom,
            "upsampling": "bilinear, of scores",
        },
        "clusters": [
            {"id": e.id, "name": e.name, "colour": list(e.colour), "merged_into": e.merged_into}
            for e in segmenter.clusters
        ],
        "grouping": segmenter.grouping.tolist(),
    }
