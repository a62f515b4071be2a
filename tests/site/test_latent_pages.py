"""The dashboards in a real browser: one at a time, each with an address, along an index; and nothing that runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from served import BROWSER, DESKTOP, PHONE, SITE, serving

from labbook.show import cards

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
pytestmark = pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on the PATH")

ASSETS = Path(__file__).parents[2] / "book" / "_ext" / "assets"
EVIL = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\">"


def made(latent: int, density: float, word: str) -> cards.Card:
    piece = cards.Snippet((" a", word, " long context that goes on", EVIL), (0.1, 1.0, 0.0, 0.6), 1, 5.0)
    return cards.Card(
        latent=latent,
        density=density,
        peak=5.0,
        counts=(4, 2, 1),
        words=(word,),
        top=(piece,),
        lower=(("50% quantile", (piece,)),),
        promoted=((EVIL, 1.0),),
        suppressed=((word, -1.0),),
        neighbours=((7, 0.5), (99, 0.3)),
        rule=f"the token is {word!r}",
        f1=0.5,
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dashboards")
    made_up = [made(20, 0.01, " zebra"), made(7, 0.3, " apple"), made(100, 0.02, EVIL)]
    for name in ("lab.css", "labdashboards.css", "labdashboards.js"):
        shutil.copy(ASSETS / name, folder)
    (folder / "index.html").write_text(
        '<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>sound</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        '<link rel="stylesheet" href="lab.css"><link rel="stylesheet" href="labdashboards.css">'
        '<script src="labdashboards.js" defer></script></head><body class="cell_output">'
        f"{cards.browser(made_up).html}</body></html>",
        encoding="utf8",
    )
    with serving(folder) as site:
        yield f"{site}/index.html"


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    page.said, page.asked = [], []
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    yield page
    context.close()


def order(page) -> list[str]:
    return page.locator(".lab-index tbody tr[data-latent]:visible td:first-child").all_text_contents()


def test_what_a_model_wrote_does_not_run(page, address):
    page.wait_for_timeout(200)
    assert page.title() == "sound"
    assert page.said == []
    assert page.locator("script:not([src]), img").count() == 0
    assert {url.rsplit("/", 1)[0] for url in page.asked if not url.startswith("data:")} == {address.rsplit("/", 1)[0]}


def test_the_index_sorts_by_keyboard_and_says_so(page):
    head = page.get_by_role("columnheader", name="fires on")
    button = head.get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert order(page) == ["7", "100", "20"]
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "ascending"
    assert order(page) == ["20", "100", "7"]
    page.get_by_role("columnheader", name="latent").get_by_role("button").click()
    assert order(page) == ["7", "20", "100"], "as numbers, not as text"
    assert head.get_attribute("aria-sort") is None


def test_the_filter_has_a_label_and_announces_the_count(page):
    box = page.get_by_label("Show only rows with")
    box.fill("ZEBRA")
    assert order(page) == ["20"]
    assert page.get_by_role("status").text_content() == "1 of 3 latents"
    box.fill("")
    assert len(order(page)) == 3


def shown(page) -> str:
    """The one latent whose dashboard is there, open."""
    (card,) = page.locator("details.lab-latent:visible").all()
    assert card.evaluate("node => node.open")
    return card.get_attribute("id").removeprefix("latent-")


def steps(page) -> str:
    return " ".join(page.locator(".lab-steps > :visible").all_text_contents())


def test_it_opens_on_one_latent_and_steps_to_the_next(page):
    assert shown(page) == "20"
    assert steps(page) == "1 of 3 next: 7"
    step = page.locator(".lab-steps a:visible")
    step.focus()
    page.keyboard.press("Enter")
    assert (shown(page), steps(page)) == ("7", "previous: 20 2 of 3 next: 100")
    assert page.evaluate("document.activeElement.textContent") == "next: 100", "press it again"
    page.keyboard.press("Enter")
    assert (shown(page), steps(page)) == ("100", "previous: 7 3 of 3")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.get_by_role("link", name="previous: 7").click()
    assert shown(page) == "7"


def test_steps_follow_the_index_as_it_is_sorted_and_filtered(page):
    page.get_by_role("columnheader", name="latent").get_by_role("button").click()
    assert steps(page) == "previous: 7 2 of 3 next: 100"
    page.get_by_label("Show only rows with").fill("apple")
    assert (shown(page), steps(page)) == ("20", "not among these 1 next: 7")
    page.get_by_role("link", name="next: 7").click()
    assert (shown(page), steps(page)) == ("7", "1 of 1")
    page.get_by_label("Show only rows with").fill("no such word")
    assert (shown(page), steps(page)) == ("7", "not among these 0")


def test_each_latent_has_an_address_and_the_back_button_works(page, address):
    page.locator("tr a[href='#latent-100']").click()
    assert page.url == f"{address}#latent-100"
    assert shown(page) == "100"
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.locator("details:visible dd a[href='#latent-7']").click()
    assert (page.url, shown(page)) == (f"{address}#latent-7", "7")
    page.go_back()
    assert shown(page) == "100"
    page.go_back()
    assert (page.url, shown(page)) == (address, "20")
    page.go_forward()
    assert shown(page) == "100"
    page.reload()
    assert shown(page) == "100"
    page.locator("tr a[href='#latent-100']").click()
    assert shown(page) == "100", "the same link twice"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("latent-99", "Latent 99 has no dashboard"),
        ("latent-<b>", "This address names no latent"),
        ("latent-%zz", "This address names"),
    ],
)
def test_an_address_of_no_latent_says_so_and_shows_the_first(page, address, wanted, said):
    page.goto("about:blank")
    page.goto(f"{address}#{wanted}")
    assert shown(page) == "20"
    missing = page.locator(".lab-missing")
    assert missing.is_visible()
    assert said in missing.text_content()
    assert "latent 20" in missing.text_content()
    page.locator("tr a[href='#latent-7']").click()
    assert not missing.is_visible()
    page.evaluate("location.hash = 'something-else'")
    page.wait_for_timeout(50)
    assert shown(page) == "7", "an address of something else changes nothing"


def test_the_histogram_has_axes_with_values(page):
    texts = page.locator("#latent-20 .lab-latent-axis text").all_text_contents()
    assert texts == ["0", "2", "4", "1", "4"]
    frame = page.locator("#latent-20 svg").bounding_box()
    for text in page.locator("#latent-20 .lab-latent-axis text").all():
        area = text.bounding_box()
        assert area["x"] >= frame["x"]
        assert area["x"] + area["width"] <= frame["x"] + frame["width"]
        assert area["height"] >= 11


def test_strength_shows_without_colour(page):
    page.locator("a[href='#latent-20']").first.click()
    marks = page.locator("#latent-20 mark")
    thick = "node => [getComputedStyle(node).textDecorationStyle, getComputedStyle(node).textDecorationThickness]"
    assert len({tuple(mark.evaluate(thick)) for mark in marks.all()[:3]}) == 3
    assert all(mark.get_attribute("title") for mark in marks.all())


def test_without_scripts_it_is_a_table(browser, address):
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(address)
    assert order(plain) == ["20", "7", "100"]
    assert not plain.locator(".lab-filter, .lab-steps, .lab-missing").first.is_visible()
    assert plain.locator("a[href='#latent-7']", has_text="next: 7").count() == 1
    assert plain.locator("details.lab-latent").count() == 3
    plain.locator("#latent-7 summary").click()
    assert plain.locator("#latent-7 .lab-contexts").is_visible()
    context.close()


def test_it_fits_a_phone(browser, address):
    context = browser.new_context(viewport=PHONE)
    small = context.new_page()
    small.goto(f"{address}#latent-7")
    assert small.locator("#latent-7").evaluate("node => node.open")
    assert small.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert 0 <= small.locator(".lab-steps").bounding_box()["y"] < PHONE["height"] / 2
    context.close()


def test_the_chapter_of_dashboards_is_light_and_whole(browser):
    if not (SITE / "book" / "index.html").is_file():
        pytest.skip(f"no built site in {SITE}: run make book")
    built = SITE / "book" / "16-reading-features.html"
    assert built.stat().st_size < 1_500_000
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(built.as_uri())
    assert page.locator("details.lab-latent").count() >= 60
    assert page.locator(".lab-latents tbody tr[data-latent]").count() == page.locator("details.lab-latent").count()
    links = page.locator("article a[href^='#latent-']").evaluate_all("all => all.map((a) => a.hash.slice(1))")
    assert set(links) <= set(page.locator("details.lab-latent").evaluate_all("all => all.map((d) => d.id)"))
    ids = page.locator("article [id]").evaluate_all("all => all.map((node) => node.id)")
    assert len([i for i in ids if i.startswith("latent-")]) == len({i for i in ids if i.startswith("latent-")})
    context.close()
