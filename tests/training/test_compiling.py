"""When a training compiles, what it says, and that it goes on without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from densesiam_seg.config import TrainConfig, with_settings
from densesiam_seg.events import Notice, StepRecord
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import ImageStore
from densesiam_seg.io import devices
from densesiam_seg.io.environment import compare_fingerprints
from densesiam_seg.methods.densesiam import DenseSiamMethod
from densesiam_seg.training import compiling as module
from densesiam_seg.training.compiling import compiling, pays
from densesiam_seg.training.loop import Training
from densesiam_seg.training.recipes import build_method
from densesiam_seg.training.setup import numerics

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("slim_module")


def ready(
    folder: Path,
    tiny_settings: dict[str, Any],
    *,
    halves: torch.dtype = torch.float32,
    **more: Any,
) -> Training:
    config = with_settings(TrainConfig(), {**tiny_settings, "precision": "auto", **more})
    store = ImageStore(scan(sorted(folder.iterdir())[:8]), 2 * config.image_size)
    for _ in store.prepare():
        pass
    return Training(build_method(config, store, CPU, halves), config, store, CPU, halves)


@pytest.fixture
def willing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, for any number of images; the compiler makes no machine code."""
    monkeypatch.setattr(module, "supported", lambda training: True)
    monkeypatch.setattr(module, "PAYS", 1)
    monkeypatch.setattr(devices, "COMPILER", "aot_eager")


def test_only_where_it_pays() -> None:
    config = TrainConfig(epochs=10)
    assert pays(config, 20_000) and not pays(config, 19_999)
    assert not pays(with_settings(config, {"compile": False}), 20_000)
    assert not pays(with_settings(config, {"precision": "fp32"}), 20_000)


def test_a_processor_and_several_processes_do_not(
    image_folder: Path, tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAYS", 1)
    training = ready(image_folder, tiny_settings)
    assert list(compiling(training)) == [] and training.compiled is None


@pytest.mark.usefixtures("willing")
@pytest.mark.parametrize(
    ("halves", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)], ids=str
)
def test_the_course_is_the_same_up_to_rounding(
    image_folder: Path, tiny_settings: dict[str, Any], halves: torch.dtype, tolerance: float
) -> None:
    plain = ready(image_folder, tiny_settings, epochs=1, halves=halves)
    compiled = ready(image_folder, tiny_settings, epochs=1, halves=halves)
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    *_, notice = compiling(compiled)
    assert isinstance(notice, Notice) and str(devices.compiler_cache()) in notice.text
    assert compiled.compiled is not None
    assert isinstance(compiled.method, DenseSiamMethod) and compiled.method.pixels is not None
    found, wanted = (
        [record for record in each.records() if isinstance(record, StepRecord)]
        for each in (compiled, plain)
    )
    assert len(found) == len(wanted) > 1
    for one, two in zip(found, wanted, strict=True):
        assert one.losses == pytest.approx(two.losses, rel=tolerance, abs=tolerance)
    assert graphs["unique_graphs"] == 2, "losses and colours, and no step has made another"
    assert list(compiled.state()[0]) == list(plain.state()[0])
    differences = compare_fingerprints(numerics(plain), numerics(compiled))
    assert differences == ["compiled False -> True"]


@pytest.mark.usefixtures("willing")
def test_one_line_where_it_fails(
    image_folder: Path, tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "COMPILER", "no such compiler")
    training = ready(image_folder, tiny_settings, epochs=1)
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    *_, notice = compiling(training)
    assert isinstance(notice, Notice) and "\n" not in notice.text and not notice.warning
    assert "not compiled" in notice.text and training.compiled is None
    after = training.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert any(isinstance(record, StepRecord) for record in training.records())


@pytest.mark.usefixtures("willing")
def test_nothing_to_compile_says_nothing(image_folder: Path, tiny_settings: dict[str, Any]) -> None:
    weights: dict[str, Any] = {
        "pixel_weight": 0.0,
        "over_cluster_weight": 0.0,
        "segmentation_weight": 0.0,
    }
    training = ready(
        image_folder,
        tiny_settings,
        method="simsiam",
        image_weight=1.0,
        region_weight=0.0,
        **weights,
    )
    assert list(compiling(training)) == []
