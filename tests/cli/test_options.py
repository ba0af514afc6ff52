"""Options whose text means a number or a time, and those that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densesiam_seg.cli import pretrain, train
from densesiam_seg.cli.options import PresetName, number_or_auto, seconds
from densesiam_seg.config import PretrainConfig, RunConfig, TrainConfig
from densesiam_seg.errors import UsageError
from densesiam_seg.presets import Preset


class TestNumberOrAuto:
    @pytest.mark.parametrize(
        ("text", "expected"), [(None, None), ("auto", None), ("16", 16), ("0", 0), ("-1", -1)]
    )
    def test_values(self, text: str | None, expected: int | None) -> None:
        assert number_or_auto("--batch-size", text) == expected

    @pytest.mark.parametrize("text", ["", "Auto", "1.5", "16 images", "1e3", "0x10", "nan"])
    def test_others_are_refused_with_the_options_name(self, text: str) -> None:
        with pytest.raises(UsageError, match=r"--workers .*: give a whole number or auto"):
            number_or_auto("--workers", text)

    @given(st.integers(-(10**9), 10**9))
    def test_every_number(self, number: int) -> None:
        assert number_or_auto("-b", str(number)) == number


class TestSeconds:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (None, None),
            ("90", 90),
            ("90s", 90),
            ("1.5", 1.5),
            ("15m", 900),
            ("0.5m", 30),
            ("2h", 7200),
            (" 3 ", 3),
        ],
    )
    def test_values(self, text: str | None, expected: float | None) -> None:
        assert seconds("--max-time", text) == expected

    @pytest.mark.parametrize(
        "text",
        ["", "m", "0", "0s", "-5", "-1h", "15 min", "15M", "1d", "1h30m", "nan", "inf", "1e9", "x"],
    )
    def test_others_are_refused_with_an_example(self, text: str) -> None:
        with pytest.raises(UsageError, match=r"--max-time .*such as 15m"):
            seconds("--max-time", text)

    @given(st.floats(0.001, 1e5), st.sampled_from([("s", 1), ("m", 60), ("h", 3600)]))
    def test_units(self, number: float, unit: tuple[str, int]) -> None:
        assert seconds("-t", f"{number}{unit[0]}") == number * unit[1]


def declared(command: Callable[..., None]) -> Iterator[tuple[str, Any]]:
    """Every parameter with its option."""
    hints = get_type_hints(command, include_extras=True)
    for name in inspect.signature(command).parameters:
        yield name, get_args(hints[name])[1]


class TestShared:
    def test_what_both_kinds_of_run_have_is_declared_once(self) -> None:
        one, two = dict(declared(train.command)), dict(declared(pretrain.command))
        known = {field.name for field in fields(RunConfig)}
        assert known <= one.keys() & two.keys()
        for name in (one.keys() & two.keys()) - {"preset"}:
            assert one[name] is two[name], name

    @pytest.mark.parametrize(
        ("command", "config"), [(train.command, TrainConfig), (pretrain.command, PretrainConfig)]
    )
    def test_no_option_of_a_setting_has_a_default_of_its_own(
        self, command: Callable[..., None], config: type[RunConfig]
    ) -> None:
        parameters = inspect.signature(command).parameters
        for field in fields(config):
            assert parameters[field.name].default is None, field.name

    def test_presets_are_the_librarys(self) -> None:
        assert tuple(PresetName) == get_args(Preset)
