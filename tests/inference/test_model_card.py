"""Model directories: what their JSON files must say, names of clusters, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stored_models import seal_again
from torch import Tensor

from densesiam_seg.clustering.merging import Merges
from densesiam_seg.errors import ModelError
from densesiam_seg.inference.model_card import MAX_CONFIG_BYTES, stored_model
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.sealed import seal, verify
from densesiam_seg.io.tensors import read_safetensors, write_safetensors

Damage = Callable[[Path], object]
WEIGHT = "network.projector.0.weight"


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def config(**changes: Any) -> Damage:
    """Other values in config.json, in the architecture too; None deletes."""

    def change(content: dict[str, Any]) -> None:
        for place in (content, content["architecture"]):
            for name, value in changes.items():
                if value is None:
                    place.pop(name, None)
                elif name in place:
                    place[name] = value

    return lambda folder: seal_again(folder, change)


def clusters(change: Callable[[list[dict[str, Any]]], object]) -> Damage:
    return lambda folder: change_json(
        folder / "clusters.json", lambda content: change(content["clusters"])
    )


def cluster(**changes: Any) -> Damage:
    """Other values of the second cluster."""
    return clusters(lambda entries: entries[1].update(changes))


def file(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def sealed(content: Any) -> Damage:
    """Another config.json whose own digest is right."""
    return lambda folder: (folder / "config.json").write_bytes(seal(content))


def weights(content: bytes) -> Damage:
    """Another model.safetensors with a right digest."""

    def damage(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(content)
        seal_again(folder)

    return damage


def flipped(name: str) -> Damage:
    """One bit of the file's middle."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 4
        (folder / name).write_bytes(data)

    return damage


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        content = read_safetensors(folder / "model.safetensors")
        change(content)
        write_safetensors(folder / "model.safetensors", content)
        seal_again(folder)

    return damage


def weight(value: float) -> Damage:
    return tensors(lambda found: found[WEIGHT].view(-1)[3].fill_(value))


def folder_instead(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def nested(depth: int) -> bytes:
    """A config.json of many brackets whose digest is right."""
    body = b'"a": ' + b"[" * depth
    return b'{"sha256": "%s", ' % hashlib.sha256(body).hexdigest().encode() + body


OUT_OF_RANGE: dict[str, list[Any]] = {
    "backbone": ["vit", "../resnet18", "timm:hf-hub:someone/model", ["resnet18"]],
    "clusters": [10**9, 4097, 0, 5.0, True, "5"],
    "channels": [10**12, 0],
    "over_clusters": [-1, 4097, False, 0.0],
    "features": ["res4", ["fpn"], True],
    "image_head": [1, "yes"],
    "mixture": [0],
    "image_size": [31, 4097, "32", float("nan")],
    "readout": ["tree", []],
    "refine": ["crf"],
    "stretch": [[0.5, 0.5], [0.0, 1e-320], [-1e308, 1e308], [0, 1], [0.0, float("inf")]],
    "training": [[1, 2], "none"],
}
DAMAGES: dict[str, tuple[Damage, str]] = {
    "config not sealed": (file("config.json", b"{}"), "SHA-256"),
    "config not text": (file("config.json", b"\xff\xfe\x00"), "SHA-256"),
    "config with a flipped bit": (flipped("config.json"), "config.json.*SHA-256"),
    "weights with a flipped bit": (flipped("model.safetensors"), "model.safetensors.*SHA-256"),
    "config nested deep": (
        lambda f: (f / "config.json").write_bytes(nested(100_000)),
        "cannot be read",
    ),
    "config huge": (file("config.json", b" " * (MAX_CONFIG_BYTES + 1)), "larger"),
    "config of another program": (sealed({"model_type": "vit"}), "format 2"),
    "format of before": (config(format=1), "format 2"),
    "without digests": (config(files=None), "files"),
    "digests of nothing": (config(files={}), "safetensors"),
    "digests a word": (config(files="x"), "not a model"),
    "another digest": (config(files={"model.safetensors": "0" * 64}), "SHA-256"),
    "digest a number": (config(files={"model.safetensors": 7}), "SHA-256"),
    "without an architecture": (config(architecture=None), "architecture"),
    "architecture a word": (
        lambda f: seal_again(f, lambda content: content.update(architecture="x")),
        "not a model",
    ),
    "an unknown entry": (
        lambda f: seal_again(f, lambda content: content.update(colour="red")),
        "colour",
    ),
    "without its size": (config(image_size=None), "image_size"),
    "head of another number": (
        lambda f: seal_again(f, lambda content: content.update(clusters=6)),
        "out of range",
    ),
    "backbone unknown to timm": (config(backbone="timm:vit_nonsense"), "timm"),
    "features of another network": (config(features="res5"), "model.safetensors"),
    "stages of a size that no memory holds": (
        config(features="stages", image_size=1365),
        "out of range",
    ),
    "image head without its tensors": (config(image_head=True), "image_.* is missing"),
    "over-clusters without their tensors": (config(over_clusters=0), "over_.* is not part"),
    "clusters absent": (lambda f: (f / "clusters.json").unlink(), "clusters.json"),
    "clusters not JSON": (file("clusters.json", b"nonsense"), "JSON"),
    "clusters a number": (file("clusters.json", b"5"), "not a list"),
    "clusters too few": (clusters(lambda entries: entries.pop()), "0 to 4"),
    "weights absent": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "weights junk": (weights(b"junk" * 100), "model.safetensors.*header"),
    "weights truncated": (lambda f: os.truncate(f / "model.safetensors", 9000), "safetensors"),
    "weights a folder": (folder_instead, "model.safetensors"),
    "weights NaN": (weight(float("nan")), "NaN or infinite"),
    "tensor missing": (tensors(lambda found: found.pop(WEIGHT)), f"{WEIGHT} is missing"),
    "tensor unknown": (tensors(lambda found: found.update(x=torch.zeros(1))), "x is not part"),
    "tensor of halves": (
        tensors(lambda found: found.update({WEIGHT: found[WEIGHT].half()})),
        f"{WEIGHT} is .*float16.* instead of .*float32",
    ),
    "centroids without the readout": (
        tensors(lambda found: found.update(centroids=torch.zeros(5, 8))),
        "centroids is not part",
    ),
    "readout without centroids": (config(readout="kmeans"), "centroids is missing"),
}


def members(*lists: Any) -> Damage:
    """Other members of the clusters of a merge."""

    def change(entries: list[dict[str, Any]]) -> None:
        for entry, each in zip(entries, lists, strict=True):
            entry["members"] = each

    return clusters(change)


def merges(*rows: list[int]) -> Damage:
    return tensors(lambda found: found.update(merges=torch.tensor(rows)))


MERGE_DAMAGES: dict[str, tuple[Damage, str]] = {
    "a member twice": (members([0, 1], [2, 3, 0]), "a member of one"),
    "a member missing": (members([0], [2, 3]), "a member of one"),
    "no members": (members([], [2, 3]), "a member of one"),
    "members of fractions": (members([0.0, 1.0], [2, 3]), "a member of one"),
    "members a number": (members(7, [2, 3]), "not a list"),
    "members none": (clusters(lambda found: [e.pop("members") for e in found]), "a member of one"),
    "one more member": (members([0, 1, 4], [2, 3]), "merges|centroids"),
    "a merge of nothing": (merges([0, 1], [2, 9], [4, 5]), "no tree"),
    "a merge of the future": (merges([0, 6], [1, 2], [3, 4]), "no tree"),
    "merges too few": (merges([0, 1], [2, 3]), "merges is"),
    "negative counts": (tensors(lambda found: found["merges_counts"].fill_(-1)), "no tree"),
    "without merges": (tensors(lambda found: found.pop("merges")), "merges is missing"),
    "called k-means": (config(readout="kmeans"), "only a merge read-out's clusters"),
}


def refused(folder: Path, words: str) -> None:
    """One line that names the model; the remedy follows a semicolon."""
    with pytest.raises(ModelError, match=words) as caught:
        Segmenter.load(folder, device="cpu")
    message = str(caught.value)
    assert str(folder) in message and "; " in message and len(message.splitlines()) == 1


class TestMerged:
    @pytest.fixture
    def folder(self, segmenter: Segmenter, tmp_path: Path) -> Path:
        """Four over-clusters merged to two."""
        tree = np.array([[0, 1], [2, 3], [4, 5]])
        read = segmenter.with_merges(torch.eye(4, 8), Merges(tree, np.array([4, 3, 2, 1])), 2)
        return read.save(tmp_path / "merged")

    def test_what_the_file_says(self, folder: Path, model_folder: Path) -> None:
        """Other read-outs have no members."""
        content = json.loads((folder / "clusters.json").read_text())["clusters"]
        assert [entry["members"] for entry in content] == [[0, 1], [2, 3]]
        assert [entry["share"] for entry in content] == [0.7, 0.3]
        assert Segmenter.load(folder, device="cpu").clusters[1].members == (2, 3)
        content = json.loads((model_folder / "clusters.json").read_text())["clusters"]
        assert not any("members" in entry for entry in content)

    @pytest.mark.parametrize(("damage", "words"), MERGE_DAMAGES.values(), ids=MERGE_DAMAGES)
    def test_damages(self, folder: Path, damage: Damage, words: str) -> None:
        damage(folder)
        refused(folder, words)


class Payload:
    """Unpickled, it would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.marker,)


class TestRefusals:
    @pytest.fixture
    def folder(self, model_folder: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(model_folder, tmp_path / "model"))

    @pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
    def test_damaged_and_foreign_models(self, folder: Path, damage: Damage, words: str) -> None:
        damage(folder)
        refused(folder, words)

    @pytest.mark.parametrize(
        ("name", "value"), [(name, value) for name in OUT_OF_RANGE for value in OUT_OF_RANGE[name]]
    )
    def test_values_out_of_range(self, folder: Path, name: str, value: object) -> None:
        config(**{name: value})(folder)
        refused(folder, "not a model of this program.*out of range")

    def test_what_holds_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "m.pt").touch()
        for path in (tmp_path / "nowhere", tmp_path, tmp_path / "m.pt"):
            refused(path, "no model here")

    def test_an_unfinished_run_tells_how_to_finish_it(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").mkdir()
        refused(tmp_path, f"has not finished.*--resume --out {tmp_path}")

    def test_weights_are_verified_once_until_they_change(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Path] = []

        def counting(path: Path, sha256: str) -> None:
            asked.append(path)
            verify(path, sha256)

        monkeypatch.setattr("densesiam_seg.inference.model_card.verify", counting)
        for _ in range(2):
            stored_model(folder)
        weights = folder / "model.safetensors"
        assert asked == [weights]
        content, times = bytearray(weights.read_bytes()), weights.stat()
        content[-1] ^= 1
        weights.write_bytes(content)
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
        for _ in range(2):
            with pytest.raises(ModelError, match="SHA-256"):
                stored_model(folder)
        assert asked == [weights] * 3

    def test_nothing_is_unpickled(self, folder: Path, tmp_path: Path) -> None:
        marker = tmp_path / "marker"
        for name in ("model.safetensors", "clusters.json", "config.json"):
            (folder / name).write_bytes(pickle.dumps(Payload(marker)))
            with pytest.raises(ModelError):
                Segmenter.load(folder, device="cpu")
        assert not marker.exists()

    @pytest.mark.parametrize("name", ["clusters.json", "model.safetensors"])
    def test_a_pipe_does_not_block(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)
        refused(folder, name)

    def test_large_numbers_cost_no_memory(self, folder: Path) -> None:
        """The largest allowed sizes would be gigabytes of weights; the network is built without memory."""
        config(channels=4096, clusters=4096, over_clusters=4096)(folder)
        entries = [{"id": k, "name": "", "colour": [0, 0, 0]} for k in range(4096)]
        (folder / "clusters.json").write_text(json.dumps(entries))
        refused(folder, "instead of")
