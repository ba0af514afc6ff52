"""Safetensors files that no library wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def raw_file(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A file with this header, which need not be sound."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE: dict[str, tuple[Any, bytes]] = {
    "data shorter than the header says": ({"a": entry([2], 0, 8)}, b"\0" * 7),
    "data longer than the header says": ({"a": entry([2], 0, 8)}, b"\0" * 9),
    "shape and size differ": ({"a": entry([3], 0, 8)}, b"\0" * 8),
    "overlap": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12),
    "same data twice": ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, b"\0" * 8),
    "gap": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12),
    "data does not start at 0": ({"a": entry([1], 4, 8)}, b"\0" * 8),
    "reversed offsets": ({"a": entry([1], 4, 0)}, b"\0" * 4),
    "negative offset": ({"a": entry([1], -4, 0)}, b""),
    "negative side": ({"a": entry([-1, -1], 0, 4)}, b"\0" * 4),
    "fractional side": ({"a": entry([1.0], 0, 4)}, b"\0" * 4),
    "boolean side": ({"a": entry([True], 0, 4)}, b"\0" * 4),
    "overflowing shape": ({"a": entry([2**32, 2**32, 2**32], 0, 0)}, b""),
    "overflowing empty shape": ({"a": entry([0, 2**40, 2**40], 0, 0)}, b""),
    "a hundred axes": ({"a": entry([1] * 100, 0, 4)}, b"\0" * 4),
    "huge claim": ({"a": entry([2**38], 0, 2**40)}, b"\0" * 8),
    "unknown type": ({"a": entry([1], 0, 4, "F33")}, b"\0" * 4),
    "type is a list": ({"a": entry([1], 0, 4, ["F32"])}, b"\0" * 4),
    "three offsets": ({"a": entry([1], 0, 4) | {"data_offsets": [0, 2, 4]}}, b"\0" * 4),
    "missing member": ({"a": {"dtype": "F32", "shape": [0]}}, b""),
    "entry is null": ({"a": None}, b""),
    "header is a list": ([], b""),
    "header is not JSON": (b"{]", b""),
    "header is not UTF-8": (b'{"\xff": 1}', b""),
    "header is deeply nested": (b'{"a":' * 50_000, b""),
    "header has a long number": (b'{"a":' + b"9" * 5000 + b"}", b""),
    "leading space": (b" {}", b""),
    "name occurs twice": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"\0",
    ),
    "member occurs twice": (
        b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
        b"\0",
    ),
}
