"""Settings: their ranges, presets and file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densesiam_seg.config import PretrainConfig, RunConfig, TrainConfig, read_config, with_settings
from densesiam_seg.errors import InputError, UsageError
from densesiam_seg.presets import METHODS, PAPER_IMAGES, Preset, pretrain_preset, train_preset


def test_the_defaults_of_training_are_the_papers() -> None:
    """METHOD, sections 1 and 2."""
    config = TrainConfig()
    assert (config.image_size, config.channels) == (320, 128)
    assert (config.clusters, config.over_clusters) == (27, 128)
    assert (config.epochs, config.batch_size) == (10, 256)
    assert (config.momentum, config.weight_decay) == (0.9, 1e-4)
    assert config.rate() == 0.05
    assert (config.region_weight, config.region_epoch()) == (0.1, 8)
    assert (config.pixel_weight, config.over_cluster_weight) == (1.0, 1.0)
    assert config.segmentation_weight == 1.0
    assert (config.method, config.image_weight) == ("densesiam", 0.0)
    assert (config.optimizer, config.schedule, config.visualize_every) == ("sgd", "constant", 0)


def test_the_defaults_of_pre_training_are_the_papers() -> None:
    """METHOD, sections 1 and 4."""
    config = PretrainConfig()
    assert (config.image_size, config.min_scale, config.max_scale) == (224, 0.2, 1.0)
    assert (config.correspondence, config.sampling, config.grid) == ("location", "regular", 7)
    assert (config.oversample, config.importance, config.distance_threshold) == (3, 0.75, 0.7)
    assert (config.epochs, config.batch_size, config.rate()) == (100, 256, 0.05)
    assert (config.optimizer, config.schedule, config.weight_decay) == ("sgd", "cosine", 1e-4)
    assert (config.features, config.categories) == ("res5", 128)
    assert (config.image_weight, config.pixel_weight, config.region_weight) == (1.0, 1.0, 0.1)


def test_the_rate_scales_with_the_batch_unless_told_not_to() -> None:
    assert TrainConfig(batch_size=64).rate() == pytest.approx(0.05 / 4)
    assert TrainConfig(batch_size=64, rate_scaling="none").rate() == 0.05


@pytest.mark.parametrize(("start", "epochs", "first"), [(0.8, 10, 8), (0, 5, 0), (1, 5, 5)])
def test_the_region_loss_starts_at_a_share_of_the_epochs(
    start: float, epochs: int, first: int
) -> None:
    assert TrainConfig(region_start=start, epochs=epochs).region_epoch() == first


class TestDecay:
    def test_half_a_cosine_by_hand(self) -> None:
        """(1 + cos πt) / 2: 1, then (1 + √½) / 2 after a quarter, ½ in the middle, and 0 at the end."""
        config = PretrainConfig()
        assert (config.decay(0), config.decay(1)) == (1.0, 0.0)
        assert config.decay(0.5) == pytest.approx(0.5, abs=1e-15)
        assert config.decay(0.25) == pytest.approx((1 + math.sqrt(0.5)) / 2, abs=1e-15)

    @given(st.floats(0, 1), st.floats(0, 1))
    def test_it_never_rises(self, one: float, two: float) -> None:
        config = TrainConfig(schedule="cosine")
        assert 0 <= config.decay(max(one, two)) <= config.decay(min(one, two)) <= 1

    @pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
    def test_the_paper_trains_at_one_rate(self, progress: float) -> None:
        assert TrainConfig().decay(progress) == 1


class TestWhatIsLearned:
    @pytest.mark.parametrize(
        ("method", "pixels", "clusters"),
        [
            ("densesiam", True, True),
            ("pixsim", True, True),
            ("simsiam", False, False),
            ("picie", True, False),
            ("mdc", True, False),
        ],
    )
    def test_by_method(self, method: str, pixels: bool, clusters: bool) -> None:
        _, config = train_preset("fast", 100, gpu=False, method=method)
        config = with_settings(config, {"method": method})
        assert config.uses_pixels() is pixels
        assert config.learns_clusters() is clusters

    @pytest.mark.parametrize(
        ("on", "clusters"), [("pixel", True), ("segmentation", True), ("over_cluster", False)]
    )
    def test_only_two_losses_reach_the_projector(self, on: str, clusters: bool) -> None:
        weights = {f"{name}_weight": 0.0 for name in ("pixel", "segmentation", "over_cluster")}
        config = with_settings(TrainConfig(), {**weights, f"{on}_weight": 1.0})
        assert config.uses_pixels()
        assert config.learns_clusters() is clusters

    def test_dense_losses_need_a_correspondence_and_a_weight(self) -> None:
        assert PretrainConfig().dense()
        assert PretrainConfig(pixel_weight=0.0).dense()
        assert PretrainConfig(region_weight=0.0).dense()
        assert not PretrainConfig(pixel_weight=0.0, region_weight=0.0).dense()
        assert not PretrainConfig(correspondence="none").dense()


class TestRanges:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("seed", -1),
            ("seed", 2**63),
            ("epochs", 0),
            ("batch_size", 0),
            ("channels", 0),
            ("channels", 4097),
            ("clusters", 1),
            ("clusters", 4097),
            ("over_clusters", 1),
            ("image_size", 28),
            ("image_size", 34),
            ("image_size", 4100),
            ("max_pixels", 0),
            ("threads", -1),
            ("threads", 10**6),
            ("workers", -2),
            ("workers", 10**6),
            ("learning_rate", 0),
            ("learning_rate", -0.1),
            ("learning_rate", math.nan),
            ("learning_rate", math.inf),
            ("learning_rate", 10**400),
            ("momentum", 1.0),
            ("momentum", -0.1),
            ("weight_decay", -1e-9),
            ("region_start", 1.1),
            ("region_start", -0.1),
            ("pixel_weight", -1),
            ("region_weight", -0.5),
            ("image_weight", -1e-9),
            ("visualize_every", -1),
            ("visualize_every", 10**6 + 1),
        ],
    )
    def test_a_value_out_of_range_is_refused_by_name_and_value(
        self, name: str, value: float
    ) -> None:
        self.refused(TrainConfig(), {name: value}, name)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("image_size", 34),
            ("epochs", 0),
            ("categories", 1),
            ("categories", 4097),
            ("grid", 0),
            ("grid", 65),
            ("oversample", 0),
            ("oversample", 101),
            ("importance", -0.1),
            ("importance", 1.1),
            ("min_scale", 0.0),
            ("max_scale", 0.0),
            ("max_scale", 1e-5),
            ("max_scale", 1.1),
            ("max_scale", math.nan),
            ("distance_threshold", 0),
            ("distance_threshold", -0.7),
            ("pixel_weight", -1),
            ("region_weight", -1),
            ("image_weight", -1),
        ],
    )
    def test_and_so_it_is_for_pre_training(self, name: str, value: float) -> None:
        self.refused(PretrainConfig(), {name: value}, name)

    @pytest.mark.parametrize(
        ("chosen", "name"),
        [
            ({"min_scale": 0.5, "max_scale": 0.4}, "min_scale"),
            ({"max_scale": 0.1}, "min_scale"),
            ({"sampling": "uniform", "correspondence": "pixel-distance"}, "sampling"),
            ({"sampling": "biased", "correspondence": "none"}, "sampling"),
            ({"image_weight": 0.0, "correspondence": "none"}, "image_weight"),
            ({"image_weight": 0.0, "pixel_weight": 0.0}, "image_weight"),
        ],
    )
    def test_settings_that_do_not_go_together(self, chosen: dict[str, Any], name: str) -> None:
        self.refused(PretrainConfig(), chosen, name)

    def test_a_backbone_alone_cannot_be_frozen(self) -> None:
        self.refused(PretrainConfig(), {"freeze": True}, "freeze")
        assert with_settings(PretrainConfig(), {"freeze": True, "features": "fpn"}).freeze

    @pytest.mark.parametrize(
        ("chosen", "kept"),
        [
            ({"freeze": True, "replay": "run"}, True),
            ({"freeze": True, "replay": "run", "method": "simsiam", "image_weight": 1.0}, True),
            ({"freeze": True, "replay": "run", "method": "picie"}, False),
            ({"freeze": True, "replay": "epoch"}, False),
            ({"replay": "run"}, False),
        ],
    )
    def test_stages_are_kept_where_they_never_change(
        self, chosen: dict[str, Any], kept: bool
    ) -> None:
        assert with_settings(TrainConfig(), chosen).keeps_stages() is kept

    def test_something_must_be_learned(self) -> None:
        """SimSiam's losses switched on, and then the only one off."""
        config = with_settings(TrainConfig(), METHODS["simsiam"])
        self.refused(config, {"image_weight": 0.0}, "pixel_weight")

    def test_and_so_from_the_first_epoch_on(self) -> None:
        """The region loss alone, which joins after 8 of 10 epochs."""
        alone = {f"{part}_weight": 0.0 for part in ("pixel", "over_cluster", "segmentation")}
        self.refused(TrainConfig(), alone, "pixel_weight")
        config = with_settings(TrainConfig(), {**alone, "region_start": 0.0})
        assert config.uses_pixels() and not config.learns_clusters()

    def refused(self, base: RunConfig, chosen: dict[str, Any], name: str) -> None:
        """The message begins with the setting and its value."""
        value = chosen.get(name, getattr(base, name))
        with pytest.raises(UsageError) as caught:
            with_settings(base, chosen)
        assert str(caught.value).startswith(f"{name} = {value!r}: must be ")
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("seed", 1.0),
            ("seed", True),
            ("epochs", "10"),
            ("learning_rate", "0.1"),
            ("learning_rate", True),
            ("learning_rate", None),
            ("weights", None),
            ("weights", Path("w.pth")),
            ("weights", "broken\udcffname.pth"),
            ("freeze", 1),
            ("backbone", ["resnet18"]),
            ("precision", "int8"),
            ("replay", ""),
            ("region_stop_gradient", 1),
            ("method", "stego"),
            ("method", ["picie"]),
            ("optimizer", "lars"),
            ("schedule", "linear"),
            ("visualize_every", 1.0),
        ],
    )
    def test_a_value_of_another_type_is_refused(self, name: str, value: object) -> None:
        with pytest.raises(UsageError, match=name):
            with_settings(TrainConfig(), {name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("correspondence", "flow"),
            ("sampling", "random"),
            ("features", "res4"),
            ("grid", 7.0),
            ("importance", "0.75"),
        ],
    )
    def test_and_of_pre_training_too(self, name: str, value: object) -> None:
        with pytest.raises(UsageError, match=name):
            with_settings(PretrainConfig(), {name: value})

    def test_the_ends_of_the_ranges_are_allowed(self) -> None:
        ends: list[dict[str, Any]] = [
            {"seed": 2**63 - 1, "image_size": 32, "momentum": 0, "weight_decay": 0},
            {"channels": 1, "clusters": 2, "over_clusters": 4096, "workers": -1, "threads": 0},
            {"image_size": 4096, "region_start": 1, "pixel_weight": 0, "learning_rate": 1},
        ]
        for chosen in ends:
            config = with_settings(TrainConfig(), chosen)
            assert {name: getattr(config, name) for name in chosen} == chosen
        ends = [
            {"categories": 2, "grid": 1, "oversample": 1, "importance": 0, "min_scale": 1e-4},
            {"categories": 4096, "grid": 64, "oversample": 100, "importance": 1},
            {"min_scale": 0.3, "max_scale": 0.3, "distance_threshold": 1e-9},
            {"image_weight": 0, "region_weight": 0, "sampling": "biased"},
        ]
        for chosen in ends:
            pretraining = with_settings(PretrainConfig(), chosen)
            assert {name: getattr(pretraining, name) for name in chosen} == chosen


def test_only_what_is_named_changes() -> None:
    base = TrainConfig(seed=3)
    changed = with_settings(base, {"clusters": 5})
    assert changed == TrainConfig(seed=3, clusters=5)
    assert with_settings(base, {}) == base == TrainConfig(seed=3)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'cluster'.*batch_size.*clusters.*weights"):
        with_settings(TrainConfig(), {"cluster": 5})


def test_a_setting_of_the_other_command_is_unknown() -> None:
    with pytest.raises(UsageError, match=r"unknown setting 'clusters'.*categories"):
        with_settings(PretrainConfig(), {"clusters": 5})
    with pytest.raises(UsageError, match=r"unknown setting 'categories'.*clusters"):
        with_settings(TrainConfig(), {"categories": 5})


class TestPresets:
    @pytest.mark.parametrize(
        ("images", "gpu", "expected"),
        [
            (PAPER_IMAGES, True, "paper"),
            (PAPER_IMAGES - 1, True, "balanced"),
            (PAPER_IMAGES, False, "balanced"),
            (50_000, True, "paper"),
            (100, False, "balanced"),
        ],
    )
    def test_the_choice(self, images: int, gpu: bool, expected: str) -> None:
        assert train_preset(None, images, gpu=gpu)[0] == expected
        assert pretrain_preset(None, images, gpu=gpu)[0] == expected

    def test_paper_is_the_default_config_whatever_the_set(self) -> None:
        assert train_preset("paper", 3, gpu=False) == ("paper", TrainConfig())
        paper = PretrainConfig(backbone="resnet50")
        assert pretrain_preset("paper", 3, gpu=False) == ("paper", paper)

    @pytest.mark.parametrize(
        ("name", "images", "epochs"),
        [
            # Steps wanted / steps per epoch, within 2 and the longest course.
            ("balanced", 100, 60),  # 6 steps an epoch: 84 would be needed
            ("balanced", 160, 50),
            ("balanced", 1_000, 9),
            ("balanced", 100_000, 2),
            ("fast", 100, 27),
            ("fast", 16, 40),
            ("fast", 10_000, 2),
        ],
    )
    def test_the_number_of_steps(self, name: Preset, images: int, epochs: int) -> None:
        assert train_preset(name, images, gpu=False, prior=False)[1].epochs == epochs
        assert train_preset(name, images, gpu=False, method="picie")[1].epochs == epochs
        assert pretrain_preset(name, images, gpu=False)[1].epochs == epochs

    @pytest.mark.parametrize(
        ("name", "images", "epochs"),
        [("balanced", 160, 10), ("balanced", 20, 60), ("fast", 160, 6), ("fast", 10_000, 2)],
    )
    def test_a_prior_needs_fewer_steps(self, name: Preset, images: int, epochs: int) -> None:
        config = train_preset(name, images, gpu=False)[1]
        assert (config.epochs, config.prior) == (epochs, "mixture")

    def test_without_a_prior_a_preset_is_the_plain_method(self) -> None:
        config = train_preset("balanced", 100, gpu=False, prior=False)[1]
        settings = (config.prior, config.schedule, config.over_cluster_weight, config.balance)
        assert settings == ("none", "constant", 1.0, "inverse")

    def test_small_presets_keep_the_rate_and_fit_the_machine(self) -> None:
        for name, gpu, size in (
            ("fast", False, 128),
            ("fast", True, 128),
            ("balanced", False, 160),
            ("balanced", True, 320),
        ):
            chosen: Preset = "fast" if name == "fast" else "balanced"
            for make in (train_preset, pretrain_preset):
                config: RunConfig = make(chosen, 100, gpu=gpu)[1]
                assert (config.batch_size, config.rate(), config.image_size) == (16, 0.05, size)

    def test_small_presets_pre_train_the_decoder_too_and_keep_the_schedule(self) -> None:
        _, config = pretrain_preset("fast", 100, gpu=False)
        assert (config.features, config.backbone, config.schedule) == ("fpn", "resnet18", "cosine")

    @given(images=st.integers(0, 200_000), name=st.sampled_from(("fast", "balanced")))
    @settings(deadline=None, max_examples=30)
    def test_every_number_of_images_fills_a_batch(self, images: int, name: Preset) -> None:
        config = train_preset(name, images, gpu=False)[1]
        assert 1 <= config.batch_size <= max(images, 1)
        assert config.batch_size == min(16, max(images, 1))
        assert 2 <= config.epochs <= 60

    @pytest.mark.parametrize("name", ["fast", "balanced", "paper"])
    def test_a_method_has_its_own_settings_on_top(self, name: Preset) -> None:
        for method, own in METHODS.items():
            prior = own.get("prior") != "none"
            base = train_preset(name, 100, gpu=False, prior=prior)[1]
            config = train_preset(name, 100, gpu=False, method=method)[1]
            assert asdict(config) == asdict(base) | dict(own)

    def test_the_baselines_train_as_picie_does(self) -> None:
        """METHOD, section 3: Adam at 1e-4 whatever the batch; its published loss has no weight per label."""
        for method in ("picie", "mdc"):
            config = train_preset("paper", 100, gpu=False, method=method)[1]
            assert (config.optimizer, config.rate(), config.weight_decay) == ("adam", 1e-4, 0.0)
            assert config.balance == "none"

    def test_the_ablations_switch_losses_off(self) -> None:
        assert METHODS["densesiam"] == {}
        assert METHODS["pixsim"] == {"region_weight": 0.0, "prior": "none"}
        weights = {name: value for name, value in METHODS["simsiam"].items() if value}
        assert weights == {"image_weight": 1.0, "prior": "none"}
        assert len(METHODS["simsiam"]) == 6

    def test_what_is_given_wins_over_the_methods_own(self) -> None:
        _, config = train_preset("fast", 100, gpu=False, method="picie")
        given = {"method": "picie", "optimizer": "sgd", "learning_rate": 0.3, "balance": "inverse"}
        config = with_settings(config, given)
        assert {name: getattr(config, name) for name in given} == given
        assert config.weight_decay == 0.0


NUMBERS = st.floats(0, 1e6)
CONFIGS = st.builds(
    TrainConfig,
    seed=st.integers(0, 2**63 - 1),
    backbone=st.sampled_from(("resnet18", "convnext_tiny", "timm:vit_tiny_patch16_224")),
    weights=st.text(st.characters(codec="utf-8")),
    learning_rate=st.floats(1e-30, 1e30),
    weight_decay=NUMBERS,
    pixel_weight=NUMBERS | st.integers(0, 10),
    region_stop_gradient=st.booleans(),
    image_size=st.integers(8, 1024).map(lambda n: 4 * n),
    workers=st.integers(-1, 8),
)
PRETRAIN_CONFIGS = st.builds(
    PretrainConfig,
    correspondence=st.sampled_from(("location", "feature-similarity", "candidate-regions")),
    importance=st.floats(0, 1),
    min_scale=st.floats(1e-4, 1),
    distance_threshold=st.floats(1e-9, 1e9),
    grid=st.integers(1, 64),
)
FIRST = """
seed = 3
backbone = "resnet34"
weights = "none"
channels = 64
clusters = 5
over_clusters = 7
image_size = 64
replay = "run"
similarity = "cosine"
pixel_weight = 2.0
over_cluster_weight = 3.0
segmentation_weight = 4.0
balance = "none"
region_weight = 5.0
region_start = 0.5
region_stop_gradient = false
epochs = 6
batch_size = 7
learning_rate = 0.125
rate_scaling = "none"
momentum = 0.25
weight_decay = 0.0
device = "cpu"
precision = "fp32"
threads = 1
workers = 0
max_pixels = 1000
"""
"""A run's file of before there were methods, optimisers, schedules, image losses and pictures."""


class TestFile:
    @given(config=CONFIGS | PRETRAIN_CONFIGS)
    @settings(deadline=None, max_examples=30)
    def test_what_is_written_is_read_back(self, config: RunConfig) -> None:
        found = tomllib.loads(config.to_toml())
        assert list(found) == [field.name for field in fields(config)]
        assert type(config)(**found) == config

    def test_a_file_without_the_newer_settings_has_their_defaults(self) -> None:
        config = TrainConfig(**tomllib.loads(FIRST))
        absent = {"method", "image_weight", "optimizer", "schedule", "visualize_every"}
        absent |= {"cache", "cache_dir", "freeze", "prior", "prior_weight"}
        assert asdict(config).keys() - tomllib.loads(FIRST).keys() == absent
        for name in absent:
            assert getattr(config, name) == getattr(TrainConfig(), name)

    def test_a_file_may_name_some_settings(self, tmp_path: Path) -> None:
        path = tmp_path / "c.toml"
        path.write_text('# mine\nclusters = 9\nweights = "none"\nlearning_rate = 1\n')
        assert read_config(path) == {"clusters": 9, "weights": "none", "learning_rate": 1}
        path.write_text(TrainConfig(seed=7).to_toml())
        assert read_config(path) == asdict(TrainConfig(seed=7))

    def test_a_file_of_pre_training(self, tmp_path: Path) -> None:
        path = tmp_path / "c.toml"
        path.write_text("categories = 9\nmax_scale = 1\n")
        assert read_config(path, PretrainConfig()) == {"categories": 9, "max_scale": 1}
        path.write_text(PretrainConfig(seed=7).to_toml())
        assert read_config(path, PretrainConfig()) == asdict(PretrainConfig(seed=7))

    @pytest.mark.parametrize(
        ("written", "base", "name"),
        [
            (TrainConfig, PretrainConfig, "method"),
            (PretrainConfig, TrainConfig, "features"),
        ],
    )
    def test_the_other_commands_file_is_refused(
        self,
        tmp_path: Path,
        written: Callable[[], RunConfig],
        base: Callable[[], RunConfig],
        name: str,
    ) -> None:
        path = tmp_path / "c.toml"
        path.write_text(written().to_toml())
        with pytest.raises(InputError, match=f"unknown setting '{name}'"):
            read_config(path, base())

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"clusters = = 3", "not valid TOML"),
            (b"clusters = " + b"9" * 5000, "not valid TOML"),
            (b"clusters = " + b"[" * 100_000, "not valid TOML"),
            (b"weights = '\xff'", "not UTF-8"),
            (b"cluster = 3", "unknown setting 'cluster'"),
            (b"clusters = 1", "clusters = 1"),
            (b"clusters = 3.0", "clusters = 3.0"),
            (b"[training]\nclusters = 3", "unknown setting 'training'"),
        ],
    )
    def test_a_bad_file_is_refused_by_name(
        self, tmp_path: Path, content: bytes, expected: str
    ) -> None:
        path = tmp_path / "c.toml"
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_config(path)
        assert str(caught.value).startswith(f"{path}: ") and expected in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 3

    @pytest.mark.parametrize("name", ["absent.toml", "."])
    def test_a_path_that_cannot_be_read_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InputError, match="cannot be read"):
            read_config(tmp_path / name)


@pytest.mark.parametrize("config", [TrainConfig, PretrainConfig])
def test_exact_mode_is_single_precision_asked_for_by_name(config: type[RunConfig]) -> None:
    asked = {name: config(precision=name).exact() for name in ("auto", "fp32", "bf16", "fp16")}
    assert [name for name, exact in asked.items() if exact] == ["fp32"]
