"""Settings: their defaults, ranges, file and table."""

from __future__ import annotations

import math
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densesiam_seg.config import (
    FINE_CLUSTERS,
    PretrainConfig,
    RunConfig,
    TrainConfig,
    read_config,
    settings_of,
    settings_table,
    spelled_out,
    with_settings,
)
from densesiam_seg.errors import InputError, UsageError

COMMON: dict[str, Any] = {
    "batch_size": 256, "learning_rate": 0.05, "weights": "auto", "backbone": "resnet18", "freeze": False, "seed": 0,
    "channels": 128, "optimizer": "sgd", "rate_scaling": "batch", "weight_decay": 1e-4, "visualize_every": 0,
    "device": "auto", "precision": "auto", "compile": True, "workers": -1, "threads": 0, "cache": "auto",
    "cache_dir": "runs/cache", "max_pixels": 89_000_000, "similarity": "cross-entropy", "pixel_weight": 1.0,
    "region_weight": 0.1, "region_stop_gradient": True, "page": "first", "bands": "first", "stretch": False,
}  # fmt: skip
TRAIN: dict[str, Any] = COMMON | {
    "image_size": 320, "schedule": "constant", "epochs": 10, "clusters": 27, "method": "densesiam",
    "over_clusters": 128, "replay": "epoch", "features": "fpn", "prior": "none", "image_weight": 0.0,
    "over_cluster_weight": 1.0, "segmentation_weight": 1.0, "balance": "inverse", "region_start": 0.8,
    "choose_clusters": False,
}  # fmt: skip
PRETRAIN: dict[str, Any] = COMMON | {
    "image_size": 224, "schedule": "cosine", "epochs": 100, "features": "res5", "categories": 128,
    "correspondence": "location", "sampling": "regular", "grid": 7, "oversample": 3, "importance": 0.75,
    "image_weight": 1.0,
}  # fmt: skip
"""The recipe of the paper and its supplement."""

BOTH = pytest.mark.parametrize("config", [TrainConfig, PretrainConfig])
OF_ANOTHER_TYPE: dict[Any, list[object]] = {
    int: [1.0, True, "10"],
    float: ["0.1", True, None],
    bool: [1, None],
    str: [None, Path("w.pth"), "broken\udcffname.pth"],
}
NO_CHOICE: list[object] = ["", "other", None, ["sgd"]]


def refused(base: RunConfig, chosen: dict[str, Any], name: str) -> None:
    """The message begins with the setting and its value."""
    value = chosen.get(name, getattr(base, name))
    with pytest.raises(UsageError) as caught:
        with_settings(base, chosen)
    assert str(caught.value).startswith(f"{name} = {value!r}: must be ")


def test_names_and_defaults() -> None:
    assert vars(TrainConfig()) == TRAIN
    assert vars(PretrainConfig()) == PRETRAIN


def test_the_docs_have_the_table_of_settings() -> None:
    docs = Path(__file__).parents[1] / "docs" / "settings.md"
    assert docs.read_text(encoding="utf-8") == settings_table()


class TestAuto:
    def test_what_the_word_stands_for(self) -> None:
        """The number that is learned is what is saved."""
        found = with_settings(TrainConfig(), {"clusters": "auto", "batch_size": "auto"})
        assert (found.clusters, found.choose_clusters) == (FINE_CLUSTERS, True)
        assert found.batch_size == TrainConfig().batch_size
        assert "auto" not in spelled_out(TrainConfig, {"clusters": "auto"}).values()

    def test_what_is_said_beside_it_wins(self) -> None:
        chosen = {"choose_clusters": False, "clusters": "auto"}
        assert spelled_out(TrainConfig, chosen) == {
            "choose_clusters": False,
            "clusters": FINE_CLUSTERS,
        }

    def test_other_words_stay(self) -> None:
        """`auto` is a value of its own where a setting is a word."""
        chosen = {"weights": "auto", "device": "auto", "nonsense": "auto"}
        assert spelled_out(TrainConfig, chosen) == chosen
        refused(TrainConfig(), {"clusters": "some"}, "clusters")

    def test_in_a_file(self, tmp_path: Path) -> None:
        """Options win over a file by name, so that the word stays as it is written."""
        file = tmp_path / "settings.toml"
        file.write_text('clusters = "auto"\n', encoding="utf-8")
        assert read_config(file) == {"clusters": "auto"}


class TestRanges:
    @BOTH
    def test_the_ends_of_a_range_are_allowed_and_what_lies_beyond_is_not(
        self, config: type[RunConfig]
    ) -> None:
        hints = get_type_hints(config)
        for name, declared in settings_of(config):
            step = 4 if name == "image_size" else 1 if hints[name] is int else 1e-6
            for end, out in ((declared.least, -step), (declared.most, step)):
                if end is not None:
                    assert getattr(with_settings(config(), {name: end}), name) == end
                    refused(config(), {name: end + out}, name)

    @BOTH
    def test_a_value_of_another_type_is_refused(self, config: type[RunConfig]) -> None:
        for name, hint in get_type_hints(config).items():
            for value in OF_ANOTHER_TYPE.get(hint, NO_CHOICE):
                refused(config(), {name: value}, name)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("image_size", 34),
            *(("learning_rate", x) for x in (0, -0.1, math.nan, math.inf, 10**400)),
        ],
    )
    def test_other_numbers(self, name: str, value: float) -> None:
        refused(TrainConfig(), {name: value}, name)

    @pytest.mark.parametrize(
        ("chosen", "name"),
        [
            ({"sampling": "uniform", "correspondence": "pixel-distance"}, "sampling"),
            ({"sampling": "biased", "correspondence": "none"}, "sampling"),
            ({"image_weight": 0.0, "correspondence": "none"}, "image_weight"),
            ({"image_weight": 0.0, "pixel_weight": 0.0}, "image_weight"),
            ({"freeze": True}, "freeze"),
        ],
    )
    def test_settings_that_do_not_go_together(self, chosen: dict[str, Any], name: str) -> None:
        refused(PretrainConfig(), chosen, name)

    def test_something_must_be_learned_from_the_first_epoch_on(self) -> None:
        """The region loss alone joins after 8 of 10 epochs."""
        alone = {f"{part}_weight": 0.0 for part in ("pixel", "over_cluster", "segmentation")}
        refused(TrainConfig(), alone, "pixel_weight")
        for other in ({"region_start": 0.0}, {"image_weight": 1.0}, {"prior": "mixture"}):
            with_settings(TrainConfig(), {**alone, **other})

    def test_unknown_names_are_refused_with_the_known_ones(self) -> None:
        with pytest.raises(UsageError, match=r"'cluster'.*batch_size.*clusters.*weights"):
            with_settings(TrainConfig(), {"cluster": 5})
        with pytest.raises(UsageError, match=r"'clusters'.*categories"):
            with_settings(PretrainConfig(), {"clusters": 5})


class TestMeaning:
    def test_pages_and_bands(self) -> None:
        config = TrainConfig(page="3", bands="4, 3,2")
        assert (config.chosen_page(), config.chosen_bands()) == (3, (4, 3, 2))
        assert TrainConfig(bands="5").chosen_bands() == (5,)
        for page in ("first", "all"):
            assert TrainConfig(page=page).chosen_page() is None
        assert TrainConfig().chosen_bands() is None
        for page in ("0", "-1", "1.5", "last", ""):
            refused(TrainConfig(), {"page": page}, "page")
        for bands in ("0,1,2", "1,2", "1,2,3,4", "a", "1;2;3", ""):
            refused(TrainConfig(), {"bands": bands}, "bands")

    def test_the_rate_scales_with_the_batch_unless_told_not_to(self) -> None:
        assert TrainConfig().rate() == 0.05
        assert TrainConfig(batch_size=64).rate() == pytest.approx(0.05 / 4)
        assert TrainConfig(batch_size=64, rate_scaling="none").rate() == 0.05

    def test_decay_by_hand(self) -> None:
        """(1 + cos πt) / 2: 1, then (1 + √½) / 2 after a quarter, ½ in the middle, and 0 at the end."""
        config = PretrainConfig()
        assert (config.decay(0), config.decay(1)) == (1.0, 0.0)
        assert config.decay(0.5) == pytest.approx(0.5, abs=1e-15)
        assert config.decay(0.25) == pytest.approx((1 + math.sqrt(0.5)) / 2, abs=1e-15)
        assert TrainConfig().decay(0.5) == 1

    @pytest.mark.parametrize(("start", "epochs", "first"), [(0.8, 10, 8), (0, 5, 0), (1, 5, 5)])
    def test_the_region_loss_starts_at_a_share_of_the_epochs(
        self, start: float, epochs: int, first: int
    ) -> None:
        assert TrainConfig(region_start=start, epochs=epochs).region_epoch() == first

    def test_a_run_may_keep_its_only_views(self) -> None:
        assert [TrainConfig().round(epoch) for epoch in range(3)] == [0, 1, 2]
        assert [TrainConfig(replay="run").round(epoch) for epoch in range(3)] == [0, 0, 0]

    @pytest.mark.parametrize(
        ("on", "clusters"), [("pixel", True), ("segmentation", True), ("over_cluster", False)]
    )
    def test_only_two_losses_reach_the_projector(self, on: str, clusters: bool) -> None:
        weights = {f"{name}_weight": 0.0 for name in ("pixel", "segmentation", "over_cluster")}
        config = with_settings(TrainConfig(), {**weights, f"{on}_weight": 1.0})
        assert (config.uses_pixels(), config.learns_clusters()) == (True, clusters)

    def test_dense_losses_need_a_correspondence_and_a_weight(self) -> None:
        assert PretrainConfig().dense()
        assert PretrainConfig(region_weight=0.0).learns_clusters()
        regions = PretrainConfig(pixel_weight=0.0)
        assert (regions.dense(), regions.learns_clusters()) == (True, False)
        assert not PretrainConfig(pixel_weight=0.0, region_weight=0.0).dense()
        assert not PretrainConfig(correspondence="none").dense()

    @pytest.mark.parametrize(
        ("chosen", "kept"),
        [
            ({"freeze": True, "replay": "run"}, True),
            ({"freeze": True, "replay": "run", "method": "picie"}, False),
            ({"freeze": True, "replay": "run", "prior": "mixture"}, False),
            ({"freeze": True, "replay": "epoch"}, False),
            ({"replay": "run"}, False),
        ],
    )
    def test_stages_are_kept_where_they_never_change(
        self, chosen: dict[str, Any], kept: bool
    ) -> None:
        assert with_settings(TrainConfig(), chosen).keeps_stages() is kept


CONFIGS = st.builds(
    TrainConfig,
    seed=st.integers(0, 2**63 - 1),
    weights=st.text(st.characters(codec="utf-8")),
    learning_rate=st.floats(1e-30, 1e30),
    pixel_weight=st.floats(0, 1e6) | st.integers(0, 10),
    region_stop_gradient=st.booleans(),
    image_size=st.integers(8, 1024).map(lambda n: 4 * n),
    workers=st.integers(-1, 8),
) | st.builds(
    PretrainConfig,
    correspondence=st.sampled_from(("location", "feature-similarity", "candidate-regions")),
    importance=st.floats(0, 1),
)


class TestFile:
    @given(config=CONFIGS)
    @settings(deadline=None, max_examples=30)
    def test_what_is_written_is_read_back(self, config: RunConfig) -> None:
        found = tomllib.loads(config.to_toml())
        assert list(found) == [field.name for field in fields(config)]
        assert type(config)(**found) == config

    def test_a_file_may_name_some_settings(self, tmp_path: Path) -> None:
        path = tmp_path / "c.toml"
        path.write_text('# mine\nclusters = 9\nweights = "none"\nlearning_rate = 1\n')
        assert read_config(path) == {"clusters": 9, "weights": "none", "learning_rate": 1}
        path.write_text("categories = 9\nimportance = 1\n")
        assert read_config(path, PretrainConfig()) == {"categories": 9, "importance": 1}

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"clusters = = 3", "not valid TOML"),
            (b"clusters = " + b"9" * 5000, "not valid TOML"),
            (b"clusters = " + b"[" * 100_000, "not valid TOML"),
            (b"weights = '\xff'", "line 1 is not UTF-8"),
            ("clusters = 3".encode("utf-16"), 'UTF-16 (Notepad\'s "Unicode"); save it as UTF-8'),
            ("clusters = 3".encode("utf-16-be"), 'UTF-16 (Notepad\'s "Unicode"); save it as UTF-8'),
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

    def test_a_file_as_windows_writes_it(self, tmp_path: Path) -> None:
        path = tmp_path / "c.toml"
        path.write_bytes(b'\xef\xbb\xbfclusters = 9\r\nweights = "none"\r\n')
        assert read_config(path) == {"clusters": 9, "weights": "none"}

    @pytest.mark.parametrize("name", ["absent.toml", "."])
    def test_a_path_that_cannot_be_read_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InputError, match="cannot be read"):
            read_config(tmp_path / name)
