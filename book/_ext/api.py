"""The `api` directive: every public name of labcode from its own docstring, by autodoc.

The modules are found in the package, so a new one needs no line here. Docstrings are plain text with code in single
backticks; here they become reStructuredText, and their "Used in chapters 03 to 12." links. In the chapters a name in
code style, such as `metrics.bootstrap`, links back. Used by the page "API".
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

import labcode
from labbook._ext.chapters import number

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PACKAGE = Path(labcode.__file__).parent
LEFT_OUT = {"__main__", "exercises"}  # what is right in the exercises isn't for readers
CODE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
SECTION = re.compile(r"(?:Args|Attributes|Returns|Yields|Raises|Example|Examples|Note|Notes):")
USED = re.compile(r"(?P<head>\bchapters?) (?P<list>\d\d(?:(?:, | and | to )(?:\d\d and )?\d\d)*)")


def modules(package: Path = PACKAGE) -> list[str]:
    """The public modules of the package, a package before what it holds."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if len(parts) > 1 and not LEFT_OUT & set(parts) and not any(part.startswith("_") for part in parts):
            found.append(".".join(parts))
    return sorted(found)


def has_public(module: str, package: Path = PACKAGE) -> bool:
    """Whether a module defines anything that a reader could call: a function, a class or a constant."""
    path = package.parent.joinpath(*module.split("."))
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf8"))
    defined = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(node, defined) and not node.name.startswith("_") for node in tree.body)


def restructured(line: str) -> str:
    """A line of a docstring with its code marked, and made plain what would be markup by accident."""
    lead, bullet, rest = re.fullmatch(r"(\s*)([*-] )?(.*)", line, re.DOTALL).groups("")  # type: ignore[union-attr]
    parts = CODE.split(rest)
    for i in range(0, len(parts), 2):
        plain = re.sub(r"(?<![\w*])(\*\w(?:[^*]*\w)?\*)(?![\w*])|([\\*|])", _kept_or_escaped, parts[i])
        parts[i] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", plain)
    for i in range(1, len(parts), 2):
        after = r"\ " if parts[i + 1][:1].isalnum() else ""
        parts[i] = f"``{parts[i]}``{after}"
    return lead + bullet + "".join(parts)


def _kept_or_escaped(match: re.Match[str]) -> str:
    return match[1] or f"\\{match[2]}"  # emphasis stays


def spaced(lines: list[str]) -> list[str]:
    """Blank lines where reStructuredText wants them and a reader doesn't, and tables as they stand."""
    made: list[str] = []
    rules, point = 0, -1  # rules of the table we are in, and the indentation of the list's points
    for line in lines:
        last = made[-1] if made else ""
        rule = bool(re.fullmatch(r"\s*=+(?: +=+)+\s*", line))
        if rule or rules:
            made += [] if rules else ["::", ""] if not last.strip() else ["", "::", ""]
            made.append(f"   {line}" if line.strip() else "")
            rules += rule
            if rules == 3 or not line.strip():
                made += [""] if line.strip() else []
                rules = 0
            continue
        if line.strip():
            bullet, deep = bool(re.match(r"\s*[*-] ", line)), _indent(line)
            begins = bullet and point < 0
            ends = not bullet and point >= 0 and deep <= point
            odd = not bullet and point < 0 and deep != _indent(last)
            made += [""] if last.strip() and (begins or ends or odd) else []
            point = deep if bullet else -1 if deep <= point else point
        made.append(line)
    return made


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def linked(line: str) -> str:
    """A line with the chapters that it names as links."""

    def links(match: re.Match[str]) -> str:
        return f"{match['head']} " + re.sub(r"\d\d", lambda n: rf":chapter-number:`{int(n[0])}`", match["list"])

    return USED.sub(links, line)


def docstring(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Rewrite a docstring before napoleon reads its sections."""
    first = next((i for i, line in enumerate(lines) if SECTION.fullmatch(line)), len(lines))
    verbatim = False
    made = []
    for line in [*spaced(lines[:first]), *lines[first:]]:
        verbatim = line.strip() == "::" or (verbatim and (not line.strip() or line.startswith("   ")))
        made.append(line if verbatim else linked(restructured(line)))
    lines[:] = made


def skip_foreign(app: Sphinx, what: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
    """Leave out what only Python made: the fields of a NamedTuple and the methods of a dataclass."""
    return True if getattr(thing, "__doc__", "") and str(thing.__doc__).startswith("Alias for field") else None


class Api(SphinxDirective):
    """A section with an `automodule` for each module."""

    def run(self) -> list[nodes.Node]:
        """Every module that defines something public."""
        made: list[nodes.Node] = []
        for module in modules():
            if not has_public(module):
                continue
            section = nodes.section("", nodes.title("", "", nodes.literal("", module)), ids=[f"module-of-{module}"])
            section["names"] = [module]
            text = ["```{eval-rst}", f".. automodule:: {module}", "   :members:", "   :member-order: bysource"]
            text += ["   :ignore-module-all:", "```"]
            self.state.nested_parse(StringList(text, source=f"{module}"), self.content_offset, section)
            made.append(section)
        return made


class CodeLinks(SphinxPostTransform):
    """Link the first use of each documented name in a chapter's prose to its entry."""

    default_priority = 210

    def run(self, **kwargs: Any) -> None:
        """Only chapters get links."""
        if number(self.env.docname) is None:
            return
        known = dict(self._known())
        done = set()
        for literal in list(self.document.findall(nodes.literal)):
            name = literal.astext().partition("(")[0]
            if name not in known or name in done or not plain_text(literal):
                continue
            done.add(name)
            docname, target, full = known[name]
            address = self.app.builder.get_relative_uri(self.env.docname, docname) + f"#{target}"
            link = nodes.reference("", "", refuri=address, internal=True, reftitle=full, classes=["lab-code"])
            literal.replace_self(link)
            link += literal

    def _known(self) -> Iterator[tuple[str, tuple[str, str, str]]]:
        """Each name as a chapter may write it: with its module, and a function or class also alone, if only one has it.

        Ordinary words are left alone: `heads`, `place` or `whole` is more often an argument than something of labcode.
        """
        objects = [one for one in self.env.get_domain("py").get_objects() if one[0].startswith("labcode.")]
        bare: dict[str, list[tuple[str, str, str]]] = {}
        for full, _, kind, docname, target, _ in objects:
            short = full.removeprefix("labcode.")
            yield full, (docname, target, full)
            if "." in short:
                yield short, (docname, target, full)
            module, _, last = short.rpartition(".")
            if "." in module:  # what a package's own module defines, the package offers
                yield f"{module.partition('.')[0]}.{last}", (docname, target, full)
            if kind in ("function", "class", "exception"):
                bare.setdefault(short.rpartition(".")[2], []).append((docname, target, full))
        for name, owners in bare.items():
            if len(owners) == 1 and ("_" in name or not name.islower()):
                yield name, owners[0]


def plain_text(node: nodes.Element) -> bool:
    """Whether code stands in running text and not in a heading or a link."""
    closed = (nodes.title, nodes.reference, addnodes.pending_xref, nodes.caption, nodes.table)
    parent = node.parent
    while parent is not None:
        if isinstance(parent, closed):
            return False
        parent = parent.parent
    return True


def setup(app: Sphinx) -> None:
    """Register the directive, and have docstrings rewritten before napoleon (whose priority is 500) reads them."""
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")
    app.add_directive("api", Api)
    app.add_post_transform(CodeLinks)
    app.connect("autodoc-process-docstring", docstring, priority=400)
    app.connect("autodoc-skip-member", skip_foreign)
