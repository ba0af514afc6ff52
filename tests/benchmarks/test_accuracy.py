"""The pure parts of `benchmarks/accuracy`: what a row costs and depends on, how seeds become a table, resuming."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import densesiam_seg
from densesiam_seg.config import TrainConfig
from densesiam_seg.datasets.scenes import scene
from densesiam_seg.presets import train_preset

FOLDER = Path(__file__).parents[2] / "benchmarks" / "accuracy"
MODULES = ("child", "grid", "jobs", "making", "report", "rows", "tasks")


@pytest.fixture(scope="module")
def parts() -> Iterator[Any]:
    """The benchmark's modules by name; a folder that is run has no package, so they are found by its path."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def camvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in CamVid's layout: six scenes of 40 pixels for training, five for scoring."""
    root = tmp_path_factory.mktemp("camvid")
    for split, first, count in (("train", 0, 6), ("val", 6, 5)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(first, first + count):
            for kind, pixels in zip(("images", "labels"), scene(0, index, 40), strict=True):
                Image.fromarray(pixels).save(root / kind / split / f"{index}.png")
    return root


@pytest.fixture
def task(parts: Any, camvid: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(parts.tasks, "SIDE", 32)
    return parts.tasks.load_task("camvid", camvid)


def job_of(parts: Any, task: Any, folder: Path, name: str = "rgb-xy", **means: Any) -> Any:
    roots = means.pop("roots", {})
    return parts.jobs.Job(
        name, parts.rows.ROWS[name], task, 0, parts.jobs.Means(folder, roots, **means)
    )


class TestTask:
    def test_what_it_says_of_itself(self, task: Any) -> None:
        facts = task.facts()
        assert facts["clusters"] == task.clusters == 11
        assert facts["protocol"].startswith("picie: shorter side 32 (bilinear), centre crop 32")
        assert (facts["scored"]["split"], facts["scored"]["images"]) == ("val", 5)
        assert (facts["learned_from"]["split"], facts["learned_from"]["images"]) == ("train", 6)

    def test_contents_count(self, parts: Any, task: Any, camvid: Path) -> None:
        """Names stay, a label changes: the splits' own digests cannot tell, the contents' can."""
        path = camvid / "labels" / "val" / "7.png"
        before = path.read_bytes()
        Image.fromarray(np.zeros((40, 40), np.uint8)).save(path)
        parts.tasks._contents.cache_clear()
        other = parts.tasks.load_task("camvid", camvid)
        path.write_bytes(before)
        parts.tasks._contents.cache_clear()
        assert other.scored.digest == task.scored.digest
        assert other.contents != task.contents

    def test_whole_images(self, task: Any) -> None:
        whole = task.whole()
        assert (whole.protocol.name, whole.side) == ("full-image", 40)
        assert {tuple(image.shape) for image in whole.training_images()} == {(3, 40, 40)}
        assert {tuple(image.shape) for image in task.training_images()} == {(3, 32, 32)}

    def test_scenes_are_drawn_once(
        self, parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("densesiam_seg.demo.TRAINING_SCENES", 3)
        monkeypatch.setattr("densesiam_seg.demo.HELD_OUT_SCENES", 2)
        task = parts.tasks.load_task("scenes", tmp_path)
        assert (len(task.train), len(task.scored), task.side, task.clusters) == (3, 2, 96, 6)
        monkeypatch.setattr(parts.tasks, "write_dataset", None)
        assert parts.tasks.load_task("scenes", tmp_path).contents == task.contents

    def test_pictures_are_spread_evenly(self, parts: Any) -> None:
        assert list(parts.tasks.pictured(4, 101)) == [12, 37, 63, 88]
        assert list(parts.tasks.pictured(4, 2)) == [0, 1]


def of_size(images: int) -> Any:
    """What a recipe asks of a task."""
    return SimpleNamespace(train=range(images), side=160, clusters=11)


class TestRecipes:
    @pytest.mark.parametrize(
        ("images", "quick", "picie", "densesiam"),
        [(367, False, 5, 10), (113, False, 16, 31), (367, True, 1, 2)],
    )
    def test_steps_are_those_of_camvid_on_any_set(
        self, parts: Any, images: int, quick: bool, picie: int, densesiam: int
    ) -> None:
        """110 steps of 16: 5 epochs of 367 images, 16 epochs of 113."""
        for name, epochs in (("picie", picie), ("mdc", picie), ("densesiam", densesiam)):
            facts = parts.rows.ROWS[name].facts(of_size(images), quick=quick)
            assert facts["epochs"] == epochs

    @pytest.mark.parametrize(
        ("name", "plain", "changed"),
        [
            ("densesiam", TrainConfig(), {"batch_size", "rate_scaling"}),
            ("scratch", train_preset("balanced", 367, gpu=False)[1], set()),
            ("ours", train_preset("balanced", 367, gpu=False, start="stages")[1], {"backbone"}),
        ],
    )
    def test_what_differs_from_the_preset(
        self, parts: Any, name: str, plain: TrainConfig, changed: set[str]
    ) -> None:
        """Beside the size, the number of clusters and the weights."""
        facts = parts.rows.ROWS[name].facts(of_size(367), quick=False)
        found = {name for name, value in facts.items() if value != getattr(plain, name)}
        assert found - {"image_size", "clusters", "weights"} == changed

    def test_an_ablation_changes_what_it_names(self, parts: Any) -> None:
        rows = parts.rows.ablation_rows()
        default = rows["scratch"].facts(of_size(367), quick=False)
        titled = {row.title: row for row in rows.values()}
        for title, settings in parts.rows.ABLATIONS.items():
            facts = titled[f"from scratch, {title}"].facts(of_size(367), quick=False)
            changed = {name: value for name, value in facts.items() if value != default[name]}
            # A method brings further settings with it.
            assert changed.items() >= settings.items()


class TestJobs:
    def test_a_result_counts_only_with_its_settings(
        self, parts: Any, task: Any, tmp_path: Path
    ) -> None:
        job = job_of(parts, task, tmp_path)
        assert job.result() is None
        job.path.parent.mkdir(parents=True)
        job.path.write_text(json.dumps({"digest": job.digest(), "mean_iou": 1.0}))
        assert job.result()["mean_iou"] == 1.0
        assert job_of(parts, task, tmp_path, quick=True).result() is None
        assert job_of(parts, task, tmp_path, threads=2).result() is not None
        job.path.write_text("{")
        assert job.result() is None

    def test_the_recipe_counts(
        self, parts: Any, task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = job_of(parts, task, tmp_path, "ours").digest()
        recipe = parts.making.Recipe("balanced", {"learning_rate": 0.06})
        row = parts.rows.Row("ours", recipe, "ours")
        monkeypatch.setattr(parts.rows, "ROWS", {**parts.rows.ROWS, "ours": row})
        assert job_of(parts, task, tmp_path, "ours").digest() != before

    def test_children_run_the_same_tree(self, parts: Any) -> None:
        variables = parts.jobs.environment(1)
        first = variables["PYTHONPATH"].split(":")[0]
        assert Path(first) / "densesiam_seg" == Path(densesiam_seg.__file__).parent
        assert variables["OMP_NUM_THREADS"] == "1"

    @pytest.mark.parametrize("name", ["one-class", "position-labels", "rgb-xy-whole"])
    def test_from_order_to_result(
        self, parts: Any, task: Any, camvid: Path, tmp_path: Path, name: str
    ) -> None:
        """The order goes to the child as JSON."""
        job = job_of(parts, task, tmp_path, name, roots={"camvid": camvid})
        result = parts.child.finish(json.loads(json.dumps(job.order())))
        assert result["digest"] == job.digest()
        assert np.sum(result["counts"]) == 5 * (40 if job.row.whole else 32) ** 2
        line = parts.report.Line(name, job.row, [result], 1)
        if job.row.whole:
            assert result["task"]["protocol"].startswith("full-image: shorter side 40")
        else:
            assert parts.grid.grid(task, [line], job.path.parent).width > 3 * 120


def line_of(parts: Any, name: str, scores: Sequence[float], asked: int | None = None) -> Any:
    """A row whose seeds 0, 1, … scored so."""
    row = parts.rows.ROWS[name]
    split = {"split": "val", "images": 3, "names_digest": "abc"}
    task = {
        "dataset": "D", "protocol": "whole: 360" if row.whole else "picie: 160", "clusters": 11, "scored": split,
        "learned_from": split, "contents_digest": "def",
    }  # fmt: skip
    environment = {
        "machine": "m", "cpu_capability": "c", "threads": 1, "python": "3", "device": "cpu", "packages": {"torch": "1"},
    }  # fmt: skip
    results = [
        {
            "seed": seed, "revision": "r", "digest": "d", "task": task, "settings": {}, "readout": "head",
            "matching": "hungarian", "clusters": 11, "mean_iou": value, "pixel_accuracy": 2 * value,
            "mean_accuracy": value, "things_iou": None, "stuff_iou": value, "iou": {"sky": value, "sea": None},
            "clusters_in_use": 11, "training_processor_seconds": 5.0, "training_wall_seconds": 6.0,
            "peak_gigabytes": 1.0, "environment": environment,
        }
        for seed, value in enumerate(scores)
    ]  # fmt: skip
    return parts.report.Line(name, row, results, asked or len(results))


class TestTables:
    def test_means_and_deviations(self, parts: Any) -> None:
        lines = [
            line_of(parts, "one-class", [10.0]),
            line_of(parts, "position-labels", [90.0]),
            line_of(parts, "rgb", [20.0, 22.0]),
            line_of(parts, "ours", [30.0, 34.0, 32.0], asked=4),
        ]
        text = parts.report.score_table("T", lines, ["note"]).markdown()
        rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in text.splitlines()[4:8]]
        assert [value for _, value in rows] == [
            "10.00",
            "90.00",
            "21.00 ± 1.41",
            "**32.00 ± 2.00**",
        ]
        assert rows[-1][0].endswith("(3 of 4 seeds)")
        assert "- note" in text

    def test_classes_that_do_not_occur(self, parts: Any) -> None:
        text = parts.report.class_table("T", [line_of(parts, "rgb", [1.0, 3.0])]).markdown()
        cells = [cell.strip() for cell in text.splitlines()[4].split("|")[2:-1]]
        assert cells == ["2.0 ± 1.4", "-"]

    def test_an_ablation_compares_seed_by_seed(self, parts: Any) -> None:
        lines = [line_of(parts, "ours", [10.0, 20.0, 30.0]), line_of(parts, "ours", [11.0, 22.0])]
        table = parts.report.ablation_table("T", lines, [])
        assert table.columns[1].key == "difference"
        assert table.cells[0][1] is None
        assert (table.cells[1][1].mean, table.cells[1][1].values) == (1.5, (1.0, 2.0))

    def test_the_card_names_what_fixes_the_numbers(self, parts: Any) -> None:
        lines = [line_of(parts, "rgb", [1.0, 3.0]), line_of(parts, "rgb-xy-whole", [5.0, 6.0])]
        text = "\n".join(parts.report.card(lines, [0, 1], "python x", quick=True))
        for part in ("QUICK", "picie: 160", "whole: 360", "seeds: 0, 1", "python x", "torch 1"):
            assert part in text

    def test_the_summary_is_json(self, parts: Any) -> None:
        summary = parts.report.summary([line_of(parts, "rgb", [1.0, 3.0])], ["note"])
        (row,) = json.loads(json.dumps(summary))["rows"]
        assert row["mean_iou"] == {"mean": 2.0, "deviation": pytest.approx(2**0.5)}
        assert [each["seed"] for each in row["seeds"]] == [0, 1]
        assert row["things_iou"] is None
