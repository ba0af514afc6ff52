"""Files that may not be read, links, hostile names, and lists of files as nobody should write them."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from children import NOBODY
from isolated import in_children
from labelled_scenes import write_labelled_scenes
from memory import taken
from photographs import junk, picture
from program import Cli, Result, options, refused
from tiny_runs import reasons
from trials import Trials, fault

from densesiam_seg.images.manifest import Manifest
from densesiam_seg.images.scan import scan
from densesiam_seg.io.files import replace_json

pytestmark = [
    pytest.mark.usefixtures("slim_module"),
    pytest.mark.skipif(os.name != "posix", reason="names and permissions as POSIX has them"),
]


def as_nobody(cli: Cli, *arguments: object) -> Result:
    """What a user without rights gets from the program."""

    def work(_: int) -> str:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        return json.dumps(cli(*arguments))

    ((_, text),) = in_children(work, range(1), memory=8 << 30, seconds=100)
    assert text.startswith("["), text
    code, out, error = json.loads(text.encode("ascii").decode("unicode_escape"))
    return code, out, error


class TestPermissions:
    @fault(
        "F13",
        "a file and a folder that another user may not read",
        "skipped and told; 0, 9, or 3 where nothing is left",
    )
    def test_input(
        self,
        trials: Trials,
        shared: Path,
        cli: Cli,
        tiny_settings: dict[str, Any],
        model_folder: Path,
    ) -> None:
        folder, model = shared / "images", shared / "model"
        for name in (
            "a.png",
            "b.png",
            "closed.png",
            "c.png",
            "d.png",
            "locked/e.png",
            "deep/f.png",
        ):
            picture(folder / name)
        shutil.copytree(model_folder, model)
        for path in (*shared.rglob("*"), shared):
            path.chmod(0o755 if path.is_dir() else 0o644)
        shared.chmod(0o777)
        given = ("--prior", "none", *options({**tiny_settings, "epochs": 1}), "-q")
        # Once as ourselves: what is imported late may be closed to others too.
        assert cli("train", "--no-report", folder, "--out", shared / "own", *given)[0] == 0
        assert cli("predict", folder, "--model", model, "--out", shared / "own-masks", "-q")[0] == 0
        (folder / "closed.png").chmod(0)
        (folder / "locked").chmod(0)
        bad = {"closed.png": "permission", "locked": "permission"}
        with trials.trial("train"):
            run = shared / "run"
            code, _, error = as_nobody(cli, "train", "--no-report", folder, "--out", run, *given)
            assert (code, len(error.splitlines())) == (0, 3)
            assert reasons(run / "skipped.jsonl") == bad
            assert json.loads((run / "run.json").read_text())["exit_code"] == 0
        with trials.trial("predict"):
            out = shared / "masks"
            code, told, error = as_nobody(
                cli, "predict", folder, "--model", model, "--out", out, "--json"
            )
            assert code == 9
            assert error.splitlines()[-1].startswith("error[partial]: 2 of 7 ")
            found = json.loads(told)
            skipped = {each["path"]: each["reason"] for each in found["skipped"]}
            assert skipped == {"locked": "permission"}
            assert reasons(out / "failed.jsonl") == {str(folder / "closed.png"): "permission"}
            assert len(found["masks"]) == len(list(out.rglob("*.png"))) == 5
        for command in ("train", "predict"):
            for name in ("closed.png", "locked"):
                with trials.trial((command, name)):
                    out = shared / f"{command}-{name}-out"
                    more = given if command == "train" else ("--model", model, "-q")
                    code, _, error = as_nobody(cli, command, folder / name, "--out", out, *more)
                    assert code == 3
                    assert error.splitlines()[-1].startswith("error[i")
                    assert str(folder / name) in error.splitlines()[-1]

    @fault(
        "F13",
        "a model, a list and a place to write of another user",
        "4, 3 and 5 in one line",
    )
    def test_others(
        self,
        trials: Trials,
        shared: Path,
        cli: Cli,
        tiny_settings: dict[str, Any],
        model_folder: Path,
    ) -> None:
        folder, model = shared / "images", shared / "model"
        picture(folder / "a.png")
        shutil.copytree(model_folder, model)
        (shared / "l.txt").write_text("images/a.png\n")
        (shared / "closed").mkdir(0o755)
        model.chmod(0o755)
        given = ("--prior", "none", *options({**tiny_settings, "epochs": 1}), "-q")
        assert cli("predict", folder, "--model", model, "--out", shared / "own", "-q")[0] == 0
        for path in (shared / "l.txt", model / "model.safetensors"):
            path.chmod(0)
        for path in (shared / "closed", *folder.rglob("*"), folder):
            path.chmod(0o555)
        closed = shared / "closed" / "out"
        for arguments, code, name in (
            (("predict", folder, "--model", model, "--out", shared / "m"), 4, "model"),
            (("predict", shared / "l.txt", "--model", model, "--out", shared / "m"), 3, "input"),
            (("train", "--no-report", shared / "l.txt", "--out", shared / "t", *given), 3, "input"),
            (("train", "--no-report", folder, "--out", closed, *given), 5, "output"),
            (("train", "--no-report", folder, "--out", shared / "closed", *given), 5, "output"),
        ):
            with trials.trial(arguments):
                refused(as_nobody(cli, *arguments), code, name)
        (model / "model.safetensors").chmod(0o644)
        with trials.trial("masks"):
            found = as_nobody(cli, "predict", folder, "--model", model, "--out", closed, "-q")
            refused(found, 5, "output")


class TestLinks:
    @fault(
        "F14",
        "trees with loops, links out, files by two names",
        "each folder read once at most, each image taken once",
    )
    def test_trees(self, trials: Trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in trials.several(10, 200):
            with trials.trial(number):
                grow(tmp_path / str(number), random.Random(number))
                top = tmp_path / str(number) / "in"
                for follow in (False, True):
                    folders, files = reachable(top, follow)
                    read, found = folders_read(top, follow, monkeypatch)
                    assert len(read) <= len(folders) + 1
                    assert set(map(os.path.realpath, read)) == folders
                    taken = [identity(found.path(place)) for place in range(len(found))]
                    assert len(taken) == len(set(taken))
                    assert set(taken) == files

    @fault(
        "F14",
        "training on links in a circle and a file by five names",
        "ends; the file is one image, its names are told",
    )
    def test_train(
        self, trials: Trials, cli: Cli, tmp_path: Path, tiny_settings: dict[str, Any]
    ) -> None:
        folder = tmp_path / "in"
        for name in ("a.png", "sub/bb.png", "sub/deep/ccc.png", "dddd.png"):
            picture(folder / name)
        (folder / "sub" / "deep" / "up").symlink_to(folder)
        (folder / "me").symlink_to("me")
        (folder / "soft.png").symlink_to("a.png")
        (folder / "z.png").symlink_to("soft.png")
        os.link(folder / "a.png", folder / "sub" / "hard.png")
        (folder / "out.png").symlink_to(picture(tmp_path / "elsewhere" / "eeeee.png"))
        for follow in ([], ["--follow-links"]):
            with trials.trial(follow):
                run = tmp_path / f"run{len(follow)}"
                given = ("--prior", "none", *options({**tiny_settings, "epochs": 1}))
                inputs = (folder, folder / "sub", folder / "a.png")
                code, _, error = cli(
                    "train", "--no-report", *inputs, "--out", run, *given, *follow, "-q"
                )
                assert code == 0, error
                listed = json.loads((run / "dataset.json").read_text())
                assert listed["names"] == [
                    "a.png", "dddd.png", "out.png", "sub/bb.png", "sub/deep/ccc.png",
                ]  # fmt: skip
                assert listed["passed_over"]["repeated"] >= 3


def grow(top: Path, draw: random.Random) -> None:
    """Folders in `in` and beside it with images, and links among all of them."""
    folders = [top / "in", top / "out"]
    for number in range(draw.randint(2, 9)):
        folders.append(draw.choice(folders) / f"folder{number}")
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    files = [top / "in" / "one.jpg"]
    files += [draw.choice(folders) / f"{number}.jpg" for number in range(draw.randint(3, 12))]
    for number, path in enumerate(files):
        path.write_bytes(bytes(number))
    for number in range(draw.randint(2, 12)):
        link = draw.choice(folders) / f"link{number}"
        match draw.randrange(5):
            case 0 | 1:
                link.symlink_to(draw.choice(folders))
            case 2:
                link.symlink_to(".")
            case 3:
                link.with_suffix(".jpg").symlink_to(draw.choice(files))
            case _:
                os.link(draw.choice(files), link.with_suffix(".jpg"))


def reachable(top: Path, follow: bool) -> tuple[set[str], set[int]]:
    """The folders that a walk may read, by their real names, and the files in them by their numbers."""
    folders: set[str] = set()
    files: set[int] = set()
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        if str(folder.resolve()) in folders:
            continue
        folders.add(str(folder.resolve()))
        for path in folder.iterdir():
            if path.is_file():
                files.add(identity(path))
            elif follow or not path.is_symlink():
                waiting.append(path)
    return folders, files


def identity(path: str | Path) -> int:
    return os.stat(path).st_ino  # noqa: PTH116


def folders_read(
    top: Path, follow: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], Manifest]:
    """The folders that a scan has opened, and what it found."""
    read: list[str] = []
    scandir = os.scandir

    def note(path: Any) -> Any:
        read.append(os.fspath(path))
        assert len(read) < 1000, "goes round in circles"
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", note)
        found = scan([top], follow_links=follow)
    return read, found


HOSTILE = [
    *("new\nline.png", "tab\tstop.png", "carriage\rreturn.png", "\x1b[31mred.png", "bell\x07.png"),
    *("quote'\".png", "markup[bold].png", "markup[/red].png", ":cat:.png", "100%s %(a)s.png"),
    *("-leading.png", "--out.png", " space .png", "back\\slash.png", "木*?[a-z].png", "~.png"),
    *("$(touch me).png", "a..b.png", "a;b|c&.png", "{brace}.png", "#comment.png", "dot..png"),
    *("\u00e9.png", "e\u0301.png"),  # one code point, and two that look the same
    *("\u202egnp.exe.png", "\ufeffmark.png", "\U0001f408.png", "line\u2028separator.png"),
    os.fsdecode(b"bytes\xff\xfe.png"),
    "x" * 251 + ".png",
    *("twin.png", "twin.jpg"),
    "fol\nder/[/red]/a.png",
]
"""Names of images, each a file of its own."""


class TestNames:
    @fault(
        "F15",
        "hostile names of good and of bad files, to train",
        "dataset.json, skipped.jsonl keep them; digest too",
    )
    def test_train(
        self, trials: Trials, cli: Cli, tmp_path: Path, tiny_settings: dict[str, Any]
    ) -> None:
        folder, run = hostile(tmp_path), tmp_path / "run"
        given = ("--prior", "none", *options({**tiny_settings, "epochs": 1}))
        code, _, error = cli("train", "--no-report", folder, "--out", run, *given)
        with trials.trial("all"):
            assert code == 0, error
            listed = json.loads((run / "dataset.json").read_text("ascii"))
            assert Manifest.from_dict(listed).digest == listed["digest"]
            assert listed["names"] == sorted(HOSTILE)
            assert printable_lines(error)
        with trials.trial("train.log"):
            assert printable_lines((run / "train.log").read_text("utf-8"))
        skipped = reasons(run / "skipped.jsonl")
        for name in HOSTILE:
            with trials.trial(ascii(name)):
                assert name in listed["names"]
                assert skipped[f"bad/{name}"] == "not-an-image"
        with trials.trial("again"):
            code, _, error = cli("train", "--no-report", "--resume", "--out", run)
            assert code == 0, error

    @fault(
        "F15",
        "the same to predict, by folder, list and name",
        "masks of their names, failed.jsonl keeps them",
    )
    def test_predict(
        self, trials: Trials, cli: Cli, tmp_path: Path, model_folder: Path, monkeypatch: Any
    ) -> None:
        folder = hostile(tmp_path)
        given = ("--model", model_folder, "--out")
        out = tmp_path / "masks"
        code, told, error = cli("predict", folder, *given, out, "--json")
        with trials.trial("folder"):
            assert code == 9
            assert printable_lines(error)
            assert len([line for line in error.splitlines() if "failed: " in line]) == len(HOSTILE)
            assert told.isascii()
        masks = {each["image"]: each["mask"] for each in json.loads(told)["masks"]}
        failed = reasons(out / "failed.jsonl")
        for name in HOSTILE:
            with trials.trial(ascii(name)):
                # Two images that share a stem keep their whole names.
                mask = out / (f"{name}.png" if name.startswith("twin") else name)
                assert masks[str(folder / name)] == str(mask)
                assert mask.is_file()
                assert failed[str(folder / "bad" / name)] == "not-an-image"
        in_lines = [name for name in HOSTILE if not set(name) & {"\n", "\r"}]
        with trials.trial("list"):
            listed = folder / "list.txt"
            listed.write_bytes(b"".join(os.fsencode(name) + b"\n" for name in in_lines))
            code, told, error = cli("predict", listed, *given, tmp_path / "l", "--json", "-q")
            assert code == 0, error
            assert {each["image"] for each in json.loads(told)["masks"]} == {
                str(folder / name) for name in in_lines
            }
        monkeypatch.chdir(folder)
        for number in trials.several(10, len(HOSTILE)):
            name = HOSTILE[number * 3 % len(HOSTILE)]
            with trials.trial(f"-- {name!a}"):
                mask = tmp_path / f"{number}.png"
                code, _, error = cli("predict", *given, mask, "-q", "--", name)
                assert (code, error) == (0, "")
                assert mask.is_file()
                mask.unlink()
                found = cli("predict", *given, mask, "--", Path("bad", name))
                refused(found, 3, "image")
                assert printable_lines(found[2])

    @fault(
        "F15",
        "names too long for their masks, clashing masks",
        "cut and told, or told apart before any work",
    )
    def test_long(self, trials: Trials, cli: Cli, tmp_path: Path, model_folder: Path) -> None:
        folder, out = tmp_path / "images", tmp_path / "masks"
        long = ["木" * 83 + "a.png", "木" * 83 + "b.png", "y" * 251 + ".png"]
        for name in (*long, "x.png", "x.jpg.png", "x.jpg"):
            picture(folder / name)
        with trials.trial("predict"):
            code, told, error = cli(
                "predict", folder, "--model", model_folder, "--out", out, "--overlay", "--json"
            )
            assert code == 0, error
            found = json.loads(told)
            masks = [each["mask"] for each in found["masks"]]
            assert len(set(masks)) == len(masks) == 6
            assert found["shortened"] == 3
            assert len(list(out.glob("*_overlay.jpg"))) == 6
            assert all(unicodedata.is_normalized("NFC", each) for each in masks)


def hostile(folder: Path) -> Path:
    """The hostile names, and below `bad` the same for files that are no images."""
    images = folder / "images"
    for name in HOSTILE:
        picture(images / name)
        bad = images / "bad" / name
        bad.parent.mkdir(parents=True, exist_ok=True)
        junk(bad)
    return images


def printable_lines(text: str) -> bool:
    """Whether nobody's terminal takes a part of a name for a command or for the end of a line."""
    return all(line.isprintable() for line in text.split("\n"))


@dataclass(frozen=True)
class Listed:
    """A list, what `evaluate` ends with, and words of its error."""

    content: bytes
    code: int = 0
    words: str = ""
    leave: bool = False
    """Whether it is scored where lists may lead outside."""


class TestDatasetLists:
    @fault(
        "F16",
        "hostile lists of a data set, to evaluate",
        "what is below the root is scored; else 3, with the line",
    )
    def test_evaluate(self, trials: Trials, cli: Cli, tmp_path: Path, model_folder: Path) -> None:
        root = write_labelled_scenes(tmp_path / "data", train=1, val=3, side=48, seed=4)
        names = sorted(path.stem for path in (root / "images" / "val").iterdir())
        image = next((root / "images" / "val").iterdir())
        suffix = image.suffix
        outside = tmp_path / "outside"
        shutil.copytree(root, outside)
        plain = "".join(f"{name}\n" for name in names)
        many = 1_000_000 if trials.full else 20_000
        pair = f"images/val/{names[0]}{suffix} {{}}labels/val/{names[0]}.png"
        lists = {
            "plain": Listed(plain.encode()),
            "CRLF": Listed(plain.replace("\n", "\r\n").encode()),
            "BOM": Listed(b"\xef\xbb\xbf" + plain.encode()),
            "UTF-16": Listed(plain.encode("utf-16")),
            "absolute, inside": Listed(
                "".join(f"{root}/images/val/{name}{suffix}\n" for name in names).encode()
            ),
            "up and down again": Listed(
                "".join(f"images/train/../val/{name}\n" for name in names).encode()
            ),
            "up, outside": Listed(
                f"{names[1]}\n{pair.format('../outside/')}\n".encode(), 3, "line 2 ", leave=True
            ),
            "absolute, outside": Listed(
                f"{names[1]}\n\n{pair.format(f'{outside}/')}\n".encode(), 3, "line 3 ", leave=True
            ),
            "image outside": Listed(f"{outside}/images/val/{names[0]}{suffix}\n".encode(), 3, "line 1 "),
            "a system's file": Listed(f"{names[0]}\n/etc/passwd\n".encode(), 3, "line 2 "),
            "up for ever": Listed(f"{'../' * 60}etc/passwd\n".encode(), 3, "line 1 "),
            "NUL": Listed(f"{names[0]}\na\0b\n".encode(), 3, "line 2 "),
            "UTF-16 without a mark": Listed(plain.encode("utf-16-le"), 3, "line 1 "),
            "no text": Listed(os.urandom(4000).replace(b"\0", b"x") + b"\0", 3, "list.txt"),
            "a line of 1 MB": Listed(plain.encode() + b"a " * 500_000, 3, f"line {len(names) + 1} "),
            "a million lines": Listed(
                "".join(f"{number}\n" for number in range(many)).encode(), 3, f"{many} names"
            ),
            "repeated": Listed((plain + plain).encode(), 3, f"line {len(names) + 1} "),
            "itself": Listed(b"list.txt\n", 3, "line 1 "),
            "empty": Listed(b"", 3, "empty"),
        }  # fmt: skip
        digests = []
        for name, listed in lists.items():
            for leave in [[], ["--allow-outside"]] if listed.leave else [[]]:
                with trials.trial((name, *leave)):
                    (root / "list.txt").write_bytes(listed.content)
                    found = cli(
                        "evaluate", root / "scenes.toml", "--root", root, "--model", model_folder,
                        "--list", root / "list.txt", "--image-size", 32, "--json", "-q", *leave,
                    )  # fmt: skip
                    assert found[0] == (0 if leave else listed.code), found
                    if found[0]:
                        refused(found, listed.code, "input", "list.txt", listed.words)
                        assert len(found[2]) < 2000
                    elif not leave:
                        digests.append(json.loads(found[1])["digest"])
        with trials.trial("digests"):
            assert len(digests) == 6 and len(set(digests)) == 1
        with trials.trial("a folder"):
            found = cli(
                "evaluate", root / "scenes.toml", "--root", root, "--model", model_folder,
                "--list", root, "-q",
            )  # fmt: skip
            refused(found, 3, "input")

    @fault(
        "F16",
        "lists of a data set's own that lead outside, links inside",
        "probe and evaluate refuse the first, read the second",
    )
    def test_own_lists(self, trials: Trials, cli: Cli, tmp_path: Path, model_folder: Path) -> None:
        root = write_labelled_scenes(tmp_path / "data", train=2, val=2, side=48, seed=4)
        disk = tmp_path / "disk"
        for folder in ("images", "labels"):
            shutil.move(root / folder, disk / folder)
            (root / folder).symlink_to(disk / folder)
        (root / "list.txt").unlink(missing_ok=True)
        toml = (root / "scenes.toml").read_text()
        with_list = toml.replace("[splits.val]\n", '[splits.val]\nlists = ["val.txt"]\n')
        assert with_list != toml
        (root / "scenes.toml").write_text(with_list)
        names = sorted(path.stem for path in (disk / "images" / "val").iterdir())
        suffix = next((disk / "images" / "val").iterdir()).suffix
        (tmp_path / "other.png").write_bytes((disk / "labels/val" / f"{names[0]}.png").read_bytes())
        inside = f"images/val/{names[0]}{suffix} labels/val/{names[0]}.png\n"
        outside = f"images/val/{names[0]}{suffix} ../other.png\n"
        calls: dict[str, list[object]] = {
            "evaluate": ["evaluate", root / "scenes.toml", "--model", model_folder],
            "probe": ["probe", model_folder, "--dataset", root / "scenes.toml", "--kind", "kmeans"],
        }
        for command, call in calls.items():
            for content, leave, expected in (
                (inside, [], 0),
                (outside, [], 3),
                (outside, ["--allow-outside"], 0),
            ):
                with trials.trial((command, content, *leave)):
                    (root / "val.txt").write_text(content)
                    given = ("--root", root, "--image-size", 32, "-q", *leave)
                    code, _, error = cli(*call, *given)
                    assert code == expected, error
                    if code:
                        assert "line 1 " in error and error.count("\n") == 1


class TestImageLists:
    @fault(
        "F16",
        "hostile lists of images, to train and predict",
        "the same images, or 3 with the line",
    )
    def test_lists(
        self,
        trials: Trials,
        cli: Cli,
        tmp_path: Path,
        tiny_settings: dict[str, Any],
        model_folder: Path,
    ) -> None:
        folder = tmp_path / "images"
        paths = [picture(folder / name) for name in ("a.png", "bb.png", "ccc.png", "dé.png")]
        plain = "".join(f"images/{path.name}\n" for path in paths)
        lists: dict[str, tuple[bytes, str]] = {
            "plain": (plain.encode(), ""),
            "CRLF": (plain.replace("\n", "\r\n").encode(), ""),
            "BOM": (b"\xef\xbb\xbf" + plain.encode(), ""),
            "UTF-16": (plain.encode("utf-16"), ""),
            "absolute": ("".join(f"{path}\n" for path in paths).encode(), ""),
            "up": ("".join(f"../{tmp_path.name}/images/{p.name}\n" for p in paths).encode(), ""),
            "twice": ((plain + plain).encode(), ""),
            "quoted": ("".join(f'"images\\{path.name}"\n' for path in paths).encode(), ""),
            "a folder": (b"images\n", ""),
            "NUL": (plain.encode() + b"a\0b\n", "line 5 "),
            "UTF-16 without a mark": (plain.encode("utf-16-le"), "line 1 "),
            "a line of 1 MB": (plain.encode() + b"a " * 500_000, "line 5 "),
            "a long name": (plain.encode() + b"a" * 5000, "line 5"),
            "nothing there": (b"images/a.png\nnone.png\n", "line 2"),
            "itself, missing": (b"none.txt\n", "line 1"),
            "empty": (b"\n# a remark\n", "no file"),
        }
        listed = tmp_path / "list.txt"
        digests = set()
        given = ("--prior", "none", *options({**tiny_settings, "epochs": 0}), "-q", "--overwrite")
        for name, (content, words) in lists.items():
            listed.write_bytes(content)
            with trials.trial(("train", name)):
                if not (trials.full or words or name == "BOM"):
                    continue
                result = cli("train", "--no-report", listed, "--out", tmp_path / "run", *given)
                if words:
                    refused(result, 3, "input", words, "list.txt")
                    assert len(result[2]) < 20_000
                else:
                    assert result[0] == 0, result
                    found = json.loads((tmp_path / "run" / "dataset.json").read_text())
                    digests.add(found["digest"])
                    assert found["names"] == [path.name for path in paths]
            with trials.trial(("predict", name)):
                out = tmp_path / "masks" / name
                code, told, error = cli(
                    "predict", listed, "--model", model_folder, "--out", out, "--json", "-q"
                )
                assert code == (3 if words else 0), error
                if not words:
                    assert [each["image"] for each in json.loads(told)["masks"]] == list(
                        map(str, paths)
                    )
        with trials.trial("digests"):
            assert len(digests) == 1
        with trials.trial("itself"):
            listed.write_text(f"{plain}list.txt\n")
            code, _, error = cli(
                "predict", listed, "--model", model_folder, "--out", tmp_path / "i", "-q"
            )
            assert code == 9
            assert reasons(tmp_path / "i" / "failed.jsonl") == {str(listed): "not-an-image"}


class TestMillion:
    @fault(
        "F25",
        "1,000,000 paths in a list: read, digest, save, load",
        "less than 500 bytes a path; the same digest",
    )
    def test_paths(self, trials: Trials, tmp_path: Path) -> None:
        count = 1_000_000 if trials.full else 100_000
        # In memory where that can be: a disk takes long to make so many.
        memory_disk = Path("/dev/shm")
        space = memory_disk if os.access(memory_disk, os.W_OK) else tmp_path
        folder = Path(tempfile.mkdtemp(dir=space)) / "many"
        try:
            names = many_files(folder, count)
            listed = folder.parent / "list.txt"
            listed.write_text("".join(f"many/{name}\n" for name in names))
            saved = tmp_path / "dataset.json"

            def steps() -> Iterator[tuple[str, Any]]:
                files = scan([listed])
                yield "scan", (len(files), files.names[0], files.names[-1])
                yield "digest", files.digest
                replace_json(saved, files.to_dict())
                yield "save", None
                again = Manifest.from_dict(json.loads(saved.read_text("ascii")))
                yield "load", (again.digest, again == files)

            ((_, text),) = in_children(
                lambda _: measured(steps), range(1), memory=8 << 30, seconds=300
            )
            assert text.startswith("["), text
            found = {name: (grown, result) for name, grown, result in json.loads(text)}
            for name, limit in (("scan", 500), ("digest", 10), ("save", 900), ("load", 900)):
                print(f"{name}: {found[name][0] / count:.0f} bytes a path")
                with trials.trial(name):
                    assert found[name][0] / count < limit
            with trials.trial("values"):
                assert found["scan"][1] == [count, names[0], names[-1]]
                assert found["load"][1] == [found["digest"][1], True]
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)


def many_files(folder: Path, count: int) -> list[str]:
    """Empty images in folders of a thousand; their names in order."""
    names = []
    for number in range(count):
        name = f"{number // 1000:04}/photograph_{number:08}.jpg"
        if number % 1000 == 0:
            (folder / name).parent.mkdir(parents=True)
        os.mknod(folder / name)
        names.append(name)
    return names


def measured(steps: Callable[[], Iterator[tuple[str, Any]]]) -> str:
    """The names of the steps, by how many bytes the most memory has grown in each, and their results."""
    gc.collect()
    told: list[tuple[str, int, Any]] = []
    running = steps()
    while True:
        Path("/proc/self/clear_refs").write_text("5")  # forget the most so far
        before = taken("VmRSS")
        try:
            name, result = next(running)
        except StopIteration:
            return json.dumps(told)
        told.append((name, taken("VmHWM") - before, result))
