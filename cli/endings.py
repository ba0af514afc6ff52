"""How a command ends that looked at several images, some of which could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from densesiam_seg.events import Predicted

if TYPE_CHECKING:
    from densesiam_seg.cli.console import Console
    from densesiam_seg.errors import ImageError
    from densesiam_seg.images.manifest import Skipped


def end(
    console: Console, failed: Sequence[ImageError], done: int, skipped: Sequence[Skipped] = ()
) -> None:
    """Warn of the images that failed beside `done` others; raises the error that the command ends with, if any."""
    from densesiam_seg.prediction.predict import overall_error

    results = [Predicted(error.path, None, error) for error in failed]
    if len(results) + done > 1:
        console.failed(results)
    error = overall_error([*results, *[Predicted("", None)] * done], skipped)
    if error is not None:
        raise error
