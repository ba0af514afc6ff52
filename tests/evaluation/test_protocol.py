"""How images meet labels under each protocol, against torchvision, and the masks made for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from densesiam_seg.clustering.kmeans import Centroids
from densesiam_seg.datasets.declaration import Dataset, load_dataset
from densesiam_seg.datasets.reader import Sample
from densesiam_seg.datasets.scenes import scene
from densesiam_seg.errors import UsageError
from densesiam_seg.evaluation.protocol import (
    PROTOCOLS,
    dense_features,
    pick_protocol,
    read_masks,
    refined_masks,
    segmenter_masks,
    shown,
    shown_image,
)
from densesiam_seg.images.decode import load_image
from densesiam_seg.inference.refinement import refined
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.test_time import Refinement
from densesiam_seg.inference.upsampling import upsample_argmax

SIZES = [(33, 47), (47, 33), (64, 64), (40, 41), (101, 37), (20, 31), (32, 200)]


def sample_of(folder: Path, height: int, width: int) -> tuple[Sample, Dataset]:
    """An image of noise with a label of classes 0 to 5 and a few ignored pixels."""
    draw = np.random.default_rng(height * width)
    image = draw.integers(0, 256, (height, width, 3), np.uint8)
    label = draw.integers(0, 6, (height, width), np.uint8)
    label[::7, ::5] = 255
    paths = folder / "image.png", folder / "label.png"
    Image.fromarray(image).save(paths[0], compress_level=0)
    Image.fromarray(label).save(paths[1], compress_level=0)
    rows = "".join(f'{{ name = "{k}", values = [{k}] }},' for k in range(6))
    split = '[splits.val]\nimages = ["i"]\nlabels = ["l"]\n'
    (folder / "d.toml").write_text(
        f'image_suffixes = [".png"]\nlabel_suffix = ".png"\nignore_values = [255]\nclasses = [{rows}]\n{split}'
    )
    return Sample("x", *paths), load_dataset(folder / "d.toml")


def reference(
    sample: Sample, side: int, resize: InterpolationMode
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Resize (shorter side) and CenterCrop of torchvision on Pillow images; labels by nearest."""
    with Image.open(sample.image) as picture, Image.open(sample.label) as label:
        image = transforms.center_crop(transforms.resize(picture, side, resize), side)
        nearest = transforms.resize(label, side, InterpolationMode.NEAREST)
        return np.asarray(image), np.asarray(transforms.center_crop(nearest, side))


class TestGeometry:
    @pytest.mark.parametrize("side", [32, 37, 64])
    @pytest.mark.parametrize("size", SIZES)
    def test_picie_is_torchvisions(self, tmp_path: Path, size: tuple[int, int], side: int) -> None:
        sample, dataset = sample_of(tmp_path, *size)
        image, label = shown(sample, dataset, PROTOCOLS["picie"], side)
        expected_image, expected_label = reference(sample, side, InterpolationMode.BILINEAR)
        assert image.shape == (3, side, side)
        assert image.dtype == torch.uint8
        difference = image.permute(1, 2, 0).numpy().astype(int) - expected_image
        assert np.abs(difference).max() <= 1  # Pillow and torch round differently
        np.testing.assert_array_equal(label, expected_label)

    @pytest.mark.parametrize("side", [32, 37, 64])
    @pytest.mark.parametrize("size", SIZES)
    def test_stego_is_torchvisions(self, tmp_path: Path, size: tuple[int, int], side: int) -> None:
        sample, dataset = sample_of(tmp_path, *size)
        image, label = shown(sample, dataset, PROTOCOLS["stego"], side)
        expected_image, expected_label = reference(sample, side, InterpolationMode.NEAREST)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected_image)
        np.testing.assert_array_equal(label, expected_label)

    @pytest.mark.parametrize("name", ["picie", "stego"])
    @pytest.mark.parametrize("size", [(427, 640), (640, 427), (375, 500), (333, 500)])
    def test_cocos_sizes_at_320(self, tmp_path: Path, size: tuple[int, int], name: str) -> None:
        sample, dataset = sample_of(tmp_path, *size)
        image, label = shown(sample, dataset, PROTOCOLS[name], 320)
        mode = InterpolationMode(PROTOCOLS[name].resize)
        expected_image, expected_label = reference(sample, 320, mode)
        difference = image.permute(1, 2, 0).numpy().astype(int) - expected_image
        assert np.abs(difference).max() <= (1 if name == "picie" else 0)
        np.testing.assert_array_equal(label, expected_label)

    @pytest.mark.parametrize(
        ("size", "expected"), [((33, 47), (32, 45)), ((101, 37), (87, 32)), ((20, 31), (32, 49))]
    )
    def test_full_image_keeps_the_label_and_the_whole_image(
        self, tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
    ) -> None:
        sample, dataset = sample_of(tmp_path, *size)
        image, label = shown(sample, dataset, PROTOCOLS["full-image"], 32)
        assert image.shape == (3, *expected)
        with Image.open(sample.image) as picture, Image.open(sample.label) as truth:
            small = picture.resize(expected[::-1], Image.Resampling.BILINEAR)
            difference = image.permute(1, 2, 0).numpy().astype(int) - np.asarray(small)
            np.testing.assert_array_equal(label, np.asarray(truth))
        assert np.abs(difference).max() <= 1

    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_a_sample_of_the_protocols_size_stays_as_it_is(self, tmp_path: Path, name: str) -> None:
        sample, dataset = sample_of(tmp_path, 32, 32)
        image, label = shown(sample, dataset, PROTOCOLS[name], 32)
        with Image.open(sample.image) as picture, Image.open(sample.label) as truth:
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture))
            np.testing.assert_array_equal(label, np.asarray(truth))

    @pytest.mark.parametrize("name", PROTOCOLS)
    @pytest.mark.parametrize("size", SIZES)
    def test_an_image_alone_is_shown_as_beside_its_label(
        self, tmp_path: Path, size: tuple[int, int], name: str
    ) -> None:
        sample, dataset = sample_of(tmp_path, *size)
        alone = shown_image(load_image(sample.image), PROTOCOLS[name], 32)
        assert torch.equal(alone, shown(sample, dataset, PROTOCOLS[name], 32)[0])


class TestProtocols:
    def test_each_is_the_row_of_its_table(self) -> None:
        """METHOD, section 5: resize, crop, upsampled, flip."""
        rows = {
            name: (each.resize, each.crop, each.upsample, each.flip)
            for name, each in PROTOCOLS.items()
        }
        assert rows == {
            "picie": ("bilinear", True, "logits", False),
            "stego": ("nearest", True, "features", True),
            "full-image": ("bilinear", False, "logits", False),
        }
        assert all(name == each.name for name, each in PROTOCOLS.items())

    @pytest.mark.parametrize(
        ("name", "line"),
        [
            (
                "picie",
                "picie: shorter side 320 (bilinear), centre crop 320, logits upsampled, no flip, no CRF",
            ),
            (
                "stego",
                "stego: shorter side 320 (nearest), centre crop 320, features upsampled, "
                "mean of the flipped image's features, no CRF",
            ),
            (
                "full-image",
                "full-image: shorter side 320 (bilinear), no crop, scored at the label's size, "
                "logits upsampled, no flip, no CRF",
            ),
        ],
    )
    def test_a_number_names_all_that_fixes_it(self, name: str, line: str) -> None:
        assert PROTOCOLS[name].describe(320) == line

    def test_unknown_names(self) -> None:
        with pytest.raises(UsageError, match="picie, stego, full-image"):
            pick_protocol("voc")


class TestSegmenterMasks:
    @pytest.fixture
    def image(self) -> Tensor:
        return torch.from_numpy(scene(5, 0, 40)[0]).permute(2, 0, 1).contiguous()

    def features(self, segmenter: Segmenter, image: Tensor) -> Tensor:
        """(1, C, h, w) straight from the network."""
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        normalised = (image.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        with torch.no_grad():
            found: Tensor = segmenter.network.encoder(normalised[None])
        return found

    def project(self, segmenter: Segmenter, features: Tensor) -> Tensor:
        with torch.no_grad():
            scores: Tensor = segmenter.network.projector(features)
        return scores

    @pytest.mark.parametrize("name", ["picie", "full-image"])
    def test_logits_are_upsampled(self, segmenter: Segmenter, image: Tensor, name: str) -> None:
        scores = self.project(segmenter, self.features(segmenter, image))
        expected = F.interpolate(scores, (55, 61), mode="bilinear")[0].argmax(0)
        found = segmenter_masks(segmenter)(image, PROTOCOLS[name], 55, 61)
        assert (torch.from_numpy(found) == expected).double().mean() > 0.999

    def test_stego_upsamples_the_mean_features_of_both_ways_round(
        self, segmenter: Segmenter, image: Tensor
    ) -> None:
        flipped = self.features(segmenter, image.flip(-1)).flip(-1)
        mean = (self.features(segmenter, image) + flipped) / 2
        upsampled = F.interpolate(mean, (40, 40), mode="bilinear")
        expected = self.project(segmenter, upsampled)[0].argmax(0)
        found = segmenter_masks(segmenter)(image, PROTOCOLS["stego"], 40, 40)
        assert (torch.from_numpy(found) == expected).double().mean() > 0.999
        plain = segmenter_masks(segmenter)(image, PROTOCOLS["picie"], 40, 40)
        assert (torch.from_numpy(plain) == expected).double().mean() < 0.999

    def test_stego_of_a_mirrored_image_is_mirrored(
        self, segmenter: Segmenter, image: Tensor
    ) -> None:
        mask_of = segmenter_masks(segmenter)
        one = mask_of(image, PROTOCOLS["stego"], 40, 40)
        two = mask_of(image.flip(-1), PROTOCOLS["stego"], 40, 40)
        assert (one == two[:, ::-1]).mean() > 0.999

    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_a_kmeans_readout(self, segmenter: Segmenter, image: Tensor, name: str) -> None:
        centres = F.normalize(torch.randn(7, 8, generator=torch.Generator().manual_seed(0)), dim=1)
        read = segmenter.with_centroids(Centroids(centres, torch.ones(7, dtype=torch.int64)))
        mask = segmenter_masks(read)(image, PROTOCOLS[name], 50, 50)
        assert mask.shape == (50, 50)
        assert 1 < len(np.unique(mask)) <= 7


class TestReadMasks:
    @pytest.fixture
    def images(self) -> Tensor:
        pictures = [torch.from_numpy(scene(5, index, 40)[0]) for index in range(3)]
        return torch.stack(pictures).permute(0, 3, 1, 2).contiguous()

    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_features_of_a_batch_are_those_of_its_images(
        self, segmenter: Segmenter, images: Tensor, name: str
    ) -> None:
        found = dense_features(segmenter, images, PROTOCOLS[name])
        assert found.shape == (3, 8, 10, 10)
        for features, image in zip(found, images, strict=True):
            alone = dense_features(segmenter, image[None], PROTOCOLS[name])[0]
            torch.testing.assert_close(features, alone)

    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_several_read_outs_of_the_same_features(
        self, segmenter: Segmenter, images: Tensor, name: str
    ) -> None:
        calls: list[Tensor] = []

        def channels(features: Tensor) -> Tensor:
            calls.append(features)
            return features[:, :3]

        masks_of = read_masks(segmenter, [channels, segmenter.read_out])
        ((one, two),) = masks_of(images[:1], PROTOCOLS[name], [(40, 40)])
        features = dense_features(segmenter, images[:1], PROTOCOLS[name])
        full = F.interpolate(features, (40, 40), mode="bilinear")[0, :3]
        assert (torch.from_numpy(one) == full.argmax(0)).double().mean() > 0.999
        alone = segmenter_masks(segmenter)(images[0], PROTOCOLS[name], 40, 40)
        np.testing.assert_array_equal(two, alone)
        assert calls[0].shape[-1] == (40 if name == "stego" else 10)

    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_of_several_images_at_once(
        self, segmenter: Segmenter, images: Tensor, name: str
    ) -> None:
        """A square has one size, whole images have their own; each is as if it were alone, but for rounding."""
        sizes = [(40, 40), (40, 40) if name == "stego" else (33, 50)]
        found = read_masks(segmenter, [segmenter.read_out])(images[:2], PROTOCOLS[name], sizes)
        for (mask,), image, size in zip(found, images, sizes, strict=False):
            alone = segmenter_masks(segmenter)(image, PROTOCOLS[name], *size)
            assert mask.shape == size
            assert (mask == alone).mean() > 0.999


class TestRefinedMasks:
    HOWS = (
        Refinement(flip=True),
        Refinement(scales=(0.75, 1.0)),
        Refinement(refine="guided"),
        Refinement(True, (1.0, 1.25), "pamr"),
    )

    @pytest.fixture
    def images(self) -> Tensor:
        pictures = [torch.from_numpy(scene(3, index, 40)[0]) for index in range(3)]
        return torch.stack(pictures).permute(0, 3, 1, 2)

    @pytest.mark.parametrize("how", HOWS)
    def test_of_logits_they_are_the_masks_of_the_averaged_scores(
        self, segmenter: Segmenter, images: Tensor, how: Refinement
    ) -> None:
        sizes = [(40, 40), (33, 50)]
        found = refined_masks(segmenter, how)(images, PROTOCOLS["picie"], sizes)
        scores = segmenter.scores(images, how)
        for (mask,), each, size in zip(found, scores, sizes, strict=False):
            np.testing.assert_array_equal(mask, upsample_argmax(each, *size).numpy())
        assert len(found) == 2

    @pytest.mark.parametrize("how", HOWS)
    def test_of_upsampled_features_each_pass_is_the_protocols(
        self, segmenter: Segmenter, images: Tensor, how: Refinement
    ) -> None:
        protocol = PROTOCOLS["stego"]

        def scores_of(shown: Tensor) -> Tensor:
            features = dense_features(segmenter, shown, protocol)
            full = F.interpolate(features, (40, 40), mode="bilinear")
            return segmenter.read_out(full).softmax(1)

        ((mask,),) = refined_masks(segmenter, how)(images[:1], protocol, [(40, 40)])
        expected = refined(images[:1], scores_of, how)[0].argmax(0)
        assert (torch.from_numpy(mask) == expected).double().mean() > 0.999
