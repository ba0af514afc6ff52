"""A prediction by workers writes the very masks of one process, also where a machine is lost half-way."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ray_nodes import on_slim_workers, two_nodes

from densesiam_seg.config import RunConfig
from densesiam_seg.datasets.scenes import scene
from densesiam_seg.errors import OutputError, WorkerError
from densesiam_seg.events import Notice, Predicted
from densesiam_seg.images.decoding import Noted
from densesiam_seg.images.scan import scan
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.on_ray import predicting
from densesiam_seg.on_ray.predicting import DoneShard, RayJob
from densesiam_seg.on_ray.sent_model import SentModel
from densesiam_seg.peers.shard import Shard
from densesiam_seg.prediction.plan import plan
from densesiam_seg.prediction.predict import predict_events

Patch = pytest.MonkeyPatch


def images(folder: Path, count: int, side: int = 48) -> Path:
    """Scenes of unlike sizes."""
    folder.mkdir()
    for index in range(count):
        pixels, _ = scene(0, index, side + index % 3)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder


def masks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def alone(segmenter: Segmenter, inputs: Path, out: Path) -> dict[str, bytes]:
    """What one process writes."""
    list(predict_events(segmenter, plan(scan([str(inputs)], merge=False, out=out), out)))
    return masks(out)


def job(
    segmenter: Segmenter, folder: Path, inputs: Path, out: Path, address: str = "", **options: Any
) -> RayJob:
    work = plan(scan([str(inputs)], merge=False, out=out), out, shard=Shard())
    model = SentModel.of(segmenter, folder, "cpu")
    return RayJob(address, segmenter, model, work, RunConfig(), **options)


@pytest.fixture
def local(monkeypatch: Patch) -> Callable[[Sequence[int]], None]:
    """Workers in this process, whose shards are done in the order that is given."""
    monkeypatch.setattr(predicting, "IMAGES", 4)

    def set_order(order: Sequence[int]) -> None:
        def on_workers(
            address: str, work: Any, items: Sequence[Any], **options: Any
        ) -> Generator[tuple[int, DoneShard], None, None]:
            do = pickle.loads(pickle.dumps(work)).ready()
            for place in order:
                yield place, pickle.loads(pickle.dumps(do(items[place])))

        monkeypatch.setattr(predicting, "on_workers", on_workers)

    return set_order


def test_the_masks_of_one_process(
    segmenter: Segmenter, model_folder: Path, tmp_path: Path, local: Any
) -> None:
    """Done twice, the second time everything is there."""
    inputs = images(tmp_path / "in", 10)
    (inputs / "004.png").write_bytes(b"junk")
    (inputs / "009.png").write_bytes(b"junk")
    expected = alone(segmenter, inputs, tmp_path / "one")
    local((2, 0, 1))
    for kept in (0, 8):
        found = list(job(segmenter, model_folder, inputs, tmp_path / "ray").events())
        assert len(found) == 10
        assert sum(each.kept for each in found) == kept
        assert masks(tmp_path / "ray") == expected
        lists = [path.name for path in (tmp_path / "ray").glob("failed*")]
        assert lists == ["failed.jsonl"]
        one, ray = (tmp_path / name / "failed.jsonl" for name in ("one", "ray"))
        assert ray.read_bytes() == one.read_bytes()
    assert not list((tmp_path / "ray").glob(".tmp*"))


def test_what_was_noticed_is_told_once(
    segmenter: Segmenter, model_folder: Path, tmp_path: Path, local: Any
) -> None:
    inputs = images(tmp_path / "in", 8)
    deep = np.full((48, 48), 900, np.uint16)
    for name in ("001", "006"):
        Image.fromarray(deep).save(inputs / f"{name}.png")
    local((1, 0))
    told: list[Notice] = []
    ray = job(segmenter, model_folder, inputs, tmp_path / "out", tell=told.append)
    list(ray.events())
    assert [line.split(" ")[:3] for line in ray.lines()] == [["2", "of", "2"]]
    assert len({str(each) for each in told}) == len(told)


def test_a_worker_that_writes_elsewhere(
    segmenter: Segmenter, model_folder: Path, tmp_path: Path, local: Any, monkeypatch: Patch
) -> None:
    local((0,))
    inputs = images(tmp_path / "in", 2)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(WorkerError, match=f"sees another folder {tmp_path / 'out'}"):
        list(job(segmenter, model_folder, inputs, tmp_path / "out").events())


def test_a_worker_that_sees_no_images(
    segmenter: Segmenter, model_folder: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    inputs = images(tmp_path / "in", 2)
    first = str(inputs / "000.png")

    def on_workers(*given: Any, **options: Any) -> Generator[tuple[int, DoneShard], None, None]:
        yield 0, DoneShard([], [], Noted(), first, "far")

    monkeypatch.setattr(predicting, "on_workers", on_workers)
    with pytest.raises(WorkerError, match=f"worker on far sees no {first}"):
        list(job(segmenter, model_folder, inputs, tmp_path / "out").events())


def test_a_place_that_takes_nothing(
    segmenter: Segmenter, model_folder: Path, tmp_path: Path, local: Any
) -> None:
    local((0,))
    inputs = images(tmp_path / "in", 2)
    ray = job(segmenter, model_folder, inputs, tmp_path / "out")
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(OutputError, match="out"):
        list(ray.events())


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_machine_is_lost_half_way(
    segmenter: Segmenter, model_folder: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """200 images on two machines; run again, nothing is left to do."""
    monkeypatch.setattr(predicting, "on_workers", on_slim_workers)
    inputs = images(tmp_path / "in", 200, side=160)
    started = time.monotonic()
    expected = alone(segmenter, inputs, tmp_path / "one")
    seconds = {"one process": time.monotonic() - started}
    assert len(expected) == 200
    with two_nodes() as nodes:
        for name in ("two machines", "one lost"):
            started = time.monotonic()
            told: list[Notice] = []
            out = tmp_path / name
            ray = job(segmenter, model_folder, inputs, out, nodes.address, tell=told.append)
            found: list[Predicted] = []
            for result in ray.events():
                found.append(result)
                if name == "one lost" and len(found) == 100:
                    nodes.kill()
            seconds[name] = time.monotonic() - started
            assert masks(out) == expected
            assert len(found) == 200 and not any(each.error for each in found)
        again = list(job(segmenter, model_folder, inputs, out, nodes.address).events())
    assert [each.kept for each in again] == [True] * 200
    print(json.dumps(seconds))
