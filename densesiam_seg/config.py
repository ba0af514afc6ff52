"""The settings of a run: one frozen value for training, one for pre-training, their presets and their file.

The command line, the Python API and `config.toml` use the same names.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from densesiam_seg.errors import InputError, UsageError

Preset = Literal["fast", "balanced", "paper"]
PAPER_IMAGES = 10_000
"""From this many images on, with a GPU, the preset is `paper` unless the user names one."""

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class RunConfig:
    """What training and pre-training have in common."""

    seed: int = 0
    # network
    backbone: str = "resnet18"
    weights: str = "auto"
    freeze: bool = False
    channels: int = 128
    # views
    image_size: int = 320
    # optimiser
    epochs: int = 10
    batch_size: int = 256
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.05
    rate_scaling: Literal["batch", "none"] = "batch"
    schedule: Literal["constant", "cosine"] = "constant"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    # pictures
    visualize_every: int = 0
    # machine
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: int = 0
    workers: int = -1
    cache: Literal["auto", "ram", "disk", "none"] = "auto"
    cache_dir: str = "runs/cache"
    max_pixels: int = 89_000_000

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            _check_type(name, hint, getattr(self, name))
        for name, value in asdict(self).items():
            if name.endswith("_weight") or name == "weight_decay":
                _require(value >= 0, name, "not negative", value)
        for name in ("epochs", "batch_size", "max_pixels"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        self._require_range("channels", 1, 4096)
        self._require_range("visualize_every", 0, 1_000_000)
        self._require_range("threads", 0, 1024)
        self._require_range("workers", -1, 1024)
        _require(0 <= self.seed < 2**63, "seed", "0 to 2^63 - 1", self.seed)
        _require(self.learning_rate > 0, "learning_rate", "above 0", self.learning_rate)
        _require(0 <= self.momentum < 1, "momentum", "from 0 to below 1", self.momentum)
        _require(
            32 <= self.image_size <= 4096 and self.image_size % 4 == 0,
            "image_size",
            "a multiple of 4 from 32 to 4096",
            self.image_size,
        )

    def _require_range(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        _require(least <= value <= most, name, f"{least} to {most}", value)

    def rate(self) -> float:
        """The first learning rate: `learning_rate`, times batch / 256 where it scales with the batch."""
        return self.learning_rate * (self.batch_size / 256 if self.rate_scaling == "batch" else 1.0)

    def decay(self, progress: float) -> float:
        """Factor on the learning rate after this share of all steps; predictors keep theirs (SimSiam, section 4.3)."""
        return 0.5 * (1.0 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1.0

    def exact(self) -> bool:
        """Exact mode: plain formulas in float32, whose bits stay the same from one version to the next."""
        return self.precision == "fp32"

    def learns_clusters(self) -> bool:
        """Whether a head learns the K clusters; where none does, k-means of the features finds them at the end."""
        raise NotImplementedError

    def to_toml(self) -> str:
        """The settings as a TOML document that `read_config` reads back."""
        return "".join(f"{name} = {_toml(value)}\n" for name, value in asdict(self).items())


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Every setting that training depends on. The defaults are the paper's recipe (METHOD, sections 1 and 2)."""

    method: Literal["densesiam", "pixsim", "simsiam", "picie", "mdc"] = "densesiam"
    clusters: int = 27
    over_clusters: int = 128
    replay: Literal["epoch", "run"] = "epoch"
    prior: Literal["mixture", "none"] = "none"
    # losses
    prior_weight: float = 1.0
    similarity: Literal["cross-entropy", "cosine"] = "cross-entropy"
    image_weight: float = 0.0
    pixel_weight: float = 1.0
    over_cluster_weight: float = 1.0
    segmentation_weight: float = 1.0
    balance: Literal["inverse", "frequency", "none"] = "inverse"
    region_weight: float = 0.1
    region_start: float = 0.8
    region_stop_gradient: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_range("clusters", 2, 4096)
        self._require_range("over_clusters", 2, 4096)
        _require(
            0 <= self.region_start <= 1, "region_start", "a share from 0 to 1", self.region_start
        )
        late = self.region_weight if self.region_epoch() == 0 else 0.0
        weights = (self.image_weight, self.over_cluster_weight, self.segmentation_weight)
        others = (*weights, late, self.follows_prior())
        _require(
            bool(self.pixel_weight) or any(others),
            "pixel_weight",
            "above 0 where no other loss is on in the first epoch",
            self.pixel_weight,
        )

    def region_epoch(self) -> int:
        """Epochs finished before the region loss starts (8 of 10 in the paper)."""
        return round(self.region_start * self.epochs)

    def round(self, epoch: int) -> int:
        """The round whose views an epoch sees: its own, or the run's only one."""
        return epoch if self.replay == "epoch" else 0

    def keeps_stages(self) -> bool:
        """Whether a frozen backbone sees the same two views of an image in every epoch."""
        return (
            self.freeze
            and self.replay == "run"
            and self.prior == "none"
            and self.method not in ("picie", "mdc")
        )

    def uses_pixels(self) -> bool:
        """Whether any loss is of pixels or regions."""
        return bool(
            self.pixel_weight
            or self.over_cluster_weight
            or self.segmentation_weight
            or self.region_weight
            or self.follows_prior()
        )

    def follows_prior(self) -> bool:
        """Whether the projection learns from a mixture's clusters."""
        return self.prior == "mixture" and bool(self.prior_weight)

    def learns_clusters(self) -> bool:
        return self.method not in ("picie", "mdc") and bool(
            self.pixel_weight or self.segmentation_weight or self.follows_prior()
        )


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """Every setting that pre-training depends on. The defaults are the paper's recipe (METHOD, sections 1 and 4)."""

    image_size: int = 224
    schedule: Literal["constant", "cosine"] = "cosine"
    epochs: int = 100
    features: Literal["fpn", "res5"] = "res5"
    categories: int = 128
    # views: each crop's share of the image's area
    min_scale: float = 0.2
    max_scale: float = 1.0
    # correspondence
    correspondence: Literal[
        "location", "feature-similarity", "pixel-distance", "candidate-regions", "none"
    ] = "location"
    sampling: Literal["regular", "uniform", "biased"] = "regular"
    grid: int = 7
    oversample: int = 3
    importance: float = 0.75
    distance_threshold: float = 0.7
    # losses
    similarity: Literal["cross-entropy", "cosine"] = "cross-entropy"
    image_weight: float = 1.0
    pixel_weight: float = 1.0
    region_weight: float = 0.1
    region_stop_gradient: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_range("categories", 2, 4096)
        self._require_range("grid", 1, 64)
        self._require_range("oversample", 1, 100)
        self._require_range("importance", 0, 1)
        self._require_range("max_scale", 1e-4, 1)
        self._require_range("min_scale", 1e-4, self.max_scale)
        _require(
            self.distance_threshold > 0, "distance_threshold", "above 0", self.distance_threshold
        )
        _require(
            self.features == "fpn" or not self.freeze,
            "freeze",
            "false with the features of res5, which are the backbone's own; give --features fpn",
            self.freeze,
        )
        _require(
            self.sampling == "regular" or self.correspondence == "location",
            "sampling",
            "regular unless the correspondence is location",
            self.sampling,
        )
        _require(
            bool(self.image_weight) or (self.dense() and bool(self.pixel_weight)),
            "image_weight",
            "above 0 where there is no pixel loss",
            self.image_weight,
        )

    def learns_clusters(self) -> bool:
        return self.dense() and bool(self.pixel_weight)

    def dense(self) -> bool:
        """Whether there are dense losses beside SimSiam's of the whole image."""
        return self.correspondence != "none" and bool(self.pixel_weight or self.region_weight)


_PICIE: Mapping[str, Any] = {
    "optimizer": "adam",
    "learning_rate": 1e-4,
    "rate_scaling": "none",
    "weight_decay": 0.0,
    "balance": "none",
    "prior": "none",
}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "densesiam": {},
    "pixsim": {"region_weight": 0.0, "prior": "none"},
    "simsiam": {
        "image_weight": 1.0,
        "pixel_weight": 0.0,
        "over_cluster_weight": 0.0,
        "segmentation_weight": 0.0,
        "region_weight": 0.0,
        "prior": "none",
    },
    "picie": _PICIE,
    "mdc": _PICIE,
}
"""What each `method` changes in a preset: losses switched off, or PiCIE's own optimiser (METHOD, section 3)."""


STEPS: Mapping[str, int] = {"fast": 160, "balanced": 500}
PRIOR_STEPS: Mapping[str, int] = {"fast": 60, "balanced": 100}
"""Learning clusters that are there from the start takes fewer steps than finding them."""
FROM_SCRATCH: Mapping[str, Any] = {
    "prior": "mixture",
    "pixel_weight": 0.0,
    "over_cluster_weight": 0.0,
    "segmentation_weight": 0.0,
    "region_weight": 0.0,
}
"""What the small presets change in the plain method: clusters that are there from the start need none of its losses to
be found, and gain nothing by them (docs/recipe.md has the measurements)."""


def train_preset(
    name: Preset | None,
    images: int,
    *,
    gpu: bool,
    method: str = "densesiam",
    prior: bool = True,
) -> tuple[Preset, TrainConfig]:
    """The named preset for this many images; without a name `paper` for large sets on a GPU, else `balanced`.

    `fast` and `balanced` fit small sets and processors: smaller images, batches of 16, a learning rate that is not
    scaled down by the batch (docs/method.md has the measurement) and as many epochs as make a fixed number of steps.
    They start from a mixture unless `prior` is false. `method` has its own settings on top of it.
    """
    name = name or ("paper" if gpu and images >= PAPER_IMAGES else "balanced")
    own = METHODS.get(method, {})
    if name == "paper":
        return name, TrainConfig(**own)
    prior = prior and own.get("prior") != "none"
    small = _small(name, images, gpu=gpu, steps=(PRIOR_STEPS if prior else STEPS)[name])
    return name, TrainConfig(**{**small, **(FROM_SCRATCH if prior else {}), **own})


def pretrain_preset(
    name: Preset | None, images: int, *, gpu: bool
) -> tuple[Preset, PretrainConfig]:
    """The same for pre-training; the small presets take the decoder's features, which have stride 4 instead of 32."""
    name = name or ("paper" if gpu and images >= PAPER_IMAGES else "balanced")
    if name == "paper":
        return name, PretrainConfig(backbone="resnet50")
    small = _small(name, images, gpu=gpu, steps=STEPS[name])
    return name, PretrainConfig(**small, features="fpn")


def _small(name: Preset, images: int, *, gpu: bool, steps: int) -> dict[str, Any]:
    """What `fast` and `balanced` change in the paper's recipe, for about so many steps."""
    batch_size = min(16, max(images, 1))
    longest, size = (40, 128) if name == "fast" else (60, 320 if gpu else 160)
    epochs = min(max(math.ceil(steps / max(images // batch_size, 1)), 2), longest)
    return {
        "image_size": size,
        "batch_size": batch_size,
        "epochs": epochs,
        "rate_scaling": "none",
    }


Config = TypeVar("Config", bound=RunConfig)


def with_settings(base: Config, settings: Mapping[str, Any]) -> Config:
    """`base` with the named settings changed. Raises UsageError for an unknown name or a value out of range."""
    known = {field.name for field in fields(base)}
    for name in settings:
        if name not in known:
            raise UsageError(
                f"unknown setting {name!r}; the settings are {', '.join(sorted(known))}"
            )
    return replace(base, **settings)


def read_config(path: Path, base: RunConfig | None = None) -> dict[str, Any]:
    """The settings named in a TOML file, checked by name and type against `base` (default: a `TrainConfig`).

    Raises InputError naming the file.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        with_settings(base or TrainConfig(), settings)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give an existing TOML file"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text; give a TOML file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid TOML ({error}); mend the line") from error
    except UsageError as error:
        raise InputError(f"{path}: {error}") from error
    return settings


def _check_type(name: str, hint: Any, value: object) -> None:
    if typing.get_origin(hint) is Literal:
        _require(
            value in typing.get_args(hint),
            name,
            "one of " + ", ".join(typing.get_args(hint)),
            value,
        )
    elif hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        _require(number and abs(value) < 1e300, name, "a number", value)  # type: ignore[arg-type]
    else:
        _require(type(value) is hint, name, f"of type {hint.__name__}", value)
        if isinstance(value, str):
            _require(not _SURROGATE.search(value), name, "text that UTF-8 can hold", value)


def _require(condition: bool, name: str, wanted: str, value: object) -> None:
    if not condition:
        raise UsageError(f"{name} = {value!r}: must be {wanted}")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for one control character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
