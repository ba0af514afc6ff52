"""The public object: any image gives a mask of its own size, and what is saved is loaded again."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from photographs import centroids_of, junk, photograph
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering.kmeans import Centroids
from densesiam_seg.clustering.merging import Contacts, Merges, cut, merge_tree
from densesiam_seg.errors import ImageError, InputError, ModelError, NumericError, UsageError
from densesiam_seg.images.decode import load_reduced
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference import segmenter as segmenter_module
from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.refinement import sharpened
from densesiam_seg.inference.segmenter import ImageLike, Segmenter, working_size
from densesiam_seg.naming.clusters import Cluster
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import DenseSiam, build_network

SMALL = Architecture(channels=8, clusters=5, over_clusters=6)
SIZES = [(1, 1), (1, 500), (500, 1), (33, 47), (64, 64), (7, 3), (31, 101)]


def prepared(segmenter: Segmenter, image: ImageLike) -> Tensor:
    """What `features` and `logits` take of one image."""
    return segmenter.normalised(segmenter.read(image)[0])


def untrained(architecture: Architecture, side: int = 32) -> Segmenter:
    card = ModelCard(architecture, side, clusters=architecture.clusters)
    network = build_network(architecture, seed=2)
    return Segmenter(network, card, device="cpu", precision="fp32")


def saved_and_loaded(segmenter: Segmenter, folder: Path) -> Segmenter:
    """What a second save writes has the bytes of the first."""
    first = segmenter.save(folder / "first")
    loaded = Segmenter.load(first, device="cpu", precision="fp32")
    assert loaded.card == segmenter.card
    assert loaded.clusters == segmenter.clusters
    second = loaded.save(folder / "second")
    names = {"config.json", "clusters.json", "model.safetensors"}
    assert {path.name for path in second.iterdir()} == names
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    return loaded


def same_masks(one: Segmenter, other: Segmenter, *sizes: tuple[int, int]) -> None:
    for size in sizes:
        mask = one.predict(photograph(*size))
        assert mask.shape == size
        np.testing.assert_array_equal(mask, other.predict(photograph(*size)))


def slow_scores(segmenter: Segmenter, pixels: NDArray[np.uint8]) -> Tensor:
    """Scores (K, H, W) step by step: resize, normalise, encode, project, upsample."""
    height, width = pixels.shape[:2]
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    size = working_size(height, width, 32)
    small = F.interpolate(planes[None], size, mode="bilinear", antialias=True).double() / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double()
    images = (small - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        scores: Tensor = segmenter.network(images.float())
    return F.interpolate(scores, (height, width), mode="bilinear")[0]


class TestPredict:
    @pytest.mark.parametrize("size", SIZES)
    def test_it_is_the_argmax_of_slow_scores(
        self, segmenter: Segmenter, size: tuple[int, int]
    ) -> None:
        pixels = photograph(*size)
        found = segmenter.predict(pixels)
        assert found.shape == size and found.dtype == np.uint8
        scores = slow_scores(segmenter, pixels)
        chosen = scores.gather(0, torch.from_numpy(found.astype(np.int64))[None])[0]
        assert (scores.amax(0) - chosen).max() < 1e-4

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
        assert torch.equal(segmenter.read(picture)[0], segmenter.read(file)[0])

    @pytest.mark.parametrize("orientation", [3, 6])
    def test_a_rotated_file_gives_a_mask_of_what_is_displayed(
        self, segmenter: Segmenter, tmp_path: Path, orientation: int
    ) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = tmp_path / "image.png"
        Image.fromarray(photograph(20, 44)).save(file, exif=exif)
        with Image.open(file) as picture:
            displayed = np.asarray(ImageOps.exif_transpose(picture))
        np.testing.assert_array_equal(segmenter.predict(file), segmenter.predict(displayed))

    def test_a_batch_has_the_scores_of_its_images(self, segmenter: Segmenter) -> None:
        images = [prepared(segmenter, photograph(40, 56, seed)) for seed in range(3)]
        together = segmenter.logits(torch.cat(images))
        for image, scores in zip(images, together, strict=True):
            torch.testing.assert_close(segmenter.logits(image)[0], scores, atol=1e-5, rtol=0)

    def test_nothing_is_drawn(self, segmenter: Segmenter, model_folder: Path) -> None:
        before = torch.random.get_rng_state()
        segmenter.predict(photograph(20, 20))
        Segmenter.load(model_folder, device="cpu")
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_files_that_are_refused(self, segmenter: Segmenter, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"bad\.jpg"):
            segmenter.predict(junk(tmp_path / "bad.jpg"))
        file = tmp_path / "large.png"
        Image.new("RGB", (40, 30)).save(file)
        with pytest.raises(ImageError, match="--max-pixels"):
            segmenter.predict(file, decoding=Decoding(1199))
        assert segmenter.predict(file, decoding=Decoding(1200)).shape == (30, 40)

    @pytest.mark.parametrize(
        "image",
        [
            *(np.zeros(shape, np.uint8) for shape in ((5, 5), (5, 5, 4), (0, 5, 3))),
            *(np.zeros((5, 5, 3), dtype) for dtype in (np.float32, np.uint16)),
            *(torch.zeros(shape, dtype=torch.uint8) for shape in ((5, 5, 3), (1, 3, 5, 5))),
            torch.zeros(3, 5, 5),
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
        Image.fromarray(pixels).save(tmp_path / "large.jpg", quality=95)
        Image.fromarray(pixels).save(tmp_path / "large.png")
        found, size = segmenter.read(tmp_path / "large.jpg")
        whole, whole_size = segmenter.read(tmp_path / "large.png")
        assert seen == [(3, 64, 68), (3, 256, 272)]
        assert size == whole_size == (256, 272)
        assert found.shape == whole.shape == (1, 3, 32, 34)
        assert (found.int() - whole.int()).abs().double().mean() < 3

    @pytest.mark.parametrize(("height", "width"), [(251, 397), (129, 1000), (300, 5000)])
    def test_the_input_has_the_size_that_the_whole_image_gives(
        self, segmenter: Segmenter, tmp_path: Path, height: int, width: int
    ) -> None:
        """Whatever the rounding of a reduced decode."""
        Image.new("RGB", (width, height)).save(tmp_path / "a.jpg")
        found, size = segmenter.read(tmp_path / "a.jpg")
        assert size == (height, width)
        assert found.shape[-2:] == working_size(height, width, 32)

    @pytest.mark.parametrize(
        ("height", "width", "side", "expected"),
        [
            (100, 200, 32, (32, 64)),
            (320, 320, 320, (320, 320)),
            (375, 500, 320, (320, 426)),
            (1, 1, 32, (32, 32)),
            (1, 8, 32, (32, 256)),
            (1, 16, 32, (16, 256)),
            (20000, 10, 100, (800, 1)),
        ],
    )
    def test_the_shorter_side_is_the_working_size_within_bounds(
        self, height: int, width: int, side: int, expected: tuple[int, int]
    ) -> None:
        assert working_size(height, width, side) == expected

    def test_the_working_size_is_met_for_every_size(self) -> None:
        """Rounding must not make 31 of 32: the quotient times the divisor may fall short of the number."""
        for length in range(1, 3000):
            assert min(working_size(length, length + 7, 32)) == 32
            assert max(working_size(length, 100 * length, 32)) == 256


class TestSaveAndLoad:
    def test_masks_are_equal(self, segmenter: Segmenter, tmp_path: Path) -> None:
        same_masks(saved_and_loaded(segmenter, tmp_path), segmenter, *SIZES)

    def test_merged_clusters_are_shown_as_one(self, segmenter: Segmenter, tmp_path: Path) -> None:
        """Masks are unions of the regions, and ids stay."""
        merged = copy.copy(segmenter)
        into = {0: 2, 3: 2}
        merged.clusters = tuple(
            replace(each, merged_into=into.get(each.id), share=0.2) for each in segmenter.clusters
        )
        loaded = saved_and_loaded(merged, tmp_path)
        image = np.asarray(Image.effect_noise((90, 70), 80).convert("RGB"))
        mask = segmenter.predict(image)
        assert len(np.unique(mask)) > 2
        wanted = np.where(np.isin(mask, list(into)), 2, mask)
        assert np.array_equal(loaded.predict(image), wanted) and wanted.dtype == np.uint8
        assert [(each.id, round(each.share or 0, 6)) for each in loaded.left] == [
            (1, 0.2),
            (2, 0.6),
            (4, 0.2),
        ]

    def test_names_and_facts_survive(self, segmenter: Segmenter, tmp_path: Path) -> None:
        clusters = [
            Cluster(index, name, (index, 2, 3), 0.2)
            for index, name in enumerate(["Himmel", "sky\n", "木", "[/red]", ""])
        ]
        card = replace(segmenter.card, training={"images": 100, "epochs": 2.5})
        named = Segmenter(segmenter.network, card, clusters, device="cpu")
        loaded = saved_and_loaded(named, tmp_path)
        assert loaded.palette == [(index, 2, 3) for index in range(5)]

    @pytest.mark.parametrize(
        "changes",
        [
            {"over_clusters": 0},
            {"image_head": True},
            {"features": "res5"},
            {"features": "res5", "over_clusters": 0, "image_head": True},
            {"mixture": True},
        ],
    )
    def test_other_networks(self, slim: None, tmp_path: Path, changes: dict[str, Any]) -> None:
        """Read-outs by centroids have the width of the features."""
        other = untrained(replace(SMALL, **changes))
        same_masks(saved_and_loaded(other, tmp_path), other, (33, 47), (64, 64), (1, 50))
        draw = torch.Generator().manual_seed(0)
        centres = F.normalize(torch.randn(3, other.network.encoder.width, generator=draw), dim=1)
        read = other.with_centroids(Centroids(centres, torch.ones(3, dtype=torch.int64)))
        same_masks(saved_and_loaded(read, tmp_path / "read"), read, (33, 47))

    def test_centroids_of_another_width_are_refused(self, slim: None, tmp_path: Path) -> None:
        """Features of res5 are 16 wide here, whatever `channels` says."""
        other = untrained(replace(SMALL, features="res5"))
        wrong = other.with_centroids(centroids_of(3))
        with pytest.raises(ModelError, match=r"centroids is .*instead of"):
            Segmenter.load(wrong.save(tmp_path / "m"), device="cpu")

    @pytest.mark.parametrize(
        "name",
        [
            "swin_v2_t",
            "timm:test_vit",
            "timm:vit_small_patch16_dinov3",
            "timm:swin_tiny_patch4_window7_224",
        ],
    )
    def test_other_backbones(self, name: str, tmp_path: Path) -> None:
        """Each has tables of positions, some of which no file holds."""
        if name.startswith("timm:"):
            pytest.importorskip("timm")
        one = untrained(Architecture(name, channels=8, clusters=3, over_clusters=0), 64)
        loaded = Segmenter.load(one.save(tmp_path / "m"), device="cpu", precision="fp32")
        images = prepared(one, photograph(64, 90))
        assert torch.equal(loaded.features(images), one.features(images))
        assert not any(value.is_meta for value in loaded.network.buffers())


class TestKmeansReadout:
    def test_scores_are_nearness(self, segmenter: Segmenter) -> None:
        """argmax of the scores is the nearest centre of the L2-normalised features."""
        centroids = centroids_of(7)
        read = segmenter.with_centroids(centroids)
        images = prepared(read, photograph(40, 56))
        points = F.normalize(segmenter.features(images)[0].flatten(1).T, dim=1).double()
        nearest = torch.cdist(points, centroids.centres.double()).argmin(1)
        assert torch.equal(read.logits(images)[0].argmax(0).flatten(), nearest)

    def test_card_and_clusters(self, segmenter: Segmenter) -> None:
        read = segmenter.with_centroids(centroids_of(3))
        assert (read.card.readout, read.card.clusters) == ("kmeans", 3)
        assert [cluster.share for cluster in read.clusters] == pytest.approx([1 / 6, 2 / 6, 3 / 6])
        assert segmenter.card.readout == "head"
        assert segmenter.centroids is None

    @pytest.mark.parametrize("count", [1, 300])
    def test_save_and_load(self, segmenter: Segmenter, tmp_path: Path, count: int) -> None:
        read = segmenter.with_centroids(centroids_of(count))
        same_masks(saved_and_loaded(read, tmp_path), read, (33, 47))
        assert read.predict(photograph(33, 47)).dtype == (np.int32 if count > 255 else np.uint8)


def merges_of(count: int) -> tuple[Tensor, Merges]:
    fine, none = centroids_of(count), np.zeros((count, count))
    tree = merge_tree(fine.centres.numpy(), fine.counts.numpy(), Contacts(none, none))
    return fine.centres, Merges(tree, fine.counts.numpy())


class TestMergeReadout:
    def test_the_cluster_is_that_of_the_nearest_over_cluster(self, segmenter: Segmenter) -> None:
        centres, merges = merges_of(30)
        read = segmenter.with_merges(centres, merges, 4)
        fine = segmenter.with_centroids(centroids_of(30))
        images = prepared(read, photograph(40, 56))
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
        """Another number needs no images."""
        read = segmenter.with_merges(*merges_of(over), count)
        loaded = saved_and_loaded(read, tmp_path)
        same_masks(loaded, read, (33, 47))
        other = segmenter.with_merges(*merges_of(over), 2)
        assert loaded.with_clusters(2).clusters == other.clusters
        same_masks(loaded.with_clusters(2), other, (33, 47))

    def test_numbers_that_are_refused(self, segmenter: Segmenter) -> None:
        for count in (0, 31):
            with pytest.raises(UsageError, match=f"--clusters {count}: must be 1 to the 30"):
                segmenter.with_merges(*merges_of(30), 4).with_clusters(count)
        for other in (segmenter, segmenter.with_centroids(centroids_of(3))):
            with pytest.raises(UsageError, match="only a merge has any number"):
                other.with_clusters(2)

    def test_members_may_be_moved_by_hand(self, segmenter: Segmenter, tmp_path: Path) -> None:
        read = segmenter.with_merges(*merges_of(6), 2)
        clusters = [
            replace(cluster, members=members)
            for cluster, members in zip(read.clusters, ((0, 3, 5), (1, 2, 4)), strict=True)
        ]
        edited = Segmenter(
            read.network, read.card, clusters, read.centroids, read.merges, device="cpu"
        )
        saved_and_loaded(edited, tmp_path)


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
        "how", [Refinement(True, (0.75, 1.0), "guided"), Refinement(refine="pamr")]
    )
    def test_masks_of_every_size(self, segmenter: Segmenter, how: Refinement) -> None:
        for size in ((1, 1), (1, 300), (33, 47)):
            assert segmenter.predict(photograph(*size), refinement=how).shape == size

    def test_edges_are_sharpened_at_the_networks_size(self, segmenter: Segmenter) -> None:
        images, _ = segmenter.read(photograph(40, 56))
        both = torch.cat((images, images.flip(-1)))
        found = segmenter.scores(both, Refinement(refine="guided"), 1)
        expected = sharpened(images, segmenter.soft(segmenter.scores(both))[:1], "guided")
        assert found.shape == (1, 5, 32, 44)
        torch.testing.assert_close(found, expected)


def test_scores_that_are_not_finite_make_no_mask() -> None:
    """Finite weights may overflow all the same."""
    segmenter = untrained(Architecture(channels=8, clusters=3, over_clusters=4))
    with torch.no_grad():
        for name, buffer in segmenter.network.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(-1)
    for how in (Refinement(refine="none"), Refinement(refine="guided")):
        with pytest.raises(NumericError, match="not finite"):
            segmenter.predict(photograph(40, 40), refinement=how)


class TestWeightsThatChange:
    """A pass reads the weights that the network has then, however they came there."""

    @staticmethod
    def change(network: DenseSiam, how: str) -> None:
        other = build_network(SMALL, seed=3)
        if how == "step":
            pairs = zip(network.parameters(), other.parameters(), strict=True)
            with torch.no_grad():
                for own, new in pairs:
                    own.copy_(new)
        else:
            network.load_state_dict(other.state_dict(), assign=how == "assigned")

    @pytest.mark.parametrize("how", ["step", "loaded", "assigned"])
    def test_after_a_pass(self, how: str) -> None:
        card = ModelCard(SMALL, 32, clusters=5)
        first, second = (
            Segmenter(build_network(SMALL, seed=2), card, device="cpu", precision="bf16")
            for _ in range(2)
        )
        images = torch.arange(3 * 40 * 40).view(1, 3, 40, 40).to(torch.uint8)
        before = first.scores(images)
        for segmenter in (first, second):
            self.change(segmenter.network, how)
        assert not torch.equal(first.scores(images), before)
        assert torch.equal(first.scores(images), second.scores(images))

    def test_a_model_that_is_loaded_in_inference_mode(self, tmp_path: Path) -> None:
        untrained(SMALL).save(tmp_path)
        with torch.inference_mode():
            segmenter = Segmenter.load(tmp_path, device="cpu", precision="bf16")
            assert segmenter.predict(np.zeros((20, 30, 3), np.uint8)).shape == (20, 30)


def test_a_narrow_image_has_the_same_features_every_time(segmenter: Segmenter) -> None:
    """In half precision some processors read what lies behind its maps in memory."""
    half = Segmenter(segmenter.network, segmenter.card, device="cpu", precision="auto")
    images = torch.full((1, 3, 256, 1), 99, dtype=torch.uint8)
    batch = half.normalised(images)
    expected = segmenter.features(batch).float()
    for number in range(4):
        left_behind = torch.full((100_000,), 1e4 * (number + 1))
        del left_behind
        torch.testing.assert_close(half.features(batch).float(), expected, atol=1e-3, rtol=1e-3)
