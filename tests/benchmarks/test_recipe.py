"""Rows of `benchmarks/recipe.py` change what the package still has: a name that went would change nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from densesiam_seg.clustering import directions
from densesiam_seg.methods.described import Described

FOLDER = Path(__file__).parents[2] / "benchmarks"
MODULES = ("recipe", "child", "making", "rows", "tasks")


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    """The benchmark as a module; it finds others by their path."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        yield import_module("recipe")
    finally:
        sys.path[:] = before
        for name in MODULES:
            sys.modules.pop(name, None)


def test_every_change_is_of_something_there(recipe: Any) -> None:
    for row in recipe.ROWS.values():
        with recipe.changed(row.changes):
            pass
    with recipe.changed(recipe.ROWS["kappa-7"].changes):
        assert len(directions.CONCENTRATIONS) == 1
    assert len(directions.CONCENTRATIONS) == 2


def test_every_method_takes_the_place_of_one(recipe: Any) -> None:
    for method in (recipe.Recalled, *(row.method for row in recipe.ROWS.values())):
        for name, value in vars(method).items():
            assert not callable(value) or hasattr(Described, name), name


def test_the_halves_are_all_images_and_another_split_has_others(recipe: Any) -> None:
    one, other = recipe.halves(7, 0)
    assert sorted(one + other) == list(range(7)) and len(one) == 3
    assert recipe.halves(7, 0) == (one, other) != recipe.halves(7, 1)
