"""The public object: a trained model that turns an image into a mask.

Axes: B images, K clusters, A over-clusters, C channels, H W image, h w features.

A model is a directory: `config.json` (what it is), `model.safetensors` (its tensors), `clusters.json` (its clusters).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering.appearance import Surroundings
from densesiam_seg.clustering.kmeans import Centroids, unit_features
from densesiam_seg.clustering.merging import Merges, cut, is_tree
from densesiam_seg.config import RunConfig
from densesiam_seg.errors import InputError, ModelError, NumericError, UsageError
from densesiam_seg.images.decode import load_reduced
from densesiam_seg.images.decoding import Decoding, Notes
from densesiam_seg.images.pixels import as_samples, rgb_planes
from densesiam_seg.inference.model_card import (
    CONFIG,
    TENSORS,
    ModelCard,
    Readout,
    stored_model,
    write_card,
)
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.refinement import refined
from densesiam_seg.inference.upsampling import upsample_argmax
from densesiam_seg.io.devices import autocast, pick_device, pick_precision
from densesiam_seg.io.files import new_folder
from densesiam_seg.io.tensors import layout, read_safetensors, write_safetensors
from densesiam_seg.naming.clusters import (
    CLUSTERS,
    Cluster,
    ClusterFile,
    grouping,
    left,
    name_clusters,
    write_clusters,
)
from densesiam_seg.network.inference_form import inference_form
from densesiam_seg.network.model import DenseSiam, build_network
from densesiam_seg.network.weightless import weightless
from densesiam_seg.pictures.masks import Colour
from densesiam_seg.views.photometric import normalise_

ImageLike = str | Path | Image.Image | NDArray[np.uint8] | Tensor

MAX_ASPECT = 8
"""The longer side of a network input is at most this many times the working size."""
DECODE_FACTOR = 2
"""A file's sides are decoded to at least this many times the working size, as for training."""

ROWS_VALUES = 2**24
"""Features that a read-out takes at once of a large image, 64 MB."""


@dataclass(frozen=True)
class ReadOut:
    """How a segmenter's features become clusters, without the network: small enough to be sent to other processes."""

    card: ModelCard
    clusters: tuple[Cluster, ...]
    centroids: Tensor | None
    merges: Merges | None


NARROW = 32
"""Images of at most so many columns may have a single one in the last stage."""


class _Form:
    """The network as passes need it, made when the first one comes; for segmenters that share their network."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._found: DenseSiam | None = None
        self._made_of: list[tuple[int, int]] = []

    def of(self, segmenter: Segmenter) -> DenseSiam:
        """It, made anew where weights have changed; for several threads at once."""
        network = segmenter.network
        if segmenter.exact or segmenter.device.type != "cpu":
            return network
        with self._lock:
            state = _state(network)
            if self._found is None or state != self._made_of:
                self._found = inference_form(network, segmenter.precision)
                self._made_of = state
            return self._found


def _state(network: DenseSiam) -> list[tuple[int, int]]:
    """Which tensors a network has, and how often each was written to; tensors of inference mode do not count that."""
    return [
        (id(tensor), 0 if tensor.is_inference() else tensor._version)
        for module in network.modules()
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    ]


class Segmenter:
    """A network in inference form. Build it with `Segmenter.load`, or from a network in memory."""

    def __init__(
        self,
        network: DenseSiam,
        card: ModelCard,
        clusters: Sequence[Cluster] | None = None,
        centroids: Tensor | None = None,
        merges: Merges | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
    ) -> None:
        assert (card.readout == "head") == (centroids is None)
        assert (card.readout == "merge") == (merges is not None)
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        self.exact = precision == "fp32"
        """Whether layers are computed one by one, as in training; else `network.inference_form` is."""
        self.network: DenseSiam = network.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._form = _Form()
        self.card = card
        low_high = (card.stretch[0], card.stretch[1]) if card.stretch else None
        self.decoding = Decoding(bands=tuple(card.bands) if card.bands else None, stretch=low_high)
        """How image files are read: as those of the training were."""
        self.clusters = tuple(clusters or name_clusters(card.clusters))
        self.centroids = centroids
        """Of the clusters (K, C), or of the over-clusters (A, C) that are merged into them."""
        self.merges = merges

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", precision: str = "auto") -> Segmenter:
        """Read a model directory, or a run directory that holds one as `model/`.

        Raises ModelError when it is missing, damaged or not a model of this program.
        """
        stored = stored_model(Path(path))
        card, clusters, merged = stored.card, stored.clusters, stored.card.readout == "merge"
        # On the meta device a network has shapes but no memory: a hostile file cannot make it large.
        try:
            with weightless():
                network = DenseSiam(card.architecture)
        except UsageError as error:
            raise ModelError(f"{path}: {error}") from error
        named = {f"network.{name}": value for name, value in network.state_dict().items()}
        expected = dict(layout(named))
        count = sum(len(cluster.members or (0,)) for cluster in clusters)
        if card.readout != "head":
            expected["centroids"] = ((count, network.encoder.width), "float32")
        if merged:
            expected["merges"] = ((count - 1, 2), "int64")
            expected["merges_counts"] = ((count,), "int64")
        tensors = read_safetensors(stored.tensors, expected=expected, mapped=True)
        centroids, merges = tensors.pop("centroids", None), None
        if merged:
            merges = Merges(tensors.pop("merges").numpy(), tensors.pop("merges_counts").numpy())
            if not is_tree(merges.tree) or (merges.counts < 0).any():
                raise ModelError(
                    f"{stored.tensors}: its merges are no tree; fit the read-out again"
                )
        state = {name.removeprefix("network."): value for name, value in tensors.items()}
        network.load_state_dict(state, assign=True)
        if any(buffer.is_meta for buffer in network.buffers()):
            # Buffers that state dicts leave out, such as the positions of timm's Swin, need a network with memory.
            network = build_network(card.architecture, seed=0)
            network.load_state_dict(state, assign=True)
        return cls(network, card, clusters, centroids, merges, device=device, precision=precision)

    def save(self, folder: str | Path) -> Path:
        """Write the model directory, whole or not at all; other files that lie in it stay. Raises OutputError.

        Edits of clusters that were made before cannot be undone there.
        """
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        if self.centroids is not None:
            tensors["centroids"] = self.centroids
        if self.merges is not None:
            tensors["merges"] = torch.from_numpy(self.merges.tree)
            tensors["merges_counts"] = torch.from_numpy(self.merges.counts)
        with new_folder(Path(folder)) as fresh:
            digest = write_safetensors(fresh / TENSORS, tensors)
            write_clusters(fresh / CLUSTERS, ClusterFile(self.clusters))
            write_card(fresh / CONFIG, self.card, digest)
        return Path(folder)

    def new_decoding(self, config: RunConfig | None = None) -> Decoding:
        """How image files are read, with notes of its own; `config` has the limit, the page and other bands, if any."""
        if config is None:
            return replace(self.decoding, notes=Notes())
        bands = config.chosen_bands() or self.decoding.bands
        return Decoding(config.max_pixels, config.chosen_page(), bands, self.decoding.stretch)

    @property
    def fitted(self) -> ReadOut:
        """The read-out, to be sent to a process that has the same network."""
        centroids = None if self.centroids is None else self.centroids.cpu()
        return ReadOut(self.card, self.clusters, centroids, self.merges)

    def fitted_as(self, other: ReadOut) -> Segmenter:
        """The same network with another's read-out."""
        same = copy.copy(self)
        same.card, same.clusters = other.card, other.clusters
        same.centroids, same.merges = other.centroids, other.merges
        return same

    @property
    def readout(self) -> str:
        """How features become clusters, as scores tell it: head, kmeans, or merge of how many over-clusters."""
        if self.merges is None:
            return self.card.readout
        return f"{self.card.readout} of {self.merges.over_clusters}"

    @property
    def shown_side(self) -> int:
        """The shorter side of what the network gets: the image size times the encoder's zoom."""
        return self.card.image_size * self.network.encoder.zoom

    @property
    def left(self) -> list[Cluster]:
        """The clusters that masks show: those that are not merged into another."""
        return left(self.clusters)

    @property
    def merged(self) -> bool:
        """Whether a cluster is merged into another."""
        return not all(cluster.left for cluster in self.clusters)

    @property
    def grouping(self) -> NDArray[np.int64]:
        """The id (K,) under which masks show each cluster."""
        return grouping(self.clusters)

    @property
    def palette(self) -> list[Colour]:
        """Colours by cluster id."""
        return [cluster.colour for cluster in self.clusters]

    def predict(
        self,
        image: ImageLike,
        *,
        decoding: Decoding | None = None,
        refinement: Refinement = AS_TRAINED,
    ) -> NDArray[np.integer]:
        """Mask (H, W) of cluster ids at the image's own size, uint8 (int32 above 255 clusters).

        `image` is as for `read`; by default edges are sharpened as the model's card says. The command `predict` writes
        the same mask of a file up to rounding, as its batches and threads differ. Raises
        ImageError and InputError.
        """
        images, size = self.read(image, decoding=decoding)
        return self.mask(self.scores(images, refinement, only_largest=True)[0], *size)

    def mask(self, scores: Tensor, height: int, width: int) -> NDArray[np.integer]:
        """Scores (K, h, w) of one image → the mask (H, W): the largest cluster, under the id that shows it."""
        mask: NDArray[np.integer] = upsample_argmax(scores, height, width).cpu().numpy()
        if not self.merged:
            return mask
        return np.take(self.grouping.astype(mask.dtype), mask)

    def read(
        self, image: ImageLike, *, decoding: Decoding | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        """An image as the network gets it, uint8 (1, 3, H', W'), and its own size (H, W).

        `image` is a path, a Pillow image, an array (H, W, 3) uint8, or a tensor (3, H, W) uint8. A JPEG file is decoded
        at 1/2, 1/4 or 1/8 size where its sides stay at least `DECODE_FACTOR` times the model's image size, so that
        memory does not grow with it. `decoding` says how a file is read (None: `self.decoding`). Raises ImageError and
        InputError.
        """
        if isinstance(image, str | Path):
            side = DECODE_FACTOR * self.card.image_size
            how = decoding or self.decoding
            pixels, size = load_reduced(image, max(side, self.shown_side), how)
        else:
            pixels = as_pixels(image)
            size = (pixels.shape[-2], pixels.shape[-1])
        working = working_size(*size, self.shown_side)
        if pixels.shape[-2:] != working:
            return F.interpolate(pixels[None], working, mode="bilinear", antialias=True), size
        return pixels[None], size

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) → what `features` and `logits` take, on the model's device."""
        # In place: a large image's copies would each be new memory.
        return normalise_(images.to(self.device).float().div_(255.0))

    def logits(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → scores (B, K, h, w) of the read-out, float32."""
        return self.read_out(self.features(images))

    @torch.inference_mode()
    def scores(
        self,
        images: Tensor,
        refinement: Refinement = AS_TRAINED,
        count: int | None = None,
        *,
        only_largest: bool = False,
    ) -> Tensor:
        """uint8 images (B, 3, H, W) → scores (B, K, h, w) after all passes; where these are plain, `logits`.

        Edges are sharpened in the first `count` images alone. With `only_largest` they are good for a mask and for
        nothing else, and cost less (`refined`).
        """
        how = refinement.settled(self.card.refine)
        if how.plain:
            return self.logits(self.normalised(images))
        return refined(
            images,
            lambda shown: self.soft(self.logits(self.normalised(shown))),
            how,
            count,
            zoom=self.network.encoder.zoom,
            only_largest=only_largest,
        )

    def soft(self, scores: Tensor) -> Tensor:
        """Scores (B, K, h, w) that can be averaged: a head's probabilities, or distances as they are."""
        return scores.softmax(1) if self.centroids is None else scores

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → what `read_out` reads, (B, C, h, w): dense features.

        With a mixture its K log-posteriors follow them; `learned` removes these.
        """
        network, images, precision = self._for_pass(images.to(self.device))
        with autocast(self.device, precision):
            return network.dense(images)

    def _for_pass(self, images: Tensor) -> tuple[DenseSiam, Tensor, torch.dtype]:
        """The network, images as it reads them, and the precision. In its own form a convolution puts channels last.

        Narrow images are read in single precision on a processor: where a convolution with a stride gives a single
        column, oneDNN's kernels of half precision for AMX read what lies behind the maps in memory.
        """
        height, width = images.shape[-2:]
        narrow = width <= NARROW * self.network.encoder.zoom and 4 * width <= height
        if narrow and self.device.type == "cpu":
            network, precision = self.network, torch.float32
        else:
            network, precision = self._form.of(self), self.precision
        if network is self.network:
            images = images.contiguous(memory_format=torch.channels_last)
        return network, images, precision

    @torch.inference_mode()
    def parts(self, images: Tensor, around: Surroundings | None = None) -> tuple[Tensor, ...]:
        """A tile, uint8 (1, 3, H, W) → its local features and log-posteriors, for `joined_logits`."""
        network, shown, precision = self._for_pass(self.normalised(images))
        with autocast(self.device, precision):
            local, logs = network.parts(shown, around)
        return (local,) if logs is None else (local, logs)

    @torch.inference_mode()
    def joined_logits(self, local: Tensor, logs: Tensor | None = None) -> Tensor:
        """The parts of all tiles side by side, (1, C, h, w) → what `logits` would give of the whole image."""
        with autocast(self.device, self.precision):
            dense = self.network.joined(local, logs)
        rows = max(ROWS_VALUES // (dense.shape[1] * dense.shape[-1]), 1)
        return torch.cat([self.read_out(part) for part in torch.split(dense, rows, -2)], -2)

    @torch.inference_mode()
    def gist(self, images: Tensor) -> Tensor | None:
        """What a mixture knows of a whole image, uint8 (1, 3, H, W), for its tiles; None where there is none."""
        if self.network.mixture is None:
            return None
        network, shown, precision = self._for_pass(self.normalised(images))
        with autocast(self.device, precision):
            return network.gist(shown)

    def learned(self, features: Tensor) -> Tensor:
        """The encoder's own channels of `features`."""
        return features[:, : self.network.encoder.width]

    @torch.inference_mode()
    def read_out(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) → cluster scores (B, K, h, w), float32, at any resolution.

        Raises NumericError for scores that are not finite: finite weights may overflow all the same.
        """
        scores = self._scores_of(features)
        if not scores.isfinite().all():
            raise NumericError(
                "the model's scores are not finite: it has diverged; train it with a lower rate"
            )
        return scores

    def _scores_of(self, features: Tensor) -> Tensor:
        if self.centroids is None:
            with autocast(self.device, self.precision):
                scores = self._form.of(self).scores(features)
            return scores.float()
        units = unit_features(self.learned(features))
        weight, bias = Centroids(self.centroids, torch.empty(0)).classifier()
        if self.merges is None:
            return F.conv2d(units, weight.to(self.device), bias.to(self.device))
        # In the order of their clusters, so that each cluster's members are adjacent.
        groups = [cluster.members or () for cluster in self.clusters]
        order = [member for group in groups for member in group]
        fine = F.conv2d(units, weight[order].to(self.device), bias[order].to(self.device))
        parts = torch.split(fine, list(map(len, groups)), 1)
        return torch.stack([scores.amax(1) for scores in parts], 1)

    def with_centroids(self, centroids: Centroids) -> Segmenter:
        """The same encoder read out by the nearest centroid of its L2-normalised features."""
        shares = (centroids.counts / centroids.counts.sum()).tolist()
        return self._read_out_by(name_clusters(len(shares), shares), centroids.centres)

    def with_merges(self, centres: Tensor, merges: Merges, clusters: int) -> Segmenter:
        """The same encoder read out by over-clusters with `centres` (A, C), merged to K `clusters`.

        A pixel belongs to the cluster of its nearest over-cluster. Raises UsageError for more clusters than those.
        """
        if not 1 <= clusters <= merges.over_clusters:
            raise UsageError(
                f"--clusters {clusters}: must be 1 to the {merges.over_clusters} over-clusters that are merged; "
                "raise --over-clusters for more"
            )
        groups = cut(merges.tree, clusters)
        named = name_clusters(clusters, merges.shares(groups), groups)
        return self._read_out_by(named, centres, merges)

    def _read_out_by(
        self, clusters: list[Cluster], centroids: Tensor, merges: Merges | None = None
    ) -> Segmenter:
        readout: Readout = "merge" if merges else "kmeans"
        other = copy.copy(self)
        other.card = replace(self.card, readout=readout, clusters=len(clusters))
        other.clusters, other.centroids, other.merges = tuple(clusters), centroids, merges
        return other

    def with_clusters(self, clusters: int) -> Segmenter:
        """A merge read-out cut at another K; needs no images, gives clusters new names. Raises UsageError."""
        if self.centroids is None or self.merges is None:
            raise UsageError(
                f"--clusters {clusters}: this model's read-out is {self.card.readout}; only a merge has any number"
            )
        return self.with_merges(self.centroids, self.merges, clusters)


def as_pixels(image: Image.Image | NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 (3, H, W) of an image in memory. Raises ImageError and InputError."""
    if isinstance(image, Image.Image) and image.width and image.height:
        return torch.from_numpy(rgb_planes(as_samples(image), "image", Decoding()))
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.dtype == np.uint8:
        # torch warns of arrays that may not be written to.
        image = torch.from_numpy(np.require(image, requirements=["C", "W"])).movedim(-1, 0)
    if not (
        isinstance(image, Tensor)
        and image.dtype == torch.uint8
        and image.ndim == 3
        and image.shape[0] == 3
        and image.numel() > 0
    ):
        raise InputError(
            "predict: an array image must be uint8 of shape (H, W, 3), a tensor uint8 (3, H, W)"
        )
    return image


def working_size(height: int, width: int, side: int) -> tuple[int, int]:
    """H', W' of the network input: the shorter side becomes `side`, and no side exceeds MAX_ASPECT times that."""
    scale = min(side / min(height, width), MAX_ASPECT * side / max(height, width))
    return max(int(height * scale + 1e-6), 1), max(int(width * scale + 1e-6), 1)
