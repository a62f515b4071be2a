"""The circuit board in a real Chromium: families knocked out in the drawing by mouse and keyboard, and no scripts."""

from __future__ import annotations

import json
import re

import pytest
from served import BROWSER, DESKTOP, PHONE, SITE

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")

PAGE = "book/11-the-circuit.html"
pytestmark = [
    pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on the PATH"),
    pytest.mark.skipif(not (SITE / PAGE).is_file(), reason=f"no {PAGE} in {SITE}: run make book"),
]


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def board(browser, site, request):
    """The board of an open page, as a locator."""
    context = browser.new_context(viewport=request.param, reduced_motion="reduce")
    page = context.new_page()
    page.goto(f"{site}/{PAGE}", wait_until="load")
    yield page.locator(".lab-board")
    context.close()


def numbers(board):
    return json.loads(board.locator("script[type='application/json']").text_content())


def switches(board):
    """The switches of the drawing that this width shows."""
    return [one for one in board.locator("[role=switch]").all() if one.is_visible()]


def bit(one):
    return int(one.get_attribute("data-bit"))


def kept(board):
    """The state that the drawing shows. Families without heads have no switch, and stay."""
    off = {bit(one) for one in switches(board) if one.get_attribute("aria-checked") == "false"}
    return 2 ** len(numbers(board)["families"]) - 1 - sum(2**one for one in off)


def says_the_state(board):
    """Text and bars say the numbers of the state that the drawing shows, and say them alike."""
    data, state = numbers(board), kept(board)
    text = board.locator("[aria-live=polite]").text_content()
    three = [data[key][state] for key in ("circuit", "model", "gap")]
    said = re.findall(r"([+−]\d+\.\d\d) \(95 % interval ([+−]\d+\.\d\d) to ([+−]\d+\.\d\d)\)", text)
    assert [[float(one.replace("−", "-")) for one in cell] for cell in said] == three
    for key, cell in zip(("circuit", "model"), three, strict=False):
        beside = board.locator(f"[data-number={key}]").text_content()
        assert [float(one) for one in re.findall(r"-?\d+\.\d\d", beside.replace("−", "-"))] == cell
    return text


def test_every_family_can_be_clicked_out_of_the_drawing_and_back(board):
    data = numbers(board)
    assert [len(data[key]) for key in ("circuit", "model", "gap")] == [2 ** len(data["families"])] * 3
    start = says_the_state(board)
    assert "with all families" in start
    assert {bit(one) for one in switches(board)} == set(data["boxes"].values())
    drawn = {box.get_attribute("data-box") for box in board.locator("svg:visible [data-box]").all()}
    assert len(switches(board)) == len(drawn & set(data["boxes"]))
    for one in switches(board):
        one.click()
        assert f"without {data['families'][bit(one)]}:" in says_the_state(board)
        assert one.locator(".lab-cross").is_visible()
        one.click()
        assert not one.locator(".lab-cross").is_visible()
    assert says_the_state(board) == start
    board.get_by_role("button", name="Knock out all").click()
    assert "with no family" in says_the_state(board)
    board.get_by_role("button", name="Keep all").click()
    assert says_the_state(board) == start


def test_the_keyboard_works_as_the_mouse_does(board):
    page = board.page
    board.get_by_role("button", name="Knock out all").focus()
    page.keyboard.press("Tab")
    first = switches(board)[0]
    assert first.evaluate("one => one === document.activeElement")
    assert first.get_attribute("aria-label").startswith("Keep ")
    page.keyboard.press("Space")
    assert first.get_attribute("aria-checked") == "false"
    says_the_state(board)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    says_the_state(board)
    assert switches(board)[1].evaluate("one => one === document.activeElement")
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    assert "with all families" in says_the_state(board)


def test_arrows_of_a_family_that_is_out_go_with_it(board):
    data = numbers(board)
    one = switches(board)[-1]
    theirs = {name for name, of in data["boxes"].items() if of == bit(one)}
    one.click()
    for arrow in board.locator("[data-arrow]").all():
        ends = set(arrow.get_attribute("data-arrow").split(" > "))
        assert ("lab-out" in (arrow.get_attribute("class") or "")) is bool(ends & theirs)


def test_arrows_are_as_wide_as_they_carry(board):
    """Of two arrows with a number the larger is the wider one."""
    widths = {}
    for arrow in board.locator("svg.lab-broad [data-arrow]:has(text)").all():
        found = re.search(r"[+−](\d+\.\d+)$", arrow.locator("text").text_content())
        line = board.locator(f"svg.lab-broad [data-arrow='{arrow.get_attribute('data-arrow')}'] path").first
        if found:
            widths[float(found[1])] = float(line.get_attribute("stroke-width"))
    assert len(widths) >= 2
    assert [widths[carried] for carried in sorted(widths)] == sorted(widths.values())


def test_bars_start_at_zero_and_whiskers_span_the_interval(board):
    data = numbers(board)
    every = [value for key in ("circuit", "model") for cell in data[key] for value in cell]
    low, high = min(0, *every), max(0, *every)
    for key in ("circuit", "model"):
        track = board.locator(".lab-board-track", has=board.page.locator(f"[data-bar={key}]")).bounding_box()
        mean, *ends = data[key][-1]
        for name, left, right in (("bar", *sorted((0, mean))), ("whisker", *ends)):
            area = board.locator(f"[data-{name}={key}]").bounding_box()
            begin, width = ((area["x"] - track["x"]) / track["width"], area["width"] / track["width"])
            assert begin == pytest.approx((left - low) / (high - low), abs=0.02)
            assert width == pytest.approx((right - left) / (high - low), abs=0.02)


def test_nothing_is_clipped(board):
    """The drawing stands upright on a phone, whole; letters in it can be read, and bars and numbers fit."""
    width = board.page.viewport_size["width"]
    drawing = board.locator("svg:visible")
    assert drawing.get_attribute("class") == ("lab-tall" if width == PHONE["width"] else "lab-broad")
    frame = drawing.bounding_box()
    for part in board.locator("svg:visible, svg:visible text, .lab-board-how, .lab-board-says, [data-number]").all():
        area = part.bounding_box()
        assert area["x"] >= 0
        assert area["x"] + area["width"] <= width + 1
    for text in drawing.locator("text").all():
        area = text.bounding_box()
        assert area["x"] >= frame["x"] - 1
        assert area["x"] + area["width"] <= frame["x"] + frame["width"] + 1
        assert area["height"] >= 10


def test_the_bars_stay_in_sight_while_the_drawing_is(board):
    switches(board)[0].click()
    bars = board.locator(".lab-board-bars").bounding_box()
    assert bars["y"] + bars["height"] <= board.page.viewport_size["height"] + 1


def test_without_scripts_the_drawing_and_a_table_tell_the_main_states(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site}/{PAGE}")
    board = page.locator(".lab-board")
    assert board.get_by_role("img").is_visible()
    assert "circuit sketch" in board.get_by_role("img").get_attribute("aria-label")
    assert not board.locator("button").first.is_visible()
    assert not board.locator(".lab-board-bars").is_visible()
    assert board.locator("table").is_visible()
    assert "all families" in board.locator("table").inner_text()
    context.close()
