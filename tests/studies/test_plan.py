"""A study before it begins: what is refused at once, what is written down, and what may not change on a resume."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from densesiam_seg.errors import DenseSiamError, InputError, ModelError, UsageError
from densesiam_seg.events import Progress
from densesiam_seg.studies.plan import Plan, checked_labels, plan_study, require_same, write_plan


@pytest.fixture
def data(scenes: Path, tmp_path: Path) -> Path:
    """Scenes to change."""
    shutil.copytree(scenes, tmp_path / "scenes")
    return tmp_path / "scenes"


def plan(data: Path, study: str = "similarity", **options: Any) -> Plan:
    return plan_study(study, data / "scenes.toml", data, **{"device": "cpu", **options})


class TestPlan:
    def test_rows_come_seed_by_seed(self, scenes: Path) -> None:
        found = [(row.name, seed) for row, seed in plan(scenes, seeds=2, seed=5).runs()]
        assert found == [("cross-entropy", 5), ("cosine", 5), ("cross-entropy", 6), ("cosine", 6)]

    def test_images_are_those_of_the_train_split_or_those_given(self, scenes: Path) -> None:
        found, other = plan(scenes), plan(scenes, images=[scenes / "images"])
        assert [found.images.path(k) for k in range(8)] == [str(each.image) for each in found.train]
        assert (len(found.images), len(other.images)) == (8, 10)
        assert other.images.digest[:12] in other.data_note()
        assert (found.task.samples.split, found.task.protocol.name) == ("val", "picie")

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"study": "loss"}, UsageError, "'loss'"),
            ({"seeds": 0}, UsageError, "--seeds 0"),
            ({"seed": 2**63 - 2}, UsageError, "seed = 9223372036854775808"),
            ({"similarity": "cosine"}, UsageError, "the similarity study"),
            ({"epochs": -1}, UsageError, "epochs = -1"),
            ({"sampling": "uniform", "study": "correspondence"}, UsageError, "sampling"),
            ({"device": "abacus"}, UsageError, "--device abacus"),
            ({"weights": "none.pth"}, UsageError, "--weights none.pth"),
            ({"protocol": "mine"}, UsageError, "--protocol mine"),
            ({"split": "test"}, UsageError, "no split 'test'"),
            ({"train_split": "val"}, UsageError, "share 2 images"),
            ({"split": "val+train"}, UsageError, "share 8 images"),
            ({"images": ["absent"]}, InputError, "absent"),
        ],
    )
    def test_refused(
        self, scenes: Path, options: dict[str, Any], error: type[DenseSiamError], words: str
    ) -> None:
        with pytest.raises(error) as found:
            plan(scenes, **options)
        assert words in str(found.value)

    def test_a_dataset_that_is_not_there(self, scenes: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no folder images/val"):
            plan_study("losses", scenes / "scenes.toml", tmp_path)


class TestLabels:
    def test_all_are_read(self, scenes: Path) -> None:
        wanted = [Progress("checking labels", k, 10) for k in range(1, 11)]
        assert list(checked_labels(plan(scenes))) == wanted

    def test_warnings_of_scoring(self, data: Path) -> None:
        (data / "images/train/more").symlink_to(data)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 3
        path = min((data / "images/val").iterdir())
        with Image.open(path) as image:
            image.save(path, exif=exif)
        linked, *_, turned = checked_labels(plan(data))
        assert "1 linked folder" in str(linked)
        assert f"{path.name} (EXIF orientation 3" in str(turned)

    def test_a_value_of_no_class(self, data: Path) -> None:
        Image.fromarray(np.full((32, 32), 77, np.uint8)).save(data / "labels/val/0002.png")
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
        assert value.items() >= found.describe().items()
        assert (value["study"], value["seeds"]) == ("similarity", [0, 1])
        assert value["settings"] == {"device": "cpu", "epochs": 3}
        assert value["rows"][1]["settings"] == {"similarity": "cosine"}
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
            ({"study": "losses"}, "study is 'similarity'"),
            ({"epochs": 4}, "epochs is 3"),
            ({"batch_size": 4}, "batch_size is not given"),
            ({"epochs": None}, "epochs is 3"),
            ({"seeds": 2}, "seeds is [0, 1, 2]"),
            ({"seed": 1}, "seeds is [0, 1, 2]"),
            ({"preset": "fast"}, "preset is not given"),
            ({"protocol": "stego"}, "protocol is 'picie'"),
        ],
    )
    def test_changed_options(
        self, folder: Path, scenes: Path, changes: dict[str, Any], words: str
    ) -> None:
        write_plan(folder, plan(scenes, epochs=3))
        now = {name: value for name, value in {"epochs": 3, **changes}.items() if value}
        with pytest.raises(UsageError) as found:
            require_same(folder, plan(scenes, **now))
        assert f"--resume: {words} in {folder / 'study.json'} and " in str(found.value)

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
        for name in before.task.dataset.names:
            text = text.replace(f'"{name}"', f'"{name}!"')
        (data / "scenes.toml").write_text(text)
        with pytest.raises(ModelError, match="train split were changed"):
            require_same(folder, plan(data))

    @pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"data": 1}'])
    def test_without_a_sound_file(self, folder: Path, scenes: Path, content: str | None) -> None:
        if content is not None:
            (folder / "study.json").write_text(content)
        with pytest.raises(ModelError, match="no study to resume here"):
            require_same(folder, plan(scenes))
