"""Pre-training's objective against a slow sum in float64, and what its stop-gradients are for."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densesiam_seg.config import PretrainConfig, with_settings
from densesiam_seg.events import COLLAPSED
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import ImageStore
from densesiam_seg.methods import interface as method
from densesiam_seg.methods.correspondence import STRATEGIES, Correspondence
from densesiam_seg.methods.interface import Objective, image_loss
from densesiam_seg.methods.losses import Similarity, linked_loss, pixel_loss, region_loss
from densesiam_seg.methods.pretraining import Pretext, pretext_objective
from densesiam_seg.methods.sampling import Grid, grid_draws
from densesiam_seg.network.model import Architecture, DenseSiam, build_network
from densesiam_seg.views.pair import WindowPair, independent_views
from densesiam_seg.views.parameters import Window

pytestmark = pytest.mark.usefixtures("slim_module")

K, C, SIDE = 5, 8, 32
ARCHITECTURE = Architecture(channels=C, clusters=K, over_clusters=0, image_head=True)
CONFIG = PretrainConfig(
    image_size=SIDE, channels=C, categories=K, features="fpn", grid=3, batch_size=4
)
ODD = replace(CONFIG, image_weight=0.6, pixel_weight=1.7, region_weight=0.45)
IMAGES = torch.randint(
    0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
INDICES = (7, 2, 11, 0)
ASPECTS = torch.linspace(0.6, 1.6, 12)


class Crop(NamedTuple):
    top: float
    left: float
    height: float
    width: float
    flip: float


CROPS_1 = (
    Crop(0.0, 0.0, 1.0, 1.0, 0.0),
    Crop(0.1, 0.2, 0.5, 0.6, 1.0),
    Crop(0.0, 0.0, 0.4, 0.4, 0.0),
    Crop(0.3, 0.3, 0.6, 0.7, 1.0),
)
CROPS_2 = (
    Crop(0.25, 0.5, 0.5, 0.25, 1.0),
    Crop(0.4, 0.0, 0.6, 0.5, 1.0),
    Crop(0.5, 0.1, 0.5, 0.5, 0.0),  # below the first view of its image
    Crop(0.0, 0.0, 0.8, 0.9, 0.0),
)
OVERLAPPING = (True, True, False, True)
APART_1 = (Crop(0.0, 0.0, 0.4, 0.4, 0.0),) * 4
APART_2 = (Crop(0.5, 0.0, 0.4, 0.4, 1.0), Crop(0.0, 0.5, 0.4, 0.4, 0.0)) * 2


def pair_of(crops_1: tuple[Crop, ...] = CROPS_1, crops_2: tuple[Crop, ...] = CROPS_2) -> WindowPair:
    """Views of noise, as if they showed these crops."""
    source = torch.Generator().manual_seed(3)
    one, two = (torch.randn(4, 3, SIDE, SIDE, generator=source) for _ in range(2))
    windows = [Window(*torch.tensor(crops).T) for crops in (crops_1, crops_2)]
    return WindowPair(one, two, *windows)


def found(network: DenseSiam, config: PretrainConfig, views: WindowPair | None = None) -> Objective:
    grid = Pretext(network, config, ASPECTS).grid
    draws = grid_draws(grid, 0, 0, INDICES, "cpu")
    return pretext_objective(network, views or pair_of(), config, grid, draws)


@pytest.fixture
def network() -> DenseSiam:
    """In training state, as the loop has it."""
    return build_network(ARCHITECTURE, seed=0).train()


def gradients(network: DenseSiam, total: Tensor) -> dict[str, Tensor | None]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    values = torch.autograd.grad(total, parameters, allow_unused=True)
    return dict(zip(names, values, strict=True))


# ---- the same sum, slowly ----------------------------------------------------------------------


Position = tuple[float, float]


def within(crop: Crop, point: Position) -> Position:
    """Where in its view a point of the image is seen."""
    y, x = (point[0] - crop.top) / crop.height, (point[1] - crop.left) / crop.width
    return y, 1 - x if crop.flip else x


def read(features: Tensor, y: float, x: float) -> Tensor:
    """The bilinear sample (C,) of one map (C, h, w) at a position of its view; the border value goes on outwards."""
    height, width = features.shape[1:]
    v = min(max(y * height - 0.5, 0.0), height - 1.0)
    u = min(max(x * width - 0.5, 0.0), width - 1.0)
    above, before = min(int(v), height - 2), min(int(u), width - 2)
    dy, dx = v - above, u - before
    top = (1 - dx) * features[:, above, before] + dx * features[:, above, before + 1]
    bottom = (1 - dx) * features[:, above + 1, before] + dx * features[:, above + 1, before + 1]
    return (1 - dy) * top + dy * bottom


class Linked(NamedTuple):
    """Of one image: N places in each view, and which of view 1 belongs to which of view 2."""

    seen: tuple[list[Position], list[Position]]
    links: list[tuple[int, int]]


def cells(size: int) -> list[Position]:
    return [((i + 0.5) / size, (j + 0.5) / size) for i in range(size) for j in range(size)]


def by_location(one: Crop, two: Crop, size: int) -> Linked:
    """A size × size grid of the overlap; without overlap, and then without links, of each view as a whole."""
    top, left = max(one.top, two.top), max(one.left, two.left)
    bottom = min(one.top + one.height, two.top + two.height)
    right = min(one.left + one.width, two.left + two.width)
    if bottom <= top or right <= left:
        return Linked((cells(size), cells(size)), [])
    points = [(top + y * (bottom - top), left + x * (right - left)) for y, x in cells(size)]
    views = [within(one, point) for point in points], [within(two, point) for point in points]
    return Linked(views, [(n, n) for n in range(size**2)])


def by_distance(one: Crop, two: Crop, size: int) -> Linked:
    """Cells of both whole views, linked where they lie closer in the image than 0.7 of a cell's diagonal."""
    diagonal = max(math.hypot(crop.height, crop.width) for crop in (one, two)) / size
    points_1, points_2 = (
        [
            (crop.top + crop.height * y, crop.left + crop.width * (1 - x if crop.flip else x))
            for y, x in cells(size)
        ]
        for crop in (one, two)
    )
    links = [
        (n, m)
        for n, point in enumerate(points_1)
        for m, other in enumerate(points_2)
        if math.dist(point, other) < 0.7 * diagonal
    ]
    # Views that do not overlap have no links, however close their border cells are.
    overlapping = bool(by_location(one, two, 1).links)
    return Linked((cells(size), cells(size)), links if overlapping else [])


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()


def apart(p: Tensor, z: Tensor, form: str) -> Tensor:
    """D of one prediction and one target."""
    return -cosine(p, z) if form == "cosine" else -(z.softmax(0) * p.log_softmax(0)).sum()


class Slow(NamedTuple):
    parts: dict[str, Tensor]
    z: Tensor
    """Projections (2, B, N, K) of the places."""


Target = Callable[[Tensor], Tensor]
"""What becomes of the tensors that a prediction is compared with."""


def slowly(
    network: DenseSiam,
    views: WindowPair,
    places: list[Linked],
    config: PretrainConfig,
    target: Target,
) -> Slow:
    """METHOD, section 4, one place after the other, by a network of float64."""
    features = network.encoder(torch.cat((views.image_1, views.image_2)).double())
    samples = torch.stack(
        [
            read(features[view * len(places) + i], *position)
            for view in (0, 1)
            for i, image in enumerate(places)
            for position in image.seen[view]
        ]
    )
    # 1×1 convolutions over a line of pixels.
    z_line = network.projector(samples.T[None, :, None, :])
    p_line = network.predictor(z_line)
    shape = (2, len(places), config.grid**2, -1)
    z, p = (values[0, :, 0].T.reshape(shape) for values in (z_line, p_line))
    parts = {
        "image": slow_image(network, features, target),
        "pixel": slow_pixel(z, p, places, config.similarity, target),
        "region": slow_region(network, z, samples.reshape(shape), places, target),
    }
    return Slow(parts, z)


def slow_image(network: DenseSiam, features: Tensor, target: Target) -> Tensor:
    assert network.image_projector is not None and network.image_predictor is not None
    z = network.image_projector(features.mean((2, 3)))
    p = network.image_predictor(z)
    count = len(z) // 2
    terms = [
        apart(p[i], target(z[count + i]), "cosine") + apart(p[count + i], target(z[i]), "cosine")
        for i in range(count)
    ]
    return 0.5 * torch.stack(terms).mean()


def slow_pixel(z: Tensor, p: Tensor, places: list[Linked], form: str, target: Target) -> Tensor:
    means = []
    for i, image in enumerate(places):
        terms = [
            apart(p[0, i, n], target(z[1, i, m]), form)
            + apart(p[1, i, m], target(z[0, i, n]), form)
            for n, m in image.links
        ]
        if terms:
            means.append(0.5 * torch.stack(terms).mean())
    return torch.stack(means).mean()


def slow_region(
    network: DenseSiam, z: Tensor, samples: Tensor, places: list[Linked], target: Target
) -> Tensor:
    """Of images that have links, pooled from the places that have one."""
    linked = [i for i, image in enumerate(places) if image.links]
    embeddings = [
        torch.stack(
            [
                z[view, i, j].softmax(0)[n] * samples[view, i, j]
                for j in sorted({link[view] for link in places[i].links})
            ]
        ).sum(0)
        for view in (0, 1)
        for i in linked
        for n in range(K)
    ]
    rows = network.region_projector(torch.stack(embeddings))
    shape = (2, len(linked), K, -1)
    u, q = rows.reshape(shape), network.region_predictor(rows).reshape(shape)
    terms = []
    for a, b in ((0, 1), (1, 0)):
        for i in range(len(linked)):
            for n in range(K):
                scores = [cosine(q[a, i, n], target(u[b, i, m])) / 0.1 for m in range(K)]
                terms.append(torch.stack(scores).logsumexp(0) - scores[n])
    return torch.stack(terms).mean()


def slow_total(parts: dict[str, Tensor], config: PretrainConfig) -> Tensor:
    return (
        config.image_weight * parts["image"]
        + config.pixel_weight * parts["pixel"]
        + config.region_weight * parts["region"]
    )


def constant(values: Tensor) -> Tensor:
    """The same numbers, of which autograd knows nothing."""
    return torch.tensor(values.tolist(), dtype=values.dtype)


def unchanged(values: Tensor) -> Tensor:
    return values


def linked_by(rule: Callable[[Crop, Crop, int], Linked], size: int = CONFIG.grid) -> list[Linked]:
    return [rule(one, two, size) for one, two in zip(CROPS_1, CROPS_2, strict=True)]


class TestObjective:
    """Against the slow sum: four images, of which one has views that do not overlap."""

    @pytest.mark.parametrize(
        "config",
        [
            CONFIG,
            ODD,
            replace(ODD, similarity="cosine", grid=2),
            replace(ODD, correspondence="pixel-distance"),
        ],
        ids=["paper", "weights", "cosine", "distance"],
    )
    def test_parts_and_gradient_equal_the_slow_sum(
        self, network: DenseSiam, config: PretrainConfig
    ) -> None:
        """Its targets are constants."""
        exact = copy.deepcopy(network).double()
        rule = by_location if config.correspondence == "location" else by_distance
        slow = slowly(exact, pair_of(), linked_by(rule, config.grid), config, constant)
        total = slow_total(slow.parts, config)
        expected = gradients(exact, total)
        result = found(network, config)
        assert list(result.parts) == ["image", "pixel", "region"]
        for name, part in slow.parts.items():
            assert result.parts[name].item() == pytest.approx(part.item(), abs=2e-5)
            assert not result.parts[name].requires_grad
        assert result.total.item() == pytest.approx(total.item(), abs=5e-5)
        for name, gradient in gradients(network, result.total).items():
            wanted = expected[name]
            assert gradient is not None and wanted is not None
            scale = max(0.1, wanted.abs().max().item())
            torch.testing.assert_close(gradient, wanted.float(), atol=2e-4 * scale, rtol=0)

    def test_distance_leaves_places_of_both_views_unlinked(self) -> None:
        """So the comparison above is of regions that leave such places out."""
        image = by_distance(CROPS_1[0], CROPS_2[0], CONFIG.grid)
        ends = [{link[view] for link in image.links} for view in (0, 1)]
        assert len(ends[0]) < 9 and len(ends[1]) > 0
        assert len(image.links) > len(ends[0])
        assert [bool(image.links) for image in linked_by(by_distance)] == list(OVERLAPPING)

    def test_memory_layout_does_not_matter(self, network: DenseSiam) -> None:
        """The loop keeps weights with their channels last; a gradient in another order would be silently wrong."""
        turned = copy.deepcopy(network).to(memory_format=torch.channels_last)
        one, two = (gradients(each, found(each, CONFIG).total) for each in (network, turned))
        for name, gradient in one.items():
            other = two[name]
            assert gradient is not None and other is not None
            torch.testing.assert_close(gradient, other, atol=2e-4, rtol=2e-4)

    def test_with_gradients_through_the_targets_it_would_differ(self, network: DenseSiam) -> None:
        """The comparison above tells the two apart."""
        exact = copy.deepcopy(network).double()
        totals = [
            slow_total(slowly(exact, pair_of(), linked_by(by_location), ODD, target).parts, ODD)
            for target in (constant, unchanged)
        ]
        assert totals[0].item() == pytest.approx(totals[1].item(), abs=1e-9)
        stopped, free = (gradients(exact, total) for total in totals)
        for name in ("encoder.decoder.laterals.3.weight", "projector.6.weight"):
            one, two = stopped[name], free[name]
            assert one is not None and two is not None
            assert (one - two).abs().max() > 0.1 * one.abs().max()

    def test_health(self, network: DenseSiam) -> None:
        """Agreement is of the linked places alone, the histogram of all that were sampled."""
        exact = copy.deepcopy(network).double()
        slow = slowly(exact, pair_of(), linked_by(by_location), CONFIG, constant)
        result = found(network, CONFIG)
        winners_1, winners_2 = slow.z.argmax(-1)
        same = [
            bool(winners_1[i, j] == winners_2[i, j])
            for i in range(4)
            for j in range(9)
            if OVERLAPPING[i]
        ]
        assert result.agreement.item() == pytest.approx(sum(same) / 27, abs=1e-6)
        winners = [*winners_1.flatten().tolist(), *winners_2.flatten().tolist()]
        assert result.histogram.tolist() == [winners.count(k) for k in range(K)]
        assert result.histogram.dtype == torch.int64
        assert result.disjoint == 1
        assert not result.agreement.requires_grad

    def test_spread_without_an_image_loss_is_that_of_the_places(self, network: DenseSiam) -> None:
        exact = copy.deepcopy(network).double()
        slow = slowly(exact, pair_of(), linked_by(by_location), CONFIG, constant)
        result = found(network, replace(CONFIG, image_weight=0.0))
        directions = F.normalize(slow.z.flatten(0, 2), dim=1)
        deviation = directions.std(0, unbiased=False).mean().item() * math.sqrt(K)
        assert result.spread is not None and not result.spread.requires_grad
        assert result.spread.item() == pytest.approx(deviation, abs=1e-4)


# ---- no gradient reaches a target --------------------------------------------------------------


class Cut(nn.Module):
    """A predictor that no gradient passes: what is left of a loss's gradient comes through its targets."""

    def __init__(self, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, projections: Tensor) -> Tensor:
        predictions: Tensor = self.predictor(projections.detach())
        return predictions


def cut(network: DenseSiam) -> DenseSiam:
    assert network.image_predictor is not None
    network.image_predictor = nn.Sequential(Cut(network.image_predictor))
    network.predictor = nn.Sequential(Cut(network.predictor))
    network.region_predictor = nn.Sequential(Cut(network.region_predictor))
    return network


class TestStopGradient:
    def leaves(self, *shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """p₁ z₁ p₂ z₂, each a tensor of its own."""
        source = torch.Generator().manual_seed(1)
        p_1, z_1, p_2, z_2 = (torch.randn(*shape, generator=source) for _ in range(4))
        for values in (p_1, z_1, p_2, z_2):
            values.requires_grad_()
        return p_1, z_1, p_2, z_2

    @pytest.mark.parametrize("name", ["image", "pixel", "pixel cosine", "region"])
    def test_losses_have_none_in_their_targets(self, name: str) -> None:
        values = self.leaves(*((6, K) if name == "image" else (3, 6, K)))
        if name == "image":
            loss = pixel_loss(*values, "cosine")
        elif name == "region":
            loss = region_loss(*values)
        else:
            form: Similarity = "cosine" if name == "pixel cosine" else "cross-entropy"
            loss = linked_loss(*values, torch.ones(3, 6, 6), form)
        to_p_1, to_z_1, to_p_2, to_z_2 = torch.autograd.grad(loss, values, allow_unused=True)
        assert to_z_1 is None and to_z_2 is None
        assert to_p_1.abs().max() > 1e-3 and to_p_2.abs().max() > 1e-3

    @pytest.mark.parametrize("only", ["image", "pixel", "region", "all"])
    @pytest.mark.parametrize("similarity", ["cross-entropy", "cosine"])
    def test_nothing_is_learned_through_the_targets(
        self, network: DenseSiam, only: str, similarity: str
    ) -> None:
        """With the predictors cut off not one other weight of the network has a gradient other than 0."""
        config = with_settings(CONFIG, {"similarity": similarity})
        if only != "all":
            # The image loss stays, as a region loss alone is no setting; its target is part of the claim.
            on = {f"{name}_weight": float(name in (only, "image")) for name in ("pixel", "region")}
            config = with_settings(config, on)
        whole = gradients(network, found(network, config).total)
        assert sum(value is not None and bool(value.any()) for value in whole.values()) > 20
        left = gradients(cut(network), found(network, config).total)
        for name, value in left.items():
            if "predictor." in name:
                continue
            assert value is None or not value.any()

    def test_the_region_losss_is_an_option(self, network: DenseSiam) -> None:
        """DenseSiam's released code has none there: its targets learn, and nothing but regions does."""
        config = replace(CONFIG, region_stop_gradient=False)
        left = gradients(cut(network), found(network, config).total)
        reached = {name.split(".")[0] for name, v in left.items() if v is not None and v.any()}
        predictors = {"predictor", "image_predictor", "region_predictor"}
        # The embeddings are pooled by the projector's softmax, so it is reached too.
        assert reached - predictors == {"encoder", "projector", "region_projector"}


# ---- collapse ----------------------------------------------------------------------------------


def without_stop(p_1: Tensor, z_1: Tensor, p_2: Tensor, z_2: Tensor, form: str) -> Tensor:
    """SimSiam's loss as it would be if gradients passed its targets."""
    assert form == "cosine"
    forth, back = F.cosine_similarity(p_1, z_2), F.cosine_similarity(p_2, z_1)
    return -0.5 * forth.mean() - 0.5 * back.mean()


def spread_after_training(seed: int) -> list[float]:
    """Spread of the predictions at each of 200 steps of SimSiam: 64 images of 16 numbers, views by noise.

    The encoder is a matrix; heads, loss and optimiser are the real ones.
    """
    draw = torch.Generator().manual_seed(seed)
    network = build_network(Architecture(channels=16, clusters=2, image_head=True), seed).train()
    assert network.image_projector is not None and network.image_predictor is not None
    # In training the last norm sets each output's deviation over the batch to 1, whatever it gets. At rest it leaves
    # outputs as they are, and nothing but the stop-gradient keeps them apart.
    network.image_projector[-1].eval()
    images = torch.randn(64, 16, generator=draw)
    encoder = (torch.randn(16, 16, generator=draw) / 4).requires_grad_()
    heads = [*network.image_projector.parameters(), *network.image_predictor.parameters()]
    optimizer = torch.optim.SGD([encoder, *heads], lr=0.1, momentum=0.9)
    spreads = []
    for _ in range(200):
        views = images + torch.randn(2, 64, 16, generator=draw)
        loss, _, spread = image_loss(network, (views.flatten(0, 1) @ encoder)[..., None, None])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        spreads.append(spread.item())
    return spreads


class TestCollapse:
    """SimSiam's figure 2: the stop-gradient is what keeps projections from all becoming one."""

    @pytest.mark.parametrize("seed", range(3))
    def test_with_the_stop_gradient_predictions_stay_spread(self, seed: int) -> None:
        spreads = spread_after_training(seed)
        assert spreads[0] > COLLAPSED
        assert spreads[-1] > 0.5

    @pytest.mark.parametrize("seed", range(3))
    def test_without_it_they_collapse(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(method, "pixel_loss", without_stop)
        spreads = spread_after_training(seed)
        assert spreads[0] > COLLAPSED
        assert spreads[-1] < 0.1

    def test_the_two_losses_are_the_same_number(self) -> None:
        rows = [torch.randn(6, 4, generator=torch.Generator().manual_seed(n)) for n in range(4)]
        p_1, z_1, p_2, z_2 = rows
        expected = pixel_loss(p_1, z_1, p_2, z_2, "cosine").item()
        assert without_stop(p_1, z_1, p_2, z_2, "cosine").item() == pytest.approx(expected)


# ---- views without overlap ---------------------------------------------------------------------

STRATEGY_NAMES = ["location", "feature-similarity", "pixel-distance", "candidate-regions"]


class TestDisjoint:
    @pytest.mark.parametrize("correspondence", STRATEGY_NAMES)
    def test_a_batch_of_them_has_no_dense_loss(
        self, network: DenseSiam, correspondence: str
    ) -> None:
        config = with_settings(ODD, {"correspondence": correspondence})
        result = found(network, config, pair_of(APART_1, APART_2))
        assert result.disjoint == 4
        assert result.parts["pixel"].item() == 0
        assert "region" not in result.parts
        assert result.total.item() == pytest.approx(0.6 * result.parts["image"].item(), abs=1e-6)
        assert result.agreement.item() == 0
        heads = ("projector.", "predictor.", "region_")
        for name, gradient in gradients(network, result.total).items():
            if gradient is None:
                assert name.startswith("region_")
            else:
                assert gradient.isfinite().all()
                assert bool(gradient.any()) != name.startswith(heads)

    def test_without_an_image_loss_there_is_nothing_to_learn(self, network: DenseSiam) -> None:
        config = replace(CONFIG, image_weight=0.0)
        result = found(network, config, pair_of(APART_1, APART_2))
        assert result.total.item() == 0 and result.disjoint == 4
        values = [v for v in gradients(network, result.total).values() if v is not None]
        assert values and not any(value.any() for value in values)

    @pytest.mark.parametrize("correspondence", STRATEGY_NAMES)
    def test_one_of_them_leaves_the_others_their_losses(
        self, network: DenseSiam, correspondence: str
    ) -> None:
        config = with_settings(ODD, {"correspondence": correspondence})
        result = found(network, config)
        assert result.disjoint == 1
        assert result.parts["pixel"] > 0 and result.parts["region"] > 0

    def test_views_that_touch_do_not_overlap(self, network: DenseSiam) -> None:
        left, right = Crop(0.0, 0.0, 1.0, 0.5, 0.0), Crop(0.0, 0.5, 1.0, 0.5, 0.0)
        assert found(network, CONFIG, pair_of((left,) * 4, (right,) * 4)).disjoint == 4


# ---- settings ----------------------------------------------------------------------------------


def seen(module: nn.Module | None) -> set[int]:
    """How many batches its norms have seen."""
    assert module is not None
    return {
        int(part.num_batches_tracked)  # type: ignore[arg-type]
        for part in module.modules()
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)
    }


class TestSettings:
    @pytest.mark.parametrize(
        "settings",
        [
            *({"correspondence": name} for name in STRATEGY_NAMES),
            {"sampling": "uniform"},
            {"sampling": "biased"},
            {"sampling": "biased", "oversample": 10, "importance": 1.0},
            {"similarity": "cosine"},
            {"grid": 1},
        ],
        ids=str,
    )
    def test_every_strategy_and_sampler_teaches_everything(
        self, network: DenseSiam, settings: dict[str, Any]
    ) -> None:
        result = found(network, with_settings(CONFIG, settings))
        assert list(result.parts) == ["image", "pixel", "region"]
        assert int(result.histogram.sum()) == 2 * 4 * settings.get("grid", 3) ** 2
        assert 0 <= result.agreement.item() <= 1
        for gradient in gradients(network, result.total).values():
            assert gradient is not None and gradient.isfinite().all()

    @pytest.mark.parametrize(
        "settings", [{"correspondence": "none"}, {"pixel_weight": 0.0, "region_weight": 0.0}]
    )
    def test_image_level_only(self, network: DenseSiam, settings: dict[str, Any]) -> None:
        result = found(network, with_settings(CONFIG, settings))
        assert list(result.parts) == ["image"]
        assert result.histogram.shape == (0,) and result.histogram.dtype == torch.int64
        # Nothing is known of overlaps where nothing depends on them.
        assert result.disjoint == 0
        assert result.spread is not None
        assert seen(network.projector) == seen(network.predictor) == {0}
        assert seen(network.region_projector) == {0}
        expected, agreement, spread = image_loss(
            copy.deepcopy(network),
            network.encoder(torch.cat((pair_of().image_1, pair_of().image_2))),
        )
        assert result.total.item() == pytest.approx(expected.item(), abs=1e-6)
        assert result.agreement.item() == agreement.item()
        assert result.spread.item() == pytest.approx(spread.item(), abs=1e-6)

    def test_no_image_loss(self, network: DenseSiam) -> None:
        result = found(network, replace(CONFIG, image_weight=0.0))
        assert list(result.parts) == ["pixel", "region"]
        assert seen(network.image_projector) == seen(network.image_predictor) == {0}
        plain = build_network(replace(ARCHITECTURE, image_head=False), seed=0).train()
        assert torch.equal(found(plain, replace(CONFIG, image_weight=0.0)).total, result.total)

    def test_no_pixel_loss(self, network: DenseSiam) -> None:
        result = found(network, replace(CONFIG, pixel_weight=0.0))
        assert list(result.parts) == ["image", "region"]
        assert seen(network.predictor) == {0}
        assert seen(network.projector) == {1}

    def test_no_region_loss(self, network: DenseSiam) -> None:
        result = found(network, replace(CONFIG, region_weight=0.0))
        assert list(result.parts) == ["image", "pixel"]
        assert seen(network.region_projector) == seen(network.region_predictor) == {0}

    def test_features_of_res5(self) -> None:
        architecture = replace(ARCHITECTURE, features="res5", image_head=True)
        network = build_network(architecture, seed=0).train()
        result = found(network, replace(CONFIG, features="res5"))
        assert list(result.parts) == ["image", "pixel", "region"]
        assert all(v is not None for v in gradients(network, result.total).values())

    def test_autocast_keeps_the_losses_in_float32(self, network: DenseSiam) -> None:
        plain = found(copy.deepcopy(network), CONFIG)
        with torch.autocast("cpu", torch.bfloat16):
            result = found(network, CONFIG)
        assert result.total.dtype == torch.float32
        for name, part in plain.parts.items():
            assert result.parts[name].item() == pytest.approx(part.item(), abs=0.2)
        assert all(
            v is not None and v.isfinite().all() for v in gradients(network, result.total).values()
        )

    @pytest.mark.parametrize("correspondence", STRATEGY_NAMES)
    def test_places_are_found_and_not_learned(
        self, network: DenseSiam, correspondence: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A strategy sees the features of both views without their gradient."""
        strategy = STRATEGIES[correspondence]
        asked: list[bool] = []

        def note(one: Window, two: Window, *rest: Any) -> Correspondence:
            asked.append(rest[0].requires_grad or rest[1].requires_grad)
            return strategy(one, two, *rest)

        monkeypatch.setitem(STRATEGIES, correspondence, note)
        found(network, with_settings(CONFIG, {"correspondence": correspondence}))
        assert asked == [False]


# ---- the method --------------------------------------------------------------------------------


class TestPretext:
    def total(
        self, seed: int = 0, epoch: int = 0, indices: tuple[int, ...] = INDICES, **settings: Any
    ) -> float:
        """Of a fresh network each time, as batch statistics are the batch's own but running ones are kept."""
        config = with_settings(CONFIG, {"seed": seed, **settings})
        network = build_network(ARCHITECTURE, seed=0).train()
        return Pretext(network, config, ASPECTS).objective(IMAGES, indices, epoch).total.item()

    @pytest.mark.parametrize("sampling", ["regular", "uniform", "biased"])
    def test_replay(self, sampling: str) -> None:
        """A function of (seed, epoch, image) and the weights: nothing else is drawn."""
        base = self.total(seed=3, epoch=5, sampling=sampling)
        torch.rand(3)  # wherever the global generator stands
        assert self.total(seed=3, epoch=5, sampling=sampling) == base
        others = [
            self.total(seed=4, epoch=5, sampling=sampling),
            self.total(seed=3, epoch=6, sampling=sampling),
            self.total(seed=3, epoch=5, indices=(7, 2, 11, 1), sampling=sampling),
        ]
        assert base not in others and len(set(others)) == 3

    def test_epochs_have_views_of_their_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pairs: list[WindowPair] = []

        def note(network: DenseSiam, views: WindowPair, *rest: object) -> Objective:
            pairs.append(views)
            return Objective(torch.zeros(()), {}, torch.zeros(()), torch.zeros(0))

        monkeypatch.setattr("densesiam_seg.methods.pretraining.pretext_objective", note)
        pretext = Pretext(build_network(ARCHITECTURE, seed=0), CONFIG, ASPECTS)
        for epoch in (0, 1, 0):
            pretext.objective(IMAGES, INDICES, epoch)
        first, second, again = pairs
        assert torch.equal(first.image_1, again.image_1)
        assert torch.equal(first.image_2, again.image_2)
        for one, two in ((first, second), (second, first)):
            assert not torch.isclose(one.window_1.top, two.window_1.top).any()
            assert not torch.isclose(one.window_1.top, two.window_2.top).any()

    @pytest.mark.parametrize("sampling", ["regular", "biased"])
    def test_is_the_objective_of_its_views_and_draws(self, sampling: str) -> None:
        """Aspects are those of the images named; the scales of the crops and the grid are the settings'."""
        settings = {
            "seed": 9,
            "sampling": sampling,
            "min_scale": 0.3,
            "max_scale": 0.5,
            "oversample": 2,
            "importance": 0.5,
        }
        config = with_settings(CONFIG, settings)
        networks = [build_network(ARCHITECTURE, seed=0).train() for _ in range(2)]
        result = Pretext(networks[0], config, ASPECTS).objective(IMAGES, INDICES, 4)
        own = torch.stack([ASPECTS[index] for index in INDICES])
        views = independent_views(
            IMAGES, INDICES, own, seed=9, round_=4, scales=(0.3, 0.5), exact=config.exact()
        )
        area = views.window_1.height * views.window_1.width
        assert ((area >= 0.3 - 1e-5) & (area <= 0.5 + 1e-5)).all()
        grid = Grid("biased" if sampling == "biased" else "regular", 3, 2, 0.5)
        draws = grid_draws(grid, 9, 4, INDICES, "cpu")
        expected = pretext_objective(networks[1], views, config, grid, draws)
        assert torch.equal(result.total, expected.total)
        assert result.histogram.tolist() == expected.histogram.tolist()

    def test_nothing_is_prepared_or_kept(self, image_folder: Path) -> None:
        pretext = Pretext(build_network(ARCHITECTURE, seed=0), CONFIG, ASPECTS)
        store = ImageStore(
            scan([image_folder]), 2 * SIDE, fit="stretch", workers=0, max_pixels=10**6
        )
        assert list(pretext.prepare(store, 0)) == []
        assert pretext.state() == {}
        pretext.restore({})

    def test_global_generators_are_untouched(self) -> None:
        states = random.getstate(), torch.get_rng_state()
        numpy_state = str(np.random.get_state(legacy=False))  # noqa: NPY002
        self.total(sampling="biased")
        assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
        assert str(np.random.get_state(legacy=False)) == numpy_state  # noqa: NPY002
