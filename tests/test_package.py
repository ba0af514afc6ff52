"""What is installed: the public names, the packages, and a test for every file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

import densesiam_seg
from densesiam_seg.evaluation.evaluate import evaluate
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.prediction.shards import predict
from densesiam_seg.reporting.report import report
from densesiam_seg.training.train import pretrain, train

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "densesiam_seg"
SHIPPED = (".py", ".toml", ".html", ".css", ".js")
ROOMS = {path.name: path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}


def test_the_public_names() -> None:
    names: dict[str, object] = {"Refinement": Refinement, "Segmenter": Segmenter}
    names |= {"evaluate": evaluate, "pretrain": pretrain, "report": report, "train": train}
    names |= {"predict": predict}
    assert {*densesiam_seg.__all__} == {*names, "__version__"}
    assert all(getattr(densesiam_seg, name) is value for name, value in names.items())
    with pytest.raises(AttributeError, match="has no attribute 'probe'"):
        _ = densesiam_seg.probe


def test_the_public_names_load_no_more_than_they_need() -> None:
    """FAISS and SciPy come with their first use; torchvision, and torch's compiler with it, with its backbones."""
    code = (
        "import sys, densesiam_seg.training.train, densesiam_seg.evaluation.evaluate, densesiam_seg.cli.console;"
        "import densesiam_seg.reporting.report, densesiam_seg.reporting.comparing;"
        "heavy = {'faiss', 'scipy', 'torchvision', 'torch._dynamo', 'torch._inductor', 'sympy', 'triton'};"
        "heavy |= {'matplotlib', 'jinja2'};"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert densesiam_seg.__version__ == project["version"] == version("densesiam-seg")


def test_the_links_show_the_folders_at_the_root() -> None:
    for name in ("cli", "datasets"):
        link = ROOT / "densesiam_seg" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name
        assert link.resolve() == ROOT / name


def test_tests_mirror_rooms_and_files() -> None:
    """Each file has its test in the folder of its room, and each test its file."""
    modules = {
        f"{room}/test_{module.name}".lstrip("/")
        for room, folder in {"": PACKAGE, **ROOMS}.items()
        for module in folder.glob("*.py")
        if module.name != "__init__.py"
    }
    folder = ROOT / "benchmarks"
    mains = [path.parent for path in folder.glob("*/__main__.py")] + [*folder.glob("*.py")]
    benchmarks = {f"benchmarks/test_{main.stem}.py" for main in mains}
    folder = ROOT / "tests"
    tests = {path.relative_to(folder).as_posix() for path in folder.rglob("test_*.py")}
    tests = {name for name in tests if not name.startswith("faults/")}  # by fault, not by file
    assert modules - tests == set()
    others = {
        "test_package.py",
        "datasets/test_benchmarks.py",
        "exporting/test_readers.py",
        "peers/test_hosts.py",
        "serving/test_page.py",
    }  # no modules
    assert tests - modules - benchmarks <= others


def test_rooms_are_small() -> None:
    files = {name: len([*path.glob("*.py")]) - 1 for name, path in ROOMS.items()}
    assert len(files) <= 21
    del files["cli"]  # one for each command
    assert {name: count for name, count in files.items() if count > 12} == {}


def test_contributing_shows_every_file() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    modules |= {path.stem for room in ROOMS.values() for path in room.glob("*.py")}
    assert {name for name in modules - {"__init__"} if name not in tree} == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the sources, since a build leaves files beside them."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("densesiam_seg", "cli", "datasets"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(copy / "dist")]
    run = subprocess.run([*command, str(copy)], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (found,) = (copy / "dist").glob("*.whl")
    return found


def test_the_wheel_holds_every_package_and_nothing_else(wheel: Path) -> None:
    wanted = {"densesiam_seg/py.typed"}
    for room, folder in {"": PACKAGE, **ROOMS}.items():
        files = (path for path in folder.iterdir() if path.suffix in SHIPPED)
        wanted |= {(Path("densesiam_seg") / room / path.name).as_posix() for path in files}
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (name for name in names if name.endswith("/entry_points.txt"))
        program = archive.read(entry_points).decode()
    about = entry_points.removesuffix("entry_points.txt")
    assert {name for name in names if not name.startswith(about)} == wanted
    assert "densesiam-seg = densesiam_seg.cli.app:program" in program
    assert f"{about}licenses/LICENSE" in names


@pytest.mark.slow
def test_the_wheel_works_where_nothing_else_is_installed(wheel: Path, tmp_path: Path) -> None:
    """Downloads about 3 GB from the package index."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: object) -> None:
        subprocess.run([*map(str, command)], cwd=tmp_path, env=environment, check=True)

    programs = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(programs / "python", "-m", "pip", "install", "--quiet", wheel)
    run(programs / "densesiam-seg", "demo", "--epochs", "2", "--out", "demo")
    assert (tmp_path / "demo" / "demo.png").is_file()
