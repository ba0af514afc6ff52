"""The public object: a trained model that turns an image into a mask.

Axes: B images, K clusters, C channels, H W image, h w features.

A model is a directory: `config.json` (what it is), `model.safetensors` (its tensors), `clusters.json` (its clusters).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering import Centroids, unit_features
from densesiam_seg.devices import autocast, pick_device, pick_precision
from densesiam_seg.encoder import BACKBONES
from densesiam_seg.errors import InputError, ModelError
from densesiam_seg.files import make_folder, open_regular, replace_json
from densesiam_seg.images import MAX_PIXELS, load_image
from densesiam_seg.masks import Colour, palette, upsample_argmax
from densesiam_seg.model import Architecture, DenseSiam
from densesiam_seg.pixels import rgb_planes
from densesiam_seg.tensorfiles import layout, read_safetensors, write_safetensors
from densesiam_seg.views import normalise

Readout = Literal["head", "kmeans"]
ImageLike = str | Path | Image.Image | NDArray[np.uint8] | Tensor

FORMAT = 1
LONGEST = 8
"""The longer side of a network input, at most this many times the working size."""
LARGEST_CONFIG = 1 << 20


@dataclass(frozen=True)
class Cluster:
    """One learned cluster: its id in masks, a name (`cluster_00` until named), a colour, its share of the area."""

    id: int
    name: str
    colour: Colour
    share: float | None = None


@dataclass(frozen=True)
class ModelCard:
    """What a model directory's `config.json` says."""

    architecture: Architecture
    image_size: int
    readout: Readout = "head"
    clusters: int = 27
    """Ids the read-out can give; the head's own number unless a k-means read-out has another."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """What is worth knowing of how it was made: preset, epochs, images, version."""


class Segmenter:
    """A network in inference form. Build it with `Segmenter.load`, or from a network in memory."""

    def __init__(
        self,
        network: DenseSiam,
        card: ModelCard,
        clusters: Sequence[Cluster] | None = None,
        centroids: Tensor | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
    ) -> None:
        assert (card.readout == "kmeans") == (centroids is not None)
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        self.network: DenseSiam = network.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.card = card
        self.clusters = tuple(clusters or name_clusters(card.clusters))
        self.centroids = centroids

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", precision: str = "auto") -> Segmenter:
        """Read a model directory, or a run directory that holds one as `model/`.

        Raises ModelError when it is missing, damaged or not a model of this program.
        """
        folder = _model_folder(Path(path))
        card = _read_card(folder / "config.json")
        clusters = _read_clusters(folder / "clusters.json", card.clusters)
        # On the meta device a network has shapes but no memory: a hostile file cannot make it large.
        with torch.device("meta"):
            network = DenseSiam(card.architecture)
        expected = layout(
            {f"network.{name}": value for name, value in network.state_dict().items()}
        )
        if card.readout == "kmeans":
            shape = (card.clusters, network.encoder.width)
            expected = {**expected, "centroids": (shape, torch.float32)}
        tensors = read_safetensors(folder / "model.safetensors", expected=expected)
        centroids = tensors.pop("centroids", None)
        state = {name.removeprefix("network."): value for name, value in tensors.items()}
        network.load_state_dict(state, assign=True)
        return cls(network, card, clusters, centroids, device=device, precision=precision)

    def save(self, folder: str | Path) -> Path:
        """Write the model directory, each file whole or not at all. Raises OutputError."""
        folder = make_folder(Path(folder))
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        if self.centroids is not None:
            tensors["centroids"] = self.centroids
        write_safetensors(folder / "model.safetensors", tensors)
        replace_json(folder / "clusters.json", [asdict(cluster) for cluster in self.clusters])
        replace_json(folder / "config.json", {"format": FORMAT, **asdict(self.card)})
        return folder

    @property
    def palette(self) -> list[Colour]:
        """Colours by cluster id."""
        return [cluster.colour for cluster in self.clusters]

    def predict(self, image: ImageLike, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.integer]:
        """Mask (H, W) of cluster ids at the image's own size, uint8 (int32 above 255 clusters).

        `image` is a path, a Pillow image, an array (H, W, 3) uint8, or a tensor (3, H, W) uint8. Raises ImageError for
        a file that cannot be read.
        """
        pixels = as_pixels(image, max_pixels=max_pixels)
        height, width = pixels.shape[-2:]
        return upsample_argmax(self.logits(self.prepare(pixels))[0], height, width).cpu().numpy()

    def prepare(self, pixels: Tensor) -> Tensor:
        """uint8 (3, H, W) → normalised (1, 3, H', W') whose shorter side is the model's image size."""
        height, width = pixels.shape[-2:]
        size = working_size(height, width, self.card.image_size)
        resized = F.interpolate(pixels[None], size, mode="bilinear", antialias=True)
        return normalise(resized.to(self.device).float().div_(255.0))

    def logits(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → scores (B, K, h, w) of the read-out, float32."""
        return self.read_out(self.features(images))

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → dense features (B, C, h, w)."""
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.precision):
            features: Tensor = self.network.encoder(images)
        return features

    @torch.inference_mode()
    def read_out(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) → cluster scores (B, K, h, w), float32, at any resolution."""
        if self.centroids is None:
            with autocast(self.device, self.precision):
                scores: Tensor = self.network.projector(features)
            logits: Tensor = scores.float()
            return logits
        weight, bias = Centroids(self.centroids, torch.empty(0)).classifier()
        return F.conv2d(unit_features(features), weight.to(self.device), bias.to(self.device))

    def with_centroids(self, centroids: Centroids) -> Segmenter:
        """The same encoder read out by the nearest centroid of its L2-normalised features."""
        count = len(centroids.centres)
        card = replace(self.card, readout="kmeans", clusters=count)
        shares = (centroids.counts / centroids.counts.sum()).tolist()
        named, device = name_clusters(count, shares), str(self.device)
        segmenter = Segmenter(self.network, card, named, centroids.centres, device=device)
        segmenter.precision = self.precision
        return segmenter


def as_pixels(image: ImageLike, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """uint8 (3, H, W) of anything `Segmenter.predict` takes. Raises ImageError or InputError."""
    if isinstance(image, str | Path):
        return load_image(image, max_pixels=max_pixels)
    if isinstance(image, Image.Image) and image.width and image.height:
        return torch.from_numpy(rgb_planes(image, "image"))
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.dtype == np.uint8:
        # torch warns of arrays that may not be written to.
        image = torch.from_numpy(np.require(image, requirements=["C", "W"])).movedim(-1, 0)
    if (
        isinstance(image, Tensor)
        and image.dtype == torch.uint8
        and image.ndim == 3
        and image.shape[0] == 3
        and image.numel() > 0
    ):
        return image
    raise InputError(
        "predict: an array image must be uint8 of shape (H, W, 3), a tensor uint8 (3, H, W)"
    )


def working_size(height: int, width: int, side: int) -> tuple[int, int]:
    """H', W' of the network input: the shorter side becomes `side`, and no side exceeds LONGEST times that."""
    scale = min(side / min(height, width), LONGEST * side / max(height, width))
    return max(int(height * scale + 1e-6), 1), max(int(width * scale + 1e-6), 1)


def name_clusters(count: int, shares: Sequence[float] | None = None) -> list[Cluster]:
    """Clusters as they are before anyone names them."""
    digits = max(len(str(count - 1)), 2)
    return [
        Cluster(index, f"cluster_{index:0{digits}}", colour, shares[index] if shares else None)
        for index, colour in enumerate(palette(count))
    ]


def _model_folder(path: Path) -> Path:
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    if (path / "checkpoints").is_dir():
        raise ModelError(
            f"{path}: this run has not finished; end it with the command that began it and --resume --out {path}"
        )
    raise ModelError(f"{path}: no model here (no config.json); give a run or model directory")


def _read_card(path: Path) -> ModelCard:
    content = _read_json(path)
    refusal = f"{path}: not a model of this program"
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ModelError(
            f"{refusal} (format {FORMAT} is wanted); retrain it or use the version that wrote it"
        )
    try:
        content.pop("format")
        architecture = Architecture(**content.pop("architecture"))
        card = ModelCard(architecture, **content)
        sound = (
            architecture.backbone in BACKBONES
            and architecture.features in ("fpn", "res5")
            and type(architecture.image_head) is bool
            and all(
                type(number) is int and least <= number <= 4096
                for number, least in (
                    (architecture.channels, 1),
                    (architecture.clusters, 1),
                    (architecture.over_clusters, 0),
                    (card.clusters, 1),
                )
            )
            and type(card.image_size) is int
            and 32 <= card.image_size <= 4096
            and card.readout in ("head", "kmeans")
            and (card.readout == "kmeans" or card.clusters == architecture.clusters)
        )
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"{refusal} ({error}); retrain it or use the version that wrote it"
        ) from error
    if not sound:
        raise ModelError(f"{refusal}: a value is out of range; retrain it")
    return card


def _read_clusters(path: Path, count: int) -> list[Cluster]:
    content = _read_json(path)
    try:
        clusters = [Cluster(**{**entry, "colour": tuple(entry["colour"])}) for entry in content]
        sound = [cluster.id for cluster in clusters] == list(range(count)) and all(
            len(cluster.colour) == 3
            and all(type(value) is int and 0 <= value <= 255 for value in cluster.colour)
            for cluster in clusters
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not a list of clusters ({error}); mend or retrain") from error
    if not sound:
        raise ModelError(
            f"{path}: must list the clusters 0 to {count - 1} with RGB colours; mend it"
        )
    return clusters


def _read_json(path: Path) -> Any:
    try:
        with open_regular(path) as file:
            text = file.read(LARGEST_CONFIG + 1)
        if len(text) > LARGEST_CONFIG:
            raise ModelError(f"{path}: larger than any real one; give a model of this program")
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: cannot be read as JSON ({error}); give a sound model directory"
        ) from error
