"""The one base class of every error that labcode raises on purpose.

A caller that wants to tell "the lab says what is wrong" from "the lab has a bug" catches `LabError`.

Every message names the entry of the page "Troubleshooting" that has more to say; `troubles.toml` beside this file says
which. Used in all chapters.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path


@cache
def entries() -> dict[str, str]:
    """The entries of the page by name, each with the pattern of its messages, in the order in which they are tried."""
    return tomllib.loads(Path(__file__).with_name("troubles.toml").read_text(encoding="utf8"))


def entry(message: str) -> str:
    """The name of the entry for a message, or nothing where the page has none."""
    return next((name for name, pattern in entries().items() if re.search(pattern, message, re.DOTALL)), "")


def named(message: str) -> str:
    """The message with the name of its entry behind it, once."""
    name = entry(message)
    if not name or "[Troubleshooting: " in message:
        return message
    between = "\n" if "\n" in message else " "
    return f"{message}{between}[Troubleshooting: {name}]"


class LabError(Exception):
    """An input or an environment that labcode cannot work with; the message says what and how to mend it.

    Its text ends with the name of its entry on the page "Troubleshooting".

    Used in chapters 03 and 12.
    """

    def __str__(self) -> str:
        """The message, and the entry where there is one."""
        return named(super().__str__())


class ModelError(LabError):
    """A model that cannot be found, verified, converted or loaded."""


class PromptError(LabError):
    """A prompt or a population that the measurement is not defined on."""


class MetricError(LabError):
    """Numbers that no metric can be taken of: NaN, no prompts, shapes that do not fit."""


class ReportError(LabError):
    """A number, claim or comparison that cannot be shown as asked."""
