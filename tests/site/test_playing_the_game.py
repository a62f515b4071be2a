"""The detection game in a real browser: by mouse, by keyboard, without scripts, with a storage that keeps nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from served import BROWSER, DESKTOP, PHONE, serving

from labbook.show import cards, game
from labcode import metrics

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
pytestmark = pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on the PATH")

ASSETS = Path(__file__).parents[2] / "book" / "_ext" / "assets"
EVIL = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\">"
FIRES = (True, False, False, True, True, False, True, False, True, False)
SAID = (True, False, True, True, False, False, True, False, False, False)  # right on 7
KEY = "interp-lab:/:game:A model"


def made(latent: int) -> game.Round:
    tokens = (" some", " words", " before", " zebra", EVIL)
    return game.Round(
        game.Questions(
            latent,
            tuple((i, 5) for i in range(10)),
            FIRES,
            tuple(0.4 * one for one in FIRES),
            tuple(i == 2 for i in range(10)),
            SAID,
        ),
        (cards.Snippet(tokens, (0.0, 0.2, 0.0, 1.0, 0.0), 3, 5.0),) * 8,
        ((tokens, 3),) * 10,
        f"the token is one of {EVIL!r}",
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("game")
    for name in ("lab.css", "labdashboards.css", "labgame.css", "lab.js", "labgame.js"):
        shutil.copy(ASSETS / name, folder)
    head = (
        '<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>sound</title>'
        '<meta name="lab-model" content="A model"><meta name="viewport" content="width=device-width">'
        '<link rel="icon" href="data:,">'
        "<style>[hidden] { display: none !important } :root { --pst-color-link: #176de8 }</style>"
        '<link rel="stylesheet" href="lab.css"><link rel="stylesheet" href="labdashboards.css">'
        '<link rel="stylesheet" href="labgame.css">'
        '<script src="lab.js" defer></script><script src="labgame.js" defer></script></head><body class="cell_output">'
    )
    (folder / "index.html").write_text(f"{head}{game.page([made(20), made(7)]).html}</body></html>", encoding="utf8")
    (folder / "log.html").write_text(f'{head}<article><div id="lab-log"></div></article></body></html>')
    with serving(folder) as site:
        yield f"{site}/index.html"


@pytest.fixture
def tab(browser, address):
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda said: page.problems.append(said.text) if said.type == "error" else None)
    page.goto(address)
    yield page
    assert page.problems == []
    assert page.title() == "sound"
    context.close()


def here(tab):
    return tab.locator(".lab-round:visible")


def answer(tab, answers) -> None:
    for i, fires in enumerate(answers):
        here(tab).locator("fieldset").nth(i).get_by_label("fires" if fires else "does not fire", exact=True).check()
    here(tab).get_by_role("button", name="Show which were right").click()


def said(right: int, n: int) -> str:
    share = metrics.share(right, n)
    return f"{right} of {n} ({share.low:.2f} to {share.high:.2f})"


def test_one_latent_after_the_other_is_asked_about_and_counted(tab):
    assert here(tab).count() == 1
    assert here(tab).get_by_text("Latent 20").count() == 1
    assert not tab.locator(".lab-game-answers").is_visible()
    assert tab.get_by_role("button", name="Previous latent").is_disabled()
    answer(tab, (not FIRES[0], *FIRES[1:]))
    verdicts = here(tab).locator(".lab-verdict-line").all_text_contents()
    assert [line.startswith("✓ Right.") for line in verdicts] == [False] + [True] * 9
    assert "near miss" in verdicts[2]
    rows = here(tab).locator(".lab-result tbody tr").all_text_contents()
    assert rows == [f"You{said(9, 10)}", f"Its rule{said(7, 10)}", "Chance5 of 10"]
    assert "Its simple rule" in here(tab).locator(".lab-result").inner_text()
    assert here(tab).locator("input:enabled").count() == 0, "an answer stands"
    tab.get_by_role("button", name="Next latent").click()
    assert tab.evaluate("document.activeElement.textContent") == "Latent 7 (2 of 2)"
    answer(tab, [True] * 10)
    line = tab.get_by_role("status").inner_text()
    assert line == (f"So far, 2 of 2 latents: you {said(14, 20)}, their rules {said(14, 20)}, chance 10 of 20.")


def test_all_of_it_works_by_keyboard(tab):
    here(tab).get_by_role("region").focus()
    tab.keyboard.press("Tab")
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for fires in FIRES:
        if fires:
            tab.keyboard.press("Space")
        else:
            tab.keyboard.press("ArrowDown")
        tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Show which were right"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.className") == "lab-result"
    assert "you had 10 of 10 right" in here(tab).locator(".lab-result").inner_text()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Next latent"
    tab.keyboard.press("Enter")
    assert here(tab).get_attribute("aria-label") == "Latent 7, 2 of 2"


def test_what_is_asked_is_in_words(tab):
    group = here(tab).get_by_role("group").first
    assert group.locator("legend").inner_text() == 'Context 1: does it fire at "zebra"?'
    radio = group.get_by_role("radio").first
    described = tab.locator(f"[id='{radio.get_attribute('aria-describedby')}']").inner_text()
    assert described == f"some words before zebra{EVIL}"
    assert here(tab).get_by_role("region", name="Dashboard of latent 20").count() == 1


def test_open_questions_are_named_and_nothing_is_counted(tab):
    here(tab).get_by_label("fires", exact=True).first.check()
    here(tab).get_by_role("button", name="Show which were right").click()
    assert here(tab).get_by_role("alert").inner_text() == "9 of 10 contexts have no answer yet."
    assert tab.evaluate("document.activeElement.name").endswith("-1")
    assert here(tab).locator(".lab-verdict-line").count() == 0
    assert tab.evaluate("localStorage.length") == 0


def test_the_score_outlasts_the_page_and_can_be_deleted(tab, address):
    answer(tab, FIRES)
    tab.reload()
    assert here(tab).get_attribute("aria-label") == "Latent 7, 2 of 2", "the first one that is open"
    assert f"you {said(10, 10)}" in tab.get_by_role("status").inner_text()
    tab.get_by_role("button", name="Previous latent").click()
    assert here(tab).locator("input:checked").count() == 10
    assert "10 of 10" in here(tab).locator(".lab-result").inner_text()
    tab.goto(address.replace("index", "log"))
    assert tab.locator(".lab-game-log").inner_text() == (
        f"The detection game, 1 latents: you had {said(10, 10)} right, their simple rules {said(7, 10)}, "
        "chance 5 of 10."
    ).replace("1 latents", "one latent")
    tab.goto(address)
    tab.once("dialog", lambda dialog: dialog.dismiss())
    tab.get_by_role("button", name="Delete my score").click()
    assert tab.evaluate("localStorage.length") == 1
    tab.once("dialog", lambda dialog: dialog.accept())
    tab.get_by_role("button", name="Delete my score").click()
    assert tab.evaluate("localStorage.length") == 0
    assert here(tab).locator("input:checked").count() == 0
    assert here(tab).get_by_role("button", name="Show which were right").is_visible()
    assert tab.get_by_role("status").inner_text() == "Deleted."
    tab.goto(address.replace("index", "log"))
    assert tab.locator(".lab-game-log").count() == 0


GONE = {"20-00000000": {"answers": "1" * 10, "right": 10, "rule": 1, "n": 10}}


@pytest.mark.parametrize("stored", ["{", "[]", "null", '{"a": 1, "b": {"answers": {}}, "c": null}', json.dumps(GONE)])
def test_spoilt_and_foreign_scores_count_for_nothing(tab, stored):
    tab.evaluate("([key, value]) => localStorage.setItem(key, value)", [KEY, stored])
    tab.reload()
    assert tab.get_by_role("status").inner_text() == ""
    answer(tab, FIRES)
    assert f"1 of 2 latents: you {said(10, 10)}" in tab.get_by_role("status").inner_text()


@pytest.mark.parametrize("fails", [["getItem", "setItem"], ["setItem"]])
def test_a_browser_that_keeps_nothing_says_so_and_the_game_goes_on(tab, fails):
    tab.add_init_script(
        f"for (const name of {json.dumps(fails)}) "
        "Storage.prototype[name] = () => { throw new DOMException('no', 'QuotaExceededError'); };"
    )
    tab.reload()
    answer(tab, FIRES)
    assert "keeps nothing" in tab.get_by_role("status").inner_text()
    tab.get_by_role("button", name="Next latent").click()
    answer(tab, FIRES)
    assert f"2 of 2 latents: you {said(20, 20)}" in tab.get_by_role("status").inner_text()
    tab.once("dialog", lambda dialog: dialog.accept())
    tab.get_by_role("button", name="Delete my score").click()
    assert here(tab).locator("input:checked").count() == 0


def test_without_scripts_it_can_be_played_by_hand(browser, address):
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(address)
    assert plain.locator(".lab-round:visible").count() == 2
    assert plain.locator(".lab-asked li:visible").count() == 20
    assert plain.locator("button, input").count() == 0
    assert plain.locator("#answers-7 li:visible").count() == 0
    plain.locator("a[href='#answers-7']").click()
    plain.locator("#answers-7 summary").click()
    assert plain.locator("#answers-7 li:visible").count() == 10
    context.close()


@pytest.mark.parametrize("scripts", [True, False])
def test_on_paper_the_answers_stand_at_the_end(browser, address, scripts):
    context = browser.new_context(java_script_enabled=scripts)
    paper = context.new_page()
    paper.goto(address)
    paper.emulate_media(media="print")
    assert paper.locator(".lab-asked > li:visible").count() == 20
    assert paper.locator(".lab-game-answers li:visible").count() == 20
    assert paper.locator("button:visible, input:visible").count() == 0
    context.close()


@pytest.mark.parametrize("width", [PHONE["width"], 320])
def test_it_fits_a_phone(browser, address, width):
    context = browser.new_context(viewport={"width": width, "height": 700})
    small = context.new_page()
    small.goto(address)
    answer(small, FIRES)
    assert small.evaluate("document.scrollingElement.scrollWidth") <= width
    for control in small.locator("button:visible, .lab-choices label:visible").all():
        assert control.bounding_box()["height"] >= 24
    context.close()
