"""The losses against numbers worked out by hand, slow loops in float64 and their gradients' formulas."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from densesiam_seg.methods import losses
from densesiam_seg.methods.losses import (
    Balance,
    Similarity,
    dissimilarity,
    image_loss,
    label_counts,
    linked_loss,
    pixel_loss,
    pixel_weights,
    prior_loss,
    pseudo_label_loss,
    region_embeddings,
    region_loss,
    spread,
)
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import DenseSiam, build_network

Array = NDArray[np.float64]

FORMS: list[Similarity] = ["cross-entropy", "cosine"]
BALANCES: list[Balance] = ["inverse", "frequency", "none"]
LN3, LN9 = math.log(3), math.log(9)


def pixels(*columns: tuple[float, ...]) -> Tensor:
    """(1, K, 1, W): one tuple of K values per pixel."""
    return torch.tensor(columns).T[None, :, None, :].contiguous()


def rows(*places: tuple[float, ...]) -> Tensor:
    """(1, N, K): one tuple of K values per place."""
    return torch.tensor(places)[None]


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


def slow_linked(p: Tensor, z: Tensor, weight: Tensor, form: Similarity) -> float:
    """The weighted mean over each image's links, then the mean over the images that have one."""

    def apart(prediction: Tensor, target: Tensor) -> float:
        one, two = (row.detach().view(1, -1, 1, 1) for row in (prediction, target))
        return slow_dissimilarity(one, two, form)

    (p_1, p_2), (z_1, z_2) = p.chunk(2), z.chunk(2)
    means = []
    for b, weights in enumerate(weight.tolist()):
        total, count = 0.0, 0.0
        for n, row in enumerate(weights):
            for m, w in enumerate(row):
                total += w * 0.5 * (apart(p_1[b, n], z_2[b, m]) + apart(p_2[b, m], z_1[b, n]))
                count += w
        if count:
            means.append(total / count)
    return sum(means) / len(means)


class TestPixelLoss:
    def test_one_pixel_by_hand(self) -> None:
        even, leaning = pixels((0.0, 0.0)), pixels((LN3, 0.0))
        # softmax(leaning) = (¾, ¼), log softmax(even) = (-ln 2, -ln 2): D = ln 2.
        assert dissimilarity(even, leaning).item() == pytest.approx(0.6931472, abs=1e-6)
        # The other way round: D = -½ ln ¾ - ½ ln ¼ = ½ · (0.2876821 + 1.3862944).
        assert dissimilarity(leaning, even).item() == pytest.approx(0.8369882, abs=1e-6)
        # With itself, the entropy: -¾ ln ¾ - ¼ ln ¼.
        assert dissimilarity(leaning, leaning).item() == pytest.approx(0.5623351, abs=1e-6)
        # Two views: the mean of the first two.
        both = torch.cat((even, leaning))
        assert pixel_loss(both, both).item() == pytest.approx(0.7650677, abs=1e-6)

    def test_cosine_by_hand(self) -> None:
        p = pixels((3.0, 4.0), (1.0, 0.0))
        z = pixels((4.0, 3.0), (0.0, 2.0))
        # cos = 24/25 and 0: D = -0.48.
        assert dissimilarity(p, z, "cosine").item() == pytest.approx(-0.48, abs=1e-6)
        assert dissimilarity(p, 7 * p, "cosine").item() == pytest.approx(-1, abs=1e-6)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_equals_a_slow_loop(self, form: Similarity, dtype: torch.dtype) -> None:
        """In float32 whatever the precision of the maps."""
        p, z = (maps.to(dtype) for maps in random_maps(2, 3))
        (p_1, p_2), (z_1, z_2) = p.chunk(2), z.chunk(2)
        expected = 0.5 * slow_dissimilarity(p_1, z_2, form)
        expected += 0.5 * slow_dissimilarity(p_2, z_1, form)
        loss = pixel_loss(p, z, form)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("form", FORMS)
    def test_gradient_reaches_predictions_only(self, form: Similarity) -> None:
        p, z = (maps.requires_grad_() for maps in random_maps(2, 4))
        to_p, to_z = torch.autograd.grad(pixel_loss(p, z, form), (p, z), allow_unused=True)
        assert to_z is None
        assert (to_p.abs().amax((1, 2, 3)) > 1e-4).all()

    def test_gradient_of_the_cross_entropy_form(self) -> None:
        """(softmax(p) - softmax(z)) / pixels."""
        p, z = random_maps(2, 1)
        (gradient,) = torch.autograd.grad(dissimilarity(p.requires_grad_(), z), p)
        expected = [
            (shares(a) - shares(b)) / 30 for a, b in zip(columns_of(p), columns_of(z), strict=True)
        ]
        np.testing.assert_allclose(columns_of(gradient), expected, atol=1e-6)

    def test_weights_by_hand(self) -> None:
        # ln 27 = 3.2958369, ln 128 = 4.8520303, sum 8.1478672.
        assert pixel_weights(27, 128) == pytest.approx((0.5954970, 0.4045030), abs=1e-6)
        assert pixel_weights(5, 5) == (0.5, 0.5)
        # log 4 = 2 log 2
        assert pixel_weights(2, 4) == pytest.approx((2 / 3, 1 / 3))


def random_links(seed: int, batch: int = 3, places: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """p and z of places with six values, and weights of which some are 0."""
    source = torch.Generator().manual_seed(seed)
    p, z = (2 * torch.randn(2 * batch, places, 6, generator=source) for _ in range(2))
    weight = torch.rand(batch, places, places, generator=source)
    return p, z, torch.where(weight < 0.5, 0.0, 2 * weight)


@pytest.mark.parametrize("form", FORMS)
class TestLinkedLoss:
    """PixSim of places that are linked one by one."""

    def test_each_place_with_itself_is_the_pixel_loss(self, form: Similarity) -> None:
        p, z = random_maps(2, 5)
        ends = [maps.flatten(2).mT for maps in (p, z)]
        weight = torch.eye(15)[None]
        expected = pytest.approx(pixel_loss(p, z, form).item(), abs=1e-5)
        assert linked_loss(ends[0], ends[1], weight, form).item() == expected
        # Only the weights' ratios count.
        assert linked_loss(ends[0], ends[1], 3 * weight, form).item() == expected

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("alone", [False, True])
    def test_equals_a_slow_loop(self, form: Similarity, dtype: torch.dtype, alone: bool) -> None:
        """With or without an image that has no link; autocast changes nothing."""
        p, z, weight = random_links(2)
        p, z = p.to(dtype), z.to(dtype)
        weight[1] *= not alone
        with torch.autocast("cpu", torch.bfloat16):
            loss = linked_loss(p, z, weight, form)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(slow_linked(p, z, weight, form), abs=1e-5)

    @pytest.mark.parametrize("places", [5, 0])
    def test_no_links_make_zero_and_a_gradient_of_zero(self, form: Similarity, places: int) -> None:
        p, z, weight = random_links(4, places=places)
        loss = linked_loss(p.requires_grad_(), z, 0 * weight, form)
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, p)
        assert not gradient.any()

    def test_gradient_reaches_linked_predictions_only(self, form: Similarity) -> None:
        p, z, weight = random_links(5)
        weight[1], weight[:, 2], weight[:, :, 3] = 0, 0, 0
        loss = linked_loss(p.requires_grad_(), z.requires_grad_(), weight, form)
        to_p, to_z = torch.autograd.grad(loss, (p, z), allow_unused=True)
        assert to_z is None
        linked = torch.cat((weight.sum(2) > 0, weight.sum(1) > 0))
        assert (to_p[~linked] == 0).all()
        assert (to_p[linked].abs().amax(-1) > 1e-5).all()


def test_links_by_hand() -> None:
    """Two places a view, of which both of view 1 are linked with the first of view 2, by weights 1 and 3."""
    even, leaning = (0.0, 0.0), (LN3, 0.0)
    p = torch.cat((rows(even, leaning), rows(leaning, even)))
    z = torch.cat((rows(leaning, even), rows(even, even)))
    # First link: ½ D(even, even) + ½ D(leaning, leaning) = ½ · (0.6931472 + 0.5623351) = 0.6277412.
    # Second: ½ D(leaning, even) twice = 0.8369882. Mean: (0.6277412 + 3 · 0.8369882) / 4.
    loss = linked_loss(p, z, torch.tensor([[[1.0, 0.0], [3.0, 0.0]]]))
    assert loss.item() == pytest.approx(0.7846764, abs=1e-6)


class Swap(nn.Module):
    """Both values of each row in the other order: a predictor whose output is known."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows.flip(1)


def network_of(predictor: nn.Module) -> Any:
    """The projection of an image is the mean of its features itself."""
    return SimpleNamespace(image_projector=nn.Identity(), image_predictor=predictor)


def maps_of(*values: tuple[float, ...]) -> Tensor:
    """Features (2B, C, 1, 1), view 1 first."""
    return torch.tensor(values)[..., None, None]


@pytest.fixture
def network(slim: None) -> DenseSiam:
    return build_network(Architecture(channels=8, clusters=2, image_head=True), seed=1).train()


class TestImageLoss:
    ROWS = ((3.0, 4.0), (1.0, 0.0), (4.0, 3.0), (0.0, 2.0))

    def test_by_hand(self) -> None:
        """Two images, z₁ = (3, 4) and (1, 0), z₂ = (4, 3) and (0, 2); the mean over all pixels is projected."""
        noise = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(0))
        features = maps_of(*self.ROWS) + noise - noise.mean((2, 3), keepdim=True)
        # A predictor that changes nothing: cosines 24/25 and 0 both ways.
        loss, _, dispersion = image_loss(network_of(nn.Identity()), features)
        assert loss.item() == pytest.approx(-0.48, abs=1e-6)
        assert dispersion.item() == pytest.approx(spread(torch.tensor(self.ROWS)).item(), abs=1e-6)
        # p₁ = (4, 3) and (0, 1) lie on z₂, and p₂ = (3, 4) and (2, 0) on z₁.
        loss, _, _ = image_loss(network_of(Swap()), features)
        assert loss.item() == pytest.approx(-1, abs=1e-6)

    def test_agreement_is_exact_under_autocast(self) -> None:
        """Directions a hundredth apart, which three digits could not tell from each other."""
        angles = torch.arange(12) * 0.01
        directions = torch.stack((angles.cos(), angles.sin()), 1).repeat(2, 1)[..., None, None]
        with torch.autocast("cpu", torch.bfloat16):
            _, agreement, _ = image_loss(network_of(nn.Identity()), directions)
        assert agreement.item() == 1

    def test_equals_a_slow_loop_with_the_heads(self, network: DenseSiam) -> None:
        """In training state, against float64; the projections of both views share batch statistics."""
        features = torch.randn(10, 8, 4, 4, generator=torch.Generator().manual_seed(1))
        exact = copy.deepcopy(network).double()
        loss, agreement, dispersion = image_loss(network, features)
        assert loss.requires_grad and loss.dtype == torch.float32
        assert not agreement.requires_grad and not dispersion.requires_grad

        assert exact.image_projector is not None and exact.image_predictor is not None
        with torch.no_grad():
            z = exact.image_projector(features.double().mean((2, 3)))
            p = exact.image_predictor(z)

        def cosine(a: Tensor, b: Tensor) -> float:
            return float(a @ b / (a @ a).sqrt() / (b @ b).sqrt())

        terms = [-0.5 * (cosine(p[i], z[5 + i]) + cosine(p[5 + i], z[i])) for i in range(5)]
        assert loss.item() == pytest.approx(sum(terms) / 5, abs=1e-5)
        found = [max(range(5), key=lambda j: cosine(z[i], z[5 + j])) == i for i in range(5)]
        assert agreement.item() == pytest.approx(sum(found) / 5)
        directions = p / (p * p).sum(1, keepdim=True).sqrt()
        deviation = ((directions - directions.mean(0)) ** 2).mean(0).sqrt().mean()
        assert dispersion.item() == pytest.approx(deviation.item() * math.sqrt(8), abs=1e-5)


def test_spread_by_hand() -> None:
    # Each column is 0 and 1: deviation ½, times √2.
    assert spread(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).item() == pytest.approx(0.7071068)
    # Columns 1 -1 0 0 and 0 0 1 -1, of whatever length: deviation √½, times √2.
    axes = torch.tensor([[1.0, 0.0], [-7.0, 0.0], [0.0, 1.0], [0.0, -0.1]])
    assert spread(axes).item() == pytest.approx(1)
    assert spread(torch.tensor([[3.0, 4.0], [0.3, 0.4]])).item() == pytest.approx(0, abs=1e-6)
    assert spread(torch.zeros(3, 4)).item() == 0


class TestPseudoLabels:
    Z = pixels((LN3, 0.0), (LN3, 0.0), (LN3, 0.0), (0.0, LN9))

    @pytest.mark.parametrize(
        ("labels", "balance", "expected"),
        [
            # Its own argmax 0 0 0 1; cross-entropies -ln ¾ = 0.2876821 three times and -ln 0.9 = 0.1053605.
            (None, "none", 0.2421017),
            # Weights ¾ ¾ ¾ ¼: (0.75 · 0.8630462 + 0.25 · 0.1053605) / 4
            (None, "frequency", 0.1684062),
            # Weights 4 / (3 · 2) = ⅔ three times and 4 / (1 · 2) = 2: (0.5753641 + 0.2107210) / 4
            (None, "inverse", 0.1965213),
            # Cross-entropies -ln ¼ = 1.3862944, -ln ¾ = 0.2876821, -ln ¼ and -ln 0.9 = 0.1053605.
            ([1, 0, 1, 1], "none", 0.7914079),
            # Weights ¼ for the 0 and ¾ for the others: (0.25 · 0.2876821 + 0.75 · 2.8779493) / 4
            ([1, 0, 1, 1], "frequency", 0.5575956),
            # Weights 4 / (1 · 2) = 2 and 4 / (3 · 2) = ⅔: (2 · 0.2876821 + ⅔ · 2.8779493) / 4
            ([1, 0, 1, 1], "inverse", 0.6234993),
            # One label for all, whatever the balance: the plain mean.
            ([0, 0, 0, 0], "inverse", 0.7914079),
        ],
    )
    def test_by_hand(self, labels: list[int] | None, balance: Balance, expected: float) -> None:
        given = None if labels is None else torch.tensor([[labels]])
        loss = pseudo_label_loss(self.Z, given, balance)
        assert loss.item() == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_without_balance_it_is_torchs_cross_entropy(self, dtype: torch.dtype) -> None:
        z, labels = random_maps(1, 9)[0].to(dtype), random_maps(1, 10)[0].argmax(1)
        loss, expected = pseudo_label_loss(z, labels, "none"), cross_entropy(z.float(), labels)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6)

    def test_labels_are_counted_on_a_gpu_without_waiting(self) -> None:
        """The other way of counting, on a device that is no processor."""
        labels = torch.zeros(2, 3, dtype=torch.int64, device="meta")
        assert label_counts(labels, 7).shape == (7,)
        assert label_counts(torch.tensor([[0, 2], [2, 2]]), 4).tolist() == [1, 0, 3, 0]


def test_prior_loss_by_hand() -> None:
    """Two clusters with logits (0, ln 3) have shares (¼, ¾)."""
    z, given = pixels((0.0, LN3)), pixels((0.5, 0.5))
    expected = -0.5 * math.log(0.25) - 0.5 * math.log(0.75)
    assert prior_loss(z, given).item() == pytest.approx(expected)


class TestRegionEmbeddings:
    def test_by_hand(self) -> None:
        z = pixels((0.0, 0.0), (LN3, 0.0), (0.0, LN9))  # shares (½, ½), (¾, ¼) and (⅒, ⁹⁄₁₀)
        features = pixels((4.0, 0.0), (2.0, 8.0), (100.0, 100.0))
        used = torch.tensor([[[True, True, False]]])
        # Region 0: ½ · (4, 0) + ¾ · (2, 8); region 1: ½ · (4, 0) + ¼ · (2, 8).
        some, others = torch.tensor([[[3.5, 6.0], [2.5, 2.0]]]), torch.tensor([[[10.0], [90.0]]])
        torch.testing.assert_close(region_embeddings(z, features, used), some)
        torch.testing.assert_close(region_embeddings(z, features), some + others)

    def test_gradient_reaches_shares_and_features_of_the_pixels_used(self) -> None:
        z, features = random_maps(1, 2)[0], random_maps(1, 3, (2, 6, 3, 5))[0]
        used = random_maps(1, 4, (2, 3, 5))[0] > 0
        inputs = z.requires_grad_(), features.requires_grad_()
        embeddings = region_embeddings(*inputs, used)
        for gradient in torch.autograd.grad(embeddings.square().sum(), inputs):
            reached = gradient.abs().amax(1)
            assert (reached[~used] == 0).all() and (reached[used] > 0).all()


def regions(q: Tensor, u: Tensor, stop_gradient: bool = True) -> Tensor:
    """The loss of heads that give these predictions and projections."""
    heads: Any = SimpleNamespace(region_outputs=lambda embeddings: (u, q))
    return region_loss(heads, torch.empty(0), stop_gradient)


class TestRegionLoss:
    def test_by_hand(self, monkeypatch: pytest.MonkeyPatch) -> None:
        eye = torch.eye(2)[None]
        same, turned = torch.cat((eye, eye)), torch.cat((eye, eye.flip(1)))
        # Scores (10, 0) per row: ln(1 + e⁻¹⁰).
        assert regions(same, same).item() == pytest.approx(4.53989e-5, abs=1e-7)
        monkeypatch.setattr(losses, "REGION_TEMPERATURE", 1.0)
        # Scores (1, 0): ln(1 + e⁻¹).
        assert regions(same, same).item() == pytest.approx(0.3132617, abs=1e-6)
        # View 2 swapped: both directions look for their row in the other's place, ln(1 + e).
        assert regions(turned, turned).item() == pytest.approx(1.3132617, abs=1e-6)
        # Only q₁ meets a swapped u₂; q₂ meets u₁ in place: the mean of the two.
        assert regions(same, turned).item() == pytest.approx(0.8132617, abs=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_is_torchs_cross_entropy_of_cosines(self, dtype: torch.dtype) -> None:
        """In float32 whatever the precision."""
        q, u = (maps.to(dtype) for maps in random_maps(2, 1, (4, 4, 6)))
        loss = regions(q, u)
        assert loss.dtype == torch.float32
        others = u.roll(2, 0).float()
        cosines = cosine_similarity(q.float().unsqueeze(2), others.unsqueeze(1), dim=-1)
        expected = cross_entropy(10 * cosines.flatten(0, 1), torch.arange(4).repeat(4))
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)

    def test_stop_gradient(self) -> None:
        q, u = (maps.requires_grad_() for maps in random_maps(2, 4, (4, 4, 6)))
        stopped, free = (regions(q, u, stop) for stop in (True, False))
        assert stopped.item() == free.item()
        to_q, to_u = torch.autograd.grad(stopped, (q, u), allow_unused=True)
        free_q, free_u = torch.autograd.grad(free, (q, u))
        assert to_u is None and torch.equal(to_q, free_q)
        assert to_q.abs().max() > 1e-3 and free_u.abs().max() > 1e-3


def without_stop(p: Tensor, z: Tensor, form: str) -> Tensor:
    """SimSiam's loss as it would be if gradients passed its targets."""
    assert form == "cosine"
    (p_1, p_2), (z_1, z_2) = p.chunk(2), z.chunk(2)
    forth, back = cosine_similarity(p_1, z_2), cosine_similarity(p_2, z_1)
    return -0.5 * (forth.mean() + back.mean())


def spread_after_training(seed: int) -> float:
    """Spread of the predictions after 200 steps of SimSiam on 64 images of 16 numbers, with a linear encoder."""
    draw = torch.Generator().manual_seed(seed)
    network = build_network(Architecture(channels=16, clusters=2, image_head=True), seed).train()
    assert network.image_projector is not None and network.image_predictor is not None
    # In training the last norm keeps outputs apart by itself; at rest nothing but the stop-gradient does.
    network.image_projector[-1].eval()
    images = torch.randn(64, 16, generator=draw)
    encoder = (torch.randn(16, 16, generator=draw) / 4).requires_grad_()
    heads = [*network.image_projector.parameters(), *network.image_predictor.parameters()]
    optimizer = torch.optim.SGD([encoder, *heads], lr=0.1, momentum=0.9)
    for _ in range(200):
        views = images + torch.randn(2, 64, 16, generator=draw)
        loss, _, found = image_loss(network, (views.flatten(0, 1) @ encoder)[..., None, None])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return float(found)


@pytest.mark.usefixtures("slim_module")
@pytest.mark.parametrize("seed", range(2))
def test_the_stop_gradient_keeps_predictions_apart(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SimSiam's figure 2."""
    assert spread_after_training(seed) > 0.5
    monkeypatch.setattr(losses, "pixel_loss", without_stop)
    assert spread_after_training(seed) < 0.1
