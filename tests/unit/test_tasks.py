"""Tasks of a reader's own: read, aligned, patched like the book's; and each bad one with its message."""

from __future__ import annotations

import pytest
import torch

from labcode import metrics, patching, prompts, tasks
from labcode.errors import PromptError

SWAP = """
name = "Two names"
question = "Who gets it?"

[[pair]]
clean = "When John and Mary went to the store, John gave a drink to"
corrupted = "When John and Mary went to the store, Mary gave a drink to"
right = " Mary"
wrong = " John"
at = { second = " Mary", place = " store" }
group = 3

[[pair]]
clean = "When Mary and John went to the park, Mary gave a book to"
corrupted = "When Mary and John went to the park, John gave a book to"
right = " John"
wrong = " Mary"
at = { second = " John" }
"""


@pytest.fixture
def task(tmp_path):
    (tmp_path / "task.toml").write_text(SWAP)
    return tasks.load(tmp_path / "task.toml")


def test_a_task_is_what_its_file_says(task):
    assert (task.name, task.question, len(task.pairs)) == ("Two names", "Who gets it?", 2)
    assert task.pairs[0].at == {"second": " Mary", "place": " store"}


def test_positions_are_found_and_only_those_that_all_pairs_name(toy, task):
    clean, corrupted = tasks.populations(toy, task)
    assert set(clean.positions) == {"second", "END"}
    for row in range(2):
        assert clean.str_tokens[row][int(clean.positions["second"][row])] == task.pairs[row].at["second"]
        assert int(clean.end[row]) == int(clean.lengths[row]) - 1
    assert clean.draws.tolist() == [3, 1]
    assert torch.equal(clean.io_ids, corrupted.io_ids)


@pytest.mark.parametrize("kind", ["resid_pre", "z"])
def test_the_book_s_own_task_as_a_file_gives_the_book_s_numbers(toy, task, kind):
    ours = tasks.populations(toy, task)
    rows = [prompts.Prompt(pair.clean, pair.right.strip(), pair.wrong.strip(), "BABA") for pair in task.pairs]
    book = prompts.build(toy, rows)
    other = prompts.corrupt(toy, book, "swap")
    a = patching.sweep(toy, *ours, kind, at="END")
    b = patching.sweep(toy, book, other, kind, at="END")
    torch.testing.assert_close(a.values, b.values)
    torch.testing.assert_close(a.clean, metrics.logit_difference(metrics.end_logits(toy, book), book))


def test_a_path_is_patched_in_a_task_too(toy, task):
    clean, corrupted = tasks.populations(toy, task)
    grid = patching.path_patch(toy, clean, corrupted, into="logits", sender_at="END")
    assert torch.isfinite(grid.values).all()


PAIR = {"clean": "John gave Mary a", "corrupted": "Mary gave John a", "right": " Mary", "wrong": " John"}
LONG = "When John and Mary went to the store, John gave a drink to"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clean": None}, "clean missing"),
        ({"colour": "red"}, "colour unknown"),
        ({"right": 3}, "right is no text"),
        ({"right": " John"}, "the right and the wrong answer"),
        ({"right": " Mary gave"}, "the logit difference needs one known token"),
        ({"clean": LONG, "corrupted": f"{LONG} the"}, "the clean sentence has"),
        ({"clean": LONG, "corrupted": LONG}, "are the same"),
        ({"clean": " John Mary John", "corrupted": " Mary John Mary"}, "tokens differ"),
        ({"clean": LONG, "corrupted": LONG.replace("John gave", "Mary gave"), "at": {"x": " John"}}, "2 times"),
        ({"clean": LONG, "corrupted": LONG.replace("John gave", "Mary gave"), "at": {"x": " zebra"}}, "0 times"),
        ({"at": "END"}, "at is no text"),
    ],
)
def test_a_bad_pair_says_what_is_wrong(toy, change, said):
    pair = {key: value for key, value in {**PAIR, **change}.items() if value is not None}
    with pytest.raises(PromptError, match=said):
        tasks.populations(toy, tasks.parse({"pair": [pair]}))


@pytest.mark.parametrize(("text", "said"), [("", "no pairs"), ("pair = 3", "no pairs"), ("[[pair", "no task that can")])
def test_a_bad_file_says_what_is_wrong(tmp_path, text, said):
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(PromptError, match=said):
        tasks.load(tmp_path / "t.toml")
    with pytest.raises(PromptError, match="no task that can be read"):
        tasks.load(tmp_path / "missing.toml")
