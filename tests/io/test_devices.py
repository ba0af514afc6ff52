"""Where the network runs, in which precision, and what the machine has."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from densesiam_seg.errors import UsageError
from densesiam_seg.io.devices import (
    autocast,
    available_cores,
    exact_device,
    free_memory,
    make_repeatable,
    pick_device,
    pick_precision,
)

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def machine(patch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    """A machine with so many CUDA devices and with or without MPS."""
    patch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    patch.setattr(torch.cuda, "device_count", lambda: cuda)
    patch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("name", "cuda", "mps", "expected"),
    [
        ("auto", 0, False, "cpu"),
        ("auto", 0, True, "mps"),
        ("auto", 2, False, "cuda"),
        ("auto", 1, True, "cuda"),
        *[(name, 2, True, name) for name in ("cpu", "cpu:0", "cuda", "cuda:0", "cuda:1", "mps")],
    ],
)
def test_auto_is_the_fastest_device_and_a_named_one_is_taken(
    monkeypatch: pytest.MonkeyPatch, name: str, cuda: int, mps: bool, expected: str
) -> None:
    machine(monkeypatch, cuda=cuda, mps=mps)
    assert pick_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "cuda", "reason"),
    [
        *[(name, 0, "not present here") for name in ("cuda", "cuda:0", "mps", "cpu:1")],
        *[(name, 2, "not present here") for name in ("cuda:2", "meta")],
        *[
            (name, 2, "not a device")
            for name in ("", "gpu", "CPU", " cpu", "cuda:-1", "0", "cpu,0")
        ],
    ],
)
def test_other_devices_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, cuda: int, reason: str
) -> None:
    machine(monkeypatch, cuda=cuda)
    with pytest.raises(UsageError, match=f"--device {name}: {reason}"):
        pick_device(name)


class TestPrecision:
    def test_a_named_one_is_taken(self) -> None:
        assert pick_precision("fp32", CPU) == torch.float32
        assert pick_precision("bf16", CPU) == torch.bfloat16
        assert pick_precision("fp16", CPU) == torch.float16

    @pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
    def test_auto_on_a_processor_asks_for_its_instructions(
        self, monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool
    ) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        expected = torch.bfloat16 if avx512 or amx else torch.float32
        assert pick_precision("auto", CPU) == expected

    def test_auto_on_a_gpu_asks_for_its_generation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for capability in ((7, 5), (8, 0), (9, 0)):
            monkeypatch.setattr(torch.cuda, "get_device_capability", Mock(return_value=capability))
            fast = capability >= (8, 0)
            assert pick_precision("auto", CUDA) == (torch.bfloat16 if fast else torch.float32)
        assert pick_precision("auto", torch.device("mps")) == torch.float32

    @pytest.mark.parametrize("name", ["", "half", "fp64", "BF16"])
    def test_another_name_is_refused(self, name: str) -> None:
        with pytest.raises(UsageError, match="fp32, bf16, fp16"):
            pick_precision(name, CPU)


def test_autocast_changes_products_in_its_block_only() -> None:
    one = torch.ones(2, 2)
    with autocast(CPU, torch.bfloat16):
        assert (one @ one).dtype == torch.bfloat16
    with autocast(CPU, torch.float32):
        assert (one @ one).dtype == torch.float32


@pytest.mark.parametrize("own", [None, ":16:8"])
def test_repeatable_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch, own: str | None) -> None:
    switch = Mock()
    monkeypatch.setattr(torch, "use_deterministic_algorithms", switch)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", own or "")
    if own is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    make_repeatable(CPU)
    switch.assert_not_called()
    assert torch.backends.cudnn.benchmark
    make_repeatable(CUDA)
    switch.assert_called_once_with(True, warn_only=True)
    assert not torch.backends.cudnn.benchmark
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == own or ":4096:8"


def test_cores_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for count, cores in ((None, 1), (6, 6)):
        monkeypatch.setattr(os, "cpu_count", Mock(return_value=count))
        assert available_cores() == cores


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("MemTotal: 9 kB\nMemAvailable:   123 kB\nMemFree: 7 kB\n", 123 * 1024),
        ("MemTotal: 9 kB\n", 4 * 2**30),
        ("MemAvailable: many\n", 4 * 2**30),
        (FileNotFoundError(), 4 * 2**30),
    ],
)
def test_free_memory_is_what_the_system_says(
    monkeypatch: pytest.MonkeyPatch, content: str | OSError, expected: int
) -> None:
    monkeypatch.setattr(Path, "read_text", Mock(side_effect=[content]))
    assert free_memory() == expected


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cores, memory = available_cores(), free_memory()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert available_cores() == max(cores // 2, 1)
    assert free_memory() < 0.75 * memory
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert available_cores() == 1


def test_double_precision_is_computed_where_it_is() -> None:
    assert exact_device(torch.device("mps")) == CPU
    assert exact_device(torch.device("cuda:1")) == torch.device("cuda:1")
