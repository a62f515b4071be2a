"""The pages at the back of the book, held together with the code and the chapters that they speak of."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from labbook._ext import api, chapters, glossary
from labcode import errors

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
BACK = (
    *("predictions", "course-map", "glossary", "notation", "api", "troubleshooting", "further-reading", "teaching"),
    "cost",
    "how-we-infer",
    "inside-the-lab",
)
CHAPTERS = {int(page.name[:2]): page for page in BOOK.glob("[0-9][0-9]-*.md")}
ENTRY = re.compile(r"^### ([\w-]+)\n\n```text\n(.+?)\n```\n\n(.+?)\n(?=\n|\Z)", re.MULTILINE | re.DOTALL)
# A stand-in for what differs from case to case.
ANY = "…"
# What ends with a message of the lab: an error of its own, or a build.
OURS = re.compile(r"[A-Z]\w*Error|halt")


def page(name: str) -> str:
    return (BOOK / f"{name}.md").read_text(encoding="utf8")


# Troubleshooting


def texts(node: ast.expr | None, module: ast.Module) -> list[str]:
    """All texts that an expression may give, as far as the source says; what differs is `ANY`."""
    match node:
        case ast.Constant():
            return [str(node.value)]
        case ast.JoinedStr():
            made = [""]
            for part in node.values:
                inner = texts(part.value if isinstance(part, ast.FormattedValue) else part, module) or [ANY]
                quoted = isinstance(part, ast.FormattedValue) and part.conversion == ord("r")
                made = [a + (repr(b) if quoted else b) for a in made for b in inner]
            return made
        case ast.BinOp():
            return [a + b for a in texts(node.left, module) for b in texts(node.right, module)]
        case ast.BoolOp():
            return [text for value in node.values for text in texts(value, module) or [ANY]]
        case ast.IfExp():
            return texts(node.body, module) + texts(node.orelse, module)
        case ast.Call(func=ast.Name(id=name)):
            local = [one for one in module.body if isinstance(one, ast.FunctionDef) and one.name == name]
            returned = [one.value for f in local for one in ast.walk(f) if isinstance(one, ast.Return)]
            return [text for value in returned for text in texts(value, module)]
    return []


def raised() -> Iterator[tuple[str, str, str]]:
    """Where an error of the lab is made, or a build ended; the entry that it names; and what it may say."""
    for path in sorted([*(ROOT / "labcode").rglob("*.py"), *BOOK.rglob("*.py")]):
        tree = ast.parse(path.read_text(encoding="utf8"))
        for node in ast.walk(tree):
            name = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) and node.args else ""
            if OURS.fullmatch(name) and not hasattr(builtins, name):
                see = [ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg == "see"]
                for text in texts(node.args[0], tree):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", "".join(see), text


RAISED = sorted(set(raised()))
ENTRIES = {name: (message, advice) for name, message, advice in ENTRY.findall(page("troubleshooting"))}


def test_an_entry_that_an_error_names_is_there():
    assert len(RAISED) > 150
    for where, see, message in RAISED:
        assert not see or see in ENTRIES, f"{where}: no entry for: {message}"


def test_every_entry_shows_one_of_its_messages_and_says_more():
    """What only says the message again is no entry: most messages say enough."""
    assert len(re.findall(r"^### ", page("troubleshooting"), re.MULTILINE)) == len(ENTRIES)
    for name, (message, advice) in ENTRIES.items():
        fixed = [max(text.split(ANY), key=len).strip() for _, see, text in RAISED if see == name]
        assert any(part in message for part in fixed), name
        new = set(re.findall(r"[a-z]{5,}", advice.lower())) - set(re.findall(r"[a-z]{5,}", message.lower()))
        assert len(new) >= 5, f"{name} says little more than its message"


def test_an_error_ends_with_its_entry_once():
    error = errors.PromptError("unknown corruption 'x'", see="unknown-corruption")
    assert str(error) == "unknown corruption 'x' [Troubleshooting: unknown-corruption]"
    assert str(errors.ModelError(f"in a row: {error}", see="other")).count("[Troubleshooting: ") == 1
    assert str(errors.LabError("no prompts:\n  none", see="other")) == "no prompts:\n  none\n[Troubleshooting: other]"


# Glossary


def terms() -> dict[str, str]:
    """The definition of each term; terms in a row share one."""
    block = re.search(r"```\{glossary\}\n(?::sorted:\n)?\n(.*?)```", page("glossary"), re.DOTALL)
    assert block
    found = {}
    for entry in block[1].strip().split("\n\n"):
        *words, definition = entry.split("\n")
        found |= dict.fromkeys(words, definition.strip())
    return found


def test_a_definition_is_one_sentence_and_names_its_chapter():
    for word, definition in terms().items():
        sentence = re.fullmatch(r"([A-Z].+)\. \(\{chapter\}`(\d+)`\)", definition)
        assert sentence, word
        assert ". " not in sentence[1].replace("vs. ", ""), word
        assert int(sentence[2]) in CHAPTERS
        assert word == word.strip()


@pytest.mark.parametrize("word", sorted(glossary.PLAIN_ENGLISH))
def test_a_word_of_plain_english_is_marked_where_it_is_introduced(word):
    since = re.search(r"`(\d+)`", terms()[word])
    assert since
    assert f"{{term}}`{word}`" in CHAPTERS[int(since[1])].read_text(encoding="utf8")


@pytest.mark.parametrize(
    "word",
    "clean run,corrupted run,denoising,noising,activation patching,ablation,zero ablation,mean ablation,"
    "resample ablation,direct logit attribution,logit lens,path patching,sender,receiver,name mover,S-inhibition,"
    "OV circuit,QK circuit,latent,feature,L0,FVU,residual stream,hook,faithfulness,completeness,minimality,"
    "interference,polysemantic,absorption,splice,massive activation,F1,TopK,transcoder,attribution graph".split(","),
)
def test_the_words_of_the_field_are_there(word):
    assert word in terms()


# Chapters


@pytest.mark.parametrize("name", BACK)
def test_chapters_that_a_page_names_exist(name):
    roles = re.findall(r"\{(?:chapter|chapter-title|hours)\}`([^`]+)`", page(name))
    wanted = {n for text in roles for n in chapters.numbers(text)}
    assert wanted <= set(CHAPTERS)


@pytest.mark.parametrize("number", sorted(CHAPTERS))
def test_a_chapter_says_what_the_map_needs(number):
    path = CHAPTERS[number]
    found = chapters.describe(f"book/{path.stem}", "T", path.read_text(encoding="utf8"))
    assert found.reading
    assert found.doing
    assert found.question.endswith("?")
    assert all(n < number for n in found.builds_on)
    assert found.builds_on or number == 1


@pytest.mark.parametrize("number", sorted(CHAPTERS))
def test_the_minutes_for_doing_hold_the_exercises(number):
    text = CHAPTERS[number].read_text(encoding="utf8")
    exercises = [int(minutes) for minutes in re.findall(r"^\*(\d+) minutes, (?:easy|medium|hard)", text, re.MULTILINE)]
    assert len(exercises) == text.count("{exercise-start}")
    assert chapters.describe("", "", text).doing >= sum(exercises)


def test_every_chapter_has_its_question_for_a_class():
    asked = re.findall(r"^\| \{chapter\}`(\d+)` \|", page("teaching"), re.MULTILINE)
    assert [int(n) for n in asked] == sorted(CHAPTERS)


# The rest


def test_sources_that_are_recommended_are_in_the_bibliography():
    cited = {key for group in re.findall(r"\{cite:t\}`([^`]+)`", page("further-reading")) for key in group.split(",")}
    known = set(re.findall(r"^@\w+\{([^,]+),", (BOOK / "refs.bib").read_text(encoding="utf8"), re.MULTILINE))
    assert cited <= known
    assert len(cited) >= 20


@pytest.mark.parametrize("name", [*BACK, "how-to-use"])
def test_links_between_pages_lead_somewhere(name):
    for target in re.findall(r"\]\(([\w./-]+\.md)\)", page(name)):
        assert (BOOK / target).is_file(), target


def test_each_module_has_a_page_of_the_api():
    assert {"models", "prompts", "metrics", "patching", "errors"} <= set(api.modules())
    assert {path.stem for path in (BOOK / "api").glob("*.md")} == set(api.modules())
    for name in api.modules():
        assert page(f"api/{name}") == f"# `labcode.{name}`\n\n```{{api}} {name}\n```\n"


def test_the_rooms_that_are_shown_are_those_that_are_there():
    """The page Inside the lab, and the docstring of the package, name each file of labcode, in the order of import."""
    text = page("inside-the-lab")
    rows = re.findall(r"^((?:`\w+`(?:, )?)+)\n: ", text, re.MULTILINE)
    shown = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    there = {path.stem for path in (ROOT / "labcode").glob("*.py")} - {"__init__"}
    assert set(shown) == there
    assert set(re.findall(r"`(\w+)/", text)) >= {"show", "checks", "data", "_ext"}
    listed = re.findall(r"^(\w+(?:, \w+)*) {2,}", (ROOT / "labcode" / "__init__.py").read_text(), re.MULTILINE)
    assert [name for row in listed for name in row.split(", ")] == shown
    for place, name in enumerate(shown):
        tree = ast.parse((ROOT / "labcode" / f"{name}.py").read_text(encoding="utf8"))
        used = {str(node.module).split(".")[-1] for node in tree.body if isinstance(node, ast.ImportFrom)}
        used |= {
            a.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module == "labcode"
            for a in node.names
        }
        assert used & there <= set(shown[:place]), name
    for name in ("plots", "report"):
        source = (ROOT / "labcode" / f"{name}.py").read_text(encoding="utf8")
        assert set(re.findall(r"^from labcode\.(\w+)", source, re.MULTILINE)) <= {"errors", "inputs"}


def test_the_pages_are_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf8"))
    listed = {one["file"] for part in toc["parts"] for one in part["chapters"]}
    assert {f"book/{name}" for name in BACK} <= listed


def test_papers_are_linked():
    entries = re.findall(r"@\w+\{(\w+),(.*?)\n\}\n", (BOOK / "refs.bib").read_text(encoding="utf8"), re.DOTALL)
    unlinked = [key for key, text in entries if not re.search(r"^  (?:eprint|doi|url) = ", text, re.MULTILINE)]
    assert len(unlinked) <= 2, unlinked
    assert not any("arXiv:" in text for _, text in entries), "an arXiv number belongs into eprint, which links it"
    for key, text in entries:
        fields = re.findall(r"^  (\w+) = ", text, re.MULTILINE)
        assert len(fields) == len(set(fields)), key
