"""Judgements without labels: what a joint histogram is worth, and how images and their views make one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from photographs import junk

from densesiam_seg.errors import InputError
from densesiam_seg.inference.centroids import fit_readout
from densesiam_seg.inference.segmenter import ImageLike, Segmenter
from densesiam_seg.inference.selection import (
    MAX_IMAGES,
    VIEW_ROUND,
    Candidate,
    Choice,
    Quality,
    augmented,
    choose,
    quality_of,
    sampled_indices,
    warped,
)
from densesiam_seg.views.parameters import Geometry, Photometry, sample_geometry, sample_photometry


def table(*rows: list[int]) -> NDArray[np.int64]:
    return np.array(rows, np.int64)


def drawn(seed: int, clusters: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, 50, (clusters, clusters))


def whole(flip: float = 0.0) -> Geometry:
    return Geometry(*(torch.tensor([value]) for value in (0.0, 0.0, 1.0, 1.0, flip)))


def unchanged() -> Photometry:
    return Photometry(*(torch.tensor([value]) for value in (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)))


def quality_by(segmenter: Segmenter, images: Sequence[ImageLike], *, seed: int = 0) -> Quality:
    return choose([segmenter], images, seed=seed).chosen.quality


class TestJudged:
    def test_the_same_in_both(self) -> None:
        found = quality_of(table([3, 0, 0], [0, 3, 0], [0, 0, 3]))
        assert found.score == pytest.approx(1.0)
        assert found.balance == pytest.approx(1.0)
        assert (found.agreement, found.in_use, found.clusters) == (1.0, 3, 3)

    def test_chance(self) -> None:
        """Clusters of the view that do not depend on those of the image."""
        assert quality_of(table([4, 4], [4, 4])).score == pytest.approx(0.0, abs=1e-12)
        assert quality_of(np.outer([1, 2, 5], [3, 1, 4])).score == pytest.approx(0.0, abs=1e-12)

    @pytest.mark.parametrize(
        "joint", [table([7]), table([7, 0], [0, 0]), table([3, 4], [0, 0]), table([3, 0], [4, 0])]
    )
    def test_a_constant_answer_is_worth_nothing(self, joint: NDArray[np.int64]) -> None:
        assert quality_of(joint).score == 0.0

    def test_by_hand(self) -> None:
        """H(X) = ln 2; the view has shares 1/4 and 3/4; I = H(X) + H(Y) - H(X, Y)."""
        found = quality_of(table([1, 1], [0, 2]))
        view = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
        both = -(0.5 * np.log(0.25) + 0.5 * np.log(0.5))
        expected = (np.log(2) + view - both) / np.sqrt(np.log(2) * view)
        assert found.score == pytest.approx(expected)
        assert found.agreement == 0.75
        assert found.balance == pytest.approx(1.0)

    def test_unused_clusters_lower_the_balance_alone(self) -> None:
        two = quality_of(table([5, 0], [0, 5]))
        four = quality_of(np.pad(table([5, 0], [0, 5]), (0, 2)))
        assert four.score == pytest.approx(two.score) == pytest.approx(1.0)
        assert (two.balance, four.balance) == pytest.approx((1.0, 0.5))
        assert (four.in_use, four.clusters) == (2, 4)

    @pytest.mark.parametrize("seed", range(5))
    def test_properties(self, seed: int) -> None:
        """Symmetric, blind to the clusters' order and to how many places there are, and within its bounds."""
        joint = drawn(seed, 6)
        score = quality_of(joint).score
        order = np.random.default_rng(seed).permutation(6)
        assert 0 <= score <= 1
        assert quality_of(joint.T).score == pytest.approx(score)
        assert quality_of(joint[order][:, order]).score == pytest.approx(score)
        assert quality_of(7 * joint).score == pytest.approx(score)

    def test_disagreement_lowers_it(self) -> None:
        """More and more places are moved from the diagonal to a table of chance with the same shares."""
        shares = np.array([8, 1, 4, 4, 2])
        total = shares.sum()
        scores = [
            quality_of(
                (10 - part) * np.diag(shares) * total + part * np.outer(shares, shares)
            ).score
            for part in range(11)
        ]
        assert scores == sorted(scores, reverse=True)
        assert (scores[0], scores[-1]) == pytest.approx((1.0, 0.0), abs=1e-9)


class TestViews:
    def test_nothing_changed_and_a_mirror(self) -> None:
        pixels = torch.randint(0, 256, (1, 3, 20, 28), dtype=torch.uint8)
        torch.testing.assert_close(augmented(pixels, whole(), unchanged()), pixels / 255)
        torch.testing.assert_close(augmented(pixels, whole(1), unchanged()), pixels.flip(-1) / 255)

    @pytest.mark.parametrize("place", range(4))
    def test_scores_go_where_the_pixels_go(self, place: int) -> None:
        """A map at the image's own resolution is warped as the image is."""
        pixels = torch.randint(0, 256, (1, 3, 24, 36), dtype=torch.uint8)
        geometry = sample_geometry(0, VIEW_ROUND, [place])
        found = warped(pixels / 255.0, geometry)
        torch.testing.assert_close(found, augmented(pixels, geometry, unchanged()))

    def test_a_quarter(self) -> None:
        """The lower right quarter of a map whose value is its row and its column."""
        rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(12.0), indexing="ij")
        geometry = Geometry(*(torch.tensor([value]) for value in (0.5, 0.5, 0.5, 0.5, 0.0)))
        found = warped(torch.stack((rows, columns))[None], geometry)[0]
        # Centres of target cells lie a quarter of a cell before and behind those of source cells.
        assert found[0, 1:3, 0].tolist() == [4.25, 4.75]
        assert found[1, 0, 1:3].tolist() == [6.25, 6.75]
        assert found.shape == (2, 8, 12)


class TestChoose:
    def test_a_judgement_is_of_the_histogram_of_all_views(
        self, segmenter: Segmenter, paths: list[str]
    ) -> None:
        joint = np.zeros((5, 5), np.int64)
        for place, path in enumerate(paths):
            pixels, _ = segmenter.read(path)
            geometry = sample_geometry(4, VIEW_ROUND, [place])
            view = augmented(pixels, geometry, sample_photometry(4, VIEW_ROUND, [place], 1))
            plain = warped(segmenter.logits(segmenter.normalised(pixels)), geometry).argmax(1)
            mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
            deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
            seen = segmenter.logits((view - mean) / deviation).argmax(1)
            for row, column in zip(plain.flatten(), seen.flatten(), strict=True):
                joint[row, column] += 1
        assert quality_by(segmenter, paths, seed=4) == quality_of(joint)
        assert quality_by(segmenter, paths, seed=1) != quality_by(segmenter, paths, seed=4)

    def test_together_as_alone_on_any_number_of_cores(
        self, segmenter: Segmenter, paths: list[str]
    ) -> None:
        other = fit_readout(segmenter, lambda: paths, len(paths), 3, seed=0)
        both = choose([segmenter, other], paths)
        assert [each.segmenter for each in both.candidates] == [segmenter, other]
        alone = [quality_by(segmenter, paths), quality_by(other, paths)]
        assert [each.quality for each in both.candidates] == alone
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            assert choose([segmenter, other], paths) == both
        finally:
            torch.set_num_threads(before)

    def test_bad_files_are_passed_over(
        self, segmenter: Segmenter, paths: list[str], tmp_path: Path
    ) -> None:
        bad = str(junk(tmp_path / "bad.png"))
        assert quality_by(segmenter, [*paths[:3], bad]) == quality_by(segmenter, paths[:3])
        with pytest.raises(InputError, match="none of the images can be read"):
            quality_by(segmenter, [bad, bad])

    @pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 130, 10**6])
    def test_images_are_bounded_and_spread(self, count: int) -> None:
        places = sampled_indices(count)
        assert min(count, MAX_IMAGES // 2) <= len(places) <= MAX_IMAGES
        if count:
            assert places[0] == 0
            assert count - places[-1] <= places.step


def test_the_highest_score_is_chosen_and_the_first_of_equals(segmenter: Segmenter) -> None:
    scores = (0.2, 0.7, 0.7, 0.1)
    found = [Candidate(segmenter, Quality(score, 0.5, 0.9, 4, 5)) for score in scores]
    choice = Choice(tuple(found))
    assert choice.chosen is found[1]
    assert all(str(each) in line for each, line in zip(found, choice.lines, strict=False))
    assert choice.lines[4].endswith(str(found[1]))
