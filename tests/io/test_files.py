"""Files are the old ones or the new ones; JSON survives every name and number."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densesiam_seg.errors import OutputError
from densesiam_seg.images.opening import SUFFIXES
from densesiam_seg.io.files import (
    FILE_SUFFIXES,
    NotRegularError,
    concerns_one_file,
    discard,
    is_leftover,
    longest_name,
    make_folder,
    means_a_file,
    new_folder,
    open_regular,
    remove,
    remove_leftovers,
    replace_file,
    replace_json,
    replace_text,
    replacing,
    temporary_name,
    to_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["a.bin", "n" * 255])
def test_a_file_is_created_and_replaced(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for text in ("first", "", "second and löng"):
        replace_text(path, text)
        assert path.read_text("utf-8") == text
    assert names(tmp_path) == [name]
    (tmp_path / "plain").write_bytes(b"")  # has the mode that the umask leaves
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_sync_flushes_the_file_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(handle: int) -> None:
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")  # noqa: PTH112
        real_sync(handle)

    def rename(*args: Any) -> None:
        events.append("rename")
        real_replace(*args)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    replace_file(tmp_path / "a", b"1", sync=False)
    assert events == ["rename"]
    events.clear()
    replace_file(tmp_path / "a", b"2")
    if Path("/proc/self/fd").is_dir():
        assert events == ["file", "rename", "folder"]


def test_a_failing_block_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    replace_file(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_call_is_an_output_error_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a"
    replace_file(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OutputError, match=r"a: .*No space left.*free some space"):
            replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_impossible_places_are_output_errors_that_name_them(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path, reason in (
        (tmp_path / "absent" / "a", "No such file"),
        (tmp_path / "file" / "a", "Not a directory"),
        (tmp_path / "folder", "is a folder"),
    ):
        with pytest.raises(OutputError, match=reason) as caught:
            replace_file(path, b"x")
        assert str(path) in str(caught.value)


def test_devices_and_pipes_are_neither_replaced_nor_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, link, file = (tmp_path / name for name in ("pipe", "link", "file"))
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link, Path("/dev/null")):
        with pytest.raises(OutputError, match="device or pipe"):
            replace_file(path, b"x")
        with pytest.raises(NotRegularError):
            open_regular(path)
    file.write_bytes(b"abc")
    with open_regular(file) as opened:
        assert opened.read() == b"abc"
    regular = file.stat()
    monkeypatch.setattr(Path, "stat", lambda self: regular)
    with pytest.raises(NotRegularError):  # put in place after the first look
        open_regular(pipe)


def test_make_folder_creates_parents_and_names_what_is_in_the_way(tmp_path: Path) -> None:
    for _ in range(2):
        assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "a"):
        with pytest.raises(OutputError, match=str(path)):
            make_folder(path)


def test_json_has_null_for_what_it_cannot_say(tmp_path: Path) -> None:
    value: dict[str, Any] = {
        "loss": float("nan"),
        "best": [float("-inf"), 1.5, (float("inf"), True)],
    }
    assert to_json(value) == '{"loss": null, "best": [null, 1.5, [null, true]]}'
    replace_json(tmp_path / "a", value)
    assert json.loads((tmp_path / "a").read_bytes()) == json.loads(to_json(value))


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(json_values)
def test_json_is_ascii_and_its_round_trip_exact(value: Any) -> None:
    """Lone surrogates, which stand for bytes of names that are no text, included."""
    assert to_json(value).isascii()
    assert json.loads(to_json(value)) == value


def test_only_our_own_leftovers_are_removed(tmp_path: Path) -> None:
    ours = [temporary_name(tmp_path / "a"), tmp_path / ".tmp-12-345", tmp_path / ".del-1-0a"]
    theirs = [tmp_path / name for name in (".tmp", ".tmp-mine", ".del-me-1", "a", ".tmp-1-2.txt")]
    for path in [*ours[:1], *theirs]:
        path.write_text("x")
    for path in ours[1:]:
        (path / "deep").mkdir(parents=True)
        (path / "deep" / "file").write_text("x")
    assert all(map(is_leftover, ours))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(path.name for path in theirs)
    remove_leftovers(tmp_path / "absent")


def test_leftovers_of_an_age(tmp_path: Path) -> None:
    for name, age in ((".tmp-1-aa", 10), (".tmp-2-bb", 5000)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    remove_leftovers(tmp_path, seconds=3600)
    assert names(tmp_path) == [".tmp-1-aa"]


@pytest.mark.parametrize("delete", [remove, discard])
def test_a_link_is_deleted_and_not_followed(tmp_path: Path, delete: Callable[[Path], None]) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("x")
    (tmp_path / "link").symlink_to("theirs")
    delete(tmp_path / "link")
    assert names(tmp_path) == ["theirs"]
    assert names(tmp_path / "theirs") == ["file"]


def test_discard_takes_the_name_away_even_when_the_deletion_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "file").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr("densesiam_seg.io.files.remove", lambda path: None)
        discard(tmp_path / "step")
    (left,) = tmp_path.iterdir()
    assert is_leftover(left)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        discard(tmp_path / "step")


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENAMETOOLONG, True),
        (errno.EACCES, True),
        (errno.EISDIR, True),
        (errno.ENOSPC, False),
        (errno.EDQUOT, False),
        (errno.EIO, False),
        (errno.EROFS, False),
    ],
)
def test_what_concerns_one_file(tmp_path: Path, number: int, expected: bool) -> None:
    with pytest.raises(OutputError) as caught, replacing(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    assert concerns_one_file(caught.value) == expected


def test_a_folder_in_the_way_concerns_one_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        replace_text(tmp_path, "x")
    assert concerns_one_file(caught.value)


def test_what_means_a_file(tmp_path: Path) -> None:
    """All that images are called, and no folder that is there."""
    assert SUFFIXES <= FILE_SUFFIXES
    assert means_a_file(tmp_path / "a.JPG") and means_a_file(tmp_path / "new" / "a.npy")
    assert not any(means_a_file(tmp_path / name) for name in ("a", "v1.2", ".jpg", "a.b c"))
    (tmp_path / "a.jpg").mkdir()
    assert not means_a_file(tmp_path / "a.jpg")


def test_the_longest_name_is_that_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = longest_name(tmp_path / "not" / "there")
    (tmp_path / ("x" * length)).touch()
    with pytest.raises(OSError, match="too long"):
        (tmp_path / ("x" * (length + 1))).touch()
    monkeypatch.delattr(os, "pathconf")
    assert longest_name(tmp_path) == 255


def test_a_new_folder_takes_the_place_of_an_old_one_when_it_is_complete(tmp_path: Path) -> None:
    place = tmp_path / "a" / "model"
    with new_folder(place) as fresh:
        replace_file(fresh / "one", b"1")
        assert not place.exists()
    assert (place / "one").read_bytes() == b"1"
    (place / "notes").mkdir()
    (place / "notes" / "mine.txt").write_text("mine")
    (place / "link").symlink_to("nowhere")
    with new_folder(place) as fresh:
        replace_file(fresh / "one", b"2")
        assert (place / "one").read_bytes() == b"1"
    assert (place / "one").read_bytes() == b"2"
    assert (place / "notes" / "mine.txt").read_text() == "mine"
    assert (place / "link").readlink() == Path("nowhere")
    with pytest.raises(RuntimeError), new_folder(place) as fresh:
        replace_file(fresh / "one", b"3")
        raise RuntimeError
    assert (place / "one").read_bytes() == b"2"
    assert [path.name for path in place.parent.iterdir()] == ["model"]


def test_the_old_folder_is_back_where_the_new_one_cannot_have_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "model"
    place.mkdir()
    (place / "one").write_text("old")
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name.startswith(".tmp-"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError), new_folder(place) as fresh:
        replace_file(fresh / "one", b"new")
    assert names(tmp_path) == ["model"]
    assert (place / "one").read_text() == "old"


def test_a_file_in_the_place_of_a_new_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(OutputError, match="model"), new_folder(tmp_path / "model"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
