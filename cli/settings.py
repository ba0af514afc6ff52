"""Options made from the settings of a config, and groups of options that become one parameter of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from densesiam_seg.config import (
    RunConfig,
    Setting,
    require_valid,
    settings_of,
    spelled_out,
    with_settings,
)
from densesiam_seg.errors import UsageError
from densesiam_seg.presets import changed_by_presets


@dataclass(frozen=True)
class Settings:
    """Options for the settings of a config (all, or those named) → a dictionary of those that were given."""

    config: type[RunConfig]
    names: tuple[str, ...] = ()

    def parameters(self) -> list[inspect.Parameter]:
        hints, by_preset = get_type_hints(self.config), changed_by_presets(self.config)
        return [
            _parameter(name, self._option(name, declared, hints[name], name in by_preset), None)
            for name, declared in settings_of(self.config)
            if not self.names or name in self.names
        ]

    def _option(self, name: str, declared: Setting, hint: Any, by_preset: bool) -> Any:
        """The annotation of a setting's option. What is not given is None, and left to the preset.

        Where all settings are options, those that few need are shown by `--help-all` alone.
        """
        flag = "--" + name.replace("_", "-")
        names = [f"{flag}/--no-{flag[2:]}" if hint is bool else flag]
        if declared.short:
            names.append(declared.short)
        choices = get_origin(hint) is Literal
        kind = str if choices or declared.auto is not None else hint
        default = self.config.__dataclass_fields__[name].default
        told = declared.help
        if hint is not bool:
            # Where the word is the same as to leave the option out.
            known = "auto" if declared.auto == {} else default
            told += f" Default: {'by preset' if by_preset else known}."
        return Annotated[
            kind | None,
            typer.Option(
                *names,
                help=told,
                rich_help_panel=declared.panel,
                metavar="|".join(get_args(hint)) if choices else None,
                hidden=not (declared.common or self.names),
                show_default=False,
            ),
        ]

    def build(self, given: dict[str, Any]) -> dict[str, Any]:
        declared = dict(settings_of(self.config))
        for name, value in given.items():
            if declared[name].auto is not None and value != "auto":
                given[name] = number_or_auto(f"--{name.replace('_', '-')}", value)
        said = {name: value for name, value in given.items() if value is not None}
        given = spelled_out(self.config, said)
        for name, value in given.items():
            require_valid(self.config, name, value)
        return given


@dataclass(frozen=True)
class _CheckedSettings(Settings):
    """The same → a config with what was given. Raises UsageError."""

    def build(self, given: dict[str, Any]) -> Any:
        return with_settings(self.config(), super().build(given))


def checked(*names: str) -> Settings:
    """Options for the settings named, of those that every config has → a `RunConfig`."""
    return _CheckedSettings(RunConfig, names)


@dataclass(frozen=True)
class _Fields:
    """The fields of a dataclass of options → the dataclass."""

    group: type[Any]

    def parameters(self) -> list[inspect.Parameter]:
        hints = get_type_hints(self.group, include_extras=True)
        return [
            _parameter(each.name, hints[each.name], each.default) for each in fields(self.group)
        ]

    def build(self, given: dict[str, Any]) -> Any:
        return self.group(**given)


def takes(
    *, rare: Sequence[str] = (), **groups: Settings | type[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose parameters of these names are groups of options: `Settings`, or a dataclass of options.

    Options for the `rare` parameters are shown by `--help-all` alone.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        expanded = {
            name: group if isinstance(group, Settings) else _Fields(group)
            for name, group in groups.items()
        }
        parts = {name: group.parameters() for name, group in expanded.items()}
        hints = get_type_hints(function, include_extras=True)
        own = inspect.signature(function).parameters.values()

        def command(**options: Any) -> None:
            for name, group in expanded.items():
                given = {part.name: options.pop(part.name) for part in parts[name]}
                options[name] = group.build(given)
            function(**options)

        flat: list[inspect.Parameter] = []
        for each in own:
            flat += parts.get(each.name) or [
                _parameter(each.name, hints.get(each.name), each.default)
            ]
        flat = [_hidden(each) if each.name in rare else each for each in flat]
        command.__doc__ = function.__doc__
        command.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in flat}
        return command

    return decorate


def _hidden(parameter: inspect.Parameter) -> inspect.Parameter:
    """The same option, left out of `--help`."""
    kind, option = get_args(parameter.annotation)
    option = copy(option)  # other commands show it
    option.hidden = True
    return parameter.replace(annotation=Annotated[kind, option])


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def number_or_auto(option: str, text: str | None) -> int | None:
    """The number of an option that also takes `auto`, which is None. Raises UsageError."""
    if text is None or text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} {text}: give a whole number or auto") from None
