"""Where and in which precision the network runs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from densesiam_seg.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])

COMPILER = "inductor"
"""torch's own, which needs Triton on a GPU and a C++ compiler on a processor."""
RANK, SIZE = "LOCAL_RANK", "LOCAL_WORLD_SIZE"
"""What a launcher sets: the number of this process on its machine, from 0, and how many it started there."""


def pick_device(name: str) -> torch.device:
    """`auto` is a CUDA device, else Apple's MPS, else the processor. Raises UsageError for one not present.

    Of several CUDA devices each of the processes that a launcher started on this machine has its own.
    """
    if name == "auto":
        # Apple's devices cannot share what they have computed.
        alone = os.environ.get("WORLD_SIZE", "1") == "1"
        other = "mps" if alone and torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else other
    if name == "cuda" and torch.cuda.is_available() and _local(RANK, 0):
        return torch.device("cuda", _local(RANK, 0) % torch.cuda.device_count())
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"--device {name}: not a device; use auto, cpu, cuda, cuda:N or mps"
        ) from None
    present = {
        "cpu": device.index in (None, 0),
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        raise UsageError(
            f"--device {name}: not present here; use --device cpu, or run densesiam-seg doctor"
        )
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 where the hardware multiplies it faster than fp32 (measured), else fp32. Raises UsageError."""
    if name == "auto":
        return torch.bfloat16 if _fast_bf16(device) else torch.float32
    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name not in known:
        raise UsageError(f"--precision {name}: give auto, {', '.join(known)}")
    return known[name]


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Without AMX or AVX-512 BF16 instructions bf16 is emulated and slower than fp32.
    return device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[None]:
    """Mixed precision for the forward pass; does nothing in fp32."""
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)


def make_repeatable(device: torch.device) -> None:
    """Request deterministic operations on a GPU; on a processor they are deterministic anyway."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Else every new map is filled first, in case that somebody reads what was never written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def compiled(function: Function) -> Function:
    """`function` as one graph of fixed shapes, which is compiled where it is first called.

    No kernel is chosen by its speed: the choice could change from run to run, and with it the last bits.
    """
    options: dict[str, Any] | None = {"deterministic": True} if COMPILER == "inductor" else None
    found: Any = torch.compile(
        function, fullgraph=True, dynamic=False, backend=COMPILER, options=options
    )
    return cast("Function", found)


def compiler_cache() -> Path:
    """Where the compiler keeps what it has made, for later runs; TORCHINDUCTOR_CACHE_DIR names another folder."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


def exact_device(device: torch.device) -> torch.device:
    """Where double precision is computed: on the device, or on the processor for Apple's MPS, which has none."""
    return torch.device("cpu") if device.type == "mps" else device


def available_cores() -> int:
    """Processor cores that this process may use: its share where a launcher started several on this machine."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(cores // max(_local(SIZE, 1), 1), 1)


def use_own_cores() -> None:
    """Let torch use as many cores as this process has for its own; launchers leave it a single one."""
    torch.set_num_threads(available_cores())


def _local(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else otherwise


def is_first_here() -> bool:
    """Whether this is the first process that a launcher started on this machine, or the only one."""
    return _local(RANK, 0) == 0


def free_memory() -> int:
    """Bytes of available memory, this process's share of them; 4 GiB where the system does not report it."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except (OSError, ValueError):
        text = ""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return (int(found[1]) * 1024 if found else 4 * 2**30) // max(_local(SIZE, 1), 1)
