"""Checks of answers: what comes of wrong types, shapes and devices, of functions that misbehave, and of no set-up."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from labbook import checks
from labbook.checks.exercise import Exercise, Mistake, Told, find, judge

EMPTY = checks.Setting(None)
TOKENS = torch.tensor([[0, 16, 17, 16]])


def value(right, *wrong, what="a share", **asked) -> Exercise:
    mistakes = [Mistake(gives=lambda setting, one=one: one, says=f"Looks like {one}.") for one in wrong]
    return Exercise(number="99.1", what=what, right=lambda setting: right, says="So it is.", mistakes=mistakes, **asked)


def says(exercise, answer, setting=EMPTY) -> str:
    verdict = judge(exercise, answer, setting)
    assert not verdict
    return verdict.says


@pytest.mark.parametrize("answer", [0.5, 1 / 2, np.float32(0.5), torch.tensor(0.5), torch.tensor([[0.5]]), 0.50001])
def test_a_number_may_come_in_many_types(answer):
    assert judge(value(0.5), answer, EMPTY)


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
    assert words in says(value(0.5, 2.0), answer)


def test_beside_0_near_is_near_in_absolute_terms():
    assert judge(value(0.0), 1e-5, EMPTY)
    assert not judge(value(0.0), 0.1, EMPTY)


RIGHT = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize("answer", [RIGHT, RIGHT.numpy(), RIGHT.tolist(), RIGHT.double(), RIGHT.requires_grad_()])
def test_numbers_may_come_in_many_types(answer):
    assert judge(value(RIGHT.detach(), dims="layer batch"), answer, EMPTY)


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
    assert words in says(value(RIGHT.detach(), RIGHT.detach().T, dims="layer batch"), answer)


def test_texts_and_sets():
    choice = value("query", "key", options=("query", "key", "value"))
    assert judge(choice, " Query ", EMPTY)
    assert "Looks like key" in says(choice, "key")
    assert "expected one of 'query', 'key', 'value'; what came is 'q'" in says(choice, "q")
    assert "a int" in says(choice, 3)
    heads = value({(1, 2), (3, 4)}, [(3, 4)], what="heads")
    assert judge(heads, [(3, 4), (1, 2), (1, 2)], EMPTY)
    assert judge(heads, torch.tensor([[1, 2], [3, 4]]), EMPTY)
    assert "Looks like" in says(heads, ((3, 4),))
    assert "no mistake" in says(heads, [(1, 2)])
    assert "whole numbers" in says(heads, [(1.5, 2)])
    assert "expected heads, a list; what came is a int" in says(heads, 3)
    assert judge(value({"nothing"}, options=("nothing", "everything")), ["Nothing"], EMPTY)


def test_a_number_may_be_told_by_its_effect():
    assert judge(value(Told(1.0, True)), 1.0, EMPTY)
    assert "anything but 1 is right" in says(function(Told(1.0, False)), lambda x: 1.0)
    assert judge(value(Told(1.0, None)), 7.0, EMPTY)


def function(right) -> Exercise:
    return Exercise(
        number="99.5",
        what="a number",
        takes=("x",),
        cases=lambda setting: [(1,)],
        right=lambda x: right,
        says="",
        mistakes=[],
    )


def test_a_record_names_the_field():
    record = value({"IO": 1.0, "S": -1.0}, {"IO": -1.0, "S": 1.0}, what={"IO": "a number", "S": "a logit"})
    assert judge(record, {"S": -1, "IO": 1}, EMPTY)
    assert "under the key 'S': expected a logit" in says(record, {"IO": 1.0, "S": "x"})
    assert "the keys 'IO', 'S'; what came has ['IO']" in says(record, {"IO": 1.0})
    assert "what came is a list" in says(record, [1.0, -1.0])
    assert "Looks like" in says(record, {"IO": -1.0, "S": 1.0})


def doubled(**other) -> Exercise:
    return Exercise(
        number="99.2",
        what="twice x",
        dims="batch",
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
        what="a number",
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
        assert "leaves 1 hook on the model" in says(exercise, careless, checks.Setting(toy))
        assert len(place.fwd_hooks) == 1
        with pytest.raises(RuntimeError):
            judge(exercise, failing, checks.Setting(toy))
        assert len(place.fwd_hooks) == 1
        assert judge(exercise, lambda model: 1.0, checks.Setting(toy))
    finally:
        toy.reset_hooks()


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("blocks.1.hook_resid_pst", "the model has no place of that name"),
        ("blocks.1.attn.hook_z", "nothing ran through it"),
        (lambda name: name == "blocks.1", "with a filter of names never fired"),
    ],
)
def test_a_hook_that_never_fired_has_a_verdict_of_its_own(toy, place, why):
    def zeroed(model, place="blocks.1.attn.hook_z", runs=True):
        with model.hooks(fwd_hooks=[(place, lambda z, hook: 0 * z)]):
            if not runs:
                return 0.0
            return float(model(torch.tensor([[0, 16, 17, 16]]))[0, -1].abs().sum())

    exercise = Exercise(
        number="99.5",
        what="a number",
        takes=("model",),
        cases=lambda setting: [(setting.model,)],
        right=lambda model: zeroed(model) + 1,
        says="One more.",
        mistakes=[Mistake(gives=zeroed, says="One is missing.")],
    )
    runs = "nothing ran" not in why
    assert why in says(exercise, lambda model: zeroed(model, place, runs), checks.Setting(toy))
    assert says(exercise, zeroed, checks.Setting(toy)) == "One is missing."
    assert judge(exercise, lambda model: zeroed(model) + 1, checks.Setting(toy))
    assert not {"hooks", "run_with_hooks", "add_hook"} & vars(toy).keys()


def by_place(model, place, hook):
    return model.run_with_hooks(TOKENS, [(place, hook)])


def by_name(model, place, hook):
    return model.run_with_hooks(fwd_hooks=[(place, hook)], input=TOKENS)


def added(model, place, hook):
    model.add_hook(place, hook, "fwd")
    try:
        return model(TOKENS)
    finally:
        model.reset_hooks()


def added_by_name(model, place, hook):
    model.add_hook(hook_fn=hook, name=place)
    try:
        return model(TOKENS)
    finally:
        model.reset_hooks()


@pytest.mark.parametrize("run", [by_place, by_name, added, added_by_name])
def test_a_hook_that_never_fired_is_seen_however_it_was_put_there(toy, run):
    def answer(place):
        return lambda model: float(run(model, place, lambda z, hook: 0 * z)[0, -1].abs().sum())

    fires = "blocks.1.attn.hook_z"
    exercise = Exercise(
        number="99.6",
        what="a number",
        takes=("model",),
        cases=lambda setting: [(setting.model,)],
        right=lambda model: answer(fires)(model) + 1,
        says="One more.",
        mistakes=[Mistake(gives=answer(fires), says="One is missing.")],
    )
    assert "with a filter of names never" in says(exercise, answer(lambda name: name == "none"), checks.Setting(toy))
    assert says(exercise, answer(fires), checks.Setting(toy)) == "One is missing."
    assert not toy.hook_dict[fires].fwd_hooks


def test_a_function_needs_cases_and_a_value_has_none():
    with pytest.raises(ValueError, match=r"exercise 99\.4"):
        Exercise(number="99.4", what="", right=lambda x: x, says="", mistakes=[], takes=("x",))


def test_a_check_before_its_set_up_says_what_to_run(monkeypatch):
    monkeypatch.setattr(checks, "_setting", None)
    with pytest.raises(
        checks.CourseError, match=r"run checks\.begin\(model\) first.*Troubleshooting: course-not-begun"
    ):
        checks.check("01.3", lambda model, pop: 0)
    assert checks.check("01.2", lambda difference: 1 / (1 + math.exp(-difference))), "needs no model"


@pytest.mark.parametrize(("number", "near"), [("01.77", "this chapter has 01.1"), ("x", "they go from 01.1 to")])
def test_an_unknown_exercise_is_named_with_those_that_exist(number, near):
    with pytest.raises(checks.CourseError, match=f"there is no exercise '{number}'.*{near}"):
        checks.check(number, 1)


@pytest.mark.parametrize(("thing", "came"), [("smollm2", "the text 'smollm2'"), (3, "a int")])
def test_begin_takes_a_model(thing, came):
    with pytest.raises(checks.CourseError, match=f"what came is {came}"):
        checks.begin(thing)


def test_a_check_uses_the_model_that_was_begun_with(toy, monkeypatch):
    monkeypatch.setattr(checks, "_setting", None)
    checks.begin(toy)
    from labcode import metrics

    verdict = checks.check(" 01.3 ", lambda model, pop: metrics.logit_difference(metrics.end_logits(model, pop), pop))
    assert verdict
    assert repr(verdict).startswith("✓ 01.3 is right: ")


def test_a_verdict_is_escaped():
    page = judge(value("a", options=("a",)), "<script>", EMPTY)._repr_html_()
    assert "<script>" not in page
    assert 'data-right="false"' in page


def test_an_exercise_is_found_by_its_number_only():
    assert find("01.1") is not None
    assert find("1.1") is None
    assert find("00.1") is None
