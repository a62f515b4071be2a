"""Checks of the reader's answers: what is right, or which mistake an answer looks like.

    checks.begin(model)               # once in a notebook: the answers are checked on this model
    checks.check("05.2", answer)      # a value or a function, as the exercise asks

Nothing is looked up: what is right is computed when the answer is there, on the reader's own model. An answer that
isn't right is compared with the answers that known mistakes give. Each chapter's exercises have a module of their own.
"""

from __future__ import annotations

from typing import Any

from labbook.checks.exercise import Exercise, Setting, Verdict, find, judge, numbers
from labcode.errors import LabError

__all__ = ["CourseError", "Exercise", "Setting", "Verdict", "begin", "check", "numbers"]

_setting: Setting | None = None


class CourseError(LabError):
    """A check that cannot be made: an unknown exercise, or no model to check on."""


def begin(model: Any) -> None:
    """Check this notebook's answers on `model`. A second call takes the place of the first.

    Raises:
        CourseError: `model` is not a loaded model.
    """
    global _setting
    if not hasattr(model, "hook_dict"):
        came = f"the text {model!r}" if isinstance(model, str) else f"a {type(model).__name__}"
        raise CourseError(f"checks.begin takes a loaded model, what came is {came}: give models.load()")
    _setting = Setting(model)


def check(number: str, answer: Any) -> Verdict:
    """Say whether an answer is right, and if it is not, which mistake it looks like.

    Args:
        number: the exercise as its title has it, such as "04.2".
        answer: a value or a function, as the exercise asks. It is called on copies of its arguments, and hooks that it
            leaves on the model are taken off.

    Returns:
        A verdict that is true where the answer is right; a notebook shows it if it is the last line of a cell.

    Raises:
        CourseError: no exercise has this number, or it needs a model and `begin` was not called.
        Exception: what the reader's own function raises goes on, with a note that says on which case.
    """
    exercise = find(number)
    if exercise is None:
        chapter = [known for known in numbers() if known[:2] == str(number).strip()[:2]]
        near = (
            f"this chapter has {', '.join(chapter)}" if chapter else f"they go from {numbers()[0]} to {numbers()[-1]}"
        )
        raise CourseError(f"there is no exercise {number!r}: its number stands in its title, and {near}")
    if exercise.needs_model and _setting is None:
        raise CourseError(
            f"exercise {exercise.number} is checked on your model: run checks.begin(model) first, the first cell under "
            "the heading Exercises",
            see="course-not-begun",
        )
    return judge(exercise, answer, _setting or Setting(None))
