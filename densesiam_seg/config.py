"""The settings of a run: each is declared once, with its help, range and panel.

The command line, the Python API, `config.toml` and docs/settings.md take names, defaults and checks from here.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from densesiam_seg.backbones import require_plausible
from densesiam_seg.errors import InputError, UsageError, looked_for

RECIPE = "Recipe"
METHOD = "Method (defaults of --preset paper)"
MACHINE = "Machine"
FILES = "Input and output"

Value = TypeVar("Value")
FINE_CLUSTERS = 54
"""Clusters that are learned where their number is to be found (docs/clusters.md)."""
_BAND = r"\s*0*[1-9]\d{0,4}\s*"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Setting:
    """What is known of a setting beside its name, type and default."""

    help: str
    panel: str
    least: float | None = None
    most: float | None = None
    short: str | None = None
    """A second option such as -k."""
    common: bool = False
    """Whether `--help` shows it; `--help-all` shows all."""
    auto: Mapping[str, Any] | None = None
    """The settings that the word `auto` stands for; empty: the same as to leave it out. None: no such word."""

    def range(self) -> str:
        """Its bounds in words, empty where there are none."""
        match self.least, self.most:
            case None, None:
                return ""
            case least, None:
                return f"at least {least}"
            case least, most:
                return f"{least} to {most}"


def largest_image_size(features: str) -> int:
    """Of views, in pixels: stages are read at up to three times that, and memory grows with its square."""
    return 1364 if features == "stages" else 4096


def setting(default: Value, help: str, panel: str, **more: Any) -> Value:
    """A field of a config with all that is known of it; `more` are fields of `Setting`."""
    metadata = {"setting": Setting(help, panel, **more)}
    found: Value = field(default=default, metadata=metadata)
    return found


def _again(config: type[RunConfig], name: str, default: Value) -> Value:
    """A setting of the class above with another default."""
    declared = config.__dataclass_fields__[name]
    found: Value = field(default=default, metadata=declared.metadata)
    return found


@dataclass(frozen=True)
class RunConfig:
    """What training and pre-training have in common."""

    epochs: int = setting(
        10,
        "Passes over the images; 0: only what training starts from.",
        RECIPE,
        least=0,
        common=True,
    )
    batch_size: int = setting(
        256, "Images per step.", RECIPE, least=1, short="-b", common=True, auto={}
    )
    image_size: int = setting(
        320,
        "Side of a view in pixels, a multiple of 4.",
        RECIPE,
        least=32,
        most=4096,
        common=True,
    )
    learning_rate: float = setting(0.05, "Initial learning rate.", RECIPE)
    weights: str = setting(
        "auto",
        "Initial weights of the backbone: packaged (ImageNet's, installed with this program), imagenet (cached or "
        "fetched), auto (the first of them that there are, else none), none, a .safetensors or .pth file, or a run.",
        RECIPE,
        common=True,
    )
    backbone: str = setting(
        "resnet18",
        "A model of torchvision (resnet18 …, convnext_tiny …, swin_t …) or of timm as timm:NAME.",
        RECIPE,
        common=True,
    )
    freeze: bool = setting(
        False, "Keep the backbone's weights; train the decoder and the heads.", RECIPE, common=True
    )
    seed: int = setting(
        0, "Seed of every random choice.", RECIPE, least=0, most=2**63 - 1, common=True
    )
    channels: int = setting(
        128, "Channels C of the decoder's features.", METHOD, least=1, most=4096
    )
    optimizer: Literal["sgd", "adam"] = setting("sgd", "Optimiser.", METHOD)
    schedule: Literal["constant", "cosine"] = setting(
        "constant",
        "Learning rate over time; with cosine that of the predictors stays constant.",
        METHOD,
    )
    rate_scaling: Literal["batch", "none"] = setting(
        "batch", "batch: learning rate times batch / 256. none: as given.", METHOD
    )
    weight_decay: float = setting(1e-4, "Weight decay.", METHOD, least=0)
    visualize_every: int = setting(
        0,
        "Draw a picture of the clusters every so many epochs; 0: never.",
        MACHINE,
        least=0,
        most=1_000_000,
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps.", MACHINE, common=True)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto",
        "Precision of the network. fp32: the same bits from one version to the next, but slower.",
        MACHINE,
    )
    compile: bool = setting(
        True,
        "On a GPU compile heads, losses and colour changes where that pays: in one process, not with --precision fp32, "
        "for 200,000 images or more in all epochs.",
        MACHINE,
    )
    workers: int = setting(
        -1,
        "Threads, beside a GPU processes, that decode images; -1 or auto: one per core.",
        MACHINE,
        least=-1,
        most=1024,
        short="-j",
        auto={},
    )
    threads: int = setting(
        0, "Processor threads of the network; 0: all cores.", MACHINE, least=0, most=1024
    )
    cache: Literal["auto", "ram", "disk", "none"] = setting(
        "auto",
        "Where decoded images are kept: ram, disk (for later runs too), none (decoded every epoch).",
        MACHINE,
    )
    cache_dir: str = setting("runs/cache", "Folder of decoded images on the disk.", MACHINE)
    max_pixels: int = setting(89_000_000, "Refuse images with more pixels.", MACHINE, least=1)
    page: str = setting(
        "first", "Page or frame of files that have several: first, a number from 1, or all.", FILES
    )
    bands: str = setting(
        "first",
        "Bands that become red, green and blue, such as 4,3,2; one for grey; first: 1,2,3.",
        FILES,
    )
    stretch: bool = setting(
        False,
        "Spread the values that the images use (from their 1st to their 99th percentile) over 0 to 255; the model "
        "keeps the range. For images that come out dark.",
        FILES,
    )

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            require_valid(type(self), name, value)
        _require(self.learning_rate > 0, "learning_rate", "above 0", self.learning_rate)
        _require(self.image_size % 4 == 0, "image_size", "a multiple of 4", self.image_size)
        numbered = re.fullmatch(r"first|all|0*[1-9]\d{0,5}", self.page)
        _require(numbered is not None, "page", "first, all or a number from 1", self.page)
        bands = re.fullmatch(rf"first|{_BAND}(,{_BAND},{_BAND})?", self.bands)
        _require(bands is not None, "bands", "first, or one or three numbers from 1", self.bands)

    def rate(self) -> float:
        """The first learning rate: `learning_rate`, times batch / 256 where it scales with the batch."""
        return self.learning_rate * (self.batch_size / 256 if self.rate_scaling == "batch" else 1.0)

    def decay(self, progress: float) -> float:
        """Factor on the learning rate after this share of all steps; predictors keep theirs (SimSiam, section 4.3)."""
        return 0.5 * (1.0 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1.0

    def chosen_page(self) -> int | None:
        """The page that is taken of every file; None for the first, and where each page is an image."""
        return int(self.page) if self.page.isdecimal() else None

    def chosen_bands(self) -> tuple[int, ...] | None:
        """The bands that are shown, from 1; None for the first."""
        return None if self.bands == "first" else tuple(map(int, self.bands.split(",")))

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
    """Every setting that training depends on. The defaults are the paper's recipe (DenseSiam, section 4)."""

    clusters: int = setting(
        27,
        f"Clusters K to learn. auto: {FINE_CLUSTERS}, of which as many are shown as are recommended without labels.",
        RECIPE,
        least=2,
        most=4096,
        short="-k",
        common=True,
        auto={"clusters": FINE_CLUSTERS, "choose_clusters": True},
    )
    choose_clusters: bool = setting(
        False,
        "After training merge the clusters to as many as `clusters suggest` recommends; `clusters undo` shows all.",
        RECIPE,
    )
    method: Literal["densesiam", "pixsim", "simsiam", "picie", "mdc"] = setting(
        "densesiam",
        "pixsim is DenseSiam without regions, simsiam learns from whole images alone; picie and mdc are baselines.",
        RECIPE,
    )
    over_clusters: int = setting(128, "Over-clusters A.", METHOD, least=2, most=4096)
    replay: Literal["epoch", "run"] = setting(
        "epoch", "Draw new views every epoch, or once for the run.", METHOD
    )
    features: Literal["fpn", "stages"] = setting(
        "fpn",
        "fpn: a decoder's, learned from random weights. stages: those of a frozen pre-trained backbone as they are (in "
        "the presets fast and balanced where weights are loaded).",
        RECIPE,
    )
    prior: Literal["mixture", "none"] = setting(
        "none",
        "mixture: start from clusters of colour, texture and position, with features of stages of the more stable "
        "of both, and read out with them (in the presets fast and balanced). none: DenseSiam as published.",
        METHOD,
    )
    similarity: Literal["cross-entropy", "cosine"] = setting(
        "cross-entropy", "Similarity of prediction and target in the pixel losses.", METHOD
    )
    image_weight: float = setting(0.0, "Weight of SimSiam's loss of whole images.", METHOD, least=0)
    pixel_weight: float = setting(1.0, "Factor on the pixel loss.", METHOD, least=0)
    over_cluster_weight: float = setting(
        1.0, "Factor on the over-clustering loss.", METHOD, least=0
    )
    segmentation_weight: float = setting(1.0, "Weight of the pseudo-label loss.", METHOD, least=0)
    balance: Literal["inverse", "frequency", "none"] = setting(
        "inverse",
        "Weights of the pseudo-labels: inverse re-balances, frequency is the released code's.",
        METHOD,
    )
    region_weight: float = setting(0.1, "Weight of the region loss.", METHOD, least=0)
    region_start: float = setting(
        0.8, "Share of the epochs before the region loss starts.", METHOD, least=0, most=1
    )
    region_stop_gradient: bool = setting(
        True, "Stop the gradient at region targets (the paper does, its code does not).", METHOD
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        largest = largest_image_size(self.features)
        _require(
            self.image_size <= largest,
            "image_size",
            f"at most {largest} with the features of stages, which are read at up to three times the size",
            self.image_size,
        )
        _require(
            self.features == "fpn"
            or (self.freeze and self.prior == "mixture" and self.method == "densesiam"),
            "features",
            "fpn unless the method is densesiam, prior is mixture and the backbone is frozen",
            self.features,
        )
        late = self.region_weight if self.region_epoch() == 0 else 0.0
        weights = (self.image_weight, self.over_cluster_weight, self.segmentation_weight)
        _require(
            bool(self.pixel_weight) or any((*weights, late, self.follows_prior())),
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

    def clusters_features(self) -> bool:
        """Whether the method clusters dense features before every epoch, as PiCIE and MDC do."""
        return self.method in ("picie", "mdc")

    def keeps_stages(self) -> bool:
        """Whether a frozen backbone sees the same two views of an image in every epoch."""
        plain = self.prior == "none" and not self.clusters_features()
        return self.freeze and self.replay == "run" and plain

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
        return self.prior == "mixture"

    def learns_clusters(self) -> bool:
        learned = self.pixel_weight or self.segmentation_weight or self.follows_prior()
        return bool(learned) and not self.clusters_features()


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """Every setting that pre-training depends on. The defaults are the paper's recipe (DenseSiam, section 4)."""

    image_size: int = _again(RunConfig, "image_size", 224)
    schedule: Literal["constant", "cosine"] = _again(RunConfig, "schedule", "cosine")
    epochs: int = _again(RunConfig, "epochs", 100)
    features: Literal["fpn", "res5"] = setting(
        "res5", "Dense features: fpn has stride 4, res5 stride 32.", RECIPE, common=True
    )
    categories: int = setting(128, "Pseudo categories K of the pixels.", METHOD, least=2, most=4096)
    correspondence: Literal[
        "location", "feature-similarity", "pixel-distance", "candidate-regions", "none"
    ] = setting("location", "Which places of two views belong together.", METHOD)
    sampling: Literal["regular", "uniform", "biased"] = setting(
        "regular", "Where places lie in the views' overlap.", METHOD
    )
    grid: int = setting(7, "Side of the grid of places.", METHOD, least=1, most=64)
    oversample: int = setting(
        3, "Biased sampling's k: candidates per place.", METHOD, least=1, most=100
    )
    importance: float = setting(
        0.75, "Biased sampling's β: share of the most dissimilar places.", METHOD, least=0, most=1
    )
    similarity: Literal["cross-entropy", "cosine"] = _again(
        TrainConfig, "similarity", "cross-entropy"
    )
    image_weight: float = _again(TrainConfig, "image_weight", 1.0)
    pixel_weight: float = _again(TrainConfig, "pixel_weight", 1.0)
    region_weight: float = _again(TrainConfig, "region_weight", 0.1)
    region_stop_gradient: bool = _again(TrainConfig, "region_stop_gradient", True)

    def __post_init__(self) -> None:
        super().__post_init__()
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


Config = TypeVar("Config", bound=RunConfig)


def settings_of(config: type[RunConfig]) -> Iterator[tuple[str, Setting]]:
    """Name and declaration of every setting, in the order of declaration."""
    for each in fields(config):
        yield each.name, each.metadata["setting"]


def require_valid(config: type[RunConfig], name: str, value: Any) -> None:
    """Refuse a value of another type or out of its setting's range. Raises UsageError."""
    _check_type(name, _hints(config)[name], value)  # type: ignore[arg-type]  # a class can be hashed
    declared: Setting = config.__dataclass_fields__[name].metadata["setting"]
    least, most = declared.least, declared.most
    inside = (least is None or value >= least) and (most is None or value <= most)
    _require(inside, name, declared.range(), value)
    if name == "backbone":
        require_plausible(value)


@cache
def _hints(config: Any) -> dict[str, Any]:
    return get_type_hints(config)


def with_settings(base: Config, settings: Mapping[str, Any]) -> Config:
    """`base` with the named settings changed. Raises UsageError for an unknown name or a value out of range."""
    known = {each.name for each in fields(base)}
    settings = spelled_out(type(base), settings)
    for name in settings:
        if name not in known:
            raise UsageError(
                f"unknown setting {name!r}; the settings are {', '.join(sorted(known))}"
            )
    return replace(base, **settings)


def spelled_out(config: type[RunConfig], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with what it stands for in place of each `auto`, and what is said beside it on top."""
    declared = dict(settings_of(config))
    meant = {
        name: declared[name].auto
        for name, value in settings.items()
        if value == "auto" and name in declared
    }
    found = {name: value for name, value in settings.items() if meant.get(name) is None}
    for meaning in meant.values():
        found = {**(meaning or {}), **found}
    return found


def read_config(path: Path, base: RunConfig | None = None) -> dict[str, Any]:
    """The settings named in a TOML file, checked by name and type against `base` (default: a `TrainConfig`).

    Raises InputError naming the file.
    """
    try:
        with path.open("rb") as file:
            settings = parse_toml(file.read(MAX_TOML + 1))
        with_settings(base or TrainConfig(), settings)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}{looked_for(path)}); give an existing TOML file"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    except UsageError as error:
        raise InputError(f"{path}: {error}") from error
    return settings


MAX_TOML = 1 << 18
"""Bytes of a TOML file; Python's reader takes time that grows faster than the file."""


def parse_toml(content: bytes) -> dict[str, Any]:
    """A TOML file's table; a byte order mark, as Windows' editors write it, is passed over.

    Raises ValueError with what is wrong and the remedy, in one line.
    """
    if len(content) > MAX_TOML:
        raise ValueError(f"larger than {MAX_TOML} bytes, so no file of settings; give another one")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:4]:
        raise ValueError('not valid TOML: text in UTF-16 (Notepad\'s "Unicode"); save it as UTF-8')
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"not valid TOML: line {line} is not UTF-8 text; save the file as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        detail = " ".join(str(error).split())
        raise ValueError(f"not valid TOML ({detail}); mend the file") from error


def settings_table() -> str:
    """docs/settings.md: every setting with its defaults in `train` and `pretrain`, as Markdown."""
    lines = [
        "# Settings",
        "",
        "Made by `make docs` from `densesiam_seg/config.py`. A setting has one name everywhere: `--image-size` on the "
        "command line",
        "is `image_size` in Python and in `--config FILE.toml`. Defaults are the paper's recipe (`--preset paper`); "
        "`fast` and",
        "`balanced` change some of them for small sets (`densesiam_seg/presets.py`).",
        "",
        "| setting | `train` | `pretrain` | values | what it does |",
        "|---|---|---|---|---|",
    ]
    train, pretrain = (
        {each.name: each for each in fields(config)} for config in (TrainConfig, PretrainConfig)
    )
    hints = get_type_hints(TrainConfig) | get_type_hints(PretrainConfig)
    for name, declared in (train | pretrain).items():
        defaults = [
            f"`{_toml(settings[name].default)}`" if name in settings else ""
            for settings in (train, pretrain)
        ]
        told: Setting = declared.metadata["setting"]
        values = ", ".join(get_args(hints[name])) or told.range()
        lines.append(f"| `{name}` | {' | '.join(defaults)} | {values} | {told.help} |")
    return "\n".join(lines) + "\n"


def _check_type(name: str, hint: Any, value: object) -> None:
    if get_origin(hint) is Literal:
        _require(value in get_args(hint), name, "one of " + ", ".join(get_args(hint)), value)
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
