"""What the tests of the commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from densesiam_seg.config import PretrainConfig, RunConfig, TrainConfig, settings_of

Result = tuple[int, str, str]
"""Exit code, stdout, stderr."""
Cli = Callable[..., Result]
Patch = pytest.MonkeyPatch
RUNS: dict[str, type[RunConfig]] = {"train": TrainConfig, "pretrain": PretrainConfig}
"""The commands that take every setting."""


def refused(found: Result, code: int, name: str, *words: str) -> None:
    """Nothing on stdout, and on stderr the one line of the error."""
    assert found[:2] == (code, "")
    assert found[2].startswith(f"error[{name}]: ")
    assert len(found[2].splitlines()) == 1
    assert all(word in found[2] for word in words), found[2]


def options(settings: Mapping[str, Any]) -> list[str]:
    """The settings as options of the command line."""
    return [word for name, value in settings.items() for word in _option(name, value)]


def _option(name: str, value: Any) -> Iterator[str]:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        yield f"--{option}" if value else f"--no-{option}"
    else:
        yield from (f"--{option}", str(value))


def other_values(config: type[RunConfig]) -> dict[str, Any]:
    """For every setting another value than its default, of its type and in its range."""
    hints, declared = get_type_hints(config), dict(settings_of(config))
    return {
        name: _other(hints[name], default, declared[name].most)
        for name, default in vars(config()).items()
    }


def _other(hint: Any, default: Any, most: float | None) -> Any:
    if get_origin(hint) is Literal:
        return next(value for value in get_args(hint) if value != default)
    if hint is str:
        return "resnet34"
    if hint is bool:
        return not default
    return default / 2 if most is not None and default + 4 > most else default + hint(4)
