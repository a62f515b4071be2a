"""Answers to the exercises of chapter 09: right ones, written differently, and wrong ones with words of the reply."""

from __future__ import annotations

import torch


def in_a_loop(pattern, first, again):
    n, total = len(first), 0
    for place, token in enumerate(again):
        total = total + pattern[..., n + 1 + place, 1 + first.index(token)]
    return total / n


def by_mask(pattern, first, again):
    n = len(first)
    same = torch.tensor(again)[:, None] == torch.tensor(first)  # [query key]
    return (pattern[:, :, n + 1 :, 1 : n + 1] * same).sum((-1, -2)) / n


def at(keys):
    """The mean attention from the second half to keys(n, query, the places of each token in first and again)."""

    def score(pattern, first, again):
        n = len(first)
        query = torch.arange(n + 1, 2 * n + 1)
        stood = torch.tensor([first.index(token) for token in again])
        comes = torch.tensor([again.index(token) for token in first])
        return pattern[:, :, query, keys(n, query, stood, comes)].mean(-1)

    return score


def pattern_of(n, shift):
    pattern = torch.zeros(1, 2 * n + 1, 2 * n + 1)
    for query in range(n + 1, 2 * n + 1):
        pattern[0, query, query - n + shift] = 1.0
    return pattern


def by_stripes(score, n):
    found = {shift: float(score(pattern_of(n, shift))[0]) for shift in (-1, 0, 1, 2)}
    return max(found, key=found.get)


def by_one_look(score, n):
    """Attention that names its key: the score is then the mean key that it reads."""
    names = torch.arange(2 * n + 1.0).repeat(2 * n + 1, 1)[None]
    mean_query = torch.arange(n + 1, 2 * n + 1.0).mean()
    return round(float(score(names)[0] - (mean_query - n)))


def by_index(score, n):
    return torch.stack([score(pattern_of(n, shift))[0] for shift in (-1, 0, 1, 2)]).argmax()


def without_start(score, n):
    found = []
    for shift in range(-1, 4):
        pattern = torch.zeros(1, 2 * n + 1, 2 * n + 1)
        for query in range(n + 1, 2 * n + 1):
            pattern[0, query, query - n - 1 + shift] = 1.0
        found.append(float(score(pattern)[0]))
    return found.index(max(found)) - 1


def with_a_mask(pattern, tokens):
    ids = torch.tensor(tokens)
    size = len(ids)
    after = torch.zeros(size, size, dtype=torch.bool)
    after[:, 1:] = ids[:, None] == ids[None, :-1]  # the key follows a token like the query's
    after &= torch.ones(size, size, dtype=torch.bool).tril(-1)
    return (pattern * after).sum((1, 2)) / after.any(1).sum()


def read(pattern, tokens, shift=1, which=slice(None), mean=True):
    rows = []
    for query, token in enumerate(tokens):
        earlier = [key for key, other in enumerate(tokens[:query]) if other == token][which]
        if earlier:
            rows.append(torch.stack([pattern[:, query, key + shift] for key in earlier]).sum(0))
    return torch.stack(rows).mean(0) if mean else torch.stack(rows).sum(0)


def over_all(pattern, tokens):
    return read(pattern, tokens, mean=False) / (len(tokens) - 1)


RIGHT = {
    "09.1": [in_a_loop, by_mask],
    "09.2": [by_stripes, by_one_look],
    "09.3": [read, with_a_mask],
}
WRONG = {
    "09.1": [
        (at(lambda n, query, stood, comes: query - n), "the counting head's score"),
        (at(lambda n, query, stood, comes: stood), "one too low"),
        (at(lambda n, query, stood, comes: stood + 2), "induction score"),
        (at(lambda n, query, stood, comes: comes + 1), "turned round"),
        (lambda pattern, first, again: in_a_loop(pattern, first, again) * len(first), "sum over the tokens"),
        (lambda pattern, first, again: in_a_loop(pattern.mT, first, again), "exchanged query and key"),
        (lambda pattern, first, again: in_a_loop(pattern, first, again).T, "of shape"),
    ],
    "09.2": [
        (lambda score, n: -by_stripes(score, n), "sign is turned round"),
        (lambda score, n: n - by_stripes(score, n), "behind the query"),
        (by_index, "one too high"),
        (without_start, "one too high"),
        (lambda score, n: by_stripes(score, n) - 1, "one too low"),
        (lambda score, n: 0, "no mistake that this check knows"),
    ],
    "09.3": [
        (lambda pattern, tokens: read(pattern, tokens, shift=0), "duplicate score"),
        (lambda pattern, tokens: read(pattern, tokens, shift=-1), "token before"),
        (over_all, "all positions"),
        (lambda pattern, tokens: read(pattern, tokens, mean=False), "sum over the repeats"),
        (lambda pattern, tokens: read(pattern, tokens, which=slice(1)), "first occurrence alone"),
        (lambda pattern, tokens: read(pattern, tokens, which=slice(-1, None)), "latest occurrence alone"),
    ],
}
