"""`clusters` on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from photographs import junk
from PIL import Image
from program import Cli, refused

from densesiam_seg.images.scan import scan
from densesiam_seg.inference.segmenter import Segmenter


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Path:
    """A model of five clusters that may be edited."""
    return Path(shutil.copytree(model_folder, tmp_path / "a model"))


def test_the_list(cli: Cli, model: Path) -> None:
    """`list` may be left out."""
    code, out, error = cli("clusters", model)
    assert (code, error) == (0, "") and out == cli("clusters", "list", model)[1]
    assert all(f"cluster_0{k}" in out for k in range(5))
    found = json.loads(cli("clusters", model, "--json")[1])
    assert found["revision"] == 0 and found["edits"] == []
    assert [(each["id"], each["merged"]) for each in found["clusters"]] == [
        (k, []) for k in range(5)
    ]


def test_edits_and_their_undoing(cli: Cli, model: Path) -> None:
    before = (model / "clusters.json").read_bytes()
    code, out, error = cli("clusters", "rename", model, "1=sky", "cluster_03=a = b")
    assert (code, out) == (0, "") and "undo" in error
    code, out, _ = cli("clusters", "merge", model, "sky", "4", "--as", "blue", "--json", "-q")
    found = json.loads(out)
    assert code == 0 and found["edits"] == [
        "rename 1=sky cluster_03=a = b",
        "merge sky 4 --as blue",
    ]
    assert [(each["id"], each["name"], each["merged"]) for each in found["clusters"]] == [
        (0, "cluster_00", []),
        (1, "blue", [4]),
        (2, "cluster_02", []),
        (3, "a = b", []),
    ]
    assert Segmenter.load(model, device="cpu").grouping.tolist() == [0, 1, 2, 3, 1]
    assert cli("clusters", "undo", model, "-q") == (0, "", "")
    assert cli("clusters", "undo", model, "-q") == (0, "", "")
    refused(cli("clusters", "undo", model), 2, "usage", "nothing to undo")
    assert (model / "clusters.json").read_bytes() == before.replace(
        b'"revision": 0', b'"revision": 4'
    )


def test_masks_follow_and_are_the_same_after_an_undo(
    cli: Cli, model: Path, scenes: Path, tmp_path: Path
) -> None:
    image = next((scenes / "images" / "val").iterdir())

    def mask(name: str) -> Path:
        out = tmp_path / f"{name}.png"
        assert (
            cli("predict", image, "--model", model, "--out", out, "-q", "--device", "cpu")[0] == 0
        )
        return out

    before = mask("before")
    ids = np.array(Image.open(before))
    first, second = np.unique(ids)[:2].tolist()
    assert cli("clusters", "merge", model, second, first, "-q")[0] == 0
    after = Image.open(mask("after"))
    assert np.array_equal(np.array(after), np.where(ids == first, second, ids))
    assert after.getpalette() == Image.open(before).getpalette()
    assert cli("clusters", "undo", model, "-q")[0] == 0
    assert mask("again").read_bytes() == before.read_bytes()


def test_names_from_labels(cli: Cli, model: Path, scenes: Path, tmp_path: Path) -> None:
    start = ("clusters", "name", model, "--from", scenes / "labels" / "val")
    call = (*start, "--images", scenes / "images" / "val", "--device", "cpu")
    refused(cli(*call), 2, "usage", "--classes")
    code, out, error = cli(*call, "--dataset", scenes / "scenes.toml", "--json")
    found = json.loads(out)
    assert code == 0 and len(found["edits"]) == 1
    named = [each for each in found["clusters"] if each["named_by"] == "labels"]
    assert named and len({each["name"] for each in named}) == len(named)
    assert "% of the labelled pixels of 3 masks" in error
    assert cli("clusters", "undo", model, "-q")[0] == 0
    names = ["sky", "road", "b", "c", "d", "e", "f", "g"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    code, out, _ = cli(*call, "--classes", tmp_path / "names.txt", "--json")
    again = [each for each in json.loads(out)["clusters"] if each["named_by"] == "labels"]
    assert [each["id"] for each in again] == [each["id"] for each in named]
    assert {each["name"] for each in again} <= set(names)
    # The images of this model's training are not known.
    refused(cli(*start, "--classes", tmp_path / "names.txt"), 3, "input", "--images")


def test_refusals(cli: Cli, model: Path) -> None:
    refused(cli("clusters", model / "x"), 4, "model", "no model here")
    refused(cli("clusters", "merge", model, "1"), 2, "usage", "at least two")
    refused(cli("clusters", "rename", model, "9=sky"), 2, "usage", "9: no such cluster")
    (model / "model.safetensors").write_bytes(b"x")
    refused(cli("clusters", "rename", model, "1=sky"), 4, "model", "model.safetensors")


class TestNumber:
    def test_suggested_and_cut(self, cli: Cli, model: Path, image_folder: Path) -> None:
        code, out, error = cli("clusters", "suggest", model, image_folder)
        assert code == 0 and "recommended: " in out and "cut" in error
        found = json.loads(cli("clusters", "suggest", model, image_folder, "--json", "-q")[1])
        assert found["counts"] == [2, 3, 4, 5] and found["chosen"] in found["counts"]
        kept = json.loads((model / "clusters.json").read_text(encoding="utf-8"))
        assert kept["suggestion"] == found and kept["revision"] == 0
        code, out, error = cli("clusters", "cut", model, "-k", 3, "--json")
        assert code == 0 and "3 of 5" in error
        assert len(json.loads(out)["clusters"]) == 3
        assert len(set(Segmenter.load(model, device="cpu").grouping.tolist())) == 3
        assert cli("clusters", "undo", model, "-q") == (0, "", "")
        assert len(set(Segmenter.load(model, device="cpu").grouping.tolist())) == 5

    def test_a_cut_looks_for_itself_where_nothing_is_kept(
        self, cli: Cli, model: Path, image_folder: Path, tmp_path: Path
    ) -> None:
        refused(cli("clusters", "cut", model, "-k", 3), 3, "input", f"suggest {model} IMAGES")
        run = tmp_path / "run"
        run.mkdir()
        model.rename(run / "model")
        (run / "dataset.json").write_text(json.dumps(scan([image_folder]).to_dict()))
        assert cli("clusters", "cut", run, "-k", 3, "-q") == (0, "", "")
        kept = json.loads((run / "model" / "clusters.json").read_text(encoding="utf-8"))
        assert kept["suggestion"]["counts"] == [2, 3, 4, 5]

    def test_a_tree_of_another_model_is_not_used(self, cli: Cli, model: Path) -> None:
        file = model / "clusters.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(content | {"suggestion": {"tree": [[0, 1]]}}))
        refused(cli("clusters", "cut", model, "-k", 3), 3, "input", f"suggest {model} IMAGES")

    def test_refusals(self, cli: Cli, model: Path, image_folder: Path, tmp_path: Path) -> None:
        refused(cli("clusters", "cut", model, "-k", 6), 2, "usage", "5 clusters", "auto")
        refused(cli("clusters", "cut", model, "-k", 0), 2, "usage", "1 to 5")
        refused(cli("clusters", "suggest", model, tmp_path / "x"), 3, "input", "x")
        refused(cli("clusters", "suggest", tmp_path / "x"), 4, "model", "no model here")

    def test_images_that_cannot_be_read(
        self, cli: Cli, model: Path, image_folder: Path, tmp_path: Path
    ) -> None:
        """The others are counted, and the exit code tells it."""
        code, out, error = cli("clusters", "suggest", model, image_folder, junk(tmp_path / "a.png"))
        assert code == 9 and "recommended" in out
        assert "1 of 13" in error and "a.png" in error
