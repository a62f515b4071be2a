"""The patch bench in a real browser: by mouse, by keyboard, without scripts, with a storage that keeps nothing."""

from __future__ import annotations

import json
import shutil

import pytest
from served import BROWSER, DESKTOP, PHONE, serving

from labbook.show import bench

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
pytestmark = pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on the PATH")

PREDICTIONS = "interp-lab:/:predictions:A model"
BROKEN = {"title": "<script>document.title='broken'</script>"}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    for name in ("lab.css", "labbench.css", "lab.js", "labbench.js", "predictions.js"):
        shutil.copy(bench.ASSETS / name, folder / name)
    (folder / "_static" / "bench").mkdir(parents=True)
    records = bench.load()
    for found in records:
        (folder / "_static" / "bench" / f"{found['name']}.js").write_text(bench.script_of(found), encoding="utf8")
    head = (
        '<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>sound</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        '<meta name="lab-model" content="A model"><meta name="lab-page" content="book/patch-bench">'
        '<link rel="stylesheet" href="lab.css"><link rel="stylesheet" href="labbench.css">'
        '<script src="lab.js" defer></script>'
    )
    script = '<script src="labbench.js" defer></script></head><body>'
    page = f"{head}{script}{bench.to_html(records, subject='Another model')}</body></html>"
    (folder / "index.html").write_text(page, encoding="utf8")
    log = f'{head}<script src="predictions.js" defer></script></head><body><article><div id="lab-log"></div></article>'
    (folder / "log.html").write_text(f"{log}</body></html>", encoding="utf8")
    alone = bench.standalone("</title><b>Mine", "Which </p>?", [{**records[0], **BROKEN}])
    (folder / "alone.html").write_text(alone, encoding="utf8")
    with serving(folder) as site:
        yield f"{site}/index.html"


@pytest.fixture
def tab(browser, address):
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(address)
    page.get_by_role("button", name="Commit and show").wait_for()
    yield page
    assert page.problems == []
    assert page.title() == "sound"
    context.close()


def show(tab) -> None:
    tab.get_by_role("button", name="Show without asking").click()
    tab.get_by_role("grid").wait_for()


def choose(tab, direction: str = "denoising", kind: str = "resid_pre", pair: str = "swap-mary") -> None:
    tab.get_by_label("Pair of sentences").select_option(pair)
    tab.get_by_role("radio", name=bench.DIRECTIONS[direction]).check()
    tab.get_by_role("radio", name=bench.KINDS[kind]).check()


def says(tab) -> str:
    return " ".join(tab.locator(".lab-bench-says, .lab-bench-more").all_inner_texts()).strip()


def test_a_cell_gives_the_recorded_run(tab):
    assert tab.get_by_role("grid").count() == 0, "predict first"
    show(tab)
    choose(tab, kind="z")
    tab.locator("[data-cell='23.3']").click()
    found = bench.load(["swap-mary"])[0]
    cell = next(c for c in bench.cells(found, "denoising", "z") if (c.layer, c.column) == (23, 3))
    text = says(tab)
    assert text.startswith("Head 23.3, clean into corrupted: the likeliest next word is “ Mary”")
    assert f"{cell.value:+.2f}".replace("-", "−") in text
    assert f"{100 * cell.way:.0f} % of the way" in text
    assert "Mission done: One head" in text
    tables = tab.locator(".lab-bench-tops table")
    assert tables.locator("caption").all_text_contents() == ["Corrupted run", "Patched", "Clean run"]
    assert [tables.nth(i).locator("th").first.inner_text() for i in range(3)] == ["“ John”", "“ Mary”", "“ Mary”"]
    assert tab.locator(".lab-cone").count() == 6 * 9, "the layers above"
    choose(tab, kind="z", direction="noising")
    tab.locator("[data-cell='29.0']").click()
    assert "It is the last layer" in says(tab)


def drag(tab, cell: str, onto: str, drop: bool = True) -> None:
    """By mouse from the middle of a cell to the middle of something else."""
    start, goal = tab.locator(f"[data-cell='{cell}']"), tab.locator(onto)
    start.scroll_into_view_if_needed()
    box = start.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 30, box["y"] - 30, steps=3)
    area = goal.bounding_box()  # where it is now: it comes along when it was out of sight
    tab.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2, steps=4)
    if drop:
        tab.mouse.up()


def test_a_cell_is_dragged_into_the_other_run(tab):
    show(tab)
    choose(tab, kind="z")
    target = tab.locator(".lab-bench-target")
    assert "Into the corrupted run" in target.inner_text()
    assert "nothing of the other run" in target.inner_text()
    drag(tab, "23.3", ".lab-bench-target", drop=False)
    assert tab.locator(".lab-bench-held").inner_text() == "head 23.3"
    assert "lab-over" in target.get_attribute("class")
    assert "Head 23.3" not in says(tab), "it is still in the hand"
    tab.mouse.up()
    tab.get_by_text("Head 23.3, clean into corrupted").wait_for()
    assert target.locator(".lab-bench-chip").inner_text() == "head 23.3"
    assert tab.locator("[data-cell='23.3']").get_attribute("aria-selected") == "true"
    assert tab.locator(".lab-bench-held").count() == 0


def test_a_drag_that_ends_elsewhere_changes_nothing(tab):
    show(tab)
    tab.locator("[data-cell='5.10']").click()
    before = says(tab)
    drag(tab, "20.14", ".lab-bench-legend")
    tab.wait_for_timeout(50)
    assert says(tab) == before
    drag(tab, "20.14", ".lab-bench-target", drop=False)
    tab.keyboard.press("Escape")
    tab.mouse.up()
    tab.wait_for_timeout(50)
    assert says(tab) == before
    tab.locator("[data-cell='20.14']").click()
    assert "layer 20" in says(tab), "a click after it is a click"


def test_by_touch_a_held_cell_is_dragged_and_a_quick_touch_scrolls(browser, address):
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(address)
    show(page)
    send = context.new_cdp_session(page).send

    def touch(kind: str, *points: tuple[float, float]) -> None:
        send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": [{"x": x, "y": y} for x, y in points]})

    def held(wait: int) -> None:
        cell = page.locator("[data-cell='12.12']")
        cell.evaluate("node => node.scrollIntoView({ block: 'center' })")
        box = cell.bounding_box()
        x, y = box["x"] + 8, box["y"] + 8
        touch("Start", (x, y))
        page.wait_for_timeout(wait)
        touch("Move", (x, y - 20))
        page.wait_for_timeout(50)
        area = page.locator(".lab-bench-target").bounding_box()
        for share in (0.5, 1):
            touch("Move", (x, y - 20 + share * (area["y"] + 15 - y + 20)))
        page.wait_for_timeout(50)
        touch("End")
        page.wait_for_timeout(100)

    before = page.evaluate("scrollY")
    held(0)
    assert "layer 12" not in says(page)
    held(400)
    assert "The stream before layer 12" in says(page)
    assert page.evaluate("scrollY") != before
    context.close()


def test_the_cone_is_what_lies_above_and_from_the_token_on(tab):
    show(tab)
    tab.locator("[data-cell='20.12']").click()
    assert tab.locator(".lab-cone").count() == 9 * 3
    tab.locator("[data-cell='20.2']").click()
    assert "so nothing changes" in says(tab)
    assert tab.locator(".lab-cone").count() == 0


def test_the_average_stands_beside_the_pair(tab):
    show(tab)
    tab.locator("[data-cell='10.10']").click()
    found = bench.load(["swap-mary"])[0]
    if "average" in found:
        assert f"over {found['average']['prompts']} sentences like this one" in says(tab)
    choose(tab, pair="capital-france")
    tab.locator("[data-cell='10.4']").click()
    assert "On average" not in says(tab)
    assert "“ Paris”" in says(tab)


def test_all_of_it_works_by_keyboard(tab):
    tab.get_by_label("Where will the news be?").focus()
    tab.keyboard.type("At the second name, up to layer 20")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.get_by_role("grid").wait_for()
    at = "document.activeElement.dataset.cell"
    assert tab.evaluate(at) == "0.10", "the first cell that can matter"
    tab.keyboard.press("ArrowUp")
    assert tab.evaluate(at) == "1.10"
    assert "The stream before layer 1 at “John”, token 10" in says(tab)
    for key, cell in [
        ("PageUp", "6.10"),
        ("ArrowRight", "6.11"),
        ("End", "6.14"),
        ("ArrowDown", "5.14"),
        ("Home", "5.1"),
    ]:
        tab.keyboard.press(key)
        assert tab.evaluate(at) == cell
    assert tab.locator("[role=grid] [tabindex='0']").count() == 1
    tab.keyboard.press("Tab")
    assert not tab.evaluate(f"{at} ?? ''")
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert "You predicted: At the second name" in tab.locator(".lab-bench-yours").inner_text()


def test_a_prediction_is_kept_with_the_others(tab, address):
    tab.get_by_role("button", name="Commit and show").click()
    assert says(tab) == "Write something first, or show the cells without."
    tab.get_by_label("Where will the news be?").fill("<b>everywhere</b>")
    tab.get_by_role("button", name="Commit and show").click()
    tab.get_by_label("Partly").check()
    kept = json.loads(tab.evaluate(f"localStorage.getItem('{PREDICTIONS}')"))
    [(key, entry)] = kept.items()
    assert key == "book/patch-bench#bench-swap-mary-denoising-resid_pre"
    assert entry["mark"] == "partly"
    assert len(entry["came"]) == 3
    tab.reload()
    assert "You predicted: <b>everywhere</b>" in tab.locator(".lab-bench-yours").inner_text()
    assert tab.get_by_label("Partly").is_checked()
    tab.goto(address.replace("index", "log"))
    assert "<b>everywhere</b>" in tab.locator("body").inner_text()
    assert tab.get_by_role("heading", name="From the patch bench").count() == 1
    assert tab.get_by_role("heading", name="From boxes that this book no longer has").count() == 0


def test_every_mission_can_be_done_and_stays_done(tab):
    show(tab)
    for mission in bench.MISSIONS:
        tab.get_by_role("button", name=f"Set up the bench for: {mission.text}").click()
        [layer, column], *_ = mission.solutions(bench.load([mission.pair])[0])
        tab.locator(f"[data-cell='{layer}.{column}']").click()
        assert f"Mission done: {mission.found}" in says(tab)
    n = len(bench.MISSIONS)
    assert f"{n} of {n} done" in tab.locator(".lab-bench-missions").inner_text()
    tab.reload()
    assert tab.locator(".lab-bench-done").count() == n


def test_numbers_that_do_not_come_are_said(tab):
    tab.route("**/three-names.js", lambda route: route.abort())
    tab.get_by_label("Pair of sentences").select_option("three-names")
    tab.get_by_text("could not be loaded").wait_for()
    tab.unroute("**/three-names.js")
    tab.get_by_label("Pair of sentences").select_option("first-name")
    show(tab)


@pytest.mark.parametrize("fails", [["getItem", "setItem"], ["setItem"]])
def test_a_browser_that_keeps_nothing_says_so(tab, fails):
    tab.add_init_script(
        f"for (const name of {json.dumps(fails)}) "
        "Storage.prototype[name] = () => { throw new DOMException('no', 'QuotaExceededError'); };"
    )
    tab.reload()
    tab.get_by_label("Where will the news be?").fill("here")
    tab.get_by_role("button", name="Commit and show").click()
    assert "keeps nothing" in says(tab)
    assert "You predicted: here" in tab.locator(".lab-bench-yours").inner_text()


@pytest.mark.parametrize("stored", ["{", "[]", "null", '{"book/patch-bench#bench-swap-mary-denoising-resid_pre": 3}'])
def test_spoilt_storage_counts_for_nothing(tab, stored):
    tab.evaluate("([key, value]) => localStorage.setItem(key, value)", [PREDICTIONS, stored])
    tab.evaluate("value => localStorage.setItem('interp-lab:/:bench:A model', value)", stored)
    tab.reload()
    show(tab)
    assert f"0 of {len(bench.MISSIONS)} done" in tab.locator(".lab-bench-missions").inner_text()


def test_without_scripts_there_are_tables(browser, address):
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(address)
    assert plain.locator(".lab-bench-tables table:visible").count() == len(bench.NAMES)
    assert plain.locator("button, input, select").count() == 0
    assert "This book was built with Another model" in plain.locator(".lab-bench-other").inner_text()
    context.close()


@pytest.mark.parametrize("width", [PHONE["width"], 320])
def test_it_fits_a_phone(browser, address, width):
    context = browser.new_context(viewport={"width": width, "height": 700})
    small = context.new_page()
    small.goto(address)
    show(small)
    small.locator("[data-cell='24.14']").click()
    assert small.evaluate("document.scrollingElement.scrollWidth") <= width
    for control in small.locator("button:visible, .lab-bench fieldset label:visible, select:visible").all()[:60]:
        box = control.bounding_box()
        assert min(box["height"], box["width"]) >= 24
    context.close()


def test_a_page_of_a_readers_own_task_needs_no_other_file(browser, address):
    context = browser.new_context(viewport=DESKTOP)
    alone = context.new_page()
    asked = []
    alone.on("request", lambda request: asked.append(request.url))
    alone.goto(address.replace("index", "alone"))
    assert alone.title() == "</title><b>Mine: a patch bench"
    show(alone)
    alone.locator("[data-cell='24.14']").click()
    assert "The stream before layer 24" in says(alone)
    assert [url for url in asked if "alone.html" not in url and "favicon" not in url] == []
    context.close()
