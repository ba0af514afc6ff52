"""Small videos, drawn frame by frame."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import av
import numpy as np
from numpy.typing import NDArray


def frame(number: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """One that is told from its neighbours: blocks of colour that move on."""
    draw = np.random.default_rng(number // 9)
    blocks = draw.integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    picture = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    return np.ascontiguousarray(np.roll(picture, number, 1))


def write_video(path: Path, count: int, codec: str = "mpeg4") -> Path:
    """A video of so many frames; the suffix says in which container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = cast("av.VideoStream", container.add_stream(codec, rate=10))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(count):
            picture = av.VideoFrame.from_ndarray(frame(number), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def damage(path: Path, share: float = 0.5, length: int = 300) -> Path:
    """Overwrite bytes from a part of the file on."""
    data = bytearray(path.read_bytes())
    start = int(share * len(data))
    data[start : start + length] = np.random.default_rng(1).bytes(length)
    path.write_bytes(data)
    return path


def cut(path: Path, share: float) -> Path:
    """Leave the beginning alone."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path
