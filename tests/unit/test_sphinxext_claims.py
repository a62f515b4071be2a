"""Claims as sentences, and editions, in tiny books that are built on a model but do not load it."""

from __future__ import annotations

import re
from pathlib import Path

import folders
import nbformat
import pytest
from test_sphinxext_build import book, build, html, words

PITCH = """
```{code-cell} python3
:tags: [hide-input]
from labcode import report
report.put(gap=0.5, <MORE>)
report.claim("gap-is-wide", True, "noised", "no <gap>", source="A & B 2022")
report.claim("order-plays-no-part", False, "observed", "it does", origin="recorded")
report.claim("head-writes-it", <HOLDS>, "ablated", "heads drawn at random")
```
""".replace(", <MORE>", "")
SAID = """
[The *gap* is {glue:text}`gap:+.2f` nats,
"wide" enough, with $x < 1$ and a [link](words.md).]{.claim #gap-is-wide}
[Order plays no part.]{.claim #order-plays-no-part}

::::{edition} smollm2
[It is written by **3.4**, by {glue:text}`gap:.1f`.]{.claim #head-writes-it}

* A point.

:::{note}
A note.
:::
::::

:::{edition} gpt2
[It is written by 9.9.]{.claim #mover-writes-it}
:::
"""


def on_model(folder: Path, holds: bool = True, said: str = SAID) -> Path:
    chapter = f"# One\n{said}\n{PITCH.replace('<HOLDS>', str(holds))}"
    book(folder, index="# Start\n\n```{ledger}\n```\n", **{"01-one": chapter}, words="# Words\n")
    config = folder / "_config.yml"
    config.write_text(config.read_text().replace("lab_model: false", "lab_model: true"))
    return folder


def section(page: str, title: str) -> str:
    """The part of a ledger under a heading."""
    found = re.search(rf'<p class="rubric">{title}</p>(.*?)(?=<p class="rubric">|\Z)', page, re.S)
    return found[1] if found else ""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = on_model(tmp_path_factory.mktemp("told"))
    return folder, *build(folder, LAB_MODEL="smollm2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(folders.write_gpt2(tmp_path_factory.mktemp("tiny-gpt2")))


@pytest.fixture(scope="module")
def other(tmp_path_factory, tiny):
    folder = on_model(tmp_path_factory.mktemp("other"))
    return folder, *build(folder, LAB_MODEL=tiny)


def test_a_sentence_carries_its_verdict(told):
    folder, status, output = told
    assert status == 0, output
    page = html(folder, "01-one")
    said = re.search(
        r'<span class="lab-said" data-holds="true" id="gap-is-wide">(.*?)</span></span></span>', page, re.S
    )
    assert said
    assert "+0.50</span> nats" in said[1]
    assert (
        'tabindex="0" role="img" aria-label="holds on this run" aria-describedby="how--gap-is-wide">✓</span>' in said[1]
    )
    assert 'role="tooltip" id="how--gap-is-wide"' in said[1]
    assert "noised, against no &lt;gap&gt;" in said[1]
    assert "replicates A &amp; B 2022; measured in this build" in said[1]
    assert "lab-claim" not in page, "no box is left"
    for name in ("gap-is-wide", "how--gap-is-wide", "order-plays-no-part"):
        assert page.count(f'id="{name}"') == 1
    cross = page[page.index('id="order-plays-no-part"') :]
    assert '>✗<span class="lab-mark-words"> does not hold on this run</span></span>' in cross
    assert "from recorded evidence" in cross


def test_the_ledger_has_the_sentences_and_links_to_them(told):
    folder, _, output = told
    page = html(folder, "index")
    assert page.index("The mechanism") < page.index("Findings") < page.index("Replications")
    assert "The gap is +0.50 nats, “wide” enough, with x &lt; 1 and a link." in section(page, "Replications")
    assert 'href="01-one.html#gap-is-wide"' in section(page, "Replications")
    assert "Order plays no part." in section(page, "Findings")
    assert "It is written by 3.4, by 0.5." in section(page, "The mechanism")
    assert page.count("It is written by") == 1
    assert "1 of 3 claims and 0 self-checks don't hold" in output
    assert "✗ 01-one: Order plays no part." in output


def test_what_is_said_of_a_model_is_shown_where_it_was_built(told):
    page = html(told[0], "01-one")
    assert '<div class="lab-edition docutils container">' in page
    assert "A note." in page
    assert "It is written by 9.9." not in page
    # One line for the block about another model.
    assert len(re.findall(r'<p class="lab-no-edition">What was measured is above;', page)) == 1


def test_another_model_gets_one_line_and_no_claim(other):
    folder, status, output = other
    assert status == 0, output
    page = html(folder, "01-one")
    assert page.count('<p class="lab-no-edition">') == 2
    assert "It is written" not in page
    assert "A note." not in page
    assert "1 of 2 claims and 0 self-checks don't hold" in output
    ledger = html(folder, "index")
    assert "head-writes-it" not in ledger
    assert "Nobody has written it yet." in section(ledger, "The mechanism")


def test_only_a_certified_model_fails_at_a_cross_and_no_other_looks_certified(told, other, tiny):
    status, output = build(told[0], LAB_MODEL="smollm2", LAB_STRICT="1")
    assert status != 0
    assert "LAB_STRICT is set and 1 of 3 claims" in output
    assert "ertified" not in told[2] + html(told[0], "01-one") + html(told[0], "index")
    folder = other[0]
    status, output = build(folder, LAB_MODEL=tiny, LAB_STRICT="1")
    assert status == 0, output
    assert "✗ 01-one: Order plays no part." in output
    assert "Not certified: nobody has checked what this book says of tiny-gpt2" in output
    for page in ("01-one", "index"):
        assert html(folder, page).count('<p class="lab-uncertified">Not certified: ') == 1
    assert "ertified" not in html(folder, "words"), "this page was not executed"
    assert "Not certified: " in words_of(folder, "01-one")


def words_of(folder: Path, notebook: str) -> str:
    cells = nbformat.read(folder / "_build" / "html" / "notebooks" / f"{notebook}.ipynb", 4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_a_notebook_has_plain_sentences(told):
    student, solved = words_of(told[0], "01-one"), words_of(told[0], "01-one-solved")
    for text in (student, solved):
        assert "claim" not in text
        assert "tooltip" not in text
        assert "edition" not in text
        assert "> A note." in text
        assert "\n* A point." in text
    assert "The *gap* is … nats, “wide” enough, with $x < 1$" in student
    assert "Order plays no part." in student
    assert not set("✓✗") & set(student)
    assert "The *gap* is +0.50 nats" in solved
    assert "Order plays no part. ✗ (does not hold on this run)" in solved
    assert "It is written by **3.4**, by 0.5. ✓" in solved


def test_another_model_has_all_pages_read_again(told, tiny):
    folder = told[0]
    status, output = build(folder, LAB_MODEL=tiny)
    assert status == 0, output
    assert "It is written" not in html(folder, "01-one")
    assert build(folder, LAB_MODEL="smollm2")[0] == 0
    assert "It is written by" in words(html(folder, "01-one"))


def test_a_book_without_a_model_shows_nothing_of_editions(tmp_path):
    book(
        tmp_path,
        index="# Start\n\n:::{edition} smollm2\n[It is so.]{.claim #it-is-so}\n:::\n\n```{ledger}\n```\n",
        words="# W\n",
    )
    status, output = build(tmp_path)
    assert status == 0, output
    page = html(tmp_path, "index")
    assert "lab-no-edition" not in page
    assert "It is so" not in page
    assert "The mechanism" not in page


def test_what_does_not_go_together_is_named(tmp_path):
    said = """
[Nobody claims this.]{.claim #nobody-claims-this} [No key.]{.claim} [Gap.]{.claim #gap-is-wide}

:::{edition} gpt3
Words.
:::
"""
    cell = '\n```{code-cell} python3\nfrom labcode import report\nreport.claim("nobody-says-this", True, "noised")\n'
    cell += 'report.claim("gap-is-wide", True, "noised")\nreport.claim("gap-is-wide", True, "noised")\n```\n'
    book(tmp_path, index="# Start\n", one="# One\n" + said + cell)
    status, output = build(tmp_path)
    assert status != 0
    for warning in (
        "no cell of this page claims #nobody-claims-this",
        "a claim needs a key",
        "no sentence of this page says what is claimed: [...]{.claim #nobody-says-this}",
        "the claim #gap-is-wide is made twice",
        "edition gpt3: no such model; use smollm2, gpt2",
    ):
        assert warning in output, warning
