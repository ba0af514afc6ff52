"""The environment that a run's numbers depend on: versions, processor, threads, devices."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

_NUMERIC = ("machine", "cpu_capability", "threads", "cuda")
_NUMERIC_PACKAGES = ("torch", "torchvision", "faiss-gpu", "faiss-cpu", "numpy", "pillow")
_PACKAGES = (*_NUMERIC_PACKAGES, "densesiam-seg", "scipy", "safetensors", "timm")


def environment() -> dict[str, Any]:
    """The contents of a run's `env.json`; absent packages are left out, and none but torch is imported."""
    packages = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "packages": packages,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda_version": torch.version.cuda,
    }


def fingerprint(facts: Mapping[str, Any], *, device: str, precision: str) -> dict[str, Any]:
    """The part of `facts`, from `environment()`, that changes the last bits of a result, and how the run uses it.

    The names of GPUs count only for a run that uses one.
    """
    packages = facts["packages"]
    found = {name: facts[name] for name in _NUMERIC if name != "cuda" or device != "cpu"}
    found |= {name: packages[name] for name in _NUMERIC_PACKAGES if name in packages}
    return found | {"device": device, "precision": precision}


def compare_fingerprints(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One text such as "threads 2 -> 1" for every difference; none means equal bits."""
    return [
        f"{name} {_shown(saved.get(name))} -> {_shown(now.get(name))}"
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name) != now.get(name)
    ]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return "none" if value in (None, "") else str(value)
