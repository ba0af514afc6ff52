"""The settings of a training run: one frozen value, its presets and its file.

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
from typing import Any, Literal

from densesiam_seg.errors import InputError, UsageError

Preset = Literal["fast", "balanced", "paper"]
PAPER_IMAGES = 10_000
"""From this many images on, with a GPU, the preset is `paper` unless the user names one."""

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class TrainConfig:
    """Every setting that training depends on. The defaults are the paper's recipe (METHOD, sections 1 and 2)."""

    seed: int = 0
    # network
    backbone: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    weights: str = "auto"
    channels: int = 128
    clusters: int = 27
    over_clusters: int = 128
    # views
    image_size: int = 320
    replay: Literal["epoch", "run"] = "epoch"
    # losses
    similarity: Literal["cross-entropy", "cosine"] = "cross-entropy"
    pixel_weight: float = 1.0
    over_cluster_weight: float = 1.0
    segmentation_weight: float = 1.0
    balance: Literal["inverse", "frequency", "none"] = "inverse"
    region_weight: float = 0.1
    region_start: float = 0.8
    region_stop_gradient: bool = True
    # optimiser
    epochs: int = 10
    batch_size: int = 256
    learning_rate: float = 0.05
    rate_scaling: Literal["batch", "none"] = "batch"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    # machine
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: int = 0
    workers: int = -1
    max_pixels: int = 89_000_000

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(TrainConfig).items():
            _check_type(name, hint, getattr(self, name))
        for name in ("epochs", "batch_size", "max_pixels"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name, least, most in (
            ("channels", 1, 4096),
            ("clusters", 2, 4096),
            ("over_clusters", 2, 4096),
            ("threads", 0, 1024),
            ("workers", -1, 1024),
        ):
            value = getattr(self, name)
            _require(least <= value <= most, name, f"{least} to {most}", value)
        for name in (
            "pixel_weight",
            "over_cluster_weight",
            "segmentation_weight",
            "region_weight",
            "weight_decay",
        ):
            _require(getattr(self, name) >= 0, name, "not negative", getattr(self, name))
        _require(0 <= self.seed < 2**63, "seed", "0 to 2^63 - 1", self.seed)
        _require(self.learning_rate > 0, "learning_rate", "above 0", self.learning_rate)
        _require(0 <= self.momentum < 1, "momentum", "from 0 to below 1", self.momentum)
        _require(
            0 <= self.region_start <= 1, "region_start", "a share from 0 to 1", self.region_start
        )
        _require(
            32 <= self.image_size <= 4096 and self.image_size % 4 == 0,
            "image_size",
            "a multiple of 4 from 32 to 4096",
            self.image_size,
        )

    def region_epoch(self) -> int:
        """Epochs finished before the region loss starts (8 of 10 in the paper)."""
        return round(self.region_start * self.epochs)

    def rate(self) -> float:
        """SGD's learning rate: `learning_rate`, times batch / 256 where it scales with the batch."""
        return self.learning_rate * (self.batch_size / 256 if self.rate_scaling == "batch" else 1.0)

    def to_toml(self) -> str:
        """The settings as a TOML document that `read_config` reads back."""
        return "".join(f"{name} = {_toml(value)}\n" for name, value in asdict(self).items())


def preset(name: Preset | None, images: int, *, gpu: bool) -> tuple[Preset, TrainConfig]:
    """The named preset for this many images; without a name `paper` for large sets on a GPU, else `balanced`.

    `fast` and `balanced` fit small sets and processors: smaller images, batches of 16, a learning rate that is not
    scaled down by the batch (docs/method.md has the measurement) and as many epochs as make a fixed number of steps.
    """
    if name is None:
        name = "paper" if gpu and images >= PAPER_IMAGES else "balanced"
    if name == "paper":
        return name, TrainConfig()
    batch_size = min(16, max(images, 1))
    steps, longest, size = (160, 40, 128) if name == "fast" else (500, 60, 320 if gpu else 160)
    epochs = min(max(math.ceil(steps / max(images // batch_size, 1)), 2), longest)
    return name, TrainConfig(
        image_size=size, batch_size=batch_size, epochs=epochs, rate_scaling="none"
    )


def with_settings(base: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """`base` with the named settings changed. Raises UsageError for an unknown name or a value out of range."""
    known = {field.name for field in fields(TrainConfig)}
    for name in settings:
        if name not in known:
            raise UsageError(
                f"unknown setting {name!r}; the settings are {', '.join(sorted(known))}"
            )
    return replace(base, **settings)


def read_config(path: Path) -> dict[str, Any]:
    """The settings named in a TOML file, checked by name and type. Raises InputError naming the file."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        with_settings(TrainConfig(), settings)
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
