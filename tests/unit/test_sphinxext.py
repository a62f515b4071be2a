"""The parts of the Sphinx extension that need no build: payloads, keys, records, formulas, the model's answer."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from docutils import nodes
from docutils.utils import new_document
from math_core import LatexError
from sphinx.errors import ExtensionError

import labcode
from labbook._ext import closing, execution, ext, figures, head, ledger, maths

HOSTILE = '</script><!-- "quoted" & \u2028 <b>'


def figure(**layout: object) -> dict:
    return {"data": [{"type": "bar", "name": HOSTILE, "y": [1, 2]}], "layout": layout}


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))


def test_a_payload_cannot_leave_its_script_element_and_reads_back():
    text = figures.payload(figure(title={"text": HOSTILE}))
    assert not set("<>&") & set(text)
    assert json.loads(text)["data"][0]["name"] == HOSTILE
    assert json.loads(text)["layout"]["title"]["text"] == HOSTILE


def test_the_figure_element_is_whole_whatever_the_text_alternative_says():
    made = figures.element(figure(meta={"alt": HOSTILE}, height=300))
    (div, attributes), *rest = Tags(made).tags
    assert div == "div"
    assert attributes["aria-label"] == HOSTILE.strip()
    tags = [tag for tag, _ in rest]
    assert tags.count("svg") == 2
    assert tags[-1] == "script"
    told = figures.element({**figure(meta={"alt": HOSTILE}), "data": [{"type": "pie"}]})
    assert unescape(re.search(r'<p class="lab-alt">(.*?)</p>', told, re.DOTALL)[1]) == HOSTILE.strip()


def test_a_figure_keeps_its_colours_and_leaves_the_rest_of_the_template_to_the_page():
    template = {"layout": {"colorway": ["#123456"], "paper_bgcolor": "white"}, "data": {"bar": [{}]}}
    before = figure(template=template, width=700, font={"color": "red"})
    sent = json.loads(figures.payload(before))
    assert sent["colors"] == {"colorway": ["#123456"]}
    assert sent["layout"] == {"font": {"color": "red"}}
    assert before["layout"]["width"] == 700, "the cached output must not change"


@pytest.mark.parametrize("layout", [{}, {"meta": {}}, {"meta": {"alt": "  "}}, {"meta": "words"}, {"meta": None}])
def test_a_missing_alternative_is_seen(layout):
    assert figures.alternative(figure(**layout)) == ""


@pytest.fixture
def tree(tmp_path):
    for name in ("labcode/plots.py", "labcode/a/b.py", "book/show/x.py", "book/checks/x.py", "book/data/x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "requirements.txt").write_text("torch")
    return tmp_path


def key(tree: Path, model: str = "m") -> str:
    return execution.fingerprint(tree, model, tree / "labcode")


@pytest.mark.parametrize(
    "changed",
    ["labcode/plots.py", "labcode/a/b.py", "book/show/x.py", "book/checks/x.py", "requirements.txt", "book/data/a"],
)
def test_what_can_change_an_output_changes_the_key(tree, changed):
    before = key(tree)
    (tree / changed).write_text("other")
    assert key(tree) != before


def test_the_model_and_a_new_name_change_the_key(tree):
    before = key(tree)
    assert key(tree, "another") != before
    (tree / "labcode" / "plots.py").rename(tree / "labcode" / "figures.py")
    assert key(tree) != before


@pytest.mark.parametrize(
    "changed", ["book/_ext/ext.py", "book/data/make/x.py", "labcode/__pycache__/plots.pyc", "README.md"]
)
def test_what_cannot_change_an_output_keeps_the_key(tree, changed, monkeypatch):
    before = key(tree)
    (tree / changed).parent.mkdir(exist_ok=True)
    (tree / changed).write_text("other")
    monkeypatch.setenv("LAB_STRICT", "1")
    assert key(tree) == before


def test_line_ends_and_hidden_files_keep_the_key(tree):
    before = key(tree)
    for name in ("labcode/plots.py", "book/data/x.py", "requirements.txt"):
        (tree / name).write_text(f"{name}\nmore\n")
    changed = key(tree)
    assert changed != before
    for name in ("labcode/plots.py", "book/data/x.py", "requirements.txt"):
        (tree / name).write_bytes(f"{name}\r\nmore\r\n".encode())
    (tree / "book" / "data" / ".ipynb_checkpoints").mkdir()
    (tree / "book" / "data" / ".ipynb_checkpoints" / "x-checkpoint.py").write_text("")
    assert key(tree) == changed


def test_only_the_newest_caches_stay(tmp_path):
    for age, name in enumerate(["newest", "newer", "old", "oldest"]):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    assert execution.cache_folder(tmp_path, "mine") == tmp_path / "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "newer", "newest"]
    execution.cache_folder(tmp_path, "newer")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "newer", "newest"]


def glued(**values: object) -> dict:
    return {name.replace("__", "."): {"data": {"text/plain": repr(value)}} for name, value in values.items()}


def test_records_come_back_from_glue():
    false = {"kind": "claim", "text": HOSTILE, "holds": False, "method": "noised"}
    compared = {"kind": "compare", "quantity": "q", "measured": 1.5, "published": 2.0, "verdict": "differs"}
    checked = {"kind": "check", "text": "1 + 1 = 2", "holds": True, "method": "self-check"}
    texts = {
        "ledger__claim__1": json.dumps(false),
        "ledger__check__3": json.dumps(checked),
        "ledger__compare__2": json.dumps(compared),
        "ledger__recorded__4": json.dumps({"kind": "recorded", "names": ["ld"]}),
    }
    page = ledger.parse(glued(ld=3.5, **texts))
    assert page.claims == [false]
    assert page.checks == [checked]
    assert page.comparisons == [compared]
    assert page.numbers == {"ld": "3.5"}
    assert page.recorded == {"ld"}
    assert page.crosses == [HOSTILE]


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_strict_is_a_switch(monkeypatch, value, expected):
    monkeypatch.setenv("LAB_STRICT", value)
    assert closing.strict() is expected


FORMULAS = {
    r"x \text{ if } y": "<mtext>\u00a0if\u00a0</mtext>",
    r"\begin{cases}1 & x>0\\0 & \text{otherwise}\end{cases}": "<mtable",
    r"\begin{aligned}a &= b\\ &= c\end{aligned}": "<mtable",
    r"\begin{align}a &= b\label{eq}\\ &= c\nonumber\end{align}": "<mtable",
    r"a\\b": "<mtable",
    r"\left\lVert x\right\rVert_2": "‖",
    r"\operatorname{softmax}(x)": "<mi>softmax</mi>",
    r"\begin{bmatrix}1 & 2\\3 & 4\end{bmatrix}": "<mtable",
}


@pytest.mark.parametrize("latex", FORMULAS)
def test_the_usual_formulas_become_mathml_with_their_source(latex):
    made = maths.to_mathml(latex, display=True)
    assert FORMULAS[latex] in made
    assert Tags(made).tags[0][1] == {"alttext": latex, "display": "block"}
    assert "(1)" not in made, "Sphinx numbers the equations"


@pytest.mark.parametrize("latex", [r"\foo{x}", r"\frac{a", r"a & b"])
def test_a_wrong_formula_is_an_error(latex):
    with pytest.raises(LatexError):
        maths.to_mathml(latex, display=False)


def test_the_model_is_asked_for_in_a_process_of_its_own():
    answer = {"name": "smollm2", "title": "SmolLM2", "why": "asked", "folder": "/f", "fingerprint": "abc"}
    code = f"import sys; print('noise'); print('a bar', file=sys.stderr); print({json.dumps(json.dumps(answer))})"
    assert execution.chosen(True, ("-c", code)) == answer
    assert execution.chosen(False, ("-c", "raise SystemExit(1)")) == {}


def test_without_a_model_the_build_ends_and_says_why():
    done = subprocess.run(
        [sys.executable, "-c", "from labbook._ext import execution; execution.chosen(True)"],
        env={**os.environ, "LAB_MODEL": "gpt5"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "LAB_MODEL=gpt5 isn't a model" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def pages(source: str) -> list[execution.Job]:
    cell = nbformat.v4.new_code_cell(source)
    return [execution.Job("one", Path("one.md"), nbformat.v4.new_notebook(cells=[cell]))]


@pytest.mark.parametrize(
    ("model", "source", "written"),
    [
        ({"name": "gpt2"}, "text = corpus.load_corpus(model)", True),
        ({"name": "gpt2"}, "made = sae.train(text)", True),
        ({"name": "gpt2"}, "patching.sweep(model)", False),
        ({"name": "smollm2", "certified": True}, "text = corpus.load_corpus(model)", False),
        ({}, "text = corpus.load_corpus(model)", False),
    ],
)
def test_text_is_written_before_the_chapters_that_read_it(tmp_path, model, source, written):
    execution.write_text(model, pages(source), ("-c", f"open({str(tmp_path / 'text')!r}, 'w')"))
    assert (tmp_path / "text").exists() is written


def test_a_model_that_writes_no_text_ends_the_build():
    with pytest.raises(SystemExit):
        execution.write_text({"name": "gpt2"}, pages("corpus.load_corpus(model)"), ("-c", "raise SystemExit(1)"))


def test_the_extension_imports_no_torch():
    code = "import sys, labbook._ext.ext, labbook._ext.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_science_knows_neither_sphinx_nor_the_book():
    """No import of either stands in labcode; only `report` reaches for myst-nb, whose glue it leaves its numbers in."""
    for path in sorted(Path(labcode.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            foreign = {name.split(".")[0] for name in names} & {"labbook", "sphinx", "docutils", "myst_nb"}
            assert not foreign - ({"myst_nb"} if path.stem == "report" else set()), path


@pytest.mark.parametrize("asked", ["0", "two", "-1", "1.5"])
def test_a_wrong_number_of_jobs_ends_the_build(monkeypatch, asked):
    monkeypatch.setenv("LAB_JOBS", asked)
    with pytest.raises(SystemExit):
        execution.at_once()


@pytest.mark.parametrize(("seconds", "said"), [(0.04, "0.0 s"), (9.96, "10 s"), (41, "41 s"), (63.2, "1 min 3 s")])
def test_durations_are_words(seconds, said):
    assert execution.duration(seconds) == said


def test_the_largest_begins_and_neighbours_do_not_begin_together():
    sizes = {1: 0, 2: 3, 3: 9, 4: 3, 5: 1, 6: 1}
    assert execution.in_turn([], sizes.get) == []
    assert execution.in_turn([1], sizes.get) == [1]
    assert execution.in_turn([1, 2, 3, 4, 5], sizes.get) == [3, 1, 5, 2, 4]
    assert execution.in_turn([1, 2, 3, 4, 5, 6], sizes.get) == [3, 1, 6, 2, 5, 4]


def site_of(folder, nested: bool = True, **written: str) -> SimpleNamespace:
    """What a part of the extension asks Sphinx for when the pages are written."""
    for name, page in written.items():
        (folder / "book").mkdir(exist_ok=True)
        (folder / "book" / f"{name}.html").write_text(page)
    inside = {"book/index": ["book/one"], "book/one": ["book/two"] if nested else []}
    return SimpleNamespace(
        builder=SimpleNamespace(name="html", format="html"),
        outdir=folder,
        env=SimpleNamespace(toctree_includes=inside),
        config=SimpleNamespace(root_doc="book/index", html_baseurl=""),
    )


def test_pages_are_mended_once_and_pages_of_an_earlier_build_count(tmp_path):
    app = site_of(tmp_path, index="".join(ext.MENDS), one="Words")
    for _ in range(2):
        ext.mend_theme(app, None)
        assert (tmp_path / "book" / "index.html").read_text() == "".join(ext.MENDS.values())


@pytest.mark.parametrize("wrong", ext.MENDS)
def test_a_theme_that_has_changed_is_said(tmp_path, wrong):
    app = site_of(tmp_path, index="".join(ext.MENDS).replace(wrong, wrong.replace("a", "A")))
    with pytest.raises(ExtensionError, match=f"no page has {re.escape(wrong)}: look at MENDS anew"):
        ext.mend_theme(app, None)


def test_a_book_without_pages_inside_pages_has_nothing_to_fold(tmp_path):
    ext.mend_theme(site_of(tmp_path, nested=False, index="".join(ext.MENDS).replace(ext.TOGGLE, "")), None)


def test_the_first_page_stands_at_the_root_or_it_is_said_why_not(tmp_path):
    head.root(site_of(tmp_path, index="<html><head><title>"), None)
    assert (tmp_path / "index.html").read_text() == '<html><head><base href="book/index.html"/><title>'
    printed = site_of(tmp_path, index="<html><head><title>")
    printed.builder.name = "singlehtml"
    head.root(printed, None)
    assert (tmp_path / "index.html").read_text() == "<html><head><title>", "its links count from the root"
    with pytest.raises(ExtensionError, match="has no <head>: the theme has changed"):
        head.root(site_of(tmp_path, index='<html><head lang="en"><title>'), None)


def test_numbers_in_sentences_are_typeset():
    page = new_document("page")
    page += nodes.paragraph("", "", nodes.Text("95 % of "), nodes.literal("", "5 %"), nodes.Text(" are 100 % sure"))
    put = [nodes.inline("", said, classes=["pasted-text"]) for said in ("12", "1e-05", "-0.5 [-1.0, -0.1]", "“ Mary”")]
    page += nodes.paragraph("", "", put[0], nodes.Text(" % by chance"), *put[1:])
    ext.typeset(None, page, "page")
    assert page[0].astext() == "95\u00a0% of 5 % are 100\u00a0% sure"
    assert page[1].astext() == "12\u00a0% by chance1 × 10⁻⁵−0.5 [−1.0, −0.1]“\u00a0Mary”"
    assert ["lab-whole" in one["classes"] for one in put] == [False, False, True, False]
