"""Chapter 10: matching or counting, by how much an index is off, and an induction score for any text."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting

Score = Callable[[Tensor], Tensor]


def _attention(setting: Setting, *shape: int, seed: int = 0) -> Tensor:
    """Random causal attention [... query key]: every row adds up to 1."""
    scores = 3 * setting.random(*shape, seed=seed)
    ahead = torch.ones(shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(ahead, -torch.inf).softmax(-1)


def _patterns(setting: Setting, tokens: list[int]) -> Tensor:
    """The attention of the reader's model, [layer head query key]."""
    model = setting.model
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor([tokens]), names_filter=names, return_type=None)
    return torch.stack([cache[name][0] for name in names])


def _ordinary(setting: Setting, n: int) -> list[int]:
    tokenizer = setting.model.tokenizer
    ids = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    return random.Random(9).sample(ids, n)


def _shuffled(setting: Setting) -> list[tuple[Any, ...]]:
    first = _ordinary(setting, 7)
    again = random.Random(10).sample(first, 7)
    run = setting.once(
        "09 shuffled", lambda: _patterns(setting, [setting.model.tokenizer.bos_token_id, *first, *again])
    )
    return [
        (run, first, again),
        (_attention(setting, 2, 3, 15, 15), first, again),
        (_attention(setting, 1, 2, 11, 11, seed=1), [31, 7, 50, 4, 12], [4, 31, 12, 7, 50]),
    ]


def _matched(pattern: Tensor, first: list[int], again: list[int], *, shift: int = 0) -> Tensor:
    """[layer head]: attention from each token of `again` to `shift` after the place where it stood in `first`."""
    query = torch.arange(len(first) + 1, 2 * len(first) + 1)
    key = torch.tensor([first.index(token) + 1 + shift for token in again])
    return pattern[:, :, query, key].mean(-1)


def _counted(pattern: Tensor, first: list[int], again: list[int]) -> Tensor:
    query = torch.arange(len(first) + 1, 2 * len(first) + 1)
    return pattern[:, :, query, query - len(first)].mean(-1)


def _turned(pattern: Tensor, first: list[int], again: list[int]) -> Tensor:
    query = torch.arange(len(first) + 1, 2 * len(first) + 1)
    key = torch.tensor([again.index(token) + 1 for token in first])
    return pattern[:, :, query, key].mean(-1)


def _keys(shift: int, n: int) -> Score:
    """A colleague's score: means over the second half, of attention to `shift` after the same token."""
    second = torch.arange(n + 1, 2 * n + 1)
    return lambda pattern: pattern[..., second, second - n + shift].mean(-1)


def _stripe(n: int, shift: int) -> Tensor:
    """[1 query key]: from each token of the second half, all attention to `shift` after its first occurrence."""
    pattern = torch.zeros(1, 2 * n + 1, 2 * n + 1)
    second = torch.arange(n + 1, 2 * n + 1)
    pattern[0, second, second - n + shift] = 1
    return pattern


def _shift(score: Score, n: int) -> int:
    return max(range(-1, n), key=lambda shift: float(score(_stripe(n, shift))))


def _texts(setting: Setting) -> list[tuple[Any, ...]]:
    bos = setting.model.tokenizer.bos_token_id
    twice = _ordinary(setting, 6)
    again = [bos, *twice, *twice]
    text = [bos, *(twice[i] for i in (0, 1, 2, 0, 3, 1, 4, 0, 5, 3, 1))]
    return [
        (setting.once("09 twice", lambda: _patterns(setting, again)).flatten(0, 1), again),
        (_attention(setting, 4, len(text), len(text), seed=2), text),
        (_attention(setting, 3, 9, 9, seed=3), [1, 5, 6, 5, 7, 6, 8, 5, 9]),
    ]


def _score(pattern: Tensor, tokens: list[int], shift: int = 1, divisor: str = "repeats") -> Tensor:
    """[head]: attention to `shift` after all earlier occurrences, a mean over the repeats; or with one thing wrong."""
    total, repeats = torch.zeros(pattern.shape[0]), 0
    for at, token in enumerate(tokens):
        before = [place for place in range(at) if tokens[place] == token]
        if before:
            repeats += 1
            total += sum(pattern[:, at, place + shift] for place in before)
    return total / {"repeats": repeats, "all": len(tokens) - 1, "none": 1}[divisor]


EXERCISES = [
    Exercise(
        number="10.1",
        what="the duplicate score of each head",
        dims="layer head",
        takes=("pattern", "first", "again"),
        cases=_shuffled,
        right=_matched,
        says="In every row the key is where this very token stood. A head that counts fixed steps now scores by chance "
        "alone, and what is left was earned by matching.",
        mistakes=[
            Mistake(
                gives=_counted,
                says="You look the same number of tokens back from everywhere, as in an unshuffled second half. That "
                "is the counting head's score: look up where each token stood in first.",
            ),
            Mistake(
                gives=lambda *given: _matched(*given, shift=-1),
                says="Your keys are one too low: the start token takes place 0, so the first token of first stands at "
                "1. You read the token before the first occurrence.",
            ),
            Mistake(
                gives=lambda *given: _matched(*given, shift=1),
                says="Your keys are one too high. That is the token after the first occurrence, so it is the induction "
                "score.",
            ),
            Mistake(
                gives=_turned,
                says="Your order is turned round: you look up where the tokens of first stand in again. The queries go "
                "through again, in its order, and the keys say where each stood in first.",
            ),
        ],
    ),
    Exercise(
        number="10.2",
        what="a whole number of tokens",
        near=1e-09,
        takes=("score", "n"),
        cases=lambda setting: [(_keys(1, 6), 6), (_keys(0, 5), 5), (_keys(-1, 8), 8), (_keys(2, 7), 7)],
        right=_shift,
        says="A pattern with one bright stripe in a known place is a head whose answer you know. Any score of stripes "
        "can be tested so, before it sees a model.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda score, n: -_shift(score, n),
                says="The sign is turned round: one place further on in the sequence is +1, one place before is -1.",
            ),
            Mistake(
                gives=lambda score, n: n - _shift(score, n),
                says="This is how far the key lies behind the query. The same token lies n back: say how far the key "
                "is from there.",
            ),
            Mistake(
                gives=lambda score, n: _shift(score, n) + 1,
                says="You are one too high. Either your stripes are one too low, because the start token at place 0 is "
                "forgotten, or you return a place in your list of shifts that begins with -1.",
            ),
            Mistake(
                gives=lambda score, n: _shift(score, n) - 1,
                says="You are one too low: 0 is the same token, and the token after it, where an induction head looks, "
                "is +1.",
            ),
        ],
    ),
    Exercise(
        number="10.3",
        what="the induction score of each head",
        dims="head",
        takes=("pattern", "tokens"),
        cases=_texts,
        right=_score,
        says="On tokens read twice this is the score of this chapter, and it works on any text. There it also counts "
        "what a head knows of the language, so random tokens are still the cleaner test.",
        mistakes=[
            Mistake(
                gives=lambda pattern, tokens: _score(pattern, tokens, shift=0),
                says="This is the duplicate score: you read the attention to the same token, and induction looks at "
                "the token after it.",
            ),
            Mistake(
                gives=lambda pattern, tokens: _score(pattern, tokens, shift=-1),
                says="You read the token before the earlier occurrence. Perhaps you took the start token off and "
                "forgot that all places then move, or you went one step the wrong way.",
            ),
            Mistake(
                gives=lambda pattern, tokens: _score(pattern, tokens, divisor="all"),
                says="You divide by all positions. Those whose token did not stand before have nothing to find, and "
                "they make every score small: count only the repeats.",
            ),
            Mistake(
                gives=lambda pattern, tokens: _score(pattern, tokens, divisor="none"),
                says="This is the sum over the repeats, which can pass 1. Take the mean over them.",
            ),
        ],
    ),
]
