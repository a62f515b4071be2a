"""The built site over HTTP on this machine, and a Chromium to look at it with."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# SITE lets the same tests look at another build.
SITE = Path(os.environ.get("SITE", Path(__file__).parents[2] / "_build" / "html"))
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}


def pages() -> list[str]:
    """The addresses of all chapters, relative to the site."""
    return [path.relative_to(SITE).as_posix() for path in sorted((SITE / "book").glob("**/*.html"))]


def page_with(pattern: str) -> str:
    """The first page whose source has what a pattern says. Editions differ in numbers and sentences alone."""
    found = (name for name in pages() if re.search(pattern, (SITE / name).read_text(encoding="utf8"), re.DOTALL))
    name = next(found, None)
    assert name, f"no page in {SITE / 'book'} has {pattern}: was it renamed?"
    return name


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Only a browser that leaves a page before it is whole comes here; its tests say what they miss."""


@contextmanager
def serving(folder: Path = SITE) -> Iterator[str]:
    """The address of a folder, the site if none is given, served for as long as the context lasts."""
    handler = functools.partial(_Silent, directory=str(folder))
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


SCROLL_THROUGH = """async () => {
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const step = 0.8 * innerHeight;
  for (let y = 0; y < document.scrollingElement.scrollHeight; y += step) { scrollTo(0, y); await pause(20); }
  scrollTo(0, 0);
}"""
