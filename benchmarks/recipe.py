"""What each part of the recipe for pre-trained weights brings, on images that it has not seen.

    python -P benchmarks/recipe.py --datasets coco camvid           # every row, three splits, both ways
    python -P benchmarks/recipe.py --rows recipe kmeans --splits 0  # some

The training images are split in halves, three times. Description and clusters are fitted to one half, the K-way layer
is trained on it, and the other half is scored: both ways, without PAMR. On the images that were clustered figures are
higher and say nothing about others. A row is the package's own recipe with one thing changed: another row is another
entry of `ROWS`. Training starts from clusters of learned features in every row, never from those of appearance. Labels
are used for the scores, and by the row that says so. Writes `recipe.md` and `recipe.json` to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent / "accuracy"))

from child import facts, revision
from making import described_network
from tasks import Task, load_task

from densesiam_seg.clustering.directions import Directions
from densesiam_seg.clustering.kmeans import kmeans
from densesiam_seg.clustering.quality import Sample
from densesiam_seg.config import TrainConfig
from densesiam_seg.errors import DenseSiamError
from densesiam_seg.evaluation.metrics import Scores, confusion, match, score
from densesiam_seg.evaluation.protocol import prepare_sample
from densesiam_seg.images.store import Batch, ImageStore
from densesiam_seg.inference.upsampling import upsample_argmax
from densesiam_seg.io.devices import pick_precision
from densesiam_seg.io.files import make_folder, replace_json, replace_text
from densesiam_seg.io.randomness import Stream, generator
from densesiam_seg.methods.described import Described, Views
from densesiam_seg.methods.mixture_prior import LIGHTS
from densesiam_seg.network.description import Description
from densesiam_seg.network.encoder import PYRAMID_ZOOM
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.presets import train_preset
from densesiam_seg.studies.tables import Column, Table, spread
from densesiam_seg.training.loop import Training

Read: TypeAlias = tuple[Views, Tensor]
"""Stages, and appearance in all views: what `Described` reads of an image."""
RESULTS = Path(__file__).parent / "results"
EVERY = {"coco": 1, "camvid": 2}
"""Data sets, and of how many training images one is read: neighbours in CamVid's drives are alike."""
COLUMNS = (
    Column("mean_iou", "mean IoU"),
    Column("pixel_accuracy", "pixel accuracy"),
    Column("difference", "mean IoU to recipe"),
)
FOUND, DIRECTIONS = "densesiam_seg.methods.described", "densesiam_seg.clustering.directions"
SMOOTHED = "densesiam_seg.network.description.Description.smoothed"
LINEAR_STEPS = 100
LINEAR_DECAY = 1e-5
"""On the linear classifier's squared weights."""


@contextmanager
def changed(names: Mapping[str, Any]) -> Iterator[None]:
    """The package with other constants or functions."""
    with ExitStack() as stack:
        for name, value in names.items():
            stack.enter_context(patch(name, value))
        yield


def no_gaussians(*_: Any, **__: Any) -> Generator[float, None, SimpleNamespace]:
    """In place of `find_gaussians`: clusters of appearance that are never the more stable ones."""
    yield 1.0
    return SimpleNamespace(stability=-np.inf)


def unsmoothed(_: Description, total: Tensor) -> Tensor:
    """In place of `Description.smoothed`."""
    return F.normalize(total, dim=1)


def kmeans_directions(
    sample: Sample, clusters: int, *, seed: int, **_: Any
) -> Generator[float, None, tuple[Directions, float]]:
    """In place of `find_directions`: k-means, as a layer whose largest output is the nearest centre."""
    yield 0.5
    weight, bias = kmeans(sample.points, clusters, seed=seed, restarts=3).classifier()
    return Directions(weight[:, :, 0, 0], bias), 1.0


class Recalled(Described):
    """Images are their numbers, and what was read of each is known. Where places are kept nothing is fitted again."""

    def __init__(self, network: DenseSiam, config: TrainConfig, read: Sequence[Read], row: Row):
        super().__init__(network, config)
        self.read = read
        self.row = row
        self._form = network  # nothing passes the backbone

    def _fit(self, store: ImageStore) -> Iterator[int]:
        if not self._kept:
            yield from super()._fit(store)

    def _stages(self, image: Tensor, lights: Sequence[float] = LIGHTS) -> Read:
        (own, enlarged), look = self.read[int(image)]
        count = 1 + len(lights)

        def used(view: list[list[Tensor]]) -> list[list[Tensor]]:
            sizes = view[: self.row.sizes]
            return [[size[number][:count] for number in self.row.stages] for size in sizes]

        return (used(own), used(enlarged)), torch.cat((look[:count], look[-1:]))


class OwnTargets(Recalled):
    """The targets are of the image in its own size."""

    def _places_of(self, images: Iterable[tuple[Tensor | None, int]]) -> list[Tensor]:
        return [each[[0, 0]] for each in super()._places_of(images)]


class Unsharpened(Recalled):
    """The targets are the teacher's posteriors as they are."""

    def _teach(self, store: ImageStore, *, first: bool) -> None:
        with changed({f"{FOUND}.SHARPENING": 1.0}):
            super()._teach(store, first=first)

    def _targets(self, dense: Tensor, sharpening: float = 1.0) -> Tensor:
        return super()._targets(dense, sharpening)


class Unbalanced(Recalled):
    """The teacher's bias is the layer's."""

    def _teach(self, store: ImageStore, *, first: bool) -> None:
        super()._teach(store, first=first)
        _, bias = self.network.projector.parameters()
        self._state["bias"] = bias.detach().clone()


class Numbers(ImageStore):
    """Stands in for the stored images of a half: a batch holds their numbers in the set."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def batches(
        self, groups: Sequence[tuple[int, ...]], *, pinned: bool = False
    ) -> Iterator[Batch]:
        """See `ImageStore.batches`."""
        for group in groups:
            yield Batch(torch.tensor([self.numbers[place] for place in group]), group)


@dataclass(frozen=True)
class Row:
    """The recipe with something changed."""

    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Names of the package, and what stands there instead."""
    sizes: int = PYRAMID_ZOOM
    """The description reads so many sizes of a view, the smallest first."""
    stages: tuple[int, ...] = (0, 1, 2)
    """And these of the stages that it could read: the last of stride 16 and both of stride 32."""
    method: type[Recalled] = Recalled
    epochs: float = 1
    """So many times those of the preset; 0: no training."""
    labels: bool = False
    """A linear classifier is fitted to labels instead."""

    @property
    def start(self) -> Hashable:
        """Equal for rows that start from the same description and clusters."""
        return self.sizes, self.stages, *self.changes.items()


KMEANS = {f"{FOUND}.find_directions": kmeans_directions}
ONE_DRAW = {f"{DIRECTIONS}.DRAWS": 1}

ROWS: Mapping[str, Row] = {
    "plain-kmeans": Row(
        "k-means of the features as usual: one size, the last stage of each stride, no mean",
        {**KMEANS, SMOOTHED: unsmoothed},
        sizes=1,
        stages=(0, 2),
        epochs=0,
    ),
    "kmeans": Row("k-means of the description", KMEANS, epochs=0),
    "linear": Row("linear classifier of the description (uses labels)", KMEANS, labels=True),
    "start": Row("the recipe without training", epochs=0),
    "recipe": Row("the recipe"),
    "one-size": Row("described in one size", sizes=1),
    "two-sizes": Row("described in two sizes", sizes=2),
    "two-stages": Row("described by the last stage of each stride", stages=(0, 2)),
    "no-mean": Row("no mean of like places", {SMOOTHED: unsmoothed}),
    "one-draw": Row("over-clusters of one draw", ONE_DRAW),
    "no-over-clusters": Row(
        "one draw of K clusters, nothing joined", {**ONE_DRAW, f"{DIRECTIONS}.OVER_CLUSTERS": 1.0}
    ),
    "kappa-7": Row("always κ = 7", {f"{DIRECTIONS}.CONCENTRATIONS": (7.0,)}),
    "kappa-20": Row("always κ = 20", {f"{DIRECTIONS}.CONCENTRATIONS": (20.0,)}),
    "own-targets": Row("targets of the image in its own size", method=OwnTargets),
    "no-sharpening": Row("targets not sharpened", method=Unsharpened),
    "no-balance": Row("targets without a bias towards the first shares", method=Unbalanced),
    "half-the-steps": Row("half the steps", epochs=0.5),
    "twice-the-steps": Row("twice the steps", epochs=2),
    "four-times-the-steps": Row("four times the steps", epochs=4),
}


@dataclass(frozen=True)
class Known:
    """A data set read once: of each image the stages and appearance in all views, and the label (H, W)."""

    task: Task
    network: DenseSiam
    config: TrainConfig
    """For a half of it."""
    read: Sequence[Read]
    labels: Sequence[NDArray[np.uint8]]


def known(task: Task, limit: int | None) -> Known:
    """Training images of a data set, evenly spread, read as `train` reads them."""
    items = task.train.items[:: EVERY[task.name]]
    count = min(limit or len(items), len(items))
    network = described_network(task.clusters, 0, mixture=True)
    network.encoder.freeze()
    _, config = train_preset("balanced", count // 2, gpu=False, start="stages")
    config = replace(config, clusters=task.clusters, image_size=task.side)
    pairs = [
        prepare_sample(
            items[place * len(items) // count],
            task.dataset,
            task.protocol,
            task.side,
            network.encoder.zoom,
        )
        for place in range(count)
    ]
    method = Described(network, config)
    read = list(method._of_each(lambda pair: method._stages(pair[0][None]), pairs))
    return Known(task, network, config, read, [label for _, label in pairs])


def halves(count: int, split: int) -> tuple[list[int], list[int]]:
    """The numbers of all images in two parts, drawn by the split's number."""
    order = generator(split, Stream.ORDER).permutation(count).tolist()
    return sorted(order[: count // 2]), sorted(order[count // 2 :])


@dataclass(frozen=True)
class Start:
    """What training begins with."""

    network: DenseSiam
    kept: dict[int, Tensor]
    """By place in the fitted half: what `Described` keeps of an image, (2, D + C, h, w)."""
    others: Sequence[Tensor]
    """The same of the other half, without the enlarged view: (1, D + C, h, w)."""


class Half:
    """Rows fitted to one half, scored on the other; those that start alike share the start."""

    def __init__(self, data: Known, split: int, fitted: Sequence[int], other: Sequence[int]):
        self.data, self.config = data, replace(data.config, seed=split)
        self.fitted, self.other = fitted, other
        self._starts: dict[Hashable, Start] = {}

    def scores(self, row: Row) -> Scores:
        """Fit, train and score."""
        with changed(row.changes):
            if row.start not in self._starts:
                self._starts[row.start] = self._start(row)
            start = self._starts[row.start]
            network = copy.deepcopy(start.network)
            config = replace(self.config, epochs=round(row.epochs * self.config.epochs))
            method = row.method(network, config, self.data.read, row)
            method._kept.update(start.kept)
            if row.labels:
                labels = [self.data.labels[self.fitted[place]] for place in start.kept]
                fit_linear(network, list(start.kept.values()), labels)
            elif row.epochs:
                device = torch.device("cpu")
                precision = pick_precision(config.precision, device)
                store = Numbers(self.fitted)
                for _ in Training(method, config, store, device, precision).records():
                    pass
            return self._scores(method, start.others)

    @torch.no_grad()
    def _start(self, row: Row) -> Start:
        network = copy.deepcopy(self.data.network)
        whole = network.encoder.description
        assert whole is not None
        network.encoder.description = Description(
            [whole.stages[number] for number in row.stages], network.encoder.width
        )
        method = row.method(network, self.config, self.data.read, row)
        with changed({f"{FOUND}.find_gaussians": no_gaussians}):
            for _ in method._fit(Numbers(self.fitted)):
                pass
        others = [method._seen((torch.tensor(number), number))[:1] for number in self.other]
        return Start(network, method._kept, others)

    @torch.no_grad()
    def _scores(self, method: Described, others: Sequence[Tensor]) -> Scores:
        """One confusion matrix over the other half, and one matching."""
        dataset, clusters = self.data.task.dataset, self.data.task.clusters
        counts = np.zeros((len(dataset.classes), clusters), np.int64)
        for number, places in zip(self.other, others, strict=True):
            label = self.data.labels[number]
            logits = method.network.scores(method._dense(places.float()))[0]
            mask = upsample_argmax(logits, *label.shape).numpy()
            counts += confusion(label, mask, len(dataset.classes), clusters)
        return score(counts, match(counts), dataset.names, dataset.kinds)


def fit_linear(
    network: DenseSiam, places: Sequence[Tensor], labels: Sequence[NDArray[np.uint8]]
) -> None:
    """The K-way layer as a linear classifier: cross-entropy with the classes' shares (N, h, w) of a place's pixels."""
    described = torch.stack([each[0, -network.encoder.width :] for each in places]).float()
    height, width = described.shape[2:]
    classes = torch.arange(network.architecture.clusters)[:, None, None]
    belongs = [(torch.from_numpy(label) == classes).float() for label in labels]
    shares = torch.stack([F.adaptive_avg_pool2d(each, (height, width)) for each in belongs])
    weight, bias = network.projector.parameters()
    optimiser: Any = torch.optim.LBFGS(
        [weight, bias], max_iter=LINEAR_STEPS, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        logs = F.conv2d(described, weight, bias).log_softmax(1)
        found = -(shares * logs).sum() / shares.sum() + LINEAR_DECAY * weight.square().sum()
        torch.autograd.backward(found)
        return found

    optimiser.step(loss)


@dataclass(frozen=True)
class Result:
    """Scores in percent of a row that was fitted to one half of a split's images, on the other one."""

    split: int
    half: int
    mean_iou: float
    pixel_accuracy: float


def results_of(
    data: Known, rows: Sequence[str], splits: Sequence[int]
) -> Iterator[tuple[str, Result]]:
    """Every row on every half, half by half."""
    for split in splits:
        one, other = halves(len(data.read), split)
        for number, (fitted, rest) in enumerate([(one, other), (other, one)]):
            half = Half(data, split, fitted, rest)
            for row in rows:
                scores = half.scores(ROWS[row])
                yield row, Result(split, number, scores.mean_iou, scores.pixel_accuracy)


def main() -> None:
    """Score what was asked for, and write what there is after each data set."""
    asked = options()
    torch.set_num_threads(asked.threads)
    tables, report = [], {}
    for name in asked.datasets:
        try:
            data = known(load_task(name, getattr(asked, name), "train"), asked.limit)
        except DenseSiamError as error:
            sys.exit(f"{error} (--camvid and --coco name the folders)")
        results: dict[str, list[Result]] = {row: [] for row in asked.rows}
        for row, result in results_of(data, asked.rows, asked.splits):
            results[row].append(result)
            scores = f"{result.mean_iou:.2f} / {result.pixel_accuracy:.2f}"
            print(f"{name} split {result.split} half {result.half} {row}: {scores}", flush=True)
        table = table_of(results, data, asked)
        found = {row: [asdict(each) for each in own] for row, own in results.items()}
        tables.append(table.markdown())
        report[name] = {**table.to_dict(), "halves": found}
        print(f"\n{table.markdown()}", flush=True)
        make_folder(asked.results)
        replace_text(asked.results / "recipe.md", "\n".join(tables))
        replace_json(asked.results / "recipe.json", report)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = Path("../shared/data")
    parser.add_argument("--camvid", type=Path, default=shared / "camvid", metavar="DIR")
    parser.add_argument("--coco", type=Path, default=shared / "coco", metavar="DIR")
    parser.add_argument("--datasets", nargs="+", choices=EVERY, default=list(EVERY))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME")
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--limit", type=int, metavar="N", help="images of a data set")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the tables")
    return parser.parse_args()


def table_of(
    results: Mapping[str, Sequence[Result]], data: Known, asked: argparse.Namespace
) -> Table:
    """A line for each row; what rests on labels does not run for the best figure."""
    cells = []
    for name, found in results.items():
        scores = [(each.mean_iou, each.pixel_accuracy) for each in found]
        pairs = zip(found, results.get("recipe", ()), strict=False)
        lead = [] if name == "recipe" else [ours.mean_iou - base.mean_iou for ours, base in pairs]
        own = [spread(values) for values in (*zip(*scores, strict=True), lead)]
        cells.append(tuple(each and each.shown(2) for each in own) if ROWS[name].labels else own)
    task, config, machine = data.task, data.config, facts("cpu")
    packages = ", ".join(f"{package} {version}" for package, version in machine["packages"].items())
    splits = ", ".join(map(str, asked.splits))
    notes = (
        f"data: {len(data.read)} images of {task.train.split}, evenly spread (all of it: names "
        f"{task.train.digest[:12]}); one half is learned from, the other scored, both ways; splits and seeds {splits}",
        "mean ± standard deviation (n - 1) over the halves; in the last column of the differences half by half",
        f"protocol: {task.protocol.describe(task.side, data.network.encoder.zoom)}; labels nearest; no PAMR",
        f"clusters: {task.clusters}, as many as classes, of learned features; one confusion matrix and one matching "
        "(Hungarian) for each half",
        "labels: for scoring alone, but for the row that says that it uses those of the half that is learned from",
        f"training: preset balanced, {config.epochs} epochs, batches of {config.batch_size}",
        f"machine: {machine['machine']} {machine['cpu_capability']}, {machine['threads']} threads; Python "
        f"{machine['python']}, {packages}",
        f"command: {command(asked)}; revision {revision()}",
    )
    titles = tuple(ROWS[name].title for name in results)
    return Table(task.dataset.title, COLUMNS, titles, tuple(map(tuple, cells)), notes)


def command(asked: argparse.Namespace) -> str:
    """The command that makes these tables, without this machine's folders."""
    parts = ["python -P benchmarks/recipe.py --camvid DIR --coco DIR"]
    for name in ("datasets", "rows", "splits", "limit", "threads"):
        value = getattr(asked, name)
        if value is not None and value != list(ROWS):
            parts.append(
                f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
            )
    return " ".join(parts)


if __name__ == "__main__":
    main()
