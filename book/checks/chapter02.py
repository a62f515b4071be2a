"""Chapter 02: from scores to a pattern, what heads write given a pattern, and one look for the whole task."""

from __future__ import annotations

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting


def _pattern(scores: Tensor, *, mask: str = "before", axis: int = -1) -> Tensor:
    """[query key]: mask and softmax, or with one thing wrong."""
    later = torch.ones_like(scores).triu(1).bool()
    if mask == "before":
        scores = scores.masked_fill(later, -torch.inf)
    elif mask == "zeros":
        scores = scores.masked_fill(later, 0.0)
    shares = scores.softmax(dim=axis)
    return shares.masked_fill(later, 0.0) if mask == "after" else shares


def _scores(setting: Setting) -> list[tuple[Tensor]]:
    return [(2 * setting.random(n, n, seed=n),) for n in (5, 9)]


def _written(
    pattern: Tensor, values: Tensor, W_O: Tensor, *, grouped: str = "neighbours", mix: str = "pattern"
) -> Tensor:
    """[head query d_model]: values mixed by the pattern and sent through W_O, or with one thing wrong."""
    sharing = len(pattern) // values.shape[1]
    each = values.repeat_interleave(sharing, dim=1) if grouped == "neighbours" else values.repeat(1, sharing, 1)
    weights = {
        "pattern": pattern,
        "turned": pattern.transpose(1, 2),
        "even": torch.full_like(pattern, 1 / pattern.shape[-1]),
        "hardest": torch.nn.functional.one_hot(pattern.argmax(-1), pattern.shape[-1]).to(pattern.dtype),
    }[mix]
    return torch.einsum("hqk,khd,hdm->hqm", weights, each, W_O)


def _layers(setting: Setting) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Layers of six heads that share two sets of values, and of four that share none."""
    made = []
    for heads, sets, pos in ((6, 2, 5), (4, 4, 7)):
        pattern = torch.stack([_pattern(setting.random(pos, pos, seed=heads + i)) for i in range(heads)])
        made.append((pattern, setting.random(pos, sets, 3, seed=heads), setting.random(heads, 3, 8, seed=heads + 1)))
    return made


def _ahead(
    table: Tensor, sentences: Tensor, io: Tensor, s: Tensor, *, turned: bool = False, once: bool = False, as_: str = ""
) -> Tensor:
    """[batch]: by how much IO is ahead of S in attention from the last word, or with one thing wrong."""
    last = sentences[:, -1:]
    scores = table[sentences, last] if turned else table[last, sentences]
    attention = scores.softmax(dim=-1)
    rows = torch.arange(len(sentences))
    on = []
    for name in (io, s):
        there = sentences == name[:, None]
        on.append(attention[rows, there.float().argmax(-1)] if once else (attention * there).sum(-1))
    if as_ == "difference":
        return on[0] - on[1]
    return (on[1].log() - on[0].log()) if as_ == "turned" else (on[0].log() - on[1].log())


def _sentences(setting: Setting) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Both orders, with words that are no names between them."""
    made = []
    for seed, words in ((0, 3), (1, 6)):
        rows = [[0, 1, 0, 2], [0, 1, 1, 2]] if words == 3 else [[3, 0, 4, 1, 5, 0, 2], [3, 1, 4, 0, 5, 0, 2]]
        io, s = ([1, 0], [0, 1]) if words == 3 else ([1, 1], [0, 0])
        table = 2 * setting.random(words, words, seed=seed)
        made.append((table, torch.tensor(rows), torch.tensor(io), torch.tensor(s)))
    return made


EXERCISES = [
    Exercise(
        number="02.1",
        what="an attention pattern",
        dims="query key",
        takes=("scores",),
        cases=_scores,
        right=_pattern,
        says="Every row adds up to one and nobody looks ahead. The first token can look only at itself, so its "
        "row says nothing about the head.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda scores: _pattern(scores, mask="none"),
                says="The mask is missing: tokens look at what comes after them.",
            ),
            Mistake(
                gives=lambda scores: _pattern(scores, mask="zeros"),
                says="You set later scores to zero, and the exponential of zero is one: those tokens still get a "
                "share. Set the exponentials to zero, or the scores to minus infinity.",
            ),
            Mistake(
                gives=lambda scores: _pattern(scores, mask="after"),
                says="You mask after the softmax, so that rows add up to less than one. Mask first, then divide by the "
                "sum of what is left.",
            ),
            Mistake(
                gives=lambda scores: _pattern(scores, axis=0),
                says="Your columns add up to one. Each row, a token that looks, has one share of attention to give "
                "away: divide by the sum over keys, the last axis.",
            ),
        ],
    ),
    Exercise(
        number="02.2",
        what="what each head writes",
        dims="head query d_model",
        takes=("pattern", "values", "W_O"),
        cases=_layers,
        right=_written,
        says="Values are mixed by the pattern and sent through W_O; nothing asks where the pattern came from. Move it "
        "by hand, and the head writes what stands there.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda *case: _written(*case, grouped="in turn"),
                says="You deal the sets of values out in turn: 0, 1, 0, 1. Neighbours share a set, 0, 0, 1, 1: that is "
                "repeat_interleave, and not repeat.",
            ),
            Mistake(
                gives=lambda *case: _written(*case, mix="turned"),
                says="You mix over queries. A row of the pattern belongs to the token that looks; sum over its keys, "
                "the last axis.",
            ),
            Mistake(
                gives=lambda *case: _written(*case, mix="even"),
                says="This is the plain mean of all values. Weigh them by the pattern.",
            ),
            Mistake(
                gives=lambda *case: _written(*case, mix="hardest"),
                says="You copy only the token with the most attention. A head mixes: every token counts by its share.",
            ),
        ],
    ),
    Exercise(
        number="02.3",
        what="how far IO is ahead of S in attention",
        dims="batch",
        takes=("table", "sentences", "io", "s"),
        cases=_sentences,
        right=_ahead,
        says="And no table gets both sentences right: together they always give −2 log 2, since the repeated name is "
        "there twice. Somebody else has to notice the repetition first.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda *case: _ahead(*case, once=True),
                says="You count one place of each name. S stands there twice, and a head copies from both places: add "
                "up the attention wherever the word stands.",
            ),
            Mistake(
                gives=lambda *case: _ahead(*case, turned=True),
                says="You read the table the other way round. Its first index is the word that looks, the last one of "
                "the sentence.",
            ),
            Mistake(
                gives=lambda *case: _ahead(*case, as_="difference"),
                says="This is the difference of the two attentions. Asked is the logarithm of their ratio.",
            ),
            Mistake(
                gives=lambda *case: _ahead(*case, as_="turned"),
                says="The sign is turned round: it is positive where IO, the name that came once, gets more.",
            ),
        ],
    ),
]
