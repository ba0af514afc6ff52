"""Presets: the choice by images and machine, the number of steps, what a method changes."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densesiam_seg.config import PretrainConfig, TrainConfig, with_settings
from densesiam_seg.presets import (
    METHODS,
    PAPER_IMAGES,
    Preset,
    Start,
    changed_by_presets,
    pretrain_preset,
    train_preset,
)


@pytest.mark.parametrize(
    ("images", "gpu", "expected"),
    [
        (PAPER_IMAGES, True, "paper"),
        (PAPER_IMAGES - 1, True, "balanced"),
        (PAPER_IMAGES, False, "balanced"),
    ],
)
def test_the_choice(images: int, gpu: bool, expected: str) -> None:
    assert train_preset(None, images, gpu=gpu)[0] == expected
    assert pretrain_preset(None, images, gpu=gpu)[0] == expected


def test_paper_is_the_default_config_whatever_the_set() -> None:
    assert train_preset("paper", 3, gpu=False) == ("paper", TrainConfig())
    paper = PretrainConfig(backbone="resnet50")
    assert pretrain_preset("paper", 3, gpu=False) == ("paper", paper)


@pytest.mark.parametrize(
    ("name", "images", "epochs", "with_prior"),
    [
        # Steps wanted / steps per epoch, within 2 and the longest course.
        ("balanced", 100, 60, 17),  # 6 steps an epoch: 84 would be needed without a prior
        ("balanced", 160, 50, 10),
        ("balanced", 1_000, 9, 2),
        ("fast", 100, 27, 10),
        ("fast", 16, 40, 40),
        ("fast", 10_000, 2, 2),
    ],
)
def test_the_number_of_steps(name: Preset, images: int, epochs: int, with_prior: int) -> None:
    plain = train_preset(name, images, gpu=False, start="none")[1]
    assert (plain.epochs, plain.prior, plain.over_cluster_weight) == (epochs, "none", 1.0)
    assert train_preset(name, images, gpu=False, method="picie")[1].epochs == epochs
    assert pretrain_preset(name, images, gpu=False)[1].epochs == epochs
    config = train_preset(name, images, gpu=False)[1]
    assert (config.epochs, config.prior) == (with_prior, "mixture")


@pytest.mark.parametrize(
    ("name", "gpu", "size"),
    [("fast", False, 128), ("fast", True, 128), ("balanced", False, 160), ("balanced", True, 320)],
)
def test_small_presets_keep_the_rate_and_fit_the_machine(
    name: Preset, gpu: bool, size: int
) -> None:
    training, pretraining = (
        make(name, 100, gpu=gpu)[1] for make in (train_preset, pretrain_preset)
    )
    for config in (training, pretraining):
        assert (config.batch_size, config.rate(), config.image_size) == (16, 0.05, size)
    assert isinstance(pretraining, PretrainConfig)
    assert (pretraining.features, pretraining.schedule) == ("fpn", "cosine")


@given(images=st.integers(0, 200_000), name=st.sampled_from(("fast", "balanced")))
@settings(deadline=None, max_examples=30)
def test_every_number_of_images_fills_a_batch(images: int, name: Preset) -> None:
    config = train_preset(name, images, gpu=False)[1]
    assert config.batch_size == min(16, max(images, 1))
    assert 2 <= config.epochs <= 60


@pytest.mark.parametrize("name", ["fast", "balanced", "paper"])
def test_a_method_has_its_own_settings_on_top(name: Preset) -> None:
    for method, own in METHODS.items():
        start: Start = "none" if own.get("prior") == "none" else "mixture"
        base = train_preset(name, 100, gpu=False, start=start)[1]
        config = train_preset(name, 100, gpu=False, method=method)[1]
        assert asdict(config) == asdict(base) | dict(own)


def test_the_baselines_train_as_picie_does() -> None:
    """PiCIE: Adam at 1e-4 whatever the batch; its published loss has no weight per label."""
    for method in ("picie", "mdc"):
        config = train_preset("paper", 100, gpu=False, method=method)[1]
        assert (config.optimizer, config.rate(), config.weight_decay) == ("adam", 1e-4, 0.0)
        assert config.balance == "none"


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
def test_what_a_method_learns(method: str, pixels: bool, clusters: bool) -> None:
    _, config = train_preset("fast", 100, gpu=False, method=method)
    config = with_settings(config, {"method": method})
    assert (config.uses_pixels(), config.learns_clusters()) == (pixels, clusters)


def test_what_presets_and_methods_change() -> None:
    small = {"image_size", "batch_size", "epochs", "rate_scaling"}
    assert changed_by_presets(PretrainConfig) == {*small, "features", "backbone"}
    methods = {name for own in METHODS.values() for name in own}
    started = {"features", "freeze"}  # from pre-trained stages
    assert changed_by_presets(TrainConfig) == {*small, *methods, *started}
