"""Large images in tiles: which windows, how they are put together, and that the clusters are those of the whole."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from photographs import photograph
from torch import Tensor

from densesiam_seg.clustering.appearance import CHANNELS
from densesiam_seg.clustering.quality import Sample
from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.options import AS_TRAINED, PLAIN, Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import build_network
from densesiam_seg.prediction import tiles
from densesiam_seg.prediction.tiles import Total, Windows, shown_size, tiled_scores, windows

Patch = pytest.MonkeyPatch
NO_LOCK = nullcontext()


def pixels_of(height: int, width: int) -> Tensor:
    return torch.from_numpy(photograph(height, width)).movedim(-1, 0).contiguous()


@pytest.fixture(scope="module")
def mixed(segmenter: Segmenter) -> Segmenter:
    """A model with a mixture, whose clusters depend on position and gist."""
    architecture = Architecture(channels=8, clusters=5, over_clusters=0, mixture=True)
    network = build_network(architecture, seed=1)
    assert network.mixture is not None
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(300, CHANNELS, generator=draw)
    network.mixture.fit(Sample(points, points[None], torch.arange(300) // 60), seed=0)
    card = ModelCard(architecture, 32, clusters=5, refine="pamr")
    return Segmenter(network, card, device="cpu", precision="fp32")


@pytest.fixture
def small_windows(monkeypatch: Patch) -> Iterator[None]:
    monkeypatch.setattr(tiles, "WINDOW", 192 * 192)
    yield


class TestSizes:
    def test_an_image_twice_as_long_as_a_tile_is_twice_as_large(self, segmenter: Segmenter) -> None:
        """100 × 200 at 32 pixels is 32 × 64 as a whole."""
        assert shown_size(segmenter, (100, 200), 100) == (64, 128)
        assert shown_size(segmenter, (200, 100), 100) == (128, 64)

    def test_small_images_and_no_tiles(self, segmenter: Segmenter) -> None:
        assert shown_size(segmenter, (100, 200), 200) is None
        assert shown_size(segmenter, (100, 200), 0) is None

    def test_very_long_ones(self, segmenter: Segmenter) -> None:
        """Their longer side is at most 8 times 32 as a whole."""
        assert shown_size(segmenter, (10, 1000), 500) == (32, 512)


class TestWindows:
    @pytest.mark.parametrize("size", [(32, 32), (1440, 1920), (2880, 3840), (64, 9600), (9600, 32)])
    @pytest.mark.parametrize("step", [16, 32])
    def test_cover_everything_and_overlap(self, size: tuple[int, int], step: int) -> None:
        found = windows(size, step)
        for whole, own, starts in zip(
            size, (found.height, found.width), (found.tops, found.lefts), strict=True
        ):
            assert starts[0] == 0 and starts[-1] + own == whole
            assert all(start % step == 0 for start in starts) and own % step == 0
            assert all(after - before <= own - 2 * step for before, after in pairwise(starts))
        assert found.height * found.width < 1.5 * tiles.WINDOW

    def test_one_where_it_fits(self) -> None:
        assert windows((1440, 1920), 96) == Windows((1440, 1920), 1440, 1920, (0,), (0,))


class TestTotal:
    def cut(self, whole: Tensor, found: Windows, stride: int) -> Tensor:
        """A map cut into the windows' maps and put together again."""
        total = None
        for top in found.tops:
            for left in found.lefts:
                rows = slice(top // stride, (top + found.height) // stride)
                columns = slice(left // stride, (left + found.width) // stride)
                part = whole[:, rows, columns]
                total = total or Total(found, part[None])
                total.add(part, top, left)
        assert total is not None
        return total.mean()

    def test_a_map_comes_back(self, monkeypatch: Patch) -> None:
        monkeypatch.setattr(tiles, "WINDOW", 320 * 320)
        found = windows((640, 960), 32)
        assert len(found.tops) > 1 and len(found.lefts) > 1
        whole = torch.randn(3, 160, 240, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(self.cut(whole, found, 4), whole)

    def test_a_very_large_one_at_a_lower_resolution(self, monkeypatch: Patch) -> None:
        monkeypatch.setattr(tiles, "WINDOW", 320 * 320)
        monkeypatch.setattr(tiles, "VALUES", 3 * 160 * 240 // 4)
        whole = torch.linspace(0, 1, 240).expand(3, 160, 240)
        found = self.cut(whole, windows((640, 960), 32), 4)
        assert found.shape == (3, 80, 120)
        torch.testing.assert_close(
            found, torch.linspace(0, 1, 120).expand(3, 80, 120), atol=0.02, rtol=0
        )

    def test_borders_of_windows_hardly_count(self) -> None:
        """Two windows that overlap by half of each: 0 and 1 meet in the middle, without a step at either border."""
        found = Windows((64, 192), 64, 128, (0,), (0, 64))
        total = Total(found, torch.zeros(1, 1, 16, 32))
        for value, left in ((0.0, 0), (1.0, 64)):
            total.add(torch.full((1, 16, 32), value), 0, left)
        row = total.mean()[0, 0]
        assert not row[:16].any() and (row[32:] == 1).all()
        assert row[16] < 0.01 and row[31] > 0.99
        assert (row[17:] >= row[16:-1]).all()


@pytest.mark.parametrize("how", [PLAIN, Refinement(flip=True, scales=(0.5, 1.0)), AS_TRAINED])
class TestScores:
    def test_of_a_single_window_are_those_of_the_image(
        self, segmenter: Segmenter, how: Refinement
    ) -> None:
        """At the size in which its tiles show it."""
        pixels = pixels_of(128, 256)
        found = tiled_scores(segmenter, pixels, (64, 128), how, lock=NO_LOCK)
        shown = tiles._at(pixels[None], (64, 128))
        torch.testing.assert_close(found, segmenter.scores(shown, how)[0], atol=1e-4, rtol=1e-4)

    @pytest.mark.usefixtures("small_windows")
    def test_windows_have_the_clusters_of_the_whole(
        self, mixed: Segmenter, monkeypatch: Patch, how: Refinement
    ) -> None:
        """Where a place lies, and what light it has, is known from the whole image; mirrored ones too."""
        pixels, size = pixels_of(300, 400), (320, 416)
        found = tiled_scores(mixed, pixels, size, how, lock=NO_LOCK)
        assert len(windows(size, 32).tops) > 1
        monkeypatch.setattr(tiles, "WINDOW", 2**22)
        whole = tiled_scores(mixed, pixels, size, how, lock=NO_LOCK)
        same = (found.argmax(0) == whole.argmax(0)).float().mean()
        assert same > 0.97


def test_tiles_on_their_own_would_have_other_clusters(
    mixed: Segmenter, small_windows: None
) -> None:
    """What the test above measures: without the whole image's gist and positions it fails."""
    pixels, size = pixels_of(300, 400), (320, 416)
    whole = tiled_scores(mixed, pixels, size, PLAIN, lock=NO_LOCK)
    found = windows(size, 32)
    shown = tiles._at(pixels[None], size)
    part = shown[..., found.tops[-1] :, found.lefts[-1] :]
    alone = mixed.scores(part, PLAIN)[0].argmax(0)
    inside = whole.argmax(0)[found.tops[-1] // 4 :, found.lefts[-1] // 4 :]
    assert (alone == inside).float().mean() < 0.9


def test_read_outs_by_centroids(segmenter: Segmenter, small_windows: None) -> None:
    from photographs import centroids_of

    other = segmenter.with_centroids(centroids_of(4))
    assert tiled_scores(other, pixels_of(300, 400), (320, 416), lock=NO_LOCK).shape == (4, 80, 104)


def test_the_gist_is_that_of_the_whole_image(mixed: Segmenter) -> None:
    """A brighter image has another one; a model without a mixture has none."""
    pixels = pixels_of(64, 64)[None]
    first, second = mixed.gist(pixels), mixed.gist(pixels // 2)
    assert first is not None and second is not None
    assert first.shape == (1, 8, 1, 1) and (first[:, 0] > second[:, 0]).all()
    other = copy.copy(mixed)
    other.network = build_network(replace(mixed.card.architecture, mixture=False), seed=0)
    assert other.gist(pixels) is None
    assert np.isfinite(first.numpy()).all()
