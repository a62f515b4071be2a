"""Every page on a screen 320 pixels wide and 256 high: a small phone, and 1280 by 1024 enlarged four times."""

from __future__ import annotations

import pytest
from served import BROWSER, SITE, pages

pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")

pytestmark = [
    pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on the PATH"),
    pytest.mark.skipif(not (SITE / "book" / "index.html").is_file(), reason=f"no built site in {SITE}: run make book"),
]
NARROW = {"width": 320, "height": 256}
PAGES = ["index.html", "search.html", "404.html", *pages()]

# Boxes that hide what is too wide for them and do not scroll; those for screen readers alone are a pixel large.
CLIPPED = """() => [...document.querySelectorAll("main *, header *")].filter((box) => {
  const style = getComputedStyle(box);
  return ["hidden", "clip"].includes(style.overflowX) && style.textOverflow !== "ellipsis" && box.clientWidth > 2
    && box.scrollWidth > box.clientWidth + 1 && box.checkVisibility() && !box.closest("svg, math");
}).map((box) => box.outerHTML.slice(0, 120))"""
# Elements that stay where they are while the text scrolls: how much of the screen they cover together.
STUCK = """() => Math.max(0, ...[...document.querySelectorAll("body *")].filter((node) =>
  ["fixed", "sticky"].includes(getComputedStyle(node).position)
    && node.checkVisibility({ opacityProperty: true, visibilityProperty: true })).map((node) => {
  const { top, bottom, left, right } = node.getBoundingClientRect();
  const wide = Math.min(right, innerWidth) - Math.max(left, 0);
  return wide < innerWidth / 2 ? 0 : Math.min(bottom, innerHeight) - Math.max(top, 0);
}))"""


@pytest.fixture(scope="module")
def narrow(browser):
    context = browser.new_context(viewport=NARROW)
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_read_without_scrolling_sideways(narrow, site, name):
    narrow.goto(f"{site}/{name}", wait_until="load")
    width = narrow.evaluate("document.scrollingElement.scrollWidth")
    assert width <= NARROW["width"]
    assert narrow.evaluate(CLIPPED) == []
    narrow.evaluate("scrollTo(0, document.scrollingElement.scrollHeight / 2)")
    assert narrow.evaluate(STUCK) <= NARROW["height"] / 3
