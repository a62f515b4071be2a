"""Prediction boxes, glossary links, course map, API and costs: their parts, and together in one small book."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from docutils import nodes
from test_sphinxext_build import book, build, html, words

from labbook._ext import api, card, chapters, closing, coursemap, execution, glossary, pages, predictions

ROW = "| Model | Reading | Doing | Builds on |\n|---|---|---|---|\n| model_title | {} minutes | {} minutes | {} |\n"
BOX = ":::{{admonition}} Predict before you run\n:class: predict\n{}\n:::\n"
ONE = f"""# One <i>

**Is it there?**

{ROW.format(15, 30, "nothing")}
## The stream

A sender writes to the residual stream. The stream is a `stream`; see [the stream](02-two.md) and `metrics.bootstrap`.

```{{code-cell}} python3
def later():
    from labcode import metrics
    return metrics.bootstrap
```

{BOX.format("How many <b>senders</b>, and *why*?")}
{BOX.format("And then?")}
"""
TWO = f"""# Two

**And what then?**

{ROW.format(20, 40, "[One](01-one.md)")}
{BOX.format("A box before any heading?")}
A sender. Two Residual-Streams, two logit differences, one sender, five values. A head mixes {{term}}`values <value>`.

:::{{note}}
A stream in a note, and $stream$.
:::
"""
GLOSSARY = """# Words

```{glossary}
residual stream
stream
  What all add to. ({chapter}`1`)

sender
  Who writes. ({chapter}`2`)

logit difference
  One minus the other.

value
  What is copied. ({chapter}`1`)
```
"""
MAP = """# Map

```{coursemap}
```

See {chapter}`1`, {chapter-title}`2` and {chapter}`7`. It takes {hours}`1-2`, or {hours}`2, 7`.
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course")
    pages = {"index": "# Start\n", "01-one": ONE, "02-two": TWO, "words": GLOSSARY, "map": MAP}
    pages |= {"log": "# Log\n\n```{predictions}\n```\n", "api": "# API\n\n```{api-index}\n```\n"}
    pages |= {f"api/{name}": f"# {name}\n\n```{{api}} {name}\n```\n" for name in ("metrics", "prompts")}
    book(folder, **pages)
    return folder, *build(folder)


def test_the_small_book_has_no_warning(small):
    _, status, said = small
    assert status == 0, said


def test_a_chapter_carries_its_number_wherever_its_title_stands(small):
    folder, _, _ = small
    one = html(folder, "01-one")
    assert "<h1>1. One" in one
    assert "<title>1. One" in one
    assert "2. Two" in words(html(folder, "index"))  # the next page, and the sidebar
    assert 'id="one"' in one, "anchors stay without a number"


def test_a_page_says_what_it_is_to_those_who_have_not_opened_it(small):
    folder, _, _ = small
    two = html(folder, "02-two")
    assert '<meta name="description" content="And what then? A sender.' in two
    assert '<meta property="og:title" content="2. Two"/>' in two
    assert "og:image" not in two, "the site has no address yet"
    assert two.count('name="viewport"') == 1
    missing = (folder / "_build/html/404.html").read_text()
    assert 'href="index.html"' in missing


def test_a_site_with_an_address_has_what_search_engines_read(tmp_path):
    book(tmp_path, **{"index": "# Start\n\nWords.\n", "01-one": "# One\n\n**Is it?**\n\nIt is.\n"})
    config = (tmp_path / "_config.yml").read_text()
    (tmp_path / "_config.yml").write_text(config.replace("html:\n", "html:\n  baseurl: https://lab.example/book/\n", 1))
    status, said = build(tmp_path)
    assert status == 0, said
    page = html(tmp_path, "01-one")
    assert '<link rel="canonical" href="https://lab.example/book/01-one.html"' in page
    assert '<meta property="og:image" content="https://lab.example/book/_static/lab-card.png"/>' in page
    assert '<meta name="twitter:card" content="summary_large_image"/>' in page
    assert '<meta property="og:site_name" content="Interp Lab"/>' in page
    picture = (tmp_path / "_build/html/_static/lab-card.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", picture[16:24]) == (1200, 630)
    assert "https://lab.example/book/01-one.html" in (tmp_path / "_build/html/sitemap.xml").read_text()
    assert "Sitemap: https://lab.example/book/sitemap.xml" in (tmp_path / "_build/html/robots.txt").read_text()
    assert '<base href="https://lab.example/book/"/>' in (tmp_path / "_build/html/404.html").read_text()


def test_the_environment_can_say_where_the_site_is_and_where_its_certified_edition(tmp_path):
    book(tmp_path, **{"index": "# Start\n\nWords.\n", "01-one": "# One\n\n**Is it?**\n\nIt is.\n"})
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(Path(__file__).parents[2] / name, tmp_path / name)
    source = {"LAB_ADDRESS": "https://lab.example/book/gpt2", "LAB_REPOSITORY": "https://github.com/lab/book"}
    status, said = build(tmp_path, **source)
    assert status == 0, said
    page = html(tmp_path, "01-one")
    assert '<link rel="canonical" href="https://lab.example/book/gpt2/01-one.html"' in page
    assert 'href="https://colab.research.google.com/github/lab/book/blob/notebooks/01-one.ipynb"' in page
    assert 'aria-label="Open the student notebook in Binder"' in page
    status, said = build(tmp_path, LAB_ADDRESS="lab.example")
    assert status != 0
    assert "isn't the address of a site" in said
    assert "Traceback" not in said


def test_boxes_are_named_after_their_section(small):
    folder, _, _ = small
    one, two = html(folder, "01-one"), html(folder, "02-two")
    assert 'id="predict-the-stream"' in one
    assert 'id="predict-the-stream--2"' in one
    assert 'id="predict-two"' in two
    assert "predictions.js" in one
    assert '<meta name="lab-page" content="01-one"/>' in one
    assert "predictions.js" not in html(folder, "map")


def test_the_log_lists_every_box_as_text(small):
    folder, _, _ = small
    log = html(folder, "log")
    assert "predictions.js" in log
    assert 'data-page="01-one" data-box="predict-the-stream--2"' in log
    # The question's markup is gone, and what looks like markup is text.
    assert '<a href="01-one.html#predict-the-stream">How many &lt;b&gt;senders&lt;/b&gt;, and why?</a>' in log
    assert log.index("One ") < log.index("Two")
    assert log.count('class="lab-log-entry"') == 3


def test_a_box_that_goes_leaves_the_log(small, tmp_path):
    one = ONE.replace("[the stream](02-two.md)", "it")
    book(tmp_path, **{"index": "# Start\n", "01-one": one, "log": "# Log\n\n```{predictions}\n```\n"})
    assert build(tmp_path)[0] == 0
    assert "And then?" in html(tmp_path, "log")
    (tmp_path / "01-one.md").write_text("# One\n\nNo box.\n")
    assert build(tmp_path)[0] == 0
    log = html(tmp_path, "log")
    assert "And then?" not in log
    assert "No chapter of this book asks for a prediction." in words(log)


def test_a_box_keeps_its_name_when_its_words_change():
    def page(*questions: str) -> nodes.document:
        section = nodes.section("", nodes.title("", "Part"), ids=["part"])
        for question in questions:
            section += nodes.admonition("", nodes.title("", "P"), nodes.paragraph("", question), classes=["predict"])
        section += nodes.admonition("", nodes.paragraph("", "another kind"))
        document = nodes.document(None, None)  # type: ignore[arg-type]
        document += section
        return document

    before, after = predictions.name_boxes(page("A 270?", "B?")), predictions.name_boxes(page("A 144?", "B?"))
    assert [box.name for box in before] == [box.name for box in after] == ["predict-part", "predict-part--2"]
    assert [box.question for box in before] == ["A 270?", "B?"]


def linked(page: str) -> list[str]:
    return re.findall(r'<a class="lab-term[^>]*>(.*?)</a>', page)


def test_each_term_is_linked_once_where_it_is_first_used_in_prose(small):
    folder, _, _ = small
    one, two = html(folder, "01-one"), html(folder, "02-two")
    # "sender" is a plain word before its own chapter; a heading, code, a link and a formula stay as they are.
    assert linked(one) == ["residual stream"]
    # A word of plain English is linked only where the chapter marks it.
    assert linked(two) == ["sender", "Residual-Streams", "logit differences", "values"]
    assert re.search(r'five values\. .*<a[^>]*href="words.html#term-value"[^>]*title="What is copied."', two)
    assert re.search(r'href="words.html#term-residual-stream"[^>]*title="What all add to."', one)
    assert linked(html(folder, "map")) == []


@pytest.mark.parametrize(
    ("word", "met", "not_met"),
    [
        ("query", "Queries count", "a queryable thing"),
        ("MLP", "two MLPs", "an mlp"),
        ("S1+1", "at S1+1.", "at S1+12"),
        ("S1", "at S1, too", "at S1+1"),
        ("clean run", "the clean\nrun ends", "a clean running shoe"),
        ("patching", "Patching works", "dispatching, path-patching"),
        ("bias", "the bias", "biases"),
    ],
)
def test_a_term_is_met_with_its_plural_and_not_inside_a_word(word, met, not_met):
    entry = glossary.Entry("words", "t", (word,), "text")
    assert glossary.Words([entry], 1).find(met, set())
    assert not glossary.Words([entry], 1).find(not_met, set())


def test_the_longer_of_two_terms_wins():
    known = [glossary.Entry("w", name, (name,), "") for name in ("head", "attention head", "S1", "S1+1")]
    found = glossary.Words(known, 1).find("An attention head at S1+1, a head at S1", set())
    assert [entry.target for _, _, entry in found] == ["attention head", "S1+1", "head", "S1"]


def test_the_map_has_what_the_chapters_say_of_themselves(small):
    folder, _, _ = small
    page = html(folder, "map")
    text = re.sub(r"\s+", " ", words(page))
    assert "Is it there? nothing 15 min 30 min" in text
    assert "And what then? 1 20 min 40 min" in text
    assert "All 2 chapters 35 min 1 h 10 min" in text
    assert "2 Two builds on 1" in page
    assert "See chapter 1, 2. Two and chapter 7. It takes 1 h 45 min, or 1 h (without 7)." in text
    assert 'href="02-two.html"' in page


def test_only_the_arrows_that_say_something_are_drawn():
    def chapter(n: int, *before: int) -> chapters.Chapter:
        return chapters.Chapter(n, f"0{n}-x", f"T <{n}>", "", 1, 1, before)

    grouped = {"A & B": [chapter(1), chapter(2, 1), chapter(3, 1, 2)], "C": [chapter(4, 1), chapter(5, 3, 99)]}
    assert coursemap.direct(grouped) == {1: [], 2: [1], 3: [2], 4: [1], 5: [3, 99]}
    drawn = coursemap.drawing(grouped, lambda chapter: f"{chapter.docname}.html")
    assert drawn.count("stroke-opacity") == 4  # 99 isn't in the book
    assert "A &amp; B" in drawn
    assert "T &lt;1&gt;" in drawn
    assert drawn.count("<a href=") == 5


def test_a_circle_of_prerequisites_ends():
    one = chapters.Chapter(1, "01-x", "X", "", 1, 1, (2,))
    two = chapters.Chapter(2, "02-y", "Y", "", 1, 1, (1,))
    assert set(coursemap.direct({"": [one, two]})) == {1, 2}


@pytest.mark.parametrize(("text", "named"), [("1", [1]), ("1-3, 9", [1, 2, 3, 9]), (" 2 , 4 ", [2, 4]), ("07", [7])])
def test_numbers_of_chapters_are_read(text, named):
    assert chapters.numbers(text) == named


@pytest.mark.parametrize("text", ["", "one", "1-", "1,,2", "1 2"])
def test_what_names_no_chapter_is_refused(text):
    with pytest.raises(ValueError, match=r"invalid literal"):
        chapters.numbers(text.replace("1-", "1-x"))


@pytest.mark.parametrize(("total", "said"), [(0, "0 min"), (45, "45 min"), (60, "1 h"), (133, "2 h 15 min")])
def test_minutes_are_told_as_one_plans_them(total, said):
    assert chapters.hours(total) == said


def test_a_page_without_a_model_row_has_no_minutes():
    found = chapters.describe("book/07-x", "X", "# X\n\nWords.\n")
    assert (found.number, found.reading, found.doing, found.builds_on, found.question) == (7, None, None, (), "")
    assert chapters.minutes({7: found}, [7, 8]) == 0
    assert chapters.number("book/ledger") is None


def test_the_search_index_knows_who_introduces_a_term(small):
    folder, _, _ = small
    index = json.loads((folder / "_build/html/searchindex.js").read_text().removeprefix("Search.setIndex(").rstrip(")"))
    introduced = {
        (index["docnames"][at], anchor) for at, anchor, main in index["indexentries"]["residual stream"] if main
    }
    assert ("01-one", "the-stream") in introduced
    assert {page for page, _ in introduced} == {"01-one", "words"}
    assert "labsearch.js" in html(folder, "search")


def test_a_module_has_a_page_and_links_both_ways(small):
    folder, _, _ = small
    page = html(folder, "api/metrics")
    assert 'id="labcode.metrics.bootstrap"' in page
    assert "labcode.prompts.population" not in page
    assert re.search(r'Used in chapters? <a class="reference internal" href="../01-one.html"', page)
    assert re.search(r'href="api/metrics.html#labcode.metrics.bootstrap"', html(folder, "01-one"))
    assert "Float[Tensor, " in words(page)


def test_the_index_has_every_name_of_the_modules_with_a_page(small):
    folder, _, _ = small
    page = html(folder, "api")
    for name in ("metrics", "prompts"):
        for one in api.definitions(api.sources()[f"labcode.{name}"].body):
            assert f'href="api/{name}.html#labcode.{name}.{one.name}"' in page
    assert "labcode.patching" not in words(page)


def test_a_module_that_is_not_there_is_named(tmp_path):
    book(tmp_path, index="# Start\n\nWords.\n", one="# One\n\n```{api} metric\n```\n")
    assert "labcode has no module 'metric': it has attribution, " in build(tmp_path)[1]


LIBRARY = {
    "low": '''"""Low."""

class OddError(Exception):
    """Odd."""

SIZE = 3
"""How large."""

def take(x: int, *, y: str = "a") -> int:
    """Take it.

    Args:
        x: one. y: two.

    Raises:
        OddError: it is odd.
    """

def _hidden(): ...
''',
    "high": '"""High."""\nfrom lib.low import OddError, take\n\ndef lift():\n    """Lift it."""\n',
}


@pytest.fixture
def library(tmp_path):
    (tmp_path / "lib").mkdir()
    for name, text in {**LIBRARY, "__init__": "", "_inner": "def f():\n    'x'\n"}.items():
        (tmp_path / "lib" / f"{name}.py").write_text(text)
    return tmp_path / "lib"


def test_everything_public_that_has_a_docstring_is_found(library):
    found = {module: api.definitions(tree.body) for module, tree in api.sources(library).items()}
    assert [one.name for one in found["lib.low"]] == ["OddError", "SIZE", "take"]
    assert [one.kind for one in found["lib.low"]] == ["exception", "data", "function"]
    assert found["lib.low"][2].signature == "(x: int, *, y: str='a') -> int"
    assert "- `OddError`: it is odd." in api.markdown(found["lib.low"][2].doc)
    assert list(found) == ["lib.high", "lib.low"]


def test_every_argument_of_a_docstring_is_an_item_of_its_own():
    shared = api.markdown("Do it.\n\nArgs:\n    a: one. b, c: two\n        and more. d: [n].\n")
    assert re.findall(r"^[ :]*(- .*)", shared, re.MULTILINE) == ["- `a`: one.", "- `b, c`: two", "- `d`: [n]."]


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["from lib import low\nlow.take(1)"], {"lib.low", "lib.low.take"}),
        (["from lib import low as l", "x = l.SIZE.real"], {"lib.low", "lib.low.SIZE", "lib.low.SIZE.real"}),
        (["from lib.low import take"], {"lib.low", "lib.low.take"}),
        (["import lib.low", "lib.low.take(2)"], {"lib.low", "lib.low.take"}),
        (["from lib.high import OddError"], {"lib.low", "lib.low.OddError"}),  # where it is defined
        (["%time", "take = 1", "low.take(3)", "import other\nother.take(1)"], set()),
    ],
)
def test_what_cells_use_is_read_from_their_imports(library, cells, names):
    assert api.names_used(cells, library) - {"lib"} == names


def test_what_a_kernel_used_is_read_from_the_system(tmp_path):
    process = tmp_path / "7"
    process.mkdir()
    numbers = " ".join(["S", *map(str, range(10)), "300", "100", *["0"] * 30])
    (process / "stat").write_text(f"7 (a ) name) {numbers}\n")
    (process / "status").write_text("Name:\tx\nVmHWM:\t  2048 kB\n")
    used = execution.usage(7, tmp_path)
    assert used["peak_bytes"] == 2048 * 1024
    assert used["cpu_seconds"] == pytest.approx(4.0)  # the clock ticks a hundred times a second
    assert execution.usage(8, tmp_path) == {}
    (process / "status").write_text("Name:\tx\n")
    assert execution.usage(7, tmp_path) == {}


def test_the_cost_of_a_kernel_is_kept_and_shown(tmp_path):
    cell = "```{code-cell} python3\nx = bytearray(10**8)\n```\n"
    book(tmp_path, index=f"# Start\n\n{cell}\n```{{costs}}\n```\n", plain="# Plain\n")
    status, said = build(tmp_path)
    assert status == 0, said
    text = re.sub(r"\s+", " ", words(html(tmp_path, "index")))
    if Path("/proc/self/status").exists():
        assert re.search(r"Start \d+\.\d s \d+\.\d s 0\.[1-9] GB Together", text), text[:2000]
    assert "Forward passes" not in text


def test_sums_leave_out_what_one_page_lacks():
    pages = [
        {"execution_seconds": 10.0, "peak_bytes": 2e9},
        {"execution_seconds": 5.0, "peak_bytes": 1e9},
    ]
    assert closing.total(pages) == {"execution_seconds": 15.0, "peak_bytes": 2e9}
    assert closing.row(pages[0]) == ["10 s", "not measured", "2.0 GB"]


PAGE = """
<svg role="img" aria-label="Head 1.2 looks from END" viewBox="0 0 100 50" fill="currentColor" font-size="14">
<g opacity=".5"><rect x="0" y="0" width="100" height="50" rx="4" fill="#009E73"/></g></svg>
<svg class="lab-broad" viewBox="0 0 100 100" fill="none" stroke="currentColor">
<path d="M0 50C0 20 100 20 100 50" stroke-width="9"/><text x="50" y="90" fill="#D55E00" stroke="none">Mary</text></svg>
"""


def test_the_card_shows_the_drawings_of_the_start_page():
    def pixels(page: str) -> np.ndarray:
        picture = card.made(page, pages.carried(pages.MATHS), "Interp Lab", "What happens inside?")
        size = int.from_bytes(picture[33:37])
        rows = np.frombuffer(zlib.decompress(picture[41 : 41 + size]), dtype=np.uint8).reshape(630, 1 + 3 * 1200)
        return rows[:, 1:].reshape(630, 1200, 3).astype(int)

    empty, drawn = pixels(""), pixels(PAGE)
    changed = np.abs(empty - drawn).sum(2) > 0
    assert changed[:400, :550].sum() == 0, "the words are above the first drawing"
    assert tuple(drawn[500, 200]) == (128, 206, 185), "half of #009E73 on white"
    assert changed[:, 590:].sum() > 2000
    reddish = (drawn[:, 590:, 0] - drawn[:, 590:, 2]) > 100
    assert reddish.sum() > 50, "letters are drawn in their colour"
