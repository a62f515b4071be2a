"""The book as a reader builds it: strictly on the embedded model, and to its end on a model that knows nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from jupyter_cache import get_cache
from onekernel import BOOK, FEW, chapter, emptied, run, started

from labbook._ext import execution, ledger
from labcode import models

ROOT = Path(__file__).parents[2]


class Build(NamedTuple):
    """What a build said, and where its pages are."""

    code: int
    said: str
    pages: Path

    def text(self, page: str) -> str:
        return visible((self.pages / f"{page}.html").read_text())


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def visible(html: str) -> str:
    """The text of a page, with single spaces."""
    parser = _Text()
    parser.feed(re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.S))
    return re.sub(r"\s+", " ", "".join(parser.parts))


def build(output: Path, model: str, *flags: str, folder: Path = ROOT, **variables: str) -> Build:
    own = ("LAB_STRICT", "LAB_PROMPTS", "LAB_TOKENS")
    environment = {key: value for key, value in os.environ.items() if key not in own}
    environment |= {"LAB_MODEL": model, "COLUMNS": "200"} | variables
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", ".", "--path-output", str(output), *flags]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=3000)
    return Build(done.returncode, done.stdout + done.stderr, output / "_build" / "html" / "book")


@pytest.fixture(scope="module")
def strict(tmp_path_factory) -> Build:
    """The book at full size, from the outputs that `make book` left: to execute it again here takes its ten minutes."""
    mark = execution.fingerprint(ROOT, models.fingerprint(models.prepare("smollm2")))
    folder = ROOT / "_build" / ".jupyter_cache" / mark
    if not folder.is_dir() or len(get_cache(folder).list_cache_records()) < len(code_pages()):
        pytest.skip("this tree has not been executed on the embedded model: LAB_MODEL=smollm2 make book")
    return build(tmp_path_factory.mktemp("strict"), "smollm2", "-W", "-n", "--keep-going", LAB_STRICT="1")


@pytest.fixture(scope="module")
def ignorant(tmp_path_factory, random_gpt2_hub) -> Build:
    """The book of GPT-2 by its name, on random weights. Its pages are executed here, in one kernel, and the build finds
    them in its cache.
    """
    output, variables = tmp_path_factory.mktemp("ignorant"), {**random_gpt2_hub, **FEW}
    chosen = subprocess.run(
        [sys.executable, "-m", "labcode.models", "--json", "gpt2"],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        check=True,
    )
    with pytest.MonkeyPatch.context() as given:
        for name, value in FEW.items():
            given.setenv(name, value)
        mark = execution.fingerprint(ROOT, json.loads(chosen.stdout.splitlines()[-1])["fingerprint"])
    cache = get_cache(ROOT / "_build" / ".jupyter_cache" / mark)
    text = [sys.executable, *execution.WRITE_TEXT]
    subprocess.run(text, env=os.environ | variables | {"LAB_MODEL": "gpt2"}, check=True)
    with started("gpt2", **random_gpt2_hub) as kernel:
        for name in code_pages():
            notebook, begun = chapter(name), time.monotonic()
            with emptied(kernel, notebook) as runner:
                run(runner, [cell for cell in notebook.cells if cell.cell_type == "code"])
            notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}  # as the kernel says
            took = {"execution_seconds": time.monotonic() - begun}
            execution.keep(cache, notebook, BOOK / f"{name}.md", took)
    made = build(output, "gpt2", "-W", "-n", "--keep-going", **variables)
    assert "chapters to execute" not in made.said
    return made


def code_pages() -> list[str]:
    return sorted(page.stem for page in (ROOT / "book").glob("*.md") if "{code-cell}" in page.read_text())


def test_the_strict_build_has_no_warning_and_no_cross(strict):
    assert strict.code == 0, strict.said[-4000:]
    assert not re.search(r"\b(WARNING|ERROR)\b", strict.said), strict.said[-4000:]
    assert re.search(r"All \d+ claims and \d+ self-checks hold", strict.said)
    assert "✗ does not hold" not in "".join(strict.text(page) for page in code_pages())


@pytest.mark.parametrize("page", [page for page in code_pages() if page not in ("cost", "14-superposition")])
def test_every_page_names_its_model(strict, page):
    """All but the two that ask none: recorded seconds, and features that were drawn."""
    assert "SmolLM2-135M-Instruct" in strict.text(page)


@pytest.mark.parametrize("page", code_pages())
def test_no_page_shows_an_unfilled_number_or_a_traceback(strict, page):
    text = strict.text(page)
    assert "Traceback" not in text
    assert "{glue" not in text
    # Code may make a tensor or an infinite number, no output may be one.
    assert not re.search(r'(?<!torch\.)(?<!float\(")\b(?:nan|inf)\b|(?<!torch\.)tensor\(', text)


def test_the_canonical_prompt_is_the_models_own(strict):
    text = strict.text("01-behaviour")
    assert "The first token is “ Mary”" in text
    shown = re.search(r"logit\(IO\) − logit\(S\)\. Here it is ([+-]\d+\.\d+)", text)
    assert shown
    assert float(shown[1]) == pytest.approx(5.58, abs=0.02)


def test_the_ledger_has_every_claim_of_the_chapters(strict):
    ledger = strict.text("ledger")
    claims = 0
    for page in code_pages():
        html = (strict.pages / f"{page}.html").read_text()
        said = re.findall(r'<span class="lab-said"[^>]*>(.*?)<span class="lab-mark"', html, flags=re.S)
        boxes = re.findall(r'<div class="lab-claim".*?<span class="lab-text">(.*?)</span>', html, flags=re.S)
        for claim in [*said, *boxes]:
            claims += 1
            assert visible(claim).strip() in ledger
    assert claims >= 10


def test_a_model_that_knows_nothing_gets_its_book_with_crosses(ignorant):
    assert ignorant.code == 0, ignorant.said[-4000:]
    assert not re.search(r"\b(WARNING|ERROR)\b", ignorant.said), ignorant.said[-4000:]
    assert re.search(r"\d+ of \d+ claims", ignorant.said), ignorant.said[-2000:]
    assert "Not certified: " in ignorant.said
    assert all("Not certified: " in ignorant.text(page) for page in [*code_pages(), "ledger"])
    assert "✗ does not hold on this run" in ignorant.text("01-behaviour")
    for page in code_pages():
        assert "Traceback" not in ignorant.text(page)


TOYS = {"04-instruments", "14-superposition"}
"""Chapters whose claims are about machines made by hand, the same on every build."""


@pytest.mark.parametrize("page", [page for page in code_pages() if page not in TOYS])
def test_nothing_is_found_in_a_model_that_knows_nothing(ignorant, page):
    """The null of the whole book: what holds on random weights says nothing about those that were trained."""
    glued = ignorant.pages.parents[1] / "jupyter_execute" / "book" / f"{page}.glue.json"
    claims = ledger.parse(json.loads(glued.read_text())).claims if glued.is_file() else []
    assert [claim["key"] for claim in claims if claim["holds"]] == []


@pytest.mark.parametrize("page", [page for page in code_pages() if page[:2].isdigit()])
def test_every_solution_passes_its_check(ignorant, page):
    """Also on a model that knows nothing: what is right is computed, not remembered."""
    text = (ignorant.pages / f"{page}.html").read_text()
    asked = (ROOT / "book" / f"{page}.md").read_text().count("checks.check(")
    assert text.count('class="lab-check" data-right="true"') == asked
    assert 'data-right="false"' not in text


def test_a_build_of_gpt2_by_its_name_writes_its_text_before_the_page_that_reads_it(tmp_path, random_gpt2_hub):
    """From nothing: what the fixture above executes itself, the build does here, for one page."""
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump({"format": "jb-book", "root": "book/corpus"}))
    for name in ("_config.yml", "book", "labcode", "pyproject.toml", "requirements.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    own = {**random_gpt2_hub, **FEW, "LAB_CACHE": str(tmp_path / "cache")}
    made = build(tmp_path / "out", "gpt2", folder=tmp_path, **own)
    assert made.code == 0, made.said[-4000:]
    assert made.said.index("text for the autoencoders: written by GPT-2 small") < made.said.index(
        "[1/1] book/corpus ran"
    )
    assert list((tmp_path / "cache" / "corpus").glob("*/*/text.safetensors"))
    assert "Not certified: " in made.text("corpus")


def test_an_unknown_model_stops_the_build_before_any_chapter(tmp_path):
    stopped = build(tmp_path, "gpt7")
    assert stopped.code != 0
    assert "use smollm2, gpt2" in stopped.said
    assert "ran in" not in stopped.said
