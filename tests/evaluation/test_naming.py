"""Clusters named after labelled masks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from labelled_scenes import write_labelled_scenes
from PIL import Image

from densesiam_seg.datasets.declaration import load_dataset
from densesiam_seg.datasets.reader import samples
from densesiam_seg.errors import InputError, UsageError
from densesiam_seg.evaluation.evaluate import Benchmark, segmenter_events
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.evaluation.metrics import match, score
from densesiam_seg.evaluation.naming import (
    Naming,
    classes_of,
    name_clusters_by,
    naming_events,
    pairs,
)
from densesiam_seg.evaluation.protocol import PROTOCOLS
from densesiam_seg.images.scan import scan
from densesiam_seg.inference.segmenter import Segmenter

CLASSES = ("sky", "road", "tree")


def naming_of(
    segmenter: Segmenter,
    evaluation: Evaluation,
    rows: Sequence[Sequence[int]],
    *,
    into: dict[int, int] | None = None,
    names: dict[int, str] | None = None,
) -> Naming:
    """What a confusion matrix says of five clusters, some of which are merged or named before."""
    counts = np.array(rows, np.int64)
    before = copy.copy(segmenter)
    before.clusters = tuple(
        replace(
            each, merged_into=(into or {}).get(each.id), name=(names or {}).get(each.id, each.name)
        )
        for each in segmenter.clusters
    )
    matching = match(counts, [each.id for each in before.left])
    scores = score(counts, matching, CLASSES, [None] * len(CLASSES))
    return name_clusters_by(
        before, replace(evaluation, counts=counts, matching=matching, scores=scores)
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled_scenes(tmp_path_factory.mktemp("named"), train=1, val=3, side=48, seed=2)


@pytest.fixture(scope="module")
def evaluation(segmenter: Segmenter, root: Path) -> Evaluation:
    declared = load_dataset(root / "scenes.toml")
    task = Benchmark(declared, samples(declared, root), PROTOCOLS["full-image"])
    *_, found = segmenter_events(segmenter, task)
    assert isinstance(found, Evaluation)
    return found


class TestNames:
    def test_clusters_of_one_class_become_one(
        self, segmenter: Segmenter, evaluation: Evaluation
    ) -> None:
        """More clusters than classes: each has the class of most of its pixels; the largest shows all."""
        rows = [[1, 0, 9, 5, 0], [0, 7, 0, 6, 0], [0, 0, 0, 0, 0]]
        found = naming_of(segmenter, evaluation, rows)
        assert found.groups == (2, 1, 2, 1, 4)
        assert found.names == {2: "sky", 1: "road"} and found.unnamed == (4,)

    def test_one_to_one_where_there_are_no_more_clusters(
        self, segmenter: Segmenter, evaluation: Evaluation
    ) -> None:
        """Merged before: 2, 3 and 4 are shown as 1. What has no pixel of its class stays without a name."""
        rows = [[9, 2, 0, 0, 0], [3, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
        found = naming_of(segmenter, evaluation, rows, into={2: 1, 3: 1, 4: 1})
        assert found.groups == (0, 1, 1, 1, 1)
        assert found.names == {0: "sky", 1: "road"}
        rows = [[9, 2, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
        found = naming_of(segmenter, evaluation, rows, into={2: 1, 3: 1, 4: 1})
        assert found.names == {0: "sky"} and found.unnamed == (1,)

    def test_what_has_the_name_already_joins_it(
        self, segmenter: Segmenter, evaluation: Evaluation
    ) -> None:
        """Unless these masks say otherwise."""
        rows = [[1, 0, 9, 0, 0], [0, 7, 0, 6, 0], [0, 0, 0, 0, 0]]
        found = naming_of(segmenter, evaluation, rows, names={4: "sky", 3: "sky"})
        assert found.groups == (2, 1, 2, 1, 2)


def test_names_of_real_masks(segmenter: Segmenter, root: Path) -> None:
    """Each pixel gets the class of most of its cluster's pixels, as there are fewer classes than clusters."""
    declared = load_dataset(root / "scenes.toml")
    images = scan([str(root / "images" / "val")])
    labels = root / "labels" / "val"
    *_, found = naming_events(segmenter, declared, pairs(labels, images, [".png"]))
    assert isinstance(found, Naming)
    right = total = 0
    for index in range(len(images)):
        mask = segmenter.predict(images.path(index))
        named = np.array([found.names.get(root, "?") for root in found.groups])[mask]
        label = np.array(Image.open(labels / f"{Path(images.path(index)).stem}.png"))
        right += int((named == np.array(declared.names)[label]).sum())
        total += label.size
    assert 100 * right / total == pytest.approx(found.evaluation.scores.pixel_accuracy)


class TestClasses:
    def test_a_text_file(self, tmp_path: Path) -> None:
        (tmp_path / "names.txt").write_bytes("\ufeffsky\r\n a  road \r\n\r\n".encode())
        found = classes_of(None, tmp_path / "names.txt")
        assert found.names == ("sky", "a road")
        assert [each.raw for each in found.classes] == [(0,), (1,)] and found.ignored == (255,)

    @pytest.mark.parametrize("text", ["", "a\n\nb", "a\na", "\n".join(map(str, range(256)))])
    def test_refused_texts(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "names.txt").write_text(text)
        with pytest.raises(InputError):
            classes_of(None, tmp_path / "names.txt")

    def test_one_of_both(self, tmp_path: Path) -> None:
        for given in ((None, None), ("camvid", tmp_path)):
            with pytest.raises(UsageError):
                classes_of(*given)


class TestPairs:
    @pytest.fixture
    def files(self, tmp_path: Path) -> Path:
        for name in ("images/a/1.jpg", "images/b/1.jpg", "images/b/2.JPG"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(tmp_path / name)
        (tmp_path / "labels").mkdir()
        return tmp_path

    @staticmethod
    def found(files: Path, *labels: str) -> list[tuple[str, str]]:
        for label in labels:
            path = files / "labels" / label
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (4, 4)).save(path)
        items = pairs(files / "labels", scan([str(files / "images")]), [".png"]).items
        images = [each.image.relative_to(files / "images").as_posix() for each in items]
        names = [each.label.relative_to(files / "labels").as_posix() for each in items]
        return list(zip(images, names, strict=True))

    def test_by_folder_and_stem_else_by_stem(self, files: Path) -> None:
        assert self.found(files, "b/1.png", "2.png") == [
            ("b/2.JPG", "2.png"),
            ("b/1.jpg", "b/1.png"),
        ]

    @pytest.mark.parametrize("labels", [(), ("1.png",), ("3.png",), ("1.gif",)])
    def test_refused(self, files: Path, labels: tuple[str, ...]) -> None:
        """None, one of several images, no image, and no label by its suffix."""
        with pytest.raises(InputError):
            self.found(files, *labels)
