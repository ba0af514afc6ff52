"""The fault suite's fixture `trials`, its options, and its table.

`pytest tests/faults` tries each case a few times, `pytest tests/faults --full` (`make faults`) as often as
docs/faults.md says. The table is printed at the end; `--page FILE` writes it as a page.
"""

from __future__ import annotations

import platform
import re
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from trials import Trials

if TYPE_CHECKING:
    from children import Family
    from programs import Program, Programs

_CASES: pytest.StashKey[list[Trials]] = pytest.StashKey()
_HEAD = ("case", "what is done", "what must come of it", "trials", "failures", "seconds")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--full", action="store_true", help="try each fault as often as it is meant")
    group.addoption("--page", metavar="FILE", type=Path, help="write the table of faults as a page")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_CASES] = []


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> Trials:
    """The case that the test's decorator `fault` declares."""
    mark = request.node.get_closest_marker("fault")
    assert mark is not None, "a case of this suite is declared by @fault"
    number, done, expected = mark.args
    full = bool(request.config.getoption("--full", default=False))
    case = Trials(number, done, expected, full=full)
    request.config.stash[_CASES].append(case)
    return case


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """The process that children are forked from."""
    from children import Family

    found = Family(tmp_path_factory.mktemp("programs"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def program(family: Family) -> Program:
    """The program in a child."""
    from programs import slim

    return lambda *arguments: family.run(slim(arguments))


@pytest.fixture(scope="session")
def programs(family: Family, image_folder: Path, tiny_settings: dict[str, Any]) -> Programs:
    """Runs of PiCIE, which clusters before each of its two epochs, on eight images: four steps."""
    from programs import Programs

    settings = {**tiny_settings, "prior": "none", "method": "picie", "epochs": 2}
    return Programs(family, str(image_folder / "0[0-7].*"), settings)


@pytest.fixture(scope="session")
def reference(programs: Programs) -> Path:
    """An uninterrupted run; for reading only."""
    return programs.whole("reference")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Let a case fail at its end if one of its trials did, or if nothing was tried."""
    case = pyfuncitem.funcargs["trials"]
    assert isinstance(case, Trials)
    began = time.monotonic()
    try:
        result = yield
    except pytest.skip.Exception as skip:
        case.skipped = str(skip)
        raise
    except BaseException as error:
        case.count += 1
        case.failures.append(repr(error))
        raise
    finally:
        case.seconds = time.monotonic() - began
    if case.failures:
        first = "\n".join(case.failures[:3])
        pytest.fail(f"{len(case.failures)} of {case.count} trials failed:\n{first}", pytrace=False)
    assert case.count, "nothing was tried"
    return result


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    cases = config.stash[_CASES]
    if not cases:
        return
    cases.sort(key=_order)
    rows = [_HEAD, *(case.row() for case in cases)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1, 3, 4, 5)]
    terminalreporter.section("faults")
    for number, what, _, *figures in rows:
        cells = [number.ljust(widths[0]), what.ljust(widths[1])]
        cells += [text.rjust(width) for text, width in zip(figures, widths[2:], strict=True)]
        terminalreporter.write_line("  ".join(cells).rstrip())
    page = config.getoption("--page", default=None)
    if page is not None:
        page.write_text(_page(rows), encoding="utf-8")


def _order(case: Trials) -> tuple[int, str]:
    """F2 before F12."""
    found = re.search(r"\d+", case.number)
    return int(found[0]) if found else 1000, case.fault


def _page(rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    machine = f"{platform.system()}, {platform.machine()}, Python {platform.python_version()}"
    template = Path(__file__).with_name("page.md").read_text(encoding="utf-8")
    table = lines[0] + "|---|---|---|---:|---:|---:|\n" + "".join(lines[1:])
    return template.replace("{table}", table).replace("{machine}", machine)
