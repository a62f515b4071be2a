"""The prediction log in a real Chromium, as a reader uses it: type, commit, compare, list, export, delete.

The tests look at `_build/html`, or at the site that the environment variable SITE names.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from served import BROWSER, PHONE, SITE, page_with, pages

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")

LOG = "book/predictions.html"
TWO_BOXES_AND_A_CLAIM = r'\A(?=.*class="lab-(?:claim|said)")(?=.*id="predict-.*id="predict-)'
pytestmark = [
    pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on the PATH"),
    pytest.mark.skipif(not (SITE / LOG).is_file(), reason=f"no built site in {SITE}: run make book"),
]
HOSTILE = '<img src=x onerror="window.bad = 1"> & *two*\nlines'


@pytest.fixture
def context(browser, site):
    made = browser.new_context(base_url=f"{site}/", reduced_motion="reduce")
    yield made
    made.close()


@pytest.fixture
def tab(context):
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda said: page.problems.append(said.text) if said.type == "error" else None)
    yield page
    assert page.problems == []


def commit(tab, box, words: str) -> None:
    box.get_by_label("Your prediction", exact=True).fill(words)
    box.get_by_role("button", name="Commit").click()


def test_an_answer_is_committed_by_keyboard_and_what_came_is_shown_beside_it(tab):
    tab.goto(page_with(TWO_BOXES_AND_A_CLAIM))
    box = tab.locator(".admonition.predict").first
    assert box.locator(".lab-came").count() == 0
    box.get_by_label("Your prediction", exact=True).focus()
    tab.keyboard.type("One half, 7 of 10.")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert box.locator("blockquote").inner_text() == "One half, 7 of 10."
    assert box.get_by_role("status").inner_text() == "Committed."
    # The focus moves to the result, not to the top of the page.
    assert tab.evaluate("document.activeElement.textContent") == "What the run gave"
    finding = box.locator("ul a").first
    target = finding.get_attribute("href")
    there = tab.locator(target)
    assert there.count() == 1
    reminder = tab.locator(".lab-reminder").first
    assert "One half, 7 of 10." in reminder.inner_text()
    order = "([a, b]) => a.compareDocumentPosition(b) & Node.DOCUMENT_POSITION_FOLLOWING"
    assert tab.evaluate(order, [reminder.element_handle(), there.element_handle()])
    assert tab.evaluate(order, [box.element_handle(), reminder.element_handle()])


EVERY_BOX = """() => [...document.querySelectorAll(".admonition.predict")].map((box) => {
  box.querySelector("textarea").value = "three";
  box.querySelector("form").requestSubmit();
  return [...box.querySelectorAll("ul a")].map((found) => found.textContent);
})"""


@pytest.mark.parametrize("name", [name for name in pages() if 'id="predict-' in (SITE / name).read_text("utf8")])
def test_what_came_is_told_in_few_words_for_every_box(tab, name):
    tab.goto(name)
    found = tab.evaluate(EVERY_BOX)
    assert [one for came in found for one in came if not 0 < len(one) <= 500] == []
    # What a game gives is the reader's own score.
    assert sum(not came for came in found) <= tab.locator(".lab-game").count()


def test_the_answer_and_the_mark_are_there_after_a_reload(tab):
    tab.goto(page_with(TWO_BOXES_AND_A_CLAIM))
    box = tab.locator(".admonition.predict").first
    commit(tab, box, HOSTILE)
    box.get_by_label("It came otherwise").check()
    note = box.get_by_label("What the run gave, and what would have to be true for it to fit?")
    note.fill("twice as much")
    note.blur()
    tab.reload()
    box = tab.locator(".admonition.predict").first
    assert box.locator("blockquote").inner_text() == HOSTILE
    assert box.get_by_label("It came otherwise").is_checked()
    assert box.get_by_label("What the run gave, and what would").input_value() == "twice as much"
    assert tab.evaluate("window.bad") is None
    assert tab.locator(".lab-prediction img, .lab-reminder img").count() == 0
    # The other box is still open, and its answer is its own.
    assert tab.locator(".admonition.predict").nth(1).get_by_role("button", name="Commit").count() == 1
    box.get_by_role("button", name="Withdraw").click()
    assert tab.locator(".lab-reminder").count() == 0
    tab.reload()
    assert tab.locator(".admonition.predict").first.get_by_role("button", name="Commit").count() == 1


def test_blanks_are_not_an_answer(tab):
    tab.goto(page_with(TWO_BOXES_AND_A_CLAIM))
    box = tab.locator(".admonition.predict").first
    commit(tab, box, "  \n ")
    assert "Write something first" in box.get_by_role("status").inner_text()
    assert box.locator("blockquote").count() == 0
    assert tab.evaluate("document.activeElement.tagName") == "TEXTAREA"


def test_the_list_counts_exports_and_deletes(tab):
    chapter = page_with(TWO_BOXES_AND_A_CLAIM)
    tab.goto(chapter)
    for at, (words, mark) in enumerate([(HOSTILE, "It came otherwise"), ("0.3", "It came as I said")]):
        box = tab.locator(".admonition.predict").nth(at)
        commit(tab, box, words)
        box.get_by_label(mark).check()
    claim = tab.locator(".admonition.predict").first.locator("ul a").first.inner_text()

    tab.goto(LOG)
    status = tab.get_by_role("status")
    boxes = tab.locator(".lab-log-entry").count()
    assert status.inner_text() == (
        f"2 committed, of {boxes} boxes: 1 as you said, 0 partly, 1 otherwise, 0 not marked yet."
    )
    answers = tab.locator(".lab-log-answer")
    assert answers.count() == 2
    assert answers.first.locator("blockquote").inner_text() == HOSTILE
    assert answers.first.locator("li").first.inner_text() == claim
    assert tab.evaluate("window.bad") is None

    with tab.expect_download() as awaited:
        tab.get_by_role("button", name="Export as Markdown").click()
    text = Path(awaited.value.path()).read_text(encoding="utf8")
    assert awaited.value.suggested_filename == "interp-lab-predictions.md"
    assert "# My predictions" in text
    assert "> " + HOSTILE.splitlines()[0] in text
    assert "> lines" in text
    assert f"* {claim}" in text
    assert "It came otherwise." in text

    tab.once("dialog", lambda dialog: dialog.dismiss())
    tab.get_by_role("button", name="Delete all").click()
    assert answers.count() == 2, "said no"
    tab.once("dialog", lambda dialog: dialog.accept())
    tab.get_by_role("button", name="Delete all").click()
    assert answers.count() == 0
    assert tab.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('interp-lab'))") == []
    assert tab.get_by_role("button", name="Export as Markdown").is_disabled()
    tab.goto(chapter)
    assert tab.locator(".admonition.predict blockquote").count() == 0


@pytest.mark.parametrize("stored", ["{", "[]", "null", '{"a": 1, "b": {"text": {}}, "c": null}'])
def test_spoilt_storage_breaks_nothing(tab, stored):
    tab.goto(page_with(TWO_BOXES_AND_A_CLAIM))
    model = tab.locator('meta[name="lab-model"]').get_attribute("content")
    key = f"interp-lab:/:predictions:{model}"
    tab.evaluate("([key, value]) => localStorage.setItem(key, value)", [key, stored])
    tab.reload()
    box = tab.locator(".admonition.predict").first
    commit(tab, box, "three")
    tab.goto(LOG)
    assert tab.locator(".lab-log-answer blockquote").inner_text() == "three"


def test_an_answer_to_a_box_that_is_gone_is_still_listed(tab):
    tab.goto(LOG)
    model = tab.locator('meta[name="lab-model"]').get_attribute("content")
    entry = {
        "book/99-gone#predict-x": {"text": "old", "question": "How many?", "title": "Gone", "mark": "hit", "came": []}
    }
    tab.evaluate(
        "([key, value]) => localStorage.setItem(key, value)", [f"interp-lab:/:predictions:{model}", json.dumps(entry)]
    )
    tab.reload()
    assert tab.get_by_role("heading", name="From boxes that this book no longer has").count() == 1
    assert "old" in tab.locator("article").inner_text()


def test_a_browser_that_keeps_nothing_says_so(tab):
    tab.add_init_script("""for (const name of ["getItem", "setItem"]) {
      const real = Storage.prototype[name];
      Storage.prototype[name] = function (key, ...rest) { // the theme's own keys are not the matter here
        if (key.startsWith("interp-lab")) throw new DOMException("no", "SecurityError");
        return real.call(this, key, ...rest);
      };
    }""")
    tab.goto(page_with(TWO_BOXES_AND_A_CLAIM))
    box = tab.locator(".admonition.predict").first
    commit(tab, box, "nine")
    assert box.locator("blockquote").inner_text() == "nine"
    assert "keeps nothing" in box.get_by_role("status").inner_text()


def test_without_scripts_there_is_no_control_and_every_question_can_be_read(browser, site):
    made = browser.new_context(java_script_enabled=False)
    page = made.new_page()
    page.goto(f"{site}/{page_with(TWO_BOXES_AND_A_CLAIM)}")
    box = page.locator(".admonition.predict").first
    assert len(box.inner_text()) > 40
    assert box.locator("button, textarea, input").count() == 0
    page.goto(f"{site}/{LOG}")
    assert page.locator("article button, article textarea").count() == 0
    links = page.locator(".lab-log-entry a")
    assert links.count() == page.locator(".lab-log-entry").count() > 0
    address = links.first.get_attribute("href")
    page.goto(f"{site}/book/{address}")
    assert page.locator("#" + address.partition("#")[2]).count() == 1
    made.close()


def test_every_box_of_the_book_has_its_own_name_and_is_listed(browser, site):
    named = []
    for name in pages():
        text = (SITE / name).read_text(encoding="utf8")
        inside = [part.split('"')[0] for part in text.split('id="predict-')[1:]]
        assert len(inside) == len(set(inside)), name
        named += [f"{Path(name).stem}#predict-{one}" for one in inside]
    log = (SITE / LOG).read_text(encoding="utf8")
    for one in named:
        page, _, box = one.partition("#")
        assert f'href="{page}.html#{box}"' in log


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_controls_fit_a_phone_and_can_be_read(browser, site, scheme):
    made = browser.new_context(color_scheme=scheme, viewport=PHONE)
    page = made.new_page()
    page.goto(f"{site}/{page_with(TWO_BOXES_AND_A_CLAIM)}")
    box = page.locator(".admonition.predict").first
    commit(page, box, "unbroken" * 30)
    for name in (page_with(TWO_BOXES_AND_A_CLAIM), LOG):
        page.goto(f"{site}/{name}")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"]
        for control in page.locator(".lab-prediction :is(button, textarea), .lab-log-buttons button").all():
            area = control.bounding_box()
            assert area["x"] >= 0
            assert area["x"] + area["width"] <= PHONE["width"]
            assert area["height"] >= 24
            ink = control.evaluate("node => getComputedStyle(node).color")
            assert control.is_disabled() or contrast(ink, control.evaluate(GROUND)) >= 4.5
    made.close()


GROUND = """node => {
  for (let box = node; box; box = box.parentElement) {
    const color = getComputedStyle(box).backgroundColor;
    if (!/^rgba\\(.*, 0\\)$|transparent/.test(color)) return color;
  }
  return "rgb(255, 255, 255)";
}"""


def contrast(one: str, other: str) -> float:
    """The contrast of two CSS colours by the rule of WCAG."""

    def luminance(color: str) -> float:
        parts = [float(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
