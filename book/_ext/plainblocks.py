"""MyST's blocks as plain Markdown: admonitions, exercises, included code, diagrams, grids.

A directive without a translation here is noted in `Page.problems`, and its body stays. Used by the notebooks of
every chapter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

from myst_parser.parsers.options import TokenizeError, options_to_items
from sphinx.directives.code import LiteralInclude, LiteralIncludeReader

from labbook._ext.figures import pictures
from labbook._ext.plaininline import Page, inline

OPEN = re.compile(r"^(?P<indent>\s*)(?P<fence>`{3,}|~{3,}|:{3,})\s*(?P<info>[^`]*)$")
DIRECTIVE = re.compile(r"\{(?P<name>[^}]+)\}\s*(?P<argument>.*)")
OPTION = re.compile(r"^:[\w-]+:(\s|$)")
TARGET = re.compile(r"^\s*\([^()\s]+\)=\s*$")
FORMULA = re.compile(r"\$\$(?P<body>.+?)\$\$\s*\((?P<label>[\w:-]+)\)", re.DOTALL)
ADMONITIONS = ("note", "tip", "hint", "important", "warning", "caution", "attention", "danger", "error", "seealso")
FLAT = ("grid", "grid-item", "grid-item-card", "card", "tab-set", "tab-item", "div", "container", "card-carousel")
ASIDE = ("margin", "sidebar", "epigraph", "topic")
CODE = ("code-block", "code", "sourcecode")
BUILT = ("ledger", "bibliography", "toctree", "tableofcontents", "contents", "glossary")
GATES = ("exercise-start", "exercise-end", "solution-start", "solution-end")
WHOLE = ("exercise", "solution")


class Directive(NamedTuple):
    """A directive as it is written."""

    name: str
    argument: str
    options: dict[str, str]
    body: str


class Piece(NamedTuple):
    """A stretch of plain Markdown, or a gate: the start or the end of an exercise or a solution."""

    kind: str  # "text" or one of GATES
    text: str  # Markdown; of an exercise its title, of a solution the label of its exercise
    label: str = ""


def pieces(text: str, page: Page) -> Iterator[Piece]:
    """Translate Markdown, block by block."""
    lines, at = text.split("\n"), 0
    prose: list[str] = []
    while at < len(lines):
        line = lines[at]
        opened = OPEN.match(line)
        if opened:
            yield Piece("text", _prose(prose, page))
            prose = []
            end = _closing(lines, at, opened["fence"])
            if end == len(lines):
                page.problems.append(f"the block {line.strip()!r} has no end")
            inside = [one.removeprefix(opened["indent"]) for one in lines[at + 1 : end]]
            for piece in _block(opened, inside, page):
                indented = re.sub(r"(?m)^(?=.)", opened["indent"], piece.text) if piece.kind == "text" else piece.text
                yield Piece(piece.kind, indented, piece.label)
            at = end + 1
            continue
        if not (TARGET.match(line) or line.startswith("%") or re.match(r"^\+\+\+", line)):
            prose.append(line)
        at += 1
    yield Piece("text", _prose(prose, page))


def plain(text: str, page: Page) -> str:
    """Translate Markdown in which no exercise begins or ends."""
    parts = []
    for piece in pieces(text, page):
        if piece.kind != "text":
            page.problems.append(f"{{{piece.kind}}} stands inside another directive")
        parts.append(piece.text)
    return "\n".join(part for part in parts if part.strip()).strip()


def caption(text: str, page: Page) -> str:
    """A figure's caption in italics; emphasis inside it keeps its own marks."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", inline(text, page)) if part.strip()]
    return "\n\n".join(f"_{part}_" for part in paragraphs)


def _closing(lines: list[str], start: int, fence: str) -> int:
    closing = re.compile(rf"^\s*{re.escape(fence[0])}{{{len(fence)},}}\s*$")
    return next((at for at in range(start + 1, len(lines)) if closing.match(lines[at])), len(lines))


def _prose(lines: list[str], page: Page) -> str:
    def formula(found: re.Match[str]) -> str:
        return f"$${found['body'].rstrip()} \\tag{{{page.equations[found['label']]}}}$$"

    text = FORMULA.sub(formula, "\n".join(lines))
    # A term and its definition: plain Markdown has no such list.
    text = re.sub(r"(?m)^(?![\s#>|*:-])(\S[^\n]*)\n+:\s+(?=\S)", r"**\1**\\\n", text)
    return inline(text, page)


def _block(opened: re.Match[str], inside: list[str], page: Page) -> Iterator[Piece]:
    found = DIRECTIVE.match(opened["info"])
    if not found:
        if opened["fence"].startswith(":"):
            page.problems.append(f"the block {opened[0].strip()!r} has no plain translation")
            yield Piece("text", plain("\n".join(inside), page))
        else:
            yield Piece("text", "\n".join([f"{opened['fence']}{opened['info']}", *inside, opened["fence"]]))
        return
    directive = Directive(found["name"], found["argument"].strip(), *_options(inside))
    if directive.name in GATES:
        yield Piece(directive.name, inline(directive.argument, page), directive.options.get("label", ""))
    elif directive.name in WHOLE:
        yield Piece(f"{directive.name}-start", inline(directive.argument, page), directive.options.get("label", ""))
        yield Piece("text", plain(directive.body, page))
        yield Piece(f"{directive.name}-end", "")
    elif directive.name in TRANSLATIONS:
        yield Piece("text", TRANSLATIONS[directive.name](directive, page))
    else:
        page.problems.append(f"the directive {{{directive.name}}} has no plain translation")
        yield Piece("text", plain(directive.body, page))


def _options(inside: list[str]) -> tuple[dict[str, str], str]:
    """Options and body, read as MyST reads them: both ways to write options are YAML."""
    written, rest = [], 0
    if inside and inside[0].strip() == "---" and "---" in (line.strip() for line in inside[1:]):
        end = next(at for at in range(1, len(inside)) if inside[at].strip() == "---")
        written, rest = inside[1:end], end + 1
    else:
        while rest < len(inside) and OPTION.match(inside[rest]):
            written.append(inside[rest][1:])
            rest += 1
    try:
        items, _ = options_to_items("\n".join(written))
    except TokenizeError:  # the build of the page itself warns about it
        items = []
    return dict(items), "\n".join(inside[rest:])


def _quoted(directive: Directive, page: Page) -> str:
    title = directive.name.capitalize() if directive.name in ADMONITIONS else ""
    text = plain(directive.body, page)
    if directive.argument and not title:
        title = inline(directive.argument, page)
    elif directive.argument:  # "{note} words" has no title of its own: the words are the body's first
        text = inline(directive.argument, page) + ("\n" + text if text else "")
    if "dropdown" in directive.options.get("class", "").split():
        return _folded(title, text)
    whole = f"**{title}**\n\n{text}" if title else text
    return "\n".join(f"> {line}".rstrip() for line in whole.split("\n"))


def _dropdown(directive: Directive, page: Page) -> str:
    return _folded(inline(directive.argument, page) or "More", plain(directive.body, page))


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _flat(directive: Directive, page: Page) -> str:
    named = directive.name in ("grid-item-card", "card", "tab-item") and directive.argument
    title = f"**{inline(directive.argument, page)}**\n\n" if named else ""
    return title + plain(directive.body, page)


def _code(directive: Directive, page: Page) -> str:
    return _fenced(directive.argument, directive.body.strip("\n"))


def _fenced(language: str, text: str) -> str:
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`{3,}", text)), default=0))
    return f"{ticks}{language}\n{text}\n{ticks}"


def _included(directive: Directive, page: Page) -> str:
    path = page.path.parent / directive.argument
    known: dict[str, Any] = LiteralInclude.option_spec or {}
    encoding = SimpleNamespace(source_encoding="utf-8-sig")
    try:
        options = {key: known[key](value or None) for key, value in directive.options.items() if key != "name"}
        text, _ = LiteralIncludeReader(str(path), options, encoding).read()  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError) as error:
        page.problems.append(f"{directive.argument} can't be included: {error}")
        return ""
    return _fenced(options.get("language", "python" if path.suffix == ".py" else ""), text.strip("\n"))


def _raw(directive: Directive, page: Page) -> str:
    if directive.argument != "html":
        page.problems.append(f"{{raw}} {directive.argument} has no place in a notebook")
        return ""
    # A blank line would end the block of HTML, and what follows would be read as Markdown.
    return re.sub(r"\n\s*\n", "\n", pictures(directive.body.strip(), page.problems))


def _formula(directive: Directive, page: Page) -> str:
    number = page.equations.get(directive.options.get("label", ""))
    body = f"{directive.argument}\n{directive.body}".strip()
    return f"$$\n{body}{f' {chr(92)}tag{{{number}}}' if number else ''}\n$$"


def _built(directive: Directive, page: Page) -> str:
    return "*The build of the book writes this part of the page; see it there.*"


TRANSLATIONS: dict[str, Callable[[Directive, Page], str]] = {
    **dict.fromkeys(("admonition", *ADMONITIONS, *ASIDE), _quoted),
    **dict.fromkeys(FLAT, _flat),
    **dict.fromkeys(CODE, _code),
    **dict.fromkeys(BUILT, _built),
    "dropdown": _dropdown,
    "literalinclude": _included,
    "raw": _raw,
    "math": _formula,
}
