"""The training loop: its records, its state, and that one step follows from the other wherever it is taken up."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from densesiam_seg import batches, loop
from densesiam_seg.batches import ImageStore, epoch_batches
from densesiam_seg.config import TrainConfig, with_settings
from densesiam_seg.errors import InputError, NumericError
from densesiam_seg.loop import EpochRecord, EpochSums, StepRecord, Training
from densesiam_seg.model import Architecture, DenseSiam, build_network
from densesiam_seg.objective import Objective, objective
from densesiam_seg.scan import scan
from densesiam_seg.views import ViewPair, view_pair

Record = StepRecord | EpochRecord
Make = Callable[..., Training]
LAST = 9
"""Steps of a whole course."""


@pytest.fixture(scope="module", autouse=True)
def _slim(slim_resnets: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    with slim_resnets():
        yield


@pytest.fixture(scope="module")
def make(image_folder: Path, tiny_settings: dict[str, Any]) -> Make:
    """A new Training over the twelve images, with settings that differ from the tiny ones."""

    def build(
        *, precision: torch.dtype = torch.float32, images: int = 12, **settings: Any
    ) -> Training:
        config = with_settings(TrainConfig(), {**tiny_settings, **settings})
        manifest = scan(sorted(image_folder.iterdir())[:images])
        store = ImageStore(
            manifest, 2 * config.image_size, workers=config.workers, max_pixels=config.max_pixels
        )
        for _ in store.prepare():
            pass
        architecture = Architecture(
            config.backbone, config.channels, config.clusters, config.over_clusters
        )
        network = build_network(architecture, config.seed)
        return Training(network, config, store, torch.device("cpu"), precision)

    return build


def untimed(records: list[Record]) -> list[Record]:
    return [replace(r, seconds=0.0) if isinstance(r, StepRecord) else r for r in records]


def tensors_of(training: Training) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.state()[0].items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def steps(training: Training, count: int) -> list[StepRecord]:
    """Take so many steps and leave the course there."""
    found = []
    for record in training.records():
        if isinstance(record, StepRecord):
            found.append(record)
            if len(found) == count:
                return found
    raise AssertionError("the course was shorter")


@pytest.fixture(scope="module")
def whole(make: Make) -> tuple[list[Record], dict[str, Tensor]]:
    """All records and the final tensors of an uninterrupted course."""
    training = make()
    return untimed(list(training.records())), tensors_of(training)


class TestSums:
    def test_by_hand(self) -> None:
        sums = EpochSums()
        sums.add(StepRecord(4, 1, {"pixel": 1.0, "total": 3.0}, 0.5, 0.1), [2, 0, 6, 0])
        sums.add(StepRecord(5, 1, {"pixel": 2.0, "total": 5.0}, 1.0, 0.1), [2, 4, 2, 0])
        record = sums.record(5, 1)
        assert (record.step, record.epoch) == (5, 1)
        assert record.losses == {"pixel": 1.5, "total": 4.0}
        assert record.agreement == 0.75
        assert record.shares == [0.25, 0.25, 0.5, 0.0]
        assert record.clusters_in_use == 3
        # H(1/4, 1/4, 1/2) is 1.5 bits of log2 4 = 2 bits.
        assert record.entropy == pytest.approx(0.75, abs=1e-15)

    def test_entropy_is_one_for_equal_shares_and_zero_for_one_cluster(self) -> None:
        for histogram, entropy in (([5] * 7, 1.0), ([0, 9, 0], 0.0)):
            sums = EpochSums()
            sums.add(StepRecord(1, 0, {}, 0.0, 0.0), histogram)
            assert sums.record(1, 0).entropy == pytest.approx(entropy, abs=1e-12)

    def test_a_cluster_is_in_use_from_a_thousandth_on(self) -> None:
        sums = EpochSums()
        sums.add(StepRecord(1, 0, {}, 0.0, 0.0), [1, 2, 997, 0])
        assert sums.record(1, 0).clusters_in_use == 3
        sums.add(StepRecord(2, 0, {}, 0.0, 0.0), [0, 0, 1000, 0])
        assert sums.record(2, 0).clusters_in_use == 2

    def test_a_loss_that_some_steps_lack_is_averaged_over_all(self) -> None:
        """None does so within an epoch: which losses there are changes between epochs only."""
        sums = EpochSums()
        sums.add(StepRecord(1, 0, {"pixel": 2.0}, 0.0, 0.0), [1, 1])
        sums.add(StepRecord(2, 0, {"pixel": 2.0, "region": 6.0}, 0.0, 0.0), [1, 1])
        assert sums.record(2, 0).losses == {"pixel": 2.0, "region": 3.0}

    @pytest.mark.parametrize(
        ("in_use", "shares", "expected"),
        [
            (4, [0.25] * 4, False),
            (2, [0.5, 0.5, 0.0, 0.0], False),
            (1, [1.0, 0.0, 0.0, 0.0], True),
            (2, [0.5, 0.5, 0.0, 0.0, 0.0], True),
            (4, [0.91, 0.03, 0.03, 0.03], True),
            (4, [0.9, 0.04, 0.03, 0.03], False),
        ],
    )
    def test_collapse(self, in_use: int, shares: list[float], expected: bool) -> None:
        record = EpochRecord(1, 0, {}, 0.0, in_use, 0.0, shares)
        assert record.collapsed() is expected

    def test_an_epoch_reads_as_one_line(self) -> None:
        losses = {"pixel": 1.5, "segmentation": 0.25, "total": 2.0}
        assert str(EpochRecord(6, 1, losses, 0.755, 3, 0.5, [0.25] * 4)) == (
            "epoch 2: loss 2.000 (pixel 1.500, segmentation 0.250), views agree 76 %, clusters in use 3/4"
        )

    def test_sums_survive_json(self) -> None:
        sums = EpochSums()
        sums.add(StepRecord(1, 0, {"pixel": 1 / 3, "total": math.pi}, 0.1, 0.0), [3, 2**60])
        assert EpochSums(**json.loads(json.dumps(asdict(sums)))) == sums


class TestRecords:
    def test_steps_and_epochs_are_counted(
        self, whole: tuple[list[Record], dict[str, Tensor]]
    ) -> None:
        found = [(type(record).__name__, record.step, record.epoch) for record in whole[0]]
        expected = []
        for epoch in range(3):
            expected += [("StepRecord", 3 * epoch + step, epoch) for step in (1, 2, 3)]
            expected.append(("EpochRecord", 3 * epoch + 3, epoch))
        assert found == expected

    def test_an_epochs_record_is_the_mean_of_its_steps(
        self, whole: tuple[list[Record], dict[str, Tensor]]
    ) -> None:
        for start in (0, 4, 8):
            *parts, summary = whole[0][start : start + 4]
            assert isinstance(summary, EpochRecord)
            assert summary.losses.keys() == parts[0].losses.keys()
            for name, value in summary.losses.items():
                mean = sum(part.losses[name] for part in parts) / 3
                assert value == pytest.approx(mean, rel=1e-12)
            assert summary.agreement == pytest.approx(
                sum(part.agreement for part in parts) / 3, rel=1e-12
            )
            assert sum(summary.shares) == pytest.approx(1) and len(summary.shares) == 4

    def test_the_region_loss_joins_in_its_epoch(
        self, whole: tuple[list[Record], dict[str, Tensor]]
    ) -> None:
        """0.8 of three epochs, rounded: after two."""
        for record in whole[0]:
            assert ("region" in record.losses) == (record.epoch == 2)

    def test_the_total_is_the_weighted_sum(
        self, whole: tuple[list[Record], dict[str, Tensor]]
    ) -> None:
        """METHOD, section 2: weights log A / (log A + log K) and its counterpart, 1 and 0.1."""
        k, a = math.log(4), math.log(6)
        for record in whole[0]:
            parts = record.losses
            total = (a * parts["pixel"] + k * parts["over_cluster"]) / (a + k)
            total += parts["segmentation"] + 0.1 * parts.get("region", 0.0)
            assert parts["total"] == pytest.approx(total, rel=1e-5)

    def test_a_remainder_of_images_makes_no_step(self, make: Make) -> None:
        training = make(images=11, epochs=2)
        assert (training.steps_per_epoch, training.total_steps) == (2, 4)
        found = [record for record in training.records() if isinstance(record, StepRecord)]
        assert [record.step for record in found] == [1, 2, 3, 4]

    def test_a_finished_course_has_no_records(self, make: Make) -> None:
        training = make(epochs=1)
        assert len(list(training.records())) == 4
        assert list(training.records()) == []

    def test_fewer_images_than_a_batch_are_refused_with_both_numbers(self, make: Make) -> None:
        with pytest.raises(InputError, match=r"11 usable images .* batch of 12.*--batch-size"):
            make(images=11, batch_size=12)

    def test_one_image_is_a_batch(self, make: Make) -> None:
        training = make(images=1, batch_size=1, epochs=2, region_start=0)
        for record in training.records():
            assert all(math.isfinite(value) for value in record.losses.values())
        assert training.step == 2


class TestStep:
    def test_the_first_step_is_sgd_by_hand(self, make: Make) -> None:
        """w - rate (g + decay w), with g of an objective computed apart (METHOD, section 2)."""
        training, twin = make(), make()
        config = training.config
        (group, *_) = epoch_batches(12, 4, seed=config.seed, epoch=0)
        (batch,) = twin.store.batches([group])
        views = view_pair(batch.images, batch.indices, seed=config.seed, round_=0)
        result = objective(twin.network, views, config, regions=False)
        torch.autograd.backward(result.total)
        steps(training, 1)
        trained = dict(training.network.named_parameters())
        checked = 0
        with torch.no_grad():
            for name, weight in twin.network.named_parameters():
                if weight.grad is None:
                    assert torch.equal(trained[name], weight), "without a gradient nothing decays"
                    continue
                gradient = weight.grad + config.weight_decay * weight
                wanted = weight - config.rate() * gradient
                torch.testing.assert_close(trained[name], wanted, rtol=1e-5, atol=1e-7)
                checked += 1
        assert checked > 20

    def test_the_rate_is_the_configs(self, make: Make) -> None:
        for scaling, rate in (("batch", 0.05 * 4 / 256), ("none", 0.05)):
            (group,) = make(rate_scaling=scaling).optimizer.param_groups
            assert group["lr"] == pytest.approx(rate)
            assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)

    def test_no_global_generator_is_touched(self, make: Make) -> None:
        training = make(region_start=0)
        before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
        steps(training, 2)
        after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]

    def test_it_does_not_depend_on_global_generators_either(
        self, make: Make, whole: tuple[list[Record], dict[str, Tensor]]
    ) -> None:
        training = make()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(99)
            assert untimed(list(islice(training.records(), 2))) == whole[0][:2]

    @pytest.mark.parametrize("workers", [1, 3])
    def test_workers_and_memory_do_not_matter(
        self,
        make: Make,
        whole: tuple[list[Record], dict[str, Tensor]],
        monkeypatch: pytest.MonkeyPatch,
        workers: int,
    ) -> None:
        monkeypatch.setattr(batches, "free_memory", lambda: 0)
        training = make(workers=workers)
        assert untimed(list(training.records())) == whole[0]
        assert same(tensors_of(training), whole[1])

    def test_seeds_differ(self, make: Make, whole: tuple[list[Record], dict[str, Tensor]]) -> None:
        assert untimed(list(steps(make(seed=1), 1))) != whole[0][:1]

    @pytest.mark.parametrize(("replay", "rounds"), [("epoch", {0, 1, 2}), ("run", {0})])
    def test_views_are_drawn_per_epoch_or_once(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, replay: str, rounds: set[int]
    ) -> None:
        found: list[tuple[int, int]] = []

        def spy(images: Tensor, indices: tuple[int, ...], *, seed: int, round_: int) -> ViewPair:
            found.append((seed, round_))
            return view_pair(images, indices, seed=seed, round_=round_)

        monkeypatch.setattr(loop, "view_pair", spy)
        list(make(replay=replay, seed=4).records())
        assert {round_ for _, round_ in found} == rounds
        assert {seed for seed, _ in found} == {4}

    def test_constant_images_train(self, make: Make) -> None:
        """Every pixel alike: nothing may divide by a deviation or a length of zero."""
        training = make(region_start=0, epochs=1)
        assert training.store._squares is not None
        training.store._squares.fill_(0)
        for record in training.records():
            assert all(math.isfinite(value) for value in record.losses.values())


class TestState:
    @pytest.mark.parametrize("step", range(LAST + 1))
    def test_a_course_goes_on_to_the_same_bits_from_any_step(
        self, make: Make, whole: tuple[list[Record], dict[str, Tensor]], step: int
    ) -> None:
        first, second = make(), make(seed=0)
        if step:
            steps(first, step)
        tensors, state = first.state()
        second.restore(
            {name: value.clone() for name, value in tensors.items()}, json.loads(json.dumps(state))
        )
        assert second.step == step
        rest = untimed(list(second.records()))
        # The record of an epoch that is over was made before its last step was given out.
        passed = step + step // 3
        assert rest == whole[0][passed:]
        assert same(tensors_of(second), whole[1])
        assert second.last_epoch == whole[0][-1]

    def test_what_a_state_holds(self, make: Make) -> None:
        training = make()
        names = {f"network.{name}" for name in training.network.state_dict()}
        tensors, state = training.state()
        assert tensors.keys() == names, "there is no momentum before the first step"
        assert (state["step"], state["last_epoch"]) == (0, None)
        steps(training, 4)
        tensors, state = training.state()
        momenta = {name for name in tensors if name.startswith("momentum.")}
        assert tensors.keys() - momenta == names
        trained = {
            f"momentum.{name}"
            for name, _ in training.network.named_parameters()
            if not name.startswith("region")
        }
        assert momenta == trained, "the region heads have had no gradient yet"
        assert (state["step"], state["sums"]["steps"]) == (4, 1)
        assert state["last_epoch"]["step"] == 3

    def test_restored_momenta_lie_in_memory_as_their_weights(self, make: Make) -> None:
        first, second = make(), make()
        steps(first, 1)
        second.restore(*first.state())
        for parameter, state in second.optimizer.state.items():
            assert state["momentum_buffer"].stride() == parameter.stride()
            assert state["momentum_buffer"].data_ptr() != parameter.data_ptr()

    def test_sixteen_bit_floats_keep_their_scale(self, make: Make) -> None:
        """fp16 scales the loss, and the scale is part of the state."""
        first, second = (make(precision=torch.float16) for _ in range(2))
        assert first.scaler.is_enabled()
        steps(first, 2)
        first.scaler.update(1024.0)
        tensors, state = first.state()
        second.restore(tensors, json.loads(json.dumps(state)))
        assert second.scaler.get_scale() == 1024.0
        rest = [untimed(list(training.records())) for training in (first, second)]
        assert rest[0] == rest[1]

    def test_half_brain_floats_go_on_to_the_same_bits(self, make: Make) -> None:
        first, second = (make(precision=torch.bfloat16) for _ in range(2))
        records = untimed(list(first.records()))
        third = make(precision=torch.bfloat16)
        steps(third, 4)
        second.restore(*third.state())
        assert untimed(list(second.records())) == records[5:]
        assert same(tensors_of(first), tensors_of(second))


Fault = Callable[[Objective, nn.Module], Tensor]


def endless_gradient(result: Objective, network: nn.Module) -> Tensor:
    """A finite loss whose gradient is not: sqrt at 0."""
    weight = next(network.parameters())
    return result.total + (weight.sum() * 0).sqrt()


FAULTS: dict[str, Fault] = {
    "nan": lambda result, network: result.total * math.nan,
    "inf": lambda result, network: result.total * math.inf,
    "gradient": endless_gradient,
}


class TestNumericFailure:
    @pytest.mark.parametrize("fault", list(FAULTS))
    def test_it_stops_before_the_step_and_names_step_and_images(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        calls = 0

        def faulty(
            network: DenseSiam, views: ViewPair, config: TrainConfig, *, regions: bool
        ) -> Objective:
            nonlocal calls
            calls += 1
            result = objective(network, views, config, regions=regions)
            if calls < 3:
                return result
            return replace(result, total=FAULTS[fault](result, network))

        monkeypatch.setattr(loop, "objective", faulty)
        training = make()
        records = training.records()
        steps_before = [next(records), next(records)]
        weights = {name: value.clone() for name, value in training.network.named_parameters()}
        with pytest.raises(NumericError, match="step 3") as caught:
            next(records)
        assert caught.value.exit_code == 6
        third = epoch_batches(12, 4, seed=0, epoch=0)[2]
        for index in third:
            assert training.store.manifest.names[index] in str(caught.value)
        assert len(steps_before) == training.step == 2
        for name, value in training.network.named_parameters():
            assert torch.equal(value, weights[name]), name
