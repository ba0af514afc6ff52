"""Counting by several processes, and what parts of a set add up to: the very matrices of one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from ranks import in_ranks
from torch import Tensor

from densesiam_seg.datasets.reader import Sample
from densesiam_seg.errors import ImageError, InputError
from densesiam_seg.evaluation import counting as counting_module
from densesiam_seg.evaluation.counting import (
    Counting,
    SampleTally,
    Tallying,
    groups_of,
    nothing,
    raise_first,
    tally_events,
)
from densesiam_seg.evaluation.evaluate import benchmark
from densesiam_seg.evaluation.protocol import Mask, MasksOf, Protocol, Size
from densesiam_seg.events import Progress
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.peers.group import ALONE, Group

TOML = """
title = "Tiny"
image_suffixes = [".png"]
label_suffix = ".png"
classes = [{ name = "a", values = [10] }, { name = "b", values = [20] }]
[splits.val]
images = ["images"]
labels = ["labels"]
"""


def red(images: Tensor, protocol: Protocol, sizes: Sequence[Size]) -> list[list[Mask]]:
    """The red channel is the cluster."""
    return [[image[0].numpy()] for image in images[: len(sizes)]]


def put(root: Path, count: int) -> None:
    """Images of one colour, whose cluster and class go by their numbers; the third one's tag turns it."""
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for index in range(count):
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[..., 0] = index % 3
        exif = Image.Exif()
        if index == 2:
            exif[ExifTags.Base.Orientation] = 3
        Image.fromarray(pixels).save(root / f"images/{index}.png", exif=exif)
        label = np.full((32, 32), 10 * (index % 2 + 1), np.uint8)
        Image.fromarray(label).save(root / f"labels/{index}.png")
    (root / "tiny.toml").write_text(TOML)


def counting(root: Path, allow_missing: bool = False) -> tuple[Counting, tuple[Sample, ...]]:
    task = benchmark(root / "tiny.toml", root, allow_missing=allow_missing)
    how = Counting(task.dataset, task.protocol, 32, MasksOf(red), (3,), Decoding(), allow_missing)
    return how, task.samples.items


def counted(
    root: Path, group: Group = ALONE, allow_missing: bool = False
) -> tuple[SampleTally, Any]:
    """The tally, and the last progress."""
    how, samples = counting(root, allow_missing)
    events = tally_events(how, samples, group)
    last: Progress | None = None
    while True:
        try:
            last = next(events)
        except StopIteration as end:
            return end.value, last


def same(one: SampleTally, other: SampleTally) -> bool:
    return repr(one) == repr(other)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, 7)
    return tmp_path


def test_by_hand(root: Path) -> None:
    """Seven images: classes a b a b a b a, clusters 0 1 2 0 1 2 0."""
    tally, last = counted(root)
    area = 32 * 32
    assert tally.counts[0].tolist() == [[2 * area, area, area], [area, area, area]]
    assert (tally.images, tally.unreadable, tally.turned.count) == (7, (), 1)
    assert last == Progress("scoring", 7, 7)


def test_groups_are_the_same_in_every_part(root: Path) -> None:
    how, samples = counting(root)
    assert [groups_of(count) for count in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
    whole, first, second = (Tallying(how, samples, groups) for groups in (None, [0], [1]))
    for each in (whole, first, second):
        list(each.run())
    assert (first.images, second.images) == (4, 3)
    assert same(first.tally + second.tally, whole.tally)
    assert same(second.tally + first.tally + nothing(how), whole.tally)


def test_the_first_failure_and_where(root: Path) -> None:
    (root / "images/5.png").write_bytes(b"junk")
    how, samples = counting(root)
    work = Tallying(how, samples)
    place, error = work.failure(work.run()) or (None, None)
    assert (place, work.images) == (1, 4)
    assert isinstance(error, ImageError) and "5.png" in str(error)
    with pytest.raises(InputError, match="one"):
        raise_first([None, (7, ImageError("x", "y", "seven")), (2, InputError("one")), None])
    raise_first([None])


def of_ranks(group: Group, root: str, broken: str) -> tuple[SampleTally, Any, SampleTally, str]:
    """What each of several processes gets, and the error where two images cannot be read."""
    counting_module.ROUND = 1
    tally, last = counted(Path(root), group)
    missing, _ = counted(Path(broken), group, allow_missing=True)
    try:
        counted(Path(broken), group)
    except ImageError as error:
        return tally, last, missing, str(error)
    return tally, last, missing, ""


def test_three_processes_count_what_one_does(tmp_path: Path) -> None:
    """Five groups of images in two rounds. All raise the error that one process raises, though others come first."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        put(folder, 18)
    for name in ("14", "8"):
        (broken / f"images/{name}.png").write_bytes(b"junk")
    expected = (*counted(whole), counted(broken, allow_missing=True)[0])
    assert expected[2].unreadable == ("14", "8")
    with pytest.raises(ImageError) as alone:
        counted(broken)
    assert "images/14.png" in str(alone.value)
    for found in in_ranks(3, of_ranks, str(whole), str(broken)):
        assert same(found[0], expected[0])
        assert found[1] == expected[1]
        assert same(found[2], expected[2])
        assert found[3] == str(alone.value)


def test_processes_without_images(root: Path) -> None:
    """Seven images are two groups, so that two of four processes have none."""
    expected, _ = counted(root)
    for found in in_ranks(4, only_counts, str(root)):
        assert found == expected.counts[0].tolist()


def only_counts(group: Group, root: str) -> Any:
    return counted(Path(root), group)[0].counts[0].tolist()
