"""The frozen list of files: its digest, its JSON form, and what has changed since."""

from __future__ import annotations

import hashlib
import io
import json
import os
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tar_files import write_tar

from densesiam_seg.errors import ImageError, InputError
from densesiam_seg.images.decode import load_image
from densesiam_seg.images.manifest import Manifest, PassedOver, Skipped
from densesiam_seg.images.scan import scan
from densesiam_seg.packed.members import open_file


def small(*names: str, root: str = "/data") -> Manifest:
    """Files of 10, 11, … bytes, changed after 1000, 1001, … ms."""
    count = len(names)
    times = array("q", range(1000, 1000 + count))
    return Manifest(root, names, array("q", range(10, 10 + count)), times)


def test_digest_depends_on_names_sizes_times_only() -> None:
    files = small("a.jpg", "b.jpg")
    assert files.digest == small("a.jpg", "b.jpg", root="/moved").digest
    assert files.digest == files.without([Skipped("c.jpg", "empty", "is empty")]).digest
    others = [
        small("a.jpg"),
        small("a.jpg", "c.jpg"),
        Manifest("/data", files.names, array("q", [10, 12]), files.mtimes_ms),
        Manifest("/data", files.names, files.sizes, array("q", [1000, 1002])),
    ]
    assert len({files.digest, *(other.digest for other in others)}) == 5
    assert not any(files == other for other in others)
    # Written out by hand: name, NUL, size, space, time, newline.
    row = b"a.jpg\x0010 1000\n"
    assert small("a.jpg").digest == hashlib.sha256(row).hexdigest()


def test_without() -> None:
    files = small("a.jpg", "b.jpg", "c.jpg", "d.jpg")
    bad = [Skipped("c.jpg", "truncated", "ends too early"), Skipped("a.jpg", "empty", "is empty")]
    rest = files.without(bad)
    assert rest.names == ("b.jpg", "d.jpg")
    assert rest.sizes.tolist() == [11, 13]
    assert rest.mtimes_ms.tolist() == [1001, 1003]
    assert rest.skipped == (bad[1], bad[0])
    assert rest.without(bad) == rest
    assert files.without([]) == files


def test_changed_files(tmp_path: Path) -> None:
    for letter in "abcde":
        (tmp_path / f"{letter}.jpg").write_text(letter)
    files = scan([tmp_path])
    assert files.changed() == ([], [])
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "c.jpg").write_bytes(b"longer than before")
    os.utime(tmp_path / "d.jpg", (1, 1))
    (tmp_path / "e.jpg").unlink()
    (tmp_path / "e.jpg").mkdir()
    assert files.changed() == (["c.jpg", "d.jpg"], ["b.jpg", "e.jpg"])
    assert scan([tmp_path]).digest != files.digest


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["a.jpg"]},
        {"names": ["a.jpg", "c.jpg"]},
        {"names": None},
        {"sizes": [10, 12]},
        {"sizes": [10, 2**70]},
        {"sizes": "many"},
        {"mtimes_ms": [1000]},
        {"mtimes_ms": [[1000, 1001]]},
        {"skipped": [{"path": "c.jpg"}]},
        {"digest": "", "root": ""},
    ],
)
def test_damaged_dictionaries(change: dict[str, Any]) -> None:
    good = small("a.jpg", "b.jpg").without([Skipped("c.jpg", "empty", "is empty")]).to_dict()
    assert Manifest.from_dict(good).to_dict() == good
    with pytest.raises(InputError, match="damaged"):
        Manifest.from_dict({**good, **change})
    for key in change:
        with pytest.raises(InputError, match="damaged"):
            Manifest.from_dict({name: value for name, value in good.items() if name != key})


def test_what_is_passed_over_survives_json_and_may_be_absent() -> None:
    passed = PassedOver(linked_folders=1, system={"@eaDir": 2}, others={".txt": 3})
    saved = json.loads(json.dumps(replace(small("a.jpg"), passed_over=passed).to_dict()))
    assert Manifest.from_dict(saved).passed_over == passed
    with pytest.raises(InputError, match="damaged"):
        Manifest.from_dict({**saved, "passed_over": {"strange": 1}})
    del saved["passed_over"]
    assert Manifest.from_dict(saved).passed_over == PassedOver()


def test_what_is_passed_over_in_words() -> None:
    """Only what is not zero, and of the suffixes the commonest."""
    assert str(PassedOver()) == ""
    suffixes = {".txt": 1, ".csv": 5, ".md": 2, ".log": 1}
    text = str(PassedOver(repeated=1, others=suffixes))
    assert text == (
        "9 files with other suffixes (5 .csv, 2 .md, 1 .txt, …), 1 further name of what is taken already"
    )
    everything = PassedOver(1, 0, 2, 3, 4, {"@eaDir": 1}, {})
    assert [part[:8] for part in str(everything).split(", ")] == [
        "1 linked",
        "3 images",
        "1 item o",
        "2 hidden",
    ]
    assert "4 images" in str(everything)
    assert everything.doubtful and not PassedOver(hidden=1).doubtful


names = st.text(st.characters(exclude_categories=()), min_size=1, max_size=8)


@given(st.lists(names, unique=True, max_size=6), st.sets(names, max_size=3))
def test_any_names_survive_json_and_the_digest(names: list[str], bad: set[str]) -> None:
    """Lone surrogates, which stand for bytes that are no text, included."""
    files = small(*sorted(names))
    rows = zip(files.names, files.sizes, files.mtimes_ms, strict=True)
    text = "".join(f"{name}\0{size} {time}\n" for name, size, time in rows)
    assert files.digest == hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    assert Manifest.from_dict(json.loads(json.dumps(files.to_dict()))) == files
    rest = files.without(Skipped(name, "empty", "is empty") for name in bad)
    assert rest.names == tuple(sorted({*names} - bad))


def test_paths_lie_below_the_root() -> None:
    assert small("a/b.jpg", root="/").path(0) == "/a/b.jpg"
    assert small("a/b.jpg", "c.jpg", root="/data").path(-1) == "/data/c.jpg"


class TestTars:
    """Members have the time of their tar, and are looked up again where that has changed."""

    @pytest.fixture
    def tar(self, tmp_path: Path) -> Path:
        write_tar(tmp_path / "x.tar", {"a.jpg": b"1", "b.jpg": b"22", "c.jpg": b"333"})
        write_tar(tmp_path / "y.tar", {"a.jpg": b"1"})
        (tmp_path / "w.jpg").write_bytes(b"4444")
        return tmp_path / "x.tar"

    def test_a_tar_with_another_time(self, tar: Path) -> None:
        files = scan([tar.parent])
        assert files.changed() == ([], [])
        os.utime(tar, (1, 1))
        assert files.changed() == (["x.tar/a.jpg", "x.tar/b.jpg", "x.tar/c.jpg"], [])
        os.utime(tar.with_name("y.tar"), (1, 1))
        assert files.changed() == ([*files.names[1:]], [])
        again = files.restamped()
        assert again == scan([tar.parent]) and again.changed() == ([], [])
        assert again.mtimes_ms.tolist()[1:4] == [1000, 1000, 1000]

    def test_a_tar_with_other_members(self, tar: Path) -> None:
        files = scan([tar.parent])
        write_tar(tar, {"d.jpg": b"", "c.jpg": b"333", "a.jpg": b"55555", "b.txt": b"22"})
        os.utime(tar, (1, 1))
        assert files.changed() == (["x.tar/a.jpg", "x.tar/c.jpg"], ["x.tar/b.jpg"])
        write_tar(tar, {"d.jpg": b"", "c.jpg": b"333", "b.jpg": b"22", "a.jpg": b"55555"})
        os.utime(tar, (1, 1))
        again = files.restamped()
        assert again.names == files.names
        assert again.offsets.tolist() == [-1, 2560, 1536, 512, 0]
        assert again.sizes.tolist() == [4, 5, 2, 3, 1]
        assert again.path(1) == f"{tar}/@2560+5/a.jpg"

    def test_tars_that_are_gone_or_damaged(self, tar: Path) -> None:
        files = scan([tar.parent])
        members = ["x.tar/a.jpg", "x.tar/b.jpg", "x.tar/c.jpg"]
        tar.write_bytes(tar.read_bytes()[:700])
        os.utime(tar, (1, 1))
        assert files.changed() == ([], members)
        tar.unlink()
        assert files.changed() == ([], members)
        tar.mkdir()
        assert files.changed() == ([], members)

    def test_names_of_tars_that_begin_alike(self, tmp_path: Path) -> None:
        """`-`, a space and a point come before the `/` that ends the name of the other."""
        tars = [f"x.tar{end}" for end in ("", " 2.tar", "-1.tar", ".tar", "2.tar")]
        for tar in tars:
            write_tar(tmp_path / tar, {"7.png": tar.encode()})
        found = scan([tmp_path])
        paths = [found.path(index) for index in range(len(found))]
        assert [open_file(path).read().decode() for path in paths] == sorted(tars, key="{}/".format)
        assert Manifest.from_dict(found.to_dict()) == found

    def test_pages_of_members(self, tmp_path: Path) -> None:
        small = [Image.new("L", (4, 4), shade) for shade in (10, 20, 30)]
        buffer = io.BytesIO()
        small[0].save(buffer, "TIFF", save_all=True, append_images=small[1:])
        tar = write_tar(tmp_path / "x.tar", {"b.png": b"", "a.tif": buffer.getvalue()})
        files = scan([tar], pages=True)
        names = ("x.tar/a.tif/1", "x.tar/a.tif/2", "x.tar/a.tif/3", "x.tar/b.png")
        assert files.names == names
        assert [int(load_image(files.path(place))[0, 0, 0]) for place in range(3)] == [10, 20, 30]
        assert files.shown(2) == f"{tar}/a.tif/3"
        with pytest.raises(ImageError, match=r"x\.tar/a\.tif/4: has 3 pages"):
            load_image(files.path(2)[:-1] + "4")
        os.utime(tar, (1, 1))
        assert files.changed() == (list(names), [])
        assert files.restamped() == scan([tar], pages=True)
        assert files.without([Skipped(names[1], "empty", "")]).path(1) == files.path(2)

    def test_json(self, tar: Path) -> None:
        files = scan([tar.parent])
        saved = json.loads(json.dumps(files.to_dict()))
        assert Manifest.from_dict(saved) == files
        assert (saved["tars"], saved["offsets"]) == (["x.tar", "y.tar"], [-1, 0, 1024, 2048, 0])
        # Places are of no account where tars are moved about.
        assert Manifest.from_dict({**saved, "root": "/moved"}).digest == files.digest
        changes: list[dict[str, Any]] = [
            {"offsets": [0, 0]},
            {"offsets": [-1, 0, 1024, 2048, "x"]},
            {"tars": ["y.tar"]},
            {"tars": ["y.tar", "x.tar"]},
            {"tars": []},
        ]
        for change in changes:
            with pytest.raises(InputError, match="damaged"):
                Manifest.from_dict({**saved, **change})

    def test_without_tars_the_form_is_as_ever(self) -> None:
        keys = ["root", "digest", "names", "sizes", "mtimes_ms", "skipped", "passed_over"]
        assert list(small("a.jpg").to_dict()) == keys
