"""The built site in a real Chromium: nothing from elsewhere, nothing broken, readable in both schemes and on a phone.

The tests look at `_build/html`, or at the site that the environment variable SITE names.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field

import pytest
from served import BROWSER, DESKTOP, PHONE, SCROLL_THROUGH, SITE, page_with, pages

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")

pytestmark = [
    pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on the PATH"),
    pytest.mark.skipif(not (SITE / "book" / "index.html").is_file(), reason=f"no built site in {SITE}: run make book"),
]
SCHEMES = ("light", "dark")
FIGURE = 'class="lab-figure"'
PAGES = pages() or ["book/index.html"]


@dataclass
class Visit:
    """An open page and what it asked for and complained about."""

    page: sync_api.Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture
def visit(browser, site):
    contexts = []

    def open_page(name: str, scheme: str = "light", viewport: dict[str, int] = DESKTOP) -> Visit:
        contexts.append(browser.new_context(color_scheme=scheme, viewport=viewport))
        seen = Visit(contexts[-1].new_page())
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
        seen.page.on("console", lambda said: seen.errors.append(said.text) if said.type == "error" else None)
        seen.page.goto(f"{site}/{name}", wait_until="load")
        seen.page.evaluate(SCROLL_THROUGH)
        return seen

    yield open_page
    for context in contexts:
        context.close()


def pictures(figure: sync_api.Locator) -> list[dict[str, float]]:
    """Where the pictures of a figure are; those that are not shown are nowhere."""
    return [box for picture in figure.locator(".lab-still").all() if (box := picture.bounding_box())]


OTHER = {"light": "dark", "dark": "light"}
STRAY = """() => [...document.querySelectorAll("article *")].filter((node) => {
  if (!node.checkVisibility() || node.getBoundingClientRect().right <= innerWidth + 1) return false;
  for (let box = node; box && box.tagName !== "ARTICLE"; box = box.parentElement)
    if (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(box).overflowX)) return false;
  return !node.closest("svg, math");
}).map((node) => node.outerHTML.slice(0, 120))"""


# Each page begins in one scheme, every second one in dark, and is then switched to the other: drawing is the slow part.
@pytest.mark.parametrize(("name", "scheme"), [(name, SCHEMES[at % 2]) for at, name in enumerate(PAGES)])
def test_a_page_is_whole_in_both_schemes_and_fits_a_phone(visit, site, name, scheme):
    seen = visit(name, scheme)
    page = seen.page
    assert page.locator("html").get_attribute("data-theme") == scheme

    for figure in page.locator("div.lab-figure").all():
        assert figure.get_attribute("aria-label").strip()
        if figure.is_visible():  # one in a closed box waits
            assert [box for box in pictures(figure) if box["width"] > 100 and box["height"] > 100], "one is shown"
    ids = page.eval_on_selector_all("[id]", "nodes => nodes.map(node => node.id)")
    assert sorted({name for name in ids if ids.count(name) > 1}) == []
    empty = "nodes => nodes.filter(n => n.checkVisibility() && !n.getBoundingClientRect().width).map(n => n.outerHTML)"
    assert page.locator("article math").evaluate_all(empty) == []
    assert page.locator("article math:not([alttext])").count() == 0
    assert page.locator("img:not([alt]), img[alt='']").count() == 0

    page.emulate_media(color_scheme=OTHER[scheme])
    page.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=OTHER[scheme])
    drawn = "nodes => nodes.filter(node => node.checkVisibility()).map(node => getComputedStyle(node).fill)"
    ink = page.locator(".lab-still text").evaluate_all(drawn)
    assert [color for color in ink if (luminance(color) > 0.5) != (OTHER[scheme] == "dark")] == []

    for width in (PHONE["width"], 320):
        page.set_viewport_size({**PHONE, "width": width})
        fits = "document.scrollingElement.scrollWidth <= innerWidth"  # figures follow the width
        with contextlib.suppress(sync_api.TimeoutError):
            page.wait_for_function(fits, timeout=5000)
        assert page.evaluate("innerWidth") == width
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        # Nothing may stick out of the article unless a box around it scrolls.
        assert page.evaluate(STRAY) == []
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith((site, "data:", "blob:"))] == []


CHAPTERS = [name for name in PAGES if re.search(r"/\d\d-", name)]
DATA = """nodes => nodes.filter((node) => node.checkVisibility() && node.getBoundingClientRect().height > 60)
  .map((node) => node.getBoundingClientRect().top + scrollY)"""


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_first_picture_of_data_comes_within_two_screens(visit, name):
    """A drawing of the idea does not count: arcs, bars, lines, a map or a circuit that was measured, on a desktop."""
    page = visit(name, viewport=DESKTOP).page
    pictures = "article :is(.lab-still, .lab-attentions svg, .lab-plane svg, .lab-sketch svg)"
    tops = page.locator(pictures).evaluate_all(DATA)
    assert min(tops) < 2 * DESKTOP["height"]


INK = "node => getComputedStyle(node).fill"


def luminance(color: str) -> float:
    red, green, blue = (int(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(","))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_mark_of_a_picture_says_what_it_is(visit):
    page = visit(page_with('"type":"heatmap"')).page
    cells = page.locator(".lab-figure:has(linearGradient) .lab-wide rect title").all_text_contents()
    assert len(cells) > 50
    assert all(re.search(r"\d", text) for text in cells)


def explored(page: sync_api.Page, selector: str = "div.lab-figure") -> sync_api.Locator:
    figure = page.locator(selector).first
    figure.get_by_role("button", name="Explore").press("Enter")
    figure.locator(".main-svg").first.wait_for(timeout=20_000)
    return figure


@pytest.mark.parametrize("name", PAGES)
def test_a_negative_number_has_a_true_minus(name):
    """In the text, in tables and in what a mark of a picture says; code and the corpus keep their hyphens."""
    if "/api/" in name:
        pytest.skip("what Python reads")
    article = (SITE / name).read_text(encoding="utf8").partition("<article")[2].partition("</article>")[0]
    corpus = r'<table class="lab-contexts">.*?</table>|<span class="lab-word">.*?</span>'
    for part in (r"<(script|style|pre|code|template)\b.*?</\1>", corpus):
        article = re.sub(part, "", article, flags=re.DOTALL)
    told = re.sub(r"<[^>]+>", "\n", article)
    assert re.findall(r".*(?<![\w.−–/])-\.?\d.*", told) == []


def test_plotly_is_fetched_when_a_reader_asks_and_follows_the_theme(visit):
    seen = visit(page_with('"type":"heatmap"'))
    page = seen.page
    assert not [url for url in seen.requests if "plotly.min" in url]
    figure = explored(page, "div.lab-figure:has(linearGradient)")
    assert len([url for url in seen.requests if "plotly.min" in url]) == 1
    assert pictures(figure) == []
    tick = figure.locator(".xtick text").first
    assert luminance(tick.evaluate(INK)) < 0.3
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.wait_for_function(
        "tick => { const c = getComputedStyle(tick).fill.match(/\\d+/g); return c[0] > 150 }", arg=tick.element_handle()
    )
    area = figure.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)
    label = figure.locator(".hoverlayer .hovertext text").first
    label.wait_for(timeout=5000)
    assert label.text_content().strip()
    assert seen.errors == []


def test_no_control_of_a_figure_sends_it_anywhere(visit):
    page = visit(page_with(FIGURE)).page
    figure = explored(page)
    figure.hover()
    buttons = figure.locator(".modebar-btn").evaluate_all("nodes => nodes.map(n => n.getAttribute('data-title'))")
    assert buttons
    assert [text for text in buttons if re.search("share|cloud|upload|send|edit", text, re.IGNORECASE)] == []
    assert figure.locator(".js-plotly-plot").first.evaluate("node => node._context.plotlyServerURL") == ""


@pytest.mark.parametrize("name", PAGES)
def test_no_control_of_a_page_sends_anything_to_another_host(name):
    text = (SITE / name).read_text(encoding="utf8")
    actions = re.findall(r"<form[^>]*action=\"([^\"]*)\"|formaction=\"([^\"]*)\"|<a[^>]* ping=\"([^\"]*)\"", text)
    assert [one for found in actions for one in found if "//" in one] == []
    assert "<iframe" not in text
    assert 'method="post"' not in text.lower()


def test_a_picture_prints_in_dark_ink_also_where_it_was_explored(visit):
    page = visit(page_with(FIGURE), "dark").page
    figure = explored(page)
    page.emulate_media(media="print")
    assert page.locator(".lab-figure .main-svg:visible").count() == 0
    assert [box for box in pictures(figure) if box["width"] > 100]
    assert luminance(figure.locator(".lab-wide text").first.evaluate(INK)) < 0.3


PAPER = """() => [...document.querySelectorAll(".bd-article *")].flatMap((node) => {
  const style = getComputedStyle(node), box = node.getBoundingClientRect();
  if (box.width < 2 || style.visibility === "hidden" || node.closest("svg")) return [];
  const name = `${node.tagName} ${node.className}`;
  const dead = /^(BUTTON|INPUT|TEXTAREA|SELECT)$/.test(node.tagName) && !node.closest("th");
  return [...(/auto|scroll/.test(style.overflow) ? [`scrolls: ${name}`] : []),
    ...(box.right > innerWidth + 1 ? [`is cut: ${name}`] : []), ...(dead ? [`does nothing: ${name}`] : [])];
})"""


@pytest.mark.parametrize("name", PAGES)
def test_on_paper_nothing_scrolls_is_cut_or_waits_to_be_pressed(visit, name):
    """A box that scrolls is not broken between pages: it moved as a whole, and left its empty frame behind."""
    page = visit(name, "dark").page
    page.set_viewport_size({"width": 703, "height": 1000})  # the width of A4 between margins of 12 mm
    page.emulate_media(media="print")
    assert page.evaluate(PAPER) == []


def test_the_list_of_latents_takes_one_sheet_and_not_a_dozen(visit):
    page = visit(page_with('class="lab-latents'), "light").page
    page.emulate_media(media="print")
    assert 0 < page.locator(".lab-latents > .lab-index tbody tr:visible").count() <= 20


def test_an_exercise_has_its_number_and_folds_its_hint_and_its_solution(visit):
    page = visit(page_with('id="ex-01-1"')).page
    exercise = page.locator("#ex-01-1")
    assert exercise.locator(".admonition-title").first.inner_text().startswith("Exercise 01.1")
    solution = page.locator("#ex-01-1 + .solution")
    for folded, inside in ((exercise.locator(".dropdown"), "p:not(.admonition-title)"), (solution, ".lab-check")):
        assert not folded.locator(inside).first.is_visible()
        folded.locator("button.toggle-button").first.press("Enter")
        folded.locator(inside).first.wait_for(state="visible")
    assert solution.locator(".lab-check").inner_text().startswith("✓ 01.1 is right.")


def test_without_scripts_a_figure_is_there(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site}/{page_with(FIGURE)}")
    assert [box for box in pictures(page.locator("div.lab-figure").first) if box["width"] > 100]
    context.close()


@pytest.mark.parametrize(
    ("words", "first"),
    [("logit lens", "03-residual-stream"), ("path patching", "07-path-patching"), ("KL", "11-the-circuit")],
)
def test_the_search_ranks_first_who_introduces_a_word(visit, words, first):
    page = visit(f"search.html?q={words.replace(' ', '+')}").page
    page.locator("#search-results ul.search li a").first.wait_for(timeout=10_000)
    page.wait_for_timeout(300)
    found = page.locator("#search-results ul.search li a").evaluate_all("nodes => nodes.map(node => node.href)")
    top = next(url for url in found if "glossary" not in url)
    assert first in top, found[:4]


def test_a_hit_in_the_glossary_shows_what_the_word_means(visit):
    page = visit("search.html?q=logit+lens").page
    hit = page.locator("#search-results li", has=page.locator("a[href*='glossary.html#term-']")).first
    hit.locator("p.context").wait_for(timeout=10_000)
    assert len(hit.locator("p.context").inner_text()) > 60


@pytest.mark.parametrize("words", ["induction", "induction+head", "superposition"])
def test_the_search_lists_no_chapter_twice_and_shows_its_text(visit, words):
    page = visit(f"search.html?q={words}").page
    hits = page.locator("#search-results ul.search li")
    hits.first.locator("p.context").wait_for(timeout=10_000)
    page.wait_for_timeout(1000)
    found = hits.locator("a").evaluate_all("nodes => nodes.map(node => node.pathname)")
    chapters = [one for one in found if re.search(r"/\d\d-", one)]
    assert chapters
    assert len(chapters) == len(set(chapters))
    told = " ".join(hits.locator("p.context").all_inner_texts())
    assert not re.search(r"Contents|solved[A-Z]", told)


def test_what_is_typed_stands_beside_the_sign_of_the_search_field(visit):
    page = visit("search.html?q=induction").page
    form = page.locator(".bd-search-container form.bd-search")
    sign, field = (form.locator(one).bounding_box() for one in (".fa-magnifying-glass", "input"))
    inside = form.locator("input").evaluate("node => parseFloat(getComputedStyle(node).paddingLeft)")
    assert sign["x"] + sign["width"] <= field["x"] + inside


def test_a_search_without_a_hit_gives_advice(visit):
    page = visit("search.html?q=zzyzxq").page
    page.locator(".lab-advice").wait_for(timeout=10_000)


def test_the_root_is_the_start_page_and_leads_into_the_book(visit, site):
    seen = visit("index.html")
    page = seen.page
    assert page.locator("article h1").first.inner_text().startswith("Interp Lab")
    assert page.locator("article .lab-attentions figure, article figure.lab-attention").count() > 0
    page.get_by_role("link", name="Start with chapter 1").click()
    page.wait_for_url("**/book/01-behaviour.html")
    assert seen.errors == []


def test_every_icon_of_a_page_is_drawn():
    drawn = set(re.findall(r"\.(fa-[a-z-]+)(?=[,\s{])", (SITE / "_static" / "labicons.css").read_text()))
    for name in PAGES:
        page = (SITE / name).read_text("utf8")
        used = re.findall(r'<(?:i|span) class="[^"]*?(fa-(?!solid|regular|brands|lg)[a-z-]+)', page)
        assert set(used) <= drawn, name
