"""Decoded images on the disk: one file of uint8 squares, mapped by later epochs and later runs instead of JPEGs.

Axes: N usable images, S side of a square.

A cache is two files named by all that its pixels depend on: `KEY.u8` with N·3·S·S bytes, and `KEY.json` with their
SHA-256, written last. No format notices a flipped bit, so the digest is compared before the squares are used; reading
them for that brings them into the system's own cache too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from densesiam_seg.images.decoding import Decoding, Notes
from densesiam_seg.images.manifest import Manifest, Skipped
from densesiam_seg.io.files import JSON, make_folder, open_regular, replace_json, replacing

_FORMAT = 2


@dataclass(frozen=True)
class CachedSquares:
    """Squares (N, 3, S, S) that lie in a file, their images' widths over heights, and files that are no images."""

    squares: Tensor
    aspects: list[float]
    skipped: list[Skipped]
    notes: list[str]
    """What was worth telling of the files."""
    sha256: str

    def verify(self) -> Generator[int, None, bool]:
        """Read every square, yielding how many are done; returns whether all bytes are those that were written."""
        digest = hashlib.sha256()
        for done, square in enumerate(self.squares, 1):
            digest.update(square.numpy().data)
            yield done
        return digest.hexdigest() == self.sha256


def cache_file(
    folder: Path, manifest: Manifest, *, side: int, fit: str, decoding: Decoding
) -> Path:
    """Where the squares of these images in this form, as this version decodes them, are or would be."""
    form = [side, fit, *decoding.facts()]
    facts = [_FORMAT, PIL.__version__, manifest.root, manifest.digest, *form]
    key = hashlib.sha256(json.dumps(facts).encode("ascii")).hexdigest()[:32]
    return folder / f"{key}.u8"


def read_cache(path: Path, side: int) -> CachedSquares | None:
    """Map the squares, not yet verified; None where there are none or the two files do not fit together."""
    try:
        with open_regular(path.with_suffix(".json")) as file:
            facts: dict[str, Any] = json.load(file)
        with open_regular(path) as file:
            size = file.seek(0, 2)
        aspects = [float(aspect) for aspect in facts["aspects"]]
        skipped = [Skipped(**item) for item in facts["skipped"]]
        if size != len(aspects) * 3 * side**2 or not size:
            return None
        squares = torch.from_file(str(path), False, size, dtype=torch.uint8)
        squares = squares.view(len(aspects), 3, side, side)
        notes = [str(line) for line in facts["notes"]]
        return CachedSquares(squares, aspects, skipped, notes, str(facts["sha256"]))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None


@contextmanager
def writing_cache(
    path: Path, aspects: Sequence[float], skipped: list[Skipped], notes: Notes
) -> Iterator[Callable[[int, NDArray[np.uint8]], None]]:
    """Gives what appends a square, by its number; the cache is there once the block ends. Raises OutputError.

    `aspects`, `skipped` and `notes` are written as they are then.
    """
    digest = hashlib.sha256()
    make_folder(path.parent)
    with replacing(path, sync=False) as file:

        def write(number: int, square: NDArray[np.uint8]) -> None:
            data = np.ascontiguousarray(square).data
            file.write(data)
            digest.update(data)

        yield write
    facts: JSON = {
        "sha256": digest.hexdigest(),
        "aspects": aspects,
        "skipped": [asdict(item) for item in skipped],
        "notes": list(notes.lines()),
    }
    replace_json(path.with_suffix(".json"), facts, sync=False)
