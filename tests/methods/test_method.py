"""SimSiam's loss of whole images, worked out by hand and by a slow loop, and how far directions spread."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import ImageStore
from densesiam_seg.methods.interface import Objective, Stateless, image_loss, spread
from densesiam_seg.network.model import Architecture, DenseSiam, build_network

C = 8
pytestmark = pytest.mark.usefixtures("slim_module")


class Swap(nn.Module):
    """Both values of each row in the other order: a predictor whose output is known."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows.flip(1)


def network_of(predictor: nn.Module) -> DenseSiam:
    """The projection of an image is the mean of its features itself."""
    network = build_network(Architecture(channels=C, clusters=2, image_head=True), seed=0)
    network.image_projector = nn.Sequential(nn.Identity())
    network.image_predictor = nn.Sequential(predictor)
    return network


def maps_of(*rows: tuple[float, ...]) -> Tensor:
    """Features (2B, C, 1, 1), view 1 first."""
    return torch.tensor(rows)[..., None, None]


class TestImageLoss:
    ROWS = ((3.0, 4.0), (1.0, 0.0), (4.0, 3.0), (0.0, 2.0))

    def test_by_hand(self) -> None:
        """Two images, z₁ = (3, 4) and (1, 0), z₂ = (4, 3) and (0, 2)."""
        # A predictor that changes nothing: cosines 24/25 and 0 both ways.
        loss, _, _ = image_loss(network_of(nn.Identity()), maps_of(*self.ROWS))
        assert loss.item() == pytest.approx(-0.48, abs=1e-6)
        # p₁ = (4, 3) and (0, 1) lie on z₂, and p₂ = (3, 4) and (2, 0) on z₁.
        loss, _, _ = image_loss(network_of(Swap()), maps_of(*self.ROWS))
        assert loss.item() == pytest.approx(-1, abs=1e-6)

    def test_features_are_pooled(self) -> None:
        """The mean over all pixels is projected, not each pixel."""
        source = torch.Generator().manual_seed(0)
        noise = torch.randn(4, 2, 3, 5, generator=source)
        features = maps_of(*self.ROWS) + noise - noise.mean((2, 3), keepdim=True)
        loss, _, _ = image_loss(network_of(nn.Identity()), features)
        assert loss.item() == pytest.approx(-0.48, abs=1e-6)

    def test_agreement_is_the_share_of_images_found_again(self) -> None:
        """View 1 of images 0 and 2 is most like view 2 of the same image; those of 1 and 3 are like 3 and 0."""
        x, y, z = (1.0, 0.0, 0.0), (0.0, 5.0, 0.0), (0.0, 0.0, 0.1)
        views_1, views_2 = (x, y, z, x), (x, (0.0, 0.0, -9.0), z, y)
        network = network_of(nn.Identity())
        _, agreement, _ = image_loss(network, maps_of(*views_1, *views_2))
        assert agreement.item() == 0.5
        _, agreement, _ = image_loss(network, maps_of(x, y, z, x, y, z))
        assert agreement.item() == 1
        _, agreement, _ = image_loss(network, maps_of(x, y, z, y, z, x))
        assert agreement.item() == 0

    def test_agreement_is_exact_under_autocast(self) -> None:
        """Directions a hundredth apart, which three digits could not tell from each other."""
        angles = torch.arange(12) * 0.01
        rows = torch.stack((angles.cos(), angles.sin()), 1)
        with torch.autocast("cpu", torch.bfloat16):
            _, agreement, _ = image_loss(
                network_of(nn.Identity()), rows.repeat(2, 1)[..., None, None]
            )
        assert agreement.item() == 1

    def test_spread_is_that_of_both_views(self) -> None:
        _, _, dispersion = image_loss(network_of(nn.Identity()), maps_of(*self.ROWS))
        assert dispersion.item() == pytest.approx(spread(torch.tensor(self.ROWS)).item(), abs=1e-6)

    def test_equals_a_slow_loop_with_the_heads(self) -> None:
        """In training state, against float64; the projections of both views share batch statistics."""
        network = build_network(Architecture(channels=C, clusters=2, image_head=True), seed=1)
        features = torch.randn(10, C, 4, 4, generator=torch.Generator().manual_seed(1))
        exact = copy.deepcopy(network).double()
        loss, agreement, dispersion = image_loss(network, features)

        assert exact.image_projector is not None and exact.image_predictor is not None
        with torch.no_grad():
            z = exact.image_projector(features.double().mean((2, 3)))
            p = exact.image_predictor(z)

        def cosine(a: Tensor, b: Tensor) -> float:
            return float(a @ b / (a @ a).sqrt() / (b @ b).sqrt())

        terms = [-0.5 * (cosine(p[i], z[5 + i]) + cosine(p[5 + i], z[i])) for i in range(5)]
        assert loss.item() == pytest.approx(sum(terms) / 5, abs=1e-5)
        found = [
            all(cosine(z[i], z[5 + i]) >= cosine(z[i], z[5 + j]) for j in range(5))
            for i in range(5)
        ]
        assert agreement.item() == pytest.approx(sum(found) / 5)
        directions = p / (p * p).sum(1, keepdim=True).sqrt()
        deviation = ((directions - directions.mean(0)) ** 2).mean(0).sqrt().mean()
        assert dispersion.item() == pytest.approx(deviation.item() * math.sqrt(C), abs=1e-5)

    def test_only_the_loss_has_a_gradient(self) -> None:
        network = build_network(Architecture(channels=C, clusters=2, image_head=True), seed=1)
        features = torch.randn(4, C, 2, 2, generator=torch.Generator().manual_seed(2))
        loss, agreement, dispersion = image_loss(network, features)
        assert loss.requires_grad and loss.dtype == torch.float32
        assert not agreement.requires_grad and not dispersion.requires_grad

    def test_network_without_the_head_is_a_mistake(self) -> None:
        network = build_network(Architecture(channels=C, clusters=2), seed=0)
        with pytest.raises(AssertionError):
            image_loss(network, torch.zeros(4, C, 1, 1))


class TestSpread:
    def test_by_hand(self) -> None:
        # Each column is 0 and 1: deviation ½, times √2.
        assert spread(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).item() == pytest.approx(0.7071068)
        # Columns 1 -1 0 0 and 0 0 1 -1: deviation √½, times √2.
        axes = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        assert spread(axes).item() == pytest.approx(1)

    @pytest.mark.parametrize("width", [2, 16, 128])
    def test_directions_all_around_have_one(self, width: int) -> None:
        rows = torch.randn(4000, width, generator=torch.Generator().manual_seed(width))
        assert spread(rows).item() == pytest.approx(1, abs=0.02)

    @pytest.mark.parametrize("width", [2, 16, 128])
    def test_a_single_direction_has_zero(self, width: int) -> None:
        row = torch.randn(1, width, generator=torch.Generator().manual_seed(width))
        assert spread(row.expand(50, width)).item() == pytest.approx(0, abs=1e-6)
        lengths = torch.linspace(0.1, 30, 50).unsqueeze(1)
        assert spread(lengths * row).item() == pytest.approx(0, abs=1e-4)

    def test_falls_with_what_rows_have_in_common(self) -> None:
        rows = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
        values = [spread(rows + common).item() for common in (0, 1, 3, 30)]
        assert values == sorted(values, reverse=True)
        assert values[-1] < 0.05

    def test_lengths_do_not_count(self) -> None:
        rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
        lengths = torch.linspace(0.1, 30, 50).unsqueeze(1)
        assert spread(lengths * rows).item() == pytest.approx(spread(rows).item(), abs=1e-6)

    def test_has_no_gradient_and_takes_halves(self) -> None:
        rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
        assert not spread(rows.requires_grad_()).requires_grad
        assert spread(rows.bfloat16()).dtype == torch.float32
        assert spread(torch.zeros(3, 4)).item() == 0


class TestStateless:
    def test_needs_no_preparation_and_keeps_nothing(self, image_folder: Path) -> None:
        store = ImageStore(scan([image_folder]), 32, workers=0, max_pixels=10**6)
        method = Stateless()
        assert list(method.prepare(store, 3)) == []
        assert method.state() == {}
        method.restore({})


def test_objective_has_nothing_disjoint_and_no_spread_unless_told() -> None:
    result = Objective(torch.zeros(()), {}, torch.zeros(()), torch.zeros(0, dtype=torch.int64))
    assert (result.disjoint, result.spread) == (0, None)
