"""The four losses against numbers worked out by hand, slow loops in float64 and their gradients' formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from densesiam_seg.losses import (
    Balance,
    Similarity,
    dissimilarity,
    pixel_loss,
    pixel_weights,
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


def slow_weights(labels: list[int], balance: Balance) -> list[float]:
    counts = {label: labels.count(label) for label in labels}
    if balance == "none":
        return [1.0 for _ in labels]
    if balance == "frequency":
        return [counts[label] / len(labels) for label in labels]
    return [len(labels) / (counts[label] * len(counts)) for label in labels]


def slow_segmentation(z: Tensor, balance: Balance) -> float:
    columns = columns_of(z)
    labels = [int(column.argmax()) for column in columns]
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
