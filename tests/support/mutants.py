"""Image files of every format that is read, and damaged copies of them."""

from __future__ import annotations

import random
import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from image_files import bare_png, encoded, noise, turned
from numpy.typing import NDArray
from photographs import photograph
from PIL import Image
from tiff_files import FLOAT, SIGNED, page, write_tiff

LARGEST = 1 << 16
"""Bytes of a file that damaged copies are made of: of larger ones most damage is in the same kind of data."""


@cache
def files_of_every_format() -> dict[str, bytes]:
    """Small files by what they are."""
    picture = Image.fromarray(photograph(40, 56))
    grey, few = picture.convert("L"), picture.quantize(16)
    clear = picture.copy()
    clear.putalpha(grey)

    def frames() -> dict[
        str, Any
    ]:  # anew each time, as Pillow's writers leave their settings in them
        return {"save_all": True, "append_images": [picture.rotate(90)]}

    files = {
        "jpeg": encoded(picture, "JPEG", exif=turned(6)),
        "jpeg progressive": encoded(picture, "JPEG", progressive=True, quality=95),
        "jpeg grey": encoded(grey, "JPEG", restart_marker_rows=1),
        "jpeg cmyk": encoded(picture.convert("CMYK"), "JPEG"),
        "mpo": encoded(picture, "MPO", **frames()),
        "png": encoded(picture, "PNG", exif=turned(5)),
        "png alpha": encoded(clear, "PNG"),
        "png grey alpha": encoded(clear.convert("LA"), "PNG"),
        "png palette": encoded(few, "PNG", transparency=3),
        "png 1 bit": encoded(picture.convert("1"), "PNG"),
        "png 16 bit grey": encoded(Image.fromarray(deep(40, 56)), "PNG"),
        "apng": encoded(picture, "PNG", **frames()),
        "webp": encoded(picture, "WEBP", exif=turned(8)),
        "webp lossless": encoded(clear, "WEBP", lossless=True),
        "webp animated": encoded(picture, "WEBP", **frames()),
        "gif": encoded(few, "GIF", **frames()),
        "bmp": encoded(picture, "BMP"),
        "bmp palette": encoded(few, "BMP"),
        "avif": encoded(picture, "AVIF"),
        "ppm": encoded(picture, "PPM"),
        "tiff": encoded(picture, "TIFF", exif=turned(6)),
        "tiff pages": encoded(picture, "TIFF", **frames()),
        "tiff cmyk": encoded(picture.convert("CMYK"), "TIFF"),
        "tiff 1 bit": encoded(picture.convert("1"), "TIFF", compression="group4"),
        **{
            f"tiff {name}": encoded(picture, "TIFF", compression=name)
            for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")
        },
    }
    for depth in (2, 4):
        rows = (b"\0" + bytes(range(56 * depth // 8))) * 40
        files[f"png {depth} bit"] = bare_png(56, 40, depth, 0, rows)
    for colour, samples in ((2, 3), (6, 4)):
        row = b"\0" + deep(1, 56 * samples).astype(">u2").tobytes()
        files[f"png 16 bit of {samples}"] = bare_png(56, 40, 16, colour, row * 40)
    files["png interlaced"] = interlaced(noise(8, 8))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        values = deep(12, 15)
        many = np.stack([values] * 5, 2)
        for name, pages, form in (
            ("12 bit", [page(values >> 4, 12)], {}),
            ("16 bit signed", [page(values >> 1, 16, kind=SIGNED, deflated=True)], {}),
            ("float", [page(values / 65535, 32, kind=FLOAT, deflated=True)], {"order": ">"}),
            ("float 64", [page(values / 100, 64, kind=FLOAT, tags={42113: "-9999"})], {}),
            ("bands in planes", [page(many, 16, planar=True, deflated=True)], {}),
            ("bigtiff", [page(many[..., :3], 16), page(values, 16)], {"big": True}),
            ("32 bit", [page(values, 32, deflated=True)], {}),
        ):
            files[f"tiff {name}"] = write_tiff(path, *pages, **form).read_bytes()
    return files


def interlaced(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of 8 × 8 pixels in the seven passes of Adam7, which Pillow does not write."""
    rows = b""
    for top, down, left, right in (
        *((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4)),
        *((2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[top::down, left::right])
    return bare_png(8, 8, 8, 2, rows, interlaced=True)


def deep(height: int, width: int) -> NDArray[np.uint16]:
    """Values (H, W) of 16 bits."""
    low, high = noise(height, width, 1), noise(width, height, 1).T
    return (low.astype(np.uint16) << 8 | high).astype(np.uint16)


def small_files_below(folder: Path) -> dict[str, bytes]:
    """The files that are not too large, by their paths."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    small = [path for path in found if 0 < path.stat().st_size <= LARGEST]
    return {str(path.relative_to(folder)): path.read_bytes() for path in small}


def mutant(files: list[bytes], number: int) -> bytes:
    """A damaged copy of one of the files, always the same one of a number."""
    draw = random.Random(number)
    data = bytearray(files[number % len(files)])
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        if not data:
            return b""
        # Headers are short, and what is wrong there matters most.
        place = draw.randrange(draw.choice([min(128, len(data)), len(data)]))
        match draw.randrange(7):
            case 0:
                del data[place:]
            case 1:
                for _ in range(draw.randint(1, 8)):
                    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            case 2:
                data[place] = draw.randrange(256)
            case 3:
                other = draw.choice(files)
                data[place:] = other[len(other) * place // len(data) :]
            case 4:
                form = draw.choice([">I", "<I", ">H", "<H"])
                size = struct.calcsize(form)
                if place + size <= len(data):
                    (length,) = struct.unpack_from(form, data, place)
                    largest = 256**size - 1
                    new = [0, 1, length - 1, length + 1, 2 * length, largest // 2, largest]
                    struct.pack_into(form, data, place, min(max(draw.choice(new), 0), largest))
            case 5:
                data[place:place] = draw.choice([b"\0", b"\xff", b"\x89"]) * draw.randint(1, 300)
            case _:
                del data[place : place + draw.randint(1, 40)]
    return bytes(data)
