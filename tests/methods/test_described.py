from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import in_ranks
from slim import slim_resnets
from torch import Tensor

from densesiam_seg.clustering.directions import Directions
from densesiam_seg.clustering.mixture import Mixture
from densesiam_seg.config import TrainConfig
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import ImageStore
from densesiam_seg.methods import described
from densesiam_seg.methods.described import BALANCING, SHARPENING, Described
from densesiam_seg.methods.mixture_prior import LIGHTS, fit_mixture
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.inference_form import available
from densesiam_seg.network.model import DenseSiam, build_network
from densesiam_seg.peers.group import ALONE, Group
from densesiam_seg.views.photometric import normalise

pytestmark = pytest.mark.usefixtures("slim_module")
SIDE = 64
CONFIG = TrainConfig(
    clusters=2, batch_size=2, image_size=SIDE, freeze=True, prior="mixture", features="stages"
)


def draw_scenes(folder: Path, count: int) -> None:
    draw = np.random.default_rng(0)
    for number in range(count):
        picture = np.full((2 * SIDE, 2 * SIDE, 3), (170, 200, 240), np.uint8)
        picture[SIDE:] = draw.integers(20, 110, (SIDE, 2 * SIDE, 1))
        Image.fromarray(picture).save(folder / f"{number}.png")


def store_of(folder: Path) -> ImageStore:
    store = ImageStore(scan([folder]), 3 * SIDE, workers=0, keep="ram")
    for _ in store.prepare():
        pass
    return store


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """Bright smooth skies above dark rough grounds, at three times the image size."""
    draw_scenes(tmp_path, 4)
    return store_of(tmp_path)


def method_of(group: Group = ALONE) -> Described:
    architecture = Architecture(
        channels=8, clusters=2, over_clusters=0, features="stages", mixture=True
    )
    network = build_network(architecture, seed=0)
    network.encoder.freeze()
    return Described(network, CONFIG, group=group)


@pytest.fixture
def method(store: ImageStore) -> Described:
    found = method_of()
    done = list(found.prepare(store, 0))
    assert done == sorted(done) and done[-1] == 4
    return found


def images_of(store: ImageStore) -> Tensor:
    return next(iter(store.batches([tuple(range(4))]))).images


def scores_of(network: DenseSiam, images: Tensor) -> Tensor:
    with torch.no_grad():
        scores: Tensor = network(normalise(images.float() / 255))
    return scores


def weights(network: DenseSiam) -> list[Tensor]:
    return [each.detach().clone() for each in network.projector.parameters()]


def test_training_starts_as_clusters_that_tell_sky_and_ground_apart(
    method: Described, store: ImageStore
) -> None:
    """Their appearance is the more stable: it is read on the finer grid."""
    assert method.network.mixture is not None and method.network.mixture.fitted
    winners = scores_of(method.network, images_of(store)).argmax(1)
    assert winners.shape == (4, 16, 16)
    top, bottom = winners[:, :6].flatten().tolist(), winners[:, 10:].flatten().tolist()
    assert len(set(top)) == len(set(bottom)) == 1 and top[0] != bottom[0]


@pytest.mark.parametrize("stable", ["learned", "appearance"])
def test_the_more_stable_clusters_are_the_start(
    stable: str, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other description says the same of every cluster."""
    axes = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).double()
    found = Directions(axes, torch.tensor([0.25, 0.75]).double().log())
    monkeypatch.setattr(
        described,
        "find_directions",
        lambda *_, **__: returning((found, 1.1 if stable == "learned" else -0.1)),
    )
    method = method_of()
    assert list(method.prepare(store, 0))
    mixture = method.network.mixture
    assert mixture is not None
    weight, bias = weights(method.network)
    logs = mixture(torch.randn(1, len(mixture.mean), 3, 3))
    if stable == "learned":
        torch.testing.assert_close(weight[:, :, 0, 0], axes.float())
        torch.testing.assert_close(bias.exp(), torch.tensor([0.25, 0.75]))
        torch.testing.assert_close(logs.exp(), torch.full((1, 2, 3, 3), 0.5))
    else:
        assert not weight.any() and not bias.any()
        assert mixture.centres.any() and float(logs.std()) > 0.01


def returning(value: object) -> Generator[float, None, object]:
    yield 1.0
    return value


@pytest.mark.parametrize("fitted", [True, False])
def test_the_kept_places_are_what_the_network_sees(
    method: Described, store: ImageStore, fitted: bool
) -> None:
    images, mixture = images_of(store), method.network.mixture
    assert mixture is not None
    if not fitted:
        mixture.load_state_dict(Mixture(2).state_dict())
        torch.nn.init.normal_(next(method.network.projector.parameters()))
        method._kept.clear()
    places = torch.stack(method._places_of(zip(images, range(4), strict=True)))
    assert places.shape[1] == 2 and places.shape[-1] == (16 if fitted else 8)
    found = method.network.scores(method._dense(places[:, 0].float()))
    torch.testing.assert_close(found, scores_of(method.network, images), atol=0.02, rtol=0.02)


def test_only_exact_mode_reads_the_layers_one_by_one(store: ImageStore) -> None:
    """Also where the first pass is inside a step, as in a run that goes on."""
    methods = method_of(), method_of()
    methods[1].config = replace(CONFIG, precision="fp32")
    with torch.autocast("cpu", torch.bfloat16):
        (folded, look), (plain, seen) = (
            next(iter(each._of_each(lambda batch, by=each: by._stages(batch.images), batches)))  # type: ignore[misc]
            for each in methods
            for batches in [store.batches([(0,)])]
        )
    assert methods[1]._form is methods[1].network
    assert (methods[0]._form is methods[0].network) != available(torch.float32)
    assert torch.equal(look, seen)
    for view, other in zip(folded, plain, strict=True):
        for size, one in zip(view, other, strict=True):
            for stage, expected in zip(size, one, strict=True):
                torch.testing.assert_close(stage, expected, rtol=4e-3, atol=4e-3)


def test_what_is_kept_at_the_start_is_what_is_read_later(store: ImageStore) -> None:
    """A run that goes on reads the image without its other lights; a ResNet's layers round by the size of a batch."""
    method = method_of()
    method.config = replace(CONFIG, precision="fp32")
    batch = next(iter(store.batches([(0,)])))
    views = [method._stages(batch.images, lights) for lights in (LIGHTS, ())]
    (own, enlarged), look = views[0]
    (again, large), seen = views[1]
    assert torch.equal(look[[0, -1]], seen)
    for sizes, others in ((own, again), (enlarged, large)):
        for size, other in zip(sizes, others, strict=True):
            assert all(torch.equal(one[:1], two) for one, two in zip(size, other, strict=True))


def test_targets_are_the_enlarged_views_nearer_to_the_first_shares(
    method: Described, store: ImageStore
) -> None:
    """In each step the logarithms of the shares are added, less those of the sharpened posteriors."""
    places = torch.stack(method._places_of((None, index) for index in range(4))).float()
    dense, state = method._dense(places[:, 1]), method.state()
    logs = method.network.scores(dense)
    first = method.network.scores(method._dense(places[:, 0])).softmax(1).mean((0, 2, 3))
    torch.testing.assert_close(state["shares"], first, atol=1e-4, rtol=1e-4)
    for _ in range(BALANCING):
        sharpened = (SHARPENING * logs).softmax(1).mean((0, 2, 3))
        logs = logs + ((first / sharpened).log() / SHARPENING).view(-1, 1, 1)
    expected = (SHARPENING * logs).softmax(1)
    torch.testing.assert_close(method._targets(dense), expected, atol=1e-4, rtol=1e-3)


def test_only_the_layer_learns(method: Described, store: ImageStore) -> None:
    network, images = method.network, images_of(store)[:2]
    result = method.objective(images, (0, 1), 0)
    assert result.parts.keys() == {"pixel"} and int(result.histogram.sum()) == 2 * 256
    torch.autograd.backward(result.total)
    learning = {name for name, each in network.named_parameters() if each.grad is not None}
    assert learning == {"projector.0.weight", "projector.0.bias"}


@pytest.mark.parametrize("fitted", [True, False])
def test_places_that_were_not_kept_are_the_same_within_a_step(
    method: Described, store: ImageStore, fitted: bool
) -> None:
    """A run that goes on, or one of many images, computes them in the middle of a step, in that step's precision."""
    assert method.network.mixture is not None
    if not fitted:
        method.network.mixture.load_state_dict(Mixture(2).state_dict())
        method._kept.clear()
    images = images_of(store)[:2]
    kept = method._places_of(zip(images, range(2), strict=True))
    method._kept.clear()
    with torch.autocast("cpu", torch.bfloat16):
        method.objective(images, (0, 1), 0)
    assert all(torch.equal(method._kept[index], each) for index, each in enumerate(kept))


def test_parts_of_a_batch_add_up(method: Described, store: ImageStore) -> None:
    images = images_of(store)
    whole = method.objective(images, range(4), 0)
    parts = [
        method.objective(images[part.start : part.stop], part, 0)
        for part in (range(1), range(1, 4))
    ]
    mean = (parts[0].total + 3 * parts[1].total) / 4
    torch.testing.assert_close(mean, whole.total, atol=1e-5, rtol=0)
    assert torch.equal(parts[0].histogram + parts[1].histogram, whole.histogram)


def begun(group: Group, folder: str) -> list[str]:
    """Digests of all that training starts from: with either kind of clusters, and by the mixture alone."""
    found = []
    with slim_resnets():
        store = store_of(Path(folder))
        for margin in (-2.0, 2.0):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(described, "MARGIN", margin)
                method = method_of(group)
                done = list(method.prepare(store, 0))
            assert done == sorted(done) and done[-1] == len(store)
            assert method.network.mixture is not None
            assert method.network.mixture.fitted == (margin < 0)
            found.append(digest({**method.network.state_dict(), **method.state()}))
        network = build_network(Architecture(channels=8, clusters=2, mixture=True), seed=0)
        list(fit_mixture(network, store, 0, group=group))
        return [*found, digest(network.state_dict())]


def digest(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


def test_any_number_of_processes_and_threads_begins_with_one_model(tmp_path: Path) -> None:
    """Each process has one thread, of four the first has no image."""
    draw_scenes(tmp_path, 3)
    before, alone = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        alone.append(begun(ALONE, str(tmp_path)))
    torch.set_num_threads(before)
    assert alone[0] == alone[1] and len(set(alone[0])) == 3
    for count in (2, 4):
        assert in_ranks(count, begun, str(tmp_path)) == [alone[0]] * count


def state_of(method: Described) -> Mapping[str, Tensor]:
    return {name: value.clone() for name, value in method.state().items()}


def test_a_prepared_epoch_is_not_prepared_again(method: Described, store: ImageStore) -> None:
    """A run that goes on within an epoch keeps the layer that it had, and its teacher."""
    with torch.no_grad():
        for each in method.network.projector.parameters():
            each.add_(0.5)
    before, layer = state_of(method), weights(method.network)
    resumed = Described(method.network, CONFIG)
    resumed.restore(state_of(method))
    assert list(resumed.prepare(store, 0)) == []
    assert all(torch.equal(before[name], value) for name, value in resumed.state().items())
    assert all(map(torch.equal, layer, weights(method.network)))


def test_a_round_has_the_last_layer_as_its_teacher(method: Described, store: ImageStore) -> None:
    """With 2 steps an epoch a round of 25 steps is 12 epochs; what was kept makes no difference."""
    with torch.no_grad():
        next(method.network.projector.parameters()).mul_(2.0)
    before = state_of(method)
    assert list(method.prepare(store, 11)) == []
    assert torch.equal(method.state()["teacher"], before["teacher"])
    anew = Described(method.network, CONFIG)
    anew.restore(state_of(method))
    for each in (method, anew):
        assert list(each.prepare(store, 12)) == []
        torch.testing.assert_close(each.state()["teacher"], 2 * before["teacher"])
    torch.testing.assert_close(method.state()["bias"], anew.state()["bias"])
