"""What an exercise is, what answers are checked on, and the verdict on an answer.

An answer is compared with what is right by the kind of what is right: a number, several numbers, a text, a set, or a
dictionary of these. An answer that isn't right is then compared in the same way with what known mistakes give.
"""

from __future__ import annotations

import copy
import html
import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from labcode.prompts import Population

NEAR = 1e-3
PROMPTS = 8
NOTED = ("hooks", "run_with_hooks", "add_hook")  # methods of a model that put hooks on it


class Misfit(Exception):
    """An answer that is of another kind than what is right; the text says what was expected and what came."""


@dataclass(frozen=True)
class Told:
    """What is right where an exercise asks for a number by its effect: this one, anything but this one, or any."""

    value: float
    reached: bool | None


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
        number: chapter and place in it, "04.2" for the label ex-05-2.
        what: what is asked for, in a few words; a dictionary where a dictionary is asked for.
        dims: the names of the dimensions, where a tensor is asked for: "layer batch".
        near: how far off a number may be, as a part of what is right (of a tensor's largest), and as much beside 0.
        options: the texts that a set may hold.
        right: what is right. It takes what the reader's function takes or, where the answer is a value, the setting.
        says: what a right answer shows, one or two sentences.
        mistakes: three or four, the likeliest first.
        takes: the parameters of the reader's function, in order; none where the answer is a value.
        cases: arguments to try the function on, each a tuple. Several, so that no constant passes.
        needs_model: whether the check needs the reader's model.
    """

    number: str
    what: str | Mapping[str, str]
    right: Callable[..., Any]
    says: str
    mistakes: Sequence[Mistake]
    dims: str = ""
    near: float = NEAR
    options: Sequence[str] = ()
    takes: tuple[str, ...] = ()
    cases: Callable[[Setting], Sequence[tuple[Any, ...]]] | None = None
    needs_model: bool = True

    def __post_init__(self) -> None:
        """A function needs cases, and a value has none."""
        if bool(self.takes) != (self.cases is not None):
            raise ValueError(f"exercise {self.number}: `takes` and `cases` belong together")


def find(number: str) -> Exercise | None:
    """The exercise with this number, or none; its chapter is imported when it is asked for."""
    found = re.fullmatch(r"(\d\d)\.\d+", str(number).strip())
    return next((one for one in of_chapter(found[1]) if one.number == found[0]), None) if found else None


def of_chapter(chapter: str) -> list[Exercise]:
    """The exercises of a chapter, "04" say, in the order of the page."""
    return list(importlib.import_module(f"{__package__}.chapter{chapter}").EXERCISES) if chapter in chapters() else []


def chapters() -> list[str]:
    """The chapters that have exercises: "01", "02", ..."""
    modules = pkgutil.iter_modules(importlib.import_module(str(__package__)).__path__)
    return sorted(module.name.removeprefix("chapter") for module in modules if module.name.startswith("chapter"))


def numbers() -> list[str]:
    """The numbers of all exercises."""
    return [one.number for chapter in chapters() for one in of_chapter(chapter)]


# What answers are checked on


class Setting:
    """The things that answers are checked on, each made when it is first asked for and then kept."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._kept: dict[str, Any] = {}

    @cached_property
    def one(self) -> Population:
        """The canonical prompt."""
        from labcode import prompts

        return prompts.canonical(self.model)

    @cached_property
    def pop(self) -> Population:
        """A few prompts that the chapters don't use."""
        from labcode import prompts

        return prompts.population(self.model, PROMPTS, seed=2024)

    @cached_property
    def swapped(self) -> Population:
        """The same with IO at S2: the other name is right."""
        from labcode import prompts

        return prompts.corrupt(self.model, self.pop, "swap")

    @cached_property
    def abc(self) -> Population:
        """The same with three names that are not in the prompt."""
        from labcode import prompts

        return prompts.corrupt(self.model, self.pop, "abc", seed=2024)

    @cached_property
    def toy(self) -> Any:
        """The model that was wired by hand."""
        from labcode.toy import build

        return build()

    def random(self, *shape: int, seed: int = 0) -> Tensor:
        """Normal numbers, the same for the same shape and seed."""
        import torch

        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made at the first call with this name: a run, say, that several answers are made of."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]


# Comparing


def read(answer: Any, right: Any, asked: Exercise) -> Any:
    """The answer as it is compared: a float, a tensor, a text, a frozen set, or a dictionary of these.

    Raises:
        Misfit: it is of another kind than `right`, or of another shape.
    """
    if isinstance(right, Mapping):
        return _dictionary(answer, right, asked)
    if isinstance(right, str):
        return _text(answer, asked)
    if isinstance(right, Set):
        return _set(answer, asked)
    if isinstance(right, list | tuple) or getattr(right, "shape", ()) != ():
        return _tensor(answer, right, asked)
    return answer if isinstance(answer, Told) else _number(answer, asked)


def _number(answer: Any, asked: Exercise) -> float:
    plain = answer
    if hasattr(answer, "item"):
        if math.prod(answer.shape) != 1:
            raise Misfit(f"expected {asked.what}, one number; what came holds {tuple(answer.shape)} of them")
        _on_cpu(answer)
        plain = answer.item()
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        raise Misfit(f"expected {asked.what}, one number; what came is {_kind(answer)}")
    if not math.isfinite(plain):
        raise Misfit(f"expected {asked.what}; what came is {plain}, so look for a division by 0 or a log of 0")
    return float(plain)


def _tensor(answer: Any, right: Any, asked: Exercise) -> Tensor:
    import numpy as np
    import torch

    shape = torch.as_tensor(right).shape
    expected = f"expected {asked.what}, a tensor [{asked.dims}] of shape {tuple(shape)}"
    if not isinstance(answer, list | tuple | np.ndarray | torch.Tensor):
        raise Misfit(f"{expected}; what came is {_kind(answer)}")
    if isinstance(answer, torch.Tensor):
        _on_cpu(answer)
    try:
        given = torch.as_tensor(answer).detach().double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise Misfit(f"{expected}; what came can't be made one: {error}") from error
    if given.shape != shape:
        raise Misfit(f"{expected}; what came has shape {tuple(given.shape)}")
    if not given.isfinite().all():
        bad = int((~given.isfinite()).sum())
        raise Misfit(f"{expected}; {bad} of the {given.numel()} numbers that came are NaN or infinite")
    return given


def _text(answer: Any, asked: Exercise) -> str:
    """Capitals and spaces around it don't matter."""
    expected = f"expected {'one of ' + ', '.join(map(repr, asked.options)) if asked.options else asked.what}"
    if not isinstance(answer, str):
        raise Misfit(f"{expected}; what came is {_kind(answer)}")
    given = answer.strip().lower()
    if asked.options and given not in (option.lower() for option in asked.options):
        raise Misfit(f"{expected}; what came is {answer!r}")
    return given


def _set(answer: Any, asked: Exercise) -> frozenset[Any]:
    """Texts, whole numbers or tuples of whole numbers, in any order and in any container."""
    if isinstance(answer, str | Mapping) or not hasattr(answer, "__iter__"):
        raise Misfit(f"expected {asked.what}, a list; what came is {_kind(answer)}")
    return frozenset(_member(one, asked) for one in answer)


def _member(one: Any, asked: Exercise) -> Any:
    plain = one.tolist() if hasattr(one, "tolist") else one
    if asked.options:
        return _text(plain, asked)
    if isinstance(plain, list | tuple):
        return tuple(_member(part, asked) for part in plain)
    if isinstance(plain, bool) or not isinstance(plain, int):
        raise Misfit(f"expected {asked.what}, a list of whole numbers or of tuples of them; it holds {_kind(plain)}")
    return plain


def _dictionary(answer: Any, right: Mapping[str, Any], asked: Exercise) -> dict[str, Any]:
    keys = f"expected a dictionary with the keys {', '.join(map(repr, right))}"
    if not isinstance(answer, Mapping):
        raise Misfit(f"{keys}; what came is {_kind(answer)}")
    if set(answer) != set(right):
        raise Misfit(f"{keys}; what came has {sorted(map(str, answer))}")
    given = {}
    for key in right:
        what = asked.what[key] if isinstance(asked.what, Mapping) else asked.what
        try:
            given[key] = read(answer[key], right[key], replace(asked, what=what))
        except Misfit as misfit:
            raise Misfit(f"under the key {key!r}: {misfit}") from misfit
    return given


def same(given: Any, right: Any, near: float) -> bool:
    """Whether two answers that were read are the same, numbers but for `near`."""
    if isinstance(right, Told):
        return right.reached is None or same(given, right.value, near) == right.reached
    if isinstance(right, dict):
        return all(same(given[key], right[key], near) for key in right)
    if isinstance(right, float):
        return math.isclose(given, right, rel_tol=near, abs_tol=near)
    if hasattr(right, "shape"):
        if given.shape != right.shape:
            return False
        return not given.numel() or bool((given - right).abs().max() <= near * max(1e-6, float(right.abs().max())))
    return bool(given == right)


def show(value: Any) -> str:
    """An answer that was read, in a few words."""
    if isinstance(value, Told):
        return f"{'' if value.reached else 'anything but '}{show(value.value)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {show(one)}" for key, one in value.items()) + "}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if hasattr(value, "shape"):
        return f"[{', '.join(map(show, value.flatten()[:4].tolist()))}{', …' if value.numel() > 4 else ''}]"
    if isinstance(value, frozenset):
        return "{" + ", ".join(map(str, sorted(value)[:8])) + (", …" if len(value) > 8 else "") + "}"
    return repr(value)


def _kind(answer: Any) -> str:
    if answer is None:
        return "None; is a return missing?"
    if answer is ...:
        return "the placeholder `...`; write your answer in its place"
    if callable(answer) and not isinstance(answer, type):
        return "a function; give what it returns"
    if isinstance(answer, str):
        return f"the text {answer[:40]!r}"
    return f"a {type(answer).__name__}"


def _on_cpu(tensor: Any) -> None:
    device = str(getattr(tensor, "device", "cpu"))
    if device != "cpu":
        raise Misfit(f"expected a tensor on the device cpu; what came is on {device}, so give answer.cpu()")


# The verdict


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
    """Check an answer."""
    try:
        return _judge(exercise, answer, setting)
    except Misfit as misfit:
        return Verdict(exercise.number, False, f"{misfit}.")


def _judge(exercise: Exercise, answer: Any, setting: Setting) -> Verdict:
    if exercise.takes:
        _callable(exercise, answer)
        cases = list(exercise.cases(setting)) if exercise.cases else []
    else:
        cases = [(setting,)]
    rights = [_kept_apart(exercise.right, case) for case in cases]
    given, silent = [], set[str]()
    for at, (case, right) in enumerate(zip(cases, rights, strict=True)):
        came = _called(exercise, answer, case, at, setting, silent) if exercise.takes else answer
        given.append(read(came, right, exercise))
    wanted = [read(right, right, exercise) for right in rights]
    off = [at for at, (one, right) in enumerate(zip(given, wanted, strict=True)) if not same(one, right, exercise.near)]
    if not off:
        return Verdict(exercise.number, True, exercise.says)
    if silent:
        return Verdict(exercise.number, False, " ".join(sorted(silent)))
    for mistake in exercise.mistakes:
        if _made(mistake, exercise, cases, rights, given):
            return Verdict(exercise.number, False, mistake.says)
    return Verdict(exercise.number, False, _unknown(exercise, given[off[0]], wanted[off[0]], len(off), len(cases)))


def _made(
    mistake: Mistake, exercise: Exercise, cases: list[tuple[Any, ...]], rights: list[Any], given: list[Any]
) -> bool:
    """Whether the mistake gives this answer on all cases."""
    for case, right, one in zip(cases, rights, given, strict=True):
        try:
            wrong = read(_kept_apart(mistake.gives, case), right, exercise)
        except Misfit:
            return False
        if not same(one, wrong, exercise.near):
            return False
    return True


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


def _called(
    exercise: Exercise,
    answer: Callable[..., Any],
    case: tuple[Any, ...],
    at: int,
    setting: Setting,
    silent: set[str],
) -> Any:
    """What the reader's function returns. It may neither leave hooks behind nor change what it is given.

    Args:
        silent: takes up what is to be said of hooks that never fired.
    """
    models = [value for value in (*case, setting.model) if hasattr(value, "hook_dict")]
    before = [{place: len(place.fwd_hooks) for place in model.hook_dict.values()} for model in models]
    own = [_copied(value) for value in case]
    try:
        with ExitStack() as stack:
            noted = [stack.enter_context(_noted(model)) for model in dict.fromkeys(models)]
            came = answer(*own)
        silent |= {_unheard(model, name) for model, put in noted for name, fired in put.items() if not fired}
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


@contextmanager
def _noted(model: Any) -> Iterator[tuple[Any, dict[str, bool]]]:
    """The names under which hooks are put on a model meanwhile, and whether one of each has fired.

    The bridge passes over a name that it doesn't know, without a word.
    """
    put: dict[str, bool] = {}

    def noted(hooks: Any) -> list[tuple[Any, Any]]:
        return [(place, _firing(put, place if isinstance(place, str) else "", hook)) for place, hook in hooks]

    def with_notes(of: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **more: Any) -> Any:
            bound = inspect.signature(of).bind(*args, **more)  # by place or by name
            given = bound.arguments
            for key in {"fwd_hooks", "bwd_hooks"} & given.keys():
                given[key] = noted(given[key])
            if "hook_fn" in given:
                [(_, given["hook_fn"])] = noted([(given["name"], given["hook_fn"])])
            return of(*bound.args, **bound.kwargs)

        return called

    for name in NOTED:
        model.__dict__[name] = with_notes(getattr(model, name))
    try:
        yield model, put
    finally:
        for name in NOTED:
            del model.__dict__[name]


def _firing(put: dict[str, bool], name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    put.setdefault(name, False)

    def fires(*args: Any, **more: Any) -> Any:
        put[name] = True
        return hook(*args, **more)

    return fires


def _unheard(model: Any, name: str) -> str:
    if not name:
        return "Your hook with a filter of names never fired, so it changed nothing and read nothing."
    why = "nothing ran through it" if name in model.hook_dict else "the model has no place of that name"
    return f"Your hook at {name!r} never fired, so it changed nothing and read nothing: {why}."


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
    if exercise.takes:
        where = f"on {off} of {cases} cases" if cases > 1 else "on the one case"
        return (
            f"{where} your function gives something else, and it is no mistake that this check knows. On the first of "
            f"them it gives {show(given)}, and {show(right)} is right."
        )
    hint = ""
    if isinstance(given, float):
        hint = " It is too large." if given > right else " It is too small."
    return f"{show(given)} is not it, and it is no mistake that this check knows.{hint} Look at the hint."
