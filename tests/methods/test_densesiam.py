"""The weighted sum against the same sum worked out with torch's own losses from the network's parts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from networks import batches_seen, gradients, objective_of, require_alike
from torch import Tensor, nn
from torch.nn import functional as F

from densesiam_seg.config import TrainConfig, with_settings
from densesiam_seg.errors import UsageError
from densesiam_seg.methods.densesiam import DenseSiamMethod, objective
from densesiam_seg.methods.method import Objective
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import DenseSiam, build_network
from densesiam_seg.presets import METHODS
from densesiam_seg.views.pair import ViewPair
from densesiam_seg.views.pair import view_pair as drawn_views
from densesiam_seg.views.parameters import Geometry

K, A, C = 3, 5, 8
CONFIG = TrainConfig(clusters=K, over_clusters=A, channels=C)
ODD = replace(
    CONFIG,
    image_weight=0.6,
    pixel_weight=0.7,
    over_cluster_weight=1.9,
    segmentation_weight=0.3,
    region_weight=0.45,
)
ARCHITECTURE = Architecture(channels=C, clusters=K, over_clusters=A, image_head=True)
REGIONS_ALONE: dict[str, Any] = {
    "pixel_weight": 0.0,
    "over_cluster_weight": 0.0,
    "segmentation_weight": 0.0,
    "region_start": 0.0,
}
HEADS = {
    "image": {"image_projector", "image_predictor"},
    "pixel": {"predictor"},
    "over_cluster": {"over_projector", "over_predictor"},
    "segmentation": set(),
    "region": {"region_projector", "region_predictor"},
}
IMAGES = torch.randint(
    0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
INDICES = (11, 3)


def view_pair() -> ViewPair:
    """Two 32x32 views of two images; whole, so that features need no warp, but the second is flipped."""
    source = torch.Generator().manual_seed(0)
    one, two = (torch.randn(2, 3, 32, 32, generator=source) for _ in range(2))
    return ViewPair(one, two, Geometry(*torch.tensor([[0.0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]).T))


def found(
    network: DenseSiam,
    config: TrainConfig,
    views: ViewPair | None = None,
    *,
    regions: bool = True,
) -> Objective:
    features = network.paired_features(views or view_pair())
    return objective(network, features, config, regions=regions)


def features_of(network: DenseSiam, views: ViewPair) -> list[Tensor]:
    """Of two separate passes in eval mode."""
    second = network.encoder(views.image_2)
    return [network.encoder(views.image_1), torch.stack((second[0], second[1].flip(-1)))]


@pytest.fixture(scope="module")
def network() -> DenseSiam:
    """In eval mode, with running statistics that make its outputs vary."""
    built = build_network(ARCHITECTURE, seed=0).train()
    for module in built.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # running statistics become those of the one batch seen
    with torch.no_grad():
        found(built, ODD)
    built.eval().requires_grad_(True)
    return built


def soft_cross_entropy(p: Tensor, z: Tensor) -> Tensor:
    return F.cross_entropy(p, z.detach().softmax(1))


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    return -(F.normalize(p, dim=1) * F.normalize(z.detach(), dim=1)).sum(1).mean()


def balanced_cross_entropy(z: Tensor, balance: str) -> Tensor:
    labels = z.argmax(1)
    terms = F.cross_entropy(z, labels, reduction="none").flatten()
    counts = [int((labels == k).sum()) for k in range(K)]
    in_use = sum(count > 0 for count in counts)
    n = labels.numel()
    total = torch.zeros(())
    for label, term in zip(labels.flatten().tolist(), terms, strict=True):
        weight = {
            "none": 1.0,
            "frequency": counts[label] / n,
            "inverse": n / (counts[label] * in_use),
        }[balance]
        total = total + weight * term
    return total / n


def region_similarity(network: DenseSiam, f: list[Tensor], z: list[Tensor], stop: bool) -> Tensor:
    u, q = [], []
    for features, logits in zip(f, z, strict=True):
        masks = logits.softmax(1)
        embeddings = torch.einsum("bnhw,bchw->bnc", masks, features)
        rows = network.region_projector(embeddings.reshape(-1, C))
        u.append(rows.reshape(2, K, C))
        q.append(network.region_predictor(rows).reshape(2, K, C))
    terms = []
    for predictions, projections in ((q[0], u[1]), (q[1], u[0])):
        for image in range(2):
            target = projections[image].detach() if stop else projections[image]
            scores = F.normalize(predictions[image], dim=1) @ F.normalize(target, dim=1).T / 0.1
            terms.append(0.5 * F.cross_entropy(scores, torch.arange(K)))
    return torch.stack(terms).sum() / 2


def by_hand(
    network: DenseSiam, views: ViewPair, config: TrainConfig
) -> tuple[dict[str, Tensor], Tensor]:
    """Parts and total by DenseSiam, section 3, all four losses on; SimSiam's where it has a weight."""
    assert network.over_projector is not None and network.over_predictor is not None
    assert network.image_projector is not None and network.image_predictor is not None
    f = features_of(network, views)
    z = [network.projector(features) for features in f]
    p = [network.predictor(logits) for logits in z]
    y = [network.over_projector(features) for features in f]
    o = [network.over_predictor(logits) for logits in y]
    d = soft_cross_entropy if config.similarity == "cross-entropy" else negative_cosine
    parts = {
        "pixel": 0.5 * d(p[0], z[1]) + 0.5 * d(p[1], z[0]),
        "over_cluster": 0.5 * d(o[0], y[1]) + 0.5 * d(o[1], y[0]),
        "segmentation": 0.5 * balanced_cross_entropy(z[0], config.balance)
        + 0.5 * balanced_cross_entropy(z[1], config.balance),
        "region": region_similarity(network, f, z, config.region_stop_gradient),
    }
    both = math.log(A) + math.log(K)
    total = torch.zeros(())
    if config.image_weight:
        v = [network.image_projector(features.mean((2, 3))) for features in f]
        w = [network.image_predictor(rows) for rows in v]
        # Cosine whatever the form of the pixels' similarity.
        image = 0.5 * negative_cosine(w[0], v[1]) + 0.5 * negative_cosine(w[1], v[0])
        parts = {"image": image, **parts}
        total = total + config.image_weight * image
    total = total + (
        config.pixel_weight * math.log(A) / both * parts["pixel"]
        + config.over_cluster_weight * math.log(K) / both * parts["over_cluster"]
        + config.segmentation_weight * parts["segmentation"]
        + config.region_weight * parts["region"]
    )
    return parts, total


class TestTotal:
    @pytest.mark.parametrize(
        "config",
        [
            CONFIG,
            ODD,
            replace(ODD, similarity="cosine", balance="frequency"),
            replace(ODD, balance="none", region_stop_gradient=False),
        ],
        ids=["paper", "weights", "cosine-frequency", "none-free"],
    )
    def test_equals_the_sum_by_hand_with_its_gradient(
        self, network: DenseSiam, config: TrainConfig
    ) -> None:
        result = found(network, config)
        parts, total = by_hand(network, view_pair(), config)
        assert list(result.parts) == list(parts)
        for name, part in parts.items():
            assert result.parts[name].item() == pytest.approx(part.item(), abs=1e-5)
            assert not result.parts[name].requires_grad
        assert result.total.item() == pytest.approx(total.item(), abs=1e-5)
        wanted = gradients(network, total)
        require_alike(gradients(network, result.total), wanted, 1e-4)
        # In the paper's recipe every weight but SimSiam's has its part.
        missing = {name.split(".")[0] for name, value in wanted.items() if value is None}
        assert missing == (set() if config.image_weight else HEADS["image"])

    @pytest.mark.parametrize("balance", ["inverse", "frequency", "none"])
    @pytest.mark.parametrize("similarity", ["cross-entropy", "cosine"])
    def test_fast_mode_differs_by_rounding_alone(self, balance: str, similarity: str) -> None:
        """Fused losses change the order of sums and nothing else."""
        results = []
        for precision in ("fp32", "auto"):
            changes = {"precision": precision, "balance": balance, "similarity": similarity}
            network = build_network(ARCHITECTURE, seed=0).train()
            result = found(network, with_settings(ODD, changes))
            results.append((result, gradients(network, result.total)))
        (exact, wanted), (fast, others) = results
        assert exact.parts.keys() == fast.parts.keys()
        torch.testing.assert_close(fast.total, exact.total, atol=1e-5, rtol=1e-5)
        assert torch.equal(fast.histogram, exact.histogram)
        assert torch.equal(fast.agreement, exact.agreement)
        require_alike(others, wanted, 1e-3)


class TestSwitches:
    @pytest.mark.parametrize("name", list(HEADS))
    def test_weight_zero_is_not_computed(self, name: str) -> None:
        network = build_network(ARCHITECTURE, seed=0)
        result = found(network, with_settings(ODD, {f"{name}_weight": 0.0}))
        assert set(result.parts) == set(HEADS) - {name}
        for parameter, gradient in gradients(network, result.total).items():
            assert (gradient is None) == (parameter.split(".")[0] in HEADS[name])
        # A head that has not run has seen no batch.
        seen = batches_seen(network)
        assert seen == {head: {int(head not in HEADS[name])} for head in seen}

    def test_regions_alone_must_start_at_once(self, network: DenseSiam) -> None:
        """An epoch without any loss would have no gradient, so no settings ask for one."""
        method = DenseSiamMethod(network, replace(CONFIG, **REGIONS_ALONE))
        assert list(objective_of(method, IMAGES, INDICES, 0).parts) == ["region"]
        with pytest.raises(UsageError, match="in the first epoch"):
            replace(CONFIG, **{**REGIONS_ALONE, "region_start": 0.8})

    def test_no_over_clusters(self) -> None:
        network = build_network(replace(ARCHITECTURE, over_clusters=0), seed=0)
        result = found(network, replace(ODD, over_cluster_weight=0.0))
        assert list(result.parts) == ["image", "pixel", "segmentation", "region"]


class TestMethods:
    """The paper's own ablations by switching losses off (`train --method simsiam`, `pixsim`)."""

    def test_simsiam_is_the_image_loss_alone(self) -> None:
        network = build_network(ARCHITECTURE, seed=0)
        config = with_settings(CONFIG, METHODS["simsiam"])
        assert not config.uses_pixels()
        result = found(network, config)
        assert list(result.parts) == ["image"]
        assert torch.equal(result.total.detach(), result.parts["image"])
        # No projection z of any pixel is computed.
        seen = batches_seen(network)
        assert seen == {name: {int(name in {"encoder", *HEADS["image"]})} for name in seen}
        assert result.histogram.shape == (0,) and result.histogram.dtype == torch.int64

    def test_pixels_take_over_agreement(self, network: DenseSiam) -> None:
        """With pixels to compare it is of pixels, with or without the image loss; the spread stays the images'."""
        one = found(network, ODD, regions=False)
        two = found(network, replace(ODD, image_weight=0.0), regions=False)
        assert one.agreement.item() == two.agreement.item()
        assert one.histogram.tolist() == two.histogram.tolist()
        assert one.spread is not None and two.spread is None

    def test_pixsim_has_no_regions(self, network: DenseSiam) -> None:
        result = found(network, with_settings(CONFIG, METHODS["pixsim"]))
        assert list(result.parts) == ["pixel", "over_cluster", "segmentation"]
        assert result.total.item() == found(network, CONFIG, regions=False).total.item()


class TestSiamese:
    """The method as the loop sees it."""

    @pytest.mark.parametrize("epoch", [0, 5])
    def test_views_are_those_of_the_epoch(self, network: DenseSiam, epoch: int) -> None:
        def same(config: TrainConfig, round_: int) -> bool:
            """Whether the method's objective is that of the views drawn for a round."""
            result = objective_of(DenseSiamMethod(network, config), IMAGES, INDICES, epoch)
            views = drawn_views(IMAGES, INDICES, seed=4, round_=round_, exact=config.exact())
            return torch.equal(result.total, found(network, config, views, regions=False).total)

        config = replace(CONFIG, seed=4)
        assert same(config, epoch)
        assert not same(config, epoch + 1)
        assert same(replace(config, replay="run"), 0)

    def test_region_loss_joins_in_its_epoch(self, network: DenseSiam) -> None:
        """8 of 10 in the paper: epochs 0 to 7 go without."""
        method = DenseSiamMethod(network, CONFIG)
        with torch.no_grad():
            parts = [objective_of(method, IMAGES, INDICES, epoch).parts for epoch in (7, 8)]
        assert ["region" in part for part in parts] == [False, True]


class TestHealth:
    def test_agreement_and_histogram_are_counts(self, network: DenseSiam) -> None:
        result = found(network, CONFIG, regions=False)
        with torch.no_grad():
            labels = [network.projector(f).argmax(1) for f in features_of(network, view_pair())]
        first, second = (label.flatten().tolist() for label in labels)
        agreeing = sum(a == b for a, b in zip(first, second, strict=True))
        assert 0 < agreeing < len(first)
        assert result.agreement.item() == pytest.approx(agreeing / len(first), abs=1e-6)
        assert result.histogram.dtype == torch.int64
        assert result.histogram.tolist() == [(first + second).count(k) for k in range(K)]
        assert not result.agreement.requires_grad

    def test_histogram_keeps_unused_clusters(self, network: DenseSiam) -> None:
        collapsed = build_network(network.architecture, seed=0).eval()
        norm = collapsed.projector[-1]
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
        norm.running_mean.copy_(torch.tensor([1e3, -1e3, 0.0]))  # only cluster 1 can win
        result = found(collapsed, CONFIG, regions=False)
        assert result.histogram.tolist() == [0, 2 * 2 * 64, 0]
        assert result.agreement.item() == 1
