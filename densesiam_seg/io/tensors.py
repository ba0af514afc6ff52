"""Named tensors on disk in the safetensors format, checked when read and written durably.

The `safetensors` library reads and writes the bytes. Added here: files are replaced whole and flushed, tied and strided
tensors are written out, and a large or unexpected header is refused before it costs time or memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from densesiam_seg.errors import ModelError
from densesiam_seg.io.files import open_regular, replace_file

if TYPE_CHECKING:
    from torch import Tensor

Layout: TypeAlias = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and dtype (as torch prints it, without `torch.`) of tensors by name."""

MAX_HEADER = 1 << 20
"""Bytes of a header, about ten thousand tensors."""

MAX_AXES = 64
"""Axes with which torch can calculate."""

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""The library's names of dtypes, and torch's."""


def layout(tensors: Mapping[str, Tensor]) -> Layout:
    """Shape and dtype of every tensor: what `read_safetensors` compares a file with."""
    return {
        name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
    }


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write `tensors` to `path` wholly or not at all; returns the SHA-256 of the file. Raises OutputError.

    Tensors may lie on any device, share memory or be strided: each is written out by itself.
    """
    import safetensors.torch
    import torch

    dense = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    data = safetensors.torch.save(dense)
    replace_file(path, data)
    return hashlib.sha256(data).hexdigest()


def digest_of(tensors: Mapping[str, Tensor], head: bytes = b"") -> str:
    """SHA-256 of `head` and of tensors with their names, whatever device they lie on."""
    import torch

    total = hashlib.sha256(head)
    for name in sorted(tensors):
        plain = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {plain.dtype} {list(plain.shape)}\n".encode())
        # numpy has no bfloat16, so the bytes are viewed as such.
        total.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def read_layout(path: Path) -> Layout:
    """What a file's header says, without torch.

    No data is read. The header must be within `MAX_HEADER` bytes and consistent with the size of the file. Raises
    ModelError.
    """
    with _refusing(path), open_regular(path) as file:
        return _read_header(file)


def read_safetensors(
    path: Path, *, expected: Layout | None = None, finite: bool = True, mapped: bool = False
) -> dict[str, Tensor]:
    """The tensors of a file on the CPU, each in memory of its own; where it is `mapped`, in that of the file itself.

    A mapped file is not copied, and read only where its tensors are. It may be replaced meanwhile, as this program
    does, but whoever writes into it changes the tensors, or ends the process.

    No data is read before the header is sound (`read_layout`) and equal to `expected` (where given). With `finite`, a
    NaN or an infinity is refused. Raises ModelError.
    """
    import safetensors.torch
    import torch

    with _refusing(path):
        with open_regular(path) as file:
            found = _read_header(file)
            if expected is not None:
                _compare(found, expected, path)
            file.seek(0)
            tensors = (
                safetensors.torch.load_file(path) if mapped else safetensors.torch.load(file.read())
            )
        for name, tensor in tensors.items():
            # A sum is finite only if all its terms are, and takes a fraction of the time; large terms may overflow it.
            quick = tensor.dtype == torch.float32 and bool(tensor.sum().isfinite())
            if finite and not quick and not tensor.isfinite().all():
                raise _damaged(path, f"tensor {_shorten(name)} holds NaN or infinite values")
        return tensors


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Raise what goes wrong with a file as a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror or error}); check the path given"
        ) from error
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
            "another version of this program wrote it: retrain it, or use that version"
        )


def _damaged(path: Path, problem: str) -> ModelError:
    return ModelError(f"{path}: {problem}; give another file or fetch this one again")


def _shorten(text: str) -> str:
    """Text of a foreign file in one short printable line."""
    return ascii(text)[1:-1][:80]
