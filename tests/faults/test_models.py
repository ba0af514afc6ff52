"""Models and weights made to do harm: each is refused soon, in little memory, and nothing in it is run.

Digests are right wherever they are not the point, since whoever makes such a file computes them too. Processor time is
measured, not the clock's, and resident memory against the size of the files.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from children import Child
from PIL import Image
from programs import Program, told_once
from slim import slim_resnets
from stored_models import seal_again
from tensor_files import HOSTILE, entry, raw_file
from torch import Tensor
from trials import Trials, fault

from densesiam_seg.clustering.merging import Merges
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.sealed import seal
from densesiam_seg.io.tensors import read_safetensors
from densesiam_seg.network.encoder import Encoder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

SECONDS = 2.0
"""Of processor time."""
MEMORY = 200 << 20
"""Bytes, beside one and a half times the files' size."""
ROOT = Path(__file__).parents[2]
WEIGHT = "network.projector.0.weight"

Damage = Callable[[Path], object]
"""Of a copy of a sound model directory, or of a path for weights."""


def all_of(*damages: Damage) -> Damage:
    def damage(place: Path) -> None:
        for each in damages:
            each(place)

    return damage


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.marker,)


def marker_of(place: Path) -> Path:
    """What a payload in `place` would create."""
    return place.parent / "marker"


def config(**changes: Any) -> Damage:
    """Other values in config.json, in the architecture too."""

    def change(content: dict[str, Any]) -> None:
        for place in (content, content["architecture"]):
            place.update({name: value for name, value in changes.items() if name in place})

    return lambda folder: seal_again(folder, change)


def architecture(**changes: Any) -> Damage:
    return lambda folder: seal_again(folder, lambda c: c["architecture"].update(changes))


def clusters(change: Callable[[list[dict[str, Any]]], object]) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "clusters.json").read_bytes())
        changed = change(content["clusters"])
        if changed is not None:
            content["clusters"] = changed
        text = json.dumps(content)
        (folder / "clusters.json").write_text(text)

    return damage


def cluster(**changes: Any) -> Damage:
    return clusters(lambda entries: entries[1].update(changes))


def bytes_of(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def sealed(body: bytes) -> Damage:
    """A config.json whose digest is right, with this behind it, which need not be JSON."""
    start = b'{"sha256": "%s", ' % hashlib.sha256(body).hexdigest().encode()
    return bytes_of("config.json", start + body)


def tensors_of(change: Callable[[dict[str, Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        found = read_safetensors(folder / "model.safetensors")
        change(found)
        safetensors.torch.save_file(found, folder / "model.safetensors")
        seal_again(folder)

    return damage


def header_of(change: Callable[[dict[str, Any]], object]) -> Damage:
    """The data of a sound model under another header."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        changed = change(header)
        raw_file(path, header if changed is None else changed, data[end:])
        seal_again(folder)

    return damage


def raw(header: Any, data: bytes = b"", *, length: int | None = None) -> Damage:
    """A model.safetensors with this header."""

    def damage(folder: Path) -> None:
        raw_file(folder / "model.safetensors", header, data, length=length)
        seal_again(folder)

    return damage


def empty_tensors(count: int) -> bytes:
    """A header of so many tensors without elements."""
    text = ",".join(
        f'"{index}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for index in range(count)
    )
    return b"{" + text.encode() + b"}"


def same_place(header: dict[str, Any]) -> None:
    """Two tensors of one shape with the same data; what the second one had is nobody's."""
    alike = collections.defaultdict(list)
    for name, each in header.items():
        if name != "__metadata__":
            alike[str(each["shape"])].append(name)
    first, second = next(names for names in alike.values() if len(names) > 1)[:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]


def twice(header: dict[str, Any]) -> bytes:
    """A header that names one tensor twice."""
    text = json.dumps(header)
    return (text[:-1] + f', "{WEIGHT}": {json.dumps(header[WEIGHT])}}}').encode()


def pickled(name: str, *, zipped: bool = False) -> Damage:
    """A pickle in the place of a file."""

    def damage(folder: Path) -> None:
        payload = Payload(marker_of(folder))
        if zipped:
            torch.save({WEIGHT: payload}, folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps(payload))
        if name == "model.safetensors":
            seal_again(folder)

    return damage


def instead(name: str, make: Callable[[Path], object]) -> Damage:
    """Something else in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def many(count: int) -> Callable[[object], list[dict[str, Any]]]:
    return lambda _: [{"id": k, "name": "", "colour": [0, 0, 0]} for k in range(count)]


def filled(value: float, name: str = WEIGHT) -> Damage:
    return tensors_of(lambda found: found[name].view(-1)[3].fill_(value))


LARGEST = 4096
MODELS: dict[str, Damage] = {
    **{f"header: {kind}": raw(*case) for kind, case in HOSTILE.items()},
    "header: length 2^63": raw(b"{}", length=2**63),
    "header: length 2^64 - 1": raw(b"{}", length=2**64 - 1),
    "header: a million tensors": lambda f: raw(empty_tensors(10**6))(f),
    "header: a megabyte of empty tensors": lambda f: raw(empty_tensors(18_000))(f),
    "header: a name of 900 kB": lambda f: raw({"../" * 300_000: entry([0], 0, 0)})(f),
    "header: two tensors in one place": header_of(same_place),
    "header: a tensor twice": header_of(twice),
    "header: halves": header_of(lambda h: h[WEIGHT].update(dtype="F16")),
    "header: other sides": header_of(lambda h: h[WEIGHT]["shape"].reverse()),
    "header: 2^40 elements": header_of(lambda h: h[WEIGHT].update(shape=[2**20, 2**20])),
    "header: 2^96 elements": header_of(lambda h: h[WEIGHT].update(shape=[2**32] * 3)),
    "header: offsets of 2^63": header_of(lambda h: h[WEIGHT].update(data_offsets=[0, 2**63])),
    "header: negative offsets": header_of(lambda h: h[WEIGHT].update(data_offsets=[-8, -4])),
    "weights: a tensor missing": tensors_of(lambda found: found.pop(WEIGHT)),
    "weights: one more tensor": tensors_of(lambda found: found.update(x=torch.zeros(10**6))),
    "weights: of another shape": tensors_of(
        lambda found: found.update({WEIGHT: found[WEIGHT][:, :4].contiguous()})
    ),
    "weights: doubles": tensors_of(lambda found: found.update({WEIGHT: found[WEIGHT].double()})),
    "weights: a path as a name": tensors_of(
        lambda found: found.update({"../../marker": found.pop(WEIGHT)})
    ),
    "weights: NaN": filled(float("nan")),
    "weights: infinite": filled(float("inf")),
    "weights: minus infinite": filled(float("-inf")),
    "weights: NaN in statistics": filled(
        float("nan"), "network.encoder.backbone.layer1.1.running_var"
    ),
    "weights: a pickle": pickled("model.safetensors"),
    "weights: a file of torch.save": pickled("model.safetensors", zipped=True),
    "weights: a pipe": instead("model.safetensors", os.mkfifo),
    "weights: a link to /dev/zero": instead("model.safetensors", to_zero),
    "weights: a folder": instead("model.safetensors", Path.mkdir),
    "weights: gone": instead("model.safetensors", lambda path: None),
    "weights: another digest": config(files={"model.safetensors": "0" * 64}),
    "weights: of another file": config(files={"../../etc/passwd": "0" * 64}),
    "config: 100 MB": lambda f: sealed(b'"a": "' + b"x" * 100_000_000 + b'"}')(f),
    "config: 100,000 brackets": sealed(b'"a": ' + b"[" * 100_000),
    "config: a long number": sealed(b'"a": ' + b"9" * 900_000 + b"}"),
    "config: not JSON": sealed(b"nonsense"),
    "config: empty": bytes_of("config.json", b""),
    "config: a pickle": pickled("config.json"),
    "config: a pipe": instead("config.json", os.mkfifo),
    "config: a link to /dev/zero": instead("config.json", to_zero),
    "config: a folder": instead("config.json", Path.mkdir),
    "config: of another program": bytes_of("config.json", seal({"model_type": "vit"})),
    "config: 10^9 clusters": config(clusters=10**9),
    "config: the most of all": config(
        clusters=LARGEST, channels=LARGEST, over_clusters=LARGEST, image_size=LARGEST
    ),
    "config: the most of all, and as many clusters": all_of(
        config(clusters=LARGEST, channels=LARGEST, over_clusters=LARGEST), clusters(many(LARGEST))
    ),
    "config: 2^63 clusters": config(clusters=2**63),
    "config: 10^12 channels": config(channels=10**12),
    "config: -1 channels": config(channels=-1),
    "config: 10^9 over-clusters": config(over_clusters=10**9),
    "config: images of 10^9 pixels": config(image_size=10**9),
    "config: infinite images": config(image_size=float("inf")),
    "config: features of another network": config(features="res5"),
    "backbone: of the Hub": architecture(backbone="timm:hf-hub:someone/model"),
    "backbone: of the Hub, written otherwise": architecture(backbone="timm:hf_hub:someone/model"),
    "backbone: of a folder": architecture(backbone="timm:local-dir:/tmp"),
    "backbone: an address": architecture(backbone="timm:https://example.org/model"),
    "backbone: a path": architecture(backbone="../../resnet18"),
    "backbone: none that timm has": architecture(backbone="timm:vit_nonsense"),
    "backbone: a large one": architecture(backbone="convnext_large"),
    "backbone: timm's largest": architecture(backbone="timm:eva_giant_patch14_560"),
    "backbone: a megabyte": architecture(backbone="timm:" + "x" * 900_000),
    "clusters: a million": lambda f: clusters(many(10**6))(f),
    "clusters: too many": clusters(many(LARGEST)),
    "clusters: none": clusters(lambda _: []),
    "clusters: nested": bytes_of("clusters.json", b"[" * 500_000),
    "clusters: a name of 10 MB": lambda f: cluster(name="x" * 10**7)(f),
    "clusters: a name that is a list": cluster(name=["x"]),
    "clusters: a share that is a word": cluster(share="most"),
    "clusters: a share of NaN": cluster(share=float("nan")),
    "clusters: an id of a word": cluster(id="1"),
    "clusters: an id of 10^4000": cluster(id=10**4000),
    "clusters: a colour of 10^9": cluster(colour=[10**9, 0, 0]),
    "clusters: more in one": cluster(x=1),
    "clusters: members of a head": cluster(members=[0, 1]),
    "clusters: a pickle": pickled("clusters.json"),
    "clusters: a pipe": instead("clusters.json", os.mkfifo),
    "clusters: a link to /dev/zero": instead("clusters.json", to_zero),
    "clusters: a folder": instead("clusters.json", Path.mkdir),
}
MERGED: dict[str, Damage] = {
    "members out of range": cluster(members=[10**9, 3]),
    "negative members": cluster(members=[-1, 3]),
    "members of both": cluster(members=[0, 2, 3]),
    "members of members": cluster(members=[[2], [3]]),
    "100,000 members": cluster(members=list(range(2, 100_000))),
    "a tree of itself": tensors_of(lambda t: t.update(merges=torch.tensor([[0, 4], [2, 3], [4, 5]]))),
    "a tree of 2^62": tensors_of(
        lambda t: t.update(merges=torch.tensor([[0, 2**62], [2, 3], [4, 5]]))
    ),
    "a tree of minus one": tensors_of(
        lambda t: t.update(merges=torch.tensor([[0, -1], [2, 3], [4, 5]]))
    ),
    "counts of minus one": tensors_of(lambda t: t["merges_counts"].fill_(-1)),
    "centroids of NaN": tensors_of(lambda t: t["centroids"].fill_(float("nan"))),
}  # fmt: skip


def sound() -> dict[str, Tensor]:
    with slim_resnets():
        return Encoder("resnet18", 8).backbone.state_dict()


def saved(change: Callable[[dict[str, Any], Path], object], **options: Any) -> Damage:
    """A file of `torch.save`, of what `change` leaves or returns."""

    def write(path: Path) -> None:
        content: Any = dict(sound())
        changed = change(content, path)
        torch.save(content if changed is None else changed, path, **options)

    return write


def stored(change: Callable[[dict[str, Tensor]], object]) -> Damage:
    """A safetensors file."""

    def write(path: Path) -> None:
        content = {name: value.clone() for name, value in sound().items()}
        change(content)
        safetensors.torch.save_file(content, path)

    return write


def repacked(path: Path, change: Callable[[str, bytes], tuple[str, bytes]]) -> None:
    """Other names and contents of the members of a `torch.save` file."""
    with zipfile.ZipFile(path) as source:
        members = {each.filename: source.read(each) for each in source.infolist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in members.items():
            target.writestr(*change(name, data))


def bomb(path: Path, megabytes: int = 800) -> None:
    """A tensor of so many megabytes of zeros, compressed a thousand times."""
    few, several = 65_537, megabytes * 250_000
    torch.save({"conv1.weight": torch.zeros(few)}, path)
    with zipfile.ZipFile(path) as source:
        members = {each.filename: source.read(each) for each in source.infolist()}
    block = bytes(8_000_000)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    middle = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    count = megabytes // 8
    packed = first + middle * (count - 1) + packer.flush()
    check = 0
    for _ in range(count):
        check = zlib.crc32(block, check)
    with zipfile.ZipFile(path, "w") as target:
        for name, data in members.items():
            if name.endswith("data.pkl"):
                assert data.count(struct.pack("<i", few)) == 2
                data = data.replace(struct.pack("<i", few), struct.pack("<i", several))
            if not name.endswith("data/0"):
                target.writestr(name, data)
                continue
            target.writestr(name, b"", zipfile.ZIP_DEFLATED)
            member = target.infolist()[-1]
            assert target.fp is not None
            target.fp.seek(member.header_offset)
            member.CRC, member.compress_size, member.file_size = (
                check,
                len(packed),
                8_000_000 * count,
            )
            target.fp.write(member.FileHeader(zip64=False))
            target.fp.write(packed)
            target.start_dir = target.fp.tell()


def shared_records(path: Path) -> None:
    """Directory entries of one and the same megabyte, which together are 800 MB."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(10**6))
        first = archive.infolist()[0]
        for index in range(1, 800):
            copy = zipfile.ZipInfo(f"archive/data/{index}")
            copy.header_offset, copy.CRC = first.header_offset, first.CRC
            copy.compress_size = copy.file_size = first.file_size
            archive.filelist.append(copy)


def outside(path: Path) -> None:
    """Members that name places outside of the archive."""
    saved(lambda content, _: None)(path)
    repacked(path, lambda name, data: ("../../marker" if name.endswith("data/0") else name, data))


def script(path: Path) -> None:
    """As TorchScript is stored: code beside the tensors."""
    saved(lambda content, _: None)(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("w/constants.pkl", pickle.dumps(Payload(marker_of(path))))
        archive.writestr("w/code/__torch__.py", f"open({str(marker_of(path))!r}, 'w')")


def only_pickle(data: bytes) -> Damage:
    """An archive like that of `torch.save` with this pickle."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", "3\n")

    return write


def distributed(path: Path) -> None:
    """A checkpoint of torch.distributed, whose `.metadata` is a pickle that torch loads as it is."""
    path.mkdir()
    (path / ".metadata").write_bytes(pickle.dumps(Payload(marker_of(path))))
    (path / "__0_0.distcp").write_bytes(pickle.dumps(Payload(marker_of(path))))


def payload(content: dict[str, Any], path: Path) -> None:
    content["conv1.weight"] = Payload(marker_of(path))


def unasked(content: dict[str, Any], path: Path) -> None:
    """Beside sound weights."""
    content["fc.weight"] = Payload(marker_of(path))


def itself(path: Path) -> None:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    torch.save(content, path)


def nests(path: Path) -> None:
    """Two dictionaries on each of 40 levels: 2^40 ways to walk them."""
    content: dict[str, Any] = {}
    for _ in range(40):
        content = {"a": content, "b": content}
    torch.save(content, path)


def view(tensor: Tensor) -> Damage:
    """It in the place of the first convolution's weights."""
    return saved(lambda content, _: content.update({"conv1.weight": tensor}))


def spoilt(value: float) -> Callable[..., None]:
    """One weight of the first convolution."""

    def change(content: dict[str, Tensor], *_: object) -> None:
        weight = content["conv1.weight"].clone()
        weight.view(-1)[3] = value
        content["conv1.weight"] = weight

    return change


ONE = torch.zeros(1)
SHAPE = (4, 3, 3, 3)
WEIGHTS: dict[str, tuple[str, Damage]] = {
    "a pickle": ("w.pth", lambda p: p.write_bytes(pickle.dumps(Payload(marker_of(p))))),
    "a pickle in a zip": ("w.pth", saved(payload)),
    "a pickle of unasked weights": ("w.pt", saved(unasked)),
    "a pickle in the old format": ("w.pt", saved(payload, _use_new_zipfile_serialization=False)),
    "a pickle called safetensors": ("w.safetensors", saved(payload)),
    "a pickle in an archive": (
        "w.pth", lambda p: only_pickle(pickle.dumps(Payload(marker_of(p))))(p),
    ),
    "torch.distributed": ("w", distributed),
    "TorchScript": ("w.pt", script),
    "a zip bomb of 800 MB": ("w.pth", bomb),
    "records that share their bytes": ("w.pth", shared_records),
    "names outside of the archive": ("w.pth", outside),
    "2^40 elements of stride 0": ("w.pth", view(ONE.expand(2**40))),
    "its shape of stride 0": ("w.pth", view(ONE.expand(SHAPE))),
    "elements that overlap": ("w.pth", view(torch.zeros(20).as_strided(SHAPE, (1, 1, 1, 1)))),
    "a tensor without memory": ("w.pth", view(torch.empty(SHAPE, device="meta"))),
    "a sparse one of 2^40 elements": (
        "w.pth", view(torch.zeros(2**20, 2**20, layout=torch.sparse_coo)),
    ),
    "a pickle that holds itself": ("w.pth", itself),
    "2^40 ways through a pickle": ("w.pth", nests),
    "a string of 2^62 bytes": (
        "w.pth", only_pickle(b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x."),
    ),
    "an array of 2^62 bytes": (
        "w.pth", only_pickle(b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"x."),
    ),
    "100,000 lists in lists": ("w.pth", only_pickle(b"\x80\x02" + b"]" * 10**5 + b"a" * 99_999 + b".")),
    "NaN": ("w.pth", saved(spoilt(float("nan")))),
    "infinite": ("w.pth", saved(spoilt(float("inf")))),
    "infinite as floats": ("w.pth", view(torch.full(SHAPE, 1e300, dtype=torch.float64))),
    "NaN in safetensors": (
        "w.safetensors", stored(spoilt(float("nan"))),
    ),
    "infinite in safetensors": (
        "w.safetensors", stored(spoilt(float("inf"))),
    ),
    "another shape": ("w.pth", view(torch.zeros(4, 3, 3, 4))),
    "another shape in safetensors": (
        "w.safetensors", stored(lambda c: c.update({"conv1.weight": torch.zeros(5)})),
    ),
    "a tensor missing": ("w.safetensors", stored(lambda c: c.pop("conv1.weight"))),
    "no tensors": ("w.pth", saved(lambda content, _: content.clear())),
    "a header of 2^63 bytes": ("w.safetensors", lambda p: raw_file(p, b"{}", length=2**63)),
    "a million tensors": ("w.safetensors", lambda p: raw_file(p, empty_tensors(10**6))),
    "18,000 tensors": ("w.safetensors", lambda p: raw_file(p, empty_tensors(18_000))),
    **{
        f"header: {kind}": ("w.safetensors", lambda p, case=case: raw_file(p, *case))  # type: ignore[misc]
        for kind, case in HOSTILE.items()
    },
    "a folder": ("w.pth", Path.mkdir),
    "an empty file": ("w.pth", Path.touch),
    "zeros": ("w.pth", lambda p: p.write_bytes(bytes(10**6))),
}  # fmt: skip
NO_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a link to /dev/zero": to_zero,
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image; its folder holds nothing else."""
    path = tmp_path_factory.mktemp("image") / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def size_of(path: Path) -> int:
    """Bytes of the regular files at a path or below it."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files if not each.is_symlink())


def refused(found: Child, place: Path, code: int = 4) -> None:
    """One line of the model's error that names the place; soon, in little memory, and without a trace."""
    assert found.wait() == code, found.stderr
    last = told_once(found, "model" if code == 4 else "usage")
    assert str(place) in last
    assert len(last) < 1000 + 2 * len(str(place)) and last.isprintable(), last[:2000]
    assert found.seconds < SECONDS, f"{found.seconds} s: {last}"
    most = 1.5 * size_of(place) + MEMORY
    assert found.growth < most, f"{found.growth:,} bytes: {last}"
    assert not marker_of(place).exists()


def some(trials: Trials, kinds: dict[str, Any]) -> dict[str, Any]:
    """All kinds, or every seventh where there is little time."""
    return dict(kinds if trials.full else list(kinds.items())[::7])


@fault(
    "F5",
    "hostile model directories with right digests, predict --model",
    "exit 4 in 2 s of processor time and 200 MB; nothing is run",
)
def test_models(
    trials: Trials,
    program: Program,
    tmp_path: Path,
    image: Path,
    model_folder: Path,
    segmenter: Segmenter,
) -> None:
    with trials.trial("the payload works where it is let loose"):
        pickle.loads(pickle.dumps(Payload(tmp_path / "marker")))
        (tmp_path / "marker").unlink()

    tree = Merges(np.array([[0, 1], [2, 3], [4, 5]]), np.array([4, 3, 2, 1]))
    merged = segmenter.with_merges(torch.eye(4, 8), tree, 2).save(tmp_path / "merged" / "model")
    kinds = [(kind, model_folder, damage) for kind, damage in some(trials, MODELS).items()]
    kinds += [(f"merge: {kind}", merged, damage) for kind, damage in some(trials, MERGED).items()]
    for number, (kind, whole, damage) in enumerate(kinds):
        with trials.trial(kind):
            folder = tmp_path / str(number) / "model"
            shutil.copytree(whole, folder)
            out = tmp_path / str(number) / "mask.png"
            predict = ("predict", image, "--out", out, "--device", "cpu", "--model", folder)
            if not number % 20:
                assert program(*predict, "--overwrite").wait() == 0, "a sound one"
                out.unlink()
            damage(folder)
            refused(program(*predict), folder)
            assert not out.exists()
            shutil.rmtree(folder)


@fault(
    "F5",
    "hostile .pth, .pt and .safetensors files, train --weights",
    "exit 4 in 2 s of processor time and 200 MB; nothing is run",
)
def test_weights(trials: Trials, program: Program, tmp_path: Path, image: Path) -> None:
    for number, (kind, (name, write)) in enumerate(some(trials, WEIGHTS).items()):
        with trials.trial(kind):
            place = tmp_path / str(number)
            place.mkdir()
            write(place / name)
            refused(trained(program, image, place / "run", "--weights", place / name), place / name)
            shutil.rmtree(place)
    for kind, make in NO_FILES.items():
        with trials.trial(kind):
            path = tmp_path / f"{kind[-4:]}.pth"
            make(path)
            refused(trained(program, image, tmp_path / "run", "--weights", path), path, 2)
    with trials.trial("sound ones"):
        path = tmp_path / "sound.pth"
        saved(lambda content, _: None)(path)
        assert trained(program, image, tmp_path / "sound", "--weights", path).wait() == 0


def trained(program: Program, image: Path, run: Path, *options: object) -> Child:
    return program(
        *(
            "train",
            "--no-report",
            image,
            "--out",
            run,
            "--device",
            "cpu",
            "--precision",
            "fp32",
            "--threads",
            1,
        ),
        *("--workers", 0, "--cache", "none", "--image-size", 32, "--channels", 8, "--clusters", 5),
        *("--over-clusters", 6, "--prior", "none", "--epochs", 1, "--backbone", "resnet18"),
        *options,
    )


def rename_sealed(folder: Path, body: bytes) -> None:
    sealed(body)(folder)
    (folder / "config.json").rename(folder / "manifest.json")


def manifest_of(folder: Path, **changes: Any) -> None:
    """A checkpoint's manifest with other values and right digests."""
    content = json.loads((folder / "manifest.json").read_bytes())
    del content["sha256"]
    digest = hashlib.sha256((folder / "tensors.safetensors").read_bytes()).hexdigest()
    content |= {"files": {"tensors.safetensors": digest}, **changes}
    (folder / "manifest.json").write_bytes(seal(content))


STARTS = ("weights: NaN", "weights: a pickle", "config: 100 MB", "clusters: a million")
CHECKPOINTS: dict[str, Damage] = {
    "manifest: a pickle": pickled("manifest.json"),
    "manifest: a pipe": instead("manifest.json", os.mkfifo),
    "manifest: a link to /dev/zero": instead("manifest.json", to_zero),
    "manifest: 100,000 brackets": lambda f: rename_sealed(f, b'"a": ' + b"[" * 100_000),
    "manifest: 100 MB": lambda f: rename_sealed(f, b'"a": "' + b"x" * 100_000_000 + b'"}'),
    "manifest: tensors elsewhere": lambda f: manifest_of(f, files={"/etc/passwd": "0" * 64}),
    "manifest: a step of 2^63": lambda f: manifest_of(f, step=2**63),
    "tensors: a pickle": all_of(pickled("tensors.safetensors"), manifest_of),
    "tensors: a link to /dev/zero": instead("tensors.safetensors", to_zero),
    "tensors: a pipe": instead("tensors.safetensors", os.mkfifo),
    "tensors: a million": all_of(
        lambda f: raw_file(f / "tensors.safetensors", empty_tensors(10**6)), manifest_of
    ),
    "tensors: none": all_of(lambda f: raw_file(f / "tensors.safetensors", {}), manifest_of),
}


@fault(
    "F5",
    "hostile models and checkpoints, train --init-from and --resume",
    "exit 4 in 2 s of processor time and 200 MB; nothing is run",
)
def test_starts(
    trials: Trials, program: Program, tmp_path: Path, image: Path, model_folder: Path
) -> None:
    for option in ("--init-from", "--weights"):
        for kind in STARTS if trials.full else STARTS[::2]:
            with trials.trial(f"{option} {kind}"):
                place = tmp_path / option / kind.replace(" ", "-")
                shutil.copytree(model_folder, place / "model")
                MODELS[kind](place / "model")
                refused(
                    trained(program, image, place / "run", option, place / "model"), place / "model"
                )

    run = stopped_run(program, tmp_path, image)
    for kind, damage in some(trials, CHECKPOINTS).items():
        with trials.trial(f"--resume, {kind}"):
            place = tmp_path / kind.replace("/", "-") / "run"
            shutil.copytree(run, place)
            for checkpoint in (place / "checkpoints").iterdir():
                damage(checkpoint)
            refused(program("train", "--no-report", "--resume", "--out", place), place)
            assert not list(place.rglob("marker"))
            shutil.rmtree(place)
    with trials.trial("--resume of what was not touched"):
        assert program("train", "--no-report", "--resume", "--out", run).wait() == 0


def stopped_run(program: Program, folder: Path, image: Path) -> Path:
    """A run of one image with a checkpoint, whose time was up before its end."""
    run = folder / "stopped"
    found = trained(program, image, run, "--epochs", 3, "--weights", "none", "--max-time", "0.001")
    assert found.wait() == 0, found.stderr
    return run


NOT_EVEN_TORCH = (
    *(
        "header: length 2^63",
        "header: a million tensors",
        "header: huge claim",
        "weights: a pickle",
    ),
    *("weights: a link to /dev/zero", "config: 100 MB", "config: a pipe", "config: 10^9 clusters"),
    *("backbone: of the Hub", "clusters: nested", "clusters: a million"),
)
WATCHED = """
import sys
sys.path[:0] = [{root!r}]
from densesiam_seg.cli.app import main
try:
    main()
finally:
    assert not {{"torch", "torchvision", "timm", "faiss"}} & set(sys.modules), "torch is here"
"""


@fault(
    "F5",
    "the same by `python -m densesiam_seg predict`",
    "exit 4 and one line on stderr, before torch is imported",
)
def test_commands(trials: Trials, tmp_path: Path, image: Path, model_folder: Path) -> None:
    program = [sys.executable, "-P", "-W", "error", "-c", WATCHED.format(root=str(ROOT))]
    kinds = NOT_EVEN_TORCH if trials.full else NOT_EVEN_TORCH[::3]
    for number, kind in enumerate(kinds):
        with trials.trial(kind):
            folder = tmp_path / str(number) / "model"
            shutil.copytree(model_folder, folder)
            MODELS[kind](folder)
            arguments = ["predict", image, "--out", tmp_path / "mask.png", "--model", folder]
            found = subprocess.run(
                [*program, *map(str, arguments)],
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
                cwd=tmp_path,
            )
            assert (found.returncode, found.stdout) == (4, ""), found.stderr
            (line,) = found.stderr.splitlines()
            assert line.startswith("error[model]: ") and str(folder) in line
            assert not marker_of(folder).exists()
            shutil.rmtree(folder)
