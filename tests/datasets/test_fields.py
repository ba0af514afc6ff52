"""Checked TOML fields: what passes, and what an error names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from densesiam_seg.datasets.fields import (
    Table,
    colour,
    count,
    list_of,
    one_of,
    table,
    text,
    texts,
    whole,
)
from densesiam_seg.errors import InputError


@pytest.mark.parametrize(
    ("check", "content", "result"),
    [
        (table, {"a": 1}, {"a": 1}),
        (text, "road", "road"),
        (whole, 0, 0),
        (whole, 65535, 65535),
        (count, 118_287, 118_287),
        (colour, [0, 128, 255], (0, 128, 255)),
        (one_of(("thing", "stuff")), "stuff", "stuff"),
        (list_of(whole), [3, 4], (3, 4)),
        (list_of(whole), [], ()),
        (texts, "val", ("val",)),
        (texts, ["val", "images/val"], ("val", "images/val")),
    ],
)
def test_passes(check: Callable[[Any], object], content: object, result: object) -> None:
    assert Table({"x": content}, "f.toml").take("x", check) == result


@pytest.mark.parametrize(
    ("check", "content", "wanted"),
    [
        (table, [], "a table"),
        (text, "", "a text"),
        (text, 3, "a text"),
        (whole, -1, "from 0 to 65535"),
        (whole, 65536, "from 0 to 65535"),
        (whole, True, "a whole number"),
        (whole, 1.0, "a whole number"),
        (count, 0, "above 0"),
        (colour, [0, 0], "a colour"),
        (colour, [0, 0, 256], "a colour"),
        (colour, [0, 0, 0.5], "a colour"),
        (colour, "red", "a colour"),
        (one_of(("thing", "stuff")), "things", "one of thing, stuff"),
        (list_of(whole), 3, "a list"),
        (list_of(whole), [3, "4"], "a whole number"),
        (texts, [], "a list of texts"),
        (texts, [""], "a text"),
    ],
)
def test_refuses(check: Callable[[Any], object], content: object, wanted: str) -> None:
    with pytest.raises(InputError, match=rf"f\.toml: classes\[3\]\.x: must be .*{wanted}"):
        Table({"x": content}, "f.toml", "classes[3].").take("x", check)


def test_absent_field() -> None:
    empty = Table({}, "f.toml")
    assert empty.take("x", text, "default") == "default"
    with pytest.raises(InputError, match=r"f\.toml: x: missing"):
        empty.take("x", text)


def test_unknown_field() -> None:
    both = Table({"x": "a", "y": "b"}, "f.toml")
    assert both.has("x")
    both.take("x", text)
    assert not both.has("x")
    with pytest.raises(InputError, match=r"f\.toml: y: unknown field"):
        both.finish()
    both.take("y", text)
    both.finish()


def test_inner_tables_know_their_place() -> None:
    top = Table({"classes": [{}, {}], "splits": {"val": {}}}, "f.toml")
    assert str(top.rows("classes")[1].error("x", "bad")) == "f.toml: classes[1].x: bad"
    assert str(top.named("splits")["val"].error("x", "bad")) == "f.toml: splits.val.x: bad"


def test_inner_tables_must_be_tables() -> None:
    with pytest.raises(InputError, match=r"classes: must be a table"):
        Table({"classes": [1]}, "f.toml").rows("classes")
    with pytest.raises(InputError, match=r"splits\.val: must be a table"):
        Table({"splits": {"val": 1}}, "f.toml").named("splits")
