"""Compare an answer with what is right, then with what known mistakes give, and say what was found."""

from __future__ import annotations

import copy
import html
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from labcode.course.exercise import Exercise
from labcode.course.forms import Misfit
from labcode.course.setting import Setting


@dataclass(frozen=True)
class Verdict:
    """What a check found; true where the answer is right.

    Attributes:
        number: the exercise.
        right: whether the answer is right.
        says: what a right answer shows, what a wrong one looks like, or what was expected and what came.
    """

    number: str
    right: bool
    says: str

    def __bool__(self) -> bool:
        """Whether the answer is right."""
        return self.right

    def __repr__(self) -> str:
        """The verdict as text."""
        return f"{self._mark}: {self.says}"

    def _repr_html_(self) -> str:
        return (
            f'<div class="lab-check" data-right="{str(self.right).lower()}"><span class="lab-verdict">{self._mark}.'
            f'</span> <span class="lab-text">{html.escape(self.says)}</span></div>'
        )

    @property
    def _mark(self) -> str:
        return f"✓ {self.number} is right" if self.right else f"✗ {self.number} is not right yet"


def judge(exercise: Exercise, answer: Any, setting: Setting) -> Verdict:
    """Check an answer. Used by `labcode.course.check`."""
    try:
        return _judge(exercise, answer, setting)
    except Misfit as misfit:
        return Verdict(exercise.number, False, f"{misfit}.")


def _judge(exercise: Exercise, answer: Any, setting: Setting) -> Verdict:
    form = exercise.form
    if exercise.takes:
        _callable(exercise, answer)
        cases = list(exercise.cases(setting)) if exercise.cases else []
    else:
        cases = [(setting,)]
    wanted = [_kept_apart(exercise.right, case) for case in cases]
    given = []
    for at, (case, right) in enumerate(zip(cases, wanted, strict=True)):
        came = _called(exercise, answer, case, at, setting) if exercise.takes else answer
        given.append(form.read(came, right))
    wanted = [form.read(right, None) for right in wanted]
    off = [at for at, (one, right) in enumerate(zip(given, wanted, strict=True)) if not form.same(one, right)]
    if not off:
        return Verdict(exercise.number, True, exercise.says)
    for mistake in exercise.mistakes:
        made = [form.read(_kept_apart(mistake.gives, case), None) for case in cases]
        if all(form.same(one, wrong) for one, wrong in zip(given, made, strict=True)):
            return Verdict(exercise.number, False, mistake.says)
    return Verdict(exercise.number, False, _unknown(exercise, given[off[0]], wanted[off[0]], len(off), len(cases)))


def _callable(exercise: Exercise, answer: Any) -> None:
    wanted = f"expected a function of ({', '.join(exercise.takes)})"
    if not callable(answer):
        what = (
            "the placeholder `...`; write your function in its place" if answer is ... else f"{type(answer).__name__}"
        )
        raise Misfit(f"{wanted}; what came is {what}, so give the function itself, without calling it")
    try:
        inspect.signature(answer).bind(*exercise.takes)
    except TypeError as error:
        raise Misfit(f"{wanted}; what came can't be called so: {error}") from error
    except ValueError:  # a built-in without a signature
        return


def _kept_apart(function: Callable[..., Any], case: tuple[Any, ...]) -> Any:
    """Call with copies of the arguments: a function that changes what it is given must not change the next case."""
    return function(*map(_copied, case))


def _copied(value: Any) -> Any:
    # Models and settings are large, and shared on purpose.
    return value if isinstance(value, Setting) or hasattr(value, "hook_dict") else copy.deepcopy(value)


def _called(exercise: Exercise, answer: Callable[..., Any], case: tuple[Any, ...], at: int, setting: Setting) -> Any:
    """What the reader's function returns. It may neither leave hooks behind nor change what it is given."""
    models = [value for value in (*case, setting.model) if hasattr(value, "hook_dict")]
    before = [{place: len(place.fwd_hooks) for place in model.hook_dict.values()} for model in models]
    own = [_copied(value) for value in case]
    try:
        came = answer(*own)
    except Exception as error:
        error.add_note(f"Raised by your function while exercise {exercise.number} was checked, on case {at + 1}.")
        raise
    finally:
        left = sum(_cleared(counts) for counts in before)
    if left:
        raise Misfit(
            f"your function leaves {left} hook{'s' * (left > 1)} on the model (they are taken off now): use "
            "`with model.hooks(...)` or `model.run_with_hooks(...)`"
        )
    for name, mine, theirs in zip(exercise.takes, own, case, strict=True):
        if not _unchanged(mine, theirs):
            raise Misfit(
                f"your function changes its argument `{name}` in place: work on a copy, such as {name}.clone()"
            )
    return came


def _cleared(before: dict[Any, int]) -> int:
    """Take off the hooks that were not there before; returns how many there were."""
    left = 0
    for place, count in before.items():
        for handle in place.fwd_hooks[count:]:
            handle.hook.remove()
            left += 1
        del place.fwd_hooks[count:]
    return left


def _unchanged(mine: Any, theirs: Any) -> bool:
    if hasattr(mine, "isnan"):
        return bool(mine.shape == theirs.shape and (mine == theirs).all())
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(_unchanged(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, list):
        return len(mine) == len(theirs) and all(map(_unchanged, mine, theirs))
    return True


def _unknown(exercise: Exercise, given: Any, right: Any, off: int, cases: int) -> str:
    form = exercise.form
    if exercise.takes:
        where = f"on {off} of {cases} cases" if cases > 1 else "on the one case"
        return (
            f"{where} your function gives something else, and it is no mistake that this check knows. On the first of "
            f"them it gives {form.show(given)}, and {form.show(right)} is right."
        )
    hint = ""
    if isinstance(given, float):
        hint = " It is too large." if given > right else " It is too small."
    return f"{form.show(given)} is not it, and it is no mistake that this check knows.{hint} Look at the hint."
