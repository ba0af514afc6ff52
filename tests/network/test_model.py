"""The network: layers of its heads, parts, initial weights, the correspondence of both views' features, the mixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from densesiam_seg.clustering.appearance import CHANNELS
from densesiam_seg.clustering.quality import Sample
from densesiam_seg.io.randomness import Stream, torch_seed
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.encoder import Encoder
from densesiam_seg.network.model import (
    SHARPNESS,
    DenseSiam,
    build_network,
    predictor,
    projector,
)
from densesiam_seg.views.pair import ViewPair
from densesiam_seg.views.parameters import Geometry
from densesiam_seg.views.photometric import normalise

Array = NDArray[np.float64]

C, K = 6, 4


def described(head: nn.Sequential) -> list[str]:
    """One word per layer: what it is, its sizes, and whether it has a bias or an affine part."""
    words = []
    for layer in head:
        match layer:
            case nn.Conv2d():
                assert layer.kernel_size == (1, 1) and layer.stride == (1, 1)
                assert layer.groups == 1
                bias = "" if layer.bias is None else "+b"
                words.append(f"conv {layer.in_channels}→{layer.out_channels}{bias}")
            case nn.Linear():
                bias = "" if layer.bias is None else "+b"
                words.append(f"linear {layer.in_features}→{layer.out_features}{bias}")
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                assert layer.track_running_stats
                assert isinstance(layer, nn.BatchNorm2d) == any(
                    isinstance(other, nn.Conv2d) for other in head
                )
                words.append(f"norm {layer.num_features}{'' if layer.affine else ' plain'}")
            case nn.ReLU():
                words.append("relu")
            case _:
                pytest.fail(f"unexpected layer {layer}")
    return words


@pytest.mark.parametrize(("pixels", "kind"), [(True, "conv"), (False, "linear")])
def test_layers(pixels: bool, kind: str) -> None:
    hidden = [f"{kind} {C}→{C}", f"norm {C}", "relu"]
    # The table leaves the last bias open: the batch norm behind it takes any bias away.
    last = [f"{kind} {C}→{K}", f"norm {K} plain"]
    assert described(projector(C, K, pixels=pixels)) == [*hidden, *hidden, *last]
    assert described(predictor(K, C, pixels=pixels)) == [
        f"{kind} {K}→{C}",
        f"norm {C}",
        "relu",
        f"{kind} {C}→{K}+b",
    ]


def slow(head: nn.Sequential, rows: Array) -> Array:
    """The head in training mode over rows (N, C), batch statistics in float64."""
    for layer in head:
        state = {name: value.double().numpy() for name, value in layer.state_dict().items()}
        if isinstance(layer, nn.ReLU):
            rows = np.maximum(rows, 0)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            rows = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
            rows = rows * state.get("weight", 1.0) + state.get("bias", 0.0)
        else:
            weight = state["weight"].reshape(len(state["weight"]), -1)
            rows = rows @ weight.T + state.get("bias", 0.0)
    return rows


def varied(head: nn.Sequential) -> nn.Sequential:
    """Weights that leave no part of the sum at its neutral initial value."""
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source))
    return head


def rows_of(maps: Tensor) -> Array:
    rows: Array = maps.detach().double().numpy().transpose(0, 2, 3, 1).reshape(-1, maps.shape[1])
    return rows


@pytest.mark.parametrize("make", [projector, predictor])
def test_heads_equal_the_slow_sum(make: Callable[..., nn.Sequential]) -> None:
    draw = torch.Generator().manual_seed(1)
    maps, vectors = torch.randn(2, C, 3, 5, generator=draw), torch.randn(20, C, generator=draw)
    of_maps, of_vectors = varied(make(C, K, pixels=True)), varied(make(C, K, pixels=False))
    found = rows_of(of_maps(maps))
    np.testing.assert_allclose(found, slow(of_maps, rows_of(maps)), atol=1e-5)
    expected = slow(of_vectors, vectors.double().numpy())
    np.testing.assert_allclose(of_vectors(vectors).detach().numpy(), expected, atol=1e-5)


def test_projections_have_zero_mean_and_unit_deviation() -> None:
    source = torch.Generator().manual_seed(3)
    z = projector(C, K, pixels=True)(torch.randn(4, C, 8, 8, generator=source))
    u = projector(C, C, pixels=False)(torch.randn(64, C, generator=source))
    for rows in (rows_of(z), u.detach().double().numpy()):
        np.testing.assert_allclose(rows.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(rows.std(0), 1, atol=2e-3)


SMALL = Architecture(channels=8, clusters=3, over_clusters=5)


def view_pair(seed: int = 0) -> ViewPair:
    """Two 32x32 views of two images; the second image is flipped."""
    source = torch.Generator().manual_seed(seed)
    one, two = (torch.randn(2, 3, 32, 32, generator=source) for _ in range(2))
    crops = torch.tensor([[0.1, 0.3, 0.6, 0.6, 0.0], [0.25, 0.0, 0.75, 0.75, 1.0]])
    return ViewPair(one, two, Geometry(*crops.T))


def warped(maps: Tensor, geometry: Geometry) -> Tensor:
    """Crop, resize and flip by torch's own sampler."""
    side = maps.shape[-1]
    centres = (torch.arange(side) + 0.5) / side
    grids = []
    for i in range(len(maps)):
        across = centres.flip(0) if geometry.flip[i] else centres
        ys = geometry.top[i] + geometry.height[i] * centres
        xs = geometry.left[i] + geometry.width[i] * across
        y, x = torch.meshgrid(2 * ys - 1, 2 * xs - 1, indexing="ij")
        grids.append(torch.stack((x, y), -1))
    return F.grid_sample(maps, torch.stack(grids), padding_mode="border", align_corners=False)


@pytest.fixture(scope="module")
def network() -> DenseSiam:
    return build_network(SMALL, seed=0).eval()


def shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = DenseSiam(architecture).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


class TestParts:
    def test_heads_have_their_sizes(self) -> None:
        """Weights of the first and last layer of each head, (outputs, inputs, …), C = 128, K = 27, A = 64."""
        found = shapes(Architecture(over_clusters=64))
        ends = {
            "projector.0": (128, 128, 1, 1),
            "projector.6": (27, 128, 1, 1),
            "predictor.0": (128, 27, 1, 1),
            "predictor.3": (27, 128, 1, 1),
            "over_projector.6": (64, 128, 1, 1),
            "over_predictor.0": (128, 64, 1, 1),
            "region_projector.6": (128, 128),
            "region_predictor.3": (128, 128),
        }
        assert {name: found[f"{name}.weight"] for name in ends} == ends
        heads = {name.split(".")[0] for name in found} - {"encoder"}
        assert heads == {name.split(".")[0] for name in ends}

    def test_forward_is_the_projection_of_the_features(self, network: DenseSiam) -> None:
        images = view_pair().image_1
        with torch.no_grad():
            assert torch.equal(network(images), network.projector(network.encoder(images)))

    def test_features_of_res5_have_heads_of_its_width_and_stride_32(self) -> None:
        architecture = replace(SMALL, features="res5", image_head=True)
        found = shapes(architecture)
        assert found["projector.6.weight"] == (3, 512, 1, 1)
        assert found["region_projector.0.weight"] == (512, 512)
        assert found["image_predictor.0.weight"] == (128, 512)
        assert not any("decoder" in name or 8 in shape for name, shape in found.items())
        with torch.device("meta"):
            assert DenseSiam(architecture)(torch.empty(2, 3, 96, 64)).shape == (2, 3, 3, 2)

    def test_no_over_clusters_have_no_heads(self) -> None:
        all_heads = shapes(SMALL)
        expected = {name: all_heads[name] for name in all_heads if not name.startswith("over_")}
        assert shapes(replace(SMALL, over_clusters=0)) == expected

    def test_region_outputs_are_the_heads_row_by_row(self, network: DenseSiam) -> None:
        embeddings = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            u, q = network.region_outputs(embeddings)
            torch.testing.assert_close(u[1], network.region_projector(embeddings[1]))
            torch.testing.assert_close(q[1], network.region_predictor(u[1]))

    def test_regions_of_all_images_share_batch_statistics(self) -> None:
        network = build_network(SMALL, seed=0).train()
        embeddings = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0))
        u, q = network.region_outputs(embeddings)
        assert u.shape == q.shape == (4, 3, 8)
        torch.testing.assert_close(u.mean((0, 1)), torch.zeros(8), atol=1e-5, rtol=0)
        assert u.mean(1).abs().max() > 0.1


class TestInitialWeights:
    def test_are_drawn_part_by_part_and_options_last(self) -> None:
        """A seed's network is the same to the last bit with an image head beside it and without over-clusters."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(torch_seed(7, Stream.WEIGHTS))
            parts = nn.ModuleDict()
            parts["encoder"] = Encoder("resnet18", 8)
            parts["projector"] = projector(8, 3, pixels=True)
            parts["predictor"] = predictor(3, 8, pixels=True)
            parts["over_projector"] = projector(8, 5, pixels=True)
            parts["over_predictor"] = predictor(5, 8, pixels=True)
            parts["region_projector"] = projector(8, 8, pixels=False)
            parts["region_predictor"] = predictor(8, 8, pixels=False)
        expected = parts.state_dict()
        assert list(build_network(SMALL, seed=7).state_dict()) == list(expected)
        for architecture in (SMALL, replace(SMALL, image_head=True)):
            found = build_network(architecture, seed=7).state_dict()
            assert all(torch.equal(found[name], value) for name, value in expected.items())
        without = build_network(replace(SMALL, over_clusters=0), seed=7).state_dict()
        for name in without:
            if not name.startswith("region_"):
                assert torch.equal(without[name], expected[name])

    def test_are_a_function_of_the_seed(self) -> None:
        one = build_network(SMALL, seed=5).state_dict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(99)
            same = build_network(SMALL, seed=5).state_dict()
        other = build_network(SMALL, seed=6).state_dict()
        assert all(torch.equal(one[key], same[key]) for key in one)
        drawn = [key for key in one if one[key].is_floating_point() and one[key].std() > 0]
        assert len(drawn) > 30
        assert not any(torch.equal(one[key], other[key]) for key in drawn)

    def test_global_generators_are_untouched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seeded: list[int] = []
        # A GPU's generator as well: `torch.manual_seed` would set it through this function.
        monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
        before = torch.get_rng_state()
        build_network(SMALL, seed=0)
        assert torch.equal(torch.get_rng_state(), before)
        assert seeded == []


class TestPairedFeatures:
    def test_equal_separate_passes(self, network: DenseSiam) -> None:
        """DenseSiam, section 3: F₁ is the encoder's of view 1, F₂ the encoder's of view 2, then G."""
        views = view_pair()
        with torch.no_grad():
            features = network.paired_features(views)
            first = network.encoder(views.image_1)
            second = warped(network.encoder(views.image_2), views.geometry)
        assert features.shape == (4, 8, 8, 8)
        torch.testing.assert_close(features[:2], first, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(features[2:], second, atol=1e-5, rtol=1e-5)

    def test_gradient_reaches_the_encoder_through_both_views(self, network: DenseSiam) -> None:
        views = view_pair()
        views.image_1.requires_grad_()
        views.image_2.requires_grad_()
        for part, (own, other) in enumerate(
            ((views.image_1, views.image_2), (views.image_2, views.image_1))
        ):
            features = network.paired_features(views).chunk(2)[part]
            to_own, to_other = torch.autograd.grad(features.square().sum(), (own, other))
            assert to_own.abs().max() > 0
            assert to_other.abs().max() == 0

    def test_views_share_batch_statistics(self) -> None:
        network = build_network(SMALL, seed=1).train()
        views = view_pair()
        network.paired_features(views)
        backbone = network.encoder.backbone
        norm = backbone.get_submodule("bn1")
        assert norm.num_batches_tracked == 1
        with torch.no_grad():
            both = backbone.get_submodule("conv1")(torch.cat((views.image_1, views.image_2)))
        # Running mean: 0.9 · 0 + 0.1 · the mean of both views together.
        torch.testing.assert_close(norm.running_mean, 0.1 * both.mean((0, 2, 3)))

    def test_keeps_the_features_type(self, network: DenseSiam) -> None:
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert network.paired_features(view_pair()).dtype == torch.bfloat16


@pytest.fixture(scope="module")
def joined() -> DenseSiam:
    """A network whose scores are joined with those of a mixture."""
    network = build_network(Architecture(channels=8, clusters=3, mixture=True), seed=0).eval()
    assert network.mixture is not None
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(200, CHANNELS, generator=draw)
    network.mixture.fit(Sample(points, points[None], torch.arange(200) // 40), seed=0)
    return network


class TestMixture:
    def test_the_weights_are_those_without_it(self, joined: DenseSiam) -> None:
        plain = build_network(Architecture(channels=8, clusters=3), seed=0).state_dict()
        assert all(torch.equal(joined.state_dict()[name], value) for name, value in plain.items())

    def test_dense_is_features_and_log_posteriors(self, joined: DenseSiam) -> None:
        images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
        dense = joined.dense(normalise(images))
        assert dense.shape == (2, 8 + 3, 8, 12)
        torch.testing.assert_close(dense[:, :8], joined.encoder(normalise(images)))
        expected = joined.log_posteriors(images, (8, 12))
        torch.testing.assert_close(dense[:, 8:], expected, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(dense[:, 8:].exp().sum(1), torch.ones(2, 8, 12))

    def test_scores_are_the_log_of_a_product(self, joined: DenseSiam) -> None:
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        dense = joined.dense(images)
        learned = (SHARPNESS * joined.projector(dense[:, :8])).softmax(1)
        assert joined.mixture is not None
        joined.usual.copy_(torch.tensor([0.7, 0.3, 0.0]))
        # By hand: p(k | a, b) is proportional to p(k | a) p(k | b) / p(k), for a p(k) that is never nothing.
        usual = (joined.usual + 0.01 * joined.mixture.shares) / 1.01
        product = learned * dense[:, 8:].exp() / usual.view(-1, 1, 1)
        expected = product.log().log_softmax(1)
        torch.testing.assert_close(joined(images), expected)

    def test_usual_shares_are_a_running_mean(self) -> None:
        """Two places that say 0 and ln 3 twice over have shares of ½ and ¼ of the first of two clusters."""
        network = build_network(Architecture(channels=8, clusters=2, mixture=True), seed=0)
        z = torch.tensor([[0.0, 0.0], [0.0, np.log(3.0)]]).T.view(1, 2, 1, 2) / SHARPNESS
        network.update_mean_shares(z)
        torch.testing.assert_close(
            network.usual, 0.9 * torch.tensor([0.5, 0.5]) + 0.1 * torch.tensor([0.375, 0.625])
        )

    def test_a_place_counts_the_same_at_every_batch(self, joined: DenseSiam) -> None:
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(joined(images)[1:], joined(images[1:]), atol=1e-4, rtol=1e-4)
