"""The folder of a run: its path, whether this program wrote it, who uses it, and the run's status."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from densesiam_seg.errors import (
    BusyError,
    DenseSiamError,
    ModelError,
    NumericError,
    OutputError,
    StoppedError,
    UsageError,
)
from densesiam_seg.io.files import (
    JSON,
    discard,
    free_space,
    is_leftover,
    means_a_file,
    open_regular,
    output_error,
    remove,
    remove_leftovers,
    replace_json,
    replace_text,
    temporary_name,
)
from densesiam_seg.io.lock import LOCK, is_alive, run_lock

Status: TypeAlias = Literal["running", "done", "stopped", "failed"]

RUNS = Path("runs")
LATEST = "latest"
STATUS = "run.json"
RUN_NAMES = frozenset(
    {"config.toml", "env.json", "dataset.json", "metrics.jsonl", "train.log", "skipped.jsonl"}
    | {STATUS, "checkpoints", "model", "report"}
)
"""Everything that a training run writes into its folder, beside its lock: all that --overwrite may delete."""

_OWN = {
    "model": re.compile(r"config\.json|clusters\.json|model\.safetensors"),
    "checkpoints": re.compile(r"step-[0-9.]+"),
    "report": re.compile(r"epoch-[0-9]+\.png|index\.html"),
}
"""Names of what a run writes into its folders."""
_PROGRAM = "densesiam-seg"
_STAMP = re.compile(r"[0-9]{8}-[0-9]{6}(-[0-9]{1,6})?")


def new_run_folder(
    command: str,
    out: Path | None,
    *,
    overwrite: bool,
    resume: bool,
    names: Collection[str] = RUN_NAMES,
    request: JSON = None,
) -> Path:
    """The folder for a run of `command`, ready to be locked; afterwards it holds `run.json`, which marks it as ours.

    `request`, what was asked for, stays in that file whatever its status.

    Without `out` it is a new `runs/<command>/<timestamp>` under the current directory, or with `resume` the latest
    one. A folder that holds something needs `overwrite`, which empties it of `names`, or `resume`, which leaves it as
    it is. Raises UsageError for a folder in use by other things, BusyError for one in use by another process and
    OutputError for one that cannot be written.
    """
    if overwrite and resume:
        raise UsageError("--overwrite and --resume contradict each other; give one of them")
    base = RUNS / command
    if resume:
        folder = out if out is not None else _latest_run(base)
        if not read_status(folder):
            raise UsageError(f"--out {folder}: holds no run to resume; leave --resume out")
        return folder
    if out is not None and means_a_file(out) and not os.path.exists(out):  # noqa: PTH110
        raise UsageError(
            f"--out {out}: a run is a folder, and this is called like a file; give a folder"
        )
    folder = out if out is not None else _stamped_folder(base)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if os.path.exists(folder):  # noqa: PTH110
            raise OutputError(f"{folder}: is not a folder; choose another --out") from error
        raise output_error(folder, error) from error
    if overwrite:
        # Before the lock, whose file would stay in other people's folders.
        _require_own(folder, names)
        with run_lock(folder):
            _empty(folder, names)
            write_status(folder, "running", request=request)
    else:
        _claim(folder, request)
    if out is None:
        _point_latest(base, folder.name)
    return folder


def is_free(folder: Path) -> bool:
    """Whether a run can begin there: nothing is in the way but what an earlier start left that was killed at once."""
    try:
        return not _entries(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def latest_model() -> Path:
    """The run below `runs` whose model was written last, by whatever name. Raises ModelError when there is none."""
    models = [*RUNS.glob("*/model/config.json"), *RUNS.glob("*/*/model/config.json")]
    # `latest` is a link to a run that is listed under its own name too.
    own = [path for path in models if not path.parents[1].is_symlink()]
    if not own:
        raise ModelError(
            f"{RUNS}: no run with a model; train one first (densesiam-seg train IMAGES) "
            "or name one with --model"
        )
    # Of two of one time the one whose folder sorts last, as the second run of a second does.
    return max(own, key=lambda path: (path.stat().st_mtime_ns, path.parents[1])).parents[1]


def write_status(
    folder: Path,
    status: Status,
    *,
    reason: str = "",
    exit_code: int | None = None,
    **details: JSON,
) -> None:
    """Write `run.json`: how the run stands, why, when it began, and which process wrote this. Raises OutputError.

    `details` are further members, such as the step that failed. The request stays where none is given.
    """
    replace_json(folder / STATUS, _status(folder, status, reason, exit_code, details))


def _status(
    folder: Path, status: Status, reason: str, exit_code: int | None, details: Mapping[str, JSON]
) -> dict[str, JSON]:
    """The contents of a `run.json` that comes after the one in `folder`."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    before = read_status(folder)
    return {
        "program": _PROGRAM,
        "status": status,
        "reason": reason,
        "exit_code": exit_code,
        "started": now if status == "running" else before.get("started", now),
        "written": now,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "request": before.get("request"),
        **details,
    }


@contextmanager
def noting_failure(folder: Path) -> Iterator[None]:
    """Write how work ended that an error or a signal ends, and raise that again. What had finished stays finished."""
    try:
        yield
    except BaseException as error:
        status: Status = "stopped" if isinstance(error, StoppedError) else "failed"
        code = error.exit_code if isinstance(error, DenseSiamError) else 1
        if read_status(folder).get("status") != "done":
            # On a full disk the status cannot be written either; the first error is the one to report.
            with suppress(OutputError):
                reason = str(error) or type(error).__name__
                write_status(folder, status, reason=reason, exit_code=code, **_details(error))
        raise


def _details(error: BaseException) -> dict[str, JSON]:
    """What else is known of a failure: its step and images, or where a bug lies."""
    if isinstance(error, NumericError):
        return {"step": error.step, "files": error.files}
    if isinstance(error, DenseSiamError) or not isinstance(error, Exception):
        return {}
    return {"traceback": "".join(traceback.format_exception(error))}


def read_status(folder: Path) -> dict[str, Any]:
    """The contents of `run.json`, empty when it is absent, damaged or not ours."""
    try:
        with open_regular(folder / STATUS) as file:
            found = json.loads(file.read(1 << 20))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("program") == _PROGRAM else {}


def require_space(folder: Path, bytes_needed: int) -> None:
    """Raises OutputError, with both figures, when the disk of `folder` has fewer than `bytes_needed` bytes free."""
    free = free_space(folder)
    if free < bytes_needed:
        raise OutputError(
            f"{folder}: {free / 1e6:.0f} MB are free and {bytes_needed / 1e6:.0f} MB are needed; "
            "free some space or choose another place with --out"
        )


def _claim(folder: Path, request: JSON) -> None:
    """Take an empty folder by creating its `run.json`, which only one of two simultaneous starts can do.

    A lock would not do: while the second start held it to look, the first could not take it. The file gets its name
    complete, so that a kill leaves either an empty folder or a run.
    """
    fresh = temporary_name(folder / STATUS)
    try:
        if not _entries(folder):
            replace_json(fresh, _status(folder, "running", "", None, {"request": request}))
            try:
                os.link(fresh, folder / STATUS)
            except FileExistsError:
                raise
            except OSError:  # a disk without links
                (folder / STATUS).touch(exist_ok=False)
                fresh.replace(folder / STATUS)
            return
    except (OSError, OutputError) as error:
        # The first of two starts may have cleaned up already, and with it the file of the second.
        if not _entries(folder):
            raise (
                error if isinstance(error, OutputError) else output_error(folder, error)
            ) from error
    finally:
        remove(fresh)
    status = read_status(folder)
    if status.get("status") == "running" and is_alive(status.get("host"), status.get("pid")):
        raise BusyError(
            f"{folder}: in use by process {status['pid']} on {status['host']}; wait for it or choose another --out"
        )
    raise UsageError(f"--out {folder}: is not empty; give --overwrite, --resume or another folder")


def _empty(folder: Path, names: Collection[str]) -> None:
    """Delete what a run wrote, for the holder of the lock; refuse a folder with anything else in it."""
    held = _require_own(folder, names)
    try:
        # `run.json` last, so that an interrupted deletion can be repeated.
        for path in sorted(held, key=lambda path: path.name == STATUS):
            discard(path)
        remove_leftovers(folder)
    except OSError as error:
        raise output_error(folder, error) from error


def _require_own(folder: Path, names: Collection[str]) -> list[Path]:
    """What a run wrote there. Raises UsageError for a folder with anything else in it."""
    try:
        held = _entries(folder)
    except OSError as error:
        raise output_error(folder, error) from error
    foreign = [path.name for path in held if path.name not in names]
    foreign += [f"{path.parent.name}/{path.name}" for each in held for path in _strangers(each)]
    if foreign:
        raise UsageError(
            f"--out {folder}: holds {foreign[0]!a}, which no run wrote; "
            "--overwrite deletes only runs, so choose another folder or move that away"
        )
    if held and not read_status(folder):
        raise UsageError(
            f"--out {folder}: holds no {STATUS} of {_PROGRAM}, so these may be other "
            "people's files; choose another folder"
        )
    return held


def _strangers(folder: Path) -> list[Path]:
    """What no run writes in that folder of a run, such as a user's own notes beside the model."""
    own = _OWN.get(folder.name)
    if own is None or folder.is_symlink() or not folder.is_dir():
        return []
    return [path for path in _entries(folder) if not own.fullmatch(path.name)]


def _entries(folder: Path) -> list[Path]:
    """The entries of `folder` except the lock file, which stays, and leftovers of killed processes."""
    return sorted(p for p in folder.iterdir() if p.name != LOCK and not is_leftover(p))


def stamped_folders(base: Path) -> Iterator[Path]:
    """Names of folders by the time of now; the second one of a second ends in -2."""
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    yield base / stamp
    yield from (base / f"{stamp}-{number}" for number in itertools.count(2))


def _stamped_folder(base: Path) -> Path:
    """The first of them that did not exist before, created."""
    try:
        base.mkdir(parents=True, exist_ok=True)
        for folder in stamped_folders(base):
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise output_error(base, error) from error
    raise AssertionError("unreachable")


def _point_latest(base: Path, name: str) -> None:
    """Let `latest` mean the run `name`: a relative link, or its name in a file where links are not allowed.

    Where neither can be written, `_latest_run` goes by the folders' names.
    """
    link = temporary_name(base / LATEST)
    try:
        link.symlink_to(name, target_is_directory=True)
        link.replace(base / LATEST)
    except OSError:
        with suppress(OSError):
            link.unlink(missing_ok=True)
        with suppress(OutputError):
            replace_text(base / LATEST, name + "\n")


def _latest_run(base: Path) -> Path:
    """The run that `latest` names, else the newest by its own name. Raises UsageError without one."""
    runs = [path for path in base.glob("*") if _STAMP.fullmatch(path.name)]
    runs.sort(key=lambda path: [int(part) for part in path.name.split("-")], reverse=True)
    pointer = base / LATEST
    with suppress(OSError, ValueError):
        if pointer.is_symlink():
            name = str(pointer.readlink())
        else:
            with open_regular(pointer) as file:
                name = file.read(256).decode("ascii")
        if _STAMP.fullmatch(name.strip()):
            runs.insert(0, base / name.strip())
    for path in runs:
        if (path / STATUS).is_file():
            return path
    raise UsageError(f"{base}: no run to resume; leave --resume out or name one with --out")
