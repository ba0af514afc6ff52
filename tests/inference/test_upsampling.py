"""The largest upsampled cluster: by hand, and against whole matrices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.inference import upsampling
from densesiam_seg.inference.upsampling import places, upsample_argmax

Draw = Callable[[int, int, int], Tensor]


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
    pixels = torch.arange(target, dtype=torch.float64)
    place = ((pixels + 0.5) * source / target - 0.5).clamp(0, source - 1)
    return (1 - (place[:, None] - torch.arange(source)).abs()).clamp(min=0)


def require_argmax(mask: Tensor, logits: Tensor, height: int, width: int) -> None:
    """The mask is the argmax of logits upsampled by whole matrices, up to what float32 can tell apart."""
    _, rows, columns = logits.shape
    whole = weights(rows, height) @ logits.double() @ weights(columns, width).T
    assert mask.shape == (height, width)
    chosen = whole.gather(0, mask.long()[None])[0]
    assert (whole.amax(0) - chosen).max() < 1e-5


def plain(logits: Tensor, height: int, width: int) -> Tensor:
    """Every cluster interpolated everywhere, across and then down, and the first of the largest."""
    low, high, fraction = places(logits.shape[2], width)
    wide = torch.lerp(logits[..., low], logits[..., high], fraction)
    low, high, fraction = places(logits.shape[1], height)
    full = torch.lerp(wide[:, low], wide[:, high], fraction[:, None]).numpy()
    kind = torch.uint8 if len(logits) <= 255 else torch.int32
    return torch.from_numpy(full.argmax(0)).to(kind)


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
        """Of a smaller axis two pixels of eight lie between the second and third, and the sixth and seventh."""
        low, high, fraction = places(2, 8)
        assert low.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
        assert high.tolist() == [1, 1, 1, 1, 1, 1, 1, 1]
        assert fraction.tolist() == [0, 0, 0.125, 0.375, 0.625, 0.875, 0, 0]
        assert [each.tolist() for each in places(8, 2)] == [[1, 5], [2, 6], [0.5, 0.5]]


class TestAgainstReferences:
    @pytest.mark.parametrize("size", [(8, 12), (33, 47), (1, 1), (101, 3), (1, 500)])
    @pytest.mark.parametrize("source", [(8, 12), (1, 1), (5, 1), (1, 6), (200, 15)])
    @pytest.mark.parametrize("draw", [random_logits, regions])
    def test_equals_the_argmax_of_whole_logits(
        self, source: tuple[int, int], size: tuple[int, int], draw: Draw
    ) -> None:
        logits = draw(5, *source)
        require_argmax(upsample_argmax(logits, *size), logits, *size)

    @given(
        clusters=st.integers(1, 6),
        source=st.tuples(st.integers(1, 6), st.integers(1, 6)),
        size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
        draw=st.sampled_from([random_logits, regions]),
        limits=st.fixed_dictionaries(
            {
                **dict.fromkeys(("PIECE", "TILE", "LARGE"), st.integers(1, 300)),
                "LONGEST": st.integers(1, 9),
                "FEW": st.sampled_from([(), (2,), (1, 3, 5)]),
            }
        ),
    )
    def test_whatever_the_pieces(
        self,
        clusters: int,
        source: tuple[int, int],
        size: tuple[int, int],
        draw: Draw,
        limits: dict[str, float],
    ) -> None:
        logits = draw(clusters, *source)
        upsampling._runs.cache_clear()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in limits.items():
                patch.setattr(upsampling, name, value)
            assert torch.equal(upsample_argmax(logits, *size), plain(logits, *size))
            require_argmax(upsample_argmax(logits, *size), logits, *size)
            require_argmax(upsampling._dense(logits, *size), logits, *size)
        upsampling._runs.cache_clear()

    @given(
        values=st.lists(st.integers(-2, 2), min_size=36, max_size=36),
        size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
        scale=st.sampled_from([1.0, 1e-30, 1e30]),
    )
    def test_equal_logits_are_those_of_plain_interpolation(
        self, values: list[int], size: tuple[int, int], scale: float
    ) -> None:
        """Few values, so that many clusters are equal: the first of them wins, as in an argmax."""
        logits = scale * torch.tensor(values, dtype=torch.float32).view(4, 3, 3)
        assert torch.equal(upsample_argmax(logits, *size), plain(logits, *size))

    def test_real_scores_are_those_of_plain_interpolation(self) -> None:
        for draw, clusters in ((random_logits, 27), (regions, 27), (regions, 300)):
            logits = draw(clusters, 40, 54)
            for scores in (logits, 9 * logits, (9 * logits).softmax(0)):
                found = upsample_argmax(scores, 360, 480)
                assert torch.equal(found, plain(scores, 360, 480))

    @pytest.mark.parametrize("clusters", [1, 2, 27, 255, 256, 300])
    def test_any_number_of_clusters(self, clusters: int) -> None:
        logits = random_logits(clusters, 6, 7)
        require_argmax(upsample_argmax(logits, 40, 50), logits, 40, 50)

    def test_large_masks(self) -> None:
        logits = regions(3, 20, 30)
        require_argmax(upsample_argmax(logits, 700, 900), logits, 700, 900)

    def test_an_accelerators_way_gives_the_same(self) -> None:
        logits = regions(7, 30, 40)
        same = upsampling._dense(logits, 150, 200) == upsample_argmax(logits, 150, 200)
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

    def test_any_precision_and_memory_layout(self) -> None:
        """Half precision, channels last, as networks give them, and with a gradient."""
        logits = random_logits(4, 5, 6).bfloat16()
        expected = upsample_argmax(logits.float(), 21, 22)
        assert torch.equal(upsample_argmax(logits, 21, 22), expected)
        strided = logits.float().permute(1, 2, 0).contiguous().permute(2, 0, 1).requires_grad_()
        assert torch.equal(upsample_argmax(strided, 21, 22), expected)


class TestWork:
    @pytest.mark.parametrize(("height", "width"), [(90, 60), (90, 7), (7, 90), (3, 600)])
    @pytest.mark.parametrize("draw", [random_logits, regions])
    def test_work_at_once_is_bounded(
        self, height: int, width: int, draw: Draw, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By PIECE, or the least that can be done: all clusters of one place, or between four."""
        clusters, rows, columns = 4, 6, 8
        held: list[int] = []
        largest = upsampling._largest

        def spy(values: Tensor) -> upsampling.Ids:
            held.append(values.numel())
            return largest(values)

        monkeypatch.setattr(upsampling, "_largest", spy)
        monkeypatch.setattr(upsampling, "PIECE", 150)
        monkeypatch.setattr(upsampling, "LONGEST", 5)
        upsampling._runs.cache_clear()
        upsample_argmax(draw(clusters, rows, columns), height, width)
        upsampling._runs.cache_clear()
        assert max(held) <= max(150, clusters * 5 * 5)

    def test_an_agreement_needs_no_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One of eight columns differs: two gaps of a hundred pixels are interpolated."""
        logits = torch.zeros(2, 8, 8)
        logits[1, :, 3] = 1.0
        done: list[int] = []
        between = upsampling._between

        def spy(around: Tensor, *fractions: Tensor) -> Tensor:
            found = between(around, *fractions)
            done.append(found[:, 0].numel())
            return found

        monkeypatch.setattr(upsampling, "_between", spy)
        mask = upsample_argmax(logits, 8, 800)
        # The other way of looking at 8 rows: each lies at its place.
        assert 8 * 200 <= sum(done) <= 8 * 4 * 64
        # Cluster 1 has 1 - |x - 3| between the columns 2 and 4, and pixel p lies at x = (p + ½) / 100 - ½.
        assert mask.any(0).nonzero()[[0, -1]].flatten().tolist() == [250, 449]

    def test_only_clusters_that_can_win_are_interpolated(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of 27 clusters two are above the others, each on its side."""
        logits = torch.zeros(27, 4, 4)
        logits[5, :, :2] = 2.0
        logits[5, :, 2:] = 1.0
        logits[9, :, :2] = 1.0
        logits[9, :, 2:] = 2.0
        done: set[int] = set()
        between = upsampling._between

        def spy(around: Tensor, *fractions: Tensor) -> Tensor:
            done.add(around.shape[1])
            return between(around, *fractions)

        monkeypatch.setattr(upsampling, "_between", spy)
        mask = upsample_argmax(logits, 8, 8)
        assert done == {2}
        assert mask.tolist() == [[5] * 4 + [9] * 4] * 8
