"""Scores of files and of pixels: the same, in tiles and as a whole; what cannot be read is told in its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from image_files import saved
from photographs import junk

from densesiam_seg.datasets.scenes import scene
from densesiam_seg.errors import ImageError
from densesiam_seg.images.decode import load_image
from densesiam_seg.inference.options import AS_TRAINED
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.prediction.batching import Group
from densesiam_seg.prediction.scoring import Scored, Scorer


@pytest.mark.parametrize("tile", [0, 64])
def test_a_file_is_scored_as_its_pixels(segmenter: Segmenter, tmp_path: Path, tile: int) -> None:
    path = str(saved(tmp_path, "scene.png", scene(0, 0, 128)[0]))
    scorer = Scorer(segmenter, segmenter.new_decoding(), AS_TRAINED, tile)
    of_pixels = scorer.of_pixels(load_image(path))
    group = Group((0,), 1, (128, 128) if tile else None)
    ((place, of_file),) = scorer.of_group([path], group)
    assert place == 0 and isinstance(of_file, Scored)
    assert of_file.size == of_pixels.size == (128, 128)
    torch.testing.assert_close(of_file.scores, of_pixels.scores)
    whole = segmenter.scores(segmenter.read(path)[0])[0]
    # Two tiles a side: the image is looked at twice as large.
    times = 2 if tile else 1
    assert of_file.scores.shape[-1] == times * whole.shape[-1]


def test_what_cannot_be_read_is_told_in_its_place(segmenter: Segmenter, tmp_path: Path) -> None:
    good = str(saved(tmp_path, "good.png", scene(0, 0, 64)[0]))
    junk(tmp_path / "bad.png")
    sources = [good, str(tmp_path / "bad.png"), good]
    scorer = Scorer(segmenter, segmenter.new_decoding(), AS_TRAINED, 256)
    found = dict(scorer.of_group(sources, Group((0, 1, 2), 4)))
    kinds = [type(found[place]) for place in range(3)]
    assert kinds == [Scored, ImageError, Scored]
    ((_, large),) = scorer.of_group(sources, Group((1,), 1, (9000, 9000)))
    assert isinstance(large, ImageError)
