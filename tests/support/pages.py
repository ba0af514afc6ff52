"""What tests ask of a page of HTML: that it is well formed, what it shows, and that it asks for nothing."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "br", "link", "hr", "input"}
"""Elements without an end."""
ADDRESSES = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"}


class Page(HTMLParser):
    """A page, read strictly: every element is closed in its turn, no identifier comes twice, no attribute either."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        """Identifiers that are pointed to."""
        self.requests: list[str] = []
        """Addresses of what is not in the page."""
        self.images: list[dict[str, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        assert text.startswith("<!DOCTYPE html>\n<html lang=")
        self.feed(text)
        self.close()
        assert not self._open, self._open
        assert self.links <= self.ids, self.links - self.ids
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        found = {name: value or "" for name, value in attrs}
        if "id" in found:
            assert found["id"] not in self.ids, found["id"]
            self.ids.add(found["id"])
        for name in ADDRESSES & found.keys():
            address = found[name]
            if address.startswith("#"):
                self.links.add(address[1:])
            elif not address.startswith("data:image/"):
                self.requests.append(address)
        if tag == "img":
            self.images.append(found)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, (tag, self._open[-3:])

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            assert "url(" not in data and "@import" not in data
        else:
            self.words.append(data)


def read_page(path: Path) -> Page:
    """The page in a file; it asks for nothing and has no program in it."""
    page = Page(path.read_text(encoding="utf-8"))
    assert page.requests == []
    assert not {"script", "iframe", "object", "embed", "form", "link"} & set(page.tags)
    return page
