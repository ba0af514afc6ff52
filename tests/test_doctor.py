"""The report on the installation: clean here, and each known trap with its remedy."""

from __future__ import annotations

import importlib
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from densesiam_seg import doctor
from densesiam_seg.clustering.kmeans import Centroids
from densesiam_seg.clustering.kmeans import kmeans as clustering
from densesiam_seg.doctor import Finding, examine

Usage = namedtuple("Usage", "total used free")


def of(findings: list[Finding], subject: str) -> Finding:
    (found,) = (finding for finding in findings if finding.subject == subject)
    return found


def versions(**known: str) -> Callable[[str], str]:
    def version(name: str) -> str:
        try:
            return known[name.replace("-", "_")]
        except KeyError:
            raise PackageNotFoundError(name) from None

    return version


@pytest.fixture
def broken_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyPI's torchvision beside a CPU-only torch."""
    original = importlib.import_module

    def load(name: str, package: str | None = None) -> ModuleType:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nand more")
        return original(name, package)

    monkeypatch.setattr(importlib, "import_module", load)


def test_this_installation_is_sound() -> None:
    findings = examine()
    assert [f for f in findings if f.state == "broken"] == []
    subjects = {finding.subject for finding in findings}
    packages = {"numpy", "scipy", "pillow", "typer", "rich", "safetensors"}
    assert subjects >= {"python", "torch", "torchvision", "faiss", "cpu"} | packages
    assert subjects >= {"ImageNet weights", "current directory"}
    assert of(findings, "torch").text == torch.__version__
    assert of(findings, "faiss").text.endswith("k-means works")


def test_every_line_is_one_line() -> None:
    assert all("\n" not in finding.text and finding.text for finding in examine())


@pytest.mark.usefixtures("broken_torchvision")
def test_torch_and_torchvision_of_different_builds() -> None:
    found = of(examine(), "torchvision")
    assert found.state == "broken"
    assert found.text.startswith("does not import (operator torchvision::nms does not exist);")
    assert "pip uninstall -y torch torchvision, then pip install torch torchvision" in found.text


@pytest.mark.usefixtures("broken_torchvision")
def test_one_broken_package_hides_no_other_finding() -> None:
    assert of(examine(), "faiss").state == "ok"


@pytest.mark.parametrize("error", [ImportError("no module"), AttributeError("extension")])
def test_other_ways_not_to_import(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(importlib, "import_module", load)
    found = of(list(doctor.torch_and_torchvision()), "torchvision")
    assert found.state == "broken"
    assert str(error) in found.text


@pytest.mark.parametrize("release", ["2.5.1", "2.9.0+cpu", "1.13.1"])
def test_torch_that_loads_files_unsafely(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    monkeypatch.setattr(torch, "__version__", release)
    found = of(list(doctor.torch_and_torchvision()), "torch")
    assert found.state == "broken"
    assert "pip install -U torch" in found.text


@pytest.mark.parametrize("release", ["2.10.0", "2.15.0+cu130", "3.0.0a0+git1234"])
def test_torch_that_will_do(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    monkeypatch.setattr(torch, "__version__", release)
    assert of(list(doctor.torch_and_torchvision()), "torch").state == "ok"


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", versions(numpy="2.0", pillow="12.0"))
    findings = list(doctor.packages())
    assert of(findings, "numpy") == Finding("numpy", "ok", "2.0")
    assert of(findings, "rich") == Finding("rich", "broken", "not installed; pip install rich")


def test_timm_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", versions(numpy="2.0", timm="1.0.31"))
    assert of(list(doctor.packages()), "timm") == Finding("timm", "ok", "1.0.31")
    monkeypatch.setattr(doctor, "version", versions(numpy="2.0"))
    found = of(list(doctor.packages()), "timm")
    assert (found.state, "densesiam-seg[timm]" in found.text) == ("note", True)


class TestFaiss:
    def test_both_packages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "version", versions(faiss_gpu="1.15", faiss_cpu="1.15"))
        (found,) = doctor.faiss()
        assert found.state == "broken"
        assert "uninstall both, install one" in found.text

    def test_neither(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "version", versions())
        (found,) = doctor.faiss()
        assert found.state == "broken"
        assert "pip install faiss-gpu on Linux x86-64, faiss-cpu elsewhere" in found.text

    def test_one_that_computes_nonsense(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def nonsense(points: torch.Tensor, clusters: int, *, seed: int) -> Centroids:
            return Centroids(torch.zeros(3, 2), torch.tensor([120, 0, 0]))

        monkeypatch.setattr(clustering, "kmeans", nonsense)
        (found,) = doctor.faiss()
        assert (found.state, found.text) == ("broken", "wrong result")

    def test_one_that_does_not_load(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> Centroids:
            raise ImportError("libcudart.so.12: cannot open shared object file\nmore")

        monkeypatch.setattr(clustering, "kmeans", fail)
        found = of(examine(), "faiss")
        assert found.state == "broken"
        assert found.text.startswith("ImportError: libcudart.so.12: cannot open shared object file")
        assert "--force-reinstall" in found.text


class TestDevices:
    def test_gpus_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
        findings = list(doctor.devices())
        assert of(findings, "cuda:0") == Finding("cuda:0", "ok", "card 0")
        assert of(findings, "cuda:1") == Finding("cuda:1", "ok", "card 1")

    def test_a_gpu_that_torch_does_not_see(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
        found = of(list(doctor.devices()), "cuda")
        assert (found.state, "update the driver" in found.text) == ("note", True)

    def test_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(shutil, "which", lambda name: None)
        found = of(list(doctor.devices()), "cuda")
        assert (found.state, "--preset fast" in found.text) == ("note", True)


class TestWeights:
    def test_cached(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").mkdir()
        for name in ("resnet18-f37072fd.pth", "swin_t-704ceda3.pth", "detector-12345678.pth"):
            (tmp_path / "checkpoints" / name).touch()
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        (found,) = doctor.weights()
        assert (found.state, found.text) == ("ok", "resnet18-f37072fd.pth, swin_t-704ceda3.pth")

    def test_none_and_nothing_is_fetched_or_made(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        (found,) = doctor.weights()
        assert (found.state, "else from scratch" in found.text) == ("note", True)
        assert list(tmp_path.iterdir()) == []


class TestPlace:
    def test_room(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9e12, 1e12, 8e12))
        (found,) = doctor.place()
        assert (found.state, found.text) == ("ok", "writable, 8000 GB free")

    def test_little_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9e12, 9e12, 5e8))
        (found,) = doctor.place()
        assert (found.state, found.text) == ("note", "500 MB free; a run needs up to 1 GB")

    def test_read_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def deny(path: Any, mode: int) -> bool:
            return mode != os.W_OK

        monkeypatch.setattr(os, "access", deny)
        (found,) = doctor.place()
        assert (found.state, found.text) == ("note", "cannot be written; give --out")
