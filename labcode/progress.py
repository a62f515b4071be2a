"""A progress bar that a terminal sees and a page does not.

tqdm writes to standard error, which the book's build treats as a warning, and each refresh would be one block of
output. So the bar shows only on a terminal, or where LAB_PROGRESS is set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def watched() -> bool:
    """Is somebody waiting who would see progress on stderr? Not in a pipe, unless `LAB_PROGRESS` is set."""
    return sys.stderr.isatty() or bool(os.environ.get("LAB_PROGRESS"))


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """`items`, with a bar labelled `what` where someone can watch it."""
    return tqdm(items, desc=what, total=total, disable=not watched(), leave=False)
