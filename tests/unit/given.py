"""Answers that depend on the model they are given for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from labcode.course import Setting


@dataclass(frozen=True)
class From:
    """An answer that is worked out on the model of the check."""

    make: Callable[[Setting], Any]


def given(answer: Any, setting: Setting) -> Any:
    """The answer itself."""
    return answer.make(setting) if isinstance(answer, From) else answer
