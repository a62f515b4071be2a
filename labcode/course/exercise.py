"""What an exercise is: the form of its answer, what is right, and what known mistakes give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from labcode.course.forms import Form
from labcode.course.setting import Setting


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A wrong way that readers take.

    Attributes:
        gives: what it gives, with the arguments of `Exercise.right`.
        says: what the answer looks like and where to look, one or two sentences.
    """

    gives: Callable[..., Any]
    says: str


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """One exercise that a machine can check.

    Attributes:
        number: chapter and place in it, "04.2" for the label ex-04-2.
        form: what the answer has to be; where it is a function, what that has to return.
        right: what is right. It takes what the reader's function takes or, where the answer is a value, the setting.
        says: what a right answer shows, one or two sentences.
        mistakes: at least three, the likeliest first.
        takes: the parameters of the reader's function, in order; none where the answer is a value.
        cases: arguments to try the function on, each a tuple. Several, so that no constant passes.
        needs_model: whether the check needs the reader's model.
    """

    number: str
    form: Form
    right: Callable[..., Any]
    says: str
    mistakes: Sequence[Mistake]
    takes: tuple[str, ...] = ()
    cases: Callable[[Setting], Sequence[tuple[Any, ...]]] | None = None
    needs_model: bool = True

    def __post_init__(self) -> None:
        """A function needs cases, and a value has none."""
        if bool(self.takes) != (self.cases is not None):
            raise ValueError(f"exercise {self.number}: `takes` and `cases` belong together")
