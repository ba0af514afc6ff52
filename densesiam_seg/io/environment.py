"""What a run's numbers depend on beside its settings: versions, processor, threads, devices."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

_PACKAGES = (
    "densesiam-seg",
    "torch",
    "torchvision",
    "faiss-gpu",
    "faiss-cpu",
    "numpy",
    "scipy",
    "pillow",
    "safetensors",
    "timm",
)
_NUMERIC = ("machine", "cpu_capability", "threads", "cuda")
_NUMERIC_PACKAGES = ("torch", "torchvision", "faiss-gpu", "faiss-cpu", "numpy", "pillow")


def environment() -> dict[str, Any]:
    """The contents of a run's `env.json`; nothing heavier than torch is imported for it.

    Absent packages are left out of "packages".
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda_version": torch.version.cuda,
    }


def fingerprint(
    facts: Mapping[str, Any], *, device: str, precision: str, **more: str | int
) -> dict[str, Any]:
    """The part of `facts`, from `environment()`, that changes the last bits of a result, and how the run uses it.

    `more` names further numeric facts, such as workers or world size. The devices count only for a run that uses one.
    """
    packages = facts["packages"]
    found = {name: facts[name] for name in _NUMERIC if name != "cuda" or device != "cpu"}
    found |= {name: packages[name] for name in _NUMERIC_PACKAGES if name in packages}
    return found | {"device": device, "precision": precision} | more


def compare_fingerprints(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One text such as "threads 2 -> 1" for every difference; an empty list promises equal bits."""
    return [
        f"{name} {_shown(saved, name)} -> {_shown(now, name)}"
        for name in sorted(saved.keys() | now.keys())
        if name not in saved or name not in now or saved[name] != now[name]
    ]


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "none"
    value = values[name]
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
