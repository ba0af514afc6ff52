"""How images meet labels under each protocol, against torchvision, and the masks made for them."""

from __future__ import annotations

from itertools import product
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

from densesiam_seg.datasets.declaration import Dataset, load_dataset
from densesiam_seg.datasets.reader import Sample
from densesiam_seg.datasets.scenes import scene
from densesiam_seg.errors import UsageError
from densesiam_seg.evaluation.protocol import (
    PROTOCOLS,
    Mask,
    Size,
    dense_features,
    masks_made_by,
    pick_protocol,
    prepare_sample,
    read_masks,
    refined_masks,
)
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.refinement import refined
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.upsampling import upsample_argmax

SIZES = [(33, 47), (47, 33), (64, 64), (40, 41), (101, 37), (20, 31), (32, 200)]
COCO = [(427, 640), (640, 427), (375, 500), (333, 500)]


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


@pytest.fixture
def images() -> Tensor:
    pictures = [torch.from_numpy(scene(5, index, 40)[0]) for index in range(3)]
    return torch.stack(pictures).permute(0, 3, 1, 2).contiguous()


class TestGeometry:
    @pytest.mark.parametrize("name", ["picie", "stego"])
    @pytest.mark.parametrize(
        ("size", "side"), [*product(SIZES, (32, 37, 64)), *product(COCO, (320,))]
    )
    def test_squares_are_torchvisions(
        self, tmp_path: Path, size: Size, side: int, name: str
    ) -> None:
        sample, dataset = sample_of(tmp_path, *size)
        image, label = prepare_sample(sample, dataset, PROTOCOLS[name], side)
        mode = InterpolationMode(PROTOCOLS[name].resize)
        expected_image, expected_label = reference(sample, side, mode)
        assert (image.shape, image.dtype) == ((3, side, side), torch.uint8)
        difference = image.permute(1, 2, 0).numpy().astype(int) - expected_image
        # Pillow and torch round differently.
        assert np.abs(difference).max() <= (1 if name == "picie" else 0)
        np.testing.assert_array_equal(label, expected_label)

    @pytest.mark.parametrize(
        ("size", "expected"), [((33, 47), (32, 45)), ((101, 37), (87, 32)), ((20, 31), (32, 49))]
    )
    def test_full_image_keeps_the_label_and_the_whole_image(
        self, tmp_path: Path, size: Size, expected: Size
    ) -> None:
        sample, dataset = sample_of(tmp_path, *size)
        image, label = prepare_sample(sample, dataset, PROTOCOLS["full-image"], 32)
        assert image.shape == (3, *expected)
        with Image.open(sample.image) as picture, Image.open(sample.label) as truth:
            small = picture.resize(expected[::-1], Image.Resampling.BILINEAR)
            difference = image.permute(1, 2, 0).numpy().astype(int) - np.asarray(small)
            np.testing.assert_array_equal(label, np.asarray(truth))
        assert np.abs(difference).max() <= 1

    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_a_sample_of_the_protocols_size_stays_as_it_is(self, tmp_path: Path, name: str) -> None:
        sample, dataset = sample_of(tmp_path, 32, 32)
        image, label = prepare_sample(sample, dataset, PROTOCOLS[name], 32)
        with Image.open(sample.image) as picture, Image.open(sample.label) as truth:
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture))
            np.testing.assert_array_equal(label, np.asarray(truth))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("picie", ["bilinear", "centre crop 320", "logits upsampled", "no flip"]),
        ("stego", ["nearest", "centre crop 320", "features upsampled", "mean of the flipped"]),
        ("full-image", ["bilinear", "no crop", "logits upsampled", "no flip"]),
    ],
)
def test_each_names_its_sizes_and_filters(name: str, words: list[str]) -> None:
    line = pick_protocol(name).describe(320)
    assert all(each in line for each in [f"{name}: shorter side 320", *words])


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="picie, stego, full-image"):
        pick_protocol("voc")


def mask_of(segmenter: Segmenter, image: Tensor, name: str, size: Size) -> Mask:
    """The segmenter's own mask of one image."""
    return masks_made_by(segmenter)(image[None], PROTOCOLS[name], [size])[0][0]


class TestOwnMasks:
    def features(self, segmenter: Segmenter, image: Tensor) -> Tensor:
        """(1, C, h, w) straight from the network."""
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        normalised = (image.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        with torch.no_grad():
            features: Tensor = segmenter.network.encoder(normalised[None])
        return features

    def project(self, segmenter: Segmenter, features: Tensor) -> Tensor:
        with torch.no_grad():
            scores: Tensor = segmenter.network.projector(features)
        return scores

    @pytest.mark.parametrize("name", ["picie", "full-image"])
    def test_logits_are_upsampled(self, segmenter: Segmenter, images: Tensor, name: str) -> None:
        scores = self.project(segmenter, self.features(segmenter, images[0]))
        expected = F.interpolate(scores, (55, 61), mode="bilinear")[0].argmax(0).numpy()
        assert (mask_of(segmenter, images[0], name, (55, 61)) == expected).mean() > 0.999

    def test_stego_upsamples_the_mean_features_of_both_ways_round(
        self, segmenter: Segmenter, images: Tensor
    ) -> None:
        image, size = images[0], (40, 40)
        flipped = self.features(segmenter, image.flip(-1)).flip(-1)
        mean = (self.features(segmenter, image) + flipped) / 2
        upsampled = F.interpolate(mean, size, mode="bilinear")
        expected = self.project(segmenter, upsampled)[0].argmax(0).numpy()
        assert (mask_of(segmenter, image, "stego", size) == expected).mean() > 0.999
        assert (mask_of(segmenter, image, "picie", size) == expected).mean() < 0.999


class TestReadMasks:
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
        np.testing.assert_array_equal(two, mask_of(segmenter, images[0], name, (40, 40)))
        assert calls[0].shape[-1] == (40 if name == "stego" else 10)

    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_of_several_images_at_once(
        self, segmenter: Segmenter, images: Tensor, name: str
    ) -> None:
        """Each has its own size and is as if it were alone, but for rounding; the third fills the batch."""
        sizes = [(40, 40), (33, 50)]
        masks = read_masks(segmenter, [segmenter.read_out])(images, PROTOCOLS[name], sizes)
        assert len(masks) == 2
        for (mask,), image, size in zip(masks, images, sizes, strict=False):
            assert mask.shape == size
            assert (mask == mask_of(segmenter, image, name, size)).mean() > 0.999


@pytest.mark.parametrize(
    "how",
    [
        Refinement(flip=True),
        Refinement(scales=(0.75, 1.0)),
        Refinement(refine="guided"),
        Refinement(True, (1.0, 1.25), "pamr"),
    ],
)
class TestRefinedMasks:
    def test_of_logits_they_are_the_masks_of_the_averaged_scores(
        self, segmenter: Segmenter, images: Tensor, how: Refinement
    ) -> None:
        sizes = [(40, 40), (33, 50)]
        masks = refined_masks(segmenter, how)(images, PROTOCOLS["picie"], sizes)
        scores = segmenter.scores(images, how)
        for (mask,), each, size in zip(masks, scores, sizes, strict=False):
            np.testing.assert_array_equal(mask, upsample_argmax(each, *size).numpy())
        assert len(masks) == 2

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
