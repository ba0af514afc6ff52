"""How a command ends after some images failed."""

from __future__ import annotations

import pytest

from densesiam_seg.cli.console import Console
from densesiam_seg.cli.endings import end
from densesiam_seg.errors import ImageError, InputError, PartialError
from densesiam_seg.images.manifest import Skipped

BAD = ImageError("bad.jpg", "truncated", "is not whole")


def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    end(Console(), (), 3)
    assert capsys.readouterr() == ("", "")


def test_some_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PartialError, match="1 of 4 images failed"):
        end(Console(quiet=True), (BAD,), 3)
    assert (
        capsys.readouterr().err == "warning: failed: bad.jpg: is not whole; remove or convert it\n"
    )
    with pytest.raises(PartialError, match="2 of 3 images failed"):
        end(Console(), (BAD,), 1, (Skipped("a", "dangling-link", "a: is gone; mend it"),))


def test_the_only_one_failed(capsys: pytest.CaptureFixture[str]) -> None:
    """Its error is that of the command, and told once."""
    with pytest.raises(ImageError):
        end(Console(), (BAD,), 0)
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="none of the 2"):
        end(Console(), (BAD, BAD), 0)
