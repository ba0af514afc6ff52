"""A folder with one file of each kind that people have among their images, and what must become of each."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
from image_files import bare_png, encoded, noise, turned
from mutants import deep, interlaced
from numpy.typing import NDArray
from photographs import photograph
from PIL import Image
from tiff_files import FLOAT, page, write_tiff

Outcome = str | tuple[NDArray[Any], float]
"""The class of the reason, or the pixels (H, W, 3) and by how much they may differ."""
HEIGHT, WIDTH = 40, 56


def write_every_kind(folder: Path) -> dict[str, Outcome]:
    """Write the files; their outcomes by their names."""
    folder.mkdir(parents=True, exist_ok=True)
    return {**_unreadable(folder), **_special(folder), **_eight_bit(folder), **_deep(folder)}


def _unreadable(folder: Path) -> dict[str, Outcome]:
    picture = Image.fromarray(photograph(HEIGHT, WIDTH))
    png = encoded(picture, "PNG")
    bad_sum, flipped = bytearray(png), bytearray(png)
    bad_sum[29] ^= 1  # of the header
    flipped[len(png) // 2] ^= 1
    contents = {
        "empty.jpg": (b"", "empty"),
        "truncated.jpg": (encoded(picture, "JPEG", quality=95)[:-700], "truncated"),
        "truncated.png": (png[: len(png) // 2], "truncated"),
        "truncated.tif": (encoded(picture, "TIFF")[:3000], "truncated"),
        "page.jpg": (b"<!DOCTYPE html><html></html>", "not-an-image"),
        "bad_sum.png": (bytes(bad_sum), "corrupt"),
        "flipped.png": (bytes(flipped), "corrupt"),
        "figure.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not-an-image"),
        "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not-an-image"),
        "paper.jpg": (b"%PDF-1.7\n", "unsupported"),
        "text.png": (b"a note\n", "not-an-image"),
        "zeros.jpg": (bytes(2000), "not-an-image"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "unsupported"),
        "scan.jpg": (bytes(128) + b"DICM\2\0", "unsupported"),
        "new.jpg": (b"\0\0\0\x0cJXL \r\n\x87\n", "unsupported"),
        "large.png": (bare_png(60_000, 50_000, 8, 2, b""), "too-large"),
        "negative.tif": (b"", "bad-values"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    below_zero = np.linspace(-5, 5, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    write_tiff(folder / "negative.tif", page(below_zero, 32, kind=FLOAT))
    return {name: reason for name, (_, reason) in contents.items()}


def _special(folder: Path) -> dict[str, Outcome]:
    """What is no file, by names of images."""
    os.mkfifo(folder / "pipe.jpg")
    here = Path.cwd()
    os.chdir(folder)  # as the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.jpg")
    finally:
        os.chdir(here)
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "circle.jpg").symlink_to("circle.jpg")
    special: dict[str, Outcome] = dict.fromkeys(
        ["pipe.jpg", "socket.jpg", "device.jpg"], "not-regular"
    )
    return special | {"dangling.jpg": "dangling-link", "circle.jpg": "unreadable"}


def _eight_bit(folder: Path) -> dict[str, Outcome]:
    pixels = photograph(HEIGHT, WIDTH)
    picture = Image.fromarray(pixels)
    grey = picture.convert("L")
    grey_pixels = np.asarray(grey)
    few, dots = picture.quantize(16), picture.convert("1")
    half = Image.fromarray(noise(HEIGHT, WIDTH, 1))
    clear, grey_clear = picture.copy(), grey.copy()
    clear.putalpha(half)
    grey_clear.putalpha(half)
    share = np.asarray(half)[..., None] / 255
    hidden = picture.copy()
    hidden.putalpha(0)
    cmyk = picture.convert("CMYK")
    found: dict[str, Outcome] = {}

    def keep(
        name: str, image: Image.Image, expected: NDArray[Any], most: float = 0, **options: Any
    ) -> None:
        image.save(folder / name, **options)
        shown = np.stack([expected] * 3, 2) if expected.ndim == 2 else expected
        found[name] = shown, most

    several: dict[str, Any] = {"save_all": True, "append_images": [picture.rotate(180)]}
    keep("animated.png", picture, pixels, **several)
    keep("animated.webp", picture, pixels, lossless=True, **several)
    keep("pages.tif", picture, pixels, **several)
    coloured = np.asarray(few.convert("RGB"))
    keep("animated.gif", few, coloured, save_all=True, append_images=[few.rotate(180)])
    keep("palette.png", few, coloured)
    keep("palette.bmp", few, coloured)
    keep("cmyk.jpg", cmyk, np.asarray(cmyk.convert("RGB")), 40, quality=95)
    keep("cmyk.tif", cmyk, np.asarray(cmyk.convert("RGB")))
    keep("grey.jpg", grey, grey_pixels, 30, quality=95)
    keep("dots.png", dots, np.asarray(dots).astype(np.uint8) * 255)
    keep("dots.tif", dots, np.asarray(dots).astype(np.uint8) * 255, compression="group4")
    keep("clear.png", clear, pixels * share + 255 * (1 - share), 1)
    keep(
        "grey_clear.png",
        grey_clear,
        grey_pixels[..., None] * share + 255 * (1 - share) + np.zeros(3),
        1,
    )
    keep("hidden.png", hidden, np.full_like(pixels, 255))
    picture.save(folder / "as.png")
    keep_as = (folder / "as.png").rename(folder / "png_as.jpg")
    found[keep_as.name] = pixels, 0
    (folder / "interlaced.png").write_bytes(interlaced(noise(8, 8)))
    found["interlaced.png"] = noise(8, 8), 0
    turns = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.swapaxes(0, 1), 6: pixels.swapaxes(0, 1)[:, ::-1],
        7: pixels.swapaxes(0, 1)[::-1, ::-1], 8: pixels.swapaxes(0, 1)[::-1],
    }  # fmt: skip
    for number, expected in turns.items():
        keep(f"turned_{number}.png", picture, expected, exif=turned(number))
    return found


def _deep(folder: Path) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    values = deep(HEIGHT, WIDTH)

    def keep(name: str, share: NDArray[Any]) -> None:
        pixels = np.rint(share * 255)
        found[name] = (np.stack([pixels] * 3, 2) if pixels.ndim == 2 else pixels), 0

    Image.fromarray(values).save(folder / "deep.png")
    keep("deep.png", values / 65535)
    write_tiff(folder / "deep.tif", page(values, 16))
    keep("deep.tif", values / 65535)
    colours = deep(HEIGHT, 3 * WIDTH).reshape(HEIGHT, WIDTH, 3)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    (folder / "deep_colours.png").write_bytes(bare_png(WIDTH, HEIGHT, 16, 2, rows))
    keep("deep_colours.png", colours / 65535)
    write_tiff(folder / "twelve.tif", page(values >> 4, 12))
    keep("twelve.tif", (values >> 4) / 4095)
    unit = (values / 65535).astype(np.float32)
    write_tiff(folder / "unit.tif", page(unit, 32, kind=FLOAT))
    keep("unit.tif", unit)
    return found
