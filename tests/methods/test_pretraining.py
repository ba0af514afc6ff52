"""Pre-training's objective against a slow sum in float64, and what its stop-gradients are for."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from crops import Crop, Position, cells, geometry_of, seen_at, shared
from networks import batches_seen, gradients, objective_of, require_alike
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.config import PretrainConfig, with_settings
from densesiam_seg.methods.losses import image_loss
from densesiam_seg.methods.method import Objective
from densesiam_seg.methods.pretraining import Pretext, pretext_objective
from densesiam_seg.methods.sampling import grid_draws
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import DenseSiam, build_network
from densesiam_seg.views.pair import IndependentPair, independent_views

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
APART_1 = (Crop(0.0, 0.0, 0.4, 0.4, 0.0),) * 4
APART_2 = (Crop(0.5, 0.0, 0.4, 0.4, 1.0), Crop(0.0, 0.5, 0.4, 0.4, 0.0)) * 2


def pair_of(
    crops_1: tuple[Crop, ...] = CROPS_1, crops_2: tuple[Crop, ...] = CROPS_2
) -> IndependentPair:
    """Views of noise, as if they showed these crops."""
    source = torch.Generator().manual_seed(3)
    one, two = (torch.randn(4, 3, SIDE, SIDE, generator=source) for _ in range(2))
    return IndependentPair(one, two, geometry_of(*crops_1), geometry_of(*crops_2))


def found(
    network: DenseSiam, config: PretrainConfig, views: IndependentPair | None = None
) -> Objective:
    draws = grid_draws(config, 0, INDICES, "cpu")
    return pretext_objective(network, views or pair_of(), config, draws)


@pytest.fixture
def network() -> DenseSiam:
    """In training state, as the loop has it."""
    return build_network(ARCHITECTURE, seed=0).train()


# ---- the same sum, slowly ----------------------------------------------------------------------


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


def by_location(one: Crop, two: Crop, size: int) -> Linked:
    """A size × size grid of the overlap; without overlap, and then without links, of each view as a whole."""
    top, left, bottom, right = shared(one, two)
    if bottom <= top or right <= left:
        return Linked((cells(size), cells(size)), [])
    points = [(top + y * (bottom - top), left + x * (right - left)) for y, x in cells(size)]
    views = [within(one, point) for point in points], [within(two, point) for point in points]
    return Linked(views, [(n, n) for n in range(size**2)])


def by_distance(one: Crop, two: Crop, size: int) -> Linked:
    """Cells of both whole views, linked where they lie closer in the image than 0.7 of a cell's diagonal."""
    diagonal = max(math.hypot(crop.height, crop.width) for crop in (one, two)) / size
    points_1, points_2 = ([seen_at(crop, cell) for cell in cells(size)] for crop in (one, two))
    links = [
        (n, m)
        for n, point in enumerate(points_1)
        for m, other in enumerate(points_2)
        if math.dist(point, other) < 0.7 * diagonal
    ]
    # Views that do not overlap have no links, however close their border cells are.
    overlapping = bool(by_location(one, two, 1).links)
    return Linked((cells(size), cells(size)), links if overlapping else [])


def apart(p: Tensor, z: Tensor, form: str) -> Tensor:
    """D of one prediction and one target."""
    return (
        -F.cosine_similarity(p, z, dim=0)
        if form == "cosine"
        else -(z.softmax(0) * p.log_softmax(0)).sum()
    )


class Slow(NamedTuple):
    parts: dict[str, Tensor]
    z: Tensor
    """Projections (2, B, N, K) of the places."""


def slowly(
    network: DenseSiam, views: IndependentPair, places: list[Linked], config: PretrainConfig
) -> Slow:
    """The losses one place after the other, by a network of float64."""
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
        "image": slow_image(network, features),
        "pixel": slow_pixel(z, p, places, config.similarity),
        "region": slow_region(network, z, samples.reshape(shape), places, config),
    }
    return Slow(parts, z)


def slow_image(network: DenseSiam, features: Tensor) -> Tensor:
    assert network.image_projector is not None and network.image_predictor is not None
    z = network.image_projector(features.mean((2, 3)))
    p = network.image_predictor(z)
    count = len(z) // 2
    terms = [
        apart(p[i], constant(z[count + i]), "cosine")
        + apart(p[count + i], constant(z[i]), "cosine")
        for i in range(count)
    ]
    return 0.5 * torch.stack(terms).mean()


def slow_pixel(z: Tensor, p: Tensor, places: list[Linked], form: str) -> Tensor:
    means = []
    for i, image in enumerate(places):
        terms = [
            apart(p[0, i, n], constant(z[1, i, m]), form)
            + apart(p[1, i, m], constant(z[0, i, n]), form)
            for n, m in image.links
        ]
        if terms:
            means.append(0.5 * torch.stack(terms).mean())
    return torch.stack(means).mean()


def slow_region(
    network: DenseSiam, z: Tensor, samples: Tensor, places: list[Linked], config: PretrainConfig
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
    targets = constant(u) if config.region_stop_gradient else u
    terms = []
    for a, b in ((0, 1), (1, 0)):
        for i in range(len(linked)):
            for n in range(K):
                scores = F.cosine_similarity(q[a, i, n], targets[b, i]) / 0.1
                terms.append(scores.logsumexp(0) - scores[n])
    return torch.stack(terms).mean()


def constant(values: Tensor) -> Tensor:
    """The same numbers, of which autograd knows nothing."""
    return torch.tensor(values.tolist(), dtype=values.dtype)


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
            replace(ODD, correspondence="pixel-distance", region_stop_gradient=False),
        ],
        ids=["paper", "weights", "cosine", "distance"],
    )
    def test_parts_and_gradient_equal_the_slow_sum(
        self, network: DenseSiam, config: PretrainConfig
    ) -> None:
        """Targets are constants. Agreement is of the linked places alone, the histogram of all that are sampled."""
        exact = copy.deepcopy(network).double()
        # As the loop keeps its weights; a gradient in another order of memory would be silently wrong.
        network = network.to(memory_format=torch.channels_last)
        rule = by_location if config.correspondence == "location" else by_distance
        places = linked_by(rule, config.grid)
        slow = slowly(exact, pair_of(), places, config)
        weighted = [getattr(config, f"{name}_weight") * part for name, part in slow.parts.items()]
        total = torch.stack(weighted).sum()
        expected = gradients(exact, total)
        result = found(network, config)
        assert list(result.parts) == ["image", "pixel", "region"]
        for name, part in slow.parts.items():
            assert result.parts[name].item() == pytest.approx(part.item(), abs=2e-5)
            assert not result.parts[name].requires_grad
        assert result.total.item() == pytest.approx(total.item(), abs=5e-5)
        require_alike(gradients(network, result.total), expected, 5e-5)

        winners_1, winners_2 = slow.z.argmax(-1).tolist()
        same = [
            [winners_1[i][n] == winners_2[i][m] for n, m in image.links]
            for i, image in enumerate(places)
        ]
        assert [bool(each) for each in same] == [True, True, False, True]
        assert result.agreement.item() == pytest.approx(sum(map(sum, same)) / sum(map(len, same)))
        winners = np.array([winners_1, winners_2]).ravel()
        assert result.histogram.tolist() == np.bincount(winners, minlength=K).tolist()
        assert result.histogram.dtype == torch.int64
        assert result.disjoint == 1
        assert not result.agreement.requires_grad
        # Without an image loss the spread is that of the places.
        spread = found(network, replace(config, image_weight=0.0)).spread
        directions = F.normalize(slow.z.flatten(0, 2), dim=1)
        deviation = directions.std(0, unbiased=False).mean().item() * math.sqrt(K)
        assert spread is not None and spread.item() == pytest.approx(deviation, abs=1e-4)


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


# ---- settings ----------------------------------------------------------------------------------


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
        seen = batches_seen(network)
        assert seen["projector"] == seen["predictor"] == seen["region_projector"] == {0}
        expected, agreement, spread = image_loss(
            copy.deepcopy(network),
            network.encoder(torch.cat((pair_of().image_1, pair_of().image_2))),
        )
        assert result.total.item() == pytest.approx(expected.item(), abs=1e-6)
        assert result.agreement.item() == agreement.item()
        assert result.spread.item() == pytest.approx(spread.item(), abs=1e-6)

    @pytest.mark.parametrize(
        ("name", "untouched"),
        [
            ("image", {"image_projector", "image_predictor"}),
            ("pixel", {"predictor"}),
            ("region", {"region_projector", "region_predictor"}),
        ],
    )
    def test_weight_zero_is_not_computed(
        self, network: DenseSiam, name: str, untouched: set[str]
    ) -> None:
        result = found(network, with_settings(CONFIG, {f"{name}_weight": 0.0}))
        assert list(result.parts) == [each for each in ("image", "pixel", "region") if each != name]
        seen = batches_seen(network)
        assert seen == {each: {int(each not in untouched)} for each in seen}

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


# ---- the method --------------------------------------------------------------------------------


def test_pretext_is_the_objective_of_its_views_and_draws() -> None:
    """A function of the weights and of (seed, epoch, image), with the aspects of the images named."""

    def method_of(seed: int) -> Pretext:
        """Of a fresh network each time, as running statistics are kept."""
        settings = {"seed": seed, "sampling": "biased", "oversample": 2, "importance": 0.5}
        network = build_network(ARCHITECTURE, seed=0).train()
        return Pretext(network, with_settings(CONFIG, settings), ASPECTS)

    def total(seed: int, epoch: int, indices: tuple[int, ...] = INDICES) -> float:
        return objective_of(method_of(seed), IMAGES, indices, epoch).total.item()

    method = method_of(9)
    config = method.config
    aspects = torch.stack([ASPECTS[index] for index in INDICES])
    views = independent_views(IMAGES, INDICES, aspects, seed=9, round_=4, exact=config.exact())
    draws = grid_draws(config, 4, INDICES, "cpu")
    expected = pretext_objective(method.network, views, config, draws).total.item()
    torch.rand(3)  # wherever the global generator stands
    assert total(9, 4) == expected
    others = [total(8, 4), total(9, 5), total(9, 4, (7, 2, 11, 1))]
    assert expected not in others and len(set(others)) == 3
