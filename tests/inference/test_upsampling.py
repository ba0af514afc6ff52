"""The largest upsampled cluster: by hand, and against whole matrices and the argmax of whole upsampled logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.inference import upsampling
from densesiam_seg.inference.upsampling import places, upsample_argmax

Bands = Callable[[Tensor, int, int], Iterator[Tensor]]


def random_logits(clusters: int, rows: int, columns: int) -> Tensor:
    draw = torch.Generator().manual_seed(clusters * 10_000 + rows * 100 + columns)
    return torch.randn(clusters, rows, columns, generator=draw)


def regions(clusters: int, rows: int, columns: int) -> Tensor:
    """Logits of a few large regions: most neighbours have the same largest cluster."""
    coarse = random_logits(clusters, 3, 4)
    smooth = F.interpolate(coarse[None], (rows, columns), mode="bilinear")[0]
    return smooth + 0.01 * random_logits(clusters, rows, columns)


def weights(source: int, target: int) -> Tensor:
    """(target, source): a triangle of width 1 about each pixel's place, which stays within the source."""
    rows = []
    for pixel in range(target):
        place = min(max((pixel + 0.5) * source / target - 0.5, 0.0), source - 1.0)
        rows.append([max(1 - abs(place - each), 0.0) for each in range(source)])
    return torch.tensor(rows, dtype=torch.float64)


def upsampled(logits: Tensor, height: int, width: int) -> Tensor:
    """Bilinear values (K, H, W) in double precision, from whole matrices."""
    _, rows, columns = logits.shape
    return weights(rows, height) @ logits.double() @ weights(columns, width).T


def require_largest(mask: Tensor, whole: Tensor) -> None:
    """The mask is the argmax of whole logits, up to what float32 can tell apart."""
    assert mask.shape == whole.shape[1:]
    chosen = whole.gather(0, mask.long()[None])[0]
    assert (whole.amax(0) - chosen).max() < 1e-5


def require_argmax(logits: Tensor, height: int, width: int) -> None:
    whole = F.interpolate(logits[None].double(), (height, width), mode="bilinear")[0]
    mask = upsample_argmax(logits, height, width)
    require_largest(mask, whole)
    assert (mask == whole.argmax(0)).double().mean() > 0.999


def joined(bands: Iterator[Tensor]) -> Tensor:
    return torch.cat(list(bands))


class TestByHand:
    """Eight pixels across two places lie at 0, 0, 1/8, 3/8, 5/8, 7/8, 1, 1 of the way."""

    def test_the_border_lies_half_way(self) -> None:
        logits = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        assert upsample_argmax(logits, 1, 8).tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
        assert upsample_argmax(logits.mT, 8, 1).flatten().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]

    def test_a_cluster_may_win_only_between_places(self) -> None:
        """0.7 beats 1 - t and t where t is from 0.3 to 0.7."""
        logits = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.7, 0.7]]])
        assert upsample_argmax(logits, 1, 8).tolist() == [[0, 0, 0, 2, 2, 1, 1, 1]]

    def test_a_diagonal_alone_is_a_disagreement(self) -> None:
        """Cluster 1 has t · u at (t, u), cluster 0 has 1/2: only the far corner is cluster 1's."""
        logits = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[0.0, 0.0], [0.0, 1.0]]])
        expected = [[int(t * u > 0.5) for u in (0, 0.25, 0.75, 1)] for t in (0, 0.25, 0.75, 1)]
        assert upsample_argmax(logits, 4, 4).tolist() == expected

    def test_equal_logits_are_the_first_clusters(self) -> None:
        assert not upsample_argmax(torch.zeros(3, 2, 2), 5, 5).any()

    def test_places(self) -> None:
        at = places(2, 8)
        assert at.low.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
        assert at.high.tolist() == [1, 1, 1, 1, 1, 1, 1, 1]
        assert at.fraction.tolist() == [0, 0, 0.125, 0.375, 0.625, 0.875, 0, 0]

    def test_places_of_a_smaller_axis(self) -> None:
        """Two pixels of eight lie between the second and third, and the sixth and seventh."""
        at = places(8, 2)
        assert (at.low.tolist(), at.high.tolist()) == ([1, 5], [2, 6])
        assert at.fraction.tolist() == [0.5, 0.5]


class TestAgainstReferences:
    @pytest.mark.parametrize(
        "size", [(8, 12), (33, 47), (7, 5), (1, 1), (101, 3), (1, 500), (90, 130)]
    )
    @pytest.mark.parametrize("source", [(8, 12), (1, 1), (5, 1), (1, 6), (13, 9)])
    @pytest.mark.parametrize("draw", [random_logits, regions])
    def test_equals_the_argmax_of_whole_logits(
        self,
        source: tuple[int, int],
        size: tuple[int, int],
        draw: Callable[[int, int, int], Tensor],
    ) -> None:
        require_argmax(draw(5, *source), *size)

    @given(
        clusters=st.integers(1, 6),
        source=st.tuples(st.integers(1, 6), st.integers(1, 6)),
        size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
        smooth=st.booleans(),
        piece=st.integers(1, 300),
        band=st.integers(1, 300),
        lanes=st.integers(1, 4),
        mostly=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def test_equals_whole_matrices_whatever_the_pieces(
        self,
        clusters: int,
        source: tuple[int, int],
        size: tuple[int, int],
        smooth: bool,
        piece: int,
        band: int,
        lanes: int,
        mostly: float,
    ) -> None:
        logits = (regions if smooth else random_logits)(clusters, *source)
        with pytest.MonkeyPatch.context() as patch:
            limits = {"PIECE": piece, "BAND": band, "LARGEST_BAND": 2 * band, "TILE": piece}
            for name, value in {**limits, "LANES": lanes, "MOSTLY": mostly}.items():
                patch.setattr(upsampling, name, value)
            mask = upsample_argmax(logits, *size)
            dense = joined(upsampling._dense_bands(logits, *size))
        whole = upsampled(logits, *size)
        require_largest(mask, whole)
        require_largest(dense, whole)

    @pytest.mark.parametrize("clusters", [1, 2, 27, 255, 256, 300])
    def test_any_number_of_clusters(self, clusters: int) -> None:
        require_argmax(random_logits(clusters, 6, 7), 40, 50)
        require_argmax(regions(clusters, 12, 14), 60, 70)

    def test_large_masks(self) -> None:
        require_argmax(regions(3, 20, 30), 1100, 1700)

    def test_smaller_masks(self) -> None:
        require_argmax(random_logits(4, 200, 150), 9, 11)
        require_argmax(random_logits(4, 200, 15), 9, 110)

    @pytest.mark.parametrize("way", [upsampling._dense_bands, upsampling._sparse_bands])
    def test_both_ways_give_the_same(self, way: Bands) -> None:
        logits = regions(7, 30, 40)
        same = joined(way(logits, 150, 200)) == upsample_argmax(logits, 150, 200)
        assert same.double().mean() > 0.9999

    @pytest.mark.parametrize(
        ("clusters", "dtype"),
        [(1, torch.uint8), (255, torch.uint8), (256, torch.int32), (300, torch.int32)],
    )
    def test_dtype_holds_every_id(self, clusters: int, dtype: torch.dtype) -> None:
        logits = random_logits(clusters, 2, 3)
        logits[-1] = 50.0
        for size in ((5, 7), (2, 3)):
            mask = upsample_argmax(logits, *size)
            assert mask.dtype == dtype
            assert (mask == clusters - 1).all()

    @pytest.mark.parametrize("clusters", [3, 300])
    def test_logits_that_are_no_numbers_give_ids_of_clusters(self, clusters: int) -> None:
        logits = random_logits(clusters, 3, 3)
        logits[0, 1] = torch.nan
        assert upsample_argmax(logits, 12, 12).max() < clusters

    def test_half_precision_logits(self) -> None:
        logits = random_logits(4, 5, 5).bfloat16()
        require_argmax(logits.float(), 16, 16)
        assert torch.equal(upsample_argmax(logits, 16, 16), upsample_argmax(logits.float(), 16, 16))

    def test_strided_and_learned_logits(self) -> None:
        """Channels last, as networks give them, and with a gradient."""
        logits = random_logits(4, 5, 6)
        expected = upsample_argmax(logits, 21, 22)
        strided = logits.permute(1, 2, 0).contiguous().permute(2, 0, 1).requires_grad_()
        assert torch.equal(upsample_argmax(strided, 21, 22), expected)


class TestBands:
    @pytest.mark.parametrize("logits", [random_logits(3, 1, 2), regions(3, 2, 2)])
    def test_they_are_small_though_the_logits_have_few_rows(self, logits: Tensor) -> None:
        bands = [band.shape for band in upsampling._bands(logits, 5000, 2000)]
        assert sum(rows for rows, _ in bands) == 5000
        assert max(rows * columns for rows, columns in bands) <= upsampling.LARGEST_BAND

    @pytest.mark.parametrize(("height", "width"), [(90, 60), (90, 7), (7, 90), (3, 600)])
    @pytest.mark.parametrize("draw", [random_logits, regions])
    def test_work_at_once_is_bounded(
        self,
        height: int,
        width: int,
        draw: Callable[[int, int, int], Tensor],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """By PIECE, or the least that can be done: a row of logits, or LANES columns of a pixel's row."""
        clusters, rows, columns = 4, 6, 8
        held: list[int] = []
        largest = upsampling._largest

        def spy(values: Tensor) -> upsampling.Ids:
            held.append(values.numel())
            return largest(values)

        monkeypatch.setattr(upsampling, "_largest", spy)
        monkeypatch.setattr(upsampling, "PIECE", 150)
        upsample_argmax(draw(clusters, rows, columns), height, width)
        assert max(held) <= max(150, clusters * columns, clusters * upsampling.LANES)

    def test_an_agreement_needs_no_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One of eight columns differs: two gaps of a hundred pixels are interpolated."""
        logits = torch.zeros(2, 8, 8)
        logits[1, :, 3] = 1.0
        done: list[int] = []
        interpolate = upsampling._interpolate

        def spy(*arguments: upsampling.Ids) -> None:
            done.append(len(arguments[4]))
            interpolate(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(upsampling, "_interpolate", spy)
        mask = upsample_argmax(logits, 8, 800)
        assert sum(done) == 200
        # Cluster 1 has 1 - |x - 3| between the columns 2 and 4, and pixel p lies at x = (p + ½) / 100 - ½.
        assert mask.any(0).nonzero()[[0, -1]].flatten().tolist() == [250, 449]
