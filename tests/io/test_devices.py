"""Where the network runs, in which precision, and what the machine has."""

from __future__ import annotations

import os

import pytest
import torch

from densesiam_seg.errors import UsageError
from densesiam_seg.io import devices
from densesiam_seg.io.devices import (
    autocast,
    available_cores,
    free_memory,
    make_repeatable,
    pick_device,
    pick_precision,
)

CPU = torch.device("cpu")


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
    def test_a_device_that_is_present_is_taken(
        self, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
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
        with pytest.raises(UsageError, match=r"not a device; use auto, cpu, cuda") as caught:
            pick_device(name)
        assert caught.value.exit_code == 2


class TestPrecision:
    @pytest.mark.parametrize(
        ("name", "dtype"),
        [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
    )
    def test_a_named_one_is_taken(self, name: str, dtype: torch.dtype) -> None:
        assert pick_precision(name, CPU) == dtype

    @pytest.mark.parametrize(
        ("avx512", "amx", "dtype"),
        [
            (False, False, torch.float32),
            (True, False, torch.bfloat16),
            (False, True, torch.bfloat16),
        ],
    )
    def test_auto_on_a_processor_asks_for_its_instructions(
        self, monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool, dtype: torch.dtype
    ) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        assert pick_precision("auto", CPU) == dtype

    @pytest.mark.parametrize(
        ("capability", "dtype"),
        [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
    )
    def test_auto_on_a_gpu_asks_for_its_generation(
        self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
    ) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        assert pick_precision("auto", torch.device("cuda")) == dtype

    @pytest.mark.parametrize("name", ["", "half", "fp64", "BF16"])
    def test_another_name_is_refused(self, name: str) -> None:
        with pytest.raises(UsageError, match="give auto, fp32, bf16, fp16"):
            pick_precision(name, CPU)

    def test_auto_elsewhere_is_full(self) -> None:
        assert pick_precision("auto", torch.device("mps")) == torch.float32


def test_autocast_changes_products_in_its_block_only() -> None:
    one = torch.ones(2, 2)
    with autocast(CPU, torch.bfloat16):
        assert (one @ one).dtype == torch.bfloat16
    with autocast(CPU, torch.float32):
        assert (one @ one).dtype == torch.float32
    assert (one @ one).dtype == torch.float32


class TestRepeatable:
    def test_on_a_processor_nothing_is_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[object] = []
        monkeypatch.setattr(torch, "use_deterministic_algorithms", calls.append)
        make_repeatable(CPU)
        assert calls == []

    def test_on_a_gpu_every_known_switch_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[tuple[object, object]] = []
        monkeypatch.setattr(
            torch,
            "use_deterministic_algorithms",
            lambda mode, warn_only: calls.append((mode, warn_only)),
        )
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
        make_repeatable(torch.device("cuda"))
        assert calls == [(True, True)]
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"

    def test_a_users_own_setting_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, warn_only: None)
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        make_repeatable(torch.device("cuda"))
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


class TestMachine:
    def test_cores_are_those_of_this_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert 1 <= available_cores() <= (os.cpu_count() or 1)
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: None)
        assert available_cores() == 1
        monkeypatch.setattr(os, "cpu_count", lambda: 6)
        assert available_cores() == 6

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("MemTotal: 9 kB\nMemAvailable:   123 kB\nMemFree: 7 kB\n", 123 * 1024),
            ("MemTotal: 9 kB\n", 4 * 2**30),
            ("MemAvailable: many\n", 4 * 2**30),
            ("MemAvailable:\n", 4 * 2**30),
        ],
    )
    def test_free_memory_is_what_the_system_says(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path_factory: pytest.TempPathFactory,
        content: str,
        expected: int,
    ) -> None:
        path = tmp_path_factory.mktemp("proc") / "meminfo"
        path.write_text(content)

        def fake(name: str, **options: str) -> object:
            assert name == "/proc/meminfo"
            return path.open(**options)  # type: ignore[call-overload]

        monkeypatch.setattr(devices, "open", fake, raising=False)
        assert free_memory() == expected

    def test_free_memory_without_proc_is_a_guess(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(name: str, **options: str) -> object:
            raise FileNotFoundError(name)

        monkeypatch.setattr(devices, "open", fail, raising=False)
        assert free_memory() == 4 * 2**30
