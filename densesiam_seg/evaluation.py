"""Segmenter + labelled data → scores, under one of the field's three protocols.

Axes: B images, C channels, h w features, N classes, K clusters, H W label size, R the protocol's side.

Numbers are comparable only within a protocol (METHOD, section 5), so every result names its own in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.batches import ahead
from densesiam_seg.datasets import Dataset, Sample, Samples, load_dataset, read_label, samples
from densesiam_seg.devices import available_cores
from densesiam_seg.errors import ImageError, InputError, UsageError
from densesiam_seg.images import load_image
from densesiam_seg.masks import upsample_argmax
from densesiam_seg.metrics import Matching, Scores, confusion, match, score
from densesiam_seg.segmenter import Segmenter, working_size
from densesiam_seg.views import normalise

Mask = NDArray[np.integer]


@dataclass(frozen=True)
class Protocol:
    """How images meet labels. `crop`: a centre square of the shorter side, else the whole image."""

    name: Literal["picie", "stego", "full-image"]
    resize: Literal["bilinear", "nearest"]
    crop: bool
    upsample: Literal["logits", "features"]
    flip: bool

    def describe(self, side: int) -> str:
        """One line that fixes the number: sizes, filters, crop, what is upsampled, flip, no CRF."""
        crop = f"centre crop {side}" if self.crop else "no crop, scored at the label's size"
        flip = "mean of the flipped image's features" if self.flip else "no flip"
        return f"{self.name}: shorter side {side} ({self.resize}), {crop}, {self.upsample} upsampled, {flip}, no CRF"


PROTOCOLS = {
    "picie": Protocol("picie", "bilinear", True, "logits", False),
    "stego": Protocol("stego", "nearest", True, "features", True),
    "full-image": Protocol("full-image", "bilinear", False, "logits", False),
}


def pick_protocol(name: str) -> Protocol:
    """The protocol of that name. Raises UsageError."""
    if name not in PROTOCOLS:
        raise UsageError(f"--protocol {name}: give one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


Masker = Callable[[Tensor, Protocol, int, int], Mask]
"""(uint8 image (3, h, w) as the protocol shows it, protocol, H, W) → cluster ids (H, W)."""
ReadOut = Callable[[Tensor], Tensor]
"""Features (B, C, h, w) → cluster scores (B, K, h, w), at any resolution."""


@dataclass(frozen=True)
class Reading:
    """What the ids of a mask mean: how many there are, who gave them, and their classes where those are known."""

    clusters: int
    readout: str
    matching: Matching | None = None
    """None: the best one for the whole set (`metrics.match`)."""


@dataclass(frozen=True)
class Benchmark:
    """What models are scored on; complete before any of them is loaded."""

    dataset: Dataset
    found: Samples
    protocol: Protocol
    image_size: int | None
    """None: the model's own."""
    allow_missing: bool


@dataclass(frozen=True)
class Evaluation:
    """A score with everything that fixes it."""

    dataset: str
    split: str
    protocol: str
    images: int
    expected: int | None
    missing: tuple[str, ...]
    digest: str
    clusters: int
    readout: str
    matching: Matching
    scores: Scores
    counts: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "counts": self.counts.tolist()}


@dataclass(frozen=True)
class Scoring:
    """Images scored so far."""

    done: int
    total: int


def evaluate(
    dataset: str | Path,
    root: str | Path,
    model: str | Path | Segmenter,
    *,
    split: str | None = None,
    protocol: str | None = None,
    image_size: int | None = None,
    list_file: str | Path | None = None,
    allow_missing: bool = False,
    device: str = "auto",
) -> Evaluation:
    """Score a model on a labelled dataset: a built-in name or a TOML file, and the folder `root` that holds it."""
    task = benchmark(
        dataset,
        root,
        split,
        protocol=protocol,
        image_size=image_size,
        list_file=list_file,
        allow_missing=allow_missing,
    )
    segmenter = model if isinstance(model, Segmenter) else Segmenter.load(model, device=device)
    *_, result = segmenter_events(segmenter, task)
    assert isinstance(result, Evaluation)
    return result


def benchmark(
    dataset: str | Path,
    root: str | Path,
    split: str | None = None,
    *,
    protocol: str | None = None,
    image_size: int | None = None,
    list_file: str | Path | None = None,
    allow_missing: bool = False,
) -> Benchmark:
    """A split of a labelled dataset under a protocol (None: the dataset's own). Raises UsageError or InputError."""
    declared = load_dataset(dataset)
    chosen = pick_protocol(declared.protocol if protocol is None else protocol)
    if image_size is not None and not 32 <= image_size <= 4096:
        raise UsageError(f"--image-size {image_size}: must be 32 to 4096")
    found = samples(declared, root, split, list_file=list_file, allow_missing=allow_missing)
    return Benchmark(declared, found, chosen, image_size, allow_missing)


def segmenter_events(segmenter: Segmenter, task: Benchmark) -> Iterator[Scoring | Evaluation]:
    """Score a segmenter as it is read out; the last event is the `Evaluation`."""
    return evaluation_events(
        task.dataset,
        task.found,
        segmenter_masks(segmenter),
        clusters=segmenter.card.clusters,
        readout=segmenter.card.readout,
        protocol=task.protocol,
        side=task.image_size or segmenter.card.image_size,
        allow_missing=task.allow_missing,
    )


def evaluation_events(
    dataset: Dataset,
    found: Samples,
    mask_of: Masker,
    *,
    clusters: int,
    readout: str,
    protocol: Protocol,
    side: int,
    allow_missing: bool = False,
    matching: Matching | None = None,
) -> Iterator[Scoring | Evaluation]:
    """Score masks over a set: one confusion matrix, one matching; the last event is the `Evaluation`.

    `matching` None is the best one for the whole set. Raises as `scoring_events` does.
    """

    def masks_of(image: Tensor, protocol: Protocol, height: int, width: int) -> list[Mask]:
        return [mask_of(image, protocol, height, width)]

    return scoring_events(
        dataset,
        found,
        masks_of,
        [Reading(clusters, readout, matching)],
        protocol=protocol,
        side=side,
        allow_missing=allow_missing,
    )


def scoring_events(
    dataset: Dataset,
    found: Samples,
    masks_of: Callable[[Tensor, Protocol, int, int], Sequence[Mask]],
    readings: Sequence[Reading],
    *,
    protocol: Protocol,
    side: int,
    allow_missing: bool = False,
) -> Iterator[Scoring | Evaluation]:
    """Score several masks of each image in one pass; the last events are an `Evaluation` for each of `readings`.

    Raises ImageError for an image that cannot be read (counted as missing with `allow_missing`) and InputError for a
    label that does not fit its image or its dataset.
    """

    def load(sample: Sample) -> tuple[Tensor, NDArray[np.uint8]] | ImageError:
        try:
            return shown(sample, dataset, protocol, side)
        except ImageError as error:
            return error

    classes = len(dataset.classes)
    counts = [np.zeros((classes, reading.clusters), np.int64) for reading in readings]
    unreadable: list[str] = []
    for done, (sample, pair) in enumerate(
        zip(found.items, ahead(load, found.items, available_cores()), strict=True), 1
    ):
        if isinstance(pair, ImageError):
            if not allow_missing or pair.path == str(sample.label):
                raise pair
            unreadable.append(sample.name)
        else:
            image, label = pair
            masks = masks_of(image, protocol, *label.shape)
            for total, mask in zip(counts, masks, strict=True):
                total += confusion(label, mask, *total.shape)
        yield Scoring(done, len(found))
    for reading, total in zip(readings, counts, strict=True):
        matching = reading.matching or match(total)
        yield Evaluation(
            dataset=dataset.title,
            split=found.split,
            protocol=protocol.describe(side),
            images=len(found) - len(unreadable),
            expected=found.expected,
            missing=(*found.missing, *unreadable),
            digest=found.digest,
            clusters=reading.clusters,
            readout=reading.readout,
            matching=matching,
            scores=score(total, matching, dataset.names, dataset.kinds),
            counts=total,
        )


def known_classes(classes: int) -> Matching:
    """The matching of masks whose ids are class ids already."""
    return Matching(tuple(range(classes)), "identity")


def shown(
    sample: Sample, dataset: Dataset, protocol: Protocol, side: int
) -> tuple[Tensor, NDArray[np.uint8]]:
    """Image and label as a protocol shows them: uint8 (3, h, w), and class ids (H, W) with 255 ignored."""
    image = load_image(sample.image)
    label = read_label(dataset, sample.label)
    height, width = image.shape[-2:]
    if label.shape != (height, width):
        raise InputError(
            f"{sample.label}: is {label.shape[1]}x{label.shape[0]} but its image is {width}x{height}; "
            "give labels of the images' own size"
        )
    if not protocol.crop:
        return _resized(image, *working_size(height, width, side), protocol.resize), label
    size = _cover(height, width, side)
    top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)
    window = (slice(top, top + side), slice(left, left + side))
    small = _resized(image, *size, protocol.resize)[:, *window]
    return small, _nearest(label, *size)[window]


def _cover(height: int, width: int, side: int) -> tuple[int, int]:
    """The size whose shorter side is `side`, the longer one rounded down as torchvision does."""
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def _resized(image: Tensor, height: int, width: int, filter_: str) -> Tensor:
    """uint8 (3, H, W) → (3, height, width); bilinear is antialiased as Pillow's is."""
    if filter_ == "nearest":
        pixels = _nearest(image.permute(1, 2, 0).numpy(), height, width)
        return torch.from_numpy(pixels).permute(2, 0, 1)
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def _nearest(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """uint8 (H, W) or (H, W, 3) at another size, by Pillow: where a centre falls between two pixels, which is common
    at the protocols' sizes, other implementations take the other one."""
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST))


def segmenter_masks(segmenter: Segmenter) -> Masker:
    """A segmenter's masks under any protocol."""
    masks_of = read_masks(segmenter, [segmenter.read_out])

    def mask_of(image: Tensor, protocol: Protocol, height: int, width: int) -> Mask:
        return masks_of(image, protocol, height, width)[0]

    return mask_of


def read_masks(
    segmenter: Segmenter, read_outs: Sequence[ReadOut]
) -> Callable[[Tensor, Protocol, int, int], list[Mask]]:
    """Makes a mask of each read-out from the same features, under any protocol."""

    def masks_of(image: Tensor, protocol: Protocol, height: int, width: int) -> list[Mask]:
        features = dense_features(segmenter, image[None], protocol)
        if protocol.upsample == "features":
            features = F.interpolate(features.float(), (height, width), mode="bilinear")
        scores = (read_out(features)[0] for read_out in read_outs)
        return [upsample_argmax(each, height, width).cpu().numpy() for each in scores]

    return masks_of


def dense_features(segmenter: Segmenter, images: Tensor, protocol: Protocol) -> Tensor:
    """uint8 images (B, 3, H, W) as the protocol shows them → their features (B, C, h, w)."""
    batch = normalise(images.to(segmenter.device).float().div_(255.0))
    features = segmenter.features(batch)
    if protocol.flip:
        flipped = segmenter.features(batch.flip(-1)).flip(-1)
        features = 0.5 * (features + flipped)
    return features
