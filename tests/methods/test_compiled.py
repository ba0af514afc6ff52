"""The form for a compiler against the method's own, and as one graph."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch
from networks import gradients, require_alike
from torch import Tensor, nn

from densesiam_seg.config import TrainConfig, with_settings
from densesiam_seg.io import devices
from densesiam_seg.methods.compiled import (
    PixelForm,
    Pixels,
    pixel_losses,
    through,
    try_colour,
    try_pixels,
)
from densesiam_seg.methods.densesiam import objective
from densesiam_seg.methods.losses import Balance, Similarity
from densesiam_seg.methods.method import Objective
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import DenseSiam, build_network, predictor, projector
from densesiam_seg.views.photometric import changed

CONFIG = TrainConfig(image_size=32, clusters=5, over_clusters=11, channels=12, batch_size=2)
EXACT = replace(CONFIG, precision="fp32")


@pytest.fixture(scope="module")
def trained() -> DenseSiam:
    """With heads that no multiple of 8 fits, and a mixture's shares."""
    architecture = Architecture("resnet18", 12, 5, 11, mixture=True)
    network = build_network(architecture, 1).train()
    network.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # Else all batch norms begin alike, and a mistaken order of theirs would show nothing.
            if "projector" in name or "predictor" in name:
                draw = torch.Generator().manual_seed(len(name))
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
    return network


def features(dtype: torch.dtype = torch.float32) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    maps = torch.randn(4, 12, 8, 8, generator=draw).to(dtype)
    return maps.to(memory_format=torch.channels_last).requires_grad_()


def prior_maps() -> Tensor:
    return torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(4)).softmax(1)


def result_of(
    network: DenseSiam, maps: Tensor, config: TrainConfig, pixels: PixelForm | None, prior: bool
) -> tuple[Objective, DenseSiam]:
    """On a copy, as running statistics are kept."""
    own = copy.deepcopy(network)
    shares = prior_maps() if prior else None
    return objective(own, maps, config, regions=True, prior=shares, pixels=pixels), own


def require_same(
    found: tuple[Objective, DenseSiam], wanted: tuple[Objective, DenseSiam], tolerance: float
) -> None:
    (one, network), (two, other) = found, wanted
    assert list(one.parts) == list(two.parts)
    torch.testing.assert_close(one.parts, two.parts, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(one.total, two.total, atol=tolerance, rtol=tolerance)
    mine, theirs = gradients(network, one.total), gradients(other, two.total)
    require_alike(mine, theirs, tolerance)
    for (name, buffer), expected in zip(network.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize(
    ("similarity", "balance", "prior"),
    [
        *product(("cross-entropy", "cosine"), ("inverse", "frequency", "none"), (False,)),
        ("cross-entropy", "inverse", True),
    ],
)
def test_losses_gradients_and_statistics_are_those_of_exact_mode(
    trained: DenseSiam, similarity: Similarity, balance: Balance, prior: bool
) -> None:
    config = replace(EXACT, similarity=similarity, balance=balance)
    maps, twin = features(), features()
    found = result_of(trained, maps, config, pixel_losses, prior)
    wanted = result_of(trained, twin, config, None, prior)
    assert torch.equal(found[0].histogram, wanted[0].histogram)
    assert found[0].histogram.sum() == 4 * 64 and found[0].agreement == wanted[0].agreement
    one, two = (
        torch.autograd.grad(each.total, place, retain_graph=True)[0]
        for each, place in ((found[0], maps), (wanted[0], twin))
    )
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-3)
    require_same(found, wanted, 1e-5)


def test_half_precision_rounds_maps_and_not_statistics(trained: DenseSiam) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, network = result_of(trained, features(torch.bfloat16), CONFIG, pixel_losses, False)
    wanted, _ = result_of(trained, features(), EXACT, None, False)
    for name, loss in wanted.parts.items():
        torch.testing.assert_close(found.parts[name].float(), loss, atol=0.02, rtol=0.02)
    assert {buffer.dtype for buffer in network.buffers()} <= {torch.float32, torch.int64}


def test_losses_that_are_off_and_labels_that_nobody_has(trained: DenseSiam) -> None:
    """With one cluster far ahead the others have no pixel, and weigh nothing."""
    config = replace(EXACT, over_cluster_weight=0.0, pixel_weight=0.0)
    network = copy.deepcopy(trained)
    layer = nn.Conv2d(12, 5, 1)
    network.projector = nn.Sequential(layer)
    with torch.no_grad():
        assert layer.bias is not None
        layer.bias.copy_(torch.tensor([50.0, 0, 0, 0, 0]))
    pixels = pixel_losses(network, features(), config, None)
    assert list(pixels.losses) == ["segmentation"]
    assert pixels.histogram.tolist() == [256, 0, 0, 0, 0]
    assert 0 <= pixels.losses["segmentation"] < 1e-6
    assert pixels.agreement == 1


def test_a_head_of_any_width_is_its_modules(trained: DenseSiam) -> None:
    maps = torch.randn(3, 9, 4, 4, generator=torch.Generator().manual_seed(0))
    for head in (projector(9, 7, pixels=True), predictor(9, 6, pixels=True)):
        found = through(copy.deepcopy(head), maps.permute(0, 2, 3, 1).reshape(-1, 9))
        expected = head(maps).permute(0, 2, 3, 1).reshape(found.shape)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler without machine code."""
    torch.compiler.reset()
    monkeypatch.setattr(devices, "COMPILER", "aot_eager")


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("prior", [False, True])
def test_one_graph_that_is_tried_once_serves_every_step(trained: DenseSiam, prior: bool) -> None:
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    config = replace(EXACT, prior="mixture" if prior else "none")
    form = devices.compiled(pixel_losses)
    network = copy.deepcopy(trained)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try_pixels(form, network, config, 2)
    after = network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in network.parameters())
    for _ in range(2):
        # As a network leaves them: no leaf of the graph.
        found = objective(
            network,
            features() * 1.0,
            config,
            regions=True,
            prior=prior_maps() if prior else None,
            pixels=form,
        )
        torch.autograd.backward(found.total)
    assert graphs["unique_graphs"] == 1
    maps = features()
    require_same(
        result_of(trained, maps, config, form, prior),
        result_of(trained, maps, config, pixel_losses, prior),
        1e-6,
    )


def test_regions_alone_can_be_tried(trained: DenseSiam) -> None:
    off = {"pixel_weight": 0.0, "over_cluster_weight": 0.0, "segmentation_weight": 0.0}
    config = with_settings(EXACT, {**off, "region_start": 0.0, "prior": "none"})
    assert isinstance(config, TrainConfig)
    try_pixels(pixel_losses, trained, config, 2)


def test_a_failed_trial_leaves_the_network_as_it_was(trained: DenseSiam) -> None:
    def refused(*arguments: object) -> Pixels:
        pixel_losses(trained, features(), CONFIG, None)
        raise RuntimeError("no kernel")

    before = {name: value.clone() for name, value in trained.state_dict().items()}
    with pytest.raises(RuntimeError, match="no kernel"):
        try_pixels(refused, trained, CONFIG, 2)
    assert all(torch.equal(trained.state_dict()[name], value) for name, value in before.items())
    assert trained.training


@pytest.mark.usefixtures("traced")
def test_colours_are_one_graph(trained: DenseSiam) -> None:
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    form = devices.compiled(changed)
    try_colour(form, trained, CONFIG, 2)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    colours = torch.tensor([[1.2, 0.8, 1.1, 0.05, 0.0], [0.7, 1.3, 0.9, -0.1, 1.0]])
    assert torch.equal(form(images, colours), changed(images, colours))  # as drawn in training
    assert graphs["unique_graphs"] == 1
