"""Execute the chapters that have no outputs in the cache, two at a time, before Sphinx reads them.

myst-nb then finds every one of them in the cache. Alone it would run one after the other, say nothing
meanwhile and stop at the first failure. Used by every chapter, through the build.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.cache.main import JupyterCacheBase
from myst_nb.core.read import create_nb_reader
from sphinx.util import logging

from labbook._ext.halt import halt
from labbook._ext.kernels import Chapter, Run, run, stop

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

T = TypeVar("T")
logger = logging.getLogger(__name__)


def run_chapters(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Run the chapters among `docnames` that the cache doesn't know; report each as it finishes.

    Raises:
        SystemExit: After all have run, if any failed; their tracebacks have been printed.
    """
    settings = env.mystnb_config  # type: ignore[attr-defined]
    if settings.execution_mode != "cache":
        return
    cache = get_cache(settings.execution_cache_path)
    chapters = [chapter for chapter in (_chapter(env, name) for name in docnames) if chapter]
    missing = [chapter for chapter in chapters if not _is_cached(cache, chapter)]
    for page in missing:
        if not page.has_code:
            _keep(cache, Run(page, 0.0))  # else myst-nb would start a kernel for it
    missing = [chapter for chapter in missing if chapter.has_code]
    if not missing:
        if chapters:
            logger.info("nothing to execute: %d pages come from the cache", len(chapters))
        return
    at_once = min(jobs(), len(missing))
    logger.info("chapters to execute: %d, %d at a time", len(missing), at_once)
    finished = _run_all(missing, at_once, settings.execution_timeout, cache)
    failures = [result for result in finished if result.failure]
    if failures:
        _report(failures)


def jobs() -> int:
    """How many chapters run at a time: `LAB_JOBS`, else two.

    Raises:
        SystemExit: `LAB_JOBS` isn't a whole number above 0.
    """
    asked = os.environ.get("LAB_JOBS", "").strip() or "2"
    if not asked.isdigit() or int(asked) < 1:
        halt(f"LAB_JOBS={asked} isn't a number of chapters: use a whole number above 0", see="lab-jobs")
    return int(asked)


def duration(seconds: float) -> str:
    """Seconds in words: "4.2 s", "41 s", "1 min 3 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def in_turn(chapters: Sequence[T], size: Callable[[T], int]) -> list[T]:
    """The largest, then the first, the last, the second, the last but one, and so on.

    The largest would else run alone at the end. Neighbours share measurements: begun together, one of them would only
    wait until the other has measured.
    """
    largest = max(chapters, key=size, default=None)
    rest = [chapter for chapter in chapters if chapter is not largest]
    both_ends = [chapter for pair in zip(rest, reversed(rest), strict=True) for chapter in pair][: len(rest)]
    return both_ends if largest is None else [largest, *both_ends]


def _cells(chapter: Chapter) -> int:
    return sum(cell.cell_type == "code" for cell in chapter.notebook.cells)


def _chapter(env: BuildEnvironment, docname: str) -> Chapter | None:
    """The page as a notebook, read exactly as myst-nb will read it; None for a page without code."""
    path = Path(env.doc2path(docname))
    text = path.read_text(encoding="utf8")
    reader = create_nb_reader(str(path), env.myst_config, env.mystnb_config, text)  # type: ignore[attr-defined]
    return Chapter(docname, path, reader.read(text)) if reader else None


def _is_cached(cache: JupyterCacheBase, chapter: Chapter) -> bool:
    try:
        cache.match_cache_notebook(chapter.notebook)
    except KeyError:
        return False
    return True


def _run_all(chapters: list[Chapter], at_once: int, timeout: int, cache: JupyterCacheBase) -> list[Run]:
    begun = time.monotonic()
    finished: list[Run] = []
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(run, chapter, timeout) for chapter in in_turn(chapters, _cells)]
        try:
            for done in as_completed(futures):
                result = done.result()
                finished.append(result)
                if not result.failure:
                    _keep(cache, result)
                logger.info(
                    "[%d/%d] %s %s %s (%s in all)",
                    len(finished),
                    len(chapters),
                    result.chapter.docname,
                    "FAILED after" if result.failure else "ran in",
                    duration(result.seconds),
                    duration(time.monotonic() - begun),
                )
        except BaseException as reason:
            logger.info("stopping the kernels")
            stop(chapters, futures)
            if isinstance(reason, KeyboardInterrupt):
                halt(
                    "interrupted; the next build goes on with the chapters that are left", see="interrupted", status=130
                )
            raise
    return finished


def _keep(cache: JupyterCacheBase, result: Run) -> None:
    """Store the outputs at once, so that an interrupted build goes on where it was.

    Only the main thread comes here: two writers would fight over the cache's database.
    """
    notebook, path = result.chapter.notebook, str(result.chapter.path)
    bundle = CacheBundleIn(notebook, path, data={"execution_seconds": result.seconds, **result.used})
    cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def _report(failures: list[Run]) -> None:
    for failed in failures:
        logger.error("%s\n%s\n", failed.chapter.docname, failed.failure, location=failed.chapter.docname)
    names = ", ".join(failed.chapter.docname for failed in failures)
    count = "a chapter" if len(failures) == 1 else f"{len(failures)} chapters"
    halt(f"{count} failed: {names} (the tracebacks are above)", see="chapter-failed")
