"""The whole page of a run: what is on it, whatever the run, the names and the images are like."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from labelled_scenes import write_labelled_scenes
from pages import Page, read_page
from PIL import Image
from stored_runs import store_run

import densesiam_seg
from densesiam_seg.errors import InputError, OutputError, UsageError
from densesiam_seg.events import Notice
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.naming.edits import merge, rename, suggest
from densesiam_seg.reporting.report import (
    Order,
    Reported,
    plan_report,
    report,
    report_events,
)

HOSTILE = "</h3><script>alert(1)</script>{{ 7*7 }}"


@pytest.fixture
def own(model_folder: Path, image_folder: Path, tmp_path: Path) -> Path:
    """A run that may be changed."""
    return store_run(tmp_path / "my run", model_folder, image_folder)


def made(order: Order, run: Path) -> tuple[Reported, Page, list[str]]:
    """A report, its page and what was told."""
    *before, last = report_events(Segmenter.load(run, device="cpu"), order)
    assert isinstance(last, Reported)
    return last, read_page(last.page), [each.text for each in before if isinstance(each, Notice)]


def test_the_public_name(own: Path) -> None:
    """It is the function also after its room was imported."""
    assert densesiam_seg.report is report
    found = densesiam_seg.report(own, device="cpu")
    assert found.page == own / "report" / "index.html" and found.images == 12
    read_page(found.page)


def test_what_is_on_the_page(own: Path, segmenter: Segmenter) -> None:
    found, page, told = made(plan_report(own, None, None), own)
    assert told == [] and found.failed == ()
    used = [card for card in found.cards if card.share > 0]
    assert page.ids >= {f"cluster-{k}" for k in range(5)} | {"overview", "first", "training"}
    crops = sum(len(card.typical) + len(card.doubtful) for card in used)
    assert len(page.images) == 2 * 5 + crops + 2 * len(found.findings) and crops >= 2 * len(used)
    assert page.tags.count("svg") == 2
    assert all(card.cluster.name in page.text for card in found.cards)
    assert "seen in 12 images of the training." in page.text
    for words in (
        "my run",
        "epochs",
        "3.11.7",
        "Nothing: every file could be read.",
        "densesiam-seg clusters rename",
    ):
        assert words in page.text
    assert "scores" not in page.ids and "number" not in page.ids
    assert found.page.stat().st_size < 10e6
    assert {each.image for each in found.findings} <= set(plan_report(own, None, None).sources)


def test_names_merges_and_a_suggestion(own: Path) -> None:
    names = {"0": HOSTILE, "1": "天空 & <b>"}
    rename(own / "model", names)
    merge(own / "model", ["2", "3"], "both")
    suggest(
        own / "model",
        {"counts": [2, 3], "scores": {"stability": [0.1, 0.2]}, "chosen": 3, "tree": [[0, 1]]},
    )
    found, page, _ = made(plan_report(own, None, None), own)
    assert [card.cluster.id for card in found.cards if card.members] == [2]
    assert sorted(card.cluster.id for card in found.cards) == [0, 1, 2, 4]
    assert all(name in page.text for name in (*names.values(), "both", "cluster_03", "(id 3)"))
    assert "number" in page.ids and page.tags.count("svg") == 3 and "its choice: 3" in page.text
    assert "b" not in page.tags and "49" not in re.findall(r"\b49\b", page.text)


def test_scores_where_there_are_labels(own: Path, tmp_path: Path) -> None:
    root = write_labelled_scenes(tmp_path / "data", train=1, val=3, side=48, seed=2)
    rename(own / "model", {"0": HOSTILE})
    found = report(
        own, [root / "images" / "val"], tmp_path / "out", dataset=root / "scenes.toml", root=root, device="cpu"
    )  # fmt: skip
    page = read_page(found.page)
    evaluation = found.evaluation
    assert evaluation is not None and found.images == 3
    assert "scores" in page.ids and page.tags.count("svg") == 3
    assert f"{evaluation.scores.mean_iou:.1f}" in page.text and evaluation.protocol in page.text
    assert page.tags.count("tr") == 1 + len(evaluation.scores.names)
    card = max(found.cards, key=lambda each: each.share)
    counts = evaluation.counts[:, card.cluster.id]
    name, share = card.classes[0]
    assert name == evaluation.scores.names[int(counts.argmax())]
    assert share == pytest.approx(counts.max() / counts.sum())
    with pytest.raises(UsageError, match="belong together"):
        report(own, dataset="camvid")


def test_bad_images_and_what_the_training_skipped(
    model_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    """Images of other shapes than the model has seen, one pixel among them."""
    images = Path(shutil.copytree(image_folder, tmp_path / "images"))
    Image.new("RGB", (1, 1)).save(images / "one.png")
    Image.new("L", (300, 2)).save(images / "long.png")
    (images / "gone.png").symlink_to("nowhere")
    run = store_run(tmp_path / "run", model_folder, images)
    (images / "<b>bad.jpg").write_bytes(b"junk")
    order = plan_report(run, [*map(str, sorted(images.glob("*.[pj]*")))], tmp_path / "r")
    found, page, _ = made(order, run)
    assert {Path(each.path).name for each in found.failed} == {"<b>bad.jpg", "gone.png"}
    assert found.images == 14
    assert "<b>bad.jpg" in page.text and "dangling-link" in page.text and "b" not in page.tags


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_that_stopped_early_and_one_image(
    model_folder: Path, image_folder: Path, tmp_path: Path, epochs: int
) -> None:
    run = store_run(tmp_path / "run", model_folder, image_folder, epochs)
    if not epochs:
        (run / "metrics.jsonl").unlink()
        (run / "config.toml").write_text("= broken")
    order = plan_report(run, [str(image_folder / "01.png")], tmp_path / "r.html")
    found, page, _ = made(order, run)
    assert found.page == tmp_path / "r.html" and found.images == 1
    assert page.tags.count("svg") == 2 * epochs


def test_a_few_of_many(own: Path) -> None:
    order = plan_report(own, None, None, 4)
    assert len(order.sources) == 4 and order.there == 12
    found, page, told = made(order, own)
    assert found.images == 4 and "seen in 4 of 12 images of the training." in page.text
    assert told == ["looked at 4 of 12 images, evenly spread; --limit N takes more"]


def test_a_model_that_has_left_its_run(
    model_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="give images: densesiam-seg report RUN IMAGES"):
        plan_report(model_folder, None, tmp_path / "r")
    sources = [str(image_folder / "00.jpg"), str(image_folder / "01.png")]
    found, page, told = made(plan_report(model_folder, sources, tmp_path / "r"), model_folder)
    assert [each.novelty for each in found.findings] == [None, None]
    assert len(told) == 1 and "novelty is left out" in told[0]
    assert page.tags.count("svg") == 0 and "training" not in page.ids


class TestPlaces:
    def test_the_runs_own_page_is_made_again(self, own: Path) -> None:
        first = made(plan_report(own, None, None, 2), own)[0]
        rename(own / "model", {"0": "sky"})
        again, page, _ = made(plan_report(own, None, None, 2), own)
        assert again.page == first.page and "sky" in page.text
        assert [path.name for path in again.page.parent.iterdir()] == ["index.html"]

    def test_others_are_kept(self, own: Path, tmp_path: Path) -> None:
        (own / "report").mkdir()
        (own / "report" / "index.html").write_text("<p>mine")
        with pytest.raises(UsageError, match="was not written by this program"):
            plan_report(own, None, None)
        out = tmp_path / "r"
        made(plan_report(own, None, out, 2), own)
        with pytest.raises(UsageError, match="exists already; give --overwrite"):
            plan_report(own, None, out)
        plan_report(own, None, out, overwrite=True)
        (out / "index.html").write_text("<p>mine")
        with pytest.raises(UsageError, match="was not written by this program"):
            plan_report(own, None, out, overwrite=True)

    @pytest.mark.parametrize("name", ["r.png", "r.json"])
    def test_names_of_other_kinds(self, own: Path, tmp_path: Path, name: str) -> None:
        with pytest.raises(UsageError, match=r"ending in \.html"):
            plan_report(own, None, tmp_path / name)

    def test_places_that_cannot_be_written(self, own: Path, tmp_path: Path) -> None:
        (tmp_path / "r" / "index.html").mkdir(parents=True)
        with pytest.raises(OutputError, match="is no file that could be replaced"):
            plan_report(own, None, tmp_path / "r", overwrite=True)
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="cannot be written"):
            made(plan_report(own, None, tmp_path / "file" / "r", 1), own)

    def test_no_input_is_overwritten(self, own: Path, tmp_path: Path) -> None:
        page: Any = str(tmp_path / "a.html")
        with pytest.raises(UsageError, match="would overwrite an input"):
            plan_report(own, [page], tmp_path / "a.html", overwrite=True)
