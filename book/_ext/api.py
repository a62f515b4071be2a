"""The directives `api`, every public name of a module with its docstring and the chapters that use it, and `api-index`.

Everything is read from the sources and nothing is imported: signatures and docstrings from labcode's, the uses from the
chapters' cells. A module has a page of its own, `api/NAME.md`, whose only content is the directive. Docstrings are
Markdown with the sections of Google's style. In the chapters a name in code style, such as `metrics.bootstrap`, links
back.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

import labcode
from labbook._ext import chapters, execution, pages

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PACKAGE = Path(labcode.__file__).parent
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Examples?|Notes?):\n((?: +.*\n|\n)+)", re.MULTILINE)
ITEM = re.compile(r"^(\*{0,2}\w[\w., ]*): ", re.MULTILINE)
NEXT = re.compile(r"(?<=\.) (?=[a-z_]\w*(?:, [a-z_]\w*)*: )")  # a short argument may share the line of another
ROLE = re.compile(r"\{(?=[\w:-]+\}`)")  # a docstring may speak of a role, and means none
TABLE = re.compile(r"^=+ +=.*\n(?:.+\n)+", re.MULTILINE)


class Definition(NamedTuple):
    """Something public: the directive for it, how it is called, its docstring, and what it holds."""

    kind: str
    signature: str
    name: str
    doc: str
    members: list[Definition]


@cache
def sources(package: Path = PACKAGE) -> dict[str, ast.Module]:
    """The modules of the package by full name, parsed."""
    paths = sorted(path for path in package.glob("*.py") if not path.stem.startswith("_"))
    return {f"{package.name}.{path.stem}": ast.parse(path.read_text(encoding="utf8")) for path in paths}


def definitions(body: list[ast.stmt], inside: bool = False) -> list[Definition]:
    """The functions, classes and constants of a module, or of a class, that have a docstring, in their order."""
    found = []
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        match node, after:
            case ((ast.FunctionDef() | ast.ClassDef()), _):
                doc, name = ast.get_docstring(node) or "", node.name
            case ((ast.Assign(targets=[target]) | ast.AnnAssign(target=target)), ast.Expr(ast.Constant(str(doc)))):
                name = ast.unparse(target)
            case _:
                continue
        if doc and re.fullmatch(r"[a-zA-Z]\w*", name):
            members = definitions(node.body, True) if isinstance(node, ast.ClassDef) else []
            found.append(Definition(*_called(node, inside), name, doc, members))
    return found


def _called(node: ast.stmt, inside: bool) -> tuple[str, str]:
    """The kind of a definition, and its arguments and result."""
    match node:
        case ast.ClassDef(name=name) if name.endswith("Error"):
            return "exception", ""
        case ast.ClassDef(body=body):  # the fields of a dataclass or tuple, unless there is an `__init__`
            typed = [ast.unparse(one) for one in body if isinstance(one, ast.AnnAssign)]
            fields = [re.sub(r"= field\(.*\)\Z", "= ...", one) for one in typed]
            made = [_called(one, True)[1] for one in body if getattr(one, "name", "") == "__init__"]
            return "class", (made or [f"({', '.join(fields)})" if fields else ""])[0].removesuffix(" -> None")
        case ast.FunctionDef(args=args, returns=returns, decorator_list=marks):
            if any(ast.unparse(mark).endswith("property") for mark in marks):
                return "property", ""
            given = re.sub(r"^(?:self|cls)(?:, |\Z)", "", ast.unparse(args))
            return "method" if inside else "function", f"({given})" + (f" -> {ast.unparse(returns)}" if returns else "")
    return "attribute" if inside else "data", ""


def markdown(doc: str) -> str:
    """A docstring as Markdown: sections as a list of definitions, a table as it stands."""

    def section(found: re.Match[str]) -> str:
        body = textwrap.dedent(found[2]).strip()
        if found[1] in ("Args", "Attributes", "Raises"):
            body = ITEM.sub(r"- `\1`: ", NEXT.sub("\n", body))
        return f"{found[1]}\n: {textwrap.indent(body, '  ').lstrip()}\n\n"

    text = ROLE.sub(r"\\{", TABLE.sub(lambda found: f"```text\n{found[0]}```\n", f"{inspect.cleandoc(doc)}\n"))
    return SECTION.sub(section, text)


def entry(one: Definition, prefix: str, fence: str = ":::::") -> list[str]:
    """The lines that define a name for Sphinx's Python domain."""
    lines = [f"{fence}{{py:{one.kind}}} {one.name}{one.signature}", "", *markdown(one.doc).splitlines(), ""]
    if prefix:
        lines += [f":::{{used-in}} {prefix}.{one.name}", ":::", ""]
    for member in one.members:
        lines += entry(member, "", fence[1:])
    return [*lines, fence, ""]


class Api(SphinxDirective):
    """What a module of labcode, named without the package, says of itself and of all that it defines."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The module's docstring, then an entry for each name."""
        module = f"{PACKAGE.name}.{self.arguments[0]}"
        if module not in sources():
            raise self.error(f"{PACKAGE.name} has no module {self.arguments[0]!r}: it has {', '.join(modules())}")
        tree = sources()[module]
        lines = [f":::{{py:module}} {module}", ":::", "", *markdown(ast.get_docstring(tree) or "").splitlines()]
        lines += ["", f":::{{used-in}} {module}", ":::", ""]
        lines += [line for one in definitions(tree.body) for line in entry(one, module)]
        here = nodes.container()
        self.state.nested_parse(StringList(lines, source=module), self.content_offset, here)
        return here.children


def modules() -> list[str]:
    """The modules that define something, named without the package."""
    return [name.rpartition(".")[2] for name, tree in sources().items() if definitions(tree.body)]


def index(app: Sphinx, here: str, argument: str) -> list[nodes.Node]:
    """Each module that has a page, with the first sentence of its docstring and links to its names."""
    listed = nodes.definition_list(classes=["lab-api-index"])
    for name in modules():
        docname, module = f"{here}/{name}", f"{PACKAGE.name}.{name}"
        if docname not in app.env.all_docs:
            continue
        tree = sources()[module]
        says = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
        links: list[nodes.Node] = []
        for one in definitions(tree.body):
            anchor = f"{module}.{one.name}"
            links += [
                pages.link(app, here, docname, nodes.literal("", one.name), anchor, reftitle=anchor),
                nodes.Text(" "),
            ]
        term = nodes.term("", "", pages.link(app, here, docname, nodes.literal("", module)))
        body = nodes.definition("", nodes.paragraph("", says), nodes.paragraph("", "", *links))
        listed += nodes.definition_list_item("", term, body)
    return [listed]


# Which chapters use a name


def names_used(cells: Iterable[str], package: Path = PACKAGE) -> set[str]:
    """The full names of the package's modules, and of what they define, that these cells import or reach."""
    trees = [tree for cell in cells if (tree := _parsed(cell))]
    known = dict(_imported([node for tree in trees for node in ast.walk(tree)], package.name))
    found = set(known.values())
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)):
        first, _, rest = ast.unparse(node).partition(".")
        if first in known:
            found.add(f"{known[first]}.{rest}")
    defined_in = _defined_in(package)
    found = {defined_in.get(name, name) for name in found}
    return {name.rsplit(".", cut)[0] for name in found for cut in range(name.count("."))}


def _parsed(cell: str) -> ast.Module | None:
    try:
        return ast.parse(cell)
    except SyntaxError:  # a magic, or a blank to be filled in
        return None


def _imported(body: Iterable[ast.AST], package: str) -> Iterator[tuple[str, str]]:
    """The names that import statements give to parts of the package, and the full names of these."""
    for node in body:
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == package:
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == package:
                    yield alias.asname or package, alias.name if alias.asname else package


@cache
def _defined_in(package: Path) -> dict[str, str]:
    """For a name that a module only imports from another, such as an error: where it is defined."""
    trees = sources(package).items()
    return {f"{module}.{name}": full for module, tree in trees for name, full in _imported(tree.body, package.name)}


def _read(app: Sphinx, doctree: nodes.document) -> set[str]:
    if chapters.number(app.env.docname) is None or not (notebook := execution.notebook(app.env, app.env.docname)):
        return set()
    return names_used(cell.source for cell in notebook.cells if cell.cell_type == "code")


def used_in(app: Sphinx, here: str, name: str) -> list[nodes.Node]:
    """The sentence that names the chapters, or nothing."""
    users = sorted(
        chapters.number(page) or 0 for page, names in pages.collected(app.env, "names").items() if name in names
    )
    if not users:
        return []
    words = nodes.Text(f"Used in chapter{'s' if len(users) > 1 else ''} ")
    return [nodes.paragraph("", "", words, *chapters.links(app, here, users), nodes.Text("."))]


class CodeLinks(SphinxPostTransform):
    """Link the first use of each documented name in a chapter's prose to its entry."""

    default_priority = 210
    closed = (nodes.title, nodes.reference, addnodes.pending_xref, nodes.caption, nodes.table)

    def run(self, **kwargs: Any) -> None:
        """Only chapters get links."""
        if chapters.number(self.env.docname) is None:
            return
        known, done = dict(self._known()), set()
        for literal in list(self.document.findall(nodes.literal)):
            name = literal.astext().partition("(")[0]
            if name not in known or name in done or any(isinstance(node, self.closed) for node in pages.above(literal)):
                continue
            done.add(name)
            docname, target, full = known[name]
            to: dict[str, Any] = {"anchor": target, "reftitle": full, "classes": ["lab-code"]}
            literal.replace_self(pages.link(self.app, self.env.docname, docname, literal.deepcopy(), **to))

    def _known(self) -> Iterator[tuple[str, tuple[str, str, str]]]:
        """Each name as a chapter may write it: with its module, and a function or class also alone, if only one has it.

        Ordinary words are left alone: `heads`, `place` or `whole` is more often an argument than something of labcode.
        """
        bare: dict[str, list[tuple[str, str, str]]] = {}
        for full, _, kind, docname, target, _ in self.env.get_domain("py").get_objects():
            if not full.startswith("labcode."):
                continue
            short, last = full.removeprefix("labcode."), full.rpartition(".")[2]
            yield full, (docname, target, full)
            if "." in short:
                yield short, (docname, target, full)
            if kind in ("function", "class", "exception"):
                bare.setdefault(last, []).append((docname, target, full))
        for name, owners in bare.items():
            if len(owners) == 1 and ("_" in name or not name.islower()):
                yield name, owners[0]


def setup(app: Sphinx) -> None:
    """Register the directives and the links."""
    app.add_directive("api", Api)
    pages.add_directive(app, "api-index", index)
    pages.add_directive(app, "used-in", used_in)
    pages.collect(app, "names", _read)
    app.add_post_transform(CodeLinks)
