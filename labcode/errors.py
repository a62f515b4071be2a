"""The one base class of every error that labcode raises on purpose.

A caller that wants to tell "the lab says what is wrong" from "the lab has a bug" catches `LabError`.
"""


class LabError(Exception):
    """An input or an environment that labcode cannot work with; the message says what and how to mend it."""


class ModelError(LabError):
    """A model that cannot be found, verified, converted or loaded."""


class PromptError(LabError):
    """A prompt or a population that the measurement is not defined on."""


class MetricError(LabError):
    """Numbers that no metric can be taken of: NaN, no prompts, shapes that do not fit."""


class ReportError(LabError):
    """A number, claim or comparison that cannot be shown as asked."""
