"""What the chapters reported: the claims, comparisons and numbers that they glued, kept with Sphinx's pages.

The records travel as glued strings, so they come back from the cache like any other output. Used by every
chapter, through `labcode.report`, and shown on the page "Ledger".
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.util import logging

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

logger = logging.getLogger(__name__)
PREFIX = "ledger."
NEEDED = {"claim": {"text", "holds"}, "compare": {"quantity", "measured", "verdict"}}


@dataclass
class Page:
    """What one chapter reported, in its order."""

    claims: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[str, str] = field(default_factory=dict)

    @property
    def crosses(self) -> list[str]:
        """The claims that don't hold on this run."""
        return [claim["text"] for claim in self.claims if not claim["holds"]]


def parse(glued: Mapping[str, Mapping[str, Any]]) -> Page:
    """Read the contents of a chapter's `glue.json`.

    Raises:
        ValueError: A record isn't what `labcode.report` writes; the message names its key.
    """
    page = Page()
    for key, output in glued.items():
        text = output.get("data", {}).get("text/plain")
        if isinstance(text, list):
            text = "".join(text)
        if text is None:
            continue
        if not key.startswith(PREFIX):
            page.numbers[key] = text
            continue
        try:
            record = json.loads(ast.literal_eval(text))
            missing = NEEDED[record["kind"]] - set(record)
        except (ValueError, SyntaxError, KeyError, TypeError) as error:
            raise ValueError(f"the glued record {key!r} isn't one of labcode.report's: {error!r}") from error
        if missing:
            raise ValueError(f"the glued record {key!r} lacks {', '.join(sorted(missing))}")
        (page.claims if record["kind"] == "claim" else page.comparisons).append(record)
    return page


def pages(env: BuildEnvironment) -> dict[str, Page]:
    """What each page reported, by docname; it lives in Sphinx's environment, so cached pages are in it."""
    if not hasattr(env, "lab_ledger"):
        env.lab_ledger = {}  # type: ignore[attr-defined]
    stored: dict[str, Page] = env.lab_ledger  # type: ignore[attr-defined]
    return stored


def in_order(env: BuildEnvironment) -> Iterator[tuple[str, Page]]:
    """The pages that reported something, in the order of the table of contents."""
    stored = pages(env)
    order = list(dict.fromkeys([env.config.root_doc, *_walk(env, env.config.root_doc, set()), *sorted(stored)]))
    return ((docname, stored[docname]) for docname in order if docname in stored)


def _walk(env: BuildEnvironment, docname: str, seen: set[str]) -> Iterator[str]:
    for child in env.toctree_includes.get(docname, []):
        if child not in seen:
            seen.add(child)
            yield child
            yield from _walk(env, child, seen)


def _collect(app: Sphinx, doctree: nodes.document) -> None:
    """After a page is read: keep its records, or nothing if it glues nothing any more."""
    docname = app.env.docname
    pages(app.env).pop(docname, None)
    if not NbMetadataCollector.get_doc_data(app.env)[docname].get("glue"):  # type: ignore[arg-type]
        return
    stored = Path(app.outdir).parent / "jupyter_execute" / f"{docname}.glue.json"
    try:
        pages(app.env)[docname] = parse(json.loads(stored.read_text(encoding="utf8")))
    except ValueError as error:
        logger.warning("%s", error, location=docname, type="lab", subtype="ledger")


def _forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    pages(env).pop(docname, None)


def setup(app: Sphinx) -> None:
    """Collect each page's records when it is read and forget them when it goes."""
    app.connect("doctree-read", _collect)
    app.connect("env-purge-doc", _forget)
