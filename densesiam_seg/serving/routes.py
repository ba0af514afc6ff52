"""What each address of the page gives, whoever may ask: paths and bodies → replies.

Images are addressed by their places in the list, so that no path of a file ever comes from outside.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.errors import DenseSiamError, ImageError
from densesiam_seg.serving.view import View

NAMES_AT_ONCE = 200
"""Images of a page of the list."""
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_PAGE = ("page.html", "page.css", "page.js", "asking.js", "images.js", "stage.js", "clusters.js")
_BYTES = "application/octet-stream"


@dataclass(frozen=True)
class Reply:
    """A status, the body, and its kind."""

    status: int
    body: bytes
    kind: str = "application/json"


def answer(view: View, method: str, path: str, query: str, body: bytes) -> Reply:
    """The reply to GET or POST of a path that is relative to the page's address; never raises a user's error."""
    try:
        return _post(view, path, body) if method == "POST" else _get(view, path, query)
    except ImageError as error:
        return refusal(422, str(error))
    except DenseSiamError as error:
        return refusal(409, str(error))


def refusal(status: int, text: str) -> Reply:
    """A reply that says what is wrong."""
    return _json({"error": text}, status)


@cache
def page() -> Mapping[str, Reply]:
    """The files of the page by their names; the page itself has none."""
    folder = files(__package__)
    found = {
        name: Reply(
            200, folder.joinpath(name).read_bytes(), f"{_KINDS[name.split('.')[1]]}; charset=utf-8"
        )
        for name in _PAGE
    }
    return {"": found.pop("page.html"), **found}


def _get(view: View, path: str, query: str) -> Reply:
    asked = dict(parse_qsl(query))
    if path in page():
        return page()[path]
    if path == "state":
        return _state(view.state(), asked.get("since"))
    if path == "images":
        first = _place(asked.get("from", ""))
        names = [] if first is None else view.names(first, NAMES_AT_ONCE)
        return _json({"from": first, "names": names, "atOnce": NAMES_AT_ONCE})
    what, _, place = path.partition("/")
    index = _place(place)
    if what not in _OF_IMAGE or index is None or index >= len(view.images):
        return refusal(404, "nothing here")
    return _OF_IMAGE[what](view, index)


def _state(found: Mapping[str, Any], seen: str | None = None) -> Reply:
    """The clusters, or nothing where they are still those that the page has seen."""
    # Of the content, as a file that was edited by hand keeps its revision.
    version = f"{crc32(json.dumps(found).encode()):08x}"
    return Reply(204, b"") if seen == version else _json({**found, "version": version})


def _place(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


_OF_IMAGE: Mapping[str, Callable[[View, int], Reply]] = {
    "thumbnail": lambda view, index: Reply(200, view.thumbnail(index), "image/jpeg"),
    "picture": lambda view, index: Reply(200, view.picture(index), "image/jpeg"),
    "mask": lambda view, index: _grid(view.mask(index)),
    "confidence": lambda view, index: _grid(view.confidence(index)),
}


def _grid(values: NDArray[np.integer]) -> Reply:
    """Values (H, W) as bytes: H, W and the bytes of each value, then the rows; all little-endian."""
    small = values.astype("u1" if values.dtype == np.uint8 else "<u2")
    height, width = small.shape
    return Reply(200, struct.pack("<3I", height, width, small.itemsize) + small.tobytes(), _BYTES)


_EDITS: Mapping[str, Mapping[str, type]] = {
    "rename": {"cluster": int, "name": str},
    "merge": {"clusters": list},
    "undo": {"revision": int},
}
"""Edits, and the values that each takes."""


def _post(view: View, path: str, body: bytes) -> Reply:
    types = _EDITS.get(path)
    if types is None:
        return refusal(404, "nothing here")
    given = _given(body, types)
    if given is None:
        return refusal(400, f"{path}: give {' and '.join(types)}")
    return _state(getattr(view, path)(**given))


def _given(body: bytes, types: Mapping[str, type]) -> dict[str, Any] | None:
    """The values of a body, each of its type and no others; None for another body."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, dict) or given.keys() != types.keys():
        return None
    if any(type(given[name]) is not kind for name, kind in types.items()):
        return None
    return given if all(type(each) is int for each in given.get("clusters", ())) else None


def _json(value: Mapping[str, Any], status: int = 200) -> Reply:
    # ASCII, as names of files may hold surrogates.
    return Reply(status, json.dumps(value).encode("ascii"))
