"""The extension in real builds by Jupyter Book: tiny books without a model, with the settings of the real one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from pathlib import Path

import pydata_sphinx_theme
import pytest
import yaml

from labbook._ext.weight import SCROLLERS, used

ROOT = Path(__file__).parents[2]
BUILD = [
    sys.executable,
    "-P",
    "-c",
    "from jupyter_book.cli.main import main; main()",
    "build",
    ".",
    "-W",
    "-n",
    "--keep-going",
]
HEADER = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n\n"
FIGURE = """
```{code-cell} python3
import plotly.graph_objects as go
go.Figure(go.Bar(y=[1, 2]), layout={"meta": {"alt": "Two bars."}})
```
"""
NUMBER = """
```{code-cell} python3
from myst_nb import glue
glue("n", 17, display=False)
```
"""
CLAIM = """
```{code-cell} python3
import json
record = {"kind": "claim", "text": "1 < 0 <script>alert(1)</script>", "holds": False, "method": "observed"}
glue("ledger.claim.1", json.dumps(record), display=False)
for n, holds in enumerate((True, False)):
    row = {"kind": "expected", "what": f"row {n}", "expected": "<b>", "observed": "c", "holds": holds}
    glue(f"ledger.expected.{n}", json.dumps(row), display=False)
```
"""


def book(folder: Path, **chapters: str) -> Path:
    """A book whose first page is `index`, built as the real one but without a model and a bibliography."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config.pop("bibtex_bibfiles")
    config["sphinx"]["config"]["lab_model"] = False
    config["sphinx"]["config"].pop("bibtex_reference_style")
    config["sphinx"]["config"]["extensions"].remove("sphinxcontrib.bibtex")
    (folder / "_config.yml").write_text(yaml.safe_dump(config))
    names = [name for name in chapters if name != "index"]
    toc = {"format": "jb-book", "root": "index", "chapters": [{"file": name} for name in names]}
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc))
    for name, text in chapters.items():
        head = HEADER if "code-cell" in text or "glue:" in text else ""
        (folder / f"{name}.md").parent.mkdir(exist_ok=True)
        (folder / f"{name}.md").write_text(head + text)
    return folder


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LAB_")}
    return {**kept, **variables, "NO_COLOR": "1"}


def build(folder: Path, *options: str, **variables: str) -> tuple[int, str]:
    done = subprocess.run(
        [*BUILD, *options],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def html(folder: Path, page: str) -> str:
    return (folder / "_build" / "html" / f"{page}.html").read_text()


def words(page: str) -> str:
    return re.sub(r"<[^>]*>", "", page)


def ran(output: str) -> list[str]:
    return sorted(re.findall(r"^\[\d+/\d+\] (\S+) ran in", output, re.MULTILINE))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    index = "# Start\n\n```{ledger}\n```\n"
    two = "# Two\n\nThe number is {glue:text}`one.md::n:d`.\n\n$$\\frac{a}{b}$$ (eq)\n\nSee {eq}`eq`.\n" + FIGURE
    book(folder, index=index, one="# One\n" + NUMBER + CLAIM, two=two, plain="# Plain\n\nWords.\n")
    return folder, *build(folder)


def test_a_cross_is_listed_and_fails_nothing(small):
    _, status, output = small
    assert status == 0, output
    assert ran(output) == ["one", "two"]
    assert "Executing notebook" not in output, "myst-nb found a chapter missing in the cache and ran it again"
    assert "✗ one: 1 < 0 <script>" in output
    assert "Open file://" in output


def test_figures_and_maths_are_local_and_only_where_they_are_needed(small):
    folder, _, _ = small
    two = html(folder, "two")
    assert two.count('class="lab-figure"') == 1
    assert 'aria-label="Two bars."' in two
    assert two.count('<svg class="lab-still"') == 2  # for the text column, and for a phone
    assert "labplotly.js" in two
    assert "labplotly.js" not in html(folder, "one")
    assert "plotly.min.js" not in two  # a reader who asks for it gets it
    assert "<mfrac><mi>a</mi><mi>b</mi></mfrac>" in two
    assert '<span class="eqno">(1)' in two
    assert (folder / "_build/html/_static/plotly.min.js").stat().st_size > 1e6
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', two)
    for name in ("fontawesome.js", "searchindex.js", "searchtools.js"):
        assert name not in two
    assert two.count('name="viewport"') == 1
    assert 1000 < (folder / "_build/html/_static/maths.woff").stat().st_size < 60_000


def test_the_ledger_escapes_what_chapters_say_and_links_to_them(small):
    page = html(small[0], "index")
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert re.search(r'<a class="reference internal" href="one.html">One</a>', page)
    assert re.search(r"<summary>One \(1\)</summary>", page)


def test_the_ledger_opens_with_totals_and_has_the_surprises(small):
    page = html(small[0], "index")
    totals = page.partition("lab-ledger-totals")[2].partition("</table>")[0]
    rows = [re.findall(r"<p>(.*?)</p>", row) for row in totals.split("<tr")[1:]]
    assert ["Findings", "1", "0", "1"] in rows
    assert ["Expectations", "2", "1", "1"] in rows
    surprises = page.partition("lab-ledger-surprises")[2].partition("</table>")[0]
    assert "row 1" in surprises
    assert "row 0" not in surprises
    assert "&lt;b&gt;" in surprises
    assert 'href="one.html#expected-and-observed"' in surprises
    assert "labledger.js" in page
    assert "labledger.js" not in html(small[0], "one")


def test_the_seconds_of_cached_chapters_are_kept(small):
    folder = small[0]
    cost = folder / "_build" / "cost.json"
    before = json.loads(cost.read_text())["seconds"]
    assert set(before) == {"one", "two"}
    cost.unlink()
    status, output = build(folder)
    assert (status, ran(output)) == (0, [])
    assert json.loads(cost.read_text())["seconds"] == before


def test_a_strict_build_fails_each_time_although_everything_is_cached(small):
    folder = small[0]
    for _ in range(2):
        status, output = build(folder, LAB_STRICT="1")
        assert status != 0
        assert ran(output) == []
        assert "LAB_STRICT is set and 1 of 1 claims and 0 self-checks don't hold" in output
    assert build(folder)[0] == 0


def test_an_edited_chapter_runs_alone_and_its_number_changes_on_the_other_page(small):
    folder = small[0]
    assert "The number is 17." in words(html(folder, "two"))
    one = folder / "one.md"
    one.write_text(one.read_text().replace("17", "18"))
    status, output = build(folder)
    assert (status, ran(output)) == (0, ["one"])
    assert "The number is 18." in words(html(folder, "two"))


def test_pages_are_written_again_only_if_something_changed(small):
    folder = small[0]

    def written(**variables: str) -> bool:
        page = folder / "_build" / "html" / "two.html"
        before = page.stat().st_mtime_ns
        assert build(folder, **variables)[0] == 0
        return page.stat().st_mtime_ns > before

    written()
    assert not written()
    plain = folder / "plain.md"
    plain.write_text(plain.read_text() + "\nMore words.\n")
    assert written()
    assert not written()
    assert written(LAB_REPOSITORY="https://git.example.org/lab")
    (folder / "_build" / ".doctrees" / "written").unlink()  # as an interrupted build leaves it
    assert written()


def test_what_a_strict_book_must_not_have_is_a_warning_in_every_build(tmp_path):
    noisy = "```{code-cell} python3\nimport sys\nprint('x', file=sys.stderr)\n```\n"
    bad = "# Bad\n\n$\\foo{x}$\n" + FIGURE.replace('"Two bars."', '""') + noisy
    folder = book(tmp_path, index="# Start\n", bad=bad)
    for expected in (["bad"], []):
        status, output = build(folder)
        assert status != 0
        assert ran(output) == expected
        assert "a Plotly figure has no text alternative" in output
        assert re.search(r"a formula can't be shown: .*\\foo", output)
        assert "stderr was found in the cell outputs" in output


def test_every_failing_chapter_is_reported_and_the_others_are_kept(tmp_path):
    cell = "```{code-cell} python3\n%s\n```\n"
    chapters = {"a": "1 / 0", "b": "x = 1", "c": "import os; os.kill(os.getpid(), 9)", "d": "print(undefined)"}
    folder = book(
        tmp_path, index="# Start\n", **{name: f"# {name}\n\n" + cell % code for name, code in chapters.items()}
    )
    status, output = build(folder)
    assert status != 0
    assert "ZeroDivisionError: division by zero" in output
    assert "NameError: name 'undefined' is not defined" in output
    assert "DeadKernelError" in output
    assert "3 chapters failed: " in output
    assert "jupyter_book/sphinx.py" not in output, "the reader sees the chapters' tracebacks, not ours"
    for name in "acd":
        page = folder / f"{name}.md"
        page.write_text(page.read_text().replace(chapters[name], "x = 2"))
    status, output = build(folder)
    assert (status, ran(output)) == (0, ["a", "c", "d"])


def test_the_page_that_is_printed_has_what_the_site_has(tmp_path):
    """Links in cards, folded cells, exercises: each is a node of another extension."""
    index = "# Start\n\n::::{grid} 2\n:::{grid-item-card} Go on\n:link: two\n:link-type: doc\nWords.\n:::\n::::\n"
    two = "# Two\n\n```{exercise}\n:label: one\nAdd.\n```\n\n"
    two += "```{code-cell} python3\n:tags: [hide-cell]\nprint(1 + 1)\n```\n"
    folder = book(tmp_path, index=index, two=two)
    code, output = build(folder, "--builder", "singlehtml")
    assert code == 0, output
    page = (folder / "_build" / "singlehtml" / "index.html").read_text()
    for part in ('class="sd-card', "Words.", 'class="exercise', '<details class="admonition hide'):
        assert part in page


def test_an_interrupted_build_leaves_no_kernel_behind(tmp_path):
    code = textwrap.dedent("""
        ```{code-cell} python3
        import os, pathlib, time
        pathlib.Path("NAME.pid").write_text(str(os.getpid()))
        time.sleep(100)
        ```
    """)
    names = ["a", "b", "c"]
    folder = book(tmp_path, index="# Start\n", **{name: f"# {name}\n{code.replace('NAME', name)}" for name in names})
    process = subprocess.Popen(
        BUILD,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # A shell starts what runs in its background deaf to Ctrl-C, and that is inherited by everything below.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    started = [folder / "a.pid", folder / "b.pid"]
    deadline = time.monotonic() + 60
    while not all(path.exists() and path.read_text() for path in started):
        assert time.monotonic() < deadline, "the kernels did not start"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=90)[0].decode()
    assert process.returncode not in (0, None)
    assert "interrupted" in output
    for path in started:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
    assert not (folder / "c.pid").exists()


def test_a_page_fetches_one_sheet_and_no_script_before_its_text(small):
    folder, _, _ = small
    two, static = html(folder, "two"), folder / "_build/html/_static"
    head = two.partition("</head>")[0]
    sheet = (static / "book.css").read_text()
    assert re.findall(r'<link rel="stylesheet"[^>]*>', two) == [
        f'<link rel="stylesheet" href="_static/book.css?v={zlib.crc32(sheet.encode()):08x}" />'
    ]
    assert [tag for tag in re.findall(r"<script[^>]*src=[^>]*>", head) if "defer" not in tag] == []
    assert re.findall(r"<script([^>]*)>DOCUMENTATION_OPTIONS", head) == [' type="module"'] * 2
    assert ".lab-figure" in sheet
    assert ".bd-article" in sheet
    assert "fontawesome" not in sheet
    sheets = static.glob("styles/*.css")
    assert len(sheet) < 0.6 * sum(path.stat().st_size for path in sheets), "rules that nothing needs are left out"


def test_plain_words_of_code_have_no_element(small):
    folder, _, _ = small
    two = html(folder, "two")
    assert re.findall(r'<span class="(?:n|p|w)">', two) == []
    assert '<span class="mi">1</span>' in two
    assert SCROLLERS.search((folder / "_build/html/_static/scripts/pydata-sphinx-theme.js").read_text()) is None
    installed = Path(pydata_sphinx_theme.__file__).with_name("theme") / "pydata_sphinx_theme/static/scripts"
    assert SCROLLERS.search((installed / "pydata-sphinx-theme.js").read_text()), "the theme has changed"


def test_a_style_sheet_keeps_what_may_be_used():
    sheet = """
      @charset "utf8"; /* a comment */ .a, .b:hover > p { color: red }
      .gone .a, #gone { color: red }
      .a:is(.gone, .b)[href$=".pdf"] { left: 0 }
      @media (max-width: 1px) { .gone { left: 0 } .b { left: 1px } }
      @media print { .gone { left: 0 } }
      .w\\/2 { width: 50% } .tip-left, .tipped-left { left: 0 }
      @keyframes turn { to { rotate: 1turn } }
    """
    kept = used(sheet, {"a", "b", "w/2", "tip-"})
    assert kept.splitlines() == [
        ".a,.b:hover > p{color: red}",
        '.a:is(.gone, .b)[href$=".pdf"]{left: 0}',
        "@media (max-width: 1px) {.b{left: 1px}}",
        ".w\\/2{width: 50%}",
        ".tip-left{left: 0}",
        "@keyframes turn { to { rotate: 1turn } }",
    ]
