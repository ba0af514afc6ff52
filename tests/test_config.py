"""Settings: their ranges, presets and file."""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densesiam_seg.config import (
    PAPER_IMAGES,
    Preset,
    TrainConfig,
    preset,
    read_config,
    with_settings,
)
from densesiam_seg.errors import InputError, UsageError


def test_the_defaults_are_the_papers() -> None:
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


def test_the_rate_scales_with_the_batch_unless_told_not_to() -> None:
    assert TrainConfig(batch_size=64).rate() == pytest.approx(0.05 / 4)
    assert TrainConfig(batch_size=64, rate_scaling="none").rate() == 0.05


@pytest.mark.parametrize(("start", "epochs", "first"), [(0.8, 10, 8), (0, 5, 0), (1, 5, 5)])
def test_the_region_loss_starts_at_a_share_of_the_epochs(
    start: float, epochs: int, first: int
) -> None:
    assert TrainConfig(region_start=start, epochs=epochs).region_epoch() == first


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
        ],
    )
    def test_a_value_out_of_range_is_refused_by_name_and_value(
        self, name: str, value: float
    ) -> None:
        with pytest.raises(UsageError) as caught:
            with_settings(TrainConfig(), {name: value})
        assert name in str(caught.value) and repr(value) in str(caught.value)
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
            ("backbone", "resnet101"),
            ("backbone", ["resnet18"]),
            ("precision", "int8"),
            ("replay", ""),
            ("region_stop_gradient", 1),
        ],
    )
    def test_a_value_of_another_type_is_refused(self, name: str, value: object) -> None:
        with pytest.raises(UsageError, match=name):
            with_settings(TrainConfig(), {name: value})

    def test_the_ends_of_the_ranges_are_allowed(self) -> None:
        ends: list[dict[str, Any]] = [
            {"seed": 2**63 - 1, "image_size": 32, "momentum": 0, "weight_decay": 0},
            {"channels": 1, "clusters": 2, "over_clusters": 4096, "workers": -1, "threads": 0},
            {"image_size": 4096, "region_start": 1, "pixel_weight": 0, "learning_rate": 1},
        ]
        for chosen in ends:
            config = with_settings(TrainConfig(), chosen)
            assert {name: getattr(config, name) for name in chosen} == chosen


def test_only_what_is_named_changes() -> None:
    base = TrainConfig(seed=3)
    changed = with_settings(base, {"clusters": 5})
    assert changed == TrainConfig(seed=3, clusters=5)
    assert with_settings(base, {}) == base == TrainConfig(seed=3)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'cluster'.*batch_size.*clusters.*weights"):
        with_settings(TrainConfig(), {"cluster": 5})


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
        assert preset(None, images, gpu=gpu)[0] == expected

    def test_paper_is_the_default_config_whatever_the_set(self) -> None:
        assert preset("paper", 3, gpu=False) == ("paper", TrainConfig())

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
        assert preset(name, images, gpu=False)[1].epochs == epochs

    def test_small_presets_keep_the_rate_and_fit_the_machine(self) -> None:
        for name, gpu, size in (
            ("fast", False, 128),
            ("fast", True, 128),
            ("balanced", False, 160),
            ("balanced", True, 320),
        ):
            chosen: Preset = "fast" if name == "fast" else "balanced"
            config = preset(chosen, 100, gpu=gpu)[1]
            assert (config.batch_size, config.rate(), config.image_size) == (16, 0.05, size)

    @given(images=st.integers(0, 200_000), name=st.sampled_from(("fast", "balanced")))
    @settings(deadline=None, max_examples=30)
    def test_every_number_of_images_fills_a_batch(self, images: int, name: Preset) -> None:
        config = preset(name, images, gpu=False)[1]
        assert 1 <= config.batch_size <= max(images, 1)
        assert config.batch_size == min(16, max(images, 1))
        assert 2 <= config.epochs <= 60


NUMBERS = st.floats(0, 1e6)
CONFIGS = st.builds(
    TrainConfig,
    seed=st.integers(0, 2**63 - 1),
    backbone=st.sampled_from(("resnet18", "resnet34", "resnet50")),
    weights=st.text(st.characters(codec="utf-8")),
    learning_rate=st.floats(1e-30, 1e30),
    weight_decay=NUMBERS,
    pixel_weight=NUMBERS | st.integers(0, 10),
    region_stop_gradient=st.booleans(),
    image_size=st.integers(8, 1024).map(lambda n: 4 * n),
    workers=st.integers(-1, 8),
)


class TestFile:
    @given(config=CONFIGS)
    @settings(deadline=None, max_examples=30)
    def test_what_is_written_is_read_back(self, config: TrainConfig) -> None:
        found = tomllib.loads(config.to_toml())
        assert list(found) == [field.name for field in fields(TrainConfig)]
        assert TrainConfig(**found) == config

    def test_a_file_may_name_some_settings(self, tmp_path: Path) -> None:
        path = tmp_path / "c.toml"
        path.write_text('# mine\nclusters = 9\nweights = "none"\nlearning_rate = 1\n')
        assert read_config(path) == {"clusters": 9, "weights": "none", "learning_rate": 1}
        path.write_text(TrainConfig(seed=7).to_toml())
        assert read_config(path) == asdict(TrainConfig(seed=7))

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
