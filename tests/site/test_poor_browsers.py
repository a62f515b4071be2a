"""Readers whose browser keeps nothing, brings no fonts or runs no scripts: what can work does, and the rest is said.

The storage is really full or really forbidden here, and the pages are those of the book.
"""

from __future__ import annotations

import json

import pytest
from served import ARGUMENTS, BROWSER, PHONE, SITE, page_with, pages

pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")

pytestmark = [
    pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on the PATH"),
    pytest.mark.skipif(not (SITE / "book" / "index.html").is_file(), reason=f"no built site in {SITE}: run make book"),
]
PAGES = ["index.html", "search.html", "404.html", *(name for name in pages() if not name.startswith("book/api/"))]
NOTHING = "keeps nothing"
FILL = """() => {
  let n = 0;
  for (let size = 2 ** 22; size >= 1; size /= 2)
    try { for (;;) localStorage.setItem(`filler${n++}`, "a".repeat(size)); } catch { /* no room for this size */ }
  for (let one = 0;; one++) try { localStorage.setItem(one, ""); } catch (error) { return error.name; }
}"""
# Letters of icon fonts, which without their font are boxes.
BOXES = """() => {
  const odd = /[\\ue000-\\uf8ff]|[\\u{f0000}-\\u{10ffff}]/u, found = [];
  for (const node of document.querySelectorAll("body *")) {
    for (const at of ["::before", "::after"])
      if (odd.test(getComputedStyle(node, at).content)) found.push(node.className);
    for (const text of node.childNodes)
      if (text.nodeType === 3 && odd.test(text.data) && !node.closest("script, style")) found.push(text.data);
  }
  return found;
}"""
# A formula without a place has no letters; one whose letters stand on each other is not wider than they are.
FLAT = """() => [...document.querySelectorAll("article math")].filter((math) => {
  const { width, height } = math.getBoundingClientRect();
  return math.checkVisibility() && !math.closest("details:not([open])")
    && (height < 5 || width < 2.5 * [...math.textContent].filter((one) => /\\w/.test(one)).length);
}).map((math) => math.getAttribute("alttext"))"""
# What can be pressed and does nothing without scripts; links, folds, choices that style sheets follow and the form of
# the search need none.
DEAD = """() => [...document.querySelectorAll("button, select, textarea, input:not([type=radio]), [role=button]")]
  .filter((one) => one.checkVisibility({ visibilityProperty: true }) && !one.closest("form[action]"))
  .map((one) => one.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module", params=["full", "forbidden"])
def stingy(request, browser, site, tmp_path_factory):
    """A browser that keeps nothing for the site."""
    profile = tmp_path_factory.mktemp("profile")
    if request.param == "forbidden":
        (profile / "Default").mkdir()
        forbid = {"profile": {"default_content_setting_values": {"cookies": 2}}}
        (profile / "Default" / "Preferences").write_text(json.dumps(forbid), encoding="utf8")
    context = browser.browser_type.launch_persistent_context(profile, executable_path=BROWSER, args=ARGUMENTS)
    if request.param == "full":
        context.filler = context.new_page()  # stays: what a page that is closed has kept may be given up under load
        context.filler.goto(f"{site}/404.html")
    yield context
    context.close()


@pytest.fixture
def tab(stingy):
    if filler := getattr(stingy, "filler", None):
        assert filler.evaluate(FILL) == "QuotaExceededError"
    page = stingy.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda said: page.problems.append(said.text) if said.type == "error" else None)
    yield page
    assert page.problems == []
    page.close()


@pytest.mark.parametrize("name", ["index.html", "404.html", "search.html?q=logit+lens", "book/ledger.html"])
def test_the_theme_is_switched_though_nothing_is_kept(tab, site, name):
    tab.goto(f"{site}/{name}")
    seen = {tab.evaluate("document.documentElement.dataset.theme")}
    for _ in range(3):
        tab.get_by_role("button", name="Color mode").first.click()
        seen.add(tab.evaluate("document.documentElement.dataset.theme"))
    assert seen == {"light", "dark"}


def test_a_prediction_is_shown_and_said_not_to_be_kept(tab, site):
    name = page_with('class="predict admonition')
    tab.goto(f"{site}/{name}")
    box = tab.locator(".admonition.predict").first
    box.get_by_role("textbox").fill("forty-two whales")
    box.get_by_role("button", name="Commit").click()
    assert box.locator("blockquote").inner_text() == "forty-two whales"
    assert NOTHING in box.get_by_role("status").inner_text()
    tab.goto(f"{site}/book/predictions.html")
    assert "forty-two whales" not in tab.locator("article").inner_text()


def test_the_bench_works_and_says_so(tab, site):
    tab.goto(f"{site}/book/patch-bench.html")
    tab.get_by_label("Where will the news be?").fill("here")
    tab.get_by_role("button", name="Commit and show").click()
    tab.get_by_role("grid").wait_for()
    assert "You predicted: here" in tab.locator(".lab-bench-yours").inner_text()
    assert NOTHING in " ".join(tab.locator(".lab-bench-says, .lab-bench-more").all_inner_texts())


def test_the_game_goes_on_and_says_so(tab, site):
    name = page_with('class="lab-game"')
    tab.goto(f"{site}/{name}")
    game = tab.locator(".lab-game")
    game.scroll_into_view_if_needed()
    first = game.locator(".lab-round:visible")
    for question in first.locator("fieldset").all():
        question.get_by_label("fires", exact=True).check()
    first.get_by_role("button", name="Show which were right").click()
    assert NOTHING in game.get_by_role("status").inner_text()


@pytest.mark.parametrize("name", PAGES)
def test_without_fonts_no_sign_is_a_box_and_formulas_are_read(browser, site, name):
    context = browser.new_context(viewport=PHONE)
    context.route("**/*.woff*", lambda route: route.abort())
    context.route("**/*.[ot]tf*", lambda route: route.abort())
    page = context.new_page()
    page.goto(f"{site}/{name}", wait_until="load")
    assert page.evaluate(BOXES) == []
    assert page.evaluate(FLAT) == []
    context.close()


@pytest.mark.parametrize("name", PAGES)
def test_without_scripts_nothing_is_offered_that_needs_them(browser, site, name):
    context = browser.new_context(viewport=PHONE, java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site}/{name}", wait_until="load")
    assert page.evaluate(DEAD) == []
    assert len(page.locator("main").inner_text()) > 60
    context.close()
