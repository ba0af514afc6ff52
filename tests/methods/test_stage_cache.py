"""Stages of a frozen backbone on the disk: the same numbers as without, whole or not there, and told in advance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import objective_of

from densesiam_seg.config import TrainConfig
from densesiam_seg.errors import UsageError
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import ImageStore
from densesiam_seg.io.devices import autocast
from densesiam_seg.methods import stage_cache
from densesiam_seg.methods.densesiam import DenseSiamMethod
from densesiam_seg.methods.method import Objective
from densesiam_seg.methods.stage_cache import StageCache
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import DenseSiam, build_network
from densesiam_seg.views.pair import view_pair

pytestmark = pytest.mark.usefixtures("slim_module")

CPU = torch.device("cpu")
VALUES = 4 * 8 * 8 + 8 * 4 * 4 + 8 * 2 * 2 + 16
"""Numbers of the slim stages of a view of 32 pixels."""


@pytest.fixture
def config(tiny_settings: dict[str, Any], tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        **{**tiny_settings, "batch_size": 5, "freeze": True, "replay": "run", "region_start": 0.0},
        cache_dir=str(tmp_path / "cache"),
    )


@pytest.fixture(scope="module")
def store(image_folder: Path) -> ImageStore:
    """Twelve images: with batches of five, the last one of a pass is filled up."""
    store = ImageStore(scan([image_folder]), 64, workers=0, keep="ram")
    for _ in store.prepare():
        pass
    return store


def frozen(seed: int = 3) -> DenseSiam:
    """Its backbone's batch statistics are not those that it was born with."""
    network = build_network(Architecture("resnet18", 16, 4, 6), seed).train()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(10):
            network.encoder(torch.randn(4, 3, 32, 32, generator=draw))
    network.encoder.freeze()
    return network


def cache_of(
    network: DenseSiam, config: TrainConfig, store: ImageStore, precision: Any = torch.float32
) -> StageCache:
    return StageCache(network.encoder, config, store, CPU, precision)


def written(
    network: DenseSiam, config: TrainConfig, store: ImageStore, precision: Any = torch.float32
) -> StageCache:
    cache = cache_of(network, config, store, precision)
    assert not cache.written()
    assert list(cache.write()) == [5, 10, 12]
    return cache


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_rows_are_the_stages_of_both_views(
    config: TrainConfig, store: ImageStore, precision: torch.dtype
) -> None:
    network = frozen()
    cache = written(network, config, store, precision)
    group = (7, 0, 11, 3, 4)
    (rows,) = cache.batches([group])
    assert rows.indices == group
    (images,) = store.batches([group])
    views = view_pair(images.images, group, seed=config.seed, round_=0)
    with torch.no_grad(), autocast(CPU, precision):
        expected = network.encoder.backbone(torch.cat((views.image_1, views.image_2)))
    for found, wanted in zip(cache.stages(rows.images), expected, strict=True):
        assert found.dtype == precision
        torch.testing.assert_close(found, wanted.to(precision))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("image_weight", [0.0, 1.0])
def test_losses_and_gradients_are_those_without_it(
    config: TrainConfig, store: ImageStore, precision: torch.dtype, image_weight: float
) -> None:
    architecture = Architecture("resnet18", 16, 4, 6, image_head=bool(image_weight))
    config = replace(config, image_weight=image_weight)
    group = (2, 9, 1, 5, 8)
    results: list[tuple[Objective, list[torch.Tensor]]] = []
    for kept in (False, True):
        network = build_network(architecture, 3).train()
        network.to(memory_format=torch.channels_last)
        network.encoder.freeze()
        method = DenseSiamMethod(network, config)
        if kept:
            method.stage_cache = written(network, config, store, precision)
        (batch,) = method.batches(store, [group], pinned=False)
        with autocast(CPU, precision):
            result = objective_of(method, batch.images, batch.indices, epoch=2)
        result.total.backward()  # type: ignore[no-untyped-call]
        gradients = [value.grad for value in network.parameters() if value.grad is not None]
        results.append((result, gradients))
    (plain, gradients), (cached, others) = results
    assert set(plain.parts) >= {"pixel", "over_cluster", "segmentation", "region"}
    torch.testing.assert_close(cached.parts, plain.parts)
    torch.testing.assert_close(others, gradients)
    assert len(gradients) > 10


def test_the_size_is_known_in_advance(config: TrainConfig, store: ImageStore) -> None:
    network = frozen()
    assert cache_of(network, config, store).size == 12 * 2 * VALUES * 4
    half = cache_of(network, config, store, torch.bfloat16)
    assert half.size == 12 * 2 * VALUES * 2 and half.row == 4 * VALUES
    cache = written(network, config, store)
    assert cache.path.stat().st_size == cache.size + 32  # and a SHA-256


def test_its_name_is_all_that_the_numbers_depend_on(config: TrainConfig, store: ImageStore) -> None:
    network = frozen()
    path = cache_of(network, config, store).path
    assert cache_of(frozen(), config, store).path == path
    assert cache_of(network, replace(config, epochs=9, learning_rate=1.0), store).path == path
    few = ImageStore(store.manifest.without([]), 64, workers=0, fit="stretch")
    others = [
        cache_of(network, replace(config, seed=1), store),
        cache_of(network, replace(config, precision="auto"), store),
        cache_of(network, config, store, torch.bfloat16),
        cache_of(network, config, few),
        cache_of(frozen(4), config, store),
    ]
    network.encoder.backbone.get_buffer("bn1.running_mean")[0] += 1
    others.append(cache_of(network, config, store))
    assert len({path, *(other.path for other in others)}) == 7


class TestWhole:
    def test_a_file_that_changed_is_not_used(self, config: TrainConfig, store: ImageStore) -> None:
        network = frozen()
        cache = written(network, config, store)
        data = cache.path.read_bytes()
        for place in (0, len(data) // 2, len(data) - 1):
            changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            cache.path.write_bytes(changed)
            assert not cache.written()
        cache.path.write_bytes(data[:-1])
        assert not cache.written()
        cache.path.write_bytes(data)
        assert cache.written()

    def test_a_stop_leaves_nothing(self, config: TrainConfig, store: ImageStore) -> None:
        network = frozen()
        cache = cache_of(network, config, store)
        writing = cache.write()
        assert next(writing) == 5
        writing.close()
        assert not cache.written()
        assert list(cache.path.parent.iterdir()) == []

    def test_half_a_file_is_none_and_one_in_use_may_be_deleted(
        self, config: TrainConfig, store: ImageStore
    ) -> None:
        cache = written(frozen(), config, store)
        assert cache.written()
        (before,) = cache.batches([(1, 2)])
        whole = cache.path.read_bytes()
        cache.path.unlink()
        (after,) = cache.batches([(1, 2)])
        assert torch.equal(before.images, after.images)
        cache.path.write_bytes(whole[:-1])
        assert not cache.written()

    def test_the_backbone_is_as_it_was(self, config: TrainConfig, store: ImageStore) -> None:
        network = frozen()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        written(network, config, store)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_half_of_what_is_free_is_taken_unasked_and_all_where_asked(
    config: TrainConfig, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_of(frozen(), config, store)
    for free, room in ((2 * cache.size, True), (2 * cache.size - 1, False)):
        monkeypatch.setattr(stage_cache, "free_space", lambda folder, free=free: free)
        assert cache.has_room(asked=False) is room
        assert cache.has_room(asked=True)
    monkeypatch.setattr(stage_cache, "free_space", lambda folder: cache.size - 1)
    with pytest.raises(UsageError, match="--cache disk"):
        cache.has_room(asked=True)
