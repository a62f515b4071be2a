"""Every exercise takes right answers, however written, and tells typical mistakes apart.

The answers are in `answers/chapterNN.py`: RIGHT holds at least two for each exercise, WRONG at least three with words
of the reply. A value that depends on the model is given as `From(function of the setting)`. MODELS names the fixtures
that answers are tried on where the tiny Llama does not do.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from given import given

from labcode import course
from labcode.course.checking import judge
from labcode.course.registry import find, numbers

ANSWERS = Path(__file__).with_name("answers")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"answers_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULES = {path.stem.removeprefix("chapter"): load(path) for path in sorted(ANSWERS.glob("chapter*.py"))}
RIGHT = {number: answers for module in MODULES.values() for number, answers in module.RIGHT.items()}
WRONG = {number: answers for module in MODULES.values() for number, answers in module.WRONG.items()}


@pytest.fixture(scope="module")
def settings(request) -> Any:
    """A setting for each model that answers are tried on, made once."""
    made: dict[str, course.Setting] = {}

    def of(number: str) -> course.Setting:
        name = getattr(MODULES[number[:2]], "MODELS", {}).get(number, "tiny_llama")
        if name not in made:
            model = request.getfixturevalue(name)
            made[name] = course.Setting(getattr(model, "bridge", model))
        return made[name]

    return of


def test_every_exercise_has_answers_and_every_answer_an_exercise():
    assert set(RIGHT) == set(WRONG) == set(numbers())
    assert {number: len(RIGHT[number]) for number in RIGHT if len(RIGHT[number]) < 2} == {}
    assert {number: len(WRONG[number]) for number in WRONG if len(WRONG[number]) < 3} == {}


@pytest.mark.parametrize(("number", "at"), [(n, i) for n in sorted(RIGHT) for i in range(len(RIGHT[n]))])
def test_a_right_answer_is_taken(number, at, settings):
    setting = settings(number)
    exercise = find(number)
    assert exercise is not None
    verdict = judge(exercise, given(RIGHT[number][at], setting), setting)
    assert verdict, repr(verdict)
    assert verdict.says == exercise.says


@pytest.mark.parametrize(("number", "at"), [(n, i) for n in sorted(WRONG) for i in range(len(WRONG[n]))])
def test_a_wrong_answer_is_told_what_it_looks_like(number, at, settings):
    setting = settings(number)
    exercise = find(number)
    assert exercise is not None
    answer, words = WRONG[number][at]
    verdict = judge(exercise, given(answer, setting), setting)
    assert not verdict
    assert words in verdict.says, repr(verdict)


@pytest.mark.parametrize("number", sorted(WRONG))
def test_every_known_mistake_is_made_by_some_answer(number):
    """A reply that no answer gets is one that nobody has seen."""
    exercise = find(number)
    assert exercise is not None
    assert len(exercise.mistakes) >= 3
    words = [part for _, part in WRONG[number]]
    unmade = [mistake.says for mistake in exercise.mistakes if not any(part in mistake.says for part in words)]
    assert unmade == []
