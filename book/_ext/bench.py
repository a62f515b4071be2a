"""The `patchbench` directive, and the recorded pairs as scripts that the page loads when it needs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes

from labbook._ext import pages
from labbook.show import bench

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def fill(app: Sphinx, here: str, argument: str) -> list[nodes.Node]:
    """The bench."""
    subject = app.config.lab_subject.get("title", "")
    return [nodes.raw("", bench.to_html(bench.load(), subject=subject), format="html")]


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
    pages.collect(app, "benches", pages.has("patchbench"))
    pages.load_script(app, "labbench.js", "benches")
    app.connect("build-finished", write_data)
