"""The public object: any image gives a mask of its own size, and only sound model directories are loaded."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg import segmenter as segmenter_module
from densesiam_seg.clustering import Centroids
from densesiam_seg.errors import ImageError, InputError, ModelError
from densesiam_seg.masks import palette
from densesiam_seg.model import Architecture, build_network
from densesiam_seg.scenes import scene
from densesiam_seg.segmenter import (
    LARGEST_CONFIG,
    Cluster,
    ImageLike,
    ModelCard,
    Segmenter,
    as_pixels,
    name_clusters,
    working_size,
)
from densesiam_seg.tensorfiles import read_safetensors, write_safetensors

SMALL = Architecture(channels=8, clusters=5, over_clusters=6)
SIZES = [(1, 1), (1, 500), (500, 1), (33, 47), (64, 64), (7, 3), (31, 101)]


def photograph(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A scene cut to (H, W, 3)."""
    pixels, _ = scene(1, seed, max(height, width, 16))
    return np.ascontiguousarray(pixels[:height, :width])


def slow_scores(segmenter: Segmenter, pixels: NDArray[np.uint8]) -> Tensor:
    """Scores (K, H, W) step by step from METHOD, section 2: resize, normalise, encode, project, upsample."""
    height, width = pixels.shape[:2]
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    size = working_size(height, width, 32)
    small = F.interpolate(planes[None], size, mode="bilinear", antialias=True).double() / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double()
    images = (small - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        scores: Tensor = segmenter.network(images.float())
    return F.interpolate(scores, (height, width), mode="bilinear")[0]


def centroids_of(count: int) -> Centroids:
    draw = torch.Generator().manual_seed(count)
    centres = F.normalize(torch.randn(count, 8, generator=draw), dim=1)
    # Means of unit vectors are shorter than 1, each by another factor.
    centres *= 0.3 + 0.7 * torch.rand(count, 1, generator=draw)
    return Centroids(centres, torch.arange(1, count + 1))


class TestPredict:
    @pytest.mark.parametrize("size", SIZES)
    def test_the_mask_has_the_images_size(
        self, segmenter: Segmenter, size: tuple[int, int]
    ) -> None:
        mask = segmenter.predict(photograph(*size))
        assert mask.shape == size
        assert mask.dtype == np.uint8
        assert mask.max() < 5

    @pytest.mark.parametrize("size", [(33, 47), (64, 64), (31, 101), (1, 50)])
    def test_it_is_the_argmax_of_slow_scores(
        self, segmenter: Segmenter, size: tuple[int, int]
    ) -> None:
        pixels = photograph(*size)
        scores = slow_scores(segmenter, pixels)
        mask = torch.from_numpy(segmenter.predict(pixels).astype(np.int64))
        chosen = scores.gather(0, mask[None])[0]
        assert (scores.amax(0) - chosen).max() < 1e-4

    def test_several_clusters_show(self, segmenter: Segmenter) -> None:
        seen = {
            int(k) for seed in range(4) for k in segmenter.predict(photograph(64, 64, seed)).flat
        }
        assert seen == {0, 1, 2, 3, 4}

    def test_every_kind_of_input_gives_the_same_mask(
        self, segmenter: Segmenter, tmp_path: Path
    ) -> None:
        pixels = photograph(41, 59)
        file = tmp_path / "image.png"
        Image.fromarray(pixels).save(file)
        expected = segmenter.predict(pixels)
        read_only = pixels.copy()
        read_only.flags.writeable = False
        with Image.open(file) as picture:
            inputs: list[ImageLike] = [
                file,
                str(file),
                picture,
                Image.fromarray(pixels),
                read_only,
                np.asfortranarray(pixels),
                torch.from_numpy(pixels).permute(2, 0, 1),
            ]
            for image in inputs:
                np.testing.assert_array_equal(segmenter.predict(image), expected)

    @pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "F"])
    def test_pictures_of_any_mode_are_read_like_files(
        self, segmenter: Segmenter, tmp_path: Path, mode: str
    ) -> None:
        if mode in ("I;16", "F"):
            deep = photograph(24, 30)[..., 0] * (257.0 if mode == "I;16" else 1 / 255)
            picture = Image.fromarray(deep.astype(np.uint16 if mode == "I;16" else np.float32))
        else:
            picture = Image.fromarray(photograph(24, 30)).convert(mode)
        if mode in ("LA", "RGBA"):
            picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        file = tmp_path / "image.tif"
        picture.save(file)
        np.testing.assert_array_equal(segmenter.predict(picture), segmenter.predict(file))
        assert torch.equal(as_pixels(picture), as_pixels(file))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_rotated_file_gives_a_mask_of_what_is_displayed(
        self, segmenter: Segmenter, tmp_path: Path, orientation: int
    ) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = tmp_path / "image.png"
        Image.fromarray(photograph(20, 44)).save(file, exif=exif)
        with Image.open(file) as picture:
            displayed = np.asarray(ImageOps.exif_transpose(picture))
        mask = segmenter.predict(file)
        assert mask.shape == ((44, 20) if orientation >= 5 else (20, 44))
        np.testing.assert_array_equal(mask, segmenter.predict(displayed))

    def test_neighbours_do_not_matter(self, segmenter: Segmenter) -> None:
        images = [photograph(40, 56, seed) for seed in range(3)]
        alone = segmenter.predict(images[1])
        between = [segmenter.predict(image) for image in (*images, images[1])]
        np.testing.assert_array_equal(between[1], alone)
        np.testing.assert_array_equal(between[3], alone)

    def test_a_batch_has_the_scores_of_its_images(self, segmenter: Segmenter) -> None:
        images = [segmenter.prepare(as_pixels(photograph(40, 56, seed))) for seed in range(3)]
        together = segmenter.logits(torch.cat(images))
        for image, scores in zip(images, together, strict=True):
            torch.testing.assert_close(segmenter.logits(image)[0], scores, atol=1e-5, rtol=0)

    def test_the_global_generator_is_left_alone(self, segmenter: Segmenter) -> None:
        before = torch.random.get_rng_state()
        segmenter.predict(photograph(20, 20))
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_a_file_that_cannot_be_read(self, segmenter: Segmenter, tmp_path: Path) -> None:
        file = tmp_path / "bad.jpg"
        file.write_bytes(b"<html>")
        with pytest.raises(ImageError, match=r"bad\.jpg"):
            segmenter.predict(file)

    def test_the_pixel_limit_names_its_option(self, segmenter: Segmenter, tmp_path: Path) -> None:
        file = tmp_path / "large.png"
        Image.new("RGB", (40, 30)).save(file)
        with pytest.raises(ImageError, match="--max-pixels"):
            segmenter.predict(file, max_pixels=1199)
        assert segmenter.predict(file, max_pixels=1200).shape == (30, 40)

    @pytest.mark.parametrize(
        "image",
        [
            np.zeros((5, 5), np.uint8),
            np.zeros((5, 5, 4), np.uint8),
            np.zeros((5, 5, 3), np.float32),
            np.zeros((5, 5, 3), np.uint16),
            np.zeros((0, 5, 3), np.uint8),
            torch.zeros(5, 5, 3, dtype=torch.uint8),
            torch.zeros(3, 5, 5),
            torch.zeros(1, 3, 5, 5, dtype=torch.uint8),
            Image.new("RGB", (0, 5)),
            None,
        ],
        ids=lambda image: f"{type(image).__name__}",
    )
    def test_arrays_of_another_kind_are_refused(self, segmenter: Segmenter, image: Any) -> None:
        with pytest.raises(InputError, match=r"uint8 of shape \(H, W, 3\)"):
            segmenter.predict(image)


class TestWorkingSize:
    @pytest.mark.parametrize(
        ("height", "width", "side", "expected"),
        [
            (100, 200, 32, (32, 64)),
            (200, 100, 32, (64, 32)),
            (320, 320, 320, (320, 320)),
            (375, 500, 320, (320, 426)),
            (1, 1, 32, (32, 32)),
            (1, 8, 32, (32, 256)),
            (1, 16, 32, (16, 256)),
            (1, 500, 32, (1, 256)),
            (20000, 10, 100, (800, 1)),
        ],
    )
    def test_shorter_side_within_bounds(
        self, height: int, width: int, side: int, expected: tuple[int, int]
    ) -> None:
        assert working_size(height, width, side) == expected

    def test_the_shorter_side_is_met_for_every_size(self) -> None:
        """Rounding must not make 31 of 32: the quotient times the divisor may fall short of the number."""
        for length in range(1, 3000):
            assert min(working_size(length, length + 7, 32)) == 32
            assert max(working_size(length, 100 * length, 32)) == 256


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


class TestSaveAndLoad:
    def test_masks_are_equal(self, segmenter: Segmenter, model_folder: Path) -> None:
        loaded = Segmenter.load(model_folder, device="cpu", precision="fp32")
        assert loaded.card == segmenter.card
        assert loaded.clusters == segmenter.clusters
        for size in SIZES:
            image = photograph(*size)
            np.testing.assert_array_equal(loaded.predict(image), segmenter.predict(image))

    def test_a_second_generation_has_equal_bytes(self, model_folder: Path, tmp_path: Path) -> None:
        again = Segmenter.load(model_folder, device="cpu").save(tmp_path / "again")
        assert {path.name for path in again.iterdir()} == {
            "config.json",
            "clusters.json",
            "model.safetensors",
        }
        for path in again.iterdir():
            assert path.read_bytes() == (model_folder / path.name).read_bytes()

    def test_a_run_holds_its_model(self, model_folder: Path, tmp_path: Path) -> None:
        shutil.copytree(model_folder, tmp_path / "run" / "model")
        assert Segmenter.load(str(tmp_path / "run"), device="cpu").card.clusters == 5

    def test_named_clusters_survive(self, segmenter: Segmenter, tmp_path: Path) -> None:
        clusters = [
            Cluster(index, name, (index, 2, 3), 0.2)
            for index, name in enumerate(["Himmel", "sky\n", "木", "[/red]", ""])
        ]
        named = Segmenter(segmenter.network, segmenter.card, clusters, device="cpu")
        loaded = Segmenter.load(named.save(tmp_path / "m"), device="cpu")
        assert loaded.clusters == tuple(clusters)
        assert loaded.palette == [(index, 2, 3) for index in range(5)]

    def test_facts_of_the_training_survive(self, segmenter: Segmenter, tmp_path: Path) -> None:
        card = replace(segmenter.card, training={"images": 100, "epochs": 2.5})
        made = Segmenter(segmenter.network, card, device="cpu").save(tmp_path / "m")
        assert Segmenter.load(made, device="cpu").card.training == {"images": 100, "epochs": 2.5}

    def test_loading_draws_nothing(self, model_folder: Path) -> None:
        before = torch.random.get_rng_state()
        Segmenter.load(model_folder, device="cpu")
        assert torch.equal(torch.random.get_rng_state(), before)


OTHERS = {
    "no over-clusters": replace(SMALL, over_clusters=0),
    "an image head": replace(SMALL, image_head=True),
    "features of res5": replace(SMALL, features="res5"),
    "a pre-trained network": replace(SMALL, features="res5", over_clusters=0, image_head=True),
}


@pytest.mark.usefixtures("slim_module")
class TestOtherNetworks:
    """Networks as pre-training makes them, and as methods without over-clusters do."""

    @pytest.fixture(params=list(OTHERS.values()), ids=list(OTHERS))
    def other(self, request: pytest.FixtureRequest) -> Segmenter:
        architecture: Architecture = request.param
        network = build_network(architecture, seed=2)
        return Segmenter(network, ModelCard(architecture, 32, clusters=5), device="cpu")

    def test_save_and_load(self, other: Segmenter, tmp_path: Path) -> None:
        folder = other.save(tmp_path / "m")
        loaded = Segmenter.load(folder, device="cpu")
        assert loaded.card == other.card
        assert list(loaded.network.state_dict()) == list(other.network.state_dict())
        for size in ((33, 47), (64, 64), (1, 50)):
            mask = loaded.predict(photograph(*size))
            assert mask.shape == size
            np.testing.assert_array_equal(mask, other.predict(photograph(*size)))
        again = loaded.save(tmp_path / "again")
        for path in again.iterdir():
            assert path.read_bytes() == (folder / path.name).read_bytes()

    def test_kmeans_readout_has_the_width_of_the_features(
        self, other: Segmenter, tmp_path: Path
    ) -> None:
        width = other.network.encoder.width
        draw = torch.Generator().manual_seed(0)
        centres = F.normalize(torch.randn(3, width, generator=draw), dim=1)
        read = other.with_centroids(Centroids(centres, torch.ones(3, dtype=torch.int64)))
        loaded = Segmenter.load(read.save(tmp_path / "m"), device="cpu")
        np.testing.assert_array_equal(
            loaded.predict(photograph(33, 47)), read.predict(photograph(33, 47))
        )

    def test_centroids_of_another_width_are_refused(self, tmp_path: Path) -> None:
        """Features of res5 are 16 wide here, whatever `channels` says."""
        architecture = OTHERS["features of res5"]
        network = build_network(architecture, seed=2)
        card = ModelCard(architecture, 32, readout="kmeans", clusters=3)
        wrong = Segmenter(network, card, centroids=torch.zeros(3, 8), device="cpu")
        with pytest.raises(ModelError, match=r"centroids is .*instead of"):
            Segmenter.load(wrong.save(tmp_path / "m"), device="cpu")

    def test_features_have_the_stride_of_their_stage(self, other: Segmenter) -> None:
        features = other.features(other.prepare(as_pixels(photograph(64, 96))))
        stride = 32 if other.card.architecture.features == "res5" else 4
        assert features.shape == (
            1,
            other.network.encoder.width,
            32 // stride,
            -(-48 // stride),
        )


def test_a_card_from_before_these_options_is_read(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    config(features=None, image_head=None)(folder)
    loaded = Segmenter.load(folder, device="cpu")
    assert (loaded.card.architecture.features, loaded.card.architecture.image_head) == (
        "fpn",
        False,
    )
    np.testing.assert_array_equal(
        loaded.predict(photograph(20, 30)),
        Segmenter.load(model_folder, device="cpu").predict(photograph(20, 30)),
    )


class TestKmeansReadout:
    def test_scores_are_nearness(self, segmenter: Segmenter) -> None:
        """argmax of the scores is the nearest centre of the L2-normalised features."""
        centroids = centroids_of(7)
        read = segmenter.with_centroids(centroids)
        images = read.prepare(as_pixels(photograph(40, 56)))
        points = F.normalize(segmenter.features(images)[0].flatten(1).T, dim=1).double()
        nearest = torch.cdist(points, centroids.centres.double()).argmin(1)
        assert torch.equal(read.logits(images)[0].argmax(0).flatten(), nearest)

    def test_card_and_clusters(self, segmenter: Segmenter) -> None:
        read = segmenter.with_centroids(centroids_of(3))
        assert (read.card.readout, read.card.clusters) == ("kmeans", 3)
        assert [cluster.share for cluster in read.clusters] == pytest.approx([1 / 6, 2 / 6, 3 / 6])
        assert segmenter.card.readout == "head"
        assert segmenter.centroids is None

    @pytest.mark.parametrize("count", [1, 3, 300])
    def test_save_and_load(self, segmenter: Segmenter, tmp_path: Path, count: int) -> None:
        read = segmenter.with_centroids(centroids_of(count))
        loaded = Segmenter.load(read.save(tmp_path / "m"), device="cpu", precision="fp32")
        mask = loaded.predict(photograph(33, 47))
        np.testing.assert_array_equal(mask, read.predict(photograph(33, 47)))
        assert mask.dtype == (np.int32 if count > 255 else np.uint8)
        assert len(loaded.clusters) == count

    def test_the_network_stays_on_its_device(
        self, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Beside a GPU, `auto` would take a network that was asked to run on the processor with it."""
        asked: list[str] = []

        def pick(name: str) -> torch.device:
            asked.append(name)
            return torch.device("cpu")

        monkeypatch.setattr(segmenter_module, "pick_device", pick)
        read = segmenter.with_centroids(centroids_of(2))
        assert asked == ["cpu"]
        assert (read.device, read.precision) == (segmenter.device, segmenter.precision)


# ---- models that are refused -----------------------------------------------------------------

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


def test_the_cards_defaults_are_the_papers() -> None:
    card = ModelCard(Architecture(), 320)
    assert (card.readout, card.clusters, card.architecture.clusters) == ("head", 27, 27)
