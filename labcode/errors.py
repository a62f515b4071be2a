"""Every error that labcode raises on purpose.

A caller that wants to tell "the lab says what is wrong" from "the lab has a bug" catches `LabError`. Where the page
"Troubleshooting" has more to say than fits into a message, the error names the entry.
"""

from __future__ import annotations


class LabError(Exception):
    """An input or an environment that labcode cannot work with; the message says what and how to mend it.

    Args:
        message: what is wrong, with the offending value in it, and what to do.
        see: an entry of the page "Troubleshooting", if it says more. The text of the error ends with its name.
    """

    def __init__(self, message: str, see: str = "") -> None:
        super().__init__(message)
        self.see = see

    def __str__(self) -> str:
        """The message and the name of its entry, once: a message may hold that of another error."""
        message = super().__str__()
        if not self.see or "[Troubleshooting: " in message:
            return message
        between = "\n" if "\n" in message else " "
        return f"{message}{between}[Troubleshooting: {self.see}]"


class ModelError(LabError):
    """A model that cannot be found, verified, converted or loaded, or whose architecture the lab does not know."""


class PromptError(LabError):
    """A prompt or a population that the measurement is not defined on."""


class HeadError(LabError):
    """Heads, or scores of heads, that are not defined as asked."""


class MetricError(LabError):
    """Numbers that no metric can be taken of: NaN, no prompts, shapes that do not fit."""


class PatchError(LabError):
    """A sweep, path, exchange, ablation or circuit that is not defined as asked."""


class SaeError(LabError):
    """A sparse autoencoder, or what it is trained or used on, that does not fit."""


class FamilyError(LabError):
    """Families of heads that are not defined as asked."""


class EvidenceError(LabError):
    """Recorded measurements that cannot be read, or that a run does not give again."""


class ReportError(LabError):
    """A number, claim or comparison that cannot be shown as asked."""
