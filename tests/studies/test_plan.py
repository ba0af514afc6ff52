"""A study before it begins: what is refused at once, what is written down, and what may not change on a resume."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densesiam_seg.datasets.scenes import write_scenes
from densesiam_seg.demo import scenes_toml
from densesiam_seg.errors import DenseSiamError, InputError, ModelError, UsageError
from densesiam_seg.studies.ablations import STUDIES
from densesiam_seg.studies.plan import Plan, checked_labels, plan_study, require_same, write_plan


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled scenes of 32 pixels to learn from, two to score; for reading only."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 3, seed=0, side=32, split="train")
    write_scenes(folder, 2, seed=0, side=32, split="val", first=3)
    (folder / "scenes.toml").write_text(scenes_toml())
    return folder


@pytest.fixture
def data(scenes: Path, tmp_path: Path) -> Path:
    """The same to change."""
    shutil.copytree(scenes, tmp_path / "scenes")
    return tmp_path / "scenes"


def plan(data: Path, study: str = "similarity", **options: Any) -> Plan:
    return plan_study(study, data / "scenes.toml", data, **{"device": "cpu", **options})


class TestPlan:
    def test_rows_come_seed_by_seed(self, scenes: Path) -> None:
        found = [(row.name, seed) for row, seed in plan(scenes, seeds=2, seed=5).runs()]
        assert found == [("cross-entropy", 5), ("cosine", 5), ("cross-entropy", 6), ("cosine", 6)]

    def test_by_default(self, scenes: Path) -> None:
        found = plan(scenes)
        assert (found.scored.split, found.train.split, found.protocol.name) == (
            "val",
            "train",
            "picie",
        )
        assert found.seeds == (0, 1, 2)
        assert [found.images.path(k) for k in range(len(found.images))] == [
            str(sample.image) for sample in found.train
        ]

    def test_a_runs_settings(self, scenes: Path) -> None:
        found = plan(scenes, "correspondence", epochs=2, region_weight=0.3)
        shared = {"device": "cpu", "epochs": 2, "seed": 7, "correspondence": "location"}
        assert found.run_settings(found.rows[4], 7) == {**shared, "region_weight": 0.0}
        assert found.run_settings(found.rows[5], 7) == {**shared, "region_weight": 0.3}

    def test_other_images(self, scenes: Path) -> None:
        assert len(plan(scenes, images=[scenes / "images"]).images) == 5

    def test_the_notes_name_the_data(self, scenes: Path) -> None:
        found = plan(scenes)
        assert found.notes() == [
            f"data: Procedural scenes; scored on val (2 images, {found.scored.digest[:12]}), linear probe trained on "
            f"train (3 images, {found.train.digest[:12]}), pre-trained on 3 unlabelled images "
            f"({found.images.digest[:12]})"
        ]

    @pytest.mark.parametrize("study", STUDIES)
    def test_every_study(self, scenes: Path, study: str) -> None:
        assert len(plan(scenes, study).runs()) == 3 * len(STUDIES[study])

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"study": "loss"}, UsageError, "no study is named 'loss'"),
            ({"seeds": 0}, UsageError, "--seeds 0: must be 1 to 100"),
            ({"seed": 2**63 - 2}, UsageError, "seed = 9223372036854775808"),
            ({"similarity": "cosine"}, UsageError, "what the rows of the similarity study"),
            ({"epochs": 0}, UsageError, "epochs = 0: must be at least 1"),
            ({"sampling": "uniform", "study": "correspondence"}, UsageError, "sampling"),
            ({"device": "abacus"}, UsageError, "--device abacus: not a device"),
            ({"weights": "none.pth"}, UsageError, "--weights none.pth: no such file"),
            ({"protocol": "mine"}, UsageError, "--protocol mine: give one of picie"),
            ({"split": "test"}, UsageError, "has no split 'test'"),
            ({"train_split": "val"}, UsageError, "have 2 labels in common"),
            ({"split": "val+train"}, UsageError, "have 3 labels in common"),
            ({"images": ["absent"]}, InputError, "absent: no such file or folder"),
        ],
    )
    def test_refused(
        self, scenes: Path, options: dict[str, Any], error: type[DenseSiamError], words: str
    ) -> None:
        with pytest.raises(error) as found:
            plan(scenes, **options)
        assert words in str(found.value)

    def test_a_dataset_that_is_not_there(self, scenes: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no dataset is named 'mine'"):
            plan_study("losses", "mine", scenes)
        with pytest.raises(InputError, match="no folder images/val"):
            plan_study("losses", scenes / "scenes.toml", tmp_path)


class TestLabels:
    def test_all_are_read(self, scenes: Path) -> None:
        assert list(checked_labels(plan(scenes))) == [(k, 5) for k in range(1, 6)]

    def test_a_value_of_no_class(self, data: Path) -> None:
        Image.fromarray(np.full((32, 32), 77, np.uint8)).save(data / "labels/val/0002.png")
        with pytest.raises(InputError, match=r"0002\.png: label values without a meaning"):
            list(checked_labels(plan(data)))

    def test_a_file_that_is_no_label(self, data: Path) -> None:
        (data / "labels/train/0002.png").write_bytes(b"junk")
        with pytest.raises(InputError, match=r"0002\.png"):
            list(checked_labels(plan(data)))

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_a_split_without_a_label(self, data: Path, split: str) -> None:
        text = (data / "scenes.toml").read_text()
        (data / "scenes.toml").write_text("ignore_values = [99]\n" + text)
        declared = plan(data)
        for path in (data / "labels" / split).iterdir():
            Image.fromarray(np.full((32, 32), 99, np.uint8)).save(path)
        with pytest.raises(InputError, match=f"scenes {split} has a label; a probe needs"):
            list(checked_labels(declared))


class TestResume:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "study").mkdir()
        return tmp_path / "study"

    def test_what_is_written(self, folder: Path, scenes: Path) -> None:
        found = plan(scenes, seeds=2, epochs=3)
        write_plan(folder, found)
        value = json.loads((folder / "study.json").read_text())
        assert value["study"] == "similarity"
        assert value["seeds"] == [0, 1]
        assert value["settings"] == {"device": "cpu", "epochs": 3}
        assert value["rows"][1] == {
            "name": "cosine",
            "settings": {"similarity": "cosine"},
            "paper": None,
        }
        assert value["data"]["scored"]["digest"] == found.scored.digest
        assert value["data"]["images"] == {"count": 3, "digest": found.images.digest}
        assert value["environment"]["packages"]["torch"]

    def test_the_same_goes_on(self, folder: Path, data: Path) -> None:
        write_plan(folder, plan(data, epochs=3, learning_rate=0.1))
        require_same(folder, plan(data, epochs=3, learning_rate=0.1))

    def test_so_do_data_that_were_moved(self, folder: Path, data: Path) -> None:
        write_plan(folder, plan(data))
        data.rename(data.with_name("elsewhere"))
        require_same(folder, plan(data.with_name("elsewhere")))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"study": "losses"}, "study is 'similarity' in "),
            ({"epochs": 4}, "epochs is 3 in "),
            ({"batch_size": 4}, "batch_size is not given in "),
            ({"seeds": 2}, "seeds is [0, 1, 2] in "),
            ({"seed": 1}, "seeds is [0, 1, 2] in "),
            ({"preset": "fast"}, "preset is not given in "),
            ({"protocol": "stego"}, "protocol is 'picie' in "),
        ],
    )
    def test_changed_options(
        self, folder: Path, scenes: Path, changes: dict[str, Any], words: str
    ) -> None:
        write_plan(folder, plan(scenes, epochs=3))
        with pytest.raises(UsageError) as found:
            require_same(folder, plan(scenes, **{"epochs": 3, **changes}))
        assert f"--resume: {words}{folder / 'study.json'} and " in str(found.value)

    @pytest.mark.parametrize(
        ("name", "what"),
        [
            ("images/train/0001.jpg", "images to pre-train on"),
            ("labels/train/0002.png", "images or labels of the train split"),
            ("images/val/0001.jpg", "images or labels of the scored split"),
        ],
    )
    def test_changed_data(self, folder: Path, data: Path, name: str, what: str) -> None:
        write_plan(folder, plan(data))
        os.utime(data / name, (1, 1))
        with pytest.raises(ModelError, match=f"the {what} were changed"):
            require_same(folder, plan(data))

    def test_other_classes(self, folder: Path, data: Path) -> None:
        before = plan(data)
        write_plan(folder, before)
        text = (data / "scenes.toml").read_text()
        for name in before.dataset.names:
            text = text.replace(f'"{name}"', f'"{name}!"')
        (data / "scenes.toml").write_text(text)
        with pytest.raises(ModelError, match="train split were changed"):
            require_same(folder, plan(data))

    @pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"data": 1}'])
    def test_without_a_sound_file(self, folder: Path, scenes: Path, content: str | None) -> None:
        if content is not None:
            (folder / "study.json").write_text(content)
        with pytest.raises(ModelError, match="no study to resume here") as found:
            require_same(folder, plan(scenes))
        assert len(str(found.value).splitlines()) == 1
