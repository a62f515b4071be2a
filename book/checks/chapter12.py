"""Chapter 12: where names and END stand in a new text, a second IO in front, and the worth of a whole name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting
from labcode import variants

TWO = "Then {a} and {b} went to the store. {a} gave a drink to"
THREE = "Then {a} and {b} went to the store. {b} had a good day. {a} gave a drink to"


def _ids(model: Any, text: str) -> list[int]:
    return [int(token) for token in model.tokenizer.encode(text, add_special_tokens=False)]


def _places(
    model: Any,
    text: str,
    name: str,
    *,
    shift: int = 0,
    beyond: bool = False,
    strip: bool = False,
) -> dict[str, Any]:
    """Where the name stands and where END is, or with one thing wrong."""
    row, wanted = [model.tokenizer.bos_token_id, *_ids(model, text)], _ids(model, " " + name)
    found = [i for i in range(len(row)) if row[i : i + len(wanted)] == wanted]
    end = len(_ids(model, text.rstrip())) if strip else len(row) - 1
    return {
        "name": {i + shift for i in found},
        "END": end + shift + beyond,
    }


def _by_words(model: Any, text: str, name: str) -> dict[str, Any]:
    words = [word.strip(".,") for word in text.split()]
    return {"name": [i + 1 for i, word in enumerate(words) if word == name], "END": len(words)}


def _rare(setting: Setting) -> list[str]:
    """Two names of several tokens. To look for them takes longer than the rest of a check."""
    return setting.once("rare names", lambda: variants.rare_names(setting.model)[:2])


def _texts(setting: Setting) -> list[tuple[Any, str, str]]:
    rare, other = _rare(setting)
    return [
        (setting.model, THREE.format(a="John", b="Mary"), "Mary"),
        (setting.model, TWO.format(a=rare, b=other), rare),
        (setting.model, TWO.format(a="John", b="Mary") + " ", "John"),
    ]


def _in_front(
    model: Any,
    pop: Any,
    who: str,
    *,
    swap: bool = False,
    column: str = "own",
    sign: float = 1.0,
) -> Tensor:
    """[batch]: the logit difference with a sentence in front that names IO or S, or with one thing wrong."""
    rows = []
    for prompt in pop.prompts:
        name = prompt.io if (who == "IO") != swap else prompt.s
        text = f"That day {name} got up early. {prompt.text}"
        rows.append([model.tokenizer.bos_token_id, *_ids(model, text)])
    width = max(map(len, rows))
    padding = model.tokenizer.pad_token_id  # what model.to_tokens pads with
    padding = model.tokenizer.bos_token_id if padding is None else padding
    padded = torch.tensor([row + [padding] * (width - len(row)) for row in rows])
    own = torch.tensor([len(row) - 1 for row in rows])
    at = {"own": own, "old": pop.end, "last": torch.full_like(own, width - 1)}[column]
    every = torch.arange(len(rows))
    at_end = model(padded)[every, at]
    return sign * (at_end[every, pop.io_ids] - at_end[every, pop.s_ids])


def _fronts(setting: Setting) -> list[tuple[Any, Any, str]]:
    """The shortest and the longest prompt, then one alone: each run costs time."""
    order = setting.pop.lengths.argsort()
    two = setting.pop.subset([int(order[0]), int(order[-1])])
    return [(setting.model, two, "IO"), (setting.model, two.subset([0]), "S")]


def _whole(
    model: Any,
    text: str,
    name: str,
    *,
    ahead: int = 1,
    normed: bool = True,
    first: bool = False,
    mean: bool = False,
) -> float:
    """The log-probability of a whole name behind a text, or with one thing wrong."""
    before, added = [model.tokenizer.bos_token_id, *_ids(model, text)], _ids(model, " " + name)
    logits = model(torch.tensor([before + added]))[0]  # [pos d_vocab]
    at = torch.arange(len(added)) + len(before) - ahead
    values = (logits.log_softmax(-1) if normed else logits)[at, added][: 1 if first else None]
    return float(values.mean() if mean else values.sum())


def _names(setting: Setting) -> list[tuple[Any, str, str]]:
    one, two = _rare(setting)
    return [(setting.model, TWO.format(a=one, b=two), two), (setting.model, TWO.format(a="John", b="Mary"), one)]


EXERCISES = [
    Exercise(
        number="12.1",
        what={"name": "the positions at which the name begins", "END": "the position of END"},
        near=1e-09,
        takes=("model", "text", "name"),
        cases=_texts,
        right=_places,
        says="Positions are found in the tokens of this text, BOS counted, and never typed: they move with every edit, "
        "with every name of several tokens, and with a space that nobody sees.",
        mistakes=[
            Mistake(
                gives=lambda model, text, name: _places(model, text, name, shift=-1),
                says="Everything stands one place too early: BOS is not counted. It is position 0, so the first token "
                "of the text is position 1.",
            ),
            Mistake(
                gives=_by_words,
                says="You count words. A full stop is a token of its own, a space at the end is one too, and a rare "
                "name is several: let model.tokenizer.encode split the text.",
            ),
            Mistake(
                gives=lambda model, text, name: _places(model, text, name, beyond=True),
                says="The name is right, but END is one too far: with BOS the text has as many tokens as you say, and "
                "the last one has that number less one, as the first is 0.",
            ),
            Mistake(
                gives=lambda model, text, name: _places(model, text, name, strip=True),
                says="You look for END in front of the space at the end. That space is a token of its own, and the "
                "model's answer is read there.",
            ),
        ],
    ),
    Exercise(
        number="12.2",
        what="the logit difference of each prompt",
        dims="batch",
        takes=("model", "pop", "who"),
        cases=_fronts,
        right=_in_front,
        says="A sentence in front moves END, and you have read each prompt where it now ends. The right answers are "
        "the same as before, so the two runs can be compared prompt by prompt.",
        mistakes=[
            Mistake(
                gives=lambda model, pop, who: _in_front(model, pop, who, column="old"),
                says="You read at pop.end, and that is where END stood before. The sentence in front has moved it to "
                "the right.",
            ),
            Mistake(
                gives=lambda model, pop, who: _in_front(model, pop, who, column="last"),
                says="You read the last column of a padded batch. For the shorter prompts that is padding: read each "
                "where its own text ends.",
            ),
            Mistake(
                gives=lambda model, pop, who: _in_front(model, pop, who, swap=True),
                says="The names are exchanged: with “IO” your sentence names S, and with “S” it names IO. prompt.io is "
                "the right answer.",
            ),
            Mistake(
                gives=lambda model, pop, who: _in_front(model, pop, who, sign=-1.0),
                says="The sign is turned round: logit(IO) comes first, logit(S) is taken away.",
            ),
        ],
    ),
    Exercise(
        number="12.3",
        what="a log-probability in nats",
        near=0.0001,
        takes=("model", "text", "name"),
        cases=_names,
        right=_whole,
        says="Each token of the name is predicted one place before it stands, given those before it. Their "
        "log-probabilities add up to that of the name, and names that begin alike can be told apart.",
        mistakes=[
            Mistake(
                gives=lambda model, text, name: _whole(model, text, name, first=True),
                says="This is the first token of the name alone. Two names that begin alike get the same number: run "
                "the name behind the text, and add what its other tokens get.",
            ),
            Mistake(
                gives=lambda model, text, name: _whole(model, text, name, ahead=0),
                says="Off by one: you read each token's probability at the place where it stands. The logits there are "
                "about the token after it, so look one place earlier.",
            ),
            Mistake(
                gives=lambda model, text, name: _whole(model, text, name, normed=False),
                says="You add up logits. Only after a log_softmax over the vocabulary are they log-probabilities.",
            ),
            Mistake(
                gives=lambda model, text, name: _whole(model, text, name, mean=True),
                says="This is the mean over the tokens of the name. The probability of all of them is a product, so "
                "their logarithms are added up.",
            ),
        ],
    ),
]
