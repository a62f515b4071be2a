"""Silence around the loading of a model that leaves no trace behind."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

LIBRARIES = ("transformers", "transformer_lens", "huggingface_hub", "")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside: no output, progress bars, warnings or log lines from the model libraries. After: as before.

    Errors are exceptions and still come through. Import the libraries before: a log handler that is made
    inside would write to nowhere ever after.
    """
    levels = {name: logging.getLogger(name).level for name in LIBRARIES}
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        try:
            for name in LIBRARIES:
                logging.getLogger(name).setLevel(logging.CRITICAL)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
