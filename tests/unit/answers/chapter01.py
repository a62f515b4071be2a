"""Answers to the exercises of chapter 01: right ones, written differently, and wrong ones with words of the reply."""

from __future__ import annotations

import math

import torch

from labcode import metrics, prompts


def by_steps(width, n, target):
    more = n
    while width * math.sqrt(n / more) > target + 1e-12:
        more += 1
    return more


def with_library(model, pop):
    return metrics.logit_difference(metrics.end_logits(model, pop), pop)


def in_a_loop(model, pop):
    values = []
    for prompt in pop.prompts:
        ids = [model.tokenizer.bos_token_id, *model.tokenizer.encode(prompt.text, add_special_tokens=False)]
        logits = model(torch.tensor([ids]))[0, -1]
        io, s = (prompts.token_id(model, f" {name}") for name in (prompt.io, prompt.s))
        values.append(float(logits[io] - logits[s]))
    return values


def without_space(model, pop):
    logits = metrics.end_logits(model, pop)
    encode = model.tokenizer.encode
    return torch.stack(
        [
            row[encode(p.io, add_special_tokens=False)[0]] - row[encode(p.s, add_special_tokens=False)[0]]
            for row, p in zip(logits, pop.prompts, strict=True)
        ]
    )


def last_column(model, pop):
    logits = model(pop.tokens)[:, -1]
    rows = torch.arange(len(pop))
    return logits[rows, pop.io_ids] - logits[rows, pop.s_ids]


RIGHT = {
    "01.1": [lambda width, n, target: math.ceil(n * width**2 / target**2 - 1e-9), by_steps],
    "01.2": [
        lambda difference: math.exp(difference) / (1 + math.exp(difference)),
        lambda difference: torch.tensor([difference, 0.0]).softmax(0)[0],
    ],
    "01.3": [with_library, in_a_loop],
}
WRONG = {
    "01.1": [
        (lambda width, n, target: math.ceil(n * width / target), "in proportion"),
        (lambda width, n, target: math.ceil(n * (width / target) ** 0.5), "the square belongs"),
        (lambda width, n, target: math.ceil(n * (target / width) ** 2), "upside down"),
        (lambda width, n, target: n * width**2 / target**2, "no half prompts"),
        (lambda width, n, target: int(n * (width / target) ** 2), "round down"),
        (lambda width, n, target: 4 * n, "no mistake that this check knows"),
    ],
    "01.2": [
        (math.exp, "These are the odds"),
        (lambda difference: torch.sigmoid(torch.tensor(-difference)), "probability of S"),
        (lambda difference: 10**difference / (1 + 10**difference), "powers of 10"),
        (lambda difference: 1 - 1 / (1 + 2**difference), "powers of 2"),
    ],
    "01.3": [
        (without_space, "without their space"),
        (lambda model, pop: -with_library(model, pop), "turned round"),
        (last_column, "padding"),
        (lambda model, pop: with_library(model, pop).mean().repeat(len(pop)), "All prompts got the mean"),
    ],
}
