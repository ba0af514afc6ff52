"""A writer of TIFF that shares no code with any reader: whatever the tags can say, bit by bit."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS = 256, 257, 258, 259, 262, 273
ORIENTATION, SAMPLES, ROWS, COUNTS, PLANAR = 274, 277, 278, 279, 284
SUBFILE, SUBIFDS, EXTRA, FORMAT, NODATA = 254, 330, 338, 339, 42113
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def page(
    values: NDArray[Any],
    bits: int,
    *,
    kind: int = UNSIGNED,
    photometric: int | None = None,
    extra: Sequence[int] | None = None,
    planar: bool = False,
    deflated: bool = False,
    tags: Mapping[int, Any] | None = None,
) -> dict[str, Any]:
    """A page of `values` (H, W) or (H, W, C) for `write_tiff`; `tags` are further ones, text or numbers."""
    values = values[..., None] if values.ndim == 2 else values
    height, width, samples = values.shape
    own: dict[int, Any] = {
        WIDTH: width,
        HEIGHT: height,
        BITS: [bits] * samples,
        COMPRESSION: 8 if deflated else 1,
        PHOTOMETRIC: (2 if samples >= 3 else 1) if photometric is None else photometric,
        SAMPLES: samples,
        ROWS: height,
        PLANAR: 2 if planar else 1,
        FORMAT: [kind] * samples,
    }
    if extra is not None:
        own[EXTRA] = list(extra)
    planes = np.moveaxis(values, 2, 0)[..., None] if planar else values[None]
    form = {"bits": bits, "kind": kind, "deflated": deflated}
    return {"tags": own | dict(tags or {}), "planes": planes, **form}


def write_tiff(path: Path, *pages: dict[str, Any], order: str = "<", big: bool = False) -> Path:
    """Write a file; a page's `inner` pages become its SubIFDs."""
    data = bytearray(b"II" if order == "<" else b"MM")
    data += struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    place = len(data) - (8 if big else 4)
    for each in pages:
        place = _append(data, each, place, order, big)
    path.write_bytes(data)
    return path


def _append(data: bytearray, each: dict[str, Any], place: int, order: str, big: bool) -> int:
    """Append a page whose offset is written at `place`; returns where the next one's is to be."""
    tags = dict(each["tags"])
    offsets, counts = [], []
    for number, plane in enumerate(each["planes"]):
        if number in each.get("sparse", ()):
            offsets.append(0)
            counts.append(0)
            continue
        strip = _packed(plane, each["bits"], each["kind"], order)
        if each["deflated"]:
            strip = zlib.compress(strip)
        offsets.append(len(data))
        counts.append(len(strip))
        data += strip
    tags[OFFSETS], tags[COUNTS] = offsets, counts
    inner = each.get("inner", ())
    if inner:
        tags[SUBIFDS] = [0] * len(inner)
    entries, later = [], []
    for tag, value in sorted(tags.items()):
        if isinstance(value, str):
            field, count, content = 2, len(value) + 1, value.encode() + b"\0"
        else:
            numbers = value if isinstance(value, list) else [value]
            field, count = 4, len(numbers)
            content = struct.pack(f"{order}{count}I", *numbers)
        slot = 8 if big else 4
        if len(content) > slot:
            later.append((tag, len(data)))
            where = len(data)
            data += content
            content = struct.pack(order + ("Q" if big else "I"), where)
        entries.append((tag, field, count, content.ljust(slot, b"\0")))
    start = len(data)
    struct.pack_into(order + ("Q" if big else "I"), data, place, start)
    data += struct.pack(order + ("Q" if big else "H"), len(entries))
    inner_at = 0
    for tag, field, count, content in entries:
        data += struct.pack(order + ("HHQ" if big else "HHI"), tag, field, count)
        if tag == SUBIFDS:
            inner_at = len(data) if count == 1 else dict(later)[tag]
        data += content
    next_at = len(data)
    data += bytes(8 if big else 4)
    for number, sub in enumerate(inner):
        at = inner_at + 4 * number
        _append(data, sub, at, order, big=False)
    return next_at


def _packed(values: NDArray[Any], bits: int, kind: int, order: str) -> bytes:
    """Rows (H, W, C) as TIFF stores them: whole bytes in the file's order, other widths as a stream of bits."""
    if kind == FLOAT:
        return values.astype(f"{order}f{bits // 8}").tobytes()
    if bits in (8, 16, 32, 64):
        return values.astype(f"{order}{'i' if kind == SIGNED else 'u'}{bits // 8}").tobytes()
    rows = []
    for row in values.reshape(len(values), -1):
        text = "".join(format(int(v) & (2**bits - 1), f"0{bits}b") for v in row)
        text = text.ljust(-(-len(text) // 8) * 8, "0")
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return b"".join(rows)
