"""The `costs` directive: what each chapter cost when it was executed, from the records beside its outputs in the cache.

Used by the page "What it costs".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docutils import nodes
from jupyter_cache import get_cache
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.util.docutils import SphinxDirective

from labbook._ext.chapters import skip
from labbook._ext.execute import duration

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

HEADINGS = ("Page", "Time", "Processor time", "Most memory", "Forward passes", "Prompts in them")
UNKNOWN = "not measured"


class CostsNode(nodes.General, nodes.Element):
    """The place of the table, which is known only when all pages have been read."""


class Costs(SphinxDirective):
    """Leave a place for the table."""

    def run(self) -> list[nodes.Node]:
        """There is nothing to check."""
        return [CostsNode()]


def costs(env: BuildEnvironment) -> dict[str, dict[str, float]]:
    """The records of each executed page, in the book's order: seconds, and what else was measured."""
    records = get_cache(env.mystnb_config.execution_cache_path).list_cache_records()  # type: ignore[attr-defined]
    found = {}
    for docname in env.collect_relations():
        ran: Any = NbMetadataCollector.get_exec_data(env, docname)  # type: ignore[arg-type]
        if not ran or not ran["runtime"]:
            continue
        # The cache may hold older versions of a page; its own time tells which record is the one shown.
        own = [one.data for one in records if one.data.get("execution_seconds") == ran["runtime"]]
        found[docname] = {"execution_seconds": ran["runtime"], **(own[0] if own else {})}
    return found


def row(used: dict[str, float]) -> list[str]:
    """The cells of one page as a reader reads them; what wasn't measured says so."""
    memory = used.get("peak_bytes")
    return [
        duration(used["execution_seconds"]),
        duration(used["cpu_seconds"]) if "cpu_seconds" in used else UNKNOWN,
        UNKNOWN if memory is None else f"{memory / 1e9:.1f} GB",
        f"{used['passes']:,}".replace(",", " ") if "passes" in used else UNKNOWN,
        f"{used['prompts']:,}".replace(",", " ") if "prompts" in used else UNKNOWN,
    ]


def total(pages: list[dict[str, float]]) -> dict[str, float]:
    """Sums, and the largest memory, of what every page has."""
    shared = set.intersection(*(set(page) for page in pages))
    return {key: (max if key == "peak_bytes" else sum)(page[key] for page in pages) for key in shared}


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the table where the directive stands."""
    for place in list(doctree.findall(CostsNode)):
        known = costs(app.env)
        if not known:
            place.replace_self(nodes.paragraph("", "No page of this book was executed."))
            continue
        group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in HEADINGS), cols=len(HEADINGS))
        group += nodes.thead("", _row([nodes.Text(heading) for heading in HEADINGS]))
        body = nodes.tbody()
        for page, used in known.items():
            address = app.builder.get_relative_uri(docname, page)
            link = nodes.reference("", app.env.titles[page].astext(), refuri=address, internal=True)
            body += _row([link, *map(nodes.Text, row(used))])
        body += _row([nodes.strong("", text) for text in ("Together", *row(total(list(known.values()))))])
        group += body
        place.replace_self(nodes.table("", group, classes=["lab-ledger"]))


def _row(cells: list[nodes.Node]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells))


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_node(CostsNode, html=(skip, None), latex=(skip, None), text=(skip, None))
    app.add_directive("costs", Costs)
    app.connect("doctree-resolved", fill)
