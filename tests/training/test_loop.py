"""The training loop: its records, its state, and that one step follows from the other wherever it is taken up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from courses import courses
from networks import objective_of
from ranks import in_ranks
from torch import Tensor

from densesiam_seg.config import with_settings
from densesiam_seg.errors import NumericError, UsageError
from densesiam_seg.events import EpochRecord, Progress, StepRecord
from densesiam_seg.images import store as batches
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import ImageStore, epoch_batches
from densesiam_seg.methods.method import Method, Objective
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.peers.group import ALONE, Group
from densesiam_seg.peers.shard import Shard
from densesiam_seg.presets import METHODS
from densesiam_seg.training.loop import EpochSums, Training
from densesiam_seg.training.recipes import CONFIGS, FITS, Command, build_method

Record = StepRecord | EpochRecord
Make = Callable[..., Training]
Whole = tuple[list[Record], dict[str, Tensor]]
LAST = 9
"""Steps of a whole course."""
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("slim_module")


@pytest.fixture(scope="module")
def make(image_folder: Path, tiny_settings: dict[str, Any], slim_module: None) -> Make:
    """A new Training over the twelve images, with settings that differ from the tiny ones."""

    def build(
        *,
        command: Command = "train",
        precision: torch.dtype = torch.float32,
        images: int = 12,
        group: Group = ALONE,
        **settings: Any,
    ) -> Training:
        base = CONFIGS[command]()
        known = {name: value for name, value in tiny_settings.items() if hasattr(base, name)}
        own = METHODS[settings.get("method", "densesiam")]
        config = with_settings(base, {**known, **own, **settings})
        manifest = scan(sorted(image_folder.iterdir())[:images])
        store = ImageStore(
            manifest,
            2 * config.image_size,
            fit=FITS[command],
            workers=config.workers,
        )
        for _ in store.prepare():
            pass
        method = build_method(config, store, CPU, precision, group)
        return Training(method, config, store, CPU, precision)

    return build


def untimed(records: Iterable[Progress | Record]) -> list[Record]:
    """Records of steps and epochs, which are the same in every run but for their times."""
    return [
        replace(record, seconds=0.0) if isinstance(record, StepRecord) else record
        for record in records
        if not isinstance(record, Progress)
    ]


def tensors_of(training: Training) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.state()[0].items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def saved(training: Training) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state as it comes back from a disk."""
    return tensors_of(training), json.loads(json.dumps(training.state()[1]))


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
def whole(make: Make) -> Whole:
    """All records and the final tensors of an uninterrupted course."""
    training = make()
    return untimed(training.records()), tensors_of(training)


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

    def test_entropy_and_clusters_in_use(self) -> None:
        """A cluster is in use from a thousandth of the pixels on."""
        for histogram, entropy, in_use in (([5] * 7, 1.0, 7), ([0, 9, 0], 0.0, 1)):
            sums = EpochSums()
            sums.add(StepRecord(1, 0, {}, 0.0, 0.0), histogram)
            record = sums.record(1, 0)
            assert record.entropy == pytest.approx(entropy, abs=1e-12)
            assert record.clusters_in_use == in_use
        assert EpochSums(1, histogram=[0, 1, 998, 1]).record(1, 0).clusters_in_use == 3
        assert EpochSums(1, histogram=[0, 1, 1999]).record(1, 0).clusters_in_use == 1

    def test_views_that_do_not_meet_are_counted_and_spread_is_a_mean(self) -> None:
        """And sums survive JSON."""
        sums = EpochSums()
        losses = {"pixel": 1 / 3, "total": math.pi}
        sums.add(StepRecord(1, 0, losses, 0.1, 0.0, disjoint=1, spread=0.5), [3, 2**60])
        sums.add(StepRecord(2, 0, losses, 0.0, 0.0, disjoint=2, spread=0.75), [1, 1])
        assert EpochSums(**json.loads(json.dumps(asdict(sums)))) == sums
        record = sums.record(2, 0)
        assert (record.disjoint, record.spread) == (3, 0.625)

    def test_what_is_zero_and_what_is_missing(self) -> None:
        sums = EpochSums()
        sums.add(StepRecord(1, 0, {"total": 1.0}, 0.5, 0.0, spread=0.0), [])
        record = sums.record(1, 0)
        assert record.spread == 0.0
        assert (record.shares, record.clusters_in_use, record.entropy) == ([], 0, 0)
        assert EpochSums(1, histogram=[1, 1]).record(1, 0).spread is None


class TestRecords:
    def test_the_region_loss_joins_in_its_epoch(self, whole: Whole) -> None:
        """0.8 of three epochs, rounded: after two."""
        for record in whole[0]:
            assert ("region" in record.losses) == (record.epoch == 2)

    def test_a_remainder_of_images_makes_no_step(self, make: Make) -> None:
        training = make(images=11, epochs=2)
        assert (training.steps_per_epoch, training.total_steps) == (2, 4)
        found = [record for record in training.records() if isinstance(record, StepRecord)]
        assert [record.step for record in found] == [1, 2, 3, 4]

    def test_a_finished_course_has_no_records(self, make: Make) -> None:
        training = make(epochs=1)
        assert len(list(training.records())) == 4
        assert list(training.records()) == []


class TestStep:
    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_the_first_step_by_hand(self, make: Make, optimizer: str) -> None:
        """SGD: w - rate (g + decay w), with g of an objective computed apart (DenseSiam, section 3).

        Adam: both moments begin at 0 and are corrected for it, so w - rate g / (|g| + 1e-8).
        """
        settings = {"optimizer": optimizer, "learning_rate": 1e-3, "rate_scaling": "none"}
        training, twin = make(**settings), make(**settings)
        (group, *_) = epoch_batches(12, 4, seed=0, epoch=0)
        (batch,) = twin.store.batches([group])
        result = objective_of(twin.method, batch.images, batch.indices, 0)
        torch.autograd.backward(result.total)
        steps(training, 1)
        trained, checked = dict(training.network.named_parameters()), 0
        with torch.no_grad():
            for name, weight in twin.network.named_parameters():
                if weight.grad is None:
                    assert torch.equal(trained[name], weight), "without a gradient nothing decays"
                    continue
                gradient = weight.grad + 1e-4 * weight
                change = gradient / (gradient.abs() + 1e-8) if optimizer == "adam" else gradient
                torch.testing.assert_close(
                    trained[name], weight - 1e-3 * change, rtol=1e-5, atol=1e-6
                )
                checked += 1
        assert checked > 20

    def test_predictors_are_a_group_of_their_own(self, make: Make) -> None:
        training = make(method="simsiam")
        others, predictors = training.optimizer.param_groups
        assert (others["momentum"], others["weight_decay"]) == (0.9, 1e-4)
        names = {id(value): name for name, value in training.network.named_parameters()}
        found = {names.pop(id(value)).split(".")[0] for value in predictors["params"]}
        parts = ("", "over_", "region_", "image_")
        assert found == {f"{part}predictor" for part in parts}
        assert {id(value) for value in others["params"]} == names.keys()

    def test_a_frozen_backbone_is_not_the_optimisers(self, make: Make) -> None:
        training = make(freeze=True, optimizer="adam", weight_decay=0.1, learning_rate=1e-3)
        backbone = training.network.encoder.backbone
        before = {name: value.clone() for name, value in backbone.state_dict().items()}
        known = [value for group in training.optimizer.param_groups for value in group["params"]]
        assert len(known) == sum(1 for _ in training.network.parameters()) - sum(
            1 for _ in backbone.parameters()
        )
        for _ in training.records():
            pass
        after = backbone.state_dict()
        assert all(torch.equal(value, before[name]) for name, value in after.items())
        tensors, _ = training.state()
        assert not any(name.startswith("optimizer.") and "backbone" in name for name in tensors)

    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_the_cosine_by_hand_and_predictors_at_a_constant_rate(
        self, make: Make, optimizer: str
    ) -> None:
        """Of nine steps the first is at the whole rate, the fourth at (1 + cos 60°) / 2, the seventh at a quarter."""
        training = make(
            schedule="cosine", optimizer=optimizer, rate_scaling="none", learning_rate=0.004
        )
        rates = [
            tuple(group["lr"] for group in training.optimizer.param_groups)
            for record in training.records()
            if isinstance(record, StepRecord)
        ]
        assert [rates[step][0] for step in (0, 3, 6)] == pytest.approx([0.004, 0.003, 0.001])
        assert [one for one, _ in rates] == sorted((one for one, _ in rates), reverse=True)
        assert {two for _, two in rates} == {0.004}

    def test_it_does_not_depend_on_global_generators_either(self, make: Make, whole: Whole) -> None:
        training = make()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(99)
            assert untimed(islice(training.records(), 2)) == whole[0][:2]

    @pytest.mark.parametrize("workers", [1, 3])
    def test_workers_and_memory_do_not_matter(
        self, make: Make, whole: Whole, monkeypatch: pytest.MonkeyPatch, workers: int
    ) -> None:
        monkeypatch.setattr(batches, "free_memory", lambda: 0)
        training = make(workers=workers)
        assert untimed(training.records()) == whole[0]
        assert same(tensors_of(training), whole[1])

    def test_constant_images_train(self, make: Make) -> None:
        """Every pixel alike: nothing may divide by a deviation or a length of zero."""
        training = make(region_start=0, epochs=1)
        assert training.store._squares is not None
        training.store._squares.fill_(0)
        for record in untimed(training.records()):
            assert all(math.isfinite(value) for value in record.losses.values())


class TestState:
    @pytest.mark.parametrize("step", range(LAST + 1))
    def test_a_course_goes_on_to_the_same_bits_from_any_step(
        self, make: Make, whole: Whole, step: int
    ) -> None:
        first, second = make(), make()
        if step:
            steps(first, step)
        second.restore(*saved(first))
        assert second.step == step
        rest = untimed(second.records())
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
        momenta = {name for name in tensors if name.startswith("optimizer.")}
        assert tensors.keys() - momenta == names
        trained = {
            f"optimizer.momentum_buffer.{name}"
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

    @pytest.mark.parametrize(
        ("step", "settings"),
        [
            (4, {"optimizer": "adam", "learning_rate": 0.001}),
            (4, {"method": "simsiam", "schedule": "cosine"}),
            (4, {"precision": torch.bfloat16}),
            (3, {"method": "picie"}),
            (4, {"method": "picie"}),
            (5, {"method": "mdc"}),
            (4, {"command": "pretrain", "categories": 5, "grid": 2, "features": "fpn"}),
            (5, {"command": "pretrain", "sampling": "biased", "grid": 2}),
        ],
    )
    def test_every_other_course_too(self, make: Make, step: int, settings: dict[str, Any]) -> None:
        first, second, third = (make(**settings) for _ in range(3))
        records = untimed(first.records())
        steps(second, step)
        third.restore(*saved(second))
        rest = untimed(third.records())
        assert rest == records[-len(rest) :]
        assert sum(isinstance(record, StepRecord) for record in rest) == LAST - step
        assert same(tensors_of(third), tensors_of(first))

    def test_a_restored_course_shares_nothing_with_the_state(self, make: Make) -> None:
        """Adam counts its steps in place."""
        first, second = make(optimizer="adam"), make(optimizer="adam")
        steps(first, 1)
        tensors, state = first.state()
        before = {name: value.clone() for name, value in tensors.items()}
        second.restore(tensors, state)
        steps(second, 1)
        assert same(tensors, before)

    def test_sixteen_bit_floats_keep_their_scale(self, make: Make) -> None:
        """fp16 scales the loss, and the scale is part of the state."""
        first, second = (make(precision=torch.float16) for _ in range(2))
        assert first.scaler.is_enabled()
        steps(first, 2)
        first.scaler.update(1024.0)
        second.restore(*saved(first))
        assert second.scaler.get_scale() == 1024.0
        rest = [untimed(training.records()) for training in (first, second)]
        assert rest[0] == rest[1]


Fault = Callable[[Objective, DenseSiam], Tensor]


def endless_gradient(result: Objective, network: DenseSiam) -> Tensor:
    """A finite loss whose gradient is not: sqrt at 0."""
    weight = next(network.parameters())
    return result.total + (weight.sum() * 0).sqrt()


class Faulty(Method):
    """A method whose objective has the fault from the third step on."""

    def __init__(self, method: Method, fault: Fault) -> None:
        self.method, self.fault = method, fault
        self.network = method.network
        self.calls = 0

    def drawn(self, images: Tensor, indices: Sequence[int], epoch: int) -> Any:
        return self.method.drawn(images, indices, epoch)

    def objective(self, drawn: Any, indices: Sequence[int], epoch: int) -> Objective:
        self.calls += 1
        result = self.method.objective(drawn, indices, epoch)
        if self.calls < 3:
            return result
        return replace(result, total=self.fault(result, self.network))


FAULTS: dict[str, Fault] = {
    "nan": lambda result, network: result.total * math.nan,
    "inf": lambda result, network: result.total * math.inf,
    "gradient": endless_gradient,
}


class TestNumericFailure:
    @pytest.mark.parametrize("fault", list(FAULTS))
    def test_it_stops_before_the_step_and_names_step_and_images(
        self, make: Make, fault: str
    ) -> None:
        training = make()
        training.method = Faulty(training.method, FAULTS[fault])
        records = training.records()
        steps_before = [next(records), next(records)]
        weights = {name: value.clone() for name, value in training.network.named_parameters()}
        with pytest.raises(NumericError, match="step 3") as caught:
            next(records)
        assert caught.value.exit_code == 6
        third = epoch_batches(12, 4, seed=0, epoch=0)[2]
        files = tuple(training.store.manifest.names[index] for index in third)
        assert (caught.value.step, caught.value.files) == (3, files)
        assert all(name in str(caught.value) for name in files)
        assert len(steps_before) == training.step == 2
        for name, value in training.network.named_parameters():
            assert torch.equal(value, weights[name]), name

    @pytest.mark.parametrize("fault", list(FAULTS))
    def test_where_results_are_read_seldom_it_comes_before_any_record(
        self, make: Make, fault: str
    ) -> None:
        training = make()
        training.read_seconds = 1e9
        training.method = Faulty(training.method, FAULTS[fault])
        with pytest.raises(NumericError, match="step 3"):
            next(training.records())


class TestReading:
    """Where results are read seldom, as on a GPU, everything is as if they were read at once."""

    @pytest.mark.parametrize("seconds", [1e-9, 1e9])
    def test_records_and_weights_are_the_same(
        self, make: Make, whole: Whole, seconds: float
    ) -> None:
        training = make()
        training.read_seconds = seconds
        assert untimed(training.records()) == whole[0]
        assert same(tensors_of(training), whole[1])

    def test_an_epochs_records_come_at_once_with_the_state_after_the_last(
        self, make: Make, whole: Whole
    ) -> None:
        training = make()
        training.read_seconds = 1e9
        records = training.records()
        first = next(records)
        assert isinstance(first, StepRecord) and (first.step, training.step) == (1, 3)
        later = make()
        later.restore(*saved(training))
        assert untimed(later.records()) == whole[0][4:]
        assert same(tensors_of(later), whole[1])


class TestSeveralProcesses:
    def test_they_do_what_one_does(self, image_folder: Path, tiny_settings: dict[str, Any]) -> None:
        """In the same order, and but for rounding with the same losses, gradients and statistics."""
        images = [str(path) for path in sorted(image_folder.iterdir())]
        plain = {**tiny_settings, "prior": "none", "optimizer": "sgd"}
        # Faster forms draw views in single precision, whose rounding grows a hundredfold in each step.
        fast = {"precision": "bf16", "segmentation_weight": 0.0}
        ways: list[tuple[Command, dict[str, Any], float]] = [
            ("train", {**plain, "image_weight": 0.5, "epochs": 1}, 1e-6),
            ("train", {**plain, **METHODS["picie"]}, 1e-6),
            ("pretrain", {**plain, "categories": 5, "grid": 2, "image_weight": 1.0}, 1e-6),
            ("train", {**plain, **fast}, 1e-2),
        ]
        alone = courses(ALONE, images, ways)
        # Parts of one, one and two images, for four of a batch.
        for found in in_ranks(3, courses, images, ways):
            for one, several, (*_, error) in zip(alone, found, ways, strict=True):
                assert one["order"] == several["order"]
                for what in ("records", "network"):
                    torch.testing.assert_close(several[what], one[what], rtol=error, atol=error)

    def test_more_of_them_than_a_batch_has_images_are_refused(self, make: Make) -> None:
        with pytest.raises(UsageError, match="5 processes cannot share a batch of 4"):
            make(group=Group(Shard(0, 5)))
