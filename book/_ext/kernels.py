"""Run one notebook in a kernel of its own, and stop all kernels when the reader has had enough.

Used by every chapter, through the build.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbclient import NotebookClient
from nbformat import NotebookNode

from labbook._ext.measure import watch

ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


@dataclass
class Chapter:
    """A page that is about to be executed."""

    docname: str
    path: Path
    notebook: NotebookNode
    client: NotebookClient | None = None

    @property
    def has_code(self) -> bool:
        """Whether there is anything to execute."""
        return any(cell.cell_type == "code" for cell in self.notebook.cells)


@dataclass(frozen=True)
class Run:
    """What became of a chapter."""

    chapter: Chapter
    seconds: float
    failure: str = ""  # the traceback, or nothing
    used: dict[str, float] = field(default_factory=dict)  # what else was measured, see `measure`


def run(chapter: Chapter, timeout: int) -> Run:
    """Execute the chapter's notebook in place, in its own folder; a failure comes back as text.

    Args:
        chapter: The page; its notebook gets the outputs.
        timeout: The most seconds that one cell may take.
    """
    begun = time.monotonic()
    chapter.client = NotebookClient(
        chapter.notebook,
        timeout=timeout,
        record_timing=False,  # times in the cells' metadata would change the notebook's key in the cache
        resources={"metadata": {"path": str(chapter.path.parent)}},
        # Without this each kernel tells the terminal that it talks over TCP unencrypted, and that it was stopped.
        extra_arguments=["--IPKernelApp.log_level=50"],
    )
    used = watch(chapter.client)
    failure = ""
    try:
        chapter.client.execute()
    except Exception as error:  # a dead kernel and a time-out come as different classes; all end the chapter
        failure = ANSI.sub("", f"{type(error).__name__}: {error}").strip()
    return Run(chapter, time.monotonic() - begun, failure, used)


def stop(chapters: list[Chapter], futures: list[Future[Run]]) -> None:
    """Kill the kernels of these chapters until none of the threads that wait for them is left."""
    for future in futures:
        future.cancel()
    while any(not future.done() for future in futures):
        for chapter in chapters:
            _kill(chapter.client)
        wait(futures, timeout=0.2)


def _kill(client: NotebookClient | None) -> None:
    provisioner: Any = getattr(client and client.km, "provisioner", None)
    process = getattr(provisioner, "process", None)
    if process is not None and process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # A kernel leads a session of its own, so Ctrl-C on the terminal didn't reach it.
            os.killpg(process.pid, signal.SIGKILL)
