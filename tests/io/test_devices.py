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


class TestDevice:
    @pytest.mark.parametrize(
        ("cuda", "mps", "expected"),
        [(0, False, "cpu"), (0, True, "mps"), (2, False, "cuda"), (1, True, "cuda")],
    )
    def test_auto_takes_the_fastest_present(
        self, monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, expected: str
    ) -> None:
        machine(monkeypatch, cuda=cuda, mps=mps)
        assert pick_device("auto") == torch.device(expected)

    @pytest.mark.parametrize("name", ["cpu", "cpu:0", "cuda", "cuda:0", "cuda:1", "mps"])
    def test_one_that_is_present_is_taken(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        machine(monkeypatch, cuda=2, mps=True)
        assert pick_device(name) == torch.device(name)

    @pytest.mark.parametrize(
        ("name", "cuda"),
        [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2), ("mps", 0), ("meta", 1), ("cpu:1", 0)],
    )
    def test_one_that_is_not_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, name: str, cuda: int
    ) -> None:
        machine(monkeypatch, cuda=cuda)
        with pytest.raises(UsageError, match=f"--device {name}: not present here"):
            pick_device(name)

    @pytest.mark.parametrize("name", ["", "gpu", "CPU", " cpu", "cuda:-1", "cuda:x", "0", "cpu,0"])
    def test_a_name_that_is_none_is_refused(self, name: str) -> None:
        with pytest.raises(UsageError, match="not a device"):
            pick_device(name)


class TestPrecision:
    @pytest.mark.parametrize(
        ("name", "dtype"),
        [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
    )
    def test_a_named_one_is_taken(self, name: str, dtype: torch.dtype) -> None:
        assert pick_precision(name, CPU) == dtype

    @pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
    def test_auto_on_a_processor_asks_for_its_instructions(
        self, monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool
    ) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        expected = torch.bfloat16 if avx512 or amx else torch.float32
        assert pick_precision("auto", CPU) == expected

    @pytest.mark.parametrize(
        ("capability", "dtype"),
        [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
    )
    def test_auto_on_a_gpu_asks_for_its_generation(
        self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
    ) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        assert pick_precision("auto", CUDA) == dtype

    def test_auto_elsewhere_is_full(self) -> None:
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
    assert (one @ one).dtype == torch.float32


@pytest.mark.parametrize("own", [None, ":16:8"])
def test_repeatable_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch, own: str | None) -> None:
    switch = Mock()
    monkeypatch.setattr(torch, "use_deterministic_algorithms", switch)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", own or "")
    if own is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    make_repeatable(CPU)
    switch.assert_not_called()
    assert torch.backends.cudnn.benchmark
    make_repeatable(CUDA)
    switch.assert_called_once_with(True, warn_only=True)
    assert not torch.backends.cudnn.benchmark
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
