"""Prediction in parts, by processes that need not know of each other: a part's work is one call, of plain values.

`Recipe`, `Plan`, `Shard` and `Tally` can be pickled, so a scheduler of any kind may send them to its workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from densesiam_seg.config import RunConfig
from densesiam_seg.errors import DenseSiamError
from densesiam_seg.events import Notice, Predicted
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.manifest import Skipped
from densesiam_seg.images.scan import scan
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.readout import Clusters, load_with_readout
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.run_directory import latest_model
from densesiam_seg.peers.shard import Shard, launched
from densesiam_seg.prediction.plan import Plan, plan
from densesiam_seg.prediction.predict import error_of, predict_events
from densesiam_seg.prediction.wanted import Wanted


@dataclass
class Tally:
    """What became of the images: numbers, and those that failed."""

    done: int = 0
    kept: int = 0
    """Those whose files were there already."""
    failed: list[Predicted] = field(default_factory=list)

    def add(self, result: Predicted) -> None:
        """Count an image or frame."""
        if result.error is not None:
            self.failed.append(result)
        elif result.kept:
            self.kept += 1
        else:
            self.done += 1

    def counting(self, results: Iterable[Predicted]) -> Iterator[Predicted]:
        """The same results, each counted as it passes."""
        for result in results:
            self.add(result)
            yield result

    @property
    def images(self) -> int:
        return self.done + self.kept + len(self.failed)

    def error(
        self, skipped: Sequence[Skipped] = (), shard: Shard | None = None
    ) -> DenseSiamError | None:
        """What a command ends with, if anything failed."""
        part = "" if shard is None else f"shard {shard}"
        return error_of(self.failed, self.images, skipped, part)


@dataclass(frozen=True)
class Recipe:
    """What makes masks: a model, how it is read out, and how images are read and passed through it."""

    model: Path
    readout: str = "head"
    clusters: Clusters = None
    fit_images: tuple[str, ...] | None = None
    over_clusters: int | None = None
    settings: RunConfig = field(default_factory=RunConfig)
    """Of these `device`, `precision`, `seed`, `max_pixels`, `page` and `bands`."""
    refinement: Refinement = AS_TRAINED
    batch_size: int | None = None

    def load(self, tell: Callable[[object], object] | None = None) -> Segmenter:
        """The model, in this process; `tell` gets what was chosen without labels. Raises ModelError and others."""
        return load_with_readout(
            self.model,
            self.readout,
            self.clusters,
            self.fit_images,
            over_clusters=self.over_clusters,
            seed=self.settings.seed,
            device=self.settings.device,
            precision=self.settings.precision,
            tell=tell,
        )

    def events(
        self,
        segmenter: Segmenter,
        work: Plan,
        decoding: Decoding | None = None,
        tell: Callable[[Notice], object] | None = None,
    ) -> Iterator[Predicted]:
        """`predict_events` with these options."""
        return predict_events(
            segmenter,
            work,
            decoding=decoding or segmenter.new_decoding(self.settings),
            batch_size=self.batch_size,
            refinement=self.refinement,
            tell=tell,
        )


def predict_shard(
    recipe: Recipe,
    work: Plan,
    shard: Shard,
    segmenter: Segmenter | None = None,
    tell: Callable[[Notice], object] | None = None,
) -> Tally:
    """Do a shard of a job whole, in whatever process this is; what is there already is left as it is.

    `work` is the plan of the whole job or of any part, `segmenter` what `recipe.load()` gave this process, if it has
    done so before. Images that fail are in the result and listed in `failed-I-of-N.jsonl`. Raises what `predict_events`
    does.
    """
    tally = Tally()
    segmenter = segmenter or recipe.load()
    for _ in tally.counting(recipe.events(segmenter, work.part(shard), tell=tell)):
        pass
    return tally


def own_shard(given: Shard | None = None) -> Shard | None:
    """The part that this process has to do: the one `given`, else its place under a launcher; None for all.

    Raises UsageError.
    """
    found = given or launched()
    return None if given is None and found.alone else found


def predict(
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    model: str | Path | Segmenter | None = None,
    *,
    shard: Shard | None = None,
    wanted: Wanted | None = None,
    overwrite: bool = False,
    resume: bool = False,
    refinement: Refinement = AS_TRAINED,
    batch_size: int | None = None,
    device: str = "auto",
) -> Tally:
    """Write a mask for each image into the folder `out` (or, of one image, to the file `out`); returns how many.

    `images` are as on the command line: files, folders, globs and lists. `model` is a run or model directory (None: the
    latest run's), `wanted` what is written beside the masks. With `shard`, or under a launcher that sets RANK and
    WORLD_SIZE, it is that part of the images, and what is there already is kept if it would be made again.

    Raises UsageError, InputError, ModelError and OutputError; images that fail are in the result.
    """
    inputs = [images] if isinstance(images, str | Path) else images
    part = own_shard(shard)
    manifest = scan(inputs, merge=False, out=out)
    work = plan(manifest, Path(out), overwrite=overwrite, resume=resume, wanted=wanted, shard=part)
    if not isinstance(model, Segmenter):
        model = Segmenter.load(model or latest_model(), device=device)
    events = predict_events(model, work, batch_size=batch_size, refinement=refinement)
    tally = Tally()
    for _ in tally.counting(events):
        pass
    return tally
