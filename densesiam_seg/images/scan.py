"""What the user named (files, folders, globs, lists) as a `Manifest`."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from pathlib import Path

from densesiam_seg.errors import InputError
from densesiam_seg.images.candidates import Candidates
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.images.opening import SUFFIXES
from densesiam_seg.io.files import open_regular


def scan(inputs: Sequence[str | os.PathLike[str]]) -> Manifest:
    """List the files that `inputs` mean, in any mixture of:

    - a file, whatever its suffix;
    - a folder: all files below it with a suffix of `SUFFIXES`, except hidden ones. Links to folders
      are not followed;
    - a glob pattern: files as in a folder, and folders whole. A `**` stands for folders at any
      depth; such a pattern selects files alone, and none that is hidden. A file or folder of
      exactly that name is preferred;
    - a `.txt` file: a list, one path per line, relative to the list's folder. Blank lines and
      lines that start with `#` are passed over;
    - `-`: such a list on the standard input, relative to the working directory.

    A file reached by several names, links and hard links included, is listed once, under the first.
    The root is the folder, the file's folder or the glob's fixed part; for lists and several inputs
    it is the deepest folder above all files.

    Raises `InputError` for what does not exist and where no image is found.
    """
    assert not isinstance(inputs, str | os.PathLike), "inputs is a sequence of paths"
    if not inputs:
        raise InputError("no input given; name image files, folders, globs or lists")
    found, *more = (_meant_by(os.fspath(item)) for item in inputs)
    for other in more:
        found.merge(other)
    if not found.names:
        raise InputError(f"{found.skipped[0].message}; no other image was found")
    return found.manifest()


def _meant_by(item: str) -> Candidates:
    """What one input means. Raises `InputError` where that is nothing."""
    if item == "-":
        if sys.stdin is None:
            raise InputError("-: there is no standard input; name a list file")
        return _listed("standard input", sys.stdin.buffer, str(Path.cwd()))
    if not item or "\0" in item:
        raise InputError("an input is empty or holds a NUL byte; name a file, folder, glob or list")
    path = Path(_absolute(str(Path.cwd()), item))
    if glob.has_magic(item) and not os.path.lexists(path):
        return _matched(item, path)
    if os.path.isdir(path):  # noqa: PTH112
        found = Candidates(_inside(path.as_posix()))
        _walk(path.as_posix(), found)
        return _not_empty(item, found)
    if path.suffix.lower() == ".txt":
        try:
            with open_regular(path) as lines:
                return _listed(item, lines, str(path.parent))
        except OSError as error:
            raise InputError(f"{item}: cannot be read ({error.strerror}); check it") from error
    found = Candidates(_inside(path.parent.as_posix()))
    if found.add(path.name) == "dangling-link" and not path.is_symlink():
        raise InputError(f"{item}: no such file or folder; check the path")
    return found


def _walk(top: str, found: Candidates, wanted: Callable[[str], bool] | None = None) -> None:
    """Take the images below a folder that are not hidden, and whose names are `wanted`.

    A folder that cannot be entered, or not be read to its end, is skipped whole.
    """
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        # A folder at a time, as before Python 3.12 `os.walk` calls itself for every level of depth.
        walk = os.walk(folder, onerror=partial(found.refuse, folder))
        for _, folders, files in islice(walk, 1):
            start = _inside(folder)
            for name in files:
                below = start[len(found.root) :] + name
                if not name.startswith(".") and (wanted is None or wanted(below)):
                    found.add_image(below)
            for name in folders:
                if name.startswith("."):
                    continue
                if os.path.islink(start + name):  # noqa: PTH114
                    found.links += 1
                else:
                    waiting.append(start + name)


def _matched(item: str, path: Path) -> Candidates:
    """What a glob pattern selects."""
    parts = path.parts
    fixed = 1
    while fixed < len(parts):
        literal = Path(*parts[: fixed + 1])
        if glob.has_magic(literal.name) and not os.path.isdir(literal):  # noqa: PTH112
            break
        fixed += 1
    root, pattern = Path(*parts[:fixed]), parts[fixed:]
    if not os.path.isdir(root):  # noqa: PTH112
        raise InputError(f"{item}: no such folder {root}; check the pattern")
    top = root.as_posix()
    found = Candidates(_inside(top))
    if "**" in pattern:
        _walk(top, found, lambda name: _fits(name.split("/"), pattern))
        return _not_empty(item, found)
    # `Path.glob` would select hidden files as well.
    for match in glob.iglob(str(Path(*pattern)), root_dir=root):  # noqa: PTH207
        name = _with_slashes(match)
        here = found.root + name
        if not os.path.isdir(here):  # noqa: PTH112
            found.add_image(name)
        elif os.path.islink(here):  # noqa: PTH114
            found.links += 1
        else:
            _walk(here, found)
    return _not_empty(item, found)


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    head, *tail = pattern
    if head == "**":
        return any(_fits(parts[start:], tail) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], head) and _fits(parts[1:], tail)


def _listed(label: str, lines: Iterable[bytes], folder: str) -> Candidates:
    """The files that a list names."""
    found = Candidates()
    missing: list[str] = []
    count = 0
    for number, raw in enumerate(lines, 1):
        line = os.fsdecode(raw.removeprefix(b"\xef\xbb\xbf")).rstrip("\r\n")
        if "\0" in line:
            raise InputError(
                f"{label}: line {number} holds a NUL byte; save the list as UTF-8 text"
            )
        if not line.strip() or line.startswith("#"):
            continue
        count += 1
        path = _absolute(folder, line)
        reason = found.add(path)
        if reason == "dangling-link":
            missing.append(f"line {number}: {line!a}")
        elif reason == "not-regular" and Path(path).is_dir():
            raise InputError(f"{label}: line {number} names a folder; name the files in it")
    if missing:
        some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise InputError(
            f"{label}: {len(missing)} of the {count} files it names do not exist ({some}); "
            "correct the list"
        )
    if not count:
        raise InputError(f"{label}: the list names no file; write one path per line")
    return found


def _not_empty(item: str, found: Candidates) -> Candidates:
    """Returns `found`. Raises `InputError`, naming what is there instead, where it holds no image."""
    if found.names or found.skipped:
        return found
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in found.others.most_common(3))
    there = f"{found.others.total()} other files there" + (f": {kinds}" if kinds else "")
    links = f"; {found.links} linked folders not followed" if found.links else ""
    raise InputError(
        f"{item}: no image found (looked for {', '.join(sorted(SUFFIXES))}; {there}{links}); "
        "name a folder of images"
    )


def _absolute(folder: str, text: str) -> str:
    """Absolute, with `/`, and without `..`, as names in a manifest must never lead out of its root."""
    # A `Path` for each of a million lines would take longer than to ask for the files' sizes.
    joined = _with_slashes(os.path.join(folder, text))  # noqa: PTH118
    if ".." not in joined.split("/"):
        return _with_slashes(os.path.normpath(joined))
    path = Path(joined)
    try:
        path = path.resolve() if path.name == ".." else path.parent.resolve() / path.name
    except (OSError, RuntimeError) as error:
        raise InputError(f"{text}: cannot be followed; check the path") from error
    return path.as_posix()


def _with_slashes(path: str) -> str:
    return path.replace(os.sep, "/")


def _inside(folder: str) -> str:
    """What the paths of files in a folder begin with."""
    return folder.rstrip("/") + "/"
