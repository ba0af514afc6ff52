"""What is installed: the public names, the packages, and a test for every file."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import densesiam_seg
from densesiam_seg.evaluation.evaluate import evaluate
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.training.train import pretrain, train

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_public_names() -> None:
    assert densesiam_seg.__all__ == [
        "Refinement",
        "Segmenter",
        "__version__",
        "evaluate",
        "pretrain",
        "train",
    ]
    assert densesiam_seg.Refinement is Refinement
    assert densesiam_seg.Segmenter is Segmenter
    assert densesiam_seg.evaluate is evaluate
    assert densesiam_seg.pretrain is pretrain
    assert densesiam_seg.train is train


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'predict'"):
        _ = densesiam_seg.predict


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, densesiam_seg; densesiam_seg.__version__;"
        "assert not {'torch', 'faiss', 'numpy', 'PIL', 'scipy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", ["inference.segmenter", "evaluation.evaluate", "training.train"])
def test_the_public_names_load_no_more_than_they_need(module: str) -> None:
    """FAISS and SciPy come with their first use; torchvision, and torch's compiler with it, with the first network."""
    code = (
        f"import sys, densesiam_seg.{module}, densesiam_seg.cli.console;"
        "heavy = {'faiss', 'scipy', 'torchvision', 'torch._dynamo', 'torch._inductor', 'sympy', 'triton'};"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_version(project: dict[str, Any]) -> None:
    assert densesiam_seg.__version__ == project["project"]["version"] == version("densesiam-seg")


def test_the_packages_are_those_of_the_tree(project: dict[str, Any]) -> None:
    """Every folder with modules of the package is listed, under the place where it really lies."""
    package = ROOT / "densesiam_seg"
    inside = [path for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"]
    tools = project["tool"]["setuptools"]
    assert tools["packages"] == [
        "densesiam_seg",
        *sorted(f"densesiam_seg.{p.name}" for p in inside),
    ]
    places = {
        "densesiam_seg": "densesiam_seg",
        "densesiam_seg.cli": "cli",
        "densesiam_seg.datasets": "datasets",
    }
    assert tools["package-dir"] == places
    assert all((path / "__init__.py").is_file() for path in inside)


def test_the_links_show_the_folders_at_the_root() -> None:
    for name in ("cli", "datasets"):
        link = ROOT / "densesiam_seg" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name
        assert link.resolve() == ROOT / name


def test_data_files_are_packed(project: dict[str, Any]) -> None:
    data = project["tool"]["setuptools"]["package-data"]
    assert data == {"densesiam_seg": ["py.typed"], "densesiam_seg.datasets": ["*.toml"]}
    assert (ROOT / "densesiam_seg" / "py.typed").is_file()
    others = {path.suffix for path in (ROOT / "datasets").iterdir() if path.is_file()}
    assert others == {".py", ".toml"}


def test_the_program_starts_at_main(project: dict[str, Any]) -> None:
    assert project["project"]["scripts"] == {"densesiam-seg": "densesiam_seg.cli.app:main"}


def test_tests_mirror_rooms_and_files() -> None:
    """Each file has its test in the folder of its room, and each test its file."""
    folders = {"": ROOT / "densesiam_seg"} | {
        path.name: path
        for path in (ROOT / "densesiam_seg").iterdir()
        if (path / "__init__.py").is_file()
    }
    modules = {
        f"{room}/test_{module.name}".lstrip("/")
        for room, folder in folders.items()
        for module in folder.glob("*.py")
        if module.name != "__init__.py"
    }
    benchmarks = {
        f"benchmarks/test_{main.parent.name}.py"
        for main in (ROOT / "benchmarks").glob("*/__main__.py")
    }
    tests = {
        path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")
    }
    assert modules - tests == set()
    assert tests - modules - benchmarks <= {"test_package.py", "datasets/test_benchmarks.py"}


def test_rooms_are_small() -> None:
    rooms = [
        path for path in (ROOT / "densesiam_seg").iterdir() if (path / "__init__.py").is_file()
    ]
    assert len(rooms) <= 13
    assert {
        room.name: len([*room.glob("*.py")]) - 1 for room in rooms if len([*room.glob("*.py")]) > 13
    } == {}
