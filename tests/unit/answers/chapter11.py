"""Answers to the exercises of chapter 11: right ones, written differently, and wrong ones with words of the reply."""

from __future__ import annotations

import torch

from labcode import metrics, prompts, variants


def encode(model, text):
    return model.tokenizer.encode(text, add_special_tokens=False)


def rows_of(model, text):
    return model.to_tokens(text, prepend_bos=True)[0].tolist()


def walking(model, text, name):
    row, wanted, found = rows_of(model, text), encode(model, " " + name), []
    for i in range(len(row) - len(wanted) + 1):
        if all(row[i + k] == wanted[k] for k in range(len(wanted))):
            found.append(i)
    return {"name": found, "END": len(row) - 1}


def by_cutting_the_text(model, text, name):
    """Tokens of what stands before each mention: with BOS, that many are the position of the next one."""
    pieces, found = text.split(f" {name}"), []
    for k in range(1, len(pieces)):
        found.append(1 + len(encode(model, f" {name}".join(pieces[:k]))))
    return {"name": torch.tensor(found), "END": torch.tensor(len(encode(model, text)))}


def without_bos(model, text, name):
    row, wanted = encode(model, text), encode(model, " " + name)
    return {"name": [i for i in range(len(row)) if row[i : i + len(wanted)] == wanted], "END": len(row) - 1}


def in_words(model, text, name):
    words = text.replace(".", "").split()
    return {"name": {i + 1 for i in range(len(words)) if words[i] == name}, "END": len(words)}


def one_too_far(model, text, name):
    return walking(model, text, name) | {"END": len(rows_of(model, text))}


def before_the_space(model, text, name):
    return walking(model, text, name) | {"END": walking(model, text.strip(), name)["END"]}


def at_the_last_token(model, text, name):
    more = len(encode(model, " " + name)) - 1
    found = walking(model, text, name)
    return found | {"name": [i + more for i in found["name"]]}


def first_mention(model, text, name):
    return {"name": [rows_of(model, text).index(encode(model, " " + name)[0])], "END": len(rows_of(model, text)) - 1}


def texts(pop, who, gap=" "):
    return [f"That day {p.io if who == 'IO' else p.s} got up early.{gap}{p.text}" for p in pop.prompts]


def one_by_one(model, pop, who):
    values = []
    for text, p in zip(texts(pop, who), pop.prompts, strict=True):
        at_end = model(model.to_tokens(text, prepend_bos=True))[0, -1]
        values.append(at_end[prompts.token_id(model, " " + p.io)] - at_end[prompts.token_id(model, " " + p.s)])
    return torch.stack(values)


def batched(model, pop, who, gap=" ", at="own", bos=True):
    rows = [[model.tokenizer.bos_token_id] * bos + encode(model, text) for text in texts(pop, who, gap)]
    longest = max(len(row) for row in rows)
    tokens = torch.full((len(rows), longest), model.tokenizer.eos_token_id)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    logits = model(tokens)
    end = {"own": [len(row) - 1 for row in rows], "before": pop.end.tolist()}[at]
    return [float(logits[i, end[i], pop.io_ids[i]] - logits[i, end[i], pop.s_ids[i]]) for i in range(len(rows))]


def last_column(model, pop, who):
    logits = model(model.to_tokens(texts(pop, who), prepend_bos=True))[:, -1]
    every = torch.arange(len(pop))
    return logits[every, pop.io_ids] - logits[every, pop.s_ids]


def whole(model, text, name):
    """The library's, on a population of one text."""
    tokens = model.to_tokens(text, prepend_bos=True)
    prompt = prompts.Prompt(text, name, name, "BABA")
    length = torch.tensor([tokens.shape[1]])
    pop = prompts.Population((prompt,), tokens, length, {"END": length - 1}, length, length, ())
    return variants.log_probability(model, pop, [f" {name}"])


def token_by_token(model, text, name, space=" ", bos=True):
    total, row = 0.0, rows_of(model, text)[not bos :]
    for token in encode(model, space + name):
        total += float(model(torch.tensor([row]))[0, -1].softmax(-1)[token].log())
        row = [*row, token]
    return total


def first_token(model, text, name):
    return model(model.to_tokens(text, prepend_bos=True))[0, -1].log_softmax(-1)[encode(model, " " + name)[0]]


def where_it_stands(model, text, name, norm=True, ahead=0):
    row, added = rows_of(model, text), encode(model, " " + name)
    logits = model(torch.tensor([row + added]))[0]
    values = logits.log_softmax(-1) if norm else logits
    return sum(values[len(row) + i - ahead, token] for i, token in enumerate(added))


RIGHT = {
    "11.1": [walking, by_cutting_the_text],
    "11.2": [one_by_one, batched],
    "11.3": [whole, token_by_token],
}
WRONG = {
    "11.1": [
        (without_bos, "BOS is not counted"),
        (in_words, "You count words"),
        (one_too_far, "END is one too far"),
        (before_the_space, "in front of the space"),
        (at_the_last_token, "at its last token"),
        (first_mention, "stop at the first mention"),
        (lambda model, text, name: {"name": [], "END": len(rows_of(model, text)) - 1}, "no mistake that this check"),
    ],
    "11.2": [
        (lambda model, pop, who: batched(model, pop, who, at="before"), "moved it to the right"),
        (last_column, "that is padding"),
        (lambda model, pop, who: one_by_one(model, pop, "S" if who == "IO" else "IO"), "The names are exchanged"),
        (lambda model, pop, who: -one_by_one(model, pop, who), "turned round"),
        (lambda model, pop, who: batched(model, pop, who, bos=False), "BOS is missing"),
        (lambda model, pop, who: batched(model, pop, who, gap=""), "no space between"),
        (
            lambda model, pop, who: metrics.logit_difference(metrics.end_logits(model, pop), pop),
            "no mistake that this check",
        ),
    ],
    "11.3": [
        (first_token, "first token of the name alone"),
        (where_it_stands, "Off by one"),
        (lambda model, text, name: where_it_stands(model, text, name, norm=False, ahead=1), "You add up logits"),
        (
            lambda model, text, name: whole(model, text, name) / len(encode(model, " " + name)),
            "the mean over the tokens",
        ),
        (lambda model, text, name: token_by_token(model, text, name, space=""), "without its space"),
        (lambda model, text, name: token_by_token(model, text, name, bos=False), "BOS is missing"),
        (lambda model, text, name: whole(model, text, name).exp(), "no mistake that this check"),
    ],
}
