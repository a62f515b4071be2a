"""The end of a build: the model, the claims that don't hold on it, what it cost, and where the book is.

With `LAB_STRICT=1` a claim that doesn't hold fails the build, whether its chapter ran or came from the cache.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.util import logging

from labbook._ext import ledger
from labbook._ext.halt import halt

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

logger = logging.getLogger(__name__)


def strict() -> bool:
    """Whether a cross fails the build."""
    return os.environ.get("LAB_STRICT", "").strip() not in ("", "0")


def finish(app: Sphinx, failure: Exception | None) -> None:
    """Print the summary, write `_build/cost.json`, and fail a strict build that has a cross.

    Raises:
        SystemExit: `LAB_STRICT` is set and a claim doesn't hold.
    """
    if app._warncount:
        _read_all_again(app)
    if failure is not None:
        return
    _write_costs(app)
    reports = list(ledger.in_order(app.env))
    crosses = [(name, text) for name, page in reports for text in page.crosses]
    claims = sum(len(page.claims) for _, page in reports)
    model = app.config.lab_subject
    if model:
        logger.info("\nThis build ran on %s: %s.", model.get("title", model["name"]), model["why"].rstrip("."))
    if claims:
        logger.info("%s", verdict(claims, crosses))
    start = Path(app.outdir) / "index.html"
    if app.builder.format == "html" and start.is_file():
        logger.info("Open %s in a browser, or: make serve", start.resolve().as_uri())
    if crosses and strict():
        listed = "".join(f"\n  ✗ {name}: {text}" for name, text in crosses)
        halt(f"LAB_STRICT is set and {len(crosses)} of {claims} claims don't hold:{listed}", see="claims-do-not-hold")


def verdict(claims: int, crosses: list[tuple[str, str]]) -> str:
    """One line if all claims hold, else one more for each cross."""
    if not crosses:
        return f"All {claims} claims hold on this run."
    listed = "".join(f"\n  ✗ {name}: {text}" for name, text in crosses)
    return f"{len(crosses)} of {claims} claims don't hold on this run:{listed}"


def costs(env: BuildEnvironment) -> dict[str, float]:
    """The seconds that each chapter took when it was executed, now or before it was cached."""
    taken = {name: NbMetadataCollector.get_exec_data(env, name) for name in sorted(env.found_docs)}  # type: ignore[arg-type]
    return {name: round(data["runtime"], 1) for name, data in taken.items() if data and data["runtime"]}


def _write_costs(app: Sphinx) -> None:
    target = Path(app.outdir).parent / "cost.json"
    model = app.config.lab_subject.get("name", "")
    target.write_text(json.dumps({"model": model, "seconds": costs(app.env)}, indent=1) + "\n", encoding="utf8")


def _read_all_again(app: Sphinx) -> None:
    """Let the next build read every page: else a warning would show once and never again, mended or not."""
    from sphinx.application import ENV_PICKLE_FILENAME

    (Path(app.doctreedir) / ENV_PICKLE_FILENAME).unlink(missing_ok=True)
