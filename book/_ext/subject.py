"""Which model this build runs on: asked once, before the first chapter, and handed to every kernel.

Used by every chapter, whose first cell loads the model that is named here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import IO

from sphinx.util import logging

from labbook._ext.halt import halt

logger = logging.getLogger(__name__)

# Kernels run side by side, so each takes one thread; nothing may write a progress bar into a page.
KERNEL_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "0",
    "OMP_WAIT_POLICY": "passive",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONHASHSEED": "0",
    "PLOTLY_RENDERER": "plotly_mimetype",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


def chosen(wanted: bool, command: tuple[str, ...] = ("-m", "labcode.models", "--json")) -> dict[str, str]:
    """Ask `python -m labcode.models` for the model: a dict with name, title, why, folder and fingerprint.

    A process of its own, so that torch never enters Sphinx. Its progress shows on the terminal as it comes.

    Args:
        wanted: False for a book whose chapters need no model; the answer is then empty.
        command: What to run with this Python; tests replace it.

    Raises:
        SystemExit: With the one line that says why there is no model and what to do.
    """
    if not wanted:
        return {}
    environment = dict(os.environ)
    if sys.stderr.isatty():
        environment["LAB_PROGRESS"] = "1"
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stderr is not None
    last = _pass_on(process.stderr)
    answer = process.stdout.read().decode()
    if process.wait() != 0:
        halt(last.removeprefix("error: ") or "labcode.models ended without a word", see="no-answer-about-the-model")
    if last:
        logger.info(last)
    # Libraries may print to stdout while they load; the answer is the last line.
    model: dict[str, str] = json.loads(answer.strip().splitlines()[-1])
    logger.info("model: %s (%s)", model.get("title", model["name"]), model["why"])
    return model


def _pass_on(stream: IO[bytes]) -> str:
    """Show what comes, a line at a time, but hold the last line back: after a failure it is the message."""
    held = ""
    while chunk := os.read(stream.fileno(), 4096):
        *done, held = re.split(r"(?<=[\r\n])(?=.)", held + chunk.decode(errors="replace"))
        for line in done:
            sys.stderr.write(line)
        sys.stderr.flush()
    return held.strip()


def prepare_environment(model: dict[str, str]) -> None:
    """Set the variables that every kernel of this build inherits."""
    os.environ.update(KERNEL_ENVIRONMENT)
    if model:
        if os.environ.get("LAB_MODEL"):
            os.environ["LAB_MODEL"] = model["name"]  # in full: a kernel runs in the folder of its chapter
        # Everything is on this machine now; a kernel that asked the hub again could hang or differ.
        os.environ["HF_HUB_OFFLINE"] = "1"
