"""What surrounds the program: its streams, terminal, language, home, temporary folders, and the clock."""

from __future__ import annotations

import datetime as datetimes
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from photographs import picture
from program import Cli, options
from tiny_runs import TinyRuns, course, end, ending, files_of
from trials import Trials, fault

from densesiam_seg.io.records import read_records
from densesiam_seg.io.run_directory import read_status

ROOT = Path(__file__).resolve().parents[2]
PYTHON = shlex.quote(sys.executable)
AS_IT_IS = f"{PYTHON} -m densesiam_seg"
SLIM = f"{PYTHON} {shlex.quote(str(ROOT / 'tests' / 'support' / 'slim_program.py'))}"

pytestmark = pytest.mark.usefixtures("slim_module")
posix = pytest.mark.skipif(
    shutil.which("bash") is None or not Path("/dev/full").exists(),
    reason="needs bash and /dev/full",
)


@dataclass(frozen=True)
class Surroundings:
    """How the program is started: what is done in the shell before and with its streams, and what comes of it."""

    streams: str = ""
    before: str = ""
    without: tuple[str, ...] = ()
    given: dict[str, str] = field(default_factory=dict)
    code: int = 0
    shown: bool = True
    """Whether its stderr can be read."""
    data: bool = True
    """Whether its stdout can be."""
    around: str = ""
    """A program that starts the shell."""


SURROUNDINGS = {
    "all at once": Surroundings(
        streams=">&- <&-",
        without=("TERM", "XDG_CACHE_HOME", "USER", "LOGNAME"),
        given={
            "LC_ALL": "C",
            "LANG": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "HOME": "/nonexistent/home",
            "TMPDIR": "/nonexistent/tmp",
        },
        data=False,
    ),
    "stdout full": Surroundings(streams="> /dev/full", code=5, data=False),
    "reader leaves": Surroundings(streams="| true", before="set -o pipefail", data=False),
    "stdout closed": Surroundings(streams=">&-", data=False),
    "stderr full": Surroundings(streams="2> /dev/full", shown=False),
    "stderr closed": Surroundings(streams="2>&-", shown=False),
    "both streams into one that leaves": Surroundings(
        streams="2>&1 | true", before="set -o pipefail", data=False, shown=False
    ),
    "all streams closed": Surroundings(streams="<&- >&- 2>&-", data=False, shown=False),
    "no terminal": Surroundings(
        streams="< /dev/null", without=("TERM", "COLUMNS"), around="setsid -w"
    ),
    "LANG=C": Surroundings(given={"LANG": "C", "LC_ALL": "C"}),
    "ASCII alone": Surroundings(
        given={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ),
    "Latin": Surroundings(given={"PYTHONIOENCODING": "latin-1"}),
    "no HOME": Surroundings(without=("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME")),
    "HOME not there": Surroundings(given={"HOME": "/nonexistent/home"}),
    "HOME is a file": Surroundings(given={"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/x"}),
    "HOME read-only": Surroundings(given={"HOME": "/proc/1", "MPLCONFIGDIR": "/proc/1/x"}),
    "no TMPDIR": Surroundings(given={"TMPDIR": "/nonexistent/tmp"}),
    "no temporary folder": Surroundings(
        given={"TMPDIR": "/nonexistent"},
        before="mount -t tmpfs -o ro none /var/tmp && mount -t tmpfs -o ro none /dev/shm",
        around="unshare -m",
    ),
    "no shared memory": Surroundings(
        before="mount -t tmpfs -o size=4k none /dev/shm && (cat /dev/zero > /dev/shm/x || true) 2> /dev/null",
        around="unshare -m",
    ),
    "a shared memory of 64 kB": Surroundings(
        before="mount -t tmpfs -o size=64k none /dev/shm", around="unshare -m"
    ),
}
TRAINED_IN = (
    *("all at once", "stdout full", "reader leaves", "HOME read-only", "no temporary folder"),
    "no shared memory",
)
"""Where there is time, runs are made in these; where there is little, a run and a prediction in the first."""
NOWHERE = Surroundings(before="gone=$(mktemp -d) && cd $gone && rmdir $gone")
"""In a folder that was deleted."""


@posix
class TestSurroundings:
    @fault(
        "F22",
        "streams closed or full, no terminal, HOME, TMPDIR, shm",
        "the same masks; or 5 and one line for a full stdout",
    )
    def test_predict(
        self, trials: Trials, tmp_path: Path, model_folder: Path, image_folder: Path
    ) -> None:
        images = tmp_path / "images"
        images.mkdir()
        for each in sorted(image_folder.iterdir())[:2]:
            shutil.copy(each, images)
        for name in ("日本.png", os.fsdecode(b"\xe9t\xe9.png")):
            picture(images / name)
        for name, around in SURROUNDINGS.items():
            if not trials.full and name not in TRAINED_IN[:1]:
                continue
            if around.around == "unshare -m" and not may_mount():
                continue
            out = tmp_path / name
            with trials.trial(name):
                done = start(
                    around, "predict", images, "--model", model_folder, "--out", out, "--json"
                )
                assert done.returncode == around.code, done.stderr
                assert {each.name for each in out.iterdir() if each.suffix == ".png"} == {
                    f"{each.stem}.png" for each in images.iterdir()
                }
                lines = done.stderr.splitlines()
                if around.shown:
                    errors = [line for line in lines if line.startswith(b"error[")]
                    assert len(errors) == (around.code != 0)
                    assert lines[-1].startswith(b"error[output]: " if around.code else b"4 masks")
                    assert not any(line.startswith((b"Traceback", b"Exception")) for line in lines)
                if around.data:
                    assert len(json.loads(done.stdout)["masks"]) == 4
        if not may_mount():
            pytest.skip("some need mounts of their own: unshare -m as root")

    @fault(
        "F22",
        "the same, and a mistake: an image that is not there",
        "3 and one line wherever it can be shown",
    )
    def test_mistakes(self, trials: Trials, tmp_path: Path) -> None:
        everywhere = {"a deleted folder": NOWHERE, **SURROUNDINGS}
        names = list(everywhere)
        for number in trials.several(6, len(names)):
            name, around = names[number], everywhere[names[number]]
            if around.around == "unshare -m" and not may_mount():
                continue
            with trials.trial(name):
                given = ("predict", "日本/ü.png", "--out", tmp_path / "mask.png")
                done = start(around, *given, program=AS_IT_IS)
                assert done.returncode == 3, done.stderr
                assert done.stdout == b""
                if around.shown:
                    (line,) = done.stderr.splitlines()
                    assert line.startswith(b"error[input]: ")

    @fault(
        "F22",
        "the same, to train with two workers",
        "the same bytes of the model",
    )
    def test_train(
        self,
        trials: Trials,
        tmp_path: Path,
        image_folder: Path,
        tiny_settings: dict[str, Any],
    ) -> None:
        settings = {**tiny_settings, "epochs": 1, "workers": 2}
        runs = TinyRuns(tmp_path, image_folder, tiny_settings)
        models = {bytes_of(end(runs.begin("as usual", epochs=1)).model)}
        for name, around in SURROUNDINGS.items():
            if name not in TRAINED_IN[: None if trials.full else 1]:
                continue
            if around.around == "unshare -m" and not may_mount():
                continue
            with trials.trial(name):
                run = tmp_path / name
                done = start(
                    around, "train", "--no-report", image_folder, "--out", run, "--prior", "none", "--json",
                    *options(settings),
                )  # fmt: skip
                assert done.returncode == around.code, done.stderr
                assert ending(run) == ("done", 0)
                models.add(bytes_of(run / "model"))
                assert len(models) == 1
                assert b"Traceback" not in done.stderr
                if around.data:
                    assert json.loads(done.stdout)["complete"] is True


def bytes_of(model: Path) -> bytes:
    """The weights of a model, as they lie on the disk."""
    return (model / "model.safetensors").read_bytes()


def start(
    around: Surroundings, *arguments: object, program: str = SLIM
) -> subprocess.CompletedProcess[bytes]:
    """Run the program there, in a shell of its own."""
    command = shlex.join(map(os.fspath, map(as_text, arguments)))
    script = f"{around.before or 'true'} && {program} {command} {around.streams}"
    environment = {name: each for name, each in os.environ.items() if name not in around.without}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [*around.around.split(), "bash", "-c", script],
        env=environment | around.given,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def as_text(argument: object) -> str:
    return os.fspath(argument) if isinstance(argument, Path) else str(argument)


def may_mount() -> bool:
    """Whether a process may have mounts of its own."""
    if shutil.which("unshare") is None:
        return False
    test = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(test, capture_output=True, check=False).returncode == 0


JUMPS = (
    *(0.0, 2.0**31 + 100, 946_684_800.0, 1_900_000_000.0, 4_102_444_800.0, 1.0),
    *(2.0**32 + 5, 1_700_000_000.0, 1_699_999_999.0, 2.0**31 - 1, 2.0**31),
)
"""Seconds since 1970: that year, 2000, 2023, 2030, both sides of 2038, 2100, 2106."""


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the wall clock show these times, one after the other and then again."""

    def set_it(*times: float) -> None:
        shown = cycle(times)

        class Clock(datetimes.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Clock:
                return cls.fromtimestamp(next(shown), tz)

        monkeypatch.setattr(time, "time", lambda: next(shown))
        monkeypatch.setattr(time, "time_ns", lambda: int(next(shown) * 1e9))
        for module in ("densesiam_seg.training.train", "densesiam_seg.io.run_directory"):
            monkeypatch.setattr(f"{module}.datetime", Clock)

    return set_it


class TestClock:
    @fault(
        "F23",
        "a clock that jumps to and fro and past 2038, to train",
        "the same bytes, records and status; images as old too",
    )
    def test_train(
        self,
        trials: Trials,
        tmp_path: Path,
        image_folder: Path,
        tiny_settings: dict[str, Any],
        set_clock: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        runs = TinyRuns(tmp_path, image_folder, tiny_settings)
        end(runs.begin("reference"))
        monkeypatch.setattr("densesiam_seg.training.train.SAVE_SECONDS", -1.0)
        reference = files_of(tmp_path / "reference" / "model")
        for number in trials.several(3, 11):
            with trials.trial(number):
                set_clock(*JUMPS[number:], *JUMPS[:number])
                out = f"run{number}"
                end(runs.begin(out))
                assert files_of(tmp_path / out / "model") == reference
                assert course(tmp_path / out) == course(tmp_path / "reference")
                assert all(
                    0 <= each["seconds"] < 600
                    for each in read_records(tmp_path / out / "metrics.jsonl")
                    if "seconds" in each
                )
                assert ending(tmp_path / out) == ("done", 0)
                status = read_status(tmp_path / out)
                for name in ("started", "written"):
                    when = datetimes.datetime.fromisoformat(status[name])
                    assert int(when.timestamp()) in map(int, JUMPS)
                lines = (tmp_path / out / "train.log").read_text().splitlines()
                assert len(lines) >= 5
        for second in (-1, 2**31 + 10, 2**33):
            with trials.trial(f"images of {second}"):
                images = tmp_path / f"images{second}"
                shutil.copytree(image_folder, images)
                for path in images.iterdir():
                    os.utime(path, (second, second))
                out = f"run{second}"
                end(runs.begin(out, images=images))
                assert files_of(tmp_path / out / "model") == reference
                end(runs.resume(out))
                assert read_status(tmp_path / out)["status"] == "done"

    @fault(
        "F23",
        "two runs in one second, or the second before the first",
        "folders of their own; the latest run is found",
    )
    def test_latest(
        self,
        trials: Trials,
        tmp_path: Path,
        cli: Cli,
        image_folder: Path,
        tiny_settings: dict[str, Any],
        set_clock: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        given = ("--prior", "none", *options({**tiny_settings, "epochs": 1}), "-q", "--json")
        for number, (first, second) in enumerate(
            ((1.9e9, 1.9e9), (4.2e9, 1.0e9), (2.0**31 + 5, 2.0**31 - 5), (0.0, 2.0**32))
        ):
            here = tmp_path / str(number)
            here.mkdir()
            monkeypatch.chdir(here)
            made = []
            for seed, when in enumerate((first, second)):
                set_clock(when)
                code, told, error = cli(
                    "train", "--no-report", image_folder, *given, "--seed", seed
                )
                assert code == 0, error
                made.append(json.loads(told)["run"])
                # The clock of the disk is the same.
                os.utime(Path(made[-1]) / "model" / "config.json", (when, when))
            with trials.trial((first, second, "folders")):
                assert made[0] != made[1]
                link = here / "runs" / "train" / "latest"
                assert link.resolve() == Path(made[1]).resolve()
            with trials.trial((first, second, "--resume")):
                code, told, error = cli("train", "--no-report", "--resume", "--json", "-q")
                assert code == 0, error
                assert json.loads(told)["run"] == made[1]
            with trials.trial((first, second, "predict")):
                folders: set[str] = set()
                for when in (first, second):
                    set_clock(when)
                    call = ("predict", image_folder, "--model", made[1], "--json", "-q")
                    code, told, error = cli(*call)
                    assert code == 0, error
                    folders.add(str(Path(json.loads(told)["masks"][0]["mask"]).parent))
                assert len(folders) == 2
            if second < first:
                continue  # which of two models is the later one, only the disk's clock can tell
            with trials.trial((first, second, "its model")):
                mask = here / "mask.png"
                image = min(image_folder.iterdir())
                masks = []
                for model in ([], ["--model", made[1]]):
                    code, _, error = cli("predict", image, "--out", mask, "--overwrite", *model)
                    assert code == 0, error
                    masks.append(mask.read_bytes())
                assert masks[0] == masks[1]
