"""An evaluation by workers, here called one after the other and in any order, gives what one process gives."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from labelled_scenes import write_labelled_scenes
from ray_nodes import on_slim_workers, two_nodes

from densesiam_seg.datasets.reader import Sample
from densesiam_seg.errors import ImageError, WorkerError
from densesiam_seg.evaluation.counting import nothing
from densesiam_seg.evaluation.evaluate import (
    Benchmark,
    benchmark,
    segmenter_events,
    segmenter_job,
)
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.events import Notice, Progress
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import to_json
from densesiam_seg.on_ray import scoring
from densesiam_seg.on_ray.scoring import Answer, ray_events, sample_parts
from densesiam_seg.on_ray.sent_model import SentModel

Patch = pytest.MonkeyPatch


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_labelled_scenes(tmp_path, train=1, val=11, side=48, seed=4)


@pytest.fixture
def local(monkeypatch: Patch) -> Callable[[Sequence[int]], None]:
    """Workers in this process, whose answers come in the order that is given."""
    monkeypatch.setattr(scoring, "SAMPLES", 4)

    def set_order(order: Sequence[int]) -> None:
        def on_workers(
            address: str, work: Any, items: Sequence[Any], **options: Any
        ) -> Generator[tuple[int, Answer], None, None]:
            do = pickle.loads(pickle.dumps(work)).ready()
            options["tell"](Notice("one is lost", warning=True))
            for place in order:
                yield place, pickle.loads(pickle.dumps(do(items[place])))

        monkeypatch.setattr(scoring, "on_workers", on_workers)

    return set_order


def scored(segmenter: Segmenter, folder: Path, task: Benchmark, address: str = "") -> list[Any]:
    return list(ray_events(address, segmenter, SentModel.of(segmenter, folder, "cpu"), task))


def whole(segmenter: Segmenter, task: Benchmark) -> str:
    *_, result = segmenter_events(segmenter, task)
    assert isinstance(result, Evaluation)
    return to_json(result.to_dict(), indent=2)


def test_parts_are_whole_groups(root: Path, monkeypatch: Patch) -> None:
    items = benchmark(root / "scenes.toml", root).samples.items
    assert [len(part) for part in sample_parts(items)] == [11]
    monkeypatch.setattr(scoring, "SAMPLES", 4)
    assert [len(part) for part in sample_parts(items)] == [4, 4, 3]
    assert [len(part) for part in sample_parts(items[:2])] == [2]
    assert [each for part in sample_parts(items) for each in part] == list(items)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_score_of_one_process(
    segmenter: Segmenter, model_folder: Path, root: Path, local: Any, order: tuple[int, ...]
) -> None:
    local(order)
    (root / "images/val/0004.jpg").write_bytes(b"junk")
    task = benchmark(root / "scenes.toml", root, allow_missing=True)
    *events, result = scored(segmenter, model_folder, task)
    assert to_json(result.to_dict(), indent=2) == whole(segmenter, task)
    assert result.missing == ("0004",)
    done = [event.done for event in events if isinstance(event, Progress)]
    assert sorted(done) == done and done[-1] == 11
    assert [str(each) for each in events if isinstance(each, Notice)] == ["warning: one is lost"]


def test_the_first_error_is_raised_whatever_comes_first(
    segmenter: Segmenter, model_folder: Path, root: Path, local: Any
) -> None:
    for name in ("0010", "0006"):
        (root / f"images/val/{name}.jpg").write_bytes(b"junk")
    task = benchmark(root / "scenes.toml", root)
    with pytest.raises(ImageError) as alone:
        whole(segmenter, task)
    assert "0006.jpg" in str(alone.value)
    for order in ((2, 1, 0), (0, 2, 1)):
        local(order)
        with pytest.raises(ImageError) as found:
            scored(segmenter, model_folder, task)
        assert str(found.value) == str(alone.value)


def test_a_worker_that_sees_no_images(
    segmenter: Segmenter, model_folder: Path, root: Path, monkeypatch: Patch
) -> None:
    """Not even where missing ones are allowed: they would all be."""
    task = benchmark(root / "scenes.toml", root, allow_missing=True)
    elsewhere = str(root / "images/val/0001.jpg")

    def on_workers(*given: Any, **options: Any) -> Iterator[tuple[int, Answer]]:
        none = nothing(segmenter_job(segmenter, task)[0])
        yield 0, Answer(none, None, elsewhere, "far")

    monkeypatch.setattr(scoring, "on_workers", lambda *a, **o: (each for each in on_workers()))
    with pytest.raises(WorkerError, match=f"worker on far sees no {elsewhere}.*shared disk"):
        scored(segmenter, model_folder, task)


def test_what_is_not_there_is_told(segmenter: Segmenter, root: Path) -> None:
    task = benchmark(root / "scenes.toml", root, allow_missing=True)
    how, _ = segmenter_job(segmenter, task)
    sample = task.samples.items[0]
    gone = Sample("gone", root / "none.jpg", sample.label)
    found = scoring.answer(how, [sample, gone])
    assert (found.tally.unreadable, found.unseen) == (("gone",), str(root / "none.jpg"))
    assert scoring.answer(how, [sample]).unseen == ""


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_on_a_cluster(
    segmenter: Segmenter, model_folder: Path, root: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(scoring, "SAMPLES", 4)
    monkeypatch.setattr(scoring, "on_workers", on_slim_workers)
    task = benchmark(root / "scenes.toml", root)
    with two_nodes() as nodes:
        *_, result = scored(segmenter, model_folder, task, nodes.address)
    assert to_json(result.to_dict(), indent=2) == whole(segmenter, task)
