"""What can be checked of the chapters without running them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "book").glob("*.md"))
CHAPTERS = [page for page in PAGES if page.name[:2].isdigit()]

FENCE = re.compile(
    r"^(`{3,}|:{3,}|~{3,})\{?(code-cell|literalinclude|raw|text|bibliography|ledger)\b.*?^\1\s*$", re.M | re.S
)
# Figures that were published, in their own box, with their source.
PUBLISHED = re.compile(r"^:::+\{admonition\} [^\n]*\n:class: gpt2\n.*?^:::+\s*$", re.M | re.S)
METRIC = re.compile(
    r"logit|probabil|accura|\bmean\b|\bshare|interval|correlat|restor|attribut|faithful|\bscale\b|differen|right name",
    re.I,
)
# The level of an interval is a convention, not a measurement.
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+\.\d+(?![\w.])|(?<![\w.])(?!95 ?%)\d+(?:\.\d+)? ?%")
CELL = re.compile(r"^```\{code-cell\}.*?^```\s*$", re.M | re.S)


def prose(text: str) -> str:
    """The page without its code, its front matter, its links' targets and the numbers that the run puts in."""
    text = re.sub(r"\A---.*?^---\s*$", "", text, flags=re.M | re.S)
    text = PUBLISHED.sub("", FENCE.sub("", text))
    text = re.sub(r"\{[\w:]+\}`[^`]*`", "", text)
    return re.sub(r"`[^`]*`", "", text)


def typed_numbers(text: str) -> list[str]:
    """Sentences that name a metric and carry a number that somebody typed."""
    sentences = re.split(r"(?<=[.!?:])\s+(?=[A-Z*\[])|\n\s*\n|\n\|", prose(text))
    return [s.strip() for s in sentences if METRIC.search(s) and NUMBER.search(s)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_number_is_typed_next_to_a_metric(page):
    assert typed_numbers(page.read_text()) == []


@pytest.mark.parametrize(
    "sentence",
    [
        "The mean logit difference is 3.56 here.",
        "It is right on 99 % of prompts, a high accuracy.",
        "| accuracy | 0.98 |",
    ],
)
def test_the_check_finds_typed_numbers(sentence):
    assert typed_numbers(f"Some words.\n\n{sentence}\n") != []


def test_the_check_lets_the_runs_numbers_pass():
    assert typed_numbers("The mean is {glue:text}`ld:+.2f` (95 % interval {glue:text}`low:.2f`).") == []


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_what_is_said_of_gpt2_small_has_its_source(page):
    text = page.read_text()
    assert text.count(":class: gpt2") == len(PUBLISHED.findall(text))
    for box in PUBLISHED.findall(text):
        assert re.search(r"\{cite:|\{published\}", box)


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_a_chapter_has_its_parts(page):
    text = page.read_text()
    for part in (
        "You will be able to",
        ":class: predict",
        "## Exercises",
        "## Expected and observed",
    ):
        assert part in text, part
    assert "## What we now believe" in text
    assert "## Sources" in text
    assert "## What would have fooled us" in text
    assert len(re.findall(r"\{exercise-start\}", text)) >= 2
    assert re.search(r"\{exercise-start\} Break it", text)
    assert text.count("{exercise-start}") == text.count("{solution-start}")
    first = text.split("\n# ", 1)[1].split("\n\n")[1]
    assert first.startswith("**")
    assert first.rstrip("*").endswith("?")


ABOUT_HEADS = [page for page in CHAPTERS if page.name[:2] <= "13"]
TOOLS = "04-instruments"  # says nothing about the model
MECHANISM = {
    "who writes": "mechanism-writer",
    "what it reads, and through which input": "mechanism-writer-input",
    "who informs whom of what": "mechanism-informants",
    "what marks the repetition": "mechanism-repetition",
    "the chain": "mechanism-chain",
    "where the answer moves, and in how many steps": "mechanism-two-instalments",
    "who holds back copying": "mechanism-holds-back",
    "what MLPs add": "mechanism-mlps",
    "who likes a place": "mechanism-place-liking",
    "what the rest would answer": "mechanism-rest",
    "which links were measured, and how strong": "mechanism-links",
    "how it differs from GPT-2 small": "mechanism-not-gpt2",
    "what a second mention of IO does": "mechanism-variants-io",
    "what a third mention of S does": "mechanism-variants-s",
    "swap against noise": "mechanism-swap-noise",
    "how much of the answer the circuit keeps": "mechanism-circuit-share",
}


@pytest.mark.parametrize("page", ABOUT_HEADS, ids=lambda page: page.stem)
def test_a_chapter_about_heads_concludes_about_this_model_and_tells_the_published_story(page):
    text = page.read_text()
    assert ":class: gpt2" in text
    if page.stem != TOOLS:
        closing = text.split("## What we now believe", 1)[1]
        assert ":::{edition} smollm2" in closing
        assert ".claim #" in closing
        assert "sketch.so_far(" in closing


def test_each_fact_of_the_mechanism_is_a_sentence_of_its_edition():
    told = "\n".join(
        re.findall(
            r"^:::+\{edition\} smollm2\n.*?^:::+\s*$", "\n".join(page.read_text() for page in ABOUT_HEADS), re.M | re.S
        )
    )
    missing = {fact: key for fact, key in MECHANISM.items() if f"{{.claim #{key}}}" not in told}
    assert not missing


EXERCISE = re.compile(r"\{exercise-start\} (.+?)\n:label: (ex-\d\d-\d)\n```\n(.*?)```\{exercise-end\}", re.S)
SOLUTION = re.compile(r"\{solution-start\} (ex-\d\d-\d)\n:class: dropdown\n```\n(.*?)```\{solution-end\}", re.S)
MARKED = re.compile(r"\*(\d+) minutes, (easy|medium|hard)(; break it on purpose)?\.\*")


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_an_exercise_has_its_parts(page):
    """Time and difficulty, a hint, code to start from, and a solution that the course checks."""
    text = page.read_text()
    exercises, solutions = EXERCISE.findall(text), dict(SOLUTION.findall(text))
    assert len(exercises) == text.count("{exercise-start}")
    assert [label for _, label, _ in exercises] == [f"ex-{page.name[:2]}-{i + 1}" for i in range(len(exercises))]
    for title, label, body in exercises:
        marked = MARKED.match(body)
        assert marked, label
        assert 5 <= int(marked[1]) <= 60, label
        assert title.startswith("Break it") == bool(marked[3]), label
        assert ":::{admonition} Hint\n:class: dropdown\n" in body, label
        assert body.count(":tags: [starter]") == 1, label
        number = label.removeprefix("ex-").replace("-", ".")
        assert solutions[label].count("checks.check(") == 1, label
        assert f'checks.check("{number}", ' in solutions[label], label


def test_there_are_enough_exercises():
    assert sum(page.read_text().count("{exercise-start}") for page in CHAPTERS) >= 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_cells_fit_the_page(page):
    for cell in CELL.findall(page.read_text()):
        code = re.sub(r"\A```.*?\n(---\n.*?---\n)?", "", cell, flags=re.S)
        assert [line for line in code.splitlines() if len(line) > 92] == []
        assert len(code.strip().splitlines()) <= 22


SAYS = re.compile(r"report\.(claim|check|put|expected|show_table|compare|published)$")


def says(statement: ast.stmt) -> bool:
    """Whether a statement only tells what was found: a claim, a check, values for the text, a table."""
    if isinstance(statement, ast.If):
        return all(map(says, statement.body + statement.orelse))
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and bool(SAYS.match(ast.unparse(call.func)))


def names(code: str, context: type[ast.expr_context]) -> set[str]:
    found = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name))
    return {node.id for node in found if isinstance(node.ctx, context)}


def unfolded_reports(page: Path) -> list[str]:
    """Cells in full view that only tell: reporting calls, and plain assignments that no other cell reads."""
    cells = [cell for cell in jupytext.read(page).cells if cell.cell_type == "code"]
    cells = [cell for cell in cells if not cell.source.lstrip().startswith("%")]
    found = []
    for cell in cells:
        if {"hide-input", "hide-cell", "starter"} & set(cell.metadata.get("tags", ())):
            continue
        body = ast.parse(cell.source).body
        feeds = set().union(*(names(other.source, ast.Load) for other in cells if other is not cell))
        told = [says(statement) for statement in body]
        rest = [statement for statement, tells in zip(body, told, strict=True) if not tells]
        plain = all(isinstance(s, ast.Assign) and not names(ast.unparse(s), ast.Store) & feeds for s in rest)
        if any(told) and plain:
            found.append(cell.source)
    return found


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_a_cell_that_only_tells_is_folded(page):
    assert unfolded_reports(page) == []


def test_the_check_finds_cells_that_only_tell(tmp_path):
    page = tmp_path / "page.md"
    head = "---\nfile_format: mystnb\nkernelspec:\n  display_name: Python 3\n  name: python3\n---\n\n"
    tell, work = "twice = 2 * x\nreport.put(twice=twice)", "x = run()\nreport.put(x=x)"
    page.write_text(head + "\n".join(f"```{{code-cell}} ipython3\n{code}\n```\n" for code in (work, tell)))
    assert unfolded_reports(page) == [tell]


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_no_cell_names_a_head_or_a_token_id(page):
    for cell in CELL.findall(page.read_text()):
        if "lab.dla" not in cell:  # keys of published figures do
            assert not re.search(
                r"hook_\w+\"\]\[[^]]*,\s*\d{2,}|blocks\.[1-9]\d*\.|\bhead\s*=\s*\d|\blayer\s*=\s*\d", cell
            )


@pytest.mark.parametrize("page", [page for page in PAGES if CELL.search(page.read_text())], ids=lambda page: page.stem)
def test_a_chapter_opens_as_a_notebook(page):
    notebook = jupytext.read(page)
    nbformat.validate(notebook)
    assert sum(cell.cell_type == "code" for cell in notebook.cells) == len(CELL.findall(page.read_text()))


def test_contents_and_chapters_are_the_same():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = {toc["root"]} | {c["file"] for part in toc["parts"] for c in part["chapters"]}
    assert listed == {f"book/{page.stem}" for page in PAGES}


def test_no_two_figures_share_a_name():
    """Labels belong to the whole book, and a second one is a warning of the build, minutes later."""
    names = [name for page in PAGES for name in re.findall(r"^ +name: (fig-\S+)$", page.read_text(), flags=re.M)]
    assert len(names) > 10
    assert sorted({name for name in names if names.count(name) > 1}) == []


def claims(page: Path) -> list[ast.Call]:
    """The calls of `report.claim` in a chapter's cells."""
    notebook = jupytext.read(page)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code" and "report.claim" in cell.source]
    calls = [node for cell in cells for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func) == "report.claim"]


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_a_claim_says_what_it_was_held_against(page):
    for call in claims(page):
        assert len(call.args) >= 4 or "against" in {word.arg for word in call.keywords}, ast.unparse(call.args[0])


KEY = re.compile(r"\]\{[^{}]*\.claim\b[^{}]*#([\w-]+)[^{}]*\}")


def keys(page: Path) -> list[str]:
    """The keys that a chapter's cells claim."""
    return [ast.literal_eval(call.args[0]) for call in claims(page)]


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_a_claim_is_a_sentence_of_its_page(page):
    """The build warns of it too, minutes later."""
    text = re.sub(r"`[^`\n]*`", "", CELL.sub("", page.read_text()))
    assert len(re.findall(r"\]\{[^{}]*\.claim\b", text)) == len(KEY.findall(text)), "a sentence without a key"
    assert sorted(KEY.findall(text)) == sorted(keys(page))


def test_no_two_claims_share_a_key():
    known = [key for page in CHAPTERS for key in keys(page)]
    assert sorted({key for key in known if known.count(key) > 1}) == []


def test_claims_are_found():
    assert sum(len(claims(page)) for page in CHAPTERS) >= 40
