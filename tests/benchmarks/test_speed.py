"""The script for a GPU, rehearsed: stages that go well, that fail and that take too long."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "speed"
MODULES = (
    *("clusters", "epochs", "gpu", "inputs", "masks_of", "material", "measure", "profiling"),
    *("starts", "steps"),
)


@pytest.fixture(scope="module")
def parts() -> Iterator[Any]:
    """The benchmark's modules; a folder that is run has no package, so they are found by its path."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(gpu=import_module("gpu"), measure=import_module("measure"))
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)


def stages_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["stages"]
    return found


@pytest.mark.filterwarnings("ignore")
def test_a_rehearsal_saves_what_it_measures(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages that take seconds; the others differ by their networks and compilers."""
    patient = {name: (900, work) for name, (_, work) in parts.gpu.STAGES.items()}
    monkeypatch.setattr(parts.gpu, "STAGES", patient)
    path = parts.gpu.measure_gpu(
        parts.gpu.REHEARSAL, tmp_path, tmp_path / "results", {"torch": "2"}, ["parts", "predict"]
    )
    assert path.name == "gpu-rehearsal.json"
    stages = stages_of(path)
    assert [stage["error"] for stage in stages.values()] == [None, None]
    names = {row["name"] for row in stages["parts"]["rows"]}
    assert names >= {
        "part, --no-compile: backbone and decoder",
        "part, --no-compile: projector, A over-clusters",
        "part, --no-compile: losses of pixels",
        "part, compiled: heads and losses, compiled",
    }
    (masks,) = stages["predict"]["rows"]
    assert masks["value"] > 0 and masks["unit"] == "images/s"


def test_others_go_on_where_one_fails_or_lasts(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(name: str) -> Any:
        return parts.measure.Row(name, 1.0, 1.0, 1.0)

    def fails(numbers: object, scratch: Path) -> Iterator[Any]:
        yield row("before")
        raise RuntimeError("out of memory")

    def lasts(numbers: object, scratch: Path) -> Iterator[Any]:
        yield row("soon")
        time.sleep(5)
        yield row("late")

    def works(numbers: object, scratch: Path) -> Iterator[Any]:
        yield row("after")

    stages = {"fails": (9, fails), "lasts": (0.2, lasts), "works": (9, works)}
    monkeypatch.setattr(parts.gpu, "STAGES", stages)
    began = time.perf_counter()
    path = parts.gpu.measure_gpu(parts.gpu.REHEARSAL, tmp_path, tmp_path, {}, None)
    assert time.perf_counter() - began < 4
    found = stages_of(path)
    rows = {name: [each["name"] for each in stage["rows"]] for name, stage in found.items()}
    assert rows == {"fails": ["before"], "lasts": ["soon"], "works": ["after"]}
    assert found["fails"]["error"] == "RuntimeError: out of memory"
    assert found["lasts"]["error"].startswith("TimeoutError")
    assert found["works"]["error"] is None


def test_all_budgets_end_before_the_script_does(parts: Any) -> None:
    assert sum(budget for budget, _ in parts.gpu.STAGES.values()) <= parts.gpu.LIMIT - 25
