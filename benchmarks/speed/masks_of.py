"""Rows about predict and evaluate: all their work over the forward passes of the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from material import jpegs, labels
from measure import Row, alternate, ratio_row
from torch import Tensor, nn

from densesiam_seg.datasets.declaration import load_dataset
from densesiam_seg.datasets.reader import samples
from densesiam_seg.evaluation.counting import BATCH
from densesiam_seg.evaluation.evaluate import evaluate
from densesiam_seg.evaluation.protocol import PROTOCOLS, prepare_sample
from densesiam_seg.images.scan import scan
from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.segmenter import Segmenter, working_size
from densesiam_seg.io.devices import available_cores
from densesiam_seg.io.parallel import on_own_cores
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import build_network
from densesiam_seg.prediction.batching import images_together
from densesiam_seg.prediction.plan import plan
from densesiam_seg.prediction.predict import predict_events

IMAGES = 101
RECIPE_IMAGES = 24
SIZE = (480, 360)
CLASSES = 11


def predict_rows(scratch: Path, photos: Path | None, repeats: int) -> Iterator[Row]:
    """From JPEGs on the disk to PNGs on the disk; all cores, wall time."""
    folder, segmenter = scratch / "val", untrained()
    paths = jpegs(folder, IMAGES, SIZE, photos)
    prepared = [segmenter.normalised(segmenter.read(path)[0]) for path in paths]
    together = images_together(segmenter.device, working_size(SIZE[1], SIZE[0], 160))

    def whole() -> None:
        work = plan(scan([folder]), scratch / "masks", overwrite=True)
        assert all(result.error is None for result in predict_events(segmenter, work))

    name = f"predict a folder of {SIZE[0]}x{SIZE[1]} JPEGs"
    yield from against_forward(name, whole, segmenter, prepared, together, 1.3, repeats)


def recipe_rows(scratch: Path, photos: Path | None, repeats: int) -> Iterator[Row]:
    """The same with the default recipe's network, which reads three sizes, and its edge filter."""
    folder, segmenter = scratch / "val", described()
    paths = jpegs(folder, IMAGES, SIZE, photos)[:RECIPE_IMAGES]
    prepared = [segmenter.normalised(segmenter.read(path)[0]) for path in paths]

    def whole() -> None:
        work = plan(scan(list(paths)), scratch / "recipe-masks", overwrite=True)
        assert all(result.error is None for result in predict_events(segmenter, work))

    name = f"predict {RECIPE_IMAGES} of them with the default recipe"
    yield from against_forward(name, whole, segmenter, prepared, 1, None, repeats)


def evaluate_rows(scratch: Path, photos: Path | None, repeats: int) -> Iterator[Row]:
    """From JPEGs and label PNGs on the disk to scores; all cores, wall time."""
    root, segmenter = scratch / "camvid", untrained()
    paths = jpegs(root / "images" / "val", IMAGES, SIZE, photos)
    labels(root / "labels" / "val", [path.stem for path in paths], SIZE, CLASSES)
    dataset = load_dataset("camvid")
    for name in ("picie", "full-image"):
        protocol = PROTOCOLS[name]
        pictures = [
            prepare_sample(s, dataset, protocol, 160)[0] for s in samples(dataset, root).items
        ]
        prepared = [segmenter.normalised(picture[None]) for picture in pictures]
        yield from against_forward(
            f"evaluate, {name}",
            lambda name=name: evaluate("camvid", root, segmenter, protocol=name),
            segmenter,
            prepared,
            BATCH,
            1.25,
            repeats,
        )


def untrained() -> Segmenter:
    """A ResNet-18-FPN of image size 160 with random weights."""
    torch.set_num_threads(available_cores())
    architecture = Architecture(clusters=27)
    return Segmenter(build_network(architecture, 0), ModelCard(architecture, 160), device="cpu")


def described() -> Segmenter:
    """The default recipe's architecture with random weights; clusters are as far from certain as trained ones' are."""
    torch.set_num_threads(available_cores())
    architecture = Architecture(
        clusters=27,
        backbone="timm:tf_efficientnet_lite0",
        over_clusters=0,
        features="stages",
        mixture=True,
    )
    network = build_network(architecture, 0)
    draw = torch.Generator().manual_seed(0)
    assert network.encoder.description is not None and network.mixture is not None
    axes = network.encoder.description.axes
    axes.copy_(torch.randn(axes.shape, generator=draw))
    centres = network.mixture.centres
    centres.copy_(torch.randn(centres.shape, generator=draw))
    projection = network.projector[0]
    assert isinstance(projection, nn.Conv2d)
    weight = projection.weight
    with torch.no_grad():
        weight.copy_(3 * torch.randn(weight.shape, generator=draw))
    return Segmenter(network, ModelCard(architecture, 160, refine="pamr"), device="cpu")


def against_forward(
    name: str,
    whole: Callable[[], object],
    segmenter: Segmenter,
    prepared: list[Tensor],
    together: int,
    limit: float | None,
    repeats: int,
) -> Iterator[Row]:
    """All the work over the network alone: called image by image, and in the very batches and threads of the work."""
    batches = [torch.cat(prepared[i : i + together]) for i in range(0, len(prepared), together)]

    def one_by_one() -> None:
        for image in prepared:
            segmenter.logits(image)

    def alike() -> None:
        for _ in on_own_cores(segmenter.logits, batches):
            pass

    ours, plain, same = alternate(whole, one_by_one, alike, repeats=repeats)
    note = f"{len(prepared)} images, {available_cores()} cores, {len(prepared) / min(ours):.0f} images/s"
    yield ratio_row(f"{name} / forward passes image by image", ours, plain, limit, note=note)
    batched = f"{together} together, an image or batch to a core"
    yield ratio_row(f"{name} / the same forward passes", ours, same, limit, note=batched)
