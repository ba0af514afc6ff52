"""The field's three protocols: how images and labels are resized and cropped, and how masks are made.

Axes: B images, C channels, h w features, K clusters, H W label size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.datasets.declaration import Dataset
from densesiam_seg.datasets.labels import orientation, read_oriented_label
from densesiam_seg.datasets.reader import Sample
from densesiam_seg.errors import InputError, UsageError, counted
from densesiam_seg.events import Notice
from densesiam_seg.images.decode import PLAIN, load_oriented
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.refinement import refined
from densesiam_seg.inference.segmenter import Segmenter, working_size
from densesiam_seg.inference.upsampling import upsample_argmax
from densesiam_seg.io.parallel import device_lock
from densesiam_seg.packed.members import as_shown

Size = tuple[int, int]
Mask = NDArray[np.integer]


@dataclass(frozen=True)
class Protocol:
    """One protocol; with `crop` only the centre square is scored, else the whole image."""

    name: str
    resize: Literal["bilinear", "nearest"]
    crop: bool
    upsample: Literal["logits", "features"]
    flip: bool

    def describe(self, side: int, zoom: int = 1) -> str:
        """One line with all that a score depends on: size, filter, crop, what is upsampled, flip, no CRF."""
        shown = "" if zoom == 1 else f", read at {zoom * side}"
        crop = f"centre crop {side}" if self.crop else "no crop, scored at the label's size"
        flip = "mean of the flipped image's features" if self.flip else "no flip"
        size = f"shorter side {side} ({self.resize}{shown})"
        return f"{self.name}: {size}, {crop}, {self.upsample} upsampled, {flip}, no CRF"


PROTOCOLS = {
    "picie": Protocol("picie", "bilinear", crop=True, upsample="logits", flip=False),
    "stego": Protocol("stego", "nearest", crop=True, upsample="features", flip=True),
    "full-image": Protocol("full-image", "bilinear", crop=False, upsample="logits", flip=False),
}


def pick_protocol(name: str) -> Protocol:
    """The protocol of that name. Raises UsageError."""
    if name not in PROTOCOLS:
        raise UsageError(f"--protocol {name}: give one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


MakeMasks = Callable[[Tensor, Protocol, Sequence[Size]], Sequence[Sequence[Mask]]]
"""(uint8 images (B, 3, h, w) prepared by the protocol, protocol, H W of each) → the masks (H, W) of each image.
Images beyond those whose size is given only fill up the batch."""
Scores = Iterator[Sequence[Tensor]]
"""For each image the scores (K, h, w) of each read-out."""
ReadOut = Callable[[Tensor], Tensor]
"""Features (B, C, h, w) → cluster scores (B, K, h, w), at any resolution."""


def prepare_sample(
    sample: Sample,
    dataset: Dataset,
    protocol: Protocol,
    side: int,
    zoom: int = 1,
    decoding: Decoding = PLAIN,
) -> tuple[Tensor, NDArray[np.uint8]]:
    """Image and label, resized and cropped: uint8 (3, h, w), and class ids (H, W) with 255 ignored.

    The image's sides have `zoom` times `side`, as some networks read it so. Raises ImageError for a file that cannot be
    read and InputError for a label that fits neither image nor dataset.
    """
    return prepare_turned(sample, dataset, protocol, side, zoom, decoding)[:2]


def prepare_turned(
    sample: Sample,
    dataset: Dataset,
    protocol: Protocol,
    side: int,
    zoom: int = 1,
    decoding: Decoding = PLAIN,
) -> tuple[Tensor, NDArray[np.uint8], Turned]:
    """What `prepare_sample` gives, and whether EXIF tags turn image and label apart, without reading them once more."""
    image, turn = load_oriented(sample.image, decoding)
    label, label_turn = read_oriented_label(dataset, sample.label)
    apart = _apart(turn, label_turn)
    height, width = image.shape[-2:]
    if label.shape != (height, width):
        raise InputError(
            f"{sample.label}: is {label.shape[1]}x{label.shape[0]} but its image is {width}x{height}"
            f"{f' ({apart})' if apart else ''}; give labels of the images' own size"
        )
    if protocol.crop:
        size = _cover(height, width, side)
        label = _nearest(label, *size)[_window(size, side)]
    return prepare_image(image, protocol, zoom * side), label, Turned.of(sample, apart)


def _apart(image: int, label: int) -> str:
    """EXIF orientations of image and label where they differ, as words; else empty."""
    return "" if image == label else f"EXIF orientation {image}, its label {label}"


@dataclass(frozen=True)
class Turned:
    """Samples whose EXIF tags turn the image but not its label; those of other samples are added."""

    count: int = 0
    first: tuple[str, str, str] = ("", "", "")
    """Name, image and what is said of their orientations, of the first by name."""

    @classmethod
    def of(cls, sample: Sample, apart: str | None = None) -> Turned:
        """Of one sample; `apart` are the words about its orientations, which are read where it is None."""
        if apart is None:
            apart = _apart(orientation(sample.image), orientation(sample.label))
        return cls(1, (sample.name, str(sample.image), apart)) if apart else cls()

    def __add__(self, other: Turned) -> Turned:
        known = [each.first for each in (self, other) if each.count]
        return Turned(self.count + other.count, min(known, default=self.first))

    def notices(self) -> list[Notice]:
        """A warning, if there are any."""
        if not self.count:
            return []
        _, image, apart = self.first
        return [
            Notice(
                f"{counted(self.count, 'image')} with an EXIF tag that turns the image but not its label, first "
                f"{as_shown(image)} ({apart}): scores are right only if the labels were drawn on images as they are "
                "shown, upright; else turn the images' pixels or remove the tag",
                warning=True,
            )
        ]


def prepare_image(image: Tensor, protocol: Protocol, side: int) -> Tensor:
    """uint8 (3, H, W), resized and cropped → uint8 (3, h, w)."""
    height, width = image.shape[-2:]
    if not protocol.crop:
        return _resized(image, *working_size(height, width, side), protocol.resize)
    size = _cover(height, width, side)
    return _resized(image, *size, protocol.resize)[:, *_window(size, side)]


def _window(size: Size, side: int) -> tuple[slice, slice]:
    """Rows and columns of the centre square, rounded as by torchvision's CenterCrop."""
    top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return slice(top, top + side), slice(left, left + side)


def _cover(height: int, width: int, side: int) -> Size:
    """The size whose shorter side is `side`, the longer one rounded down as torchvision does."""
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def _resized(image: Tensor, height: int, width: int, resize: str) -> Tensor:
    """uint8 (3, H, W) → (3, height, width); bilinear is antialiased as Pillow's is."""
    if image.shape[-2:] == (height, width):
        return image
    if resize == "nearest":
        pixels = _nearest(image.permute(1, 2, 0).numpy(), height, width)
        return torch.from_numpy(pixels).permute(2, 0, 1)
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def _nearest(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """uint8 (H, W) or (H, W, 3) at another size, by Pillow, since other libraries round ties differently."""
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST))


@dataclass(frozen=True)
class MasksOf:
    """One or more ways to make masks, from the same images."""

    make: MakeMasks
    zoom: int = 1
    """The images' sides have so many times the protocol's size, as some networks read them so."""

    def __call__(
        self, images: Tensor, protocol: Protocol, sizes: Sequence[Size]
    ) -> Sequence[Sequence[Mask]]:
        return self.make(images, protocol, sizes)


def one_by_one(mask_of: Callable[[Tensor, int, int], Mask]) -> MasksOf:
    """Masks that are made of one image alone, from (uint8 image (3, h, w), H, W), whatever the protocol."""

    def masks_of(images: Tensor, protocol: Protocol, sizes: Sequence[Size]) -> list[list[Mask]]:
        pairs = zip(images, sizes, strict=False)
        return [[mask_of(image, *size)] for image, size in pairs]

    return MasksOf(masks_of)


def masks_made_by(segmenter: Segmenter, refinement: Refinement = AS_TRAINED) -> MasksOf:
    """A segmenter's masks under any protocol, refined as its card says unless `refinement` says otherwise.

    Merged clusters are shown as one, as in `Segmenter.mask`.
    """
    how = refinement.settled(segmenter.card.refine)
    learned = (
        read_masks(segmenter, [segmenter.read_out]) if how.plain else refined_masks(segmenter, how)
    )
    grouping = segmenter.grouping

    def masks_of(images: Tensor, protocol: Protocol, sizes: Sequence[Size]) -> list[list[Mask]]:
        return [[grouping[mask] for mask in masks] for masks in learned(images, protocol, sizes)]

    return MasksOf(masks_of, learned.zoom) if segmenter.merged else learned


def read_masks(segmenter: Segmenter, read_outs: Sequence[ReadOut]) -> MasksOf:
    """A mask of each read-out from the same features, under any protocol; for any number of threads."""

    def scores_of(images: Tensor, protocol: Protocol, sizes: Sequence[Size]) -> Scores:
        features = dense_features(segmenter, images, protocol)
        if protocol.upsample == "logits":
            scores = [read_out(features)[: len(sizes)] for read_out in read_outs]
            yield from zip(*scores, strict=True)
            return
        for place, size in enumerate(sizes):
            # One image at a time, since features at full size are large.
            own = features[place : place + 1].float()
            full = F.interpolate(own, size, mode="bilinear")
            yield [read_out(full)[0] for read_out in read_outs]

    return _argmax_masks(segmenter, scores_of)


def refined_masks(segmenter: Segmenter, refinement: Refinement) -> MasksOf:
    """A segmenter's masks with test-time augmentation and edge filter; each pass follows the protocol."""

    zoom = segmenter.network.encoder.zoom

    def scores_of(images: Tensor, protocol: Protocol, sizes: Sequence[Size]) -> Scores:
        def at(size: Size | None, image: Tensor) -> Tensor:
            features = dense_features(segmenter, image, protocol)
            if size is not None:
                features = F.interpolate(features.float(), size, mode="bilinear")
            return segmenter.soft(segmenter.read_out(features))

        if protocol.upsample == "logits":
            count, shown_at = len(sizes), partial(at, None)
            scores = refined(images, shown_at, refinement, count, zoom=zoom, only_largest=True)
            yield from ([each] for each in scores[: len(sizes)])
            return
        for place, size in enumerate(sizes):
            # One image at a time, as in `read_masks`.
            own = images[place : place + 1]
            shown_at = partial(at, size)
            yield [refined(own, shown_at, refinement, zoom=zoom, only_largest=True)[0]]

    return _argmax_masks(segmenter, scores_of)


def _argmax_masks(
    segmenter: Segmenter, scores_of: Callable[[Tensor, Protocol, Sequence[Size]], Scores]
) -> MasksOf:
    """Masks of the clusters with the largest scores."""
    lock = device_lock(segmenter.device)

    def masks_of(images: Tensor, protocol: Protocol, sizes: Sequence[Size]) -> list[list[Mask]]:
        with lock:
            return [
                [upsample_argmax(each, *size).cpu().numpy() for each in scores]
                for scores, size in zip(scores_of(images, protocol, sizes), sizes, strict=True)
            ]

    return MasksOf(masks_of, segmenter.network.encoder.zoom)


def dense_features(segmenter: Segmenter, images: Tensor, protocol: Protocol) -> Tensor:
    """uint8 images (B, 3, H, W) prepared by the protocol → their features (B, C, h, w)."""
    batch = segmenter.normalised(images)
    features = segmenter.features(batch)
    if protocol.flip:
        flipped = segmenter.features(batch.flip(-1)).flip(-1)
        features = 0.5 * (features + flipped)
    return features
