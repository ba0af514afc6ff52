"""Pages of HTML. The one module that knows Jinja.

Names of files and clusters are other people's text: everything that a template prints is escaped, and control codes and
bytes that are no text are made visible. A page holds all that it shows, and its policy forbids it to ask for anything.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import densesiam_seg
from densesiam_seg.errors import UsageError, counted, one_line
from densesiam_seg.packed.members import as_shown
from densesiam_seg.pictures.masks import Colour

if TYPE_CHECKING:
    from jinja2 import Environment

PAGES = (".html", ".htm")
GENERATOR = '<meta name="generator" content="densesiam-seg'
"""What tells a page of this program from others."""


def render(name: str, **values: Any) -> str:
    """The page of a template, which is a file of this folder."""
    template = _environment().get_template(name)
    lines = template.render(**values).splitlines()
    return "\n".join(line.rstrip() for line in lines if line.strip()) + "\n"


@cache
def _environment() -> Environment:
    from jinja2 import DictLoader, Environment, StrictUndefined

    sources = {
        each.name: each.read_text(encoding="utf-8")
        for each in files(__package__).iterdir()
        if each.name.endswith((".html", ".css"))
    }
    environment = Environment(
        loader=DictLoader(sources),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "counted": counted}
    environment.globals |= {
        "version": densesiam_seg.__version__,
        "now": lambda: f"{datetime.now().astimezone():%Y-%m-%d %H:%M}",
        "css": lambda: _safe(sources["page.css"]),
        "chart": _safe,
        "as_shown": as_shown,
    }
    return environment


def _visible(value: Any) -> Any:
    """Text as one line of what can be shown; markup of this program is left as it is."""
    from markupsafe import Markup

    return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def require_page_target(
    out: Path | None,
    inputs: Sequence[str] = (),
    *,
    overwrite: bool = False,
    suffixes: Sequence[str] = PAGES,
) -> None:
    """Raises UsageError unless `out` ends as a page does, is no input and, without `overwrite`, does not exist yet."""
    if out is None:
        return
    if out.suffix.lower() not in suffixes or os.path.isdir(out):  # noqa: PTH112
        raise UsageError(f"--out {out}: give a file name ending in {' or '.join(suffixes)}")
    if os.path.realpath(out) in {os.path.realpath(each) for each in inputs}:
        raise UsageError(f"{out}: would overwrite an input image; give another --out")
    if os.path.lexists(out) and not overwrite:
        raise UsageError(f"--out {out}: exists already; give --overwrite or another name")


def _safe(text: str) -> Any:
    """Markup that this program made itself."""
    from markupsafe import Markup

    return Markup(text)


def css_colour(colour: Colour) -> str:
    """`#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def percent(share: float | None) -> str:
    """A share from 0 to 1 in words: `12 %`, `3.4 %`, `<0.1 %`, `–`."""
    if share is None:
        return "–"
    value = 100 * share
    if 0 < value < 0.1:
        return "<0.1 %"
    return f"{value:.1f} %" if 0 < value < 9.95 else f"{value:.0f} %"
