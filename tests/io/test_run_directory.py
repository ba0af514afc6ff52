"""The folder of a run: a new one, an own one, never a stranger's."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from datetime import datetime
from pathlib import Path

import pytest

from densesiam_seg.errors import BusyError, ModelError, OutputError, UsageError
from densesiam_seg.io.lock import LOCK, RunLock
from densesiam_seg.io.run_directory import (
    RUN_NAMES,
    latest_model,
    latest_run,
    new_run_folder,
    read_status,
    require_space,
    write_status,
)

NOON = datetime(2026, 1, 2, 12, 0, 0)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start(out: Path | None = None, command: str = "train", now: datetime = NOON) -> Path:
    return new_run_folder(command, out, overwrite=False, resume=False, now=now)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path) -> None:
    """Everything that a run writes."""
    for name in sorted(RUN_NAMES - {"run.json"}):
        if "." in name:
            (folder / name).write_text("x")
        else:
            (folder / name / "deep").mkdir(parents=True, exist_ok=True)
            (folder / name / "deep" / "file").write_text("x")


def test_the_default_place_is_named_by_command_and_time() -> None:
    found = [start() for _ in range(11)]
    assert [str(path) for path in found[:3]] == [
        "runs/train/20260102-120000",
        "runs/train/20260102-120000-2",
        "runs/train/20260102-120000-3",
    ]
    assert start(command="evaluate") == Path("runs/evaluate/20260102-120000")
    assert names(found[0]) == ["run.json"]
    assert latest_run("train") == Path("runs/train/20260102-120000-11")


def test_latest_points_to_the_newest_by_a_relative_link() -> None:
    for _ in range(2):
        path = start()
        link = Path("runs/train/latest")
        assert str(link.readlink()) == path.name
        assert link.resolve() == path.resolve()
    assert not [name for name in names(Path("runs/train")) if name.startswith(".")]


def test_without_links_latest_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("links are not allowed")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for _ in range(2):
        path = start()
        assert Path("runs/train/latest").read_text() == path.name + "\n"
        assert latest_run() == path


def test_a_folder_called_latest_does_no_harm() -> None:
    Path("runs/train/latest").mkdir(parents=True)
    Path("runs/train/latest/file").write_text("theirs")
    path = start()
    assert latest_run() == path
    assert names(Path("runs/train")) == [path.name, "latest"]


def test_an_explicit_place_is_created_and_not_pointed_to() -> None:
    assert start(Path("a/b/c")) == Path("a/b/c")
    assert read_status(Path("a/b/c"))["status"] == "running"
    assert not Path("runs").exists()


def test_an_empty_folder_or_one_with_only_a_lock_is_taken() -> None:
    Path("out").mkdir()
    Path("out", LOCK).write_text("")
    Path("out", ".tmp-12-0123abcd").write_text("half a file")
    assert start(Path("out")) == Path("out")
    assert read_status(Path("out"))["status"] == "running"
    new_run_folder("train", Path("out"), overwrite=True, resume=False)
    assert names(Path("out")) == [LOCK, "run.json"]


def test_a_folder_that_holds_something_is_refused() -> None:
    start(Path("out"))
    Path("theirs").mkdir()
    Path("theirs/.hidden").write_text("x")
    for out in (Path("out"), Path("theirs")):
        with pytest.raises(
            UsageError, match=r"is not empty; give --overwrite, --resume or"
        ) as caught:
            start(out)
        assert caught.value.exit_code == 2


def test_overwrite_deletes_what_a_run_wrote() -> None:
    folder = start(Path("out"))
    fill(folder)
    assert new_run_folder("train", folder, overwrite=True, resume=False) == folder
    assert names(folder) == [LOCK, "run.json"]
    new_run_folder("train", Path("new"), overwrite=True, resume=False)
    assert names(Path("new")) == [LOCK, "run.json"]


def test_overwrite_refuses_a_folder_with_a_strangers_file_and_names_it() -> None:
    folder = start(Path("out"))
    fill(folder)
    (folder / "thesis.tex").write_text("x")
    before = names(folder)
    with pytest.raises(UsageError, match=r"holds 'thesis\.tex', which no run wrote"):
        new_run_folder("train", folder, overwrite=True, resume=False)
    assert names(folder) == sorted([LOCK, *before])
    assert (folder / "model" / "deep" / "file").exists()


def test_overwrite_refuses_a_strangers_folder_with_our_names() -> None:
    fill_me = Path("project")
    fill_me.mkdir()
    fill(fill_me)
    for status in (None, "not JSON", "[]", '{"status": "done"}'):
        if status is not None:
            (fill_me / "run.json").write_text(status)
        before = names(fill_me)
        with pytest.raises(UsageError, match=r"holds no run\.json"):
            new_run_folder("train", fill_me, overwrite=True, resume=False)
        assert [name for name in names(fill_me) if name != LOCK] == [n for n in before if n != LOCK]


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
            new_run_folder("train", folder, overwrite=True, resume=False)
        except KeyboardInterrupt:
            fill(folder)
        else:
            break
    assert number == len(RUN_NAMES) + 1
    assert names(folder) == [LOCK, "run.json"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX links")
def test_overwrite_does_not_follow_links() -> None:
    folder = start(Path("out"))
    Path("theirs").mkdir()
    Path("theirs/file").write_text("x")
    (folder / "model").symlink_to("../theirs")
    new_run_folder("train", folder, overwrite=True, resume=False)
    assert names(Path("theirs")) == ["file"]
    assert names(folder) == [LOCK, "run.json"]


def test_overwrite_leaves_a_folder_that_is_in_use() -> None:
    folder = start(Path("out"))
    fill(folder)
    before = names(folder)
    with RunLock(folder), pytest.raises(BusyError):
        new_run_folder("train", folder, overwrite=True, resume=False)
    assert names(folder) == sorted([LOCK, *before])


def test_other_commands_name_their_own_files() -> None:
    folder = new_run_folder("demo", Path("d"), overwrite=False, resume=False)
    (folder / "picture.png").write_text("x")
    with pytest.raises(UsageError, match=r"picture\.png"):
        new_run_folder("demo", folder, overwrite=True, resume=False)
    new_run_folder("demo", folder, overwrite=True, resume=False, names=RUN_NAMES | {"picture.png"})
    assert names(folder) == [LOCK, "run.json"]


def test_resume_leaves_a_run_as_it_is() -> None:
    folder = start(Path("out"))
    fill(folder)
    before = names(folder), (folder / "run.json").read_bytes()
    assert new_run_folder("train", folder, overwrite=False, resume=True) == folder
    assert (names(folder), (folder / "run.json").read_bytes()) == before


def test_resume_without_a_place_takes_the_latest_run() -> None:
    with pytest.raises(UsageError, match=r"no run to resume"):
        new_run_folder("train", None, overwrite=False, resume=True)
    start()
    newest = start()
    assert new_run_folder("train", None, overwrite=False, resume=True) == newest


def test_resume_refuses_what_is_not_a_run() -> None:
    Path("theirs").mkdir()
    Path("theirs/file").write_text("x")
    for out in (Path("theirs"), Path("absent")):
        with pytest.raises(UsageError, match="holds no run to resume"):
            new_run_folder("train", out, overwrite=False, resume=True)
    assert not Path("absent").exists()
    assert names(Path("theirs")) == ["file"]


def test_overwrite_and_resume_contradict() -> None:
    with pytest.raises(UsageError, match="contradict"):
        new_run_folder("train", Path("out"), overwrite=True, resume=True)


def test_a_file_or_an_impossible_place_is_an_output_error() -> None:
    Path("file").write_text("x")
    for out, reason in ((Path("file"), "is not a folder"), (Path("file/a"), "cannot be written")):
        for overwrite in (False, True):
            with pytest.raises(OutputError, match=reason) as caught:
                new_run_folder("train", out, overwrite=overwrite, resume=False)
            assert caught.value.exit_code == 5
    assert Path("file").read_text() == "x"
    Path("runs").write_text("x")
    with pytest.raises(OutputError, match="runs"):
        start()


def test_a_disk_that_is_read_only_is_an_output_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    Path("out").mkdir()
    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(OutputError, match=r"Read-only.*choose a place you may write to"):
        start(Path("out"))
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match=r"Read-only.*choose a place you may write to"):
        new_run_folder("train", Path("out"), overwrite=True, resume=False)
    assert names(Path("out")) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_two_simultaneous_starts_one_wins(overwrite: bool) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from densesiam_seg.errors import DenseSiamError\n"
        "from densesiam_seg.io.lock import RunLock\n"
        "from densesiam_seg.io.run_directory import new_run_folder\n"
        "def start(out):\n"
        "    try:\n"
        f"        folder = new_run_folder('train', out, overwrite={overwrite}, resume=False)\n"
        "        with RunLock(folder):\n"
        "            print(0, flush=True)\n"
        "            sys.stdin.readline()\n"
        "    except DenseSiamError as error:\n"
        "        print(error.exit_code, flush=True)\n"
        "        sys.stdin.readline()\n"
        "for number in range(20):\n"
        "    start(Path(f'out{number}'))\n"
    )
    command = [sys.executable, "-c", code]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for _ in range(20):
        codes = []
        for process in both:
            assert process.stdout is not None
            codes.append(int(process.stdout.readline()))
        assert sorted(codes) in ([0, 2], [0, 7])
        for process in both:
            assert process.stdin is not None
            process.stdin.write("next\n")
            process.stdin.flush()
    for process in both:
        process.communicate()
    assert [process.returncode for process in both] == [0, 0]


def write_model(run: Path, when: int) -> None:
    config = run / "model" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text("{}")
    os.utime(config, ns=(when, when))


def test_the_latest_model_is_the_one_written_last() -> None:
    with pytest.raises(
        ModelError, match=r"train one first \(densesiam-seg train IMAGES\)"
    ) as caught:
        latest_model()
    assert caught.value.exit_code == 4
    runs = [start() for _ in range(3)]
    with pytest.raises(ModelError):
        latest_model()
    write_model(runs[2], 1000)
    assert latest_model() == runs[2]  # not the link that points to it
    write_model(runs[0], 2000)
    assert latest_model() == runs[0]
    write_model(Path("runs/mine"), 3000)
    assert latest_model() == Path("runs/mine")
    assert latest_model(base=Path("runs").absolute()) == Path("runs/mine").absolute()


def test_latest_wins_over_the_clock() -> None:
    start(now=datetime(2030, 1, 1))
    start(now=datetime(2020, 1, 1))
    assert latest_run().name == "20200101-000000"
    Path("runs/train/latest").unlink()
    assert latest_run().name == "20300101-000000"


@pytest.mark.parametrize("text", ["", "../../elsewhere", "/etc", "\0", "20990101-000000"])
def test_a_strange_pointer_is_passed_over(text: str) -> None:
    run = start()
    Path("elsewhere").mkdir()
    Path("elsewhere/run.json").write_text("{}")
    Path("runs/train/latest").unlink()
    Path("runs/train/latest").write_text(text)
    assert latest_run() == run


def test_the_status_tells_how_the_run_ended() -> None:
    folder = start(Path("out"))
    began = read_status(folder)
    assert began["status"] == "running"
    assert began["pid"] == os.getpid()
    write_status(
        folder, "failed", reason="loss is nan", exit_code=6, step=12, files=["b\udcff.jpg"]
    )
    found = json.loads((folder / "run.json").read_bytes())
    assert found == read_status(folder)
    assert (found["status"], found["reason"], found["exit_code"]) == ("failed", "loss is nan", 6)
    assert (found["step"], found["files"]) == (12, ["b\udcff.jpg"])
    assert found["started"] == began["started"] <= found["written"]
    assert names(folder) == ["run.json"]


def test_the_status_of_nothing_is_empty() -> None:
    assert read_status(Path("absent")) == {}
    with pytest.raises(OutputError, match=r"run\.json"):
        write_status(Path("absent"), "done")


def test_too_little_space_is_an_output_error_with_both_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = namedtuple("usage", "total used free")
    asked: list[Path] = []

    def disk_usage(path: Path) -> usage:
        asked.append(path)
        return usage(10**9, 10**9 - 5_000_000, 5_000_000)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    require_space(Path("not/yet/there"), 5_000_000)
    assert asked == [Path.cwd()]
    with pytest.raises(OutputError, match="5 MB are free and 6 MB are needed; free some space"):
        require_space(Path("not/yet/there"), 6_000_000)


def test_the_real_disk_has_some_space() -> None:
    require_space(Path("a"), 1)
    with pytest.raises(OutputError):
        require_space(Path("a"), 10**18)


def test_torch_is_not_needed() -> None:
    code = "import sys, densesiam_seg.io.run_directory; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
