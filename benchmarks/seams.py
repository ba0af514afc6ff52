"""Large images in windows against a single window: how many pixels have the same cluster, and the memory of `predict`.

    python -P benchmarks/seams.py MODEL IMAGES

IMAGES is a folder of photographs, of which mosaics are made: large images with something to see everywhere.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.images.scan import scan
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.prediction import tiles
from densesiam_seg.prediction.tiles import STRIDE, Windows, shown_size, tiled_scores, windows

CELL = (480, 360)
TILE = 640
LARGE = (25, 25)
"""Photographs across and down of the image whose memory is measured: 12,000 × 9,000 pixels."""
SMALL = (8, 8)
"""The same of the image that passes the network whole."""


def mosaic(paths: list[str], across: int, down: int) -> Image.Image:
    draw = random.Random(0)
    page = Image.new("RGB", (CELL[0] * across, CELL[1] * down))
    for column, row in product(range(across), range(down)):
        with Image.open(draw.choice(paths)) as picture:
            page.paste(picture.resize(CELL), (CELL[0] * column, CELL[1] * row))
    return page


def covered(found: Windows, size: tuple[int, int]) -> NDArray[np.int64]:
    """How many windows each pixel lies in."""
    count = np.zeros(size, np.int64)
    down, across = (own / shown for own, shown in zip(size, found.size, strict=True))
    for top, left in product(found.tops, found.lefts):
        rows = slice(round(top * down), round((top + found.height) * down))
        columns = slice(round(left * across), round((left + found.width) * across))
        count[rows, columns] += 1
    return count


def seams(segmenter: Segmenter, picture: Image.Image) -> None:
    pixels = torch.from_numpy(np.array(picture)).movedim(-1, 0).contiguous()
    size = (picture.height, picture.width)
    shown = shown_size(segmenter, size, TILE)
    assert shown is not None
    found = windows(shown, STRIDE * segmenter.network.encoder.zoom)

    def mask() -> NDArray[np.integer]:
        return segmenter.mask(tiled_scores(segmenter, pixels, shown, lock=nullcontext()), *size)

    in_windows = mask()
    tiles.WINDOW = 2**40
    same = in_windows == mask()
    inside = covered(found, size) == 1
    print(
        f"{size[1]} x {size[0]} pixels, --tile {TILE}: {len(found.tops) * len(found.lefts)} windows"
    )
    print(f"the same cluster: {100 * same.mean():.2f} % of the pixels")
    print(
        f"where windows do not overlap ({100 * inside.mean():.0f} %): {100 * same[inside].mean():.2f} %"
    )


def memory(model: str, picture: Image.Image) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("large.jpg", "large.png"):
            picture.save(Path(folder) / name)
            command = ["predict", f"{folder}/{name}", "-m", model, "-q", "-o", f"{folder}/masks"]
            command += ["--max-pixels", str(picture.width * picture.height), "--overwrite"]
            start = time.monotonic()
            subprocess.run([sys.executable, "-P", "-m", "densesiam_seg", *command], check=True)
            used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
            seconds = time.monotonic() - start
            print(
                f"{name}, {picture.width} x {picture.height}: at most {used:.2f} GB, {seconds:.0f} s"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("images")
    given = parser.parse_args()
    manifest = scan([given.images])
    paths = [manifest.path(index) for index in range(len(manifest))]
    memory(given.model, mosaic(paths, *LARGE))
    seams(Segmenter.load(given.model), mosaic(paths, *SMALL))


if __name__ == "__main__":
    main()
