"""From single runs to the table and the chart of a study."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from densesiam_seg.errors import ModelError
from densesiam_seg.evaluation.evaluate import Evaluation
from densesiam_seg.evaluation.metrics import match, score
from densesiam_seg.io.files import to_json
from densesiam_seg.pictures.charts import MEAN
from densesiam_seg.studies.ablations import Row
from densesiam_seg.studies.scoreboard import (
    COLUMNS,
    Cost,
    ProbeScore,
    RunResult,
    score_chart,
    score_table,
    standing_notes,
)

ROWS = (Row("first", {}, (50.0, 80.0, 60.0)), Row("second", {}))


def probe(value: float) -> ProbeScore:
    return ProbeScore(value, value + 40, {"a": value, "b": None}, "picie: 32", "probe", 2)


def result(row: str, seed: int, value: float | None = None, failure: str = "lost") -> RunResult:
    """Linear `value`, k-means half of it, or a failure."""
    if value is None:
        return RunResult(row, seed, failure, None, None, Cost(5, 9), Cost(), {})
    budget = {"steps": 30, "epochs": 3}
    both = (probe(value), probe(value / 2))
    return RunResult(row, seed, None, *both, Cost(10 + seed, 20 + seed), Cost(1, 2), budget)


def cells(results: list[RunResult]) -> dict[str, list[str]]:
    """The table's cells by the name of the row, without bold."""
    text = score_table("T", ROWS, results, []).markdown().replace("**", "")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")][2:]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


class TestProbeScore:
    def test_of_an_evaluation(self) -> None:
        """Class a: 3 of 4 right; class b absent, so without an IoU. Cluster 1 is class b's."""
        counts = np.array([[3, 1], [0, 0]], np.int64)
        matching = match(counts)
        scores = score(counts, matching, ("a", "b"), (None, None))
        evaluation = Evaluation(
            "D", "val", "picie: 32", 1, None, (), "0", 2, "probe", matching, scores, counts
        )
        assert ProbeScore.of(evaluation) == ProbeScore(
            75.0, 75.0, {"a": 75.0, "b": None}, "picie: 32", "probe", 2
        )

    def test_a_probe_that_was_not_made_is_a_mistake(self) -> None:
        with pytest.raises(AssertionError, match="both probes"):
            ProbeScore.of(None)


class TestRunResult:
    @pytest.mark.parametrize("found", [result("first", 3, 20.0), result("second", 1)])
    def test_through_json(self, found: RunResult) -> None:
        assert RunResult.from_dict(json.loads(to_json(found.to_dict()))) == found

    @pytest.mark.parametrize("change", [{"linear": {"mean_iou": 1}}, {"training": None}])
    def test_a_damaged_record(self, change: dict[str, Any]) -> None:
        record = result("first", 0, 20.0).to_dict() | change
        with pytest.raises(ModelError, match=r"rows\.jsonl: a line is not a row of a study"):
            RunResult.from_dict(record)
        with pytest.raises(ModelError, match="'linear'"):
            RunResult.from_dict({"row": "first"})

    def test_as_a_line(self) -> None:
        assert str(result("first", 0, 20.0)) == (
            "linear probe 20.00 mean IoU, 60.00 pixel accuracy; k-means 10.00 and 50.00; 11 s"
        )
        assert str(result("first", 0)) == "failed: lost"


class TestTable:
    def test_means_beside_the_papers_figures(self) -> None:
        """Linear 20 and 22: mean 21, deviation 2^0.5; k-means half of it. Training 20 and 21 processor seconds."""
        results = [result("first", 0, 20.0), result("first", 1, 22.0), result("second", 0, 30.0)]
        found = cells([*results, result("second", 1, 30.0)])
        assert found == {
            "first": [
                "21.00 ± 1.41", "61.00 ± 1.41", "10.50 ± 0.71", "50.50 ± 0.71", "20 ± 1", "50.0", "80.0", "60.0",
            ],
            "second": [
                "30.00 ± 0.00", "70.00 ± 0.00", "15.00 ± 0.00", "55.00 ± 0.00", "20 ± 1", "-", "-", "-",
            ],
        }  # fmt: skip

    def test_its_columns(self) -> None:
        assert [column.title for column in COLUMNS] == [
            "linear probe mean IoU",
            "pixel accuracy",
            "k-means mean IoU",
            "pixel accuracy",
            "training s",
            "paper AP",
            "AP50",
            "AP75",
        ]
        assert len({column.key for column in COLUMNS}) == len(COLUMNS)

    def test_one_seed_has_no_deviation(self) -> None:
        assert cells([result("first", 0, 20.0)])["first"][0] == "20.00 ± -"

    def test_a_seed_that_failed_is_told(self) -> None:
        results = [result("first", 0, 20.0), result("first", 1), result("second", 0, 30.0)]
        results.append(result("second", 1, 32.0))
        found = cells(results)
        assert found["first (1 of 2 seeds)"][0] == "20.00 ± -"
        assert found["second"][0] == "31.00 ± 1.41"
        text = score_table("T", ROWS, results, ["last"]).markdown()
        assert text.endswith("- failed: first, seed 1: lost\n- last\n")

    def test_a_row_that_failed_says_why(self) -> None:
        found = cells([result("first", 0), result("second", 0, 30.0)])
        assert found["first (0 of 1 seeds)"] == [
            "failed: lost", "-", "-", "-", "-", "50.0", "80.0", "60.0",
        ]  # fmt: skip

    def test_before_the_first_run(self) -> None:
        assert cells([])["first"][:5] == ["-"] * 5


def test_notes_say_which_numbers_used_labels_and_what_all_cost() -> None:
    """Two runs of 20 and 21 s training, 2 s probing each; wall 10 + 11 and 1 + 1."""
    notes = standing_notes([result("first", 0, 20.0), result("first", 1, 22.0)], 12)
    assert notes == [
        "budget per run: steps 30, epochs 3",
        "seeds: 0, 1; mean ± standard deviation (n - 1); 2 of 12 runs finished",
        "labels: pre-training uses none; the linear probe is trained on the labels of the train split; the k-means "
        "probe uses labels for scoring alone",
        "training s: processor seconds of one run's pre-training, decoding included",
        "total cost: 45 s of processor time, 23 s of wall time (pre-training 41 s of processor time, 21 s of wall "
        "time; probes 4 s of processor time, 2 s of wall time)",
        "paper: VOC07+12 detection AP after ImageNet pre-training: another task; only its order can be compared",
    ]


def test_the_chart_has_a_dot_for_every_row_that_has_scores() -> None:
    scored = [result("first", 0, 20.0), result("second", 0, 30.0)]
    whole = np.asarray(score_chart(ROWS, scored, "note"))
    part = np.asarray(score_chart(ROWS, [scored[0], result("second", 0)], "note"))
    assert whole.shape == part.shape
    dots = [(picture == MEAN).all(-1).sum() for picture in (whole, part)]
    assert dots[0] == pytest.approx(2 * dots[1], rel=0.05)
