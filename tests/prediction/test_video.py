"""Frames of videos: which, how they look, and what is left of a damaged file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from videos import cut, damage, frame, write_video

from densesiam_seg.errors import ImageError, UsageError
from densesiam_seg.prediction import video
from densesiam_seg.prediction.video import frame_mask, frame_source, frames, is_video, require_av


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov"])
def test_every_frame(tmp_path: Path, suffix: str) -> None:
    found = list(frames(str(write_video(tmp_path / f"a{suffix}", 20))))
    assert [number for number, _ in found] == list(range(20))
    for number, picture in found:
        assert picture.shape == (48, 64, 3) and picture.dtype == np.uint8
        unlike = [np.abs(picture.astype(int) - frame(other)).mean() for other in range(20)]
        assert abs(int(np.argmin(unlike)) - number) <= 1  # the compression blurs


def test_webm_and_every_third(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.webm", 10, "libvpx")
    assert [number for number, _ in frames(str(path), 3)] == [0, 3, 6, 9]


def failed(path: Path, **options: Any) -> tuple[int, ImageError]:
    """How many frames came before the failure."""
    count = 0
    with pytest.raises(ImageError) as caught:
        for _ in frames(str(path), **options):
            count += 1
    return count, caught.value


class TestDamage:
    def test_in_the_middle(self, tmp_path: Path) -> None:
        count, error = failed(damage(write_video(tmp_path / "a.mp4", 90)))
        assert 20 < count < 70 and error.reason == "corrupt"

    @pytest.mark.parametrize(("suffix", "codec"), [(".mkv", "mpeg4"), (".webm", "libvpx")])
    def test_a_copy_that_broke_off(self, tmp_path: Path, suffix: str, codec: str) -> None:
        count, error = failed(cut(write_video(tmp_path / f"a{suffix}", 90, codec), 0.7))
        assert 20 < count < 90 and error.reason in ("truncated", "corrupt")

    def test_without_its_index(self, tmp_path: Path) -> None:
        count, error = failed(cut(write_video(tmp_path / "a.mp4", 90), 0.7))
        assert (count, error.reason) == (0, "corrupt")

    def test_no_video_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "a.mp4").write_text("my notes")
        assert failed(tmp_path / "a.mp4")[0] == 0

    def test_larger_than_what_is_taken(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "a.mp4", 3)
        assert len(list(frames(str(path), max_pixels=48 * 64))) == 3
        count, error = failed(path, max_pixels=48 * 64 - 1)
        assert (count, error.reason) == (0, "too-large")


def test_turned_frames() -> None:
    """A turn of 90 degrees against the clock brings the right column to the top."""
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)

    def turned(rotation: int) -> np.ndarray:
        return video._upright(SimpleNamespace(to_ndarray=lambda format: pixels, rotation=rotation))

    assert turned(90).shape == (3, 2, 3)
    np.testing.assert_array_equal(turned(90)[0], pixels[:, -1])
    np.testing.assert_array_equal(turned(-90)[0], pixels[::-1, 0])
    assert turned(0) is pixels


def test_names() -> None:
    assert is_video("a/b.MP4") and not is_video("a.mp4/b.png") and not is_video("mp4")
    assert frame_mask(123) == "frame_000123"
    assert frame_source("a/b.mp4", 7) == "a/b.mp4/frame_000007"


def test_without_av(monkeypatch: pytest.MonkeyPatch) -> None:
    require_av("a.mp4")
    real = importlib.util.find_spec
    monkeypatch.setattr(video, "find_spec", lambda name: None if name == "av" else real(name))
    with pytest.raises(UsageError, match=r"a\.mp4: .*densesiam-seg\[video\]"):
        require_av("a.mp4")


def test_a_frame_that_was_patched_up_is_none() -> None:
    """FFmpeg fills what it cannot decode with what was there before."""
    sound = {"is_corrupt": False, "width": 4, "height": 4}
    video._require_sound("a.mp4", 3, SimpleNamespace(**sound), 16)
    with pytest.raises(ImageError, match="frame 3 is damaged"):
        video._require_sound("a.mp4", 3, SimpleNamespace(**sound | {"is_corrupt": True}), 16)
