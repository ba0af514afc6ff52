"""The public object: any image gives a mask of its own size, and only sound model directories are loaded."""

from __future__ import annotations

import shutil
import sys
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

from densesiam_seg.clustering.kmeans import Centroids
from densesiam_seg.clustering.merging import Contacts, Merges, cut, merge_tree
from densesiam_seg.datasets.scenes import scene
from densesiam_seg.errors import ImageError, InputError, ModelError, UsageError
from densesiam_seg.images.decode import load_reduced
from densesiam_seg.inference import segmenter as segmenter_module
from densesiam_seg.inference.model_card import Cluster, ModelCard
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.refinement import sharpened
from densesiam_seg.inference.segmenter import ImageLike, Segmenter, as_pixels, working_size
from densesiam_seg.network.model import Architecture, build_network

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


class TestRead:
    def test_a_jpeg_is_decoded_no_larger_than_needed(
        self, segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Twice the working size of 32: 256x272 at 1/4 is 64x68; the input is that of the whole image's size."""
        seen: list[torch.Size] = []

        def spy(*arguments: Any, **options: Any) -> tuple[Tensor, tuple[int, int]]:
            pixels, size = load_reduced(*arguments, **options)
            seen.append(pixels.shape)
            return pixels, size

        monkeypatch.setattr(segmenter_module, "load_reduced", spy)
        pixels = photograph(256, 272)
        file = tmp_path / "large.jpg"
        Image.fromarray(pixels).save(file, quality=95)
        found, size = segmenter.read(file)
        whole, whole_size = segmenter.read(pixels)
        assert seen == [(3, 64, 68)]
        assert size == whole_size == (256, 272)
        assert found.shape == whole.shape == (1, 3, 32, 34)
        assert (found.int() - whole.int()).abs().double().mean() < 3

    @pytest.mark.parametrize(
        ("height", "width"), [(251, 397), (255, 257), (129, 1000), (300, 5000)]
    )
    def test_the_input_has_the_size_that_the_whole_image_gives(
        self, segmenter: Segmenter, tmp_path: Path, height: int, width: int
    ) -> None:
        """Whatever the rounding of a reduced decode."""
        Image.new("RGB", (width, height)).save(tmp_path / "a.jpg")
        found, size = segmenter.read(tmp_path / "a.jpg")
        assert size == (height, width)
        assert found.shape[-2:] == working_size(height, width, 32)

    def test_other_files_are_read_whole(self, segmenter: Segmenter, tmp_path: Path) -> None:
        Image.fromarray(photograph(256, 272)).save(tmp_path / "a.png")
        found, _ = segmenter.read(tmp_path / "a.png")
        assert torch.equal(found, segmenter.read(photograph(256, 272))[0])

    def test_an_image_of_the_working_size_stays_as_it_is(self, segmenter: Segmenter) -> None:
        pixels = as_pixels(photograph(32, 45))
        found, size = segmenter.read(pixels)
        assert torch.equal(found[0], pixels)
        assert size == (32, 45)

    def test_normalised_is_torchvisions(self, segmenter: Segmenter) -> None:
        pixels = as_pixels(photograph(32, 45))
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
        found = segmenter.normalised(pixels[None])[0]
        torch.testing.assert_close(found, (pixels / 255 - mean) / std)
        assert torch.equal(found, segmenter.prepare(pixels)[0])


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


class TestOtherBackbones:
    """Saved and loaded, each with its tables of positions, some of which no file holds."""

    @pytest.mark.parametrize(
        "name",
        [
            "swin_v2_t",
            "timm:test_vit",
            "timm:test_convnext",
            "timm:vit_small_patch16_dinov3",
            "timm:swin_tiny_patch4_window7_224",
        ],
    )
    def test_save_and_load(self, name: str, tmp_path: Path) -> None:
        if name.startswith("timm:"):
            pytest.importorskip("timm")
        architecture = Architecture(name, channels=8, clusters=3, over_clusters=0)
        network = build_network(architecture, seed=2)
        one = Segmenter(
            network, ModelCard(architecture, 64, clusters=3), device="cpu", precision="fp32"
        )
        loaded = Segmenter.load(one.save(tmp_path / "m"), device="cpu", precision="fp32")
        images = one.prepare(as_pixels(photograph(64, 90)))
        assert torch.equal(loaded.features(images), one.features(images))
        assert not any(value.is_meta for value in loaded.network.buffers())
        np.testing.assert_array_equal(
            loaded.predict(photograph(40, 70)), one.predict(photograph(40, 70))
        )
        saved = {name: value.clone() for name, value in loaded.network.state_dict().items()}
        assert all(torch.equal(saved[name], value) for name, value in network.state_dict().items())

    def test_a_model_of_timm_without_timm(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("timm")
        architecture = Architecture("timm:test_vit", channels=8, clusters=3, over_clusters=0)
        card = ModelCard(architecture, 64, clusters=3)
        folder = Segmenter(build_network(architecture, 0), card, device="cpu").save(tmp_path / "m")
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(ModelError, match=r"m: --backbone timm:test_vit: timm is not installed"):
            Segmenter.load(folder, device="cpu")


def merges_of(count: int) -> tuple[Tensor, Merges]:
    fine = centroids_of(count)
    counts = fine.counts.numpy()
    touching = Contacts(np.zeros((count, count)), np.zeros((count, count)))
    return fine.centres, Merges(merge_tree(fine.centres.numpy(), counts, touching), counts)


class TestMergeReadout:
    def test_the_cluster_is_that_of_the_nearest_over_cluster(self, segmenter: Segmenter) -> None:
        centres, merges = merges_of(30)
        read = segmenter.with_merges(centres, merges, 4)
        fine = segmenter.with_centroids(Centroids(centres, torch.ones(30, dtype=torch.int64)))
        images = read.prepare(as_pixels(photograph(40, 56)))
        scores, nearest = read.logits(images)[0], fine.logits(images)[0]
        assert scores.shape == (4, *nearest.shape[1:])
        merged_into = np.empty(30, np.int64)
        for cluster, group in enumerate(cut(merges.tree, 4)):
            merged_into[list(group)] = cluster
            torch.testing.assert_close(scores[cluster], nearest[list(group)].amax(0))
        np.testing.assert_array_equal(scores.argmax(0), merged_into[nearest.argmax(0).numpy()])

    def test_card_and_clusters(self, segmenter: Segmenter) -> None:
        """30 over-clusters of 1, 2, … 30 points."""
        read = segmenter.with_merges(*merges_of(30), 4)
        assert (read.card.readout, read.card.clusters, read.readout) == ("merge", 4, "merge of 30")
        assert segmenter.readout == "head"
        members = [cluster.members or () for cluster in read.clusters]
        assert sorted(member for group in members for member in group) == list(range(30))
        shares = [sum(member + 1 for member in group) / (15 * 31) for group in members]
        assert [cluster.share for cluster in read.clusters] == pytest.approx(shares)

    @pytest.mark.parametrize(("over", "count"), [(2, 1), (30, 4), (30, 30), (300, 270)])
    def test_save_and_load(
        self, segmenter: Segmenter, tmp_path: Path, over: int, count: int
    ) -> None:
        read = segmenter.with_merges(*merges_of(over), count)
        loaded = Segmenter.load(read.save(tmp_path / "m"), device="cpu", precision="fp32")
        assert loaded.card == read.card
        assert loaded.clusters == read.clusters
        image = photograph(33, 47)
        np.testing.assert_array_equal(loaded.predict(image), read.predict(image))
        again = loaded.save(tmp_path / "again")
        for path in again.iterdir():
            assert path.read_bytes() == (tmp_path / "m" / path.name).read_bytes()

    def test_another_number_needs_no_images(self, segmenter: Segmenter, tmp_path: Path) -> None:
        folder = segmenter.with_merges(*merges_of(30), 4).save(tmp_path / "m")
        changed = Segmenter.load(folder, device="cpu", precision="fp32").with_clusters(9)
        expected = segmenter.with_merges(*merges_of(30), 9)
        assert changed.clusters == expected.clusters
        image = photograph(33, 47)
        np.testing.assert_array_equal(changed.predict(image), expected.predict(image))

    @pytest.mark.parametrize("count", [0, 31])
    def test_numbers_out_of_range(self, segmenter: Segmenter, count: int) -> None:
        read = segmenter.with_merges(*merges_of(30), 4)
        with pytest.raises(UsageError, match=f"--clusters {count}: must be 1 to the 30"):
            read.with_clusters(count)

    def test_other_readouts_have_one_number(self, segmenter: Segmenter) -> None:
        for other in (segmenter, segmenter.with_centroids(centroids_of(3))):
            with pytest.raises(UsageError, match="only a merge has any number"):
                other.with_clusters(2)

    def test_members_may_be_moved_by_hand(self, segmenter: Segmenter, tmp_path: Path) -> None:
        read = segmenter.with_merges(*merges_of(6), 2)
        one, two = ((list(cluster.members or ())) for cluster in read.clusters)
        moved = (two if len(two) > 1 else one).pop()
        (one if len(two) > 1 and moved not in one else two).append(moved)
        clusters = [
            replace(cluster, members=tuple(members))
            for cluster, members in zip(read.clusters, (one, two), strict=True)
        ]
        edited = Segmenter(
            read.network, read.card, clusters, read.centroids, read.merges, device="cpu"
        )
        loaded = Segmenter.load(edited.save(tmp_path / "m"), device="cpu")
        assert [cluster.members for cluster in loaded.clusters] == [tuple(one), tuple(two)]


class TestRefinement:
    def test_plain_scores_are_the_logits(self, segmenter: Segmenter) -> None:
        images, _ = segmenter.read(photograph(40, 56))
        assert torch.equal(segmenter.scores(images), segmenter.logits(segmenter.normalised(images)))

    def test_a_head_is_averaged_as_probabilities(self, segmenter: Segmenter) -> None:
        images, _ = segmenter.read(photograph(40, 56))

        def probabilities(shown: Tensor) -> Tensor:
            return segmenter.logits(segmenter.normalised(shown)).softmax(1)

        found = segmenter.scores(images, Refinement(flip=True))
        expected = (probabilities(images) + probabilities(images.flip(-1)).flip(-1)) / 2
        torch.testing.assert_close(found, expected)

    def test_distances_are_averaged_as_they_are(self, segmenter: Segmenter) -> None:
        read = segmenter.with_merges(*merges_of(9), 3)
        images, _ = read.read(photograph(40, 56))
        found = read.scores(images, Refinement(flip=True))
        plain, mirrored = (read.scores(each) for each in (images, images.flip(-1)))
        torch.testing.assert_close(found, (plain + mirrored.flip(-1)) / 2)

    @pytest.mark.parametrize(
        "how",
        [
            Refinement(flip=True),
            Refinement(scales=(0.5, 1.0, 1.5)),
            Refinement(True, (0.75, 1.0), "guided"),
            Refinement(refine="pamr"),
        ],
    )
    def test_masks_of_every_size(self, segmenter: Segmenter, how: Refinement) -> None:
        for size in ((1, 1), (1, 300), (33, 47), (64, 64)):
            mask = segmenter.predict(photograph(*size), refinement=how)
            assert mask.shape == size
            assert mask.max() < 5

    def test_a_mirrored_image_has_the_mirrored_mask(self, segmenter: Segmenter) -> None:
        """With flip; up to ties and rounding."""
        pixels = photograph(64, 64)
        how = Refinement(flip=True)
        mask = segmenter.predict(pixels, refinement=how)
        mirrored = segmenter.predict(pixels[:, ::-1].copy(), refinement=how)[:, ::-1]
        assert (mask == mirrored).mean() > 0.99

    def test_edges_are_sharpened_at_the_networks_size(self, segmenter: Segmenter) -> None:
        images, _ = segmenter.read(photograph(40, 56))
        both = torch.cat((images, images.flip(-1)))
        found = segmenter.scores(both, Refinement(refine="guided"), 1)
        expected = sharpened(images, segmenter.soft(segmenter.scores(both))[:1], "guided")
        assert found.shape == (1, 5, 32, 44)
        torch.testing.assert_close(found, expected)
