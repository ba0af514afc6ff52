"""Decoded images on the disk: one file of uint8 squares, mapped by later epochs and later runs instead of JPEGs.

Axes: N usable images, S side of a square.

A cache is two files named by all that its pixels depend on: `KEY.u8` with N·3·S·S bytes, and `KEY.json` with their
SHA-256, written last. No format notices a flipped bit, so the digest is compared before the squares are used; reading
them for that brings them into the system's own cache too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import PIL
import torch
from torch import Tensor

from densesiam_seg.images.manifest import Manifest, Skipped
from densesiam_seg.io.files import make_folder, open_regular, replace_json, replacing

_FORMAT = 1


@dataclass(frozen=True)
class Cached:
    """Squares (N, 3, S, S) that lie in a file, their images' widths over heights, and files that are no images."""

    squares: Tensor
    aspects: list[float]
    skipped: list[Skipped]
    sha256: str

    def verify(self) -> Generator[int, None, bool]:
        """Read every square, yielding how many are done; returns whether all bytes are those that were written."""
        digest = hashlib.sha256()
        for done, square in enumerate(self.squares, 1):
            digest.update(square.numpy().data)
            yield done
        return digest.hexdigest() == self.sha256


@dataclass(frozen=True)
class Cache:
    """Where the squares of a manifest are, or would be."""

    folder: Path
    key: str

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, *, side: int, fit: str, max_pixels: int) -> Cache:
        """The cache of these images in this form, as this version decodes them."""
        facts = [_FORMAT, PIL.__version__, manifest.root, manifest.digest, side, fit, max_pixels]
        return cls(folder, hashlib.sha256(json.dumps(facts).encode("ascii")).hexdigest()[:32])

    @property
    def pixels(self) -> Path:
        """The file of squares."""
        return self.folder / f"{self.key}.u8"

    def open(self, side: int) -> Cached | None:
        """Map the squares, not yet verified; None where there are none or the two files do not fit together."""
        try:
            with open_regular(self._facts) as file:
                facts: dict[str, Any] = json.load(file)
            with open_regular(self.pixels) as file:
                size = file.seek(0, 2)
            aspects = [float(aspect) for aspect in facts["aspects"]]
            skipped = [Skipped(**item) for item in facts["skipped"]]
            shape = (len(aspects), 3, side, side)
            if size != len(aspects) * 3 * side**2 or not size:
                return None
            squares = torch.from_file(str(self.pixels), False, size, dtype=torch.uint8)
            return Cached(squares.view(shape), aspects, skipped, str(facts["sha256"]))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            return None

    @contextmanager
    def writing(self) -> Iterator[CacheWriter]:
        """Collect squares; the cache is there once the block ends. Raises OutputError."""
        make_folder(self.folder)
        with replacing(self.pixels, sync=False) as file:
            writer = CacheWriter(file)
            yield writer
        replace_json(
            self._facts,
            {
                "sha256": writer.digest.hexdigest(),
                "aspects": writer.aspects,
                "skipped": [asdict(item) for item in writer.skipped],
            },
            sync=False,
        )

    @property
    def _facts(self) -> Path:
        return self.folder / f"{self.key}.json"


class CacheWriter:
    """Appends what was decoded to the file of squares."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self.aspects: list[float] = []
        self.skipped: list[Skipped] = []
        self._file = file

    def add(self, square: Tensor, aspect: float) -> None:
        """One image, uint8 (3, S, S)."""
        data = square.contiguous().numpy().data
        self._file.write(data)
        self.digest.update(data)
        self.aspects.append(aspect)
