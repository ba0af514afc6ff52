"""Named tensors on disk in the safetensors format, checked when read and written durably.

The `safetensors` library reads and writes the bytes. Added here: files are replaced whole and flushed, tied and strided
tensors are written out, and a large or unexpected header is refused before it costs time or memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeAlias

import safetensors.torch
import torch
from torch import Tensor

from densesiam_seg.errors import ModelError
from densesiam_seg.io.files import open_regular, replace_file

Layout: TypeAlias = Mapping[str, tuple[tuple[int, ...], torch.dtype]]

MAX_HEADER = 1 << 20
"""Bytes of a header, about ten thousand tensors."""

MAX_AXES = 64
"""Axes with which torch can calculate."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def layout(tensors: Mapping[str, Tensor]) -> Layout:
    """Shape and dtype of every tensor: what `read_safetensors` compares a file with."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write `tensors` to `path` wholly or not at all; returns the SHA-256 of the file. Raises OutputError.

    Tensors may lie on any device, share memory or be strided: each is written out by itself.
    """
    dense = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    data = safetensors.torch.save(dense)
    replace_file(path, data)
    return hashlib.sha256(data).hexdigest()


def read_safetensors(
    path: Path,
    *,
    expected: Layout | None = None,
    finite: bool = True,
    sha256: str | None = None,
) -> dict[str, Tensor]:
    """The tensors of a file, each in memory of its own on the CPU.

    Where `sha256` is given, the file must have it before anything else is looked at. No data is read before the header
    is within `MAX_HEADER` bytes, consistent with the size of the file and equal to `expected` (where given). With
    `finite`, a NaN or an infinity is refused. Raises ModelError.
    """
    try:
        with open_regular(path) as file:
            if sha256 is not None and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise _damaged(path, "its SHA-256 is not the one recorded when it was written")
            file.seek(0)
            found = _read_header(file)
            if expected is not None:
                _compare(found, expected, path)
            file.seek(0)
            tensors = safetensors.torch.load(file.read())
        for name, tensor in tensors.items():
            # A sum is finite only if all its terms are, and takes a fraction of the time; large terms may overflow it.
            quick = tensor.dtype == torch.float32 and bool(tensor.sum().isfinite())
            if finite and not quick and not tensor.isfinite().all():
                raise _damaged(path, f"tensor {_shorten(name)} holds NaN or infinite values")
        return tensors
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror or error}); check the path given"
        ) from error
    except ModelError:
        raise
    except Exception as error:  # json, the library and torch refuse with many unrelated classes
        raise _damaged(path, f"it is no sound safetensors file ({_shorten(str(error))})") from error


def _read_header(file: BufferedReader) -> Layout:
    """The layout in the header; the library then checks it against the data. Raises ValueError and others."""
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header claims {length} bytes, more than {MAX_HEADER} allowed")
    text = file.read(length).decode("utf-8")
    if not text.startswith("{"):
        raise ValueError("its header is not a JSON object")
    header = json.loads(text, object_pairs_hook=_without_duplicates)
    header.pop("__metadata__", None)
    size = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != os.fstat(file.fileno()).st_size:
        raise ValueError(f"it should have {size} bytes")
    if any(len(entry["shape"]) > MAX_AXES for entry in header.values()):
        raise ValueError(f"a tensor has more than {MAX_AXES} axes")
    return {n: (tuple(entry["shape"]), _DTYPES[entry["dtype"]]) for n, entry in header.items()}


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _compare(found: Layout, expected: Layout, path: Path) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            problem = "is missing"
        elif name not in expected:
            problem = "is not part of this model"
        elif found[name] != expected[name]:
            (shape, dtype), (right_shape, right_dtype) = found[name], expected[name]
            problem = f"is {dtype} {list(shape)} instead of {right_dtype} {list(right_shape)}"
        else:
            continue
        raise ModelError(
            f"{path}: tensor {_shorten(name)} {problem}; "
            "give a file that was saved by this program for the same settings"
        )


def _damaged(path: Path, problem: str) -> ModelError:
    return ModelError(f"{path}: {problem}; give another file or fetch this one again")


def _shorten(text: str) -> str:
    """Text of a foreign file in one short printable line."""
    return ascii(text)[1:-1][:80]
