"""The circuit board in a real Chromium: mouse, keyboard, the numbers in words, and no scripts."""

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


@pytest.fixture
def board(browser, site):
    """The board of an open page, as a locator."""
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    page.goto(f"{site}/{PAGE}", wait_until="load")
    yield page.locator(".lab-board")
    context.close()


def numbers(board):
    return json.loads(board.locator("script[type='application/json']").text_content())


def ticked(board):
    return sum(2 ** int(box.get_attribute("data-bit")) for box in board.locator("input:checked").all())


def says_the_state(board):
    """The text says the three means of the state that is ticked."""
    data, state = numbers(board), ticked(board)
    text = board.locator("[aria-live=polite]").text_content()
    said = [float(mean.replace("−", "-")) for mean in re.findall(r"([+−]\d+\.\d\d) \(95 %", text)]
    assert said == pytest.approx([data[key][state][0] for key in ("circuit", "model", "gap")], abs=0.0051)
    return text


def test_every_state_says_its_numbers(board):
    data = numbers(board)
    n = len(data["families"])
    assert [len(data[key]) for key in ("circuit", "model", "gap")] == [2**n] * 3
    assert ticked(board) == 2**n - 1
    start = says_the_state(board)
    assert "with all families" in start
    for bit in range(n):
        box = board.locator(f"input[data-bit='{bit}']")
        if box.is_enabled():
            box.uncheck()
            assert f"without {data['families'][bit]}" in says_the_state(board)
            box.check()
    assert says_the_state(board) == start
    board.get_by_role("button", name="none", exact=True).click()
    says_the_state(board)
    board.get_by_role("button", name="all", exact=True).click()
    assert says_the_state(board) == start


def test_the_keyboard_and_a_label_work_as_the_mouse_does(board):
    box = board.locator("input:enabled").first
    label = board.locator("label:has(input:enabled)").first
    assert label.inner_text().strip()
    box.focus()
    box.press("Space")
    assert not box.is_checked()
    says_the_state(board)
    label.click()
    assert box.is_checked()
    assert board.get_by_role("group", name="Families that keep their output").count() == 1


def test_bars_start_at_zero_and_are_as_long_as_their_value(board):
    data = numbers(board)
    every = [mean for key in ("circuit", "model") for mean, *_ in data[key]]
    span = max(0, *every) - min(0, *every)
    board.page.emulate_media(reduced_motion="reduce")
    for key in ("circuit", "model"):
        track = board.locator(".lab-board-track", has=board.page.locator(f"[data-bar={key}]")).bounding_box()
        bar = board.locator(f"[data-bar={key}]").bounding_box()
        assert bar["width"] / track["width"] == pytest.approx(abs(data[key][-1][0]) / span, abs=0.02)


def test_it_fits_a_phone(board):
    board.page.set_viewport_size(PHONE)
    board.scroll_into_view_if_needed()
    for part in board.locator("fieldset, label, p, .lab-board-bars").all():
        area = part.bounding_box()
        assert area["x"] >= 0
        assert area["x"] + area["width"] <= PHONE["width"] + 1


def test_without_scripts_a_table_tells_the_main_states(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site}/{PAGE}")
    board = page.locator(".lab-board")
    assert not board.locator("fieldset").is_visible()
    assert board.locator("table").is_visible()
    assert "all families" in board.locator("table").inner_text()
    context.close()
