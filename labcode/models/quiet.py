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

    Errors are exceptions and still come through.
    """
    import transformers.utils.logging as transformers_logging

    levels = {name: logging.getLogger(name).level for name in LIBRARIES}
    bars = transformers_logging.is_progress_bar_enabled()
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        try:
            transformers_logging.disable_progress_bar()
            for name in LIBRARIES:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if bars:
                transformers_logging.enable_progress_bar()
