"""TIFF, whose tags say what a sample means: which page is the image, and its samples where Pillow cannot give them.

Axes: H W (pixels of a page), C samples of a pixel.

Pillow decodes what its 8-bit modes hold exactly. Other depths, formats and numbers of bands are read by tifffile, since
Pillow would guess their meaning from the nearest mode it has.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.errors import ImageError, counted
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.pixels import WIDEST, Samples, opaque, turned

MEMORY = 16
"""Bytes that the samples of a page may take for each pixel of `max_pixels`."""
PAGES = 10_000
"""Pages of a file that are looked at."""
_REDUCED, _MASK = 1, 4
"""Bits of NewSubfileType: a smaller copy of another page, and its transparency."""
_DNG_VERSION, _GDAL_NODATA, _ORIENTATION, _SUBFILE, _OLD_SUBFILE = 50706, 42113, 274, 254, 255
_PHOTOMETRIC, _WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE = 262, 0, 1, 2, 3
_CMYK, _YCBCR, _LAB = 5, 6, 8
_ASSOCIATED, _UNASSOCIATED = 1, 2
_UNSIGNED, _FLOAT, _UNDEFINED = 1, 3, 4
_BY_PILLOW = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946})
"""Compressions that Pillow is built with: none, fax, LZW, JPEG, deflate, PackBits."""
_LOSSY = frozenset({6, 7})
"""JPEG, as of TIFF's sixth and later revisions."""
_BY_TIFFFILE = frozenset({1, 5, 8, 32773, 32946, 34925, 34926, 50000, 50001})
"""None, LZW, deflate, PackBits, LZMA, Zstandard, WebP. Others decode to whatever size their data claim."""

# tifffile logs what it passes over in a damaged file; what matters is raised, or checked below.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Page:
    """The page of a TIFF that is its image, from the header alone."""

    page: Any
    """tifffile's."""
    name: str
    decoding: Decoding
    index: int | None
    """Place in the file's chain of pages; None for one inside another page."""
    pages: int
    """Images in the file."""
    format = "TIFF"

    @property
    def height(self) -> int:
        """Of the upright image."""
        return int(self.page.imagewidth if self._sideways else self.page.imagelength)

    @property
    def width(self) -> int:
        """Of the upright image."""
        return int(self.page.imagelength if self._sideways else self.page.imagewidth)

    @cached_property
    def bits(self) -> int:
        """Bits of each sample. Raises `ImageError` where they differ."""
        bits = self.page.bitspersample
        if not isinstance(bits, int):
            bits = set(bits)
            if len(bits) > 1:
                raise self._unsupported(f"samples of {'/'.join(map(str, sorted(bits)))} bits")
            (bits,) = bits
        return int(bits)

    @property
    def by_pillow(self) -> bool:
        """Whether one of Pillow's 8-bit modes holds the page exactly."""
        page = self.page
        kind, samples, extra = page.photometric, page.samplesperpixel, self._extra
        if (
            self.index is None
            or page.compression not in _BY_PILLOW
            or page.planarconfig != 1
            or page.imagedepth != 1
            or self._format not in (_UNSIGNED, _UNDEFINED)
            or (self.marks_bytes and kind <= _RGB and page.compression not in _LOSSY)
            or self._photometric != kind
            or extra != tuple(page.extrasamples)
            or 0 in page.databytecounts
            or (page.parent.is_bigtiff and page.parent.byteorder == ">")
        ):
            return False
        match kind:
            case 0 | 1:
                return samples == 1 and self.bits in (1, 2, 4, 8)
            case 2:
                alpha = extra in ((_ASSOCIATED,), (_UNASSOCIATED,))
                return self.bits == 8 and samples == (4 if alpha else 3)
            case 3:
                deep = page.colormap is not None and page.colormap.max() > 255
                return samples in (1, 2) and self.bits in (1, 2, 4, 8) and bool(deep)
            case 5:
                return samples == 4 and self.bits in (8, 16)
            case 6 | 8:
                return samples == 3 and self.bits == 8
        return False

    @property
    def nodata(self) -> float | None:
        """The value that stands for no data, where GDAL wrote one."""
        tag = self.page.tags.get(_GDAL_NODATA)
        try:
            return None if tag is None else float(str(tag.value).strip("\0 ").replace(",", "."))
        except ValueError:
            return None

    def picture(self) -> Samples:
        """Decode to the bands that are asked for, upright. Raises `ImageError` naming what is not supported."""
        full, extra = self._full(), self._extra
        values, _ = self.stored()
        if self._photometric == _PALETTE:
            shown = self.decoding.places(self.name, 3)
            return Samples(self._coloured(values[..., 0])[..., shown], 255.0)
        total = values.shape[2]
        marked = [i for i, kind in enumerate(extra) if kind in (_ASSOCIATED, _UNASSOCIATED)]
        alpha = total - len(extra) + marked[0] if marked else None
        bands = [place for place in range(total) if place != alpha]
        shown = [bands[k] for k in self.decoding.places(self.name, len(bands), self.bits)]
        if alpha is not None:
            shown.append(alpha)
        if shown != list(range(total)):
            values = values[:, :, shown]
        top = None
        if alpha is not None:
            top = opaque(values[..., -1], full)
            if full is not None and top < full:
                self.decoding.notes.add("alpha", self.name, f"{top:g} of {full:g}")
        return Samples(
            values,
            full,
            inverted=self._photometric == _WHITE_IS_ZERO,
            nodata=self.nodata,
            alpha=top,
            associated=bool(marked) and extra[marked[0]] == _ASSOCIATED,
        )

    def stored(self) -> tuple[NDArray[Any], str]:
        """All samples as they are stored, upright (H, W, C), and Pillow's name of their layout. Raises `ImageError`."""
        page = self.page
        self._full()
        self._check_segments(self.decoding.max_pixels)
        values = page.asarray(squeeze=False, maxworkers=1)  # (planes, depth, H, W, samples)
        values = values[:, 0].transpose(1, 2, 0, 3).reshape(*values.shape[2:4], -1)
        layout = "L;I" if self._photometric == _WHITE_IS_ZERO else ""
        return turned(values, self.orientation), layout

    def draft(self, side: int) -> None:
        """Nothing: only a JPEG has smaller versions of itself."""

    @property
    def lossy(self) -> bool:
        """Whether the compression changes values."""
        return self.page.compression in _LOSSY

    @property
    def _photometric(self) -> int:
        """What the samples stand for; where the file does not say, what their number suggests, as libtiff has it."""
        page = self.page
        if _PHOTOMETRIC in page.tags:
            return int(page.photometric)
        return _RGB if page.samplesperpixel >= 3 else _BLACK_IS_ZERO

    @property
    def _extra(self) -> tuple[int, ...]:
        """What the samples behind the colours are, as far as there are such samples."""
        page = self.page
        more = page.samplesperpixel - {_RGB: 3, _CMYK: 4, _YCBCR: 3, _LAB: 3}.get(
            self._photometric, 1
        )
        marks = tuple(map(int, page.extrasamples))
        return marks[len(marks) - more :] if 0 < more < len(marks) else marks if more > 0 else ()

    @property
    def marks_bytes(self) -> bool:
        """Whether a number that 8 bits can hold stands for no data."""
        return self.nodata is not None and 0 <= self.nodata <= 255

    def _coloured(self, indices: NDArray[Any]) -> NDArray[np.uint8]:
        """Indices (H, W) → the palette's colours (H, W, 3), which some programs write in 8 bits instead of 16."""
        colours = self.page.colormap
        if colours.max() > 255:
            colours = colours >> 8
        found: NDArray[np.uint8] = colours.astype(np.uint8)[:, indices].transpose(1, 2, 0)
        return found

    @property
    def _format(self) -> int:
        found = self.page.sampleformat
        return int(found) if isinstance(found, int) else -1

    @property
    def orientation(self) -> int:
        """1 to 8, as in EXIF."""
        tag = self.page.tags.get(_ORIENTATION)
        value = tag.value if tag is not None else 1
        return value if value in range(1, 9) else 1

    @property
    def _sideways(self) -> bool:
        return self.orientation >= 5

    def _full(self) -> float | None:
        """The value of white, None for floats. Raises `ImageError` for samples that are no numbers of one kind."""
        page, bits = self.page, self.bits
        if _DNG_VERSION in page.tags or page.photometric in (32803, 34892):
            raise ImageError(
                self.name, "unsupported", "is a raw camera file", "develop it to JPEG, PNG or TIFF"
            )
        palette = self._photometric == _PALETTE and page.colormap is not None and bits <= 16
        if self._photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) and not palette:
            raise self._unsupported(f"colours of kind {_named(page.photometric)} stored so")
        # Of integers that fill no whole number of words, readers do not agree on the order of bytes.
        if (
            page.dtype is None
            or page.imagedepth != 1
            or (16 < bits < 32 and self._format != _FLOAT)
        ):
            raise self._unsupported(f"{bits}-bit samples of this form")
        if page.compression not in _BY_TIFFFILE:
            raise self._unsupported(f"compression {_named(page.compression)}")
        match self._format:
            case 3:
                return None
            case 2:
                return float(2 ** (bits - 1) - 1) if bits < 32 else WIDEST
            case 1 | 4:
                return float(2**bits - 1) if bits < 32 else WIDEST
        raise self._unsupported("samples that are no integers or floats of one kind")

    def _check_segments(self, max_pixels: int | None) -> None:
        """Refuse what does not fit in memory and what the file does not hold, which tifffile would leave undefined."""
        page = self.page
        needed = int(np.prod(page.shaped)) * page.dtype.itemsize
        if max_pixels is not None and needed > MEMORY * max_pixels:
            raise ImageError(
                self.name,
                "too-large",
                f"has {page.samplesperpixel} bands that take {needed / 1e9:.1f} GB",
                "save the bands that are needed alone, or raise --max-pixels",
            )
        offsets, counts = page.dataoffsets, page.databytecounts
        expected = int(np.prod(page.chunked))
        end = page.parent.filehandle.size
        whole = all(
            o >= 0 and c >= 0 and o + c <= end for o, c in zip(offsets, counts, strict=False)
        )
        if len(offsets) == len(counts) >= expected and not any(counts):
            raise ImageError(
                self.name, "bad-values", "holds no data in any strip or tile", "remove it"
            )
        if len(offsets) != len(counts) or len(offsets) < expected or not whole:
            raise ImageError(
                self.name,
                "truncated",
                "ends too early (its strips or tiles lie beyond its end)",
                "copy it again from its source or remove it",
            )

    def _unsupported(self, what: str) -> ImageError:
        page = self.page
        planes = "in planes" if page.planarconfig == 2 else "interleaved"
        bits = page.bitspersample
        detail = (
            f"is a TIFF with {what}, which is not supported ({counted(page.samplesperpixel, 'band')} of "
            f"{bits if isinstance(bits, int) else '/'.join(map(str, bits))} bits {planes}, format "
            f"{_named(page.sampleformat)}, compression {_named(page.compression)})"
        )
        return ImageError(
            self.name, "unsupported", detail, "save three bands as an RGB PNG or TIFF"
        )


def chosen_page(file: BinaryIO, name: str, decoding: Decoding, number: int | None) -> Page:
    """The image of an open TIFF: page `number` from 1, None for the first. Smaller copies and masks are no pages.

    Raises `ImageError` for a page that is not there, and whatever tifffile raises on a damaged file.
    """
    from tifffile import TiffFile

    file.seek(0)
    pages = TiffFile(file, name=Path(name).name or "-").pages
    pages.useframes = False
    # Of a file of nothing but reduced copies they are all there is.
    chain = list(_chain(pages, name))
    found = list(_images(chain)) or list(enumerate(chain))
    stack = _stacked(pages.parent)
    total = max(len(found), stack)
    place = decoding.place(name, total, number)
    if place >= len(found):
        raise ImageError(
            name,
            "unsupported",
            f"is a stack of {stack} images behind one page, of which the first alone is read",
            "save its images one by one",
        )
    index, page = found[place]
    chosen = Page(page, name, decoding, index, total)
    masked = any(_subfile(each) & _MASK for each in chain)
    unused = chosen.by_pillow or page.photometric == _PALETTE
    if masked or (unused and chosen.marks_bytes):
        decoding.notes.add("unused", name, "a mask" if masked else f"{chosen.nodata:g}")
    return chosen


def _stacked(tiff: Any) -> int:
    """Images that ImageJ wrote behind a single page."""
    try:
        facts = tiff.imagej_metadata or {} if tiff.is_imagej else {}
        return int(facts.get("images", 1))
    except Exception:  # a description may hold anything
        return 1


def _chain(pages: Any, name: str) -> Iterator[Any]:
    """The pages that follow one another, each once: tifffile would follow a circle for ever."""
    seen: set[int] = set()
    for index in count():
        try:
            page = pages[index]
        except IndexError:
            return
        if page.offset in seen:
            return
        seen.add(page.offset)
        if index == PAGES:
            raise ImageError(name, "too-large", f"has more than {PAGES} pages", "split it")
        yield page


def _images(pages: Sequence[Any]) -> Iterator[tuple[int | None, Any]]:
    """Pages that are images of their own, with their places in the chain; a thumbnail stands for those inside it."""
    for index, page in enumerate(pages):
        if not _is_copy(page):
            yield index, page
        elif page.subifds:
            yield from ((None, inner) for inner in page.pages if not _is_copy(inner))


def _is_copy(page: Any) -> bool:
    old = page.tags.get(_OLD_SUBFILE)
    if _SUBFILE in page.tags:
        return bool(_subfile(page) & (_REDUCED | _MASK))
    return old is not None and old.value == 2  # a reduced copy, in TIFF's fifth revision


def _subfile(page: Any) -> int:
    tag = page.tags.get(_SUBFILE)
    return int(tag.value) if tag is not None and isinstance(tag.value, int) else 0


def _named(code: Any) -> str:
    return str(getattr(code, "name", None) or code)
