"""`make archive`: the site as one file works from any folder, opened without a server."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from served import BROWSER, DESKTOP, SITE

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")

pytestmark = [
    pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on the PATH"),
    pytest.mark.skipif(not (SITE / "book" / "index.html").is_file(), reason=f"no built site in {SITE}: run make book"),
]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The file that `make archive` writes, unpacked in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("archive")
    shutil.copy(Path(__file__).parents[2] / "Makefile", folder)
    shutil.copytree(SITE, folder / "_build" / "html")
    subprocess.run(["make", "archive"], cwd=folder, check=True, capture_output=True)
    packed = folder / "_build" / "interp-lab-site.zip"
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder / "far away")
    return (folder / "far away").as_uri()


@pytest.fixture
def tab(browser):
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda said: page.errors.append(said.text) if said.type == "error" else None)
    yield page
    assert page.errors == []
    context.close()


def test_a_reader_goes_from_page_to_page_and_changes_the_scheme(tab, unpacked):
    tab.goto(f"{unpacked}/index.html")
    tab.get_by_role("link", name="Start with chapter 1").click()
    tab.locator(".prev-next-area a.right-next").click()
    tab.wait_for_url("**/02-*.html")
    before = tab.evaluate("document.documentElement.dataset.theme")
    for _ in range(2):  # the first press may leave the automatic one for the same
        tab.locator(".theme-switch-button:visible").first.click()
        if tab.evaluate("document.documentElement.dataset.theme") != before:
            break
    assert tab.evaluate("document.documentElement.dataset.theme") != before


def test_a_search_finds_pages_and_asks_for_none_of_them(tab, unpacked):
    tab.goto(f"{unpacked}/search.html?q=logit+lens")
    hits = tab.locator("#search-results ul.search li a")
    hits.first.wait_for(timeout=10_000)
    tab.wait_for_timeout(1500)
    assert hits.count() > 10
    hits.first.click()
    tab.wait_for_url("**/book/**")


def test_a_figure_is_explored_and_the_bench_shows_its_cells(tab, unpacked):
    tab.goto(f"{unpacked}/book/02-what-a-head-does.html")
    tab.get_by_role("button", name="Explore").first.click()
    tab.locator(".js-plotly-plot").first.wait_for(timeout=15_000)
    tab.goto(f"{unpacked}/book/patch-bench.html")
    tab.get_by_role("button", name="Show without asking").click()
    tab.locator(".lab-bench [role='gridcell']").first.wait_for(timeout=10_000)


def test_an_answer_is_kept_when_the_page_is_opened_again(tab, unpacked):
    tab.goto(f"{unpacked}/book/15-training-an-sae.html")
    box = tab.locator(".lab-prediction").first
    box.locator("textarea").fill("half of it")
    box.get_by_role("button", name="Commit").click()
    tab.reload()
    assert "half of it" in tab.locator(".lab-prediction").first.inner_text()
