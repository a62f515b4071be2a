"""MyST inside a paragraph as plain Markdown: roles, links to pages, citations, numbers of the run.

Plain JupyterLab knows none of these. Whatever has no translation is noted in `Page.problems`; the build warns about
it. Used by the notebooks of every chapter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from myst_nb.core.variables import format_plain_text

from labbook._ext.authoryear import Work

UNKNOWN_YET = "…"
SPAN = re.compile(
    r"(?P<role>\{(?P<name>[a-zA-Z][\w:.+-]*)\}(?P<ticks>`+)(?P<content>.+?)(?<!`)(?P=ticks)(?!`))"
    r"|(?P<code>(?P<fence>`+)(?!`).+?(?<!`)(?P=fence)(?!`))"
    r"|(?P<math>\$\$.+?\$\$|(?<![\\$])\$(?![\s$]).+?(?<![\s\\])\$(?!\d))"
    r"|(?P<link>(?P<image>!?)\[(?P<text>(?:[^\[\]`]|`[^`]*`)*)\]\(<?(?P<target>[^)\s>]*)>?(?P<title>\s+\"[^\"]*\")?\))"
    r"|(?P<attributes>(?<=[\])`*_])\{[.#][^}`\n]*\})"
    r"|(?P<substitution>\{\{.+?\}\})"
    r"|(?P<footnote>\[\^(?P<mark>[^\]\s]+)\](?P<colon>:?))",
    re.DOTALL,
)
EXPLICIT = re.compile(r"(?P<text>.+?)\s*<(?P<target>[^<>]+)>\Z", re.DOTALL)
CODE_ROLES = {
    "code",
    "func",
    "meth",
    "class",
    "mod",
    "attr",
    "data",
    "exc",
    "obj",
    "const",
    "file",
    "program",
    "envvar",
}


@dataclass
class Page:
    """One page and what its sentences refer to.

    Attributes:
        name: The file's name without its suffix, which is also the notebook's.
        path: The page's source.
        solved: Whether the run's values and the solutions are in.
        values: For each page the values that its run glued, as their `repr`.
        notebooks: The names of the pages that have notebooks.
        labels: For each label the page that it is on and the words for it.
        works: For each citation key its work.
        equations: For each label of a displayed formula its number in this notebook.
        cited: The keys that were met, in order.
        problems: What could not be translated, in words.
    """

    name: str
    path: Path
    solved: bool
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notebooks: Collection[str] = ()
    labels: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    works: Mapping[str, Work] = field(default_factory=dict)
    equations: dict[str, int] = field(default_factory=dict)
    cited: dict[str, None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def notebook(self, name: str) -> str:
        """The file of another page's notebook, solved like this one or not."""
        return f"{name}-solved.ipynb" if self.solved else f"{name}.ipynb"


def inline(text: str, page: Page) -> str:
    """Translate the inline parts of some Markdown; code and formulas stay as they are."""

    def one(found: re.Match[str]) -> str:
        if found["role"]:
            return _role(found["name"], " ".join(found["content"].split()), page) or found["content"]
        if found["link"]:
            return _link(found, page)
        if found["attributes"]:
            return ""
        if found["substitution"]:
            page.problems.append(f"the substitution {found[0]} has no plain text")
            return found[0]
        if found["footnote"]:
            return f"<sup>{found['mark']}</sup>"
        return found[0]

    # A span with attributes is brackets without a target: only its words stay.
    text = re.sub(r"(?<!\!)\[((?:[^\[\]`]|`[^`]*`)+)\]\{[.#][^}`\n]*\}", r"\1", text)
    return SPAN.sub(one, text)


def escaped(value: str) -> str:
    """Text that a run made, so that Markdown shows it letter by letter."""
    return re.sub(r"([\\`*_\[\]$|~])", r"\\\1", value.replace("&", "&amp;").replace("<", "&lt;"))


def _role(name: str, content: str, page: Page) -> str | None:
    """The plain text of a role; None, and a problem, for an unknown one."""
    name = name.removeprefix("py:")
    if name in CODE_ROLES:
        explicit = EXPLICIT.match(content)
        shown = explicit["text"] if explicit else content
        return f"`{shown.rsplit('.', 1)[-1] if shown.startswith('~') else shown}`"
    if name not in ROLES:
        page.problems.append(f"the role {{{name}}} has no plain translation")
        return None
    return ROLES[name](content, page)


def _glue(content: str, page: Page) -> str:
    if not page.solved:
        return UNKNOWN_YET
    where, _, rest = content.rpartition("::")
    key, _, form = rest.partition(":")
    values = page.values.get(PurePosixPath(where).stem if where else page.name, {})
    if key not in values:
        page.problems.append(f"no cell glues the value {content!r}")
        return UNKNOWN_YET
    return escaped(format_plain_text(values[key], form or "s"))


def _works(content: str, page: Page) -> list[Work]:
    works = []
    for key in (part.strip() for part in content.split(",")):
        if key in page.works:
            page.cited[key] = None
            works.append(page.works[key])
        else:
            page.problems.append(f"no work has the key {key!r}")
    return works


def _cite(content: str, page: Page) -> str:
    return "(" + "; ".join(work.parenthesis for work in _works(content, page)) + ")"


def _cite_text(content: str, page: Page) -> str:
    return "; ".join(work.textual for work in _works(content, page))


def _reference(content: str, page: Page) -> str:
    explicit = EXPLICIT.match(content)
    return _to_label((explicit["target"] if explicit else content).strip(), explicit["text"] if explicit else "", page)


def _to_label(label: str, text: str, page: Page) -> str:
    if label not in page.labels:
        page.problems.append(f"no label {label!r}")
        return text or label
    where, words = page.labels[label]
    shown = text or words
    return f"[{shown}]({page.notebook(where)})" if where != page.name and where in page.notebooks else shown


def _equation(content: str, page: Page) -> str:
    if content not in page.equations:
        page.problems.append(f"no formula of this page has the label {content!r}")
    return f"({page.equations.get(content, content)})"


def _document(content: str, page: Page) -> str:
    explicit = EXPLICIT.match(content)
    target = explicit["target"] if explicit else content
    return _to_page(PurePosixPath(target).stem, explicit["text"] if explicit else "", page)


def _to_page(name: str, text: str, page: Page) -> str:
    shown = text or page.labels.get(name, ("", name))[1]
    return f"[{shown}]({page.notebook(name)})" if name in page.notebooks else f"{shown} (in the book)"


def _words(content: str, page: Page) -> str:
    explicit = EXPLICIT.match(content)
    return explicit["text"] if explicit else content


def _link(found: re.Match[str], page: Page) -> str:
    text, target = inline(found["text"], page), found["target"]
    if found["image"]:
        if not target.startswith(("http:", "https:", "data:")):
            page.problems.append(f"the picture {target} is not in the notebook")
        return found[0]
    path, _, fragment = target.partition("#")
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return f"[{text}]({target}{found['title'] or ''})"
    if path.endswith(".md"):
        return _to_page(PurePosixPath(path).stem, text, page)
    if not path:
        return _to_label(fragment, text, page) if fragment in page.labels or not text else text
    return _to_label(path, text, page) if path in page.labels else f"{text} (in the book: `{path}`)"


def _tag(name: str) -> Callable[[str, Page], str]:
    return lambda content, page: f"<{name}>{content}</{name}>"


ROLES: dict[str, Callable[[str, Page], str]] = {
    "glue:text": _glue,
    "cite:p": _cite,
    "cite": _cite,
    "cite:t": _cite_text,
    "ref": _reference,
    "numref": _reference,
    "eq": _equation,
    "doc": _document,
    "term": _words,
    "abbr": _words,
    "math": lambda content, page: f"${content}$",
    "sub": _tag("sub"),
    "sup": _tag("sup"),
    "kbd": _tag("kbd"),
}
