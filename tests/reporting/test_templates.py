"""Templates: other people's text stays text, and a page asks for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pages import Page

from densesiam_seg import __version__
from densesiam_seg.errors import UsageError
from densesiam_seg.reporting import templates
from densesiam_seg.reporting.review import Reviewed
from densesiam_seg.reporting.templates import (
    GENERATOR,
    css_colour,
    percent,
    render,
    require_page_target,
)

HOSTILE = '"><script>alert(1)</script><a href="http://x">\x1b[2J\u202e\udcff{{ 7 * 7 }}'


def test_what_is_printed_is_escaped_and_visible() -> None:
    text = render("review.html", title=HOSTILE, found=Reviewed((), 1234, ()), shown=[])
    page = Page(text)
    assert page.requests == [] and "script" not in page.tags
    shown = r'"><script>alert(1)</script><a href="http://x">\x1b[2J\u202e\udcff{{ 7 * 7 }}'
    assert page.words.count(shown) == 1 and shown + " – densesiam-seg" in page.words
    assert "1,234" in page.text and __version__ in page.text
    assert text.encode("utf-8").startswith(b"<!DOCTYPE html>") and GENERATOR in text[:4096]


def test_colours() -> None:
    assert css_colour((1, 171, 255)) == "#01abff"


def test_the_policy_of_a_page() -> None:
    text = render("review.html", title="", found=Reviewed((), 0, ()), shown=[])
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_an_unknown_value_is_a_mistake() -> None:
    with pytest.raises(Exception, match="'shown' is undefined"):
        render("review.html", title="", found=Reviewed((), 0, ()))


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "–"), (0, "0 %"), (0.0004, "<0.1 %"), (0.034, "3.4 %"), (0.0994, "9.9 %"), (0.0996, "10 %"), (1, "100 %")],
)  # fmt: skip
def test_shares_in_words(share: float | None, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("page.png", {}, "ending in .html or .htm"),
        ("folder.html", {}, "ending in .html"),
        ("there.html", {}, "exists already"),
        ("in.html", {"inputs": ["in.html"], "overwrite": True}, "would overwrite an input"),
    ],
)
def test_places_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, options: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "there.html").touch()
    with pytest.raises(UsageError, match=words):
        require_page_target(Path(out), **options)
    require_page_target(Path("there.html"), overwrite=True)
    require_page_target(Path("new.html"))
    require_page_target(None)


def test_jinja_comes_with_the_first_page() -> None:
    assert "jinja2" not in vars(templates)
