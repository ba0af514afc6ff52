"""Named tensors on disk in the safetensors format, read with suspicion and written durably.

A file is an 8-byte little-endian length, that many bytes of JSON (name → dtype, shape, offsets), then the data.
The format is written and read here, and not by its library, for four reasons: the library's `save_file` neither
flushes to the disk nor respects the umask, and refuses tied and strided tensors; its `load_file` hands out tensors
that are mapped from the file, so that a later truncation of the file kills the process; it puts no limit on the
header, and a header of 68 MB takes a minute; and it accepts a name that occurs twice. The tests compare both
directions with the library.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from densesiam_seg.errors import ModelError
from densesiam_seg.files import open_regular, replacing

Layout: TypeAlias = Mapping[str, tuple[tuple[int, ...], torch.dtype]]

MAX_HEADER = 1 << 20
"""Bytes of a header, about ten thousand tensors."""

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
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_MAX_AXES = 16
_MAX_BYTES = 1 << 60
_CHUNK = 1 << 22


@dataclass(frozen=True)
class _Entry:
    """One tensor of a header; `begin` and `end` count bytes from the start of the data."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int
    end: int


def layout(tensors: Mapping[str, Tensor]) -> Layout:
    """Shape and dtype of every tensor: what `check_tensors` and `read_safetensors` compare a file with."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write `tensors` to `path` wholly or not at all; returns the SHA-256 of the file. Raises OutputError.

    Tensors may lie on any device, share memory or be strided: each is written out by itself, one at a time, so that
    at most one copy of one tensor is held.
    """
    digest = hashlib.sha256()
    with replacing(path) as file:
        for chunk in _serialised(tensors):
            file.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()


def _serialised(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a file. Wide elements come first, so that each tensor is aligned to its element size."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {}
    end = 0
    for name in order:
        tensor = tensors[name]
        assert tensor.dtype in _CODES, f"{name}: {tensor.dtype} has no place in the format"
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in order:
        flat = tensors[name].detach().to("cpu").contiguous().reshape(-1)
        if flat.numel() > 0:
            yield flat.view(torch.uint8).numpy().data


def read_safetensors(
    path: Path,
    *,
    expected: Layout | None = None,
    finite: bool = True,
    sha256: str | None = None,
    max_header: int = MAX_HEADER,
) -> dict[str, Tensor]:
    """The tensors of a file, each in memory of its own on the CPU.

    Where `sha256` is given, the file must have it before anything else is looked at. Nothing is allocated before the
    header is within `max_header` bytes, sound, consistent with the size of the file and equal to `expected` (where
    given). With `finite`, a NaN or an infinity is refused. Raises ModelError.
    """
    try:
        with open_regular(path) as file:
            if sha256 is not None and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise _damaged(path, "its SHA-256 is not the one recorded when it was written")
            file.seek(0)
            entries, start = _read_header(file, path, max_header)
            if expected is not None:
                _compare({e.name: (e.shape, e.dtype) for e in entries}, expected, path)
            file.seek(start)
            tensors = {entry.name: _read_tensor(file, entry, path) for entry in entries}
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror or error}); check the path given"
        ) from error
    if finite:
        for name, tensor in tensors.items():
            if not _is_finite(tensor):
                raise _damaged(path, f"tensor {_shorten(name)} holds NaN or infinite values")
    return tensors


def check_tensors(found: Mapping[str, Tensor], expected: Layout, source: Path) -> None:
    """Raises ModelError naming the first tensor of `source` that is missing, unknown or of another shape or dtype."""
    _compare(layout(found), expected, source)


def _compare(found: Layout, expected: Layout, path: Path) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            problem = "is missing"
        elif name not in expected:
            problem = "is not part of this model"
        elif found[name] != expected[name]:
            problem = f"is {_describe(found[name])} instead of {_describe(expected[name])}"
        else:
            continue
        raise ModelError(
            f"{path}: tensor {_shorten(name)} {problem}; "
            "give a file that was saved by this program for the same settings"
        )


def _describe(kind: tuple[tuple[int, ...], torch.dtype]) -> str:
    shape, dtype = kind
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _read_header(file: BufferedReader, path: Path, max_header: int) -> tuple[list[_Entry], int]:
    """The checked entries in the order of their data, and where the data starts."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length < 2:
        raise _damaged(path, "it is not a safetensors file")
    if length > max_header:
        raise _damaged(path, f"its header claims {length} bytes, more than {max_header} allowed")
    if 8 + length > size:
        raise _damaged(path, "it ends within its header")
    text = file.read(length)
    try:
        if not text.startswith(b"{"):
            raise ValueError("the header is not a JSON object")
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
        header.pop("__metadata__", None)
        entries = sorted(
            (_entry(name, value) for name, value in header.items()),
            key=lambda entry: (entry.begin, entry.end),
        )
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is malformed ({_shorten(str(error))})") from error
    end = 0
    for entry in entries:
        if entry.begin != end:
            raise _damaged(path, f"tensor {_shorten(entry.name)} overlaps another or leaves a gap")
        end = entry.end
    if 8 + length + end != size:
        raise _damaged(path, f"it has {size} bytes instead of {8 + length + end}")
    return entries, 8 + length


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _entry(name: str, value: object) -> _Entry:
    """One tensor's description, checked by itself. Raises ValueError."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name}: not the description of a tensor")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise ValueError(f"{name}: data type {code!r} is not supported")
    if not _is_sizes(shape) or len(shape) > _MAX_AXES:
        raise ValueError(f"{name}: not a shape")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name}: not a pair of offsets")
    width = _DTYPES[code].itemsize
    if math.prod(max(side, 1) for side in shape) * width > _MAX_BYTES:
        raise ValueError(f"{name}: too large")
    if math.prod(shape) * width != offsets[1] - offsets[0]:
        raise ValueError(f"{name}: its shape and its data differ in size")
    return _Entry(name, tuple(shape), _DTYPES[code], offsets[0], offsets[1])


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _read_tensor(file: BufferedReader, entry: _Entry, path: Path) -> Tensor:
    raw = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
    if raw.numel() == 0:
        return torch.empty(entry.shape, dtype=entry.dtype)
    if file.readinto(raw.numpy().data) != raw.numel():
        raise _damaged(path, "it became shorter while it was read")
    if entry.dtype is torch.bool:
        return raw.ne(0).reshape(entry.shape)  # a byte above 1 would be an undefined truth value
    return raw.view(entry.dtype).reshape(entry.shape)


def _is_finite(tensor: Tensor) -> bool:
    """In chunks, because `isfinite` takes temporary memory of the size of its input."""
    if not tensor.is_floating_point():
        return True
    flat = tensor.reshape(-1)
    return all(
        bool(flat[start : start + _CHUNK].isfinite().all())
        for start in range(0, flat.numel(), _CHUNK)
    )


def _damaged(path: Path, problem: str) -> ModelError:
    return ModelError(f"{path}: {problem}; give another file or fetch this one again")


def _shorten(text: str, limit: int = 80) -> str:
    """Text of a foreign file in one short printable line."""
    shown = ascii(text[: limit + 1])[1:-1]
    return shown if len(shown) <= limit else shown[:limit] + "..."
