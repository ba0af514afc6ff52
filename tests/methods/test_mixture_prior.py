from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import objective_of
from PIL import Image

from densesiam_seg.clustering.appearance import CHANNELS
from densesiam_seg.config import TrainConfig
from densesiam_seg.images.decode import load_square
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import ImageStore
from densesiam_seg.methods.densesiam import DenseSiamMethod
from densesiam_seg.methods.mixture_prior import Places, appearance_of, fit_mixture, prior_shares
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import DenseSiam, build_network
from densesiam_seg.views.parameters import Geometry

pytestmark = pytest.mark.usefixtures("slim_module")
SIDE = 64


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """Bright smooth skies above dark rough grounds."""
    draw = np.random.default_rng(0)
    for number in range(6):
        picture = np.full((SIDE, SIDE, 3), (170, 200, 240), np.uint8)
        picture[SIDE // 2 :] = draw.integers(20, 110, (SIDE // 2, SIDE, 1))
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    store = ImageStore(scan([tmp_path]), SIDE, workers=0, keep="ram")
    for _ in store.prepare():
        pass
    return store


@pytest.fixture
def network(store: ImageStore) -> DenseSiam:
    network = build_network(Architecture(channels=8, clusters=2, mixture=True), seed=0)
    done = list(fit_mixture(network, store, seed=0))
    assert done[:6] == [1, 1, 2, 2, 3, 3] and done[6:] == sorted(done[6:]) and done[-1] == 6
    return network


def whole(count: int, flip: float = 0.0) -> Geometry:
    rows = torch.tensor([[0.0, 0.0, 1.0, 1.0, flip]]).expand(count, 5)
    return Geometry(*rows.T.contiguous())


def images_of(store: ImageStore) -> torch.Tensor:
    return next(iter(store.batches([tuple(range(6))]))).images


def test_sky_and_ground_are_told_apart(network: DenseSiam, store: ImageStore) -> None:
    shares = prior_shares(network, images_of(store), whole(6), 8)
    winners = shares.argmax(1)
    assert shares.shape == (6, 2, 8, 8)
    torch.testing.assert_close(shares.sum(1), torch.ones(6, 8, 8))
    assert len(set(winners[:, :3].flatten().tolist())) == 1
    assert len(set(winners[:, 5:].flatten().tolist())) == 1
    assert winners[0, 0, 0] != winners[0, -1, 0]


def test_shares_lie_where_view_1_shows_them(network: DenseSiam, store: ImageStore) -> None:
    images = images_of(store)
    plain, flipped = (prior_shares(network, images, whole(6, flip), 8) for flip in (0.0, 1.0))
    torch.testing.assert_close(flipped, plain.flip(-1), atol=1e-5, rtol=1e-5)
    upper = Geometry(*(torch.full((6,), value) for value in (0.0, 0.0, 0.5, 0.5, 0.0)))
    sky = prior_shares(network, images, upper, 8).argmax(1)
    assert (sky[:, :7] == plain.argmax(1)[0, 0, 0]).all()


def test_it_is_fitted_to_images_as_a_model_is_shown_them(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At half the stored side, made small as an image is that is segmented."""
    given: list[torch.Tensor] = []
    monkeypatch.setattr(Places, "drawn", lambda self, image, index: given.append(image))
    monkeypatch.setattr(Places, "sample", lambda self, group: None)
    monkeypatch.setattr(
        "densesiam_seg.clustering.mixture.Mixture.fitting",
        lambda self, sample, seed, group: iter(()),
    )
    list(fit_mixture(build_network(Architecture(clusters=2, mixture=True), 0), store, 0))
    paths = [store.manifest.path(index) for index in range(6)]
    shown = torch.stack([load_square(path, SIDE // 2) for path in paths])
    torch.testing.assert_close(torch.cat(given), shown.float(), atol=1.0, rtol=0)


def test_places_are_the_same_in_every_light() -> None:
    image = torch.randint(40, 120, (1, 3, SIDE, SIDE), dtype=torch.uint8)
    places = Places(1, seed=0)
    places.add(image, 0)
    sample = places.sample()
    assert sample.points.shape == (256, CHANNELS) and sample.relit.shape == (2, 256, CHANNELS)
    # Position and the differences of logarithms stay, near enough; the logarithm of the luminance does not.
    assert torch.equal(sample.relit[0, :, -2:], sample.points[:, -2:])
    assert bool((sample.relit[0, :, 0] < sample.points[:, 0]).all())
    assert bool((sample.relit[1, :, 0] > sample.points[:, 0]).all())
    lit = appearance_of(image.float() * 0.7)[0].flatten(1).T
    order = (sample.points[:, None, -2:] == lit[None, :, -2:]).all(2).int().argmax(1)
    torch.testing.assert_close(sample.relit[0], lit[order])


def test_only_the_first_epoch_fits(store: ImageStore) -> None:
    config = TrainConfig(image_size=32, channels=8, clusters=2, prior="mixture")
    network = build_network(Architecture(channels=8, clusters=2, mixture=True), seed=0)
    method = DenseSiamMethod(network, config)
    assert list(method.prepare(store, 1)) == []
    assert [*method.prepare(store, 0)][-1] == 6
    before = network.usual.clone()
    result = objective_of(method, images_of(store), range(6), 0)
    assert next(iter(result.parts)) == "prior"
    assert not torch.equal(network.usual, before)
    plain = DenseSiamMethod(
        build_network(Architecture(channels=8, clusters=2), seed=0), TrainConfig()
    )
    assert list(plain.prepare(store, 0)) == []
