"""Opening untrusted files: an image with its header read, or an `ImageError` that names the file."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from densesiam_seg.errors import ImageError
from densesiam_seg.images.decoding import Decoding, page_of
from densesiam_seg.images.pixels import WIDEST, Picture, Samples, as_samples, eight_bit, turned
from densesiam_seg.images.tiff import Page, chosen_page
from densesiam_seg.io.files import NotRegularError
from densesiam_seg.packed.members import as_shown, open_file

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff"}
    | {".bmp", ".dib", ".gif", ".avif", ".heic", ".heif", ".hif"}
)


class _TiffFile(TiffImagePlugin.TiffImageFile):
    """TIFF without Pillow's own pixel limit: the caller's `max_pixels` was checked before."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size, None).im
        super().load_prepare()


_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# `Image.open` would apply Pillow's global limit, which only a change of a global can lift, and would
# hand MPO files to a further reader. Calling the readers by their signatures needs neither.
_READERS: dict[str, tuple[tuple[bytes, ...], type[ImageFile.ImageFile]]] = {
    "JPEG": ((b"\xff\xd8\xff",), JpegImagePlugin.JpegImageFile),  # MPO starts with a plain JPEG
    "PNG": ((b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    "WEBP": ((b"RIFF",), WebPImagePlugin.WebPImageFile),
    "TIFF": (_TIFF, _TiffFile),
    "BMP": ((b"BM",), BmpImagePlugin.BmpImageFile),
    "GIF": ((b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
}
FORMATS = (*_READERS, "AVIF", "HEIC")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_UNSUPPORTED = re.compile(
    "^unsupported|cannot handle|not been built|has not been built", re.IGNORECASE
)
_SHORT = re.compile("truncated|too small|unexpected end", re.IGNORECASE)
_START = 136
"""Bytes from the start of a file that tell its format."""
_OTHERS = (
    (b"\0\0\0\x0cjP  ", 0, "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", 0, "a JPEG 2000 image"),
    (b"\0\0\0\x0cJXL ", 0, "a JPEG XL image"),
    (b"\xff\x0a", 0, "a JPEG XL image"),
    (b"II*\0\x10\0\0\0CR", 0, "a raw camera file"),
    (b"ftypcrx", 4, "a raw camera file"),
    (b"FUJIFILMCCD-RAW", 0, "a raw camera file"),
    (b"IIRO", 0, "a raw camera file"),
    (b"IIRS", 0, "a raw camera file"),
    (b"IIU\0", 0, "a raw camera file"),
    (b"\0MRM", 0, "a raw camera file"),
    (b"FOVb", 0, "a raw camera file"),
    (b"DICM", 128, "a DICOM file"),
    (b"8BPS", 0, "a Photoshop file"),
    (b"\x76\x2f\x31\x01", 0, "an OpenEXR image"),
    (b"#?RADIANCE", 0, "a Radiance HDR image"),
    (b"DDS ", 0, "a DDS texture"),
    (b"\x89HDF\r\n\x1a\n", 0, "an HDF5 or netCDF file"),
    (b"CDF\x01", 0, "a netCDF file"),
    (b"CDF\x02", 0, "a netCDF file"),
    (b"SIMPLE  =", 0, "a FITS file"),
    (b"%PDF-", 0, "a PDF document"),
    (b"P1\n", 0, "a PBM image"),
    (b"P2\n", 0, "a PGM image"),
    (b"P3\n", 0, "a PPM image"),
    (b"P4\n", 0, "a PBM image"),
    (b"GRIB", 0, "a GRIB file"),
    (b"NITF", 0, "a NITF file"),
    (b"II\xbc", 0, "a JPEG XR image"),
    (b"version https://git-lfs", 0, "a pointer of Git LFS (git lfs pull fetches the image)"),
    (b"P5", 0, "a PGM image"),
    (b"P6", 0, "a PPM image"),
    (b"\x93NUMPY", 0, "a numpy array"),
)
"""Signature, its offset, and the name of formats that are known and not read."""

if "PILLOW_BLOCKS_MAX" not in os.environ:
    # Pillow's blocks of 16 MB are kept for the next image. Where they go back to the system, whose pages are zeroed,
    # a photograph takes up to a third longer.
    Image.core.set_blocks_max(4)  # type: ignore[attr-defined]

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class _PillowImage:
    """An image that Pillow reads, its header read; `height` and `width` are those of the upright image."""

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        decoding: Decoding,
        image: ImageFile.ImageFile,
        pages: int,
        *,
        lossy: bool = False,
    ) -> None:
        self.name = name
        self.decoding = decoding
        self.format = image.format
        self.lossy = lossy or image.format in ("JPEG", "AVIF", "HEIF")
        """Whether the compression changes values."""
        self.pages = pages
        self.orientation = _orientation(image)
        """1 to 8, as in EXIF."""
        self.height, self.width = _upright_size(image)
        self.ordinary = (
            _layout(image) == image.mode
            and image.mode in ("L", "RGB")
            and (self.orientation, pages) == (1, 1)
            and "transparency" not in image.info
        )
        """Whether every program shows it alike: 8-bit grey or RGB, one page, upright, without alpha."""
        self._file, self._image = file, image

    def draft(self, side: int) -> None:
        """Let a JPEG be decoded at 1/2, 1/4 or 1/8 size where both its sides stay at least `side`."""
        self._image.draft(None, (side, side))

    def picture(self) -> Picture:
        """Decode and turn; of several bands those that are asked for."""
        layout = _layout(self._image)
        if self.format == "PNG" and layout.endswith(";16B") and self._plain:
            return self._deep()
        clear = self._image.info.get("transparency")
        if self.format == "PNG" and layout in ("L;2", "L;4") and isinstance(clear, int):
            # Pillow spreads the values over 0…255, but not this one.
            self._image.info["transparency"] = clear * (85 if layout == "L;2" else 17)
        picture = as_samples(_upright(self._image))
        if isinstance(picture, Samples):
            return picture
        if (
            self.format == "BMP"
            and picture.mode == "RGBA"
            and not picture.getchannel("A").getbbox()
        ):
            picture = picture.convert("RGB")  # a byte that nobody filled
        if self.decoding.bands is not None:
            colours = eight_bit(picture, None).split()
            places = self.decoding.places(self.name, len(colours))
            shown = [colours[place] for place in places]
            return Image.merge("RGB", shown) if len(shown) == 3 else shown[0]
        return picture

    def stored(self) -> tuple[Image.Image, str]:
        """The values as they are stored, upright, and Pillow's name of their layout, such as `L;4I`."""
        layout = _layout(self._image)  # decoding forgets it
        return _upright(self._image), layout

    def _deep(self) -> Samples:
        """A PNG of 16 bits, of which Pillow keeps 8 where it has colours."""
        import imagecodecs

        self._file.seek(0)
        values = imagecodecs.png_decode(self._file.read())
        values = values.reshape(*values.shape[:2], -1)
        clear = self._image.info.get("transparency")
        alpha = values.shape[2] in (2, 4)
        places = self.decoding.places(self.name, values.shape[2] - alpha, 16)
        if isinstance(clear, tuple):
            clear = tuple(clear[place] for place in places)
        if alpha:
            places.append(values.shape[2] - 1)
        values = turned(values[:, :, places], self.orientation)
        return Samples(
            values,
            WIDEST,
            clear=(clear,) if isinstance(clear, int) else clear,
            alpha=WIDEST if alpha else None,
        )

    @property
    def _plain(self) -> bool:
        """Whether a PNG can be decoded in one go: libpng complains of interlaced ones, and knows no further frame."""
        return self._image.tell() == 0 and not self._image.info.get("interlace")


Opened: TypeAlias = _PillowImage | Page
"""An image whose header is read: its `format`, upright `height` and `width`, number of `pages`; it can `draft`, and
give its `picture` and `stored` values."""


@contextmanager
def opened(path: str | os.PathLike[str], decoding: Decoding) -> Iterator[Opened]:
    """The image, to be decoded inside; any failure inside is an `ImageError`.

    `FILE/3` is page 3 of a file, and `packed.members` says how one in a tar is named.
    """
    name = as_shown(os.fspath(path))
    _ignore_pillow_warnings()
    try:
        where, page = page_of(os.fspath(path))
        page = decoding.page if page is None else page
        with open_file(where) as file:
            found = _read_header(file, name, decoding, page)
            limit = decoding.max_pixels
            if limit is not None and found.width * found.height > limit:
                raise ImageError(
                    name,
                    "too-large",
                    f"has {found.width} x {found.height} pixels, more than {limit:,} in all",
                    "shrink it or raise --max-pixels",
                )
            yield found
            if page is None and found.pages > 1:
                decoding.notes.add("pages", name, f"{found.pages} of them")
    except ImageError:
        raise
    except Exception as error:  # malformed files have made Pillow raise a dozen unrelated classes
        raise _translated(name, error) from error


def _read_header(file: BinaryIO, name: str, decoding: Decoding, number: int | None) -> Opened:
    start = file.read(_START)
    for signature, offset, what in _OTHERS:
        if start.startswith(signature, offset):
            remedy = (
                "develop it to JPEG, PNG or TIFF" if "raw" in what else "convert it to PNG or TIFF"
            )
            raise ImageError(name, "unsupported", f"is {what}, which is not read", remedy)
    page = chosen_page(file, name, decoding, number) if start.startswith(_TIFF) else None
    if page is not None and not page.by_pillow:
        return page
    file.seek(0)
    image = _reader(start, name)(file, "")  # without a name Pillow cannot map or reopen the file
    if page is None:
        pages = int(getattr(image, "n_frames", 1))
        index: int | None = decoding.place(name, pages, number)
    else:
        pages, index = page.pages, page.index
    if index:
        image.seek(index)
    return _PillowImage(file, name, decoding, image, pages, lossy=page is not None and page.lossy)


def _layout(image: ImageFile.ImageFile) -> str:
    """Pillow's name for the layout in the file, such as `L;4`; empty where it gives none or has decoded already."""
    arguments: Any = image.tile[0].args if image.tile else ""
    layout = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return layout if isinstance(layout, str) else ""


def _upright(image: ImageFile.ImageFile) -> Image.Image:
    """Decode and turn; Pillow turns TIFF by itself while loading."""
    turn = _TURNS.get(_orientation(image))
    image.load()
    if turn is None or isinstance(image, _TiffFile):
        return image
    picture = image.transpose(turn)
    image.close()  # frees the first copy
    return picture


def _upright_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Height and width after `_upright`, without decoding."""
    sideways = _orientation(image) in _SIDEWAYS
    if isinstance(image, _TiffFile):  # its size is turned already if its own tag says so
        sideways ^= image.tag_v2.get(ExifTags.Base.Orientation) in _SIDEWAYS
    return (image.width, image.height) if sideways else (image.height, image.width)


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation 1…8; unreadable metadata counts as 1.

    The base method uses the header alone. PNG's own would decode all pixels in search of
    a late eXIf chunk, which the standard (third edition) no longer allows.
    """
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # any class at all, and never a reason to refuse the pixels
        return 1
    return int(value) if value in _TURNS else 1


def _ignore_pillow_warnings() -> None:
    """Pillow warns of odd metadata, which changes no pixel.

    `catch_warnings` is of no use while other threads decode, so the filter stays, in front.
    """
    if warnings.filters[:1] != [_PILLOW_WARNINGS]:
        cast("list[object]", warnings.filters).insert(0, _PILLOW_WARNINGS)


def _reader(start: bytes, name: str) -> type[ImageFile.ImageFile]:
    """Pillow's reader for a file that begins so. Raises `ImageError` naming what it is instead."""
    if not start:
        raise ImageError(name, "empty", "is empty (0 bytes)", "copy it again or remove it")
    for signatures, reader in _READERS.values():
        if start.startswith(signatures) and (start[:4] != b"RIFF" or start[8:12] == b"WEBP"):
            return reader
    if start[4:8] == b"ftyp":
        brand = start[8:12]
        if brand in (b"avif", b"avis") or (b"avif" in start[16:64] and b"heic" not in start[16:64]):
            return AvifImagePlugin.AvifImageFile
        if brand in _HEIC:
            return _heif_reader(name)
    raise ImageError(
        name,
        "not-an-image",
        f"is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image",
        "convert it to PNG or remove it",
    )


def _heif_reader(name: str) -> type[ImageFile.ImageFile]:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ImageError(
            name,
            "unsupported",
            "is a HEIC image, which needs one more package",
            "pip install 'densesiam-seg[heif]', or convert it to JPEG",
        ) from None
    reader: type[ImageFile.ImageFile] = HeifImageFile
    return reader


def _translated(name: str, error: Exception) -> ImageError:
    """The `ImageError` for what Pillow or the system raised."""
    text = " ".join(str(error).split()) or type(error).__name__
    again = "copy it again from its source or remove it"
    if isinstance(error, MemoryError):
        return ImageError(name, "too-large", "does not fit in memory", "shrink it or remove it")
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(name, "too-large", f"is too large ({text})", "convert it to TIFF")
    if isinstance(error, NotRegularError):
        if Path(name).is_dir():
            return ImageError(name, "not-regular", "is a folder, not an image", "name a file in it")
        return ImageError(name, "not-regular", "is not a regular file", "remove it")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ImageError(name, "missing", "does not exist", "check the name")
    if isinstance(error, PermissionError):
        return ImageError(name, "permission", "may not be read", "change its permissions")
    if isinstance(error, OSError) and error.errno is not None:
        return ImageError(name, "unreadable", f"cannot be read ({error.strerror})", again)
    if _UNSUPPORTED.search(text):
        return ImageError(
            name, "unsupported", f"is of a kind that is not read ({text})", "save it as PNG"
        )
    if isinstance(error, EOFError) or _SHORT.search(text):
        return ImageError(name, "truncated", f"ends too early ({text})", again)
    return ImageError(name, "corrupt", f"cannot be decoded ({text})", again)
