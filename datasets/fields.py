"""Checked fields of a TOML table: every error names the file and the field."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Any, TypeVar

from densesiam_seg.errors import InputError

Colour = tuple[int, int, int]
T = TypeVar("T")


class Table:
    """A TOML table that knows its place, checks the fields it hands out, and refuses the rest."""

    def __init__(self, fields: dict[str, Any], file: str, place: str = "") -> None:
        """`place` precedes the field's name in errors, as `classes[3].` does."""
        self._fields = dict(fields)
        self._file = file
        self._place = place

    def error(self, field: str, detail: str) -> InputError:
        """The error to raise for `field`."""
        return InputError(f"{self._file}: {self._place}{field}: {detail}")

    def has(self, field: str) -> bool:
        """Whether the field is there and not yet taken."""
        return field in self._fields

    def take(self, field: str, check: Callable[[Any], T], *default: T) -> T:
        """The field's value through `check`; where it is absent, the default.

        Raises `InputError` if the field is absent without a default, or if `check` refuses it by
        a ValueError, whose text says what is wanted.
        """
        if field not in self._fields:
            if default:
                return default[0]
            raise self.error(field, "missing; add it")
        content = self._fields.pop(field)
        try:
            return check(content)
        except ValueError as error:
            raise self.error(field, f"must be {error}, not {reprlib.repr(content)}") from error

    def rows(self, field: str) -> list[Table]:
        """A required array of tables."""
        found = self.take(field, list_of(table))
        place = f"{self._place}{field}"
        return [Table(row, self._file, f"{place}[{n}].") for n, row in enumerate(found)]

    def named(self, field: str) -> dict[str, Table]:
        """A required table of tables."""
        place = f"{self._place}{field}."
        inner = Table(self.take(field, table), self._file, place)
        return {
            key: Table(inner.take(key, table), self._file, f"{place}{key}.")
            for key in tuple(inner._fields)
        }

    def finish(self) -> None:
        """Refuse the fields that were not taken: they are misspelt, or belong elsewhere."""
        if self._fields:
            raise self.error(next(iter(self._fields)), "unknown field; remove or correct it")


def table(content: Any) -> dict[str, Any]:
    """A table."""
    if not isinstance(content, dict):
        raise ValueError("a table")
    return content


def text(content: Any) -> str:
    """A text that is not empty."""
    if not isinstance(content, str) or not content:
        raise ValueError("a text")
    return content


def whole(content: Any) -> int:
    """A whole number of 16 bits, which is as deep as label files go."""
    if type(content) is not int or not 0 <= content <= 65535:
        raise ValueError("a whole number from 0 to 65535")
    return content


def count(content: Any) -> int:
    """A whole number of things."""
    if type(content) is not int or content < 1:
        raise ValueError("a whole number above 0")
    return content


def colour(content: Any) -> Colour:
    """Red, green and blue, 0 to 255 each."""
    numbers = isinstance(content, list) and all(type(part) is int for part in content)
    if not numbers or len(content) != 3 or min(content) < 0 or max(content) > 255:
        raise ValueError("a colour [R, G, B] of 0 to 255")
    return content[0], content[1], content[2]


def one_of(choices: tuple[T, ...]) -> Callable[[Any], T]:
    """A check for one of a few texts."""

    def check(content: Any) -> T:
        for choice in choices:
            if content == choice:
                return choice
        raise ValueError("one of " + ", ".join(map(str, choices)))

    return check


def list_of(check: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    """A check for a list, each item of which passes `check`."""

    def check_list(content: Any) -> tuple[T, ...]:
        if not isinstance(content, list):
            raise ValueError("a list")
        return tuple(check(item) for item in content)

    return check_list


def texts(content: Any) -> tuple[str, ...]:
    """One text or a list of some; never none."""
    found = list_of(text)([content] if isinstance(content, str) else content)
    if not found:
        raise ValueError("a text or a list of texts")
    return found
