"""PiCIE and MDC: the loss against float64 loops, labels against brute force, and what a pass must leave alone."""

from __future__ import annotations

import copy
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import in_ranks
from slim import slim_resnets
from torch import Tensor, nn

from densesiam_seg.clustering.kmeans import Centroids
from densesiam_seg.clustering.lloyd import Part, refine
from densesiam_seg.config import TrainConfig
from densesiam_seg.errors import InputError, NumericError
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import Batch, ImageStore, epoch_batches
from densesiam_seg.io.devices import autocast
from densesiam_seg.methods import picie
from densesiam_seg.methods.picie import PiCIE, centroid_logits, running_statistics_kept
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import build_network
from densesiam_seg.peers.group import ALONE, Group
from densesiam_seg.peers.norms import share_statistics
from densesiam_seg.views.pair import view_pair

K, C, SIDE, BATCH, IMAGES = 4, 8, 8, 4, 12
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("slim_module")
CONFIG = TrainConfig(
    seed=3, method="picie", clusters=K, channels=C, image_size=32, batch_size=BATCH
)
MDC = replace(CONFIG, method="mdc")

Vectors = list[list[float]]


@pytest.fixture(scope="module")
def store(image_folder: Path) -> ImageStore:
    made = ImageStore(scan([image_folder]), 64, workers=0)
    assert len(list(made.prepare())) == IMAGES
    return made


def made(
    config: TrainConfig = CONFIG, precision: torch.dtype = torch.float32, group: Group = ALONE
) -> PiCIE:
    """A method with a new network of the seed's weights."""
    architecture = Architecture(channels=C, clusters=config.clusters, over_clusters=6)
    network = build_network(architecture, config.seed).train()
    return PiCIE(network, config, CPU, precision, group=group)


def prepared(store: ImageStore, config: TrainConfig = CONFIG, epoch: int = 0) -> PiCIE:
    method = made(config)
    list(method.prepare(store, epoch))
    return method


def labels_of(method: PiCIE, batch: Batch) -> Tensor:
    assert method.labels is not None
    return method.labels.of(batch.indices)


def batches_of(store: ImageStore, epoch: int = 0) -> list[Batch]:
    return list(store.batches(epoch_batches(len(store), BATCH, seed=CONFIG.seed, epoch=epoch)))


def features_of(method: PiCIE, batch: Batch, round_: int = 0) -> tuple[Tensor, ...]:
    """Features (B, C, h, h) of each view, from a copy of the network, with gradients as in training."""
    network = copy.deepcopy(method.network)
    views = view_pair(batch.images, batch.indices, seed=CONFIG.seed, round_=round_)
    if method.config.method == "mdc":
        return (network.encoder(views.image_1),)
    return network.paired_features(views).chunk(2)


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def unit_rows(features: Tensor) -> Vectors:
    """Normalised features of every pixel, image by image and row by row."""
    rows = features.detach().double().permute(0, 2, 3, 1).flatten(0, 2).tolist()
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]


def squared(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def cross_entropy(rows: Vectors, centres: Vectors, labels: list[int], balance: str) -> float:
    """Of a softmax over negative squared distances, each pixel weighted by its label."""
    total, n, in_use = 0.0, len(labels), len(set(labels))
    for row, label in zip(rows, labels, strict=True):
        distances = [squared(row, centre) for centre in centres]
        term = distances[label] + math.log(sum(math.exp(-d) for d in distances))
        count = labels.count(label)
        weights = {"none": 1.0, "frequency": count / n, "inverse": n / (count * in_use)}
        total += weights[balance] * term
    return total / n


def nearest(row: list[float], centres: Vectors) -> int:
    return min(range(len(centres)), key=lambda k: squared(row, centres[k]))


def scrambled(store: ImageStore, config: TrainConfig) -> PiCIE:
    """Centroids spread out and labels drawn at random, so that no loss is small or can be taken for another."""
    method = prepared(store, config)
    method.centroids = tuple(
        replace(known, centres=torch.lerp(known.centres.mean(0), known.centres, 4.0).roll(view, 0))
        for view, known in enumerate(method.centroids)
    )
    # Cluster 0 has half of the pixels and the last cluster has none.
    source = torch.Generator().manual_seed(5)
    assert method.labels is not None
    drawn = torch.randint(0, 2 * (K - 1), method.labels.rows.shape, generator=source)
    method.labels.rows = torch.where(drawn < K - 1, drawn, 0).to(torch.uint8)
    return method


class TestObjective:
    @pytest.mark.parametrize(
        ("name", "balance"),
        [("picie", "none"), ("picie", "inverse"), ("picie", "frequency"), ("mdc", "inverse")],
    )
    def test_equals_the_loops(self, store: ImageStore, name: Any, balance: Any) -> None:
        method = scrambled(store, replace(CONFIG, method=name, balance=balance))
        batch = batches_of(store)[0]
        rows = [unit_rows(features) for features in features_of(method, batch)]
        centres = [known.centres.double().tolist() for known in method.centroids]
        labels = [column.flatten().tolist() for column in labels_of(method, batch).unbind(1)]

        def loss(features: int, own: int) -> float:
            return cross_entropy(rows[features], centres[own], labels[own], balance)

        def by_first(view: int) -> list[int]:
            return [nearest(row, centres[0]) for row in rows[view]]

        result = method.objective(batch.images, batch.indices, 0)
        if name == "picie":
            within = 0.5 * loss(0, 0) + 0.5 * loss(1, 1)
            across = 0.5 * loss(0, 1) + 0.5 * loss(1, 0)
            assert abs(within - across) > 1e-3
            expected = {"within": within, "across": across}
            pairs = list(zip(by_first(0), by_first(1), strict=True))
        else:
            expected = {"within": loss(0, 0)}
            pairs = list(zip(by_first(0), labels[0], strict=True))
        parts = {part: value.item() for part, value in result.parts.items()}
        assert parts == pytest.approx(expected, abs=1e-5)
        total = sum(expected.values()) / len(expected)
        assert result.total.item() == pytest.approx(total, abs=1e-5)
        agreeing = sum(a == b for a, b in pairs)
        assert 0 < agreeing < len(pairs)
        assert result.agreement.item() == pytest.approx(agreeing / len(pairs), abs=1e-6)
        assert result.histogram.tolist() == [labels[0].count(k) for k in range(K)]
        assert result.histogram.dtype == torch.int64

        result.total.backward()  # type: ignore[no-untyped-call]
        for parameter, value in method.network.named_parameters():
            reached = value.grad is not None and bool(value.grad.any())
            assert reached == parameter.startswith("encoder."), parameter
        assert not any(known.centres.requires_grad for known in method.centroids)
        assert not any(part.requires_grad for part in result.parts.values())

    def test_nearness_orders_by_distance_whatever_the_precision(self) -> None:
        """Two centres a thousandth apart: bf16 would call them one."""
        units = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
        centres = torch.tensor([[0.999, 0.0], [0.9995, 0.0], [-1.0, 0.0]])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = centroid_logits(units, Centroids(centres, torch.ones(3, dtype=torch.int64)))
        assert logits.dtype == torch.float32
        torch.testing.assert_close(
            logits.flatten(), torch.tensor([1 - 1e-6, 1 - 2.5e-7, -3.0]), atol=1e-6, rtol=0
        )
        assert logits.argmax().item() == 1


class TestLabels:
    @pytest.mark.parametrize("replay", ["epoch", "run"])
    @pytest.mark.parametrize("method_name", ["picie", "mdc"])
    def test_are_the_nearest_centroids_of_the_replayed_views(
        self, store: ImageStore, replay: Any, method_name: Any
    ) -> None:
        method = prepared(store, replace(CONFIG, method=method_name, replay=replay), epoch=2)
        seen: list[int] = []
        for batch in batches_of(store, epoch=2):
            seen += batch.indices
            for view, features in enumerate(
                features_of(method, batch, round_=2 if replay == "epoch" else 0)
            ):
                centres = method.centroids[view].centres.double().tolist()
                labels = labels_of(method, batch)[:, view].flatten().tolist()
                for row, label in zip(unit_rows(features), labels, strict=True):
                    distances = [squared(row, centre) for centre in centres]
                    assert distances[label] <= min(distances) + 1e-5
        assert sorted(seen) == list(range(IMAGES))
        assert method.labels is not None
        assert len(set(method.labels.rows.flatten().tolist())) > 1

    @pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
    def test_training_sees_what_clustering_saw_to_the_last_bit(
        self, store: ImageStore, precision: torch.dtype
    ) -> None:
        """With untouched weights every pixel is still nearest to the centroid that it was given."""
        method = made(MDC, precision)
        list(method.prepare(store, 1))
        for batch in batches_of(store, epoch=1):
            with autocast(CPU, precision):
                result = method.objective(batch.images, batch.indices, 1)
            assert result.agreement.item() == 1

    @pytest.mark.parametrize(
        ("clusters", "dtype"), [(K, torch.uint8), (256, torch.uint8), (257, torch.int16)]
    )
    def test_take_no_more_memory_than_they_need(
        self, store: ImageStore, clusters: int, dtype: torch.dtype
    ) -> None:
        for config, views in ((CONFIG, 2), (MDC, 1)):
            labels = prepared(store, replace(config, clusters=clusters)).labels
            assert labels is not None and labels.rows.dtype == dtype
            assert labels.rows.shape == (IMAGES, views, SIDE, SIDE)
            assert int(labels.rows.min()) >= 0 and int(labels.rows.max()) < clusters
            assert int(labels.rows.max()) > clusters // 2


class TestCentroids:
    def test_follow_kmeans_by_mini_batches_each_view_for_itself(
        self, store: ImageStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From start centres that k-means would give, one update with each of the epoch's batches in their order."""
        start = torch.nn.functional.normalize(torch.randn(K, C, generator=torch.Generator()), dim=1)
        samples: list[Tensor] = []

        def sampled(own: list[Part], clusters: int, *, seed: int, group: Group) -> Centroids:
            assert (clusters, seed) == (K, CONFIG.seed)
            places, points = zip(*own, strict=True)
            assert places == tuple(range(IMAGES))
            samples.append(torch.cat(points))
            return Centroids(start, torch.tensor([7] * K))

        monkeypatch.setattr(picie, "sampled_kmeans", sampled)
        monkeypatch.setattr(picie, "SAMPLE", 5 * IMAGES - 1)
        method = prepared(store)
        pixels = [
            [torch.tensor(unit_rows(features)) for features in features_of(method, batch)]
            for batch in batches_of(store)
        ]
        for view in range(2):
            expected = Centroids(start, torch.tensor([7] * K))
            for batch in pixels:
                expected = refine(expected, batch[view])
            known = method.centroids[view]
            torch.testing.assert_close(known.centres, expected.centres, atol=1e-4, rtol=0)
            assert torch.equal(known.counts, expected.counts)

            # Five pixels of every image, no two of them the same.
            assert samples[view].shape == (5 * IMAGES, C)
            images = torch.cat([batch[view] for batch in pixels]).view(IMAGES, SIDE**2, C)
            distances = torch.cdist(samples[view].view(IMAGES, 5, C), images)
            assert distances.amin(-1).max() < 1e-3
            assert not torch.equal(samples[0], samples[1])

    def test_bounded_memory_takes_fewer_images_and_labels_all(
        self, store: ImageStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = prepared(store)
        assert int(whole.centroids[0].counts.sum()) == 2 * IMAGES * SIDE**2
        one_batch = 2 * BATCH * C * SIDE**2 * 4
        for name, limit in (("MAX_FEATURE_BYTES", 2 * one_batch - 1), ("CLUSTERING_IMAGES", 2)):
            with monkeypatch.context() as patch:
                patch.setattr(picie, name, limit)
                method = made()
                assert list(method.prepare(store, 0)) == [4, 8, 12]
            assert int(method.centroids[0].counts.sum()) == 2 * BATCH * SIDE**2
            batch = batches_of(store)[-1]
            for view, features in enumerate(features_of(method, batch)):
                centres = method.centroids[view].centres.double().tolist()
                labels = labels_of(method, batch)[:, view].flatten().tolist()
                assert labels == [nearest(row, centres) for row in unit_rows(features)]

    def test_more_clusters_than_pixels(self, store: ImageStore) -> None:
        method = made(replace(CONFIG, clusters=IMAGES * SIDE**2 + 1))
        with pytest.raises(InputError, match="768 points cannot make 769 clusters"):
            list(method.prepare(store, 0))
        assert method.state() == {}

    @pytest.mark.parametrize("value", [math.nan, math.inf, 1e19, 0.0, None])
    @pytest.mark.parametrize(("at", "limit"), [(0, 256), (1, 256), (2, 4)])
    def test_useless_features_are_refused(
        self,
        store: ImageStore,
        monkeypatch: pytest.MonkeyPatch,
        value: float | None,
        at: int,
        limit: int,
    ) -> None:
        """In the batches that centroids are fitted to and in those after them; None: a constant that is not 0."""
        method, calls = made(), 0
        features = PiCIE._fixed_features

        def spoiled(*args: Any) -> Tensor:
            nonlocal calls
            calls += 1
            found = features(*args)
            if calls == at + 1:
                found = found * value if value is not None else torch.full_like(found, 3.0)
            return found

        monkeypatch.setattr(picie, "CLUSTERING_IMAGES", limit)
        monkeypatch.setattr(PiCIE, "_fixed_features", spoiled)
        names = ", ".join(store.manifest.names[i] for i in batches_of(store, epoch=1)[at].indices)
        with pytest.raises(NumericError, match=rf"step 4 \(batch with {re.escape(names)}\)"):
            list(method.prepare(store, 1))
        assert method.state() == {}

    def test_a_batch_of_one_place(self, store: ImageStore) -> None:
        """MDC has no second view, and batch normalisation no deviation of a single number."""
        with pytest.raises(InputError, match="a batch of 1 image of 32 pixels leaves 1 place"):
            list(made(replace(MDC, batch_size=1)).prepare(store, 0))
        assert list(made(replace(CONFIG, batch_size=1)).prepare(store, 0))[-1] == IMAGES


class TestLeavesAlone:
    @pytest.mark.parametrize("config", [CONFIG, MDC], ids=["picie", "mdc"])
    def test_network_and_random_generators(self, store: ImageStore, config: TrainConfig) -> None:
        def generators() -> tuple[object, ...]:
            numpy_state = str(np.random.get_state())  # noqa: NPY002
            return torch.get_rng_state().tolist(), numpy_state, random.getstate()

        method = made(config)
        before = {name: value.clone() for name, value in method.network.state_dict().items()}
        states = generators()
        for _ in method.prepare(store, 0):
            assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        assert states == generators()
        same(method.network.state_dict(), before)
        assert all(parameter.grad is None for parameter in method.network.parameters())
        assert all(module.training for module in method.network.modules())
        batch = batches_of(store)[0]
        method.objective(batch.images, batch.indices, 0)
        assert int(method.network.state_dict()["encoder.backbone.bn1.num_batches_tracked"]) == 1

    def test_statistics_move_again_after_an_error(self) -> None:
        norm = nn.BatchNorm2d(3).train()
        images = 5 + torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        with pytest.raises(KeyError), running_statistics_kept(norm):
            kept = norm(images)
            assert norm.running_mean is not None and not norm.running_mean.any()
            raise KeyError
        assert torch.equal(norm(images), kept)
        assert norm.running_mean is not None and norm.running_mean.all()

    @pytest.mark.parametrize("images", [4, 8])
    def test_a_stop_within_leaves_the_last_epochs_state(
        self, store: ImageStore, images: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(picie, "CLUSTERING_IMAGES", BATCH)
        method = prepared(store)
        before = method.state()
        for done in (passing := method.prepare(store, 1)):
            if done == images:
                break
        passing.close()  # type: ignore[attr-defined]
        same(method.state(), before)
        list(method.prepare(store, 1))
        same(method.state(), prepared(store, epoch=1).state())
        assert int(method.state()["epoch"]) == 1
        assert not torch.equal(before["centroids_1"], method.state()["centroids_1"])


class TestResume:
    @pytest.mark.parametrize("config", [CONFIG, MDC], ids=["picie", "mdc"])
    def test_in_mid_epoch_goes_on_with_the_same_bits(
        self, store: ImageStore, config: TrainConfig
    ) -> None:
        batches = batches_of(store)
        whole = prepared(store, config)
        step(whole, batches[0])
        tensors = {name: value.clone() for name, value in whole.state().items()}
        views = range(1, whole.views + 1)
        names = {f"{name}_{view}" for view in views for name in ("centroids", "counts")}
        names |= {f"start.{name}" for name in whole.network.encoder.state_dict()}
        assert tensors.keys() == {"epoch"} | names

        resumed = made(config)
        resumed.restore({})
        resumed.network.load_state_dict(whole.network.state_dict())
        resumed.restore(tensors)
        # Labels are those of the epoch's first weights, which are put back.
        assert list(resumed.prepare(store, 0)) == [4, 8, 12]
        assert list(resumed.prepare(store, 0)) == []
        same(resumed.network.state_dict(), whole.network.state_dict())
        for batch in batches:
            assert torch.equal(labels_of(resumed, batch), labels_of(whole, batch))
        for batch in batches[1:]:
            assert step(whole, batch) == step(resumed, batch)
        # The next epoch's centroids stand on the weights and the seed alone.
        for method in (whole, resumed):
            assert list(method.prepare(store, 1)) == [4, 8, 12]
        same(resumed.state(), whole.state())
        same(resumed.network.state_dict(), whole.network.state_dict())


def in_a_group(group: Group, folder: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What a process has of an epoch; of one that a single process began, too; and an error of another process."""
    with slim_resnets():
        store = ImageStore(scan([folder]), 64, workers=0)
        list(store.prepare())
        methods = []
        for known in ({}, tensors):
            method = made(CONFIG, group=group)
            share_statistics(method.network, group)
            method.restore(known)
            assert list(method.prepare(store, 0)) == [4, 8, 12]
            methods.append(method)
        own = [
            replace(batch, indices=batch.indices[2 * group.index : 2 * group.index + 2])
            for batch in batches_of(store)
        ]
        labels = [[labels_of(method, batch) for batch in own] for method in methods]
        images = [batch.images[2 * group.index : 2 * group.index + 2] for batch in own]
        histogram = methods[0].objective(images[0], own[0].indices, 0).histogram
        features = PiCIE._fixed_features

        def spoiled(*args: Any) -> Tensor:
            return features(*args) * (math.nan if group.index else 1.0)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PiCIE, "_fixed_features", spoiled)
            with pytest.raises(NumericError) as refused:
                list(methods[0].prepare(store, 1))
        return {
            "state": methods[0].state(),
            "labels": [torch.cat(each) for each in labels],
            "images": [index for batch in own for index in batch.indices],
            "histogram": histogram,
            "error": str(refused.value),
        }


def test_processes_share_an_epoch(store: ImageStore, image_folder: Path) -> None:
    """Batch statistics are added up in another order, so that a pixel on a border may have another cluster."""
    alone = prepared(store)
    found = in_ranks(2, in_a_group, str(image_folder), alone.state())
    same(found[0]["state"], found[1]["state"])
    assert found[0]["error"] == found[1]["error"] and "step 4 (batch with " in found[0]["error"]
    assert sorted(found[0]["images"] + found[1]["images"]) == list(range(IMAGES))
    for name, value in alone.state().items():
        torch.testing.assert_close(found[0]["state"][name], value, atol=1e-3, rtol=0.02)
    for rank in found:
        assert alone.labels is not None
        expected = alone.labels.of(rank["images"])
        for labels in rank["labels"]:
            assert labels.shape == expected.shape == (6, 2, SIDE, SIDE)
            assert float((labels == expected).float().mean()) > 0.98
        assert int(rank["histogram"].sum()) == 2 * SIDE**2


def step(method: PiCIE, batch: Batch) -> tuple[float, float]:
    """One plain gradient step: its loss and agreement."""
    result = method.objective(batch.images, batch.indices, 0)
    parameters = list(method.network.encoder.parameters())
    gradients = torch.autograd.grad(result.total, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(gradient, alpha=0.1)
    return result.total.item(), result.agreement.item()
