"""The k-means read-out: which pixels are drawn, the mini-batch update, any number of clusters."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from ranks import in_ranks
from torch import Tensor

from densesiam_seg.clustering.kmeans import Centroids, assign, kmeans
from densesiam_seg.clustering.lloyd import Part, sampled_kmeans
from densesiam_seg.clustering.merging import Contacts, contacts, merge_tree
from densesiam_seg.errors import InputError, NumericError
from densesiam_seg.inference import centroids as centroids_module
from densesiam_seg.inference.centroids import (
    fit_centroids,
    fit_merged,
    fit_readout,
    own_places,
    touches,
)
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.randomness import Stream, generator
from densesiam_seg.peers.group import ALONE, Group


def points(count: int, seed: int) -> Tensor:
    """Points (count, 3) around four corners."""
    draw = torch.Generator().manual_seed(seed)
    corners = torch.tensor([[0.0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 4]])
    chosen = torch.randint(4, (count,), generator=draw)
    return corners[chosen] + torch.randn(count, 3, generator=draw)


def fit(images: list[Tensor], clusters: int, seed: int = 0) -> Centroids:
    """Centroids of images that are points already."""
    return fit_centroids(lambda image: image, lambda: images, len(images), clusters, seed=seed)


def slow_refine(
    centres: NDArray[np.float64], counts: list[int], batch: NDArray[np.float64]
) -> None:
    """c_k ← (1 - n_b/n_k) c_k + (n_b/n_k) mean of the batch's members, one cluster at a time, in place."""
    distances = ((batch[:, None] - centres[None]) ** 2).sum(-1)
    labels = distances.argmin(1)
    for k in range(len(centres)):
        members = batch[labels == k]
        if len(members):
            counts[k] += len(members)
            rate = len(members) / counts[k]
            centres[k] = (1 - rate) * centres[k] + rate * members.mean(0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, int]]:
    """Samples that k-means is asked to cluster, and its restarts."""
    calls: list[tuple[Tensor, int]] = []

    def spy(own: Sequence[Part], clusters: int, *, restarts: int, **more: Any) -> Centroids:
        calls.append((torch.cat([part for _, part in own]), restarts))
        return sampled_kmeans(own, clusters, restarts=restarts, **more)

    monkeypatch.setattr(centroids_module, "sampled_kmeans", spy)
    return calls


class TestFitCentroids:
    def test_it_is_kmeans_of_a_sample_then_one_update_per_image(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Pixels are drawn by (seed, image); the updates follow PiCIE, section 3, written out slowly."""
        monkeypatch.setattr(centroids_module, "SAMPLE", 90)
        images = [points(50, 1), points(20, 2), points(80, 3)]
        sample = [
            image[generator(7, Stream.PIXELS, 0, index).permutation(len(image))[:30].tolist()]
            for index, image in enumerate(images)
        ]
        start = kmeans(torch.cat(sample), 4, seed=7)
        centres, counts = start.centres.double().numpy(), start.counts.tolist()
        for image in images:
            slow_refine(centres, counts, image.double().numpy())
        found = fit(images, 4, seed=7)
        np.testing.assert_allclose(found.centres.numpy(), centres, atol=1e-5)
        assert found.counts.tolist() == counts
        assert sum(counts) == (30 + 20 + 30) + (50 + 20 + 80)

    def test_the_sample_is_spread_evenly_and_bounded(
        self, asked: list[tuple[Tensor, int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(centroids_module, "SAMPLE", 100)
        images = [torch.full((60, 1), float(k)) + points(60, k)[:, :1] / 100 for k in range(10)]
        fit(images, 3)
        assert asked[0][0].round().long().flatten().bincount().tolist() == [10] * 10
        fit(images, 40)  # each image gives at least as many as there are clusters
        assert len(asked[1][0]) == 400
        fit([torch.arange(200.0).view(-1, 1)], 2)
        assert len(set(asked[2][0].flatten().tolist())) == 100

    def test_restarts_are_those_of_kmeans_and_one_by_default(
        self, asked: list[tuple[Tensor, int]]
    ) -> None:
        fit([points(50, 0)], 3)
        fit_centroids(lambda image: image, lambda: [points(50, 0)], 1, 3, seed=0, restarts=4)
        assert [restarts for _, restarts in asked] == [1, 4]

    def test_a_function_of_the_seed_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(centroids_module, "SAMPLE", 60)
        images = [points(60, seed) for seed in range(3)]
        before = torch.random.get_rng_state()
        first = fit(images, 4, seed=3)
        assert torch.equal(torch.random.get_rng_state(), before)
        again = fit(images, 4, seed=3)
        assert torch.equal(first.centres, again.centres)
        assert torch.equal(first.counts, again.counts)
        assert not torch.equal(first.centres, fit(images, 4, seed=1).centres)

    def test_memory_saves_a_pass_and_does_not_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """600 bytes an image: room for none of them, for two of three, and for all."""
        passes: list[int] = []
        found = []

        def images() -> Iterable[Tensor]:
            passes.append(1)
            return [points(50, seed) for seed in range(3)]

        for room, total in ((0, 2), (1200, 4), (1800, 5)):
            monkeypatch.setattr(centroids_module, "free_memory", lambda room=room: 4 * room)
            found.append(fit_centroids(lambda image: image, images, 3, 4, seed=0))
            assert len(passes) == total
            assert torch.equal(found[0].centres, found[-1].centres)
            assert torch.equal(found[0].counts, found[-1].counts)

    def test_images_without_points_are_passed_over(self) -> None:
        """The others have the pixels of their places, as if those could be read."""
        images = [points(60, seed) for seed in range(3)]
        with_gaps = [images[0], None, images[1], None, images[2]]
        found = fit_centroids(lambda image: image, lambda: with_gaps, 5, 4, seed=0)
        sample = [
            (place, image[generator(0, Stream.PIXELS, 0, place).permutation(60).tolist()])
            for place, image in zip((0, 2, 4), images, strict=True)
        ]
        start = sampled_kmeans(sample, 4, seed=0, bound=8.0)
        centres, counts = start.centres.double().numpy(), start.counts.tolist()
        for image in images:
            slow_refine(centres, counts, image.double().numpy())
        np.testing.assert_allclose(found.centres.numpy(), centres, atol=1e-5)
        assert found.counts.tolist() == counts

    def test_very_many_images_are_sampled_in_some(
        self, asked: list[tuple[Tensor, int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(centroids_module, "SAMPLE", 10)
        monkeypatch.setattr(centroids_module, "LARGEST_SAMPLE", 12)
        images = [torch.full((60, 1), float(k)) + points(60, k)[:, :1] / 100 for k in range(10)]
        fit(images, 3)
        assert asked[0][0].round().long().flatten().bincount().tolist() == [3, 0, 0] * 3 + [3]

    @pytest.mark.parametrize("value", [math.nan, math.inf, 1e19])
    def test_features_that_would_abort_faiss(self, value: float) -> None:
        bad = points(50, 0)
        bad[7, 1] = value
        with pytest.raises(NumericError, match="not finite or exceed"):
            fit([bad], 3)

    def test_too_few_points(self) -> None:
        with pytest.raises(InputError, match="5 points cannot make 6 clusters"):
            fit([points(5, 0)], 6)
        with pytest.raises(
            InputError, match="50 points, 1 of them distinct, cannot make 3 clusters"
        ):
            fit([torch.ones(50, 2)], 3)
        with pytest.raises(InputError, match="none of the images can be read"):
            fit([], 3)


def in_a_group(group: Group, dealt: list[Tensor | None], rooms: list[int]) -> list[bytes]:
    own = [dealt[place] for place in own_places(len(dealt), group)]
    found = b""
    for room in rooms:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(centroids_module, "free_memory", lambda room=room: 4 * room)
            fit = fit_centroids(
                lambda image: image, lambda: own, len(dealt), 4, seed=2, group=group
            )
        found += fit.centres.numpy().tobytes() + fit.counts.numpy().tobytes()
    with pytest.raises(InputError, match="none of the images can be read"):
        fit_centroids(lambda image: None, lambda: own, len(dealt), 4, seed=2, group=group)
    return [found]


def test_any_number_of_processes_finds_the_same() -> None:
    """Images of unlike size, one that cannot be read, one process more than images; little and much memory."""
    dealt: list[Tensor | None] = [points(50, 1), None, points(20, 2)]
    rooms = [0, 10**6]
    expected = in_a_group(ALONE, dealt, rooms)
    for count in (2, 4):
        assert in_ranks(count, in_a_group, dealt, rooms) == [expected] * count


def points_of(segmenter: Segmenter, image: Tensor) -> Tensor:
    """Its features, one position after the other, each of length 1."""
    features = segmenter.features(segmenter.normalised(segmenter.read(image)[0]))[0]
    return torch.stack([vector / vector.norm() for vector in features.flatten(1).T])


class TestFitReadout:
    @pytest.mark.parametrize("clusters", [1, 2, 31])
    def test_it_is_kmeans_of_unit_features(
        self, segmenter: Segmenter, scenes: list[Tensor], clusters: int
    ) -> None:
        read = fit_readout(segmenter, lambda: scenes, len(scenes), clusters, seed=0)
        points = [points_of(segmenter, image) for image in scenes]
        expected = fit(points, clusters)
        assert read.centroids is not None
        torch.testing.assert_close(read.centroids, expected.centres, atol=1e-4, rtol=0)
        assert len(read.clusters) == read.card.clusters == clusters
        assert sum(cluster.share or 0 for cluster in read.clusters) == pytest.approx(1)
        assert segmenter.card.readout == "head"
        for image, vectors in zip(scenes, points, strict=True):
            nearest = torch.cdist(vectors.double(), read.centroids.double()).argmin(1)
            assert torch.equal(assign(vectors, read.centroids), nearest)
            scores = read.logits(read.normalised(read.read(image)[0]))[0]
            assert torch.equal(scores.argmax(0).flatten(), nearest)

    @pytest.mark.parametrize(
        ("value", "error", "words"),
        [
            (math.nan, NumericError, "diverged"),
            (math.inf, NumericError, "diverged"),
            (0.0, InputError, "1 of them distinct"),
        ],
    )
    def test_a_network_that_has_diverged_or_is_constant(
        self,
        segmenter: Segmenter,
        scenes: list[Tensor],
        value: float,
        error: type[Exception],
        words: str,
    ) -> None:
        network = copy.deepcopy(segmenter.network)
        assert network.encoder.decoder is not None
        with torch.no_grad():
            for parameter in network.encoder.decoder.parameters():
                parameter.fill_(value)
        spoilt = Segmenter(network, segmenter.card, device="cpu", precision="fp32")
        with pytest.raises(error, match=words):
            fit_readout(spoilt, lambda: scenes, len(scenes), 3, seed=0)


class TestFitMerged:
    def test_it_is_kmeans_then_the_tree_of_what_touches(
        self, segmenter: Segmenter, scenes: list[Tensor]
    ) -> None:
        read = fit_merged(segmenter, lambda: scenes, 4, 12, seed=5)
        fine = fit_readout(segmenter, lambda: scenes, 4, 12, seed=5)
        assert fine.centroids is not None and read.centroids is not None
        assert torch.equal(read.centroids, fine.centroids)
        touching = Contacts(np.zeros((12, 12)), np.zeros((12, 12)))
        for image in scenes:
            pixels = fine.normalised(fine.read(image)[0])
            touching += contacts(fine.logits(pixels)[0].argmax(0).numpy(), 12)
        assert read.merges is not None
        tree = merge_tree(fine.centroids.numpy(), read.merges.counts, touching)
        np.testing.assert_array_equal(read.merges.tree, tree)

    def test_contacts_are_counted_in_few_images_evenly(
        self, segmenter: Segmenter, scenes: list[Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fine = fit_readout(segmenter, lambda: scenes, 4, 6, seed=0)
        monkeypatch.setattr(centroids_module, "CONTACT_IMAGES", 2)
        found = touches(fine, lambda: scenes, 4)
        expected = touches(fine, lambda: scenes[::2], 2)
        np.testing.assert_array_equal(found.observed, expected.observed)
        assert found.observed.any()
