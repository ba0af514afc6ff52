"""Rows about what comes before the network: decoding, views, scanning."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from weakref import finalize

import torch
import torchvision
from material import copies, jpegs
from measure import Row, alternate, in_new_process, peak_bytes, rate_row, ratio_row, threads, timed
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import functional as official

from densesiam_seg.images.crew import Crew, Form
from densesiam_seg.images.decode import load_square
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import ImageStore, epoch_batches
from densesiam_seg.io.devices import available_cores
from densesiam_seg.views.pair import view_pair
from densesiam_seg.views.parameters import sample_geometry, sample_photometry
from densesiam_seg.views.photometric import MEAN, STD

IMAGES, FED = 24, 192


def decode_rows(scratch: Path, photos: Path | None, repeats: int) -> Iterator[Row]:
    """`load_square` against torchvision.io's own decoding, resize and crop of the same files; one thread."""
    for size, limit in (((640, 480), 1.0), ((2048, 1024), 1.5)):
        paths = jpegs(scratch / f"{size[0]}x{size[1]}", IMAGES, size, photos)
        with threads(1):
            ours, theirs = alternate(
                lambda paths=paths: [load_square(path, 320) for path in paths],
                lambda paths=paths: [torchvision_square(path, 320) for path in paths],
                repeats=repeats,
                clock=time.process_time,
            )
        rates = f"{IMAGES / min(ours):.0f} / {IMAGES / min(theirs):.0f} images/s a core"
        yield ratio_row(
            f"decode + resize to 320 of {size[0]}x{size[1]}, images/s / torchvision.io's",
            theirs,
            ours,
            limit,
            better="more",
            note=rates,
        )


def torchvision_square(path: Path, side: int) -> Tensor:
    """Decode, shorter side to `side`, centre crop."""
    pixels = torchvision.io.decode_jpeg(torchvision.io.read_file(str(path)))
    return official.center_crop(official.resize(pixels, [side], antialias=True), [side])


def input_rows(scratch: Path, photos: Path | None, repeats: int) -> Iterator[Row]:
    """Batches of 32 alone, decoded each time by threads and by processes, and from memory; wall time."""
    for pixels, side in (((480, 360), 320), ((640, 480), 320), ((640, 480), 640)):
        name = f"{pixels[0]}x{pixels[1]}"
        sources = jpegs(scratch / f"input-{name}", IMAGES, pixels, photos)
        folder = copies(scratch / f"input-{name}-all", sources, FED)
        counts = [n for n in (1, 2, 4, 8, 16, 32) if n <= max(available_cores(), 2)]
        for workers in counts:
            stores = [_ready(folder, side, workers, processes) for processes in (False, True)]
            found = alternate(*(partial(_drain, store) for store in stores), repeats=repeats)
            for what, seconds in zip(("threads", "processes"), found, strict=True):
                title = f"input alone, {name} to {side}, {workers} {what}"
                yield rate_row(title, FED, seconds, "images/s", None)
        store = ImageStore(scan([folder]), side, keep="ram")
        _consume(store.prepare())
        (seconds,) = alternate(partial(_drain, store), repeats=repeats)
        yield rate_row(f"input alone, {side} from memory", FED, seconds, "images/s", None)


def overlap_rows(scratch: Path, photos: Path | None, repeats: int) -> Iterator[Row]:
    """An epoch from JPEGs over steps that leave the processor free, as a GPU's do: they only wait, which is not judged.

    They take 1.6 times as long as the input, like those of an H200 with 16 cores if these decode 2,000 images a second.
    """
    folder = copies(
        scratch / "input-640x480-all",
        jpegs(scratch / "input-640x480", IMAGES, (640, 480), photos),
        FED,
    )
    decoding = timed(partial(_drain, _ready(folder, 640, available_cores(), False)))
    groups = epoch_batches(FED, 32, seed=0, epoch=0)
    wait = 1.6 * decoding / len(groups)

    def epoch(late: bool) -> None:
        store = ImageStore(scan([folder]), 640, keep="ram")
        _consume(store.prepare([] if late else None))
        for _ in store.batches(groups):
            time.sleep(wait)

    for late, how in ((False, "all images read before"), (True, "read by training")):
        seconds = [timed(partial(epoch, late)) for _ in range(repeats)]
        yield ratio_row(
            f"first epoch / steps that leave the processor free, {how}",
            seconds,
            [wait * len(groups)] * repeats,
            1.5 if late else None,
            note=f"{FED} JPEGs of 640x480 to 640",
        )


def _ready(folder: Path, side: int, workers: int, processes: bool) -> ImageStore:
    """One that decodes every image anew, its processes started."""
    store = ImageStore(scan([folder]), side, workers=workers, keep="none")
    if processes:
        # Also with fewer of them than a training would have.
        store._crew = Crew(Form(side, False, store.decoding), workers)
        finalize(store, store._crew.close)
    _consume(store.prepare())
    return store


def _drain(store: ImageStore) -> None:
    _consume(store.batches(epoch_batches(FED, 32, seed=0, epoch=0)))


def _consume(items: Iterable[object]) -> None:
    deque(items, maxlen=0)


def view_rows(scratch: Path, photos: Path | None, repeats: int, side: int = 320) -> Iterator[Row]:
    """Both views of 16 images stored at 640 px, against the official way image by image; one thread."""
    paths = jpegs(scratch / "640x640", 16, (2 * side, 2 * side), photos)
    images = torch.stack([load_square(path, 2 * side) for path in paths])
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    indices = tuple(range(len(images)))
    for exact in (False, True):
        with threads(1):
            ours, theirs = alternate(
                lambda exact=exact: view_pair(images, indices, seed=0, round_=0, exact=exact),
                lambda: official_views(pictures, indices, side),
                repeats=repeats,
                clock=time.process_time,
            )
        yield ratio_row(
            f"both views at {side}: the official way / ours, {'exact' if exact else 'fast'} mode",
            theirs,
            ours,
            None if exact else 5.0,
            better="more",
            note=f"{1e3 * min(theirs) / 16:.0f} / {1e3 * min(ours) / 16:.1f} ms an image",
        )


def official_views(
    pictures: Sequence[Image.Image], indices: Sequence[int], side: int
) -> list[tuple[Tensor, Tensor]]:
    """The same draws by the calls that the released code makes: Pillow's colours one by one, then tensors."""
    tops, lefts, sides, _, flips = (
        value.tolist() for value in vars(sample_geometry(0, 0, indices)).values()
    )
    found = []
    for view in (1, 2):
        table = torch.stack(tuple(vars(sample_photometry(0, 0, indices, view)).values()), 1)
        found.append(
            [official_colours(p, row) for p, row in zip(pictures, table.tolist(), strict=True)]
        )
    pairs = []
    for one, two, top, left, extent, flip in zip(*found, tops, lefts, sides, flips, strict=True):
        whole = 2 * side
        crop = [
            round(top * whole),
            round(left * whole),
            round(extent * whole),
            round(extent * whole),
        ]
        first = official.resized_crop(one, *crop, [side, side])
        pairs.append((first.flip(-1) if flip else first, official.resize(two, [side, side])))
    return pairs


def official_colours(picture: Image.Image, change: Sequence[float]) -> Tensor:
    """Each change that an image has, as a Pillow image; then a normalised tensor."""
    brightness, contrast, saturation, hue, grey, sigma = change
    if brightness != 1:
        picture = official.adjust_brightness(picture, brightness)
    if contrast != 1:
        picture = official.adjust_contrast(picture, contrast)
    if saturation != 1:
        picture = official.adjust_saturation(picture, saturation)
    if hue != 0:
        picture = official.adjust_hue(picture, hue)
    if grey:
        picture = official.to_grayscale(picture, 3)
    if sigma:
        picture = picture.filter(ImageFilter.GaussianBlur(sigma))
    return official.normalize(official.to_tensor(picture), MEAN, STD)


def scan_rows(paths: int) -> Iterator[Row]:
    """Scanning a folder of so many empty files, and the digest of its manifest, in a process of its own."""
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for index in range(paths):
            place = Path(folder, f"{index // 1000:04}")
            if index % 1000 == 0:
                place.mkdir()
            os.close(os.open(place / f"{index:012}.jpg", os.O_CREAT))
        seconds, grown, count = in_new_process(_scan, folder)
    assert count == paths
    million = paths / 1e6
    note = f"{paths:,} paths"
    yield Row("scan + manifest", seconds, seconds, seconds, "s", 10 * million, note=note)
    yield Row(
        "memory of scan + manifest",
        grown / 1e6,
        grown / 1e6,
        grown / 1e6,
        "MB",
        150 * max(million, 0.1),
        note=note,
    )


def _scan(folder: str) -> tuple[float, int, int]:
    before, began = peak_bytes(), time.perf_counter()
    manifest = scan([folder])
    assert manifest.digest
    return time.perf_counter() - began, peak_bytes() - before, len(manifest)
