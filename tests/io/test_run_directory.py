"""The folder of a run: a new one, an own one, never a stranger's."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from threading import Barrier
from unittest.mock import Mock

import pytest

from densesiam_seg.errors import (
    BusyError,
    DenseSiamError,
    InputError,
    ModelError,
    OutputError,
    StoppedError,
    UsageError,
)
from densesiam_seg.io import run_directory
from densesiam_seg.io.files import temporary_name
from densesiam_seg.io.lock import LOCK, run_lock
from densesiam_seg.io.run_directory import (
    RUN_NAMES,
    is_free,
    latest_model,
    new_run_folder,
    noting_failure,
    read_status,
    require_space,
    write_status,
)

NOON = datetime(2026, 1, 2, 12, 0, 0)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Stands at noon."""
    clock = Mock(now=Mock(return_value=NOON))
    monkeypatch.setattr(run_directory, "datetime", clock)
    return clock


def start(out: Path | None = None, command: str = "train") -> Path:
    return new_run_folder(command, out, overwrite=False, resume=False)


def overwrite(out: Path) -> Path:
    return new_run_folder("train", out, overwrite=True, resume=False)


def resume(out: Path | None = None) -> Path:
    return new_run_folder("train", out, overwrite=False, resume=True)


def refuse(*args: object, **kwargs: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path) -> None:
    """Everything that a run writes."""
    for name in sorted(RUN_NAMES - {"run.json"}):
        if "." in name:
            (folder / name).write_text("x")
        else:
            own = {"checkpoints": "step-00000001/manifest.json", "model": "config.json"}
            path = folder / name / own.get(name, "epoch-0001.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")


def test_the_default_place_is_named_by_command_and_time() -> None:
    found = [start() for _ in range(11)]
    assert [str(path) for path in found[:3]] == [
        "runs/train/20260102-120000",
        "runs/train/20260102-120000-2",
        "runs/train/20260102-120000-3",
    ]
    assert start(command="evaluate") == Path("runs/evaluate/20260102-120000")
    assert names(found[0]) == ["run.json"]
    Path("runs/train/latest").unlink()
    assert resume() == Path("runs/train/20260102-120000-11")


@pytest.mark.parametrize("links", [True, False])
def test_latest_is_a_relative_link_or_else_a_file(
    monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(Path, "symlink_to", refuse)
    latest = Path("runs/train/latest")
    for _ in range(2):
        path = start()
        assert (str(latest.readlink()) if links else latest.read_text().rstrip()) == path.name
        assert resume() == path
    assert not [name for name in names(Path("runs/train")) if name.startswith(".")]


def test_a_folder_called_latest_does_no_harm() -> None:
    Path("runs/train/latest").mkdir(parents=True)
    Path("runs/train/latest/file").write_text("theirs")
    path = start()
    assert resume() == path
    assert names(Path("runs/train")) == [path.name, "latest"]


def test_latest_wins_over_the_clock(clock: Mock) -> None:
    for year in (2030, 2020):
        clock.now.return_value = datetime(year, 1, 1)
        start()
    assert resume().name == "20200101-000000"
    Path("runs/train/latest").unlink()
    assert resume().name == "20300101-000000"


@pytest.mark.parametrize("text", ["", "../../elsewhere", "/etc", "\0", "20990101-000000"])
def test_a_strange_pointer_is_passed_over(text: str) -> None:
    run = start()
    Path("elsewhere").mkdir()
    Path("elsewhere/run.json").write_text("{}")
    Path("runs/train/latest").unlink()
    Path("runs/train/latest").write_text(text)
    assert resume() == run


def test_a_named_place_is_taken_if_it_is_new_or_holds_only_a_lock() -> None:
    assert start(Path("a/b/c")) == Path("a/b/c")
    assert names(Path("a/b/c")) == ["run.json"]
    assert not Path("runs").exists()
    Path("out").mkdir()
    Path("out", LOCK).write_text("")
    Path("out", ".tmp-12-0123abcd").write_text("half a file")
    assert start(Path("out")) == Path("out")
    assert read_status(Path("out"))["status"] == "running"
    overwrite(Path("out"))
    assert names(Path("out")) == [LOCK, "run.json"]


def test_a_folder_that_holds_something_is_refused() -> None:
    start(Path("out"))
    with pytest.raises(BusyError, match=f"in use by process {os.getpid()}"):  # it says "running"
        start(Path("out"))
    write_status(Path("out"), "done", exit_code=0)
    Path("theirs").mkdir()
    Path("theirs/.hidden").write_text("x")
    for out in (Path("out"), Path("theirs")):
        with pytest.raises(UsageError, match="is not empty; give --overwrite, --resume or"):
            start(out)


def test_overwrite_deletes_what_a_run_wrote_and_follows_no_link() -> None:
    Path("theirs").mkdir()
    Path("theirs/file").write_text("x")
    folder = start(Path("out"))
    fill(folder)
    shutil.rmtree(folder / "model")
    (folder / "model").symlink_to("../theirs")
    assert overwrite(folder) == folder
    assert names(folder) == [LOCK, "run.json"]
    assert names(Path("theirs")) == ["file"]
    overwrite(Path("new"))
    assert names(Path("new")) == [LOCK, "run.json"]


@pytest.mark.parametrize("name", ["model/notes.txt", "checkpoints/best", "report/mine.png"])
def test_overwrite_deletes_no_file_of_the_users_in_the_folders_of_a_run(name: str) -> None:
    folder = start(Path("out"))
    (folder / name).parent.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(UsageError, match=name):
        overwrite(Path("out"))
    assert (folder / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("thesis.tex", "x", r"holds 'thesis\.tex', which no run wrote"),
        *[("run.json", text, r"holds no run\.json") for text in ("{", "[]", '{"status": "done"}')],
        ("run.json", None, r"holds no run\.json"),
    ],
)
def test_overwrite_refuses_what_may_be_a_strangers(
    name: str, text: str | None, message: str
) -> None:
    folder = start(Path("out"))
    fill(folder)
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    before = names(folder)
    with pytest.raises(UsageError, match=message):
        overwrite(folder)
    assert names(folder) == before  # no lock file in what may be a stranger's
    assert (folder / "model" / "config.json").exists()


def test_overwrite_can_be_taken_up_again_after_an_interruption(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = start(Path("out"))
    fill(folder)
    real = Path.rename
    for number in range(1, 20):
        left = number

        def interrupted(path: Path, target: Path) -> Path:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return real(path, target)

        monkeypatch.setattr(Path, "rename", interrupted)
        try:
            overwrite(folder)
        except KeyboardInterrupt:
            fill(folder)
        else:
            break
    assert number == len(RUN_NAMES) + 1
    assert names(folder) == [LOCK, "run.json"]


def test_overwrite_leaves_a_folder_that_is_in_use() -> None:
    folder = start(Path("out"))
    fill(folder)
    before = names(folder)
    with run_lock(folder), pytest.raises(BusyError):
        overwrite(folder)
    assert names(folder) == sorted([LOCK, *before])


def test_other_commands_name_their_own_files() -> None:
    folder = start(Path("d"), "demo")
    (folder / "picture.png").write_text("x")
    with pytest.raises(UsageError, match=r"picture\.png"):
        overwrite(folder)
    new_run_folder("demo", folder, overwrite=True, resume=False, names=RUN_NAMES | {"picture.png"})
    assert names(folder) == [LOCK, "run.json"]


def test_resume_leaves_a_run_as_it_is() -> None:
    folder = start(Path("out"))
    fill(folder)
    before = names(folder), (folder / "run.json").read_bytes()
    assert resume(folder) == folder
    assert (names(folder), (folder / "run.json").read_bytes()) == before


def test_resume_refuses_what_is_not_a_run() -> None:
    with pytest.raises(UsageError, match="no run to resume"):
        resume()
    Path("theirs").mkdir()
    Path("theirs/file").write_text("x")
    for out in (Path("theirs"), Path("absent")):
        with pytest.raises(UsageError, match="holds no run to resume"):
            resume(out)
    assert not Path("absent").exists()
    assert names(Path("theirs")) == ["file"]
    with pytest.raises(UsageError, match="contradict"):
        new_run_folder("train", Path("theirs"), overwrite=True, resume=True)


@pytest.mark.parametrize("begin", [start, overwrite])
def test_a_file_or_an_impossible_place_is_an_output_error(begin: Callable[[Path], Path]) -> None:
    Path("file").write_text("x")
    for out, reason in ((Path("file"), "is not a folder"), (Path("file/a"), "cannot be written")):
        with pytest.raises(OutputError, match=reason):
            begin(out)
    assert Path("file").read_text() == "x"
    Path("runs").write_text("x")
    with pytest.raises(OutputError, match="runs"):
        start()


@pytest.mark.parametrize(("begin", "call"), [(start, (Path, "open")), (overwrite, (os, "open"))])
def test_a_disk_that_is_read_only_is_an_output_error(
    monkeypatch: pytest.MonkeyPatch, begin: Callable[[Path], Path], call: tuple[object, str]
) -> None:
    Path("out").mkdir()
    monkeypatch.setattr(*call, refuse)
    with pytest.raises(OutputError, match="Read-only"):
        begin(Path("out"))
    assert names(Path("out")) == []


@pytest.mark.parametrize("overwriting", [False, True])
def test_of_two_simultaneous_starts_one_wins(overwriting: bool) -> None:
    both = Barrier(2)

    def begin(folder: Path) -> int:
        both.wait()
        try:
            new_run_folder("train", folder, overwrite=overwriting, resume=False)
            with run_lock(folder):
                both.wait()
                return 0
        except DenseSiamError as error:
            both.wait()
            return error.exit_code

    with ThreadPoolExecutor(2) as pool:
        for number in range(20):
            codes = pool.map(begin, [Path(f"out{number}")] * 2)
            assert sorted(codes) in ([0, 2], [0, 7])


def test_torch_is_not_needed() -> None:
    code = "import sys, densesiam_seg.io.run_directory; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_latest_model_is_the_one_written_last() -> None:
    def write_model(run: Path, when: int) -> None:
        (run / "model").mkdir(parents=True)
        (run / "model" / "config.json").write_text("{}")
        os.utime(run / "model" / "config.json", ns=(when, when))

    runs = [start() for _ in range(3)]
    with pytest.raises(ModelError, match="train one first"):
        latest_model()
    write_model(runs[2], 1000)
    assert latest_model() == runs[2]  # not the link that points to it
    write_model(runs[0], 2000)
    assert latest_model() == runs[0]
    write_model(Path("runs/mine"), 3000)
    assert latest_model() == Path("runs/mine")


def test_the_status_tells_how_the_run_ended(clock: Mock) -> None:
    folder = start(Path("out"))
    began = read_status(folder)
    assert (began["status"], began["pid"]) == ("running", os.getpid())
    clock.now.return_value = datetime(2026, 1, 3)
    write_status(
        folder, "failed", reason="loss is nan", exit_code=6, step=12, files=["b\udcff.jpg"]
    )
    found = read_status(folder)
    assert found == json.loads((folder / "run.json").read_bytes())
    assert (found["status"], found["reason"], found["exit_code"]) == ("failed", "loss is nan", 6)
    assert (found["step"], found["files"]) == (12, ["b\udcff.jpg"])
    assert found["started"] == began["started"] < found["written"]
    assert names(folder) == ["run.json"]
    assert read_status(Path("absent")) == {}
    with pytest.raises(OutputError, match=r"run\.json"):
        write_status(Path("absent"), "done")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (StoppedError("enough", 15), "stopped", 143),
        (InputError("no image"), "failed", 3),
        (KeyError(), "failed", 1),
    ],
)
def test_what_ends_the_work_is_noted(error: Exception, status: str, code: int) -> None:
    folder = start(Path("out"))
    with pytest.raises(type(error)), noting_failure(folder):
        raise error
    found = read_status(folder)
    assert (found["status"], found["exit_code"]) == (status, code)
    assert found["reason"] == (str(error) or "KeyError")


def test_what_had_finished_stays_finished() -> None:
    folder = start(Path("out"))
    write_status(folder, "done", exit_code=0)
    with pytest.raises(KeyError), noting_failure(folder):
        raise KeyError
    assert read_status(folder)["status"] == "done"


def test_too_little_space_is_an_output_error_with_both_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = Mock(return_value=Mock(free=5_000_000))
    monkeypatch.setattr(shutil, "disk_usage", usage)
    require_space(Path("not/yet/there"), 5_000_000)
    usage.assert_called_once_with(Path.cwd())
    with pytest.raises(OutputError, match="5 MB are free and 6 MB are needed"):
        require_space(Path("not/yet/there"), 6_000_000)


def test_a_run_may_begin_where_an_earlier_start_was_killed_at_once() -> None:
    place = Path("new")
    assert is_free(place)
    place.mkdir()
    with run_lock(place):
        pass
    temporary_name(place / "run.json").touch()
    assert is_free(place)
    start(place)
    assert not is_free(place)
    other = Path("other")
    other.mkdir()
    (other / ".hidden").touch()
    assert not is_free(other)
    assert not is_free(other / ".hidden")
