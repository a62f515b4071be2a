"""The `patchbench` directive, and the recorded pairs as scripts that the page loads when it needs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes

from labbook._ext import pages
from labbook.show import bench

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def fill(app: Sphinx, here: str, argument: str) -> list[nodes.Node]:
    """The bench."""
    subject = app.config.lab_subject.get("title", "")
    return [nodes.raw("", bench.to_html(bench.load(), subject=subject), format="html")]


def _is_here(app: Sphinx, doctree: nodes.document) -> bool:
    return any(place["name"] == "patchbench" for place in doctree.findall(pages.Place))


def add_script(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Load the script where the bench stands."""
    if page in pages.collected(app.env, "benches"):
        pages.add_script(app, page, context, "labbench.js")


def write_data(app: Sphinx, error: Exception | None) -> None:
    """Each pair as a file of its own, if a page shows the bench."""
    if error or app.builder.format != "html" or not pages.collected(app.env, "benches"):
        return
    folder = Path(app.outdir) / "_static" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    for found in bench.load():
        (folder / f"{found['name']}.js").write_text(bench.script_of(found), encoding="utf8")


def setup(app: Sphinx) -> None:
    """Register the directive, its script and its data."""
    pages.add_directive(app, "patchbench", fill)
    pages.collect(app, "benches", _is_here)
    app.connect("html-page-context", add_script)
    app.connect("build-finished", write_data)
