"""Answers to the exercises of chapter 15: right ones, written differently, and wrong ones with words of the reply."""

from __future__ import annotations

from collections import Counter

import torch

from labbook.show import cards
from labcode import readable


def by_sorting(values, n):
    rows = []
    for context, row in enumerate(values.tolist()):
        position = max(range(1, len(row)), key=lambda p: row[p])
        rows.append((row[position], context, position))
    return [[context, position] for _, context, position in sorted(rows, reverse=True)[:n]]


def as_the_book(values, n):
    later = values.clone()
    later[:, 0] = 0
    return cards.best_of_each_context(later, n)


def with_start(values, n):
    return cards.best_of_each_context(values, n)


def strongest_tokens(values, n):
    places = [(values[c, p], c, p) for c in range(values.shape[0]) for p in range(1, values.shape[1])]
    return [[c, p] for _, c, p in sorted(places, reverse=True)[:n]]


def weakest(values, n):
    rows = by_sorting(values, len(values))
    return rows[::-1][:n]


def cut_off(values, n):
    return [(context, position - 1) for context, position in by_sorting(values, n)]


def in_sets(tokens, fires, even, few, on=None, seen_on=None):
    """With counters and words, place by place."""

    def places(contexts):
        return [(c, p) for c in contexts for p in range(1, tokens.shape[1])]

    chosen, other = even.nonzero()[:, 0].tolist(), (~even).nonzero()[:, 0].tolist()
    made_on = {"chosen": chosen, "other": other, "all": chosen + other}[on or "chosen"]
    seen = Counter(int(tokens[place]) for place in places(made_on))
    hit = Counter(int(tokens[place]) for place in places(made_on) if fires[place])
    listed = [token for token, count in hit.most_common() if count >= seen[token] / 2][:few]

    def counts(contexts):
        said = {place for place in places(contexts) if int(tokens[place]) in listed}
        true = {place for place in places(contexts) if fires[place]}
        return len(said & true), len(said), len(true), len(places(contexts))

    return {"chosen": counts(chosen), "other": counts(other)}


def scored(measure, on=None):
    return lambda *case: {name: measure(*counts) for name, counts in in_sets(*case, on=on).items()}


def f1(hits, said, true, _):
    return 2 * hits / (said + true)


def harmonic(hits, said, true, _):
    precision, recall = hits / said, hits / true
    return 2 / (1 / precision + 1 / recall)


def with_bincount(tokens, fires, even, few, first=1):
    text, true = tokens[:, 1:], fires[:, 1:]
    n = int(text.max()) + 1
    seen = torch.bincount(text[even].flatten(), minlength=n)
    hit = torch.bincount(text[even][true[even]], minlength=n)
    order = torch.where(hit >= seen / 2, hit, 0).argsort(descending=True)
    listed = [i for i in order.tolist() if hit[i] > 0 and hit[i] >= seen[i] / 2][:few]
    says = torch.isin(tokens, torch.tensor(listed))[:, first:]
    fires = fires[:, first:]
    return {
        "chosen": readable.f1(says[even], fires[even]),
        "other": torch.tensor(readable.f1(says[~even], fires[~even])),
    }


def exchanged(*case):
    found = with_bincount(*case)
    return {"chosen": found["other"], "other": found["chosen"]}


def mean_of_both(hits, said, true, _):
    return hits / said / 2 + hits / true / 2


def agreement(hits, said, true, n):
    return (n - (said - hits) - (true - hits)) / n


def kinds(tokens, counted, *, over_text=False, either_way=False):
    """Places of repetitions and of first occurrences, in sets."""
    again, new, seen = [], [], set()
    for c, row in enumerate(tokens.tolist()):
        seen = seen if over_text else set()
        for p, token in enumerate(row):
            before = row.count(token) > 1 if either_way else token in seen
            seen.add(token)
            if counted[c, p]:
                (again if before else new).append((c, p))
    return again, new


def rate(fired, places):
    return sum(fired[place].double() for place in places) / len(places)


def place_by_place(fired, tokens, counted, **how):
    again, new = kinds(tokens, counted, **how)
    return rate(fired, again) - rate(fired, new)


def with_masks(fired, tokens, counted):
    same = tokens[:, :, None] == tokens[:, None, :]  # [context pos earlier]
    again = same.tril(-1).any(-1) & counted
    new = counted & ~again
    return fired[again].sum(0) / again.sum() - fired[new].sum(0) / new.sum()


def of_the_firings(fired, tokens, counted):
    again, new = kinds(tokens, counted)
    a, b = (sum(fired[place].double() for place in places) for places in (again, new))
    return (a - b) / (a + b)


def everything(fired, tokens, counted):
    return place_by_place(fired, tokens, torch.ones_like(counted))


def against_all(fired, tokens, counted):
    again, new = kinds(tokens, counted)
    return rate(fired, again) - rate(fired, again + new)


RIGHT = {
    "15.1": [by_sorting, as_the_book],
    "15.2": [scored(f1), scored(harmonic), with_bincount],
    "15.3": [place_by_place, with_masks],
}
WRONG = {
    "15.1": [
        (with_start, "The start token is among them"),
        (strongest_tokens, "some context comes twice"),
        (weakest, "the weakest contexts"),
        (cut_off, "one too small"),
        (lambda values, n: [(p, c) for c, p in by_sorting(values, n)], "exchanged"),
        (lambda values, n: sorted(by_sorting(values, n)), "in the order of the text"),
        (lambda values, n: [[0, 0]] * n, "no mistake that this check knows"),
    ],
    "15.2": [
        (scored(f1, on="all"), "the whole text"),
        (scored(f1, on="other"), "the half that should test it"),
        (exchanged, "scores are exchanged"),
        (lambda *case: with_bincount(*case, first=0), "The start token is counted"),
        (scored(lambda hits, said, true, n: hits / said), "This is precision"),
        (scored(lambda hits, said, true, n: hits / true), "This is recall"),
        (scored(mean_of_both), "the plain mean"),
        (scored(agreement), "This is accuracy"),
        (lambda *case: {"chosen": 1, "other": 0}, "no mistake that this check knows"),
    ],
    "15.3": [
        (of_the_firings, "how many of the firings"),
        (lambda *case: place_by_place(*case, over_text=True), "in an earlier context"),
        (lambda *case: place_by_place(*case, either_way=True), "the first time too"),
        (everything, "You count all tokens"),
        (against_all, "at all counted words"),
        (lambda *case: -with_masks(*case), "turned round"),
        (lambda *case: with_masks(*case) * 2, "no mistake that this check knows"),
    ],
}
