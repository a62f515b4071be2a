"""Which pages a build writes, and its end: the model, the claims and self-checks that don't hold on it, what it cost,
and where the book is.

With `LAB_STRICT=1` a claim that doesn't hold fails the build of a certified model, whether its chapter ran or came from
the cache; the build of any other model says that it is not certified. The `costs` directive shows what each page cost
when it was executed, from the records beside its outputs in the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from jupyter_cache import get_cache
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.util import logging

from labbook._ext import claims, pages
from labbook._ext.execution import duration, halt

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

logger = logging.getLogger(__name__)
UNKNOWN = "not measured"
WRITTEN = "written"  # beside Sphinx's environment: what all pages of the last whole build were made of
WRITING = "writing"  # the same of the build that runs: files may change before it ends


def strict() -> bool:
    """Whether a cross fails the build."""
    return os.environ.get("LAB_STRICT", "").strip() not in ("", "0")


def forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """A page is read again or gone: the pages are no longer all of one build."""
    (Path(app.doctreedir) / WRITTEN).unlink(missing_ok=True)


def rewrite(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """All pages, if anything changed: a page may show another page's numbers, which Sphinx doesn't know; else none."""
    written, now = Path(app.doctreedir) / WRITTEN, made_of(app)
    (Path(app.doctreedir) / WRITING).write_text(now)
    if written.is_file() and written.read_text() == now:
        return []
    written.unlink(missing_ok=True)
    return sorted(env.found_docs)


def made_of(app: Sphinx) -> str:
    """A hash of what goes into pages beside what Sphinx reads: this package, the works cited and the settings."""
    package, root = Path(__file__).parents[1], Path(app.srcdir)
    files = [path for path in package.rglob("*") if path.suffix not in (".md", ".pyc")]
    files += [root / name for name in getattr(app.config, "bibtex_bibfiles", [])]
    files += [root / name for name in ("pyproject.toml", "requirements.txt")]
    said = [app.config.lab_subject, app.config.lab_repository, app.config.lab_certified, app.config.html_baseurl]
    digest = hashlib.sha256(json.dumps(said).encode())
    for path in sorted(filter(Path.is_file, files)):
        digest.update(f"{path}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def finish(app: Sphinx, failure: Exception | None) -> None:
    """Print the summary, write `_build/cost.json`, and fail a strict build that has a cross.

    Raises:
        SystemExit: `LAB_STRICT` is set, the model is certified, and a claim doesn't hold.
    """
    if app._warncount:
        _read_all_again(app)
    if failure is not None:
        return
    (Path(app.doctreedir) / WRITING).replace(Path(app.doctreedir) / WRITTEN)
    model = app.config.lab_subject
    taken = {docname: round(seconds, 1) for docname, seconds in executed(app.env).items()}
    costs = json.dumps({"model": model.get("name", ""), "seconds": taken}, indent=1)
    (Path(app.outdir).parent / "cost.json").write_text(costs + "\n", encoding="utf8")
    reports = pages.in_order(app.env, "ledger")
    crosses = [f"\n  ✗ {name}: {text}" for name, found in reports for text in found.crosses]
    said, checks = (sum(len(getattr(found, kind)) for _, found in reports) for kind in ("claims", "checks"))
    false, listed = len(crosses), "".join(crosses)
    both = f"{said} claims and {checks} self-checks"
    if model:
        logger.info("\nThis build ran on %s: %s.", model.get("title", model["name"]), model["why"].rstrip("."))
    if false:
        logger.info("%d of %s don't hold on this run:%s", false, both, listed)
    elif said or checks:
        logger.info("All %s hold on this run.", both)
    if not claims.certified(app):
        logger.info("%s See How to use this book.", claims.UNCERTIFIED.format(title=model.get("title", model["name"])))
    start = Path(app.outdir) / "index.html"
    if app.builder.format == "html" and start.is_file():
        logger.info("Open %s in a browser, or: make serve", start.resolve().as_uri())
    if false and strict() and claims.certified(app):
        halt(f"LAB_STRICT is set and {false} of {both} don't hold:{listed}", see="claims-do-not-hold")


def _read_all_again(app: Sphinx) -> None:
    """Let the next build read every page: else a warning would show once and never again, mended or not."""
    from sphinx.application import ENV_PICKLE_FILENAME

    (Path(app.doctreedir) / ENV_PICKLE_FILENAME).unlink(missing_ok=True)


def executed(env: BuildEnvironment) -> dict[str, float]:
    """The seconds of each executed page, whether it ran now or came from the cache, in the book's order."""
    ran: dict[str, Any] = {name: NbMetadataCollector.get_exec_data(env, name) for name in env.collect_relations()}  # type: ignore[arg-type]
    return {name: data["runtime"] for name, data in ran.items() if data and data["runtime"]}


def fill(app: Sphinx, here: str, argument: str) -> list[nodes.Node]:
    """The table of costs, with sums of what every page has."""
    records = get_cache(app.env.mystnb_config.execution_cache_path).list_cache_records()  # type: ignore[attr-defined]
    used = {}
    for docname, seconds in executed(app.env).items():
        # The cache may hold older versions of a page; its own time tells which record is the one shown.
        own = [one.data for one in records if one.data.get("execution_seconds") == seconds]
        used[docname] = {"execution_seconds": seconds, **(own[0] if own else {})}
    if not used:
        return [nodes.paragraph("", "No page of this book was executed.")]
    rows: list[list[pages.Cell]] = [[pages.link(app, here, docname), *row(one)] for docname, one in used.items()]
    rows.append([nodes.strong("", text) for text in ("Together", *row(total(list(used.values()))))])
    return [pages.table(["Page", "Time", "Processor time", "Most memory"], rows)]


def row(used: dict[str, float]) -> list[str]:
    """The cells of one page as a reader reads them; what wasn't measured says so."""
    return [
        duration(used["execution_seconds"]),
        duration(used["cpu_seconds"]) if "cpu_seconds" in used else UNKNOWN,
        f"{used['peak_bytes'] / 1e9:.1f} GB" if "peak_bytes" in used else UNKNOWN,
    ]


def total(each: list[dict[str, float]]) -> dict[str, float]:
    """Sums, and the largest memory, of what every page has."""
    shared = set.intersection(*(set(used) for used in each))
    return {key: (max if key == "peak_bytes" else sum)(used[key] for used in each) for key in shared}


def setup(app: Sphinx) -> None:
    """Register the directive, choose the pages to write, and close the build after the notebooks are written."""
    pages.add_directive(app, "costs", fill)
    app.connect("env-purge-doc", forget)
    app.connect("env-updated", rewrite)
    app.connect("build-finished", finish, priority=900)
