"""Prediction from Python, of all images or of a part, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from densesiam_seg.errors import DenseSiamError
from densesiam_seg.events import Predicted
from densesiam_seg.images.manifest import Skipped
from densesiam_seg.images.scan import scan
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.run_directory import latest_model
from densesiam_seg.peers.shard import Shard, own_shard
from densesiam_seg.prediction.plan import plan
from densesiam_seg.prediction.predict import error_of, predict_events
from densesiam_seg.prediction.wanted import Wanted


@dataclass
class ImageTally:
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
) -> ImageTally:
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
    tally = ImageTally()
    for _ in tally.counting(events):
        pass
    return tally
