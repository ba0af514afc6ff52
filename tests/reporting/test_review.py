"""Which images come first, and the list as files."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import read_page
from PIL import Image

from densesiam_seg.errors import UsageError
from densesiam_seg.events import Notice, Progress
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.reporting.review import (
    Reviewed,
    look_first,
    require_list_target,
    review_events,
    write_csv,
    write_page,
)
from densesiam_seg.reporting.run_files import read_run
from densesiam_seg.reporting.survey import Survey


def survey(*confidence: float) -> Survey:
    """A survey of images a, b, c, … with these certainties."""
    count, nothing = len(confidence), np.zeros((len(confidence), 1))
    return Survey(
        tuple("abcdefgh"[:count]), nothing, np.array(confidence), np.zeros(count),
        np.zeros((count, 1), np.float32), nothing, nothing, [], [],
    )  # fmt: skip


def ended(events: Iterable[Notice | Progress | Reviewed]) -> tuple[Reviewed, list[str]]:
    """The end, and the warnings before it."""
    *before, last = events
    assert isinstance(last, Reviewed)
    return last, [each.text for each in before if isinstance(each, Notice)]


def test_the_two_scores_take_turns_and_each_image_comes_once() -> None:
    found = look_first(survey(0.2, 0.9, 0.5, 0.8), np.array([3.0, 4.0, 1.0, 2.0]), 10)
    assert [(each.image, each.why) for each in found] == [
        ("a", "uncertain"), ("b", "unlike"), ("c", "uncertain"), ("d", "uncertain"),
    ]  # fmt: skip
    assert [(each.certainty, each.novelty) for each in found[:2]] == [(0.2, 3.0), (0.9, 4.0)]
    assert look_first(survey(0.2, 0.9, 0.5), np.array([3.0, 4.0, 1.0]), 2) == found[:2]


def test_without_training_images_certainty_alone_counts() -> None:
    found = look_first(survey(0.5, 0.2, 0.9), None, 2)
    assert [(each.image, each.novelty, each.why) for each in found] == [
        ("b", None, "uncertain"), ("a", None, "uncertain"),
    ]  # fmt: skip


def test_an_image_of_another_kind_is_the_most_unlike(
    segmenter: Segmenter, run: Path, paths: list[str], tmp_path: Path
) -> None:
    """One colour among scenes; images of the training have a novelty near 1."""
    plain = tmp_path / "plain.png"
    Image.new("RGB", (64, 64), (255, 0, 255)).save(plain)
    found, told = ended(review_events(segmenter, [*paths, str(plain)], read_run(run)))
    assert told == [] and found.images == 13 and len(found.findings) == 13
    by_novelty = sorted(found.findings, key=lambda each: -(each.novelty or 0))
    assert by_novelty[0].image == str(plain) and (by_novelty[0].novelty or 0) > 1.5
    assert np.median([each.novelty or 0 for each in by_novelty[1:]]) == pytest.approx(1, abs=0.01)


def test_other_images_to_compare_with(
    segmenter: Segmenter, model_folder: Path, paths: list[str]
) -> None:
    found, told = ended(review_events(segmenter, paths[:2], read_run(model_folder)))
    assert [each.novelty for each in found.findings] == [None, None]
    assert len(told) == 1 and "novelty is left out" in told[0] and "--reference" in told[0]
    events = review_events(segmenter, paths[:2], read_run(model_folder), reference=paths[2:])
    found, told = ended(events)
    assert told == [] and all(each.novelty is not None for each in found.findings)
    events = review_events(segmenter, paths[:2], read_run(model_folder), reference=paths[2:4])
    assert "only 2 images" in ended(events)[1][0]


def test_the_list_for_spreadsheets_and_as_a_page(
    segmenter: Segmenter, model_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    """Names that would be markup, formulas or no text at all stay what they are."""
    names = ["<img src=x onerror=alert(1)>.png", 'a,"b"\n.png', "\udcff.png"]
    for name in names:
        shutil.copy(image_folder / "01.png", tmp_path / name)
    sources = [str(tmp_path / name) for name in names]
    found, _ = ended(review_events(segmenter, sources, read_run(model_folder)))
    write_csv(tmp_path / "new" / "list.csv", found)
    rows = list(csv.reader((tmp_path / "new" / "list.csv").read_text().splitlines(keepends=True)))
    assert rows[0] == ["image", "certainty", "novelty", "why"] and len(rows) == 4
    assert {row[0] for row in rows[1:]} == {*sources[:2], str(tmp_path / r"\udcff.png")}
    write_page(tmp_path / "list.html", segmenter, "<b>run", found)
    page = read_page(tmp_path / "list.html")
    assert page.tags.count("img") == 6 and "b" not in page.tags
    assert "<b>run" in page.text and r"\udcff.png" in page.text and names[0] in page.text


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("list.txt", {}, "ending in .csv or .html"),
        ("folder.csv", {}, "ending in .csv"),
        ("there.csv", {}, "exists already"),
        ("in.html", {"inputs": ["in.html"], "overwrite": True}, "would overwrite an input"),
    ],
)
def test_places_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, options: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "there.csv").touch()
    with pytest.raises(UsageError, match=words):
        require_list_target(Path(out), **options)
    require_list_target(Path("there.csv"), overwrite=True)
    require_list_target(None)
