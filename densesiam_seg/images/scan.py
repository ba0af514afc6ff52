"""What the user named (files, folders, globs, lists) as a `Manifest`."""

from __future__ import annotations

import glob
import os
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache, partial
from itertools import islice
from pathlib import Path

from densesiam_seg.errors import ImageError, InputError
from densesiam_seg.images.candidates import Candidates, images_below, is_system_folder
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.images.opening import SUFFIXES, opened
from densesiam_seg.io.files import open_regular
from densesiam_seg.io.outputs import is_note, noted_outputs
from densesiam_seg.io.run_directory import RUN_NAMES, STATUS, read_status
from densesiam_seg.packed.lists import lines_of, spellings
from densesiam_seg.packed.names import Names


def scan(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    merge: bool = True,
    follow_links: bool = False,
    out: str | os.PathLike[str] | None = None,
    pages: bool = False,
) -> Manifest:
    """List the files that `inputs` mean, in any mixture of:

    - a file, whatever its suffix;
    - a `.tar`: the files in it with a suffix of `SUFFIXES`, except hidden ones, wherever the tar is met;
    - a folder: all files below it with a suffix of `SUFFIXES`, and all tars, except hidden ones;
    - a glob pattern: files as in a folder, and folders whole. A `**` stands for folders at any
      depth; such a pattern selects files alone, and none that is hidden. A file or folder of
      exactly that name is preferred;
    - a `.txt`, `.lst` or `.list` file: a list, one path (of a file or a folder) per line, relative
      to the list's folder, or all of them to the working directory where only that fits. Blank lines
      are passed over, and lines that start with `#` and name no file;
    - `-`: such a list on the standard input, relative to the working directory.

    In folders and globs these are left out and counted in `Manifest.passed_over`: folders of the
    system (`candidates.SYSTEM_FOLDERS`), what this program wrote (run directories, noted masks, and
    the folder `out`), and links to folders, unless `follow_links`: then each folder is read once,
    under its own name if that lies in the input too.

    With `merge` a file reached by several names, links and hard links included, is listed once,
    under the first; without, under each. With `pages` every page of a file is an image (`each_page`).
    The root is the folder, the file's folder or the glob's fixed part; for lists and several inputs
    it is the deepest folder above all files.

    Raises `InputError` for what does not exist and where no image is found.
    """
    assert not isinstance(inputs, str | os.PathLike), "inputs is a sequence of paths"
    if not inputs:
        raise InputError("no input given; name image files, folders, globs or lists")
    scanner = _Scanner(follow_links, os.path.realpath(out) if out is not None else "")
    found, *more = (scanner.meant_by(os.fspath(item)) for item in inputs)
    for other in more:
        found.merge(other)
    if not found.names:
        raise InputError(f"{found.skipped[0].message}; no other image was found")
    manifest = found.manifest(merge=merge)
    return each_page(manifest) if pages else manifest


def each_page(manifest: Manifest) -> Manifest:
    """The same with `FILE/1`, `FILE/2`, … in place of a file that has several pages or frames."""
    rows: list[tuple[str, int, int, int]] = []
    for index, name in enumerate(manifest.names):
        try:
            with opened(manifest.path(index), Decoding(None, page=1)) as image:
                pages = image.pages
        except ImageError:
            pages = 1  # it is refused when it is decoded
        digits = len(str(pages))
        named = [f"{name}/{page:0{digits}}" for page in range(1, pages + 1)]
        offset = manifest.offsets[index] if manifest.offsets else -1
        stamp = manifest.sizes[index], manifest.mtimes_ms[index], offset
        rows += [(each, *stamp) for each in (named if pages > 1 else [name])]
    names, sizes, times, offsets = zip(*sorted(rows), strict=True)
    return replace(
        manifest,
        names=Names(names),
        sizes=array("q", sizes),
        mtimes_ms=array("q", times),
        offsets=array("q", offsets) if manifest.offsets else array("q"),
    )


LISTS = (".txt", ".lst", ".list")


@dataclass(frozen=True)
class _Scanner:
    """Whether links to folders are followed, and the folder to write into, without links."""

    follow_links: bool
    out: str

    def meant_by(self, item: str) -> Candidates:
        """What one input means. Raises `InputError` where that is nothing."""
        here = _current_folder()
        if item == "-":
            if sys.stdin is None:
                raise InputError("-: there is no standard input; name a list file")
            return self._listed("standard input", sys.stdin.buffer.read(), [here])
        if not item or "\0" in item:
            raise InputError(
                "an input is empty or holds a NUL byte; name a file, folder, glob or list"
            )
        path = Path(_absolute(here, item))
        if glob.has_magic(item) and not os.path.lexists(path):
            return self._matched(item, path)
        if os.path.isdir(path):  # noqa: PTH112
            found = Candidates(_inside(path.as_posix()))
            self._walk(path.as_posix(), found)
            return _not_empty(item, found)
        if path.suffix.lower() in LISTS:
            try:
                with open_regular(path) as file:
                    data = file.read()
            except OSError as error:
                raise InputError(f"{item}: cannot be read ({error.strerror}); check it") from error
            return self._listed(item, data, list(dict.fromkeys([str(path.parent), here])))
        found = Candidates()
        if found.add(path.as_posix()) == "dangling-link" and not path.is_symlink():
            raise InputError(f"{item}: no such file or folder; check the path")
        return _not_empty(item, found)

    def _walk(
        self,
        top: str,
        found: Candidates,
        wanted: Callable[[str], bool] | None = None,
        *,
        named: bool = True,
    ) -> None:
        """Take the images below a folder (which the user `named`) that are not hidden, and whose names are `wanted`."""
        visited: set[tuple[int, int]] = set()
        linked = [top]
        # Links come after all that lies below without them, in an order that no file system decides.
        while linked:
            later: list[str] = []
            for start in sorted(linked):
                waiting = [start]
                while waiting:
                    folder = waiting.pop()
                    if self.follow_links and not _is_first_visit(folder, visited):
                        found.repeated += 1
                    else:
                        self._read(
                            folder, found, wanted, waiting, later, named=named and folder == top
                        )
            linked = later

    def _read(
        self,
        folder: str,
        found: Candidates,
        wanted: Callable[[str], bool] | None,
        waiting: list[str],
        linked: list[str],
        *,
        named: bool,
    ) -> None:
        """Take a folder's own images, and add the folders in it to `waiting` and those behind links to `linked`.

        A folder that cannot be entered, or not be read to its end, is skipped whole. What training wrote in a run
        directory is passed over unless the user `named` that.
        """
        # A folder at a time, as before Python 3.12 `os.walk` calls itself for every level of depth.
        walk = os.walk(folder, onerror=partial(found.refuse, folder))
        for _, folders, files in islice(walk, 1):
            start = _inside(folder)
            if not named and STATUS in files and read_status(Path(folder)):
                for name in filter(RUN_NAMES.__contains__, folders):
                    found.outputs += images_below(start + name)
                folders = [name for name in folders if name not in RUN_NAMES]
            for name in folders:
                path = start + name
                if name.startswith(".") and not is_system_folder(name):
                    found.hidden += 1
                elif not self._left_out(path, found):
                    link = self.follow_links and os.path.islink(path)  # noqa: PTH114
                    (linked if link else waiting).append(path)
            below = start[len(found.root) :]
            notes = [name for name in files if is_note(name)]
            written = noted_outputs(Path(folder), notes) if notes else ()
            for name in files:
                if name.startswith("."):
                    found.hide(name)
                elif wanted is None or wanted(below + name):
                    if name in written:
                        found.outputs += 1
                    else:
                        found.add_image(below + name)

    def _left_out(self, folder: str, found: Candidates) -> bool:
        """Whether a folder that was met on the way is passed over, which is then counted."""
        name = folder[folder.rfind("/") + 1 :]
        if is_system_folder(name):
            found.leave_system_folder(folder)
        elif not self.follow_links and os.path.islink(folder):  # noqa: PTH114
            found.links += 1
        elif self._is_out(folder, name):
            found.outputs += images_below(folder)
        else:
            return False
        return True

    def _is_out(self, folder: str, name: str) -> bool:
        # Its links are looked up only where its name fits, since every folder is asked about.
        likely = self.follow_links or self.out.endswith(os.sep + name)
        return likely and os.path.realpath(folder) == self.out

    def _matched(self, item: str, path: Path) -> Candidates:
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
            self._walk(top, found, lambda name: _fits(name.split("/"), pattern))
            return _not_empty(item, found)
        written = cache(lambda folder: noted_outputs(Path(found.root + folder)))
        # `Path.glob` would select hidden files as well.
        for match in glob.iglob(str(Path(*pattern)), root_dir=root):  # noqa: PTH207
            name = _with_slashes(match)
            *folders, last = name.split("/")
            here = found.root + name
            if os.path.isdir(here):  # noqa: PTH112
                if not self._left_out(here, found):
                    self._walk(here, found, named=False)
            elif system := next(filter(is_system_folder, folders), ""):
                found.system[system] = 1
                found.system_images += 1
            elif last.startswith("._"):
                found.hide(last)
            elif last in written("/".join(folders)):
                found.outputs += 1
            else:
                found.add_image(name)
        return _not_empty(item, found)

    def _listed(self, label: str, data: bytes, folders: Sequence[str]) -> Candidates:
        """What a list names, relative to the first of the folders in which all of it is found.

        It is one folder for all lines, so that files of two places are not mixed.
        """
        lines = lines_of(label, data)
        fewest: list[str] | None = None
        most = 0
        for folder in folders:
            found, missing, count = self._relative_to(folder, lines)
            if count and not missing:
                return _not_empty(label, found)
            most = max(most, count)
            if count and (fewest is None or len(missing) < len(fewest)):
                fewest = missing
        if fewest is None:
            raise InputError(f"{label}: the list names no file; write one path per line")
        some = ", ".join(fewest[:3]) + (", …" if len(fewest) > 3 else "")
        raise InputError(
            f"{label}: {len(fewest)} of the {most} files it names do not exist ({some}; "
            f"looked for in {' and in '.join(folders)}); correct the list"
        )

    def _relative_to(self, folder: str, lines: Sequence[str]) -> tuple[Candidates, list[str], int]:
        """What the lines name, those that name nothing, and how many name something or should."""
        found = Candidates()
        missing: list[str] = []
        count = 0
        for number, line in enumerate(lines, 1):
            for text in spellings(line):
                path = _absolute(folder, text)
                reason = found.add(path)
                if reason == "dangling-link" and not os.path.islink(path):  # noqa: PTH114
                    found.skipped.pop()
                    continue
                if reason == "not-regular" and os.path.isdir(path):  # noqa: PTH112
                    found.skipped.pop()
                    self._walk(path, found)
                count += 1
                break
            else:
                if line.strip() and not line.lstrip().startswith("#"):
                    count += 1
                    text = line.strip()
                    shown = f"{text!a}" if len(text) <= 300 else f"{text[:300]!a}…"
                    missing.append(f"line {number}: {shown}")
        return found, missing, count


def _current_folder() -> str:
    try:
        return str(Path.cwd())
    except OSError as error:
        raise InputError(
            f"the current folder cannot be used ({error.strerror}); change to one that is there"
        ) from error


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    head, *tail = pattern
    if head == "**":
        return any(_fits(parts[start:], tail) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], head) and _fits(parts[1:], tail)


def _not_empty(item: str, found: Candidates) -> Candidates:
    """Returns `found`. Raises `InputError`, naming what is there instead, where it holds no image."""
    if found.names or found.skipped:
        return found
    there = str(found.passed_over()) or "nothing else is there"
    raise InputError(
        f"{item}: no image found (looked for {', '.join(sorted(SUFFIXES))}; passed over: {there}); "
        "name a folder of images"
        + (" or give --follow-links" if found.links else "")
        + (", or name the files themselves" if found.outputs else "")
        + ("; a run or model goes where --help says --model or RUN" if _is_run(item) else "")
    )


def _is_run(item: str) -> bool:
    """Whether this is a run or model directory, which some commands take as an option."""
    return any(os.path.isfile(f"{item}/{below}model.safetensors") for below in ("", "model/"))  # noqa: PTH113


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


def _is_first_visit(folder: str, visited: set[tuple[int, int]]) -> bool:
    """Note a folder by device and inode; one that cannot be looked at is refused when it is read."""
    try:
        found = os.stat(folder)  # noqa: PTH116
    except OSError:
        return True
    before = len(visited)
    visited.add((found.st_dev, found.st_ino))
    return len(visited) > before
