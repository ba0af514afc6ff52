"""Options from the settings of a config, and groups of options as one parameter of a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from densesiam_seg.cli.settings import Settings, checked, number_or_auto, takes
from densesiam_seg.config import PretrainConfig, RunConfig, TrainConfig
from densesiam_seg.errors import UsageError
from densesiam_seg.presets import changed_by_presets


@dataclass(frozen=True)
class Group:
    """Two options."""

    one: Annotated[int, typer.Option("--one")] = 1
    two: Annotated[str | None, typer.Option("--two")] = None


def called(command: Any, *arguments: str) -> None:
    app = typer.Typer()
    app.command()(command)
    CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False)


def given(group: Settings, *arguments: str) -> Any:
    """What a command gets from these options."""
    found = []

    @takes(settings=group)
    def command(settings: Any) -> None:
        found.append(settings)

    called(command, *arguments)
    return found[0]


@pytest.mark.parametrize("config", [TrainConfig, PretrainConfig])
def test_the_help_names_the_default_or_that_presets_change_it(config: type[RunConfig]) -> None:
    shown = {each.name: each.annotation for each in Settings(config).parameters()}
    told = {name: kind.__metadata__[0].help for name, kind in shown.items()}
    switches = {name for name, value in vars(config()).items() if isinstance(value, bool)}
    assert {name for name, text in told.items() if "Default: " in text} == shown.keys() - switches
    by_preset = {name for name, text in told.items() if "Default: by preset." in text}
    assert by_preset == changed_by_presets(config) - switches


def test_some_settings() -> None:
    names = ("epochs", "seed")
    assert given(Settings(TrainConfig, names), "--seed", "3") == {"seed": 3}
    assert given(Settings(TrainConfig, ("batch_size",)), "--batch-size", "auto") == {}
    assert [each.name for each in Settings(TrainConfig, names).parameters()] == list(names)


def test_a_backbone_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match="resnet17"):
        given(Settings(TrainConfig), "--backbone", "resnet17")


def test_settings_of_every_command_become_a_checked_config() -> None:
    assert given(checked("seed", "device"), "--device", "cpu") == RunConfig(device="cpu")
    with pytest.raises(UsageError, match="precision"):
        given(checked("precision"), "--precision", "fp8")
    with pytest.raises(UsageError, match="seed"):
        given(checked("seed", "device"), "--seed", "-1")


def test_a_group_of_options_becomes_one_parameter_in_its_place() -> None:
    found = []

    @takes(group=Group)
    def command(
        first: Annotated[str, typer.Argument()], *, group: Group, last: bool = False
    ) -> None:
        """What it does."""
        found.append((first, group, last))

    called(command, "x", "--two", "b", "--last")
    assert found == [("x", Group(1, "b"), True)]
    assert list(command.__annotations__) == ["first", "one", "two", "last"]
    assert command.__doc__ == "What it does."


@pytest.mark.parametrize(
    ("text", "expected"), [(None, None), ("auto", None), ("16", 16), ("0", 0), ("-1", -1)]
)
def test_number_or_auto(text: str | None, expected: int | None) -> None:
    assert number_or_auto("--batch-size", text) == expected


@pytest.mark.parametrize("text", ["", "Auto", "1.5", "16 images", "1e3", "0x10", "nan"])
def test_another_text_is_refused_with_the_options_name(text: str) -> None:
    with pytest.raises(UsageError, match="--workers"):
        number_or_auto("--workers", text)


def test_rare_options_are_hidden_in_one_command_alone() -> None:
    """And go on working there."""
    found: list[Group] = []

    def command(group: Group) -> None:
        found.append(group)

    one, other = takes(rare=("two",), group=Group)(command), takes(group=Group)(command)
    hidden = []
    for each in (one, other):
        program: Any = typer.main.get_command(_app(each))
        hidden.append({option.name: option.hidden for option in program.params[:2]})
    assert hidden == [{"one": False, "two": True}, {"one": False, "two": False}]
    called(one, "--two", "x")
    assert found == [Group(1, "x")]


def _app(command: Any) -> typer.Typer:
    app = typer.Typer()
    app.command()(command)
    return app
