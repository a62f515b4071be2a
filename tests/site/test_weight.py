"""What a visit costs: bytes as a server would send them, compressed."""

from __future__ import annotations

import gzip
import re

import pytest
from served import SITE

CHAPTERS = sorted(path.relative_to(SITE).as_posix() for path in SITE.glob("book/[0-9][0-9]-*.html"))
FIRST, LATER = 500_000, 200_000  # bytes of a chapter's first visit, and of one when the site's own files are known
PACKED = re.compile(r"\.(?:woff2?|png|jpe?g|ico)$")


def weights(browser, site: str, name: str) -> dict[str, int]:
    """The bytes of each file that a page fetches when it is opened."""
    context = browser.new_context()
    page, found = context.new_page(), []
    page.on("response", lambda response: found.append(response))
    page.goto(f"{site}/{name}", wait_until="networkidle")
    sizes = {}
    for response in found:
        body, url = response.body(), response.url.removeprefix(site)
        sizes[url] = len(body) if PACKED.search(url.partition("?")[0]) else len(gzip.compress(body))
    context.close()
    return sizes


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_is_light(browser, site, name):
    sizes = weights(browser, site, name)
    heaviest = sorted(sizes.items(), key=lambda one: -one[1])[:5]
    assert sum(sizes.values()) < FIRST, heaviest
    assert sizes[f"/{name}"] < LATER, heaviest


def test_each_of_our_style_sheets_is_in_the_one_that_pages_fetch():
    joined = (SITE / "_static" / "book.css").read_text()
    for path in (SITE / "_static").glob("*.css"):
        if path.name.startswith(("lab", "course", "predictions")):
            names = set(re.findall(r"^\.([\w-]+)", path.read_text(), re.M))
            assert sum(f".{name}" in joined for name in names) > len(names) / 2, path.name


def test_a_still_picture_fits_its_column(browser, site):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    for name in CHAPTERS:
        page.goto(f"{site}/{name}")
        wide = page.evaluate(
            "[...document.querySelectorAll('.lab-figure > .lab-wide')]"
            ".filter(box => box.scrollWidth > box.clientWidth + 1).map(box => box.closest('[id]')?.id)"
        )
        assert wide == [], name
    context.close()


def test_no_rule_is_lost_for_a_class_that_a_script_puts_together():
    static = SITE / "_static"
    joined = (static / "book.css").read_text()
    ours = [path for path in static.glob("*.js") if path.name.startswith(("lab", "predictions"))]
    begun = {word for path in ours for word in re.findall(r"[\w-]+-(?=\$\{)", path.read_text())}
    assert {"lab-mark-", "lab-bench-"} <= begun
    for path in [*static.glob("lab*.css"), static / "predictions.css"]:
        names = [name for name in re.findall(r"\.([\w-]+)", path.read_text()) if any(map(name.startswith, begun))]
        assert [name for name in names if f".{name}" not in joined] == [], path.name
