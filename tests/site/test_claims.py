"""Claims as a reader meets them: the verdict in the sentence, method and null at a tap or with the keyboard."""

from __future__ import annotations

import pytest
from served import BROWSER, PHONE, SITE, page_with

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")

pytestmark = [
    pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on the PATH"),
    pytest.mark.skipif(not (SITE / "book" / "index.html").is_file(), reason=f"no built site in {SITE}: run make book"),
]
CLAIM = 'class="lab-said"'


def shown(tip) -> bool:
    return tip.evaluate("tip => getComputedStyle(tip).visibility") == "visible"


def test_a_tap_shows_how_a_claim_was_judged_within_the_screen(browser, site):
    context = browser.new_context(base_url=f"{site}/", viewport=PHONE, has_touch=True)
    page = context.new_page()
    page.goto(page_with(CLAIM))
    for said in page.locator(".lab-said").all():
        mark, tip = said.locator(".lab-mark"), said.locator(".lab-how")
        assert not shown(tip)
        mark.tap()
        assert shown(tip)
        box = tip.bounding_box()
        assert 0 <= box["x"] < box["x"] + box["width"] <= PHONE["width"]
        assert box["height"] < 300
        assert mark.get_attribute("aria-describedby") == tip.get_attribute("id")
        tip.tap()
        assert not shown(tip), "it would hide what stands below"
    context.close()


def test_the_keyboard_and_the_mouse_show_it_too(browser, site):
    page = browser.new_page(base_url=f"{site}/")
    page.goto(page_with(CLAIM))
    said = page.locator(".lab-said").first
    tip = said.locator(".lab-how")
    said.locator(".lab-mark").focus()
    assert shown(tip)
    page.keyboard.press("Tab")
    assert not shown(tip)
    said.locator(".lab-mark").hover()
    assert shown(tip)
    tip.hover()
    assert shown(tip), "the pointer can go to it"
    page.close()


def test_a_print_has_the_method_in_brackets(browser, site):
    page = browser.new_page(base_url=f"{site}/")
    page.goto(page_with(CLAIM))
    page.emulate_media(media="print")
    said = page.locator(".lab-said").first
    assert said.locator(".lab-method").is_visible()
    assert not said.locator(".lab-more").is_visible()
    page.close()
