"""The notebooks that a build makes of chapters, on a small book with every construct that chapters use."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import nbformat
import pytest
import yaml
from docutils import nodes
from IPython.core.inputtransformer2 import TransformerManager
from test_sphinxext_build import book, build, html

from labbook._ext import installcell
from labbook._ext.plainmarkdown import PlainMarkdown

ROOT = Path(__file__).parents[2]
OTHER = """\
# The other

```{code-cell} python3
from myst_nb import glue
glue("far", 12, display=False)
```
"""
EVERYTHING = """\
# A *small* chapter

**Does it work?**

| Model | Builds on |
|---|---|
| {glue:text}`name` | [The other](03-other.md), `a\\|b` |

% a remark to the authors
It is {glue:text}`gap:+.2f`, and {glue:text}`03-other.md::far:d` there {cite:p}`wang,two`.
{cite:t}`two` said "so" of $a_{b}$. See [the next](03-other.md), [a page](plain.md), [this site](https://example.org/a),
{ref}`the-end`, {numref}`fig-one` and {eq}`sum`. A logit is a term. Signs: 2 \\* 3, \\$5, a < b, [3 batch], d_model.

1 + 1 is 2, and `{glue:text}` is code.

$$
a + b
$$ (sum)

* one
  * inside
* two

```{raw} html
<figure class="lab-diagram" role="img" aria-label="A line.">
<svg viewBox="0 0 9 9" xmlns="http://www.w3.org/2000/svg" font-family="inherit"><path d="M0 0 H9"/></svg>
</figure>
```

```{raw} html
<div>Only the site has a use for this.</div>
```

:::{admonition} Predict before you run
:class: predict
How large is {glue:text}`gap:.1f`?

* a list
:::

:::{note}
Words of a note.
:::

:::{dropdown} The function
```{literalinclude} code.py
:pyobject: second
```
:::

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
import plotly.graph_objects as go
from myst_nb import glue
glue("gap", 0.5, display=False)
glue("name", "a*b|c", display=False)
go.Figure(go.Bar(y=[1, 2]), layout={"meta": {"alt": "Two bars."}})
```

## Exercises

```{exercise-start} Break it: a sign
:label: ex-05-1
```
*5 minutes, easy.* What is wrong?

:::{admonition} Hint
:class: dropdown
Look at the `sign`.
:::
```{exercise-end}
```

```{solution-start} ex-05-1
:class: dropdown
```
The secret.

```{code-cell} ipython3
class checks:
    check = print
answer = -1
checks.check("05.1", answer)
```
The last word.
```{solution-end}
```

```{exercise-start} With a beginning
:label: ex-05-2
```
Turn it.

```{code-cell} ipython3
:tags: [starter]
def turned(x):
    ...
```

```{code-cell} ipython3
checks.check("05.2", turned)
```
```{exercise-end}
```

```{solution-start} ex-05-2
```
```{code-cell} ipython3
print("solved")
```
```{solution-end}
```

```{exercise-start} Without a check
:label: ex-05-3
```
Think.
```{exercise-end}
```

(the-end)=
## The end
"""
BIBLIOGRAPHY = """
@misc{wang, author={Wang, Kevin and Roe, A. and Poe, B.}, title={On {GPT}-2}, year={2023}, note={A note}}
@misc{two, author={Roe, A. and Poe, B.}, title={Pair}, year={2024}}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    pages = {"05-all": EVERYTHING, "03-other": OTHER, "plain": "# A plain page\n\n\nWords.\n"}
    pages["bibliography"] = "# Works\n\n```{bibliography}\n```\n"
    pages["glossary"] = "# Glossary\n\n```{glossary}\nlogit\n  A number.\n```\n"
    book(folder, index="# Start\n\nWords.\n", **pages)
    config = yaml.safe_load((folder / "_config.yml").read_text())
    config["sphinx"]["config"] |= {"bibtex_reference_style": "author_year", "numfig": True}
    config["sphinx"]["config"]["extensions"].insert(0, "sphinxcontrib.bibtex")
    (folder / "_config.yml").write_text(yaml.safe_dump(config | {"bibtex_bibfiles": ["refs.bib"]}))
    (folder / "refs.bib").write_text(BIBLIOGRAPHY)
    (folder / "code.py").write_text("def first():\n    return 1\n\n\ndef second():\n    return 2\n")
    for name in ("pyproject.toml", "requirements.txt"):
        (folder / name).write_text((ROOT / name).read_text())
    status, said = build(folder, LAB_REPOSITORY="")
    assert status == 0, said
    return folder


def notebook(folder: Path, name: str) -> nbformat.NotebookNode:
    return nbformat.read(folder / "_build" / "html" / "notebooks" / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module")
def student(built):
    return notebook(built, "05-all")


@pytest.fixture(scope="module")
def solved(built):
    return notebook(built, "05-all-solved")


def prose(notebook: nbformat.NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def code(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_words_are_those_of_the_page_and_signs_show_as_signs(solved):
    words = prose(solved)
    assert "# 5. A *small* chapter\n\n**Does it work?**" in words
    assert "| Model | Builds on |\n| --- | --- |\n| a\\*b\\|c | [The other](03-other-solved.ipynb), `a\\|b` |" in words
    assert r"Signs: 2 \* 3, \$5, a &lt; b, \[3 batch], d_model." in words
    assert "1 + 1 is 2, and `{glue:text}` is code.\n\n$$\na + b \\tag{1}\n$$\n\n* one\n\n  * inside\n* two" in words
    assert "```text\n{glue:text} stays: this is code\n```" in words
    assert "remark" not in words
    assert "Only the site" not in words


def test_the_runs_values_stand_in_the_solved_notebook_only(student, solved):
    assert "It is +0.50, and 12 there (Roe and Poe, 2024, Wang *et al.*, 2023)." in prose(solved)
    assert "It is …, and … there (Roe" in prose(student)
    assert "Values appear when you run" in student.cells[1].source
    assert "one run" in solved.cells[1].source


def test_citations_links_and_references_are_words_or_sibling_notebooks(student, solved):
    words = prose(solved)
    assert (
        "Roe and Poe (2024) said “so” of $a_{b}$. See [the next](03-other-solved.ipynb), a page (in the book)" in words
    )
    assert "[this site](https://example.org/a), The end, Fig. 1 and (1). A logit is a term." in words
    assert "[the next](03-other.ipynb)" in prose(student)
    assert "## Works cited\n\n* A. Roe and B. Poe. Pair. 2024.\n* Kevin Wang, A. Roe, and B. Poe. On GPT-2." in words


def test_boxes_are_quotations_and_folds(solved):
    words = prose(solved)
    assert "> **Predict before you run**\n>\n> How large is 0.5?\n>\n> * a list" in words
    assert "> **Note**\n>\n> Words of a note." in words
    function = "```python\ndef second():\n    return 2\n```"
    assert f"<details><summary>The function</summary>\n\n{function}\n\n</details>" in words
    assert "<details><summary>Hint</summary>\n\nLook at the `sign`.\n\n</details>" in words


def test_a_diagram_is_a_picture_with_its_words(solved):
    alt, source = re.search(r'<img alt="([^"]*)" src="data:image/svg\+xml;base64,([^"]*)"', prose(solved)).groups()
    drawing = ElementTree.fromstring(base64.b64decode(source))
    assert alt == "A line."
    assert "background:#fff" in drawing.get("style")
    assert drawing.get("font-family") == "sans-serif"


def test_a_figure_has_its_words_and_its_caption(solved):
    at, cell = next((at, cell) for at, cell in enumerate(solved.cells) if "go.Figure" in cell.source)
    assert solved.cells[at + 1].source.startswith("_Fig. 1: A figure with *emphasis*: 0.5._")
    assert cell.metadata == {"tags": ["hide-input"], "jupyter": {"source_hidden": True}}
    assert [one.data["text/plain"] for one in cell.outputs] == ["Figure: Two bars."], "a glued value shows nothing"


def test_a_student_finds_a_blank_and_the_check(student, solved):
    assert "### Exercise 05.1: Break it: a sign" in prose(student)
    assert "#### Solution of exercise 05.2" in prose(solved)
    assert not re.search("The secret|answer = -1|The last word|Solution of", str(student))
    assert all(not cell.outputs and cell.execution_count is None for cell in student.cells if "outputs" in cell)
    first, check, begun, kept, last = code(student)[2:]
    with pytest.raises(NotImplementedError, match=r"Exercise 05\.1: write your answer in this cell, then run on"):
        exec(first, {})
    assert "# the check in the next cell reads: answer\n" in first
    assert check == 'checks.check("05.1", answer)'
    assert begun.startswith("def turned(x):\n    ...\n\n\n# your answer here"), "the starter is the blank"
    assert kept == 'checks.check("05.2", turned)'
    assert "Exercise 05.3" in last


def test_a_page_offers_its_notebooks(built):
    page = html(built, "05-all")
    links = re.findall(r'<a href="(notebooks/[^"]+)" download aria-label="([^"]*)">(\w+)</a>', page)
    assert [shown for _, _, shown in links] == ["student", "solved"]
    for address, label, shown in links:
        assert (built / "_build" / "html" / address).is_file()
        assert shown in label
    text = page[page.index("<h1>") :]
    assert text.index("lab-notebooks") < text.index("Does it work?")
    assert "lab-notebooks" not in html(built, "plain")
    title = re.search(r'id="ex-05-1">\s*<p class="admonition-title">(.*?)</p>', page, re.S)
    assert re.sub(r"<.*?>", "", title[1]) == "Exercise 05.1  (Break it: a sign)"


def test_a_build_writes_only_what_changed_and_takes_away_what_is_gone(built):
    target = built / "_build" / "html" / "notebooks"
    (target / "09-gone.ipynb").write_text("{}")
    before = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    one = built / "05-all.md"
    one.write_text(one.read_text() + "\n![a drawing](drawing.png)\n\n```{only} html\nOther *words*.\n```\n")
    (built / "drawing.png").write_bytes(b"")
    status, said = build(built)
    assert status == 0, said
    changed = {path.name for path in target.iterdir() if path.stat().st_mtime_ns != before[path.name]}
    assert changed == {"05-all.ipynb", "05-all-solved.ipynb"}
    assert not (target / "09-gone.ipynb").exists()
    words = prose(notebook(built, "05-all"))
    assert "*a drawing* (in the book)" in words
    assert "Other *words*." in words, "what is inside an unknown block must not vanish"


@pytest.mark.parametrize(("text", "shown"), [("- 1 more", r"\- 1 more"), ("12. May", r"12\. May"), ("# 3", r"\# 3")])
def test_a_paragraph_stays_a_paragraph(text, shown):
    assert PlainMarkdown(solved=True).of(nodes.paragraph("", text)) == shown


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
    assert "checkout" not in cell


def test_a_user_in_the_address_is_no_revision():
    cell = installcell.source(ROOT, "ssh://git@git.example.org/o/n.git")
    assert "'ssh://git@git.example.org/o/n.git', \"interp-lab.part\"" in cell
    assert "checkout" not in cell
    cell = installcell.source(ROOT, "git@git.example.org:o/n.git@v1")
    assert "'git@git.example.org:o/n.git', \"interp-lab.part\"" in cell
    assert '"checkout", "--quiet", \'v1\', "--"' in cell


class Installed(NamedTuple):
    folder: Path
    said: str
    asked: list[list[str]]


def installed(folder: Path, repository: str, before: str = "") -> Installed:
    """What the first cell does in an empty folder, with a pip that only notes what it is asked for."""
    package = folder / "noted" / "pip"
    package.mkdir(parents=True)
    package.joinpath("__init__.py").touch()
    note = "import json, sys\nprint(json.dumps(sys.argv[1:]), file=open('asked.jsonl', 'a'))\n"
    package.joinpath("__main__.py").write_text(note)
    code = f"{before}\n{installcell.source(ROOT, repository)}"
    given = {**os.environ, "PYTHONPATH": str(folder / "noted")}
    # -S: no installed packages, so no labcode; the folder of the script is the first of the path.
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=60, check=False)
    asked = folder / "asked.jsonl"
    lines = asked.read_text().splitlines() if asked.is_file() else []
    return Installed(folder, done.stdout + done.stderr, [json.loads(line) for line in lines])


@pytest.fixture
def repository(tmp_path):
    """A repository whose name a shell would run, of two revisions."""
    folder = tmp_path / "a;touch broken"
    (folder / "book").mkdir(parents=True)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for revision in ("first", "second"):
        (folder / "book" / "which.txt").write_text(revision)
        for command in (["add", "-A"], ["commit", "--quiet", "-m", revision], ["tag", revision]):
            subprocess.run([*git, *command], check=True)
    return folder


def test_the_first_cell_clones_what_it_is_told_and_no_shell_reads_it(tmp_path, repository):
    (tmp_path / "work").mkdir()
    done = installed(tmp_path / "work", str(repository))
    assert "Installed." in done.said
    assert (done.folder / "interp-lab" / "labbook" / "which.txt").read_text() == "second"
    assert not list(tmp_path.rglob("broken"))
    assert [asked[:2] for asked in done.asked] == 2 * [["install", "--quiet"]]
    assert ("torch==2.13.0" in done.asked[0], done.asked[1][2:]) == (True, ["--no-deps", installcell.WEIGHTS])


def test_the_first_cell_takes_the_revision(tmp_path, repository):
    (tmp_path / "work").mkdir()
    done = installed(tmp_path / "work", f"{repository.as_uri()}@first".replace("%3B", ";").replace("%20", " "))
    assert (done.folder / "interp-lab" / "book" / "which.txt").read_text() == "first", done.said


def test_the_first_cell_names_what_is_in_memory_in_another_version(tmp_path, repository):
    (tmp_path / "work").mkdir()
    lines = ["import sys, types"]
    for name, version in (("numpy", "1.0"), ("torch", "2.13.0+cpu")):
        lines += [
            f"sys.modules['{name}'] = types.ModuleType('{name}')",
            f"sys.modules['{name}'].__version__ = '{version}'",
        ]
    done = installed(tmp_path / "work", str(repository), "\n".join(lines))
    assert re.search(r"This kernel still has numpy 1\.0 instead of [\d.]+: restart it", done.said)
    assert "Installed." not in done.said


def test_the_first_cell_stops_with_a_sentence_where_it_cannot_clone(tmp_path):
    (tmp_path / "work").mkdir()
    done = installed(tmp_path / "work", str(tmp_path / "none"))
    assert "`git clone --quiet -- ...` failed (128)" in done.said
    assert not done.asked


def test_a_notebook_shows_the_sentence_of_the_first_cell_alone(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Exception, match="labcode isn't installed here") as stopped:
        exec(compile(installcell.source(ROOT, ""), "cell", "exec"), {})
    assert stopped.value._render_traceback_() == [str(stopped.value)]
    assert installcell.WEIGHTS in (ROOT / "install.py").read_text()
