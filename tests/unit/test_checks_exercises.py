"""Every exercise of the book: mistakes are told apart, the solution passes, and so does the same in other forms."""

from __future__ import annotations

import ast
import contextlib
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labbook.checks.exercise import Exercise, Misfit, Setting, Told, find, judge, numbers, read, same

BOOK = Path(__file__).parents[2] / "book"
# On the tiny model these need something that it has not; they are tried on the model that is named.
MODELS = {"03.2": "tiny_gpt2", "03.3": "tiny_gpt2"}


@pytest.fixture(scope="module")
def settings(request) -> Any:
    """A setting for each model that answers are tried on, made once."""
    made: dict[str, Setting] = {}

    def of(number: str) -> Setting:
        name = MODELS.get(number, "tiny_llama")
        if name not in made:
            model = request.getfixturevalue(name)
            made[name] = Setting(getattr(model, "bridge", model))
        return made[name]

    return of


def exercise(number: str) -> Exercise:
    found = find(number)
    assert found is not None
    return found


def values(asked: Exercise, gives: Any, setting: Setting) -> list[Any]:
    """What a way to answer gives on each case, as the check reads it; a text where it is of another kind."""
    cases = asked.cases(setting) if asked.cases else [(setting,)]
    made = []
    for case in cases:
        right = asked.right(*case)
        try:
            made.append(read(gives(*case), right, asked))
        except Misfit as misfit:
            made.append(str(misfit))
    return made


def alike(one: list[Any], other: list[Any], near: float) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a == b if isinstance(a, Told) else type(a) is type(b) and same(a, b, near) for a, b in pairs)


@pytest.mark.parametrize("number", numbers())
def test_every_mistake_differs_from_the_right_answer_and_from_the_others(number, settings):
    asked, setting = exercise(number), settings(number)
    assert 3 <= len(asked.mistakes) <= 4
    right = values(asked, asked.right, setting)
    wrong = [values(asked, mistake.gives, setting) for mistake in asked.mistakes]
    for at, one in enumerate(wrong):
        assert not alike(one, right, asked.near), asked.mistakes[at].says
        for other, mistake in zip(wrong[:at], asked.mistakes, strict=False):
            assert not alike(one, other, asked.near), (asked.mistakes[at].says, mistake.says)


@pytest.mark.parametrize("number", numbers())
def test_every_mistake_is_recognised_and_any_other_is_not(number, settings):
    asked, setting = exercise(number), settings(number)
    for mistake in asked.mistakes:
        verdict = judge(asked, answer(asked, mistake.gives, setting), setting)
        assert not verdict
        assert verdict.says == mistake.says, repr(verdict)
    if number == "04.2":
        return  # there each way to fail is a mistake that is known
    verdict = judge(asked, answer(asked, functools.partial(off, asked), setting), setting)
    assert not verdict
    assert "no mistake that this check knows" in verdict.says, repr(verdict)


def answer(asked: Exercise, gives: Any, setting: Setting) -> Any:
    """A reader's answer: a function with the parameters that are asked for, or a value."""
    if not asked.takes:
        return gives(setting)
    names = ", ".join(asked.takes)
    return eval(f"lambda {names}: plain(gives({names}))", {"gives": gives, "plain": plain})


def plain(value: Any) -> Any:
    """What an instrument reads that was told to say something: that, or something else."""
    if not isinstance(value, Told):
        return value
    return value.value + (0.0 if value.reached is not False else 1.0)


def off(asked: Exercise, *case: Any) -> Any:
    """An answer of the right kind that nobody would give."""
    return moved(asked.right(*case), asked)


def moved(right: Any, asked: Exercise) -> Any:
    if isinstance(right, dict):
        return {key: moved(one, asked) for key, one in right.items()}
    if isinstance(right, set | frozenset):
        return (
            {asked.options[-1]} if asked.options else {97, 98} if all(isinstance(x, int) for x in right) else {(97, 98)}
        )
    if isinstance(right, str):
        return "something else"
    if isinstance(right, list | tuple) or getattr(right, "shape", ()) != ():
        return torch.as_tensor(right).double() * 0.317 + 0.271
    return float(right) * 0.317 + 271.828


def other_forms(right: Any) -> list[Any]:
    """The same answer as a reader may have it."""
    if isinstance(right, dict):
        return [dict(reversed(list(right.items())))]
    if isinstance(right, set | frozenset):
        members = sorted(right)
        return [members, tuple(reversed(members)), [*members, *members]]
    if isinstance(right, str):
        return [f" {right.upper()} "]
    if isinstance(right, list | tuple) or getattr(right, "shape", ()) != ():
        tensor = torch.as_tensor(right)
        return [tensor.tolist(), tensor.double().numpy(), tensor.double()]
    return [
        float(right),
        torch.tensor(float(right), dtype=torch.double),
        np.float64(right),
        torch.tensor([[float(right)]]).double(),
    ]


@pytest.mark.parametrize("number", numbers())
def test_a_right_answer_may_be_written_in_other_forms(number, settings):
    asked, setting = exercise(number), settings(number)
    case = asked.cases(setting)[0] if asked.cases else (setting,)
    right = asked.right(*case)
    if isinstance(right, Told):
        pytest.skip("this exercise is judged by what an instrument reads, and takes a number")
    for form in other_forms(right):
        assert same(read(form, right, asked), read(right, right, asked), asked.near), type(form)


@pytest.mark.parametrize("number", numbers())
def test_bad_answers_are_named(number, settings):
    asked, setting = exercise(number), settings(number)
    for bad, words in ((..., "placeholder"), (None, "None" if not asked.takes else "expected a function")):
        assert words in judge(asked, bad, setting).says
    if asked.takes:
        assert "can't be called so" in judge(asked, lambda: 1, setting).says
        assert "return missing" in judge(asked, lambda *case: None, setting).says


CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(?:---\n.*?---\n|(?::[^\n]*\n)*)(.*?)^```", re.DOTALL | re.MULTILINE)


@functools.cache
def solutions() -> dict[str, list[str]]:
    """The cells of each solution in the chapters, by the number of its exercise."""
    found = {}
    for page in sorted(BOOK.glob("[0-9][0-9]-*.md")):
        text = page.read_text(encoding="utf8")
        for part in text.split("```{solution-start} ")[1:]:
            chapter, place = re.match(r"ex-(\d\d)-(\d+)", part).groups()  # type: ignore[union-attr]
            found[f"{chapter}.{place}"] = CELL.findall(part.partition("```{solution-end}")[0])
    return found


def test_every_exercise_has_a_solution_that_is_checked():
    assert set(solutions()) == set(numbers())
    for number, cells in solutions().items():
        assert "\n".join(cells).count(f'checks.check("{number}", ') == 1


@pytest.mark.parametrize("number", numbers())
def test_the_solution_of_the_book_passes(number, settings):
    """Where it is a function that needs nothing of its page but imports; the others run with the book."""
    asked, setting = exercise(number), settings(number)
    given = re.search(rf'checks\.check\("{number}", (\w+)\)', "\n".join(solutions()[number]))
    if not asked.takes or given is None:
        pytest.skip("its value comes from cells of its page: it is checked when the page runs")
    page = next(BOOK.glob(f"{number[:2]}-*.md")).read_text(encoding="utf8")
    space: dict[str, Any] = {}
    exec("\n".join(parts(CELL.findall(page), ast.Import | ast.ImportFrom)), space)
    exec("\n".join(parts(solutions()[number], ast.FunctionDef)), space)
    try:
        verdict = judge(asked, space[given[1]], setting)
    except NameError as error:
        pytest.skip(f"it uses {error.name} of its page: it is checked when the page runs")
    assert verdict, repr(verdict)


def parts(cells: list[str], kind: Any) -> list[str]:
    """The statements of a kind in the cells, each by itself."""
    made = []
    for cell in cells:
        with contextlib.suppress(SyntaxError):  # a magic
            made += [ast.unparse(node) for node in ast.parse(cell).body if isinstance(node, kind)]
    return made
