"""Parts of an evaluation: joined they are the very file that one process writes; what is not all of it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_scenes import write_labelled_scenes

from densesiam_seg.errors import InputError, UsageError
from densesiam_seg.evaluation.evaluate import Benchmark, benchmark, segmenter_events
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.evaluation.parts import (
    Part,
    joined_events,
    part_events,
    part_files,
    read_part,
    write_part,
)
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import to_json
from densesiam_seg.io.sealed import seal
from densesiam_seg.peers.shard import Shard


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven scenes to score, one of which cannot be read; its name is no text."""
    root = write_labelled_scenes(tmp_path_factory.mktemp("scenes"), train=1, val=7, side=48, seed=4)
    (root / "images/val/0003.jpg").rename(root / "images/val/a\udcff.jpg")
    (root / "labels/val/0003.png").rename(root / "labels/val/a\udcff.png")
    (root / "images/val/a\udcff.jpg").write_bytes(b"junk")
    return root


@pytest.fixture(scope="module")
def task(root: Path) -> Benchmark:
    return benchmark(root / "scenes.toml", root, allow_missing=True)


@pytest.fixture(scope="module")
def whole(segmenter: Segmenter, task: Benchmark) -> str:
    """What one process writes."""
    *_, result = segmenter_events(segmenter, task)
    assert isinstance(result, Evaluation)
    assert (result.images, result.missing) == (6, ("a\udcff",))
    return to_json(result.to_dict(), indent=2)


@pytest.fixture(scope="module")
def part_of(segmenter: Segmenter, task: Benchmark) -> Callable[[int, int], Part]:
    def make(index: int, count: int) -> Part:
        *_, part = part_events(segmenter, task, Shard(index, count))
        assert isinstance(part, Part)
        return part

    return make


@pytest.fixture
def parts(tmp_path: Path, part_of: Callable[[int, int], Part]) -> Path:
    """Two parts in a folder."""
    for index in range(2):
        write_part(tmp_path / f"{index}.json", part_of(index, 2))
    return tmp_path


def joined(*paths: Path) -> str:
    *_, result = joined_events(paths)
    assert isinstance(result, Evaluation)
    return to_json(result.to_dict(), indent=2)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_all_parts_are_the_whole(
    tmp_path: Path, part_of: Callable[[int, int], Part], whole: str, count: int
) -> None:
    """Seven images are two groups, so that some of four parts are empty."""
    for index in range(count):
        write_part(tmp_path / f"{count - index}.json", part_of(index, count))
    assert joined(tmp_path) == whole
    assert joined(*(tmp_path / f"{index + 1}.json" for index in range(count))) == whole


def test_a_part_stands_by_itself(parts: Path, task: Benchmark) -> None:
    value = json.loads((parts / "1.json").read_bytes())
    assert value["shard"] == {"index": 1, "count": 2}
    assert value["job"]["names"] == list(task.dataset.names)
    assert (value["images"], len(value["counts"])) == (3, len(task.dataset.names))
    assert read_part(parts / "1.json").data() == (parts / "1.json").read_bytes()


def test_what_is_there_of_the_same_job_is_kept(
    segmenter: Segmenter, task: Benchmark, part_of: Callable[[int, int], Part]
) -> None:
    earlier = part_of(0, 2)
    *_, part = part_events(segmenter, task, Shard(0, 2), earlier=earlier)
    assert part is earlier
    for shard, other in ((Shard(1, 2), task), (Shard(0, 2), replace(task, image_size=40))):
        with pytest.raises(UsageError, match="another part or that of another evaluation"):
            list(part_events(segmenter, other, shard, earlier=earlier))


class TestRefused:
    def test_one_is_missing(self, parts: Path) -> None:
        (parts / "1.json").unlink()
        (parts / "sum.json").write_text("{}")
        with pytest.raises(
            InputError, match=r"1 part of 2 missing, first 1/2.*sum\.json.*--shard 1/2"
        ):
            joined(parts)

    def test_one_is_there_twice(self, parts: Path) -> None:
        (parts / "again.json").write_bytes((parts / "1.json").read_bytes())
        with pytest.raises(
            InputError, match=r"again\.json: is part 1/2, and so is|1\.json: is part 1/2, and so is"
        ):
            joined(parts)
        with pytest.raises(InputError, match="give each part once"):
            joined(parts / "0.json", parts / "0.json", parts / "1.json")

    def test_of_another_number(self, parts: Path, part_of: Callable[[int, int], Part]) -> None:
        write_part(parts / "2.json", part_of(2, 3))
        with pytest.raises(InputError, match=r"2\.json: is part 2/3, but .*0\.json is part 0/2"):
            joined(parts)

    @pytest.mark.parametrize(
        ("field", "value", "words"),
        [
            ("model", "f" * 64, "their model differ"),
            ("digest", "f" * 64, "their images differ"),
            ("protocol", "picie: shorter side 40", "their protocol differ"),
            ("arithmetic", "cuda, bfloat16", "device or precision differ"),
            ("split", "train", "their split differ"),
            ("names", tuple("abcdefghi"), "their classes differ"),
        ],
    )
    def test_of_another_evaluation(
        self, parts: Path, part_of: Callable[[int, int], Part], field: str, value: Any, words: str
    ) -> None:
        part = part_of(1, 2)
        if field == "names":
            value = value[: len(part.job.names)]
        write_part(parts / "1.json", replace(part, job=replace(part.job, **{field: value})))
        with pytest.raises(InputError, match=words):
            joined(parts)

    @pytest.mark.parametrize("how", ["flipped", "cut", "edited", "empty", "text", "none", "score"])
    def test_damaged_or_no_part(self, parts: Path, whole: str, how: str) -> None:
        path = parts / "1.json"
        data = path.read_bytes()
        if how == "none":
            path.unlink()
        else:
            path.write_bytes(
                {
                    "flipped": data[:900] + bytes([data[900] ^ 1]) + data[901:],
                    "cut": data[:-9],
                    "edited": data.replace(b'"images": 3', b'"images": 2'),
                    "empty": b"",
                    "text": b"one, two\n",
                    "score": whole.encode(),
                }[how]
            )
        with pytest.raises(
            InputError, match=r"1\.json: no part of an evaluation, or a damaged one"
        ):
            joined(parts / "0.json", path)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"counts": [["many"]]}, "its counts"),
            ({"counts": 7}, "no part of an evaluation by this version"),
            ({"images": 4}, "its number of images"),
            ({"shard": {"index": 2, "count": 2}}, "no part of an evaluation by this version"),
            ({"format": 1}, "format 2 is wanted"),
            ({"job": {}}, "no part of an evaluation by this version"),
            ({"turned": {"count": "one"}}, "its warnings"),
        ],
    )
    def test_sealed_nonsense(self, parts: Path, change: dict[str, Any], words: str) -> None:
        value = json.loads((parts / "1.json").read_bytes())
        del value["sha256"]
        (parts / "1.json").write_bytes(seal({**value, **change}))
        with pytest.raises(InputError, match=words):
            joined(parts)

    @pytest.mark.parametrize("count", ["5", 1.5, -1, True, None, 2**80])
    def test_counts_that_are_no_numbers(self, parts: Path, count: object) -> None:
        value = json.loads((parts / "1.json").read_bytes())
        del value["sha256"]
        value["counts"][0][0] = count
        (parts / "1.json").write_bytes(seal(value))
        with pytest.raises(InputError, match=r"1\.json"):
            joined(parts)

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no part of an evaluation here"):
            joined(tmp_path)


def test_files_of_a_folder_by_how_they_begin(parts: Path) -> None:
    (parts / "score.json").write_text("[]")
    (parts / "notes.txt").write_text("")
    files, others = part_files([parts, parts / "notes.txt"])
    assert [path.name for path in files] == ["0.json", "1.json", "notes.txt"]
    assert [path.name for path in others] == ["score.json"]


def test_large_counts_stay_whole(tmp_path: Path, part_of: Callable[[int, int], Part]) -> None:
    part = part_of(0, 1)
    counts = np.full_like(part.tally.counts[0], 2**62)
    write_part(tmp_path / "0.json", replace(part, tally=replace(part.tally, counts=(counts,))))
    assert (read_part(tmp_path / "0.json").tally.counts[0] == counts).all()
