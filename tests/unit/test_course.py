"""Checks of answers: what comes of wrong types, shapes and devices, of functions that misbehave, and of no set-up."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from labcode import course
from labcode.course.checking import judge
from labcode.course.exercise import Exercise, Mistake
from labcode.course.forms import Choice, Number, Numbers, Record, Several
from labcode.course.registry import find

EMPTY = course.Setting(None)


def value(form, right, *wrong) -> Exercise:
    mistakes = [Mistake(gives=lambda setting, one=one: one, says=f"Looks like {one}.") for one in wrong]
    return Exercise(number="99.1", form=form, right=lambda setting: right, says="So it is.", mistakes=mistakes)


def says(exercise, answer, setting=EMPTY) -> str:
    verdict = judge(exercise, answer, setting)
    assert not verdict
    return verdict.says


@pytest.mark.parametrize("answer", [0.5, 1 / 2, np.float32(0.5), torch.tensor(0.5), torch.tensor([[0.5]]), 0.50001])
def test_a_number_may_come_in_many_types(answer):
    assert judge(value(Number(), 0.5), answer, EMPTY)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("0.5", "what came is the text '0.5'"),
        (None, "None; is a return missing?"),
        (..., "the placeholder `...`"),
        (True, "a bool"),
        (math.nan, "what came is nan"),
        (math.inf, "what came is inf"),
        (torch.ones(3), "holds (3,) of them"),
        (torch.ones(1, device="meta"), "on meta"),
        (lambda: 0.5, "a function; give what it returns"),
        (0.7, "too large"),
        (0.2, "too small"),
        (2.0, "Looks like 2.0."),
    ],
)
def test_what_is_not_the_number_is_told_apart(answer, words):
    assert words in says(value(Number("a share"), 0.5, 2.0), answer)


def test_beside_0_near_is_near_in_absolute_terms():
    assert judge(value(Number(), 0.0), 1e-5, EMPTY)
    assert not judge(value(Number(), 0.0), 0.1, EMPTY)


RIGHT = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize("answer", [RIGHT, RIGHT.numpy(), RIGHT.tolist(), RIGHT.double(), RIGHT.requires_grad_()])
def test_numbers_may_come_in_many_types(answer):
    assert judge(value(Numbers("layer batch"), RIGHT.detach()), answer, EMPTY)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (RIGHT[0], "a tensor [layer batch] of shape (2, 2); what came has shape (2,)"),
        (1.0, "a float"),
        ([[1.0, 2.0], [3.0]], "can't be made one"),
        (RIGHT * math.nan, "4 of the 4 numbers that came are NaN"),
        (RIGHT.to("meta"), "device cpu; what came is on meta"),
        (RIGHT.T, "Looks like"),
        (RIGHT + 1, "no mistake that this check knows"),
    ],
)
def test_what_are_not_the_numbers_is_told_apart(answer, words):
    assert words in says(value(Numbers("layer batch"), RIGHT.detach(), RIGHT.detach().T), answer)


def test_choices_and_sets():
    choice = value(Choice(("query", "key", "value")), "query", "key")
    assert judge(choice, " Query ", EMPTY)
    assert "Looks like key" in says(choice, "key")
    assert "expected one of 'query', 'key', 'value'; what came is 'q'" in says(choice, "q")
    assert "a int" in says(choice, 3)
    heads = value(Several("heads"), {(1, 2), (3, 4)})
    assert judge(heads, [(3, 4), (1, 2), (1, 2)], EMPTY)
    assert judge(heads, torch.tensor([[1, 2], [3, 4]]), EMPTY)
    assert "no mistake" in says(heads, [(1, 2)])
    assert "whole numbers" in says(heads, [(1.5, 2)])
    assert "a list; what came is a int" in says(heads, 3)
    assert judge(value(Several("checks", ("nothing", "everything")), {"nothing"}), ["Nothing"], EMPTY)


def test_a_record_names_the_field():
    record = value(Record({"IO": Number(), "S": Number()}), {"IO": 1.0, "S": -1.0}, {"IO": -1.0, "S": 1.0})
    assert judge(record, {"S": -1, "IO": 1}, EMPTY)
    assert "under the key 'S': expected a number" in says(record, {"IO": 1.0, "S": "x"})
    assert "the keys 'IO', 'S'; what came has ['IO']" in says(record, {"IO": 1.0})
    assert "what came is a list" in says(record, [1.0, -1.0])
    assert "Looks like" in says(record, {"IO": -1.0, "S": 1.0})


def doubled(**other) -> Exercise:
    return Exercise(
        number="99.2",
        form=Numbers("batch"),
        takes=("x",),
        cases=lambda setting: [(torch.arange(3.0),), (torch.ones(2),)],
        right=lambda x: 2 * x,
        says="Twice.",
        mistakes=[Mistake(gives=lambda x: x**2, says="You squared.")],
        **other,
    )


def test_a_function_is_tried_on_every_case():
    assert judge(doubled(), lambda x: x + x, EMPTY)
    assert says(doubled(), lambda x: x * x) == "You squared."
    assert "on 2 of 2 cases" in says(doubled(), lambda x: 3 * x)
    assert "it gives [0, 3, 6], and [0, 2, 4] is right" in says(doubled(), lambda x: 3 * x)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (3, "expected a function of (x); what came is int"),
        (..., "the placeholder `...`; write your function"),
        (lambda: 1, "can't be called so"),
        (lambda x, y: x, "can't be called so"),
        (lambda x: None, "None; is a return missing?"),
        (lambda x: x.mul_(2), "changes its argument `x` in place"),
        (lambda x: x[:1], "what came has shape (1,)"),
    ],
)
def test_what_is_no_such_function_is_told_apart(answer, words):
    assert words in says(doubled(), answer)


def test_what_the_readers_function_raises_goes_on_with_a_note():
    with pytest.raises(ZeroDivisionError) as raised:
        judge(doubled(), lambda x: 1 / 0, EMPTY)
    assert "while exercise 99.2 was checked, on case 1" in raised.value.__notes__[0]


def test_a_hook_that_is_left_is_named_and_taken_off(toy):
    exercise = Exercise(
        number="99.3",
        form=Number(),
        takes=("model",),
        cases=lambda setting: [(setting.model,)],
        right=lambda model: 1.0,
        says="One.",
        mistakes=[],
    )

    def careless(model):
        model.add_hook("blocks.0.hook_resid_pre", lambda stream, hook: stream)
        return 1.0

    def failing(model):
        careless(model)
        raise RuntimeError

    place = toy.hook_dict["blocks.0.hook_resid_pre"]
    toy.add_hook("blocks.0.hook_resid_pre", lambda stream, hook: stream)  # the reader's own, from before
    try:
        assert "leaves 1 hook on the model" in says(exercise, careless, course.Setting(toy))
        assert len(place.fwd_hooks) == 1
        with pytest.raises(RuntimeError):
            judge(exercise, failing, course.Setting(toy))
        assert len(place.fwd_hooks) == 1
        assert judge(exercise, lambda model: 1.0, course.Setting(toy))
    finally:
        toy.reset_hooks()


def test_a_function_needs_cases_and_a_value_has_none():
    with pytest.raises(ValueError, match=r"exercise 99\.4"):
        Exercise(number="99.4", form=Number(), right=lambda x: x, says="", mistakes=[], takes=("x",))


def test_a_check_before_its_set_up_says_what_to_run(monkeypatch):
    monkeypatch.setattr(course, "_setting", None)
    with pytest.raises(
        course.CourseError, match=r"run course\.begin\(model\) first.*Troubleshooting: course-not-begun"
    ):
        course.check("01.3", lambda model, pop: 0)
    assert course.check("01.2", lambda difference: 1 / (1 + math.exp(-difference))), "needs no model"


@pytest.mark.parametrize(("number", "near"), [("01.77", "this chapter has 01.1"), ("x", "they go from 01.1 to")])
def test_an_unknown_exercise_is_named_with_those_that_exist(number, near):
    with pytest.raises(course.CourseError, match=f"there is no exercise '{number}'.*{near}"):
        course.check(number, 1)


@pytest.mark.parametrize(("thing", "came"), [("smollm2", "the text 'smollm2'"), (3, "a int")])
def test_begin_takes_a_model(thing, came):
    with pytest.raises(course.CourseError, match=f"what came is {came}"):
        course.begin(thing)


def test_a_check_uses_the_model_that_was_begun_with(toy, monkeypatch):
    monkeypatch.setattr(course, "_setting", None)
    course.begin(toy)
    from labcode import metrics

    verdict = course.check(" 01.3 ", lambda model, pop: metrics.logit_difference(metrics.end_logits(model, pop), pop))
    assert verdict
    assert repr(verdict).startswith("✓ 01.3 is right: ")


def test_a_verdict_is_escaped():
    page = judge(value(Choice(("a",)), "a"), "<script>", EMPTY)._repr_html_()
    assert "<script>" not in page
    assert 'data-right="false"' in page


def test_an_exercise_is_found_by_its_number_only():
    assert find("01.1") is not None
    assert find("1.1") is None
    assert find("00.1") is None
