"""Frames of videos, one after the other, and their masks. The only module that imports PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.errors import ImageError, UsageError
from densesiam_seg.events import Predicted
from densesiam_seg.prediction.earlier import State, state_of

if TYPE_CHECKING:
    from densesiam_seg.prediction.predict import Maker

SUFFIXES = frozenset({".mp4", ".m4v", ".mkv", ".avi", ".mov", ".webm"})
SLACK = 2.5
"""Frames that the declared end of a video may lie beyond its last one: rates vary."""
NOTED = 512
"""Frames whose files are noted at once (`io.outputs`)."""


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file is called like a video; what is in it shows later."""
    name = os.fspath(path)
    return name[name.rfind(".") :].lower() in SUFFIXES


def require_av(path: str) -> None:
    """Raises UsageError where videos cannot be read."""
    if find_spec("av") is None:
        raise UsageError(
            f"{path}: videos need one more package; pip install 'densesiam-seg[video]', or give its frames"
        )


def frame_mask(number: int | str) -> str:
    """What the mask of a frame is called, without its suffix; frames are counted from 0."""
    return f"frame_{number:06}" if isinstance(number, int) else f"frame_{number}"


def frames(
    path: str, every: int = 1, max_pixels: int | None = None
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Every such frame with its number, upright RGB (H, W, 3). One at a time is in memory.

    Raises ImageError for a file that is no video, and where one is damaged, after the frames before the damage.
    """
    import av

    number = 0
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise ImageError(path, "not-an-image", "has no pictures in it")
            stream = container.streams.video[0]
            last = None
            for number, frame in enumerate(container.decode(stream)):
                _require_sound(path, number, frame, max_pixels)
                if number % every == 0:
                    yield number, _upright(frame)
                last = frame
            _require_whole(path, stream, last, number + 1)
    except av.FFmpegError as error:
        where = f"frame {number + 1} cannot be decoded" if number else "cannot be read as a video"
        reason = " ".join((error.strerror or str(error)).split())
        raise ImageError(
            path, "corrupt", f"{where} ({reason})", "copy it again or convert it"
        ) from error


def _require_sound(path: str, number: int, frame: Any, max_pixels: int | None) -> None:
    """Raises ImageError for a frame that was patched up, or is larger than what is taken."""
    if frame.is_corrupt:
        raise ImageError(
            path, "corrupt", f"frame {number} is damaged", "copy it again or convert it"
        )
    if max_pixels is not None and frame.width * frame.height > max_pixels:
        raise ImageError(
            path,
            "too-large",
            f"has frames of {frame.width} x {frame.height} pixels, more than {max_pixels:,} in all",
            "shrink it or raise --max-pixels",
        )


def _upright(frame: Any) -> NDArray[np.uint8]:
    """RGB (H, W, 3) as a player shows it: phones write a turn beside the pixels."""
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels


def _require_whole(path: str, stream: Any, last: Any, count: int) -> None:
    """Raises ImageError for a video that ends before its header says, or has no frame at all."""
    if last is None:
        raise ImageError(path, "truncated", "has no frame", "copy it again from its source")
    missing = 0.0
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    declared = _seconds(stream)
    if stream.frames:
        missing = stream.frames - count
    elif declared and rate and last.time is not None:
        missing = (declared - last.time) * rate
    if missing > SLACK:
        raise ImageError(
            path,
            "truncated",
            f"ends after {count} frames, before the end that its header gives",
            "copy it again from its source",
        )


def _seconds(stream: Any) -> float | None:
    """How long the header says that a stream is."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    text = stream.metadata.get("DURATION", "")  # Matroska's, such as 00:01:02.500000000
    try:
        hours, minutes, seconds = map(float, text.split(":"))
    except ValueError:
        return None
    return 3600 * hours + 60 * minutes + seconds


def frame_source(path: str, number: int) -> str:
    """How a frame is called in messages and lists."""
    return str(Path(path) / frame_mask(number))


@dataclass
class Video:
    """The frames of one video, read one after the other by the caller's thread and done in several."""

    maker: Maker
    place: int
    failure: Predicted | None = None
    """Why it broke off, once its frames have been read."""

    @property
    def source(self) -> str:
        return self.maker.work.sources[self.place]

    def frames(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Frames with their numbers."""
        closed = self.maker.closed.get(self.maker.work.targets[self.place])
        if closed is not None:
            self.failure = Predicted(self.source, None, closed)
            return
        work, limit = self.maker.work, self.maker.scorer.decoding.max_pixels
        try:
            for count, item in enumerate(frames(self.source, work.wanted.every, limit)):
                if work.noted and count % NOTED == 0:
                    self._note(item[0])
                yield item
        except ImageError as error:
            self.failure = Predicted(self.source, None, error)

    def _note(self, first: int) -> None:
        """Note the files of the frames to come, as nobody knows how many there are. Raises OutputError."""
        work = self.maker.work
        numbers = range(first, first + NOTED * work.wanted.every, work.wanted.every)
        files = (path for number in numbers for path in self._files(number).values())
        self.maker.noting.add(work.targets[self.place], (path.name for path in files))

    def _files(self, number: int) -> dict[str, Path]:
        """Where the files of a frame lie, by what they are."""
        wanted = self.maker.work.wanted
        folder = self.maker.work.targets[self.place]
        return wanted.files(folder / f"{frame_mask(number)}{wanted.suffix}")

    def do(self, item: tuple[int, NDArray[np.uint8]]) -> Predicted:
        """One frame → its files."""
        import torch

        number, frame = item
        maker, work = self.maker, self.maker.work
        source = frame_source(self.source, number)
        files = self._files(number)
        stamp = work.stamp(self.place)
        if work.keeps and state_of(files.values(), stamp, maker.record) is State.KEPT:
            return Predicted(source, list(files.values())[-1], files=files, kept=True)
        pixels = torch.from_numpy(frame).movedim(-1, 0).contiguous()
        return maker.write(files, source, lambda: frame, maker.scorer.of_pixels(pixels))
