"""The losses against numbers worked out by hand, slow loops in float64 and their gradients' formulas."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from densesiam_seg.methods.losses import (
    Balance,
    Similarity,
    dissimilarity,
    linked_loss,
    pixel_loss,
    pixel_weights,
    pseudo_label_loss,
    region_embeddings,
    region_loss,
    segmentation_loss,
)

Array = NDArray[np.float64]

FORMS: list[Similarity] = ["cross-entropy", "cosine"]
BALANCES: list[Balance] = ["inverse", "frequency", "none"]
LN3, LN9 = math.log(3), math.log(9)


def pixels(*columns: tuple[float, ...]) -> Tensor:
    """(1, K, 1, W): one tuple of K values per pixel."""
    return torch.tensor(columns).T[None, :, None, :].contiguous()


def random_maps(count: int, seed: int, shape: tuple[int, ...] = (2, 4, 3, 5)) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(shape, generator=source) for _ in range(count)]


def shares(values: Array) -> Array:
    powers = np.exp(values - values.max())
    out: Array = powers / powers.sum()
    return out


def columns_of(maps: Tensor) -> list[Array]:
    """The K values of each pixel, image by image, row by row."""
    data = maps.detach().double().numpy()
    batch, _, height, width = data.shape
    return [data[b, :, y, x] for b in range(batch) for y in range(height) for x in range(width)]


def slow_dissimilarity(p: Tensor, z: Tensor, form: Similarity) -> float:
    terms = []
    for prediction, target in zip(columns_of(p), columns_of(z), strict=True):
        if form == "cosine":
            lengths = math.sqrt(sum(prediction**2)) * math.sqrt(sum(target**2))
            terms.append(-sum(prediction * target) / lengths)
        else:
            terms.append(-sum(shares(target) * np.log(shares(prediction))))
    return float(sum(terms) / len(terms))


def rows(*places: tuple[float, ...]) -> Tensor:
    """(1, N, K): one tuple of K values per place."""
    return torch.tensor(places)[None]


class Links(NamedTuple):
    p_1: Tensor
    z_1: Tensor
    p_2: Tensor
    z_2: Tensor
    weight: Tensor


def slow_linked(links: Links, form: Similarity) -> float:
    """The weighted mean over each image's links, then the mean over the images that have one."""
    means = []
    for b, weights in enumerate(links.weight.tolist()):
        total, count = 0.0, 0.0
        for n, row in enumerate(weights):
            for m, w in enumerate(row):
                there = slow_dissimilarity(as_map(links.p_1[b, n]), as_map(links.z_2[b, m]), form)
                back = slow_dissimilarity(as_map(links.p_2[b, m]), as_map(links.z_1[b, n]), form)
                total += w * 0.5 * (there + back)
                count += w
        if count:
            means.append(total / count)
    return sum(means) / len(means)


def as_map(row: Tensor) -> Tensor:
    """One place's K values as a map of one pixel."""
    return row.detach().view(1, -1, 1, 1)


def slow_weights(labels: list[int], balance: Balance) -> list[float]:
    counts = {label: labels.count(label) for label in labels}
    if balance == "none":
        return [1.0 for _ in labels]
    if balance == "frequency":
        return [counts[label] / len(labels) for label in labels]
    return [len(labels) / (counts[label] * len(counts)) for label in labels]


def slow_segmentation(z: Tensor, balance: Balance) -> float:
    return slow_pseudo_labels(z, [int(column.argmax()) for column in columns_of(z)], balance)


def slow_pseudo_labels(z: Tensor, labels: list[int], balance: Balance) -> float:
    columns = columns_of(z)
    weights = slow_weights(labels, balance)
    terms = [
        -weight * math.log(shares(column)[label])
        for column, label, weight in zip(columns, labels, weights, strict=True)
    ]
    return sum(terms) / len(terms)


def slow_regions(z: Tensor, features: Tensor) -> Array:
    batch, clusters, height, width = z.shape
    logits, values = z.double().numpy(), features.double().numpy()
    out = np.zeros((batch, clusters, values.shape[1]))
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                mask = shares(logits[b, :, y, x])
                for n in range(clusters):
                    out[b, n] += mask[n] * values[b, :, y, x]
    return out


def slow_region_loss(q_1: Tensor, u_1: Tensor, q_2: Tensor, u_2: Tensor) -> float:
    total = 0.0
    for q, u in ((q_1, u_2), (q_2, u_1)):
        rows = []
        for predictions, projections in zip(q.double().numpy(), u.double().numpy(), strict=True):
            for n, prediction in enumerate(predictions):
                row = [
                    float(prediction @ projection)
                    / math.sqrt(float(prediction @ prediction))
                    / math.sqrt(float(projection @ projection))
                    / 0.1
                    for projection in projections
                ]
                rows.append(-math.log(shares(np.array(row))[n]))
        total += 0.5 * sum(rows) / len(rows)
    return total


class TestDissimilarity:
    def test_one_pixel_by_hand(self) -> None:
        even, leaning = pixels((0.0, 0.0)), pixels((LN3, 0.0))
        # softmax(leaning) = (¾, ¼), log softmax(even) = (-ln 2, -ln 2): D = ln 2.
        assert dissimilarity(even, leaning).item() == pytest.approx(0.6931472, abs=1e-6)
        # The other way round: D = -½ ln ¾ - ½ ln ¼ = ½ · (0.2876821 + 1.3862944).
        assert dissimilarity(leaning, even).item() == pytest.approx(0.8369882, abs=1e-6)
        # With itself, the entropy: -¾ ln ¾ - ¼ ln ¼.
        assert dissimilarity(leaning, leaning).item() == pytest.approx(0.5623351, abs=1e-6)

    def test_two_pixels_by_hand(self) -> None:
        p = pixels((0.0, 0.0), (LN3, 0.0))
        z = pixels((LN3, 0.0), (0.0, 0.0))
        # The mean of the first two numbers above.
        assert dissimilarity(p, z).item() == pytest.approx(0.7650677, abs=1e-6)

    def test_cosine_by_hand(self) -> None:
        p = pixels((3.0, 4.0), (1.0, 0.0))
        z = pixels((4.0, 3.0), (0.0, 2.0))
        # cos = 24/25 and 0: D = -0.48.
        assert dissimilarity(p, z, "cosine").item() == pytest.approx(-0.48, abs=1e-6)
        assert dissimilarity(p, 7 * p, "cosine").item() == pytest.approx(-1, abs=1e-6)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_a_slow_loop(self, form: Similarity, seed: int) -> None:
        p, z = random_maps(2, seed)
        expected = slow_dissimilarity(p, z, form)
        assert dissimilarity(p, z, form).item() == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("form", FORMS)
    def test_no_gradient_passes_the_target(self, form: Similarity) -> None:
        p, z = (maps.requires_grad_() for maps in random_maps(2, 0))
        to_p, to_z = torch.autograd.grad(
            dissimilarity(p, z, form), (p, z), allow_unused=True, retain_graph=True
        )
        assert to_z is None
        assert to_p.abs().max() > 1e-4

    def test_gradient_of_the_cross_entropy_form(self) -> None:
        """(softmax(p) - softmax(z)) / pixels."""
        p, z = random_maps(2, 1)
        (gradient,) = torch.autograd.grad(dissimilarity(p.requires_grad_(), z), p)
        expected = [
            (shares(a) - shares(b)) / 30 for a, b in zip(columns_of(p), columns_of(z), strict=True)
        ]
        np.testing.assert_allclose(columns_of(gradient), expected, atol=1e-6)

    def test_default_is_cross_entropy(self) -> None:
        p, z = random_maps(2, 2)
        assert dissimilarity(p, z).item() == dissimilarity(p, z, "cross-entropy").item()

    @pytest.mark.parametrize("form", FORMS)
    def test_half_precision_is_computed_in_float32(self, form: Similarity) -> None:
        p, z = (maps.bfloat16() for maps in random_maps(2, 0))
        loss = dissimilarity(p, z, form)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(slow_dissimilarity(p, z, form), abs=1e-5)

    def test_large_logits_stay_finite(self) -> None:
        p, z = pixels((1e4, -1e4)), pixels((-1e4, 1e4))
        assert dissimilarity(p, z).item() == pytest.approx(2e4)


class TestPixelLoss:
    @pytest.mark.parametrize("form", FORMS)
    def test_equals_a_slow_loop_and_is_symmetric(self, form: Similarity) -> None:
        p_1, z_1, p_2, z_2 = random_maps(4, 3)
        expected = 0.5 * slow_dissimilarity(p_1, z_2, form)
        expected += 0.5 * slow_dissimilarity(p_2, z_1, form)
        assert pixel_loss(p_1, z_1, p_2, z_2, form).item() == pytest.approx(expected, abs=1e-5)
        assert pixel_loss(p_2, z_2, p_1, z_1, form).item() == pytest.approx(expected, abs=1e-5)

    def test_by_hand(self) -> None:
        even, leaning = pixels((0.0, 0.0)), pixels((LN3, 0.0))
        # D(p₁, z₂) = D(even, leaning) = 0.6931472, D(p₂, z₁) = D(leaning, even) = 0.8369882.
        loss = pixel_loss(even, even, leaning, leaning)
        assert loss.item() == pytest.approx(0.7650677, abs=1e-6)

    @pytest.mark.parametrize("form", FORMS)
    def test_gradient_reaches_predictions_only(self, form: Similarity) -> None:
        maps = [tensor.requires_grad_() for tensor in random_maps(4, 4)]
        p_1, z_1, p_2, z_2 = maps
        loss = pixel_loss(p_1, z_1, p_2, z_2, form)
        gradients = torch.autograd.grad(loss, maps, allow_unused=True)
        assert gradients[1] is None and gradients[3] is None
        assert gradients[0].abs().max() > 1e-4 and gradients[2].abs().max() > 1e-4


def random_links(seed: int, batch: int = 3, ends: tuple[int, int] = (4, 5)) -> Links:
    """N and M places of six values; some weights are 0."""
    source = torch.Generator().manual_seed(seed)
    n, m = ends
    p_1, z_1, p_2, z_2 = (
        2 * torch.randn(batch, places, 6, generator=source) for places in (n, n, m, m)
    )
    weight = torch.rand(batch, n, m, generator=source)
    return Links(p_1, z_1, p_2, z_2, torch.where(weight < 0.5, 0.0, 2 * weight))


class TestLinkedLoss:
    """PixSim of places that are linked one by one."""

    EVEN, LEANING = (0.0, 0.0), (LN3, 0.0)

    def test_by_hand(self) -> None:
        """Two places of view 1, one of view 2, weights 1 and 3; the D are those of `TestDissimilarity`."""
        p_1, z_1 = rows(self.EVEN, self.LEANING), rows(self.LEANING, self.EVEN)
        p_2, z_2 = rows(self.LEANING), rows(self.EVEN)
        weight = torch.tensor([[[1.0], [3.0]]])
        # First link: ½ D(even, even) + ½ D(leaning, leaning) = ½ · (0.6931472 + 0.5623351) = 0.6277412.
        # Second: ½ D(leaning, even) twice = 0.8369882. Mean: (0.6277412 + 3 · 0.8369882) / 4.
        loss = linked_loss(p_1, z_1, p_2, z_2, weight)
        assert loss.item() == pytest.approx(0.7846764, abs=1e-6)
        only_first = linked_loss(p_1, z_1, p_2, z_2, torch.tensor([[[5.0], [0.0]]]))
        assert only_first.item() == pytest.approx(0.6277412, abs=1e-6)
        # From the other view's side it is the same sum.
        turned = linked_loss(p_2, z_2, p_1, z_1, weight.mT)
        assert turned.item() == pytest.approx(0.7846764, abs=1e-6)

    def test_cosine_by_hand(self) -> None:
        p_1, z_1 = rows((3.0, 4.0), (1.0, 0.0)), rows((1.0, 0.0), (0.0, 2.0))
        p_2, z_2 = rows((0.0, 5.0)), rows((4.0, 3.0))
        # First link: -½ (24/25 + 0) = -0.48. Second: -½ (0.8 + 1) = -0.9. Mean: (-0.48 - 0.9) / 2.
        loss = linked_loss(p_1, z_1, p_2, z_2, torch.ones(1, 2, 1), "cosine")
        assert loss.item() == pytest.approx(-0.69, abs=1e-6)

    @pytest.mark.parametrize("form", FORMS)
    def test_each_place_with_itself_is_the_pixel_loss(self, form: Similarity) -> None:
        p_1, z_1, p_2, z_2 = random_maps(4, 5, (2, 4, 3, 5))
        ends = [maps.flatten(2).mT for maps in (p_1, z_1, p_2, z_2)]
        weight = torch.eye(15).expand(2, 15, 15)
        links = Links(ends[0], ends[1], ends[2], ends[3], weight)
        expected = pixel_loss(p_1, z_1, p_2, z_2, form)
        assert linked_loss(*links, form).item() == pytest.approx(expected.item(), abs=1e-5)
        # Only the weights' ratios count.
        tripled = linked_loss(*links._replace(weight=3 * weight), form)
        assert tripled.item() == pytest.approx(expected.item(), abs=1e-5)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_a_slow_loop(self, form: Similarity, seed: int) -> None:
        links = random_links(seed)
        if seed == 2:
            links.weight[1] = 0
        expected = slow_linked(links, form)
        assert linked_loss(*links, form).item() == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("form", FORMS)
    def test_every_image_with_a_link_counts_alike(self, form: Similarity) -> None:
        """One link of one image weighs as much as twenty of another; an image without any does not weigh."""
        links = random_links(3)
        links.weight[:] = 0
        links.weight[0], links.weight[1, 2, 3] = 1.0, 0.01
        one, two = (Links(*(field[b : b + 1] for field in links)) for b in (0, 1))
        alone = linked_loss(*one, form), linked_loss(*two, form)
        expected = (alone[0] + alone[1]) / 2
        assert linked_loss(*links, form).item() == pytest.approx(expected.item(), abs=1e-5)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("ends", [(4, 5), (0, 0)])
    def test_no_links_make_zero_and_a_gradient_of_zero(
        self, form: Similarity, ends: tuple[int, int]
    ) -> None:
        links = random_links(4, ends=ends)
        links.weight[:] = 0
        predictions = links.p_1.requires_grad_(), links.p_2.requires_grad_()
        loss = linked_loss(*links, form)
        assert loss.item() == 0
        for gradient in torch.autograd.grad(loss, predictions):
            assert (gradient == 0).all()

    @pytest.mark.parametrize("form", FORMS)
    def test_gradient_reaches_linked_predictions_only(self, form: Similarity) -> None:
        links = random_links(5)
        weight = links.weight
        weight[1], weight[:, 2], weight[:, :, 3] = 0, 0, 0
        places = [field.requires_grad_() for field in links[:4]]
        loss = linked_loss(*links, form)
        gradients = torch.autograd.grad(loss, places, allow_unused=True)
        to_p_1, to_z_1, to_p_2, to_z_2 = gradients
        assert to_z_1 is None and to_z_2 is None
        for gradient, ends in ((to_p_1, weight.sum(2) > 0), (to_p_2, weight.sum(1) > 0)):
            assert (gradient[~ends] == 0).all()
            assert (gradient[ends].abs().amax(-1) > 1e-5).all()

    @pytest.mark.parametrize("form", FORMS)
    def test_autocast_changes_nothing(self, form: Similarity) -> None:
        links = Links(*(field.bfloat16() for field in random_links(6)))
        links = links._replace(weight=links.weight.float())
        with torch.autocast("cpu", torch.bfloat16):
            loss = linked_loss(*links, form)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, linked_loss(*links, form))
        expected = slow_linked(links, form)
        assert loss.item() == pytest.approx(expected, abs=1e-5)

    def test_large_logits_stay_finite(self) -> None:
        p, z = rows((1e4, -1e4)), rows((-1e4, 1e4))
        assert linked_loss(p, z, p, z, torch.ones(1, 1, 1)).item() == pytest.approx(2e4)

    def test_default_is_cross_entropy(self) -> None:
        links = random_links(7)
        assert linked_loss(*links).item() == linked_loss(*links, "cross-entropy").item()


class TestPixelWeights:
    def test_by_hand(self) -> None:
        # ln 27 = 3.2958369, ln 128 = 4.8520303, sum 8.1478672.
        weight_k, weight_a = pixel_weights(27, 128)
        assert weight_k == pytest.approx(0.5954970, abs=1e-6)
        assert weight_a == pytest.approx(0.4045030, abs=1e-6)
        assert pixel_weights(5, 5) == (0.5, 0.5)
        # log 4 = 2 log 2
        assert pixel_weights(2, 4) == pytest.approx((2 / 3, 1 / 3))


class TestSegmentation:
    Z = pixels((LN3, 0.0), (LN3, 0.0), (LN3, 0.0), (0.0, LN9))

    @pytest.mark.parametrize(
        ("balance", "expected"),
        [
            # Labels 0 0 0 1; cross-entropies -ln ¾ = 0.2876821 three times and -ln 0.9 = 0.1053605.
            ("none", 0.2421017),
            # Weights ¾ ¾ ¾ ¼: (0.75 · 0.8630462 + 0.25 · 0.1053605) / 4
            ("frequency", 0.1684062),
            # Weights 4 / (3 · 2) = ⅔ three times and 4 / (1 · 2) = 2: (0.5753641 + 0.2107210) / 4
            ("inverse", 0.1965213),
        ],
    )
    def test_by_hand(self, balance: Balance, expected: float) -> None:
        assert segmentation_loss(self.Z, balance).item() == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("balance", BALANCES)
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_a_slow_loop(self, balance: Balance, seed: int) -> None:
        (z,) = random_maps(1, seed)
        expected = slow_segmentation(z, balance)
        assert segmentation_loss(z, balance).item() == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("balance", BALANCES)
    def test_gradient_treats_labels_and_weights_as_constants(self, balance: Balance) -> None:
        """weight · (softmax(z) - one-hot label) / pixels."""
        (z,) = random_maps(1, 5)
        (gradient,) = torch.autograd.grad(segmentation_loss(z.requires_grad_(), balance), z)
        columns = columns_of(z)
        labels = [int(column.argmax()) for column in columns]
        expected = [
            weight * (shares(column) - np.eye(4)[label]) / len(columns)
            for column, label, weight in zip(
                columns, labels, slow_weights(labels, balance), strict=True
            )
        ]
        np.testing.assert_allclose(columns_of(gradient), expected, atol=1e-6)

    def test_inverse_gives_each_label_in_use_the_same_weight(self) -> None:
        (z,) = random_maps(1, 6, (2, 6, 4, 4))
        z[:, 5] = -50  # a label that no pixel has takes nothing from the others
        columns = columns_of(z)
        labels = [int(column.argmax()) for column in columns]
        losses = [
            -math.log(shares(column)[label]) for column, label in zip(columns, labels, strict=True)
        ]
        used = sorted(set(labels))
        assert len(used) > 2 and 5 not in used
        per_label = [
            np.mean([loss for loss, label in zip(losses, labels, strict=True) if label == k])
            for k in used
        ]
        expected = float(np.mean(per_label))
        assert segmentation_loss(z, "inverse").item() == pytest.approx(expected, abs=1e-5)

    def test_one_label_for_all_is_the_plain_mean(self) -> None:
        z = pixels((LN3, 0.0), (LN9, 0.0))
        # (0.2876821 + 0.1053605) / 2
        for balance in BALANCES:
            assert segmentation_loss(z, balance).item() == pytest.approx(0.1965213, abs=1e-6)

    def test_default_is_inverse(self) -> None:
        assert segmentation_loss(self.Z).item() == segmentation_loss(self.Z, "inverse").item()

    def test_half_precision_is_computed_in_float32(self) -> None:
        (z,) = random_maps(1, 7)
        loss = segmentation_loss(z.bfloat16())
        assert loss.dtype == torch.float32
        expected = slow_segmentation(z.bfloat16(), "inverse")
        assert loss.item() == pytest.approx(expected, abs=1e-5)


class TestPseudoLabels:
    """Cross-entropy with labels that come from elsewhere."""

    Z = pixels((LN3, 0.0), (LN3, 0.0), (LN3, 0.0), (0.0, LN9))

    @pytest.mark.parametrize(
        ("balance", "expected"),
        [
            # Labels 1 0 1 1; cross-entropies -ln ¼ = 1.3862944, -ln ¾ = 0.2876821, -ln ¼ and -ln 0.9 = 0.1053605.
            ("none", 0.7914079),
            # Weights ¼ for the 0 and ¾ for the others: (0.25 · 0.2876821 + 0.75 · 2.8779493) / 4
            ("frequency", 0.5575956),
            # Weights 4 / (1 · 2) = 2 and 4 / (3 · 2) = ⅔: (2 · 0.2876821 + ⅔ · 2.8779493) / 4
            ("inverse", 0.6234993),
        ],
    )
    def test_by_hand(self, balance: Balance, expected: float) -> None:
        labels = torch.tensor([[[1, 0, 1, 1]]])
        loss = pseudo_label_loss(self.Z, labels, balance)
        assert loss.item() == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("balance", BALANCES)
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_a_slow_loop(self, balance: Balance, seed: int) -> None:
        (z,) = random_maps(1, seed)
        source = torch.Generator().manual_seed(seed)
        # Label 3 is that of no pixel.
        labels = torch.randint(0, 3, (2, 3, 5), generator=source)
        expected = slow_pseudo_labels(z, labels.flatten().tolist(), balance)
        assert pseudo_label_loss(z, labels, balance).item() == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("balance", BALANCES)
    def test_its_own_argmax_is_the_segmentation_loss(self, balance: Balance) -> None:
        (z,) = random_maps(1, 8)
        loss = pseudo_label_loss(z, z.argmax(1), balance)
        assert loss.item() == pytest.approx(segmentation_loss(z, balance).item(), abs=1e-6)

    def test_without_balance_it_is_torchs_cross_entropy_with_its_gradient(self) -> None:
        z = random_maps(1, 9)[0].requires_grad_()
        labels = random_maps(1, 10)[0].argmax(1)
        losses = pseudo_label_loss(z, labels, "none"), cross_entropy(z, labels)
        assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)
        (one,), (two,) = (torch.autograd.grad(loss, z) for loss in losses)
        torch.testing.assert_close(one, two, atol=1e-6, rtol=0)

    def test_half_precision_is_computed_in_float32(self) -> None:
        z = random_maps(1, 11)[0].bfloat16()
        labels = random_maps(1, 12)[0].argmax(1)
        loss = pseudo_label_loss(z, labels)
        assert loss.dtype == torch.float32
        expected = slow_pseudo_labels(z, labels.flatten().tolist(), "inverse")
        assert loss.item() == pytest.approx(expected, abs=1e-5)


class TestRegions:
    def test_embeddings_by_hand(self) -> None:
        z = pixels((LN3, 0.0), (0.0, 0.0))  # shares (¾, ¼) and (½, ½)
        features = pixels((4.0, 0.0, 1.0), (2.0, 8.0, 1.0))
        # e[0] = ¾ · (4, 0, 1) + ½ · (2, 8, 1); e[1] = ¼ · (4, 0, 1) + ½ · (2, 8, 1)
        torch.testing.assert_close(
            region_embeddings(z, features), torch.tensor([[[4.0, 4.0, 1.25], [2.0, 4.0, 0.75]]])
        )

    def test_embeddings_equal_a_slow_loop(self) -> None:
        (z,) = random_maps(1, 0)
        (features,) = random_maps(1, 1, (2, 6, 3, 5))
        out = region_embeddings(z, features)
        assert out.shape == (2, 4, 6)
        np.testing.assert_allclose(out.numpy(), slow_regions(z, features), atol=1e-5)

    def test_embeddings_of_some_pixels_by_hand(self) -> None:
        z = pixels((0.0, 0.0), (LN3, 0.0), (0.0, LN9))
        features = pixels((4.0, 0.0), (2.0, 8.0), (100.0, 100.0))
        used = torch.tensor([[[True, True, False]]])
        # Region 0: ½ · (4, 0) + ¾ · (2, 8); region 1: ½ · (4, 0) + ¼ · (2, 8).
        torch.testing.assert_close(
            region_embeddings(z, features, used), torch.tensor([[[3.5, 6.0], [2.5, 2.0]]])
        )
        torch.testing.assert_close(
            region_embeddings(z, features, ~used), torch.tensor([[[10.0, 10.0], [90.0, 90.0]]])
        )

    def test_embeddings_of_some_pixels_are_those_of_these_alone(self) -> None:
        z, features = random_maps(1, 2)[0], random_maps(1, 3, (2, 6, 3, 5))[0]
        used = random_maps(1, 4, (2, 3, 5))[0] > 0
        out = region_embeddings(z, features, used)
        for b in range(2):
            alone = [maps[b : b + 1, :, used[b]].unsqueeze(-1) for maps in (z, features)]
            np.testing.assert_allclose(out[b].numpy(), slow_regions(*alone)[0], atol=1e-5)
        everywhere = torch.ones_like(used)
        assert torch.equal(
            region_embeddings(z, features, everywhere), region_embeddings(z, features)
        )
        assert (region_embeddings(z, features, ~everywhere) == 0).all()

    def test_gradient_of_embeddings_is_zero_outside_the_pixels_used(self) -> None:
        z, features = random_maps(1, 2)[0], random_maps(1, 3, (2, 6, 3, 5))[0]
        used = random_maps(1, 4, (2, 3, 5))[0] > 0
        inputs = z.requires_grad_(), features.requires_grad_()
        embeddings = region_embeddings(*inputs, used)
        for gradient in torch.autograd.grad(embeddings.square().sum(), inputs):
            reached = gradient.abs().amax(1)
            assert (reached[~used] == 0).all() and (reached[used] > 0).all()

    def test_gradient_of_embeddings_reaches_masks_and_features(self) -> None:
        (z,) = random_maps(1, 2)
        (features,) = random_maps(1, 3, (2, 6, 3, 5))
        inputs = z.requires_grad_(), features.requires_grad_()
        gradients = torch.autograd.grad(region_embeddings(*inputs).square().sum(), inputs)
        assert all(gradient.abs().max() > 1e-3 for gradient in gradients)

    def test_loss_by_hand(self) -> None:
        eye = torch.eye(2)[None]
        swapped = eye.flip(1)
        # Scores (1, 0) per row over temperature 1: ln(1 + e⁻¹).
        loss = region_loss(eye, eye, eye, eye, temperature=1)
        assert loss.item() == pytest.approx(0.3132617, abs=1e-6)
        # Over 0.1: ln(1 + e⁻¹⁰).
        assert region_loss(eye, eye, eye, eye).item() == pytest.approx(4.53989e-5, abs=1e-7)
        # View 2 swapped: both directions look for their row in the other's place, ln(1 + e).
        loss = region_loss(eye, eye, swapped, swapped, temperature=1)
        assert loss.item() == pytest.approx(1.3132617, abs=1e-6)
        # Only q₁ meets a swapped u₂; q₂ meets u₁ in place: the mean of the two.
        loss = region_loss(eye, eye, eye, swapped, temperature=1)
        assert loss.item() == pytest.approx(0.8132617, abs=1e-6)

    @pytest.mark.parametrize("seed", range(3))
    def test_loss_equals_a_slow_loop(self, seed: int) -> None:
        rows = random_maps(4, seed, (2, 4, 6))
        loss = region_loss(*rows)
        assert loss.item() == pytest.approx(slow_region_loss(*rows), abs=1e-5)

    def test_loss_ignores_lengths(self) -> None:
        rows = random_maps(4, 3, (2, 4, 6))
        lengths = [row.new_tensor([0.1, 1.0, 5.0, 30.0]).view(1, 4, 1) for row in rows]
        scaled = region_loss(*(row * length for row, length in zip(rows, lengths, strict=True)))
        assert scaled.item() == pytest.approx(region_loss(*rows).item(), abs=1e-5)

    def test_stop_gradient(self) -> None:
        rows = [row.requires_grad_() for row in random_maps(4, 4, (2, 4, 6))]
        stopped, free = (region_loss(*rows, stop_gradient=stop) for stop in (True, False))
        assert stopped.item() == free.item()
        q_1, u_1, q_2, u_2 = torch.autograd.grad(stopped, rows, allow_unused=True)
        assert u_1 is None and u_2 is None
        assert q_1.abs().max() > 1e-3 and q_2.abs().max() > 1e-3
        free_q_1, free_u_1, free_q_2, free_u_2 = torch.autograd.grad(free, rows)
        assert torch.equal(q_1, free_q_1) and torch.equal(q_2, free_q_2)
        assert free_u_1.abs().max() > 1e-3 and free_u_2.abs().max() > 1e-3

    def test_stop_gradient_is_the_default(self) -> None:
        rows = [row.requires_grad_() for row in random_maps(4, 5, (1, 3, 4))]
        _, u_1, _, u_2 = torch.autograd.grad(region_loss(*rows), rows, allow_unused=True)
        assert u_1 is None and u_2 is None

    def test_half_precision_is_computed_in_float32(self) -> None:
        rows = [row.bfloat16() for row in random_maps(4, 6, (2, 4, 6))]
        loss = region_loss(*rows)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(slow_region_loss(*rows), abs=1e-5)
        assert region_embeddings(*(row[..., None] for row in rows[:2])).dtype == torch.float32
