"""HTML as the tests read it."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"input", "path", "br"}


class Structure(HTMLParser):
    """Text, tags in order, and the attributes of all elements by tag; refuses markup that does not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.tags, self.text, self.found = [], [], "", {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found.setdefault(tag, []).append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
