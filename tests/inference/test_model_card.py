"""Model directories: what their JSON files must say, names of clusters, and what is refused."""

from __future__ import annotations

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
from torch import Tensor

from densesiam_seg.clustering.merging import Merges
from densesiam_seg.datasets.scenes import scene
from densesiam_seg.errors import ModelError
from densesiam_seg.inference.model_card import LARGEST_CONFIG, ModelCard, name_clusters
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.tensors import read_safetensors, write_safetensors
from densesiam_seg.network.model import Architecture
from densesiam_seg.pictures.masks import palette


class TestNames:
    def test_unnamed_clusters(self) -> None:
        clusters = name_clusters(27)
        assert [c.id for c in clusters] == list(range(27))
        assert (clusters[0].name, clusters[26].name) == ("cluster_00", "cluster_26")
        assert [c.colour for c in clusters] == palette(27)
        assert clusters[3].share is None

    def test_names_sort_like_ids(self) -> None:
        names = [cluster.name for cluster in name_clusters(300)]
        assert names[7] == "cluster_007"
        assert sorted(names) == names

    def test_shares(self) -> None:
        assert [c.share for c in name_clusters(2, [0.25, 0.75])] == [0.25, 0.75]

    def test_the_palette_is_the_clusters(self, segmenter: Segmenter) -> None:
        assert segmenter.palette == palette(5)


Damage = Callable[[Path], object]


def config(**changes: Any) -> Damage:
    """Change entries of config.json; `architecture` entries too, and None deletes."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            place = content["architecture"] if name in content["architecture"] else content
            place[name] = value
            if value is None:
                del place[name]
        (folder / "config.json").write_text(json.dumps(content))

    return damage


def both_clusters(value: object) -> Damage:
    """The same number of clusters in the architecture and the card."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        content["clusters"] = content["architecture"]["clusters"] = value
        (folder / "config.json").write_text(json.dumps(content))

    return damage


def file(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def clusters(change: Callable[[list[dict[str, Any]]], object]) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "clusters.json").read_text())
        change(content)
        (folder / "clusters.json").write_text(json.dumps(content))

    return damage


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        content = read_safetensors(folder / "model.safetensors")
        change(content)
        write_safetensors(folder / "model.safetensors", content)

    return damage


def spoil(value: float) -> Callable[[dict[str, Tensor]], object]:
    return lambda found: found["network.projector.0.weight"].view(-1)[3].fill_(value)


class Payload:
    """Unpickled, it would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.marker,)


WEIGHT = "network.projector.0.weight"


def folder_instead(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def remove_architecture(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"format": 1, "image_size": 32}))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "config not JSON": (file("config.json", b"{"), "JSON"),
    "config not text": (file("config.json", b"\xff\xfe\x00"), "JSON"),
    "config nested deep": (file("config.json", b"[" * 100_000), "JSON"),
    "config with a huge number": (file("config.json", b"9" * 100_000), "JSON"),
    "config huge": (file("config.json", b" " * (LARGEST_CONFIG + 1)), "larger"),
    "config a list": (file("config.json", b"[1]"), "not a model of this program"),
    "config of another program": (file("config.json", b'{"model_type": "vit"}'), "format 1"),
    "format of the future": (config(format=2), "format 1 is wanted"),
    "without an architecture": (remove_architecture, "architecture"),
    "architecture a word": (file("config.json", b'{"format": 1, "architecture": "x"}'), "not a"),
    "an unknown entry": (config(colour="red"), "colour"),
    "without its size": (config(image_size=None), "image_size"),
    "unknown backbone": (config(backbone="vit"), "out of range"),
    "backbone a list": (config(backbone=["resnet18"]), "not a model"),
    "backbone of a hub": (config(backbone="timm:hf-hub:someone/model"), "out of range"),
    "backbone unknown to timm": (config(backbone="timm:vit_nonsense"), "timm"),
    "backbone with a path": (config(backbone="../resnet18"), "out of range"),
    "huge k": (both_clusters(10**9), "out of range"),
    "k beyond the limit": (both_clusters(4097), "out of range"),
    "k zero": (both_clusters(0), "out of range"),
    "k a fraction": (both_clusters(5.0), "out of range"),
    "k a truth value": (both_clusters(True), "out of range"),
    "k a text": (both_clusters("5"), "out of range"),
    "huge channels": (config(channels=10**12), "out of range"),
    "negative over-clusters": (config(over_clusters=-1), "out of range"),
    "over-clusters beyond the limit": (config(over_clusters=4097), "out of range"),
    "over-clusters a truth value": (config(over_clusters=False), "out of range"),
    "over-clusters a fraction": (config(over_clusters=0.0), "out of range"),
    "channels zero": (config(channels=0), "out of range"),
    "unknown features": (config(features="res4"), "out of range"),
    "features a list": (config(features=["fpn"]), "out of range"),
    "features a truth value": (config(features=True), "out of range"),
    "features of another network": (config(features="res5"), "model.safetensors"),
    "image head a number": (config(image_head=1), "out of range"),
    "image head a text": (config(image_head="yes"), "out of range"),
    "image head without its tensors": (config(image_head=True), "image_.* is missing"),
    "over-clusters without their tensors": (config(over_clusters=0), "over_.* is not part"),
    "size too small": (config(image_size=31), "out of range"),
    "size too large": (config(image_size=4097), "out of range"),
    "size not a number": (config(image_size="32"), "out of range"),
    "size NaN": (config(image_size=float("nan")), "out of range"),
    "unknown readout": (config(readout="tree"), "out of range"),
    "readout a list": (config(readout=[]), "out of range"),
    "head of another k": (config(clusters=6), "out of range"),
    "clusters absent": (lambda f: (f / "clusters.json").unlink(), "clusters.json"),
    "clusters not JSON": (file("clusters.json", b"nonsense"), "JSON"),
    "clusters a number": (file("clusters.json", b"5"), "not a list"),
    "clusters an object": (file("clusters.json", b'{"a": 1}'), "not a list"),
    "clusters huge": (file("clusters.json", b" " * (LARGEST_CONFIG + 1)), "larger"),
    "clusters too few": (clusters(lambda found: found.pop()), "0 to 4"),
    "clusters in another order": (clusters(lambda found: found.reverse()), "0 to 4"),
    "cluster without a colour": (clusters(lambda found: found[1].pop("colour")), "not a list"),
    "cluster with more": (clusters(lambda found: found[1].update(x=1)), "not a list"),
    "colour out of range": (clusters(lambda f: f[1].update(colour=[0, 0, 256])), "RGB"),
    "colour a number": (clusters(lambda f: f[1].update(colour=7)), "not a list"),
    "colour of fractions": (clusters(lambda f: f[1].update(colour=[0.5, 0, 0])), "RGB"),
    "colour too long": (clusters(lambda f: f[1].update(colour=[1, 2, 3, 4])), "RGB"),
    "weights absent": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "weights empty": (file("model.safetensors", b""), "model.safetensors"),
    "weights junk": (file("model.safetensors", b"junk" * 100), "model.safetensors"),
    "weights truncated": (
        lambda f: os.truncate(f / "model.safetensors", 2000),
        "model.safetensors",
    ),
    "weights a folder": (folder_instead, "model.safetensors"),
    "tensor missing": (tensors(lambda found: found.pop(WEIGHT)), f"{WEIGHT} is missing"),
    "tensor unknown": (
        tensors(lambda found: found.update(extra=torch.zeros(1))),
        "extra is not part",
    ),
    "tensor misshaped": (
        tensors(lambda found: found.update({WEIGHT: torch.zeros(8, 8)})),
        f"{WEIGHT} is .*instead of",
    ),
    "tensor of halves": (
        tensors(lambda found: found.update({WEIGHT: found[WEIGHT].half()})),
        f"{WEIGHT} is .*float16.* instead of .*float32",
    ),
    "centroids without the readout": (
        tensors(lambda found: found.update(centroids=torch.zeros(5, 8))),
        "centroids is not part",
    ),
    "readout without centroids": (config(readout="kmeans"), "centroids is missing"),
    "weights NaN": (tensors(spoil(float("nan"))), "NaN or infinite"),
    "weights infinite": (tensors(spoil(float("inf"))), "NaN or infinite"),
}


def members(change: Callable[[list[list[Any]]], object]) -> Damage:
    """A change of the members that the clusters of a merge have."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / "clusters.json").read_text())
        lists = [entry["members"] for entry in content]
        change(lists)
        for entry, each in zip(content, lists, strict=True):
            entry["members"] = each
        (folder / "clusters.json").write_text(json.dumps(content))

    return damage


def merges(rows: list[list[int]]) -> Damage:
    return tensors(lambda found: found.update(merges=torch.tensor(rows)))


MERGE_DAMAGES: dict[str, tuple[Damage, str]] = {
    "a member twice": (members(lambda found: found[1].append(found[0][0])), "a member of one"),
    "a member missing": (members(lambda found: found[0].pop()), "a member of one"),
    "no members": (members(lambda found: found[0].clear()), "a member of one"),
    "members of fractions": (
        members(lambda f: f.__setitem__(0, [float(m) for m in f[0]])),
        "a member of one",
    ),
    "members a number": (members(lambda found: found.__setitem__(0, 7)), "not a list"),  # type: ignore[call-overload]
    "members none": (
        clusters(lambda found: [entry.pop("members") for entry in found]),
        "a member of one",
    ),
    "one more member": (members(lambda found: found[0].append(4)), "merges|centroids"),
    "a merge of nothing": (merges([[0, 1], [2, 9], [4, 5]]), "no tree"),
    "a merge of the future": (merges([[0, 6], [1, 2], [3, 4]]), "no tree"),
    "merges too few": (merges([[0, 1], [2, 3]]), "merges is"),
    "negative counts": (
        tensors(lambda found: found["merges_counts"].fill_(-1)),
        "no tree",
    ),
    "without merges": (tensors(lambda found: found.pop("merges")), "merges is missing"),
    "called k-means": (config(readout="kmeans"), "only a merge read-out's clusters"),
}


class TestMerged:
    @pytest.fixture
    def folder(self, segmenter: Segmenter, tmp_path: Path) -> Path:
        """Four over-clusters merged to two."""
        tree = np.array([[0, 1], [2, 3], [4, 5]])
        read = segmenter.with_merges(torch.eye(4, 8), Merges(tree, np.array([4, 3, 2, 1])), 2)
        return read.save(tmp_path / "merged")

    def test_what_the_file_says(self, folder: Path) -> None:
        content = json.loads((folder / "clusters.json").read_text())
        assert [entry["members"] for entry in content] == [[0, 1], [2, 3]]
        assert [entry["share"] for entry in content] == [0.7, 0.3]
        assert Segmenter.load(folder, device="cpu").clusters[1].members == (2, 3)

    def test_other_read_outs_have_no_members(self, model_folder: Path) -> None:
        content = json.loads((model_folder / "clusters.json").read_text())
        assert all(set(entry) == {"id", "name", "colour", "share"} for entry in content)

    @pytest.mark.parametrize("name", MERGE_DAMAGES)
    def test_damages(self, folder: Path, name: str) -> None:
        damage, words = MERGE_DAMAGES[name]
        damage(folder)
        with pytest.raises(ModelError, match=words) as caught:
            Segmenter.load(folder, device="cpu")
        assert str(folder) in str(caught.value)
        assert "; " in str(caught.value)


class TestRefusals:
    @pytest.fixture
    def folder(self, model_folder: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(model_folder, tmp_path / "model"))

    @pytest.mark.parametrize("name", DAMAGES)
    def test_damaged_and_foreign_models(self, folder: Path, name: str) -> None:
        damage, words = DAMAGES[name]
        damage(folder)
        with pytest.raises(ModelError, match=words) as caught:
            Segmenter.load(folder, device="cpu")
        message = str(caught.value)
        assert str(folder) in message
        assert len(message.splitlines()) == 1
        assert "; " in message, "the remedy follows a semicolon"

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"nowhere: no model here"):
            Segmenter.load(tmp_path / "nowhere")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="give a run or model directory"):
            Segmenter.load(tmp_path)

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "m.pt").write_bytes(b"x")
        with pytest.raises(ModelError, match=r"m\.pt: no model here"):
            Segmenter.load(tmp_path / "m.pt")

    def test_an_unfinished_run_tells_how_to_finish_it(self, tmp_path: Path) -> None:
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        with pytest.raises(ModelError, match="has not finished") as caught:
            Segmenter.load(tmp_path / "run")
        # Which command began it, train or pretrain, the folder does not tell here.
        assert str(caught.value).endswith(f"--resume --out {tmp_path / 'run'}")

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
        with pytest.raises(ModelError, match=name):
            Segmenter.load(folder, device="cpu")

    def test_every_truncation_of_the_weights_is_refused(self, folder: Path) -> None:
        whole = (folder / "model.safetensors").read_bytes()
        for length in np.linspace(0, len(whole) - 1, 40).astype(int).tolist():
            (folder / "model.safetensors").write_bytes(whole[:length])
            with pytest.raises(ModelError):
                Segmenter.load(folder, device="cpu")

    def test_large_numbers_cost_no_memory(self, folder: Path) -> None:
        """The largest allowed sizes would be gigabytes of weights; the network is built without memory."""
        config(channels=4096, clusters=4096, over_clusters=4096)(folder)
        both_clusters(4096)(folder)
        entries = [{"id": k, "name": "", "colour": [0, 0, 0]} for k in range(4096)]
        (folder / "clusters.json").write_text(json.dumps(entries))
        with pytest.raises(ModelError, match="instead of"):
            Segmenter.load(folder, device="cpu")


def test_a_card_from_before_these_options_is_read(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    config(features=None, image_head=None)(folder)
    loaded = Segmenter.load(folder, device="cpu")
    assert (loaded.card.architecture.features, loaded.card.architecture.image_head) == (
        "fpn",
        False,
    )
    image = scene(1, 0, 30)[0]
    np.testing.assert_array_equal(
        loaded.predict(image),
        Segmenter.load(model_folder, device="cpu").predict(image),
    )


def test_the_cards_defaults_are_the_papers() -> None:
    card = ModelCard(Architecture(), 320)
    assert (card.readout, card.clusters, card.architecture.clusters) == ("head", 27, 27)
