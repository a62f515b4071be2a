"""How many latents can be read? A count by rule, in place of an opinion.

Looking at the top contexts of a latent, people find a meaning nearly always. So here a latent counts as readable only
if a *simple rule* says where it fires: the token is one of a few; the token before is one of a few; it is of a class
such as numbers; it has been seen before; its position. The rule is chosen on some contexts and scored on others, at all
tokens and not only at the top.

Limits: a latent without such a rule can have a meaning that these rules cannot say; a latent with one can have a finer
meaning. The count is one of simple rules, no more.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from labcode.errors import MetricError
from labcode.latents import repeated
from labcode.prompts import NAMES

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

FEW = 10  # tokens that a rule may list
KINDS = ("token", "token before", "class", "repeated token", "position")
EDGES = (1, 2, 4, 8, 16)

# Classes of tokens that can be told from the token's text alone. A token may be in several. The closed classes go by
# spelling, so that "that" is a conjunction here, and also an article or the like.
_MARKS = frozenset(string.punctuation + "“”‘’…–—")
_CLOSED = {
    "pronoun": "i you he she it we they me him her us them my your his its our their who whom whose",
    "article or the like": "a an the this that these those each every some any no all both",
    "preposition": "of in to for with on at by from about into over after under between through during against",
    "conjunction": "and or but nor so yet because if when while although since unless that than",
    "form of be, have or do": "is are was were be been being am has have had having do does did doing",
    "modal verb": "can could may might must shall should will would",
}


def _listed(words: str) -> Callable[[str], bool]:
    every = frozenset(words.split())
    return lambda word: word.strip().lower() in every


CLASSES: dict[str, Callable[[str], bool]] = {
    "number": lambda w: w.strip().isdigit(),
    "punctuation mark": lambda w: bool(w.strip()) and set(w.strip()) <= _MARKS,
    "end of a sentence": lambda w: w.strip() in {".", "!", "?", "...", ".”", '."'},
    "quotation mark": lambda w: bool(w.strip()) and set(w.strip()) <= set("\"'“”‘’`"),
    "bracket": lambda w: bool(w.strip()) and set(w.strip()) <= set("()[]{}<>"),
    "line break": lambda w: "\n" in w,
    "capitalised word": lambda w: bool(re.fullmatch(r" ?[A-Z][a-z]+", w)),
    "word in capitals": lambda w: bool(re.fullmatch(r" ?[A-Z]{2,}", w)),
    "single letter": lambda w: bool(re.fullmatch(r" ?[A-Za-z]", w)),
    "lower-case word": lambda w: bool(re.fullmatch(r" [a-z]+", w)),
    "middle or end of a word": lambda w: bool(re.fullmatch(r"[a-z]+", w)),
    "long word": lambda w: w.strip().isalpha() and len(w.strip()) >= 7,
    "first name": lambda w: w.strip() in NAMES,
    "not ASCII": lambda w: not w.isascii(),
    **{name: _listed(words) for name, words in _CLOSED.items()},
}


@dataclass(frozen=True)
class Found:
    """The best simple rule for one latent.

    Attributes:
        kind: one of `KINDS`. rule: in words.
        fitted: F1 on the contexts that chose it. f1, precision, recall: on the other contexts.
        holds: where the rule says that the latent fires.
    """

    kind: str
    rule: str
    fitted: float
    f1: float
    precision: float
    recall: float
    holds: Bool[Tensor, "context pos"]


class Text:
    """Contexts as the rules see them: which word stands where, its class, and whether it was there before.

    Args:
        tokens: the contexts, start token at position 0, which is never counted.
        decode: a token id to its text.
    """

    def __init__(self, tokens: Int[Tensor, "context pos"], decode: Callable[[int], str]) -> None:
        ids, self.word = tokens.unique(return_inverse=True)  # [context pos], numbers of `words`
        self.words = [decode(i) for i in ids.tolist()]
        table = torch.tensor([[holds(word) for word in self.words] for holds in CLASSES.values()])  # [class word]
        classes = table[:, self.word]  # [class context pos]
        before = torch.zeros_like(classes)
        before[:, :, 1:] = classes[:, :, :-1]
        seen = repeated(tokens)
        position = torch.arange(tokens.shape[1]).expand_as(tokens)
        rules = {("class", f"the token is a {name}"): c for name, c in zip(CLASSES, classes, strict=True)}
        rules |= {("class", f"the token before is a {name}"): c for name, c in zip(CLASSES, before, strict=True)}
        rules["repeated token", "the token has come before"] = seen
        rules |= {
            ("repeated token", f"the token has come before and is a {name}"): seen & c
            for name, c in zip(CLASSES, classes, strict=True)
        }
        rules |= {("position", f"among the first {_tokens(edge)}"): position <= edge for edge in EDGES}
        rules |= {("position", f"after the first {_tokens(edge)}"): position > edge for edge in EDGES}
        self.rules = list(rules)
        self.fixed = torch.stack(list(rules.values()))  # [rule context pos]
        self.fixed[:, :, 0] = False


def _tokens(n: int) -> str:
    return "token" if n == 1 else f"{n} tokens"


def f1(said: Bool[Tensor, "*any"], true: Bool[Tensor, "*any"]) -> float:
    """Twice the hits, divided by all that was said plus all that is true; 0 where both are none."""
    return 2 * float((said & true).sum()) / max(1.0, float(said.sum() + true.sum()))


def fit(text: Text, fires: Bool[Tensor, "context pos"], chosen_on: Bool[Tensor, " context"], few: int = FEW) -> Found:
    """The simple rule with the highest F1 on the contexts `chosen_on`, and its score on the others.

    Args:
        fires: where the latent fires; position 0 is not looked at.
        few: how many tokens a rule may list.

    Raises:
        MetricError: shapes that do not fit, or the latent fires in only one of the two parts.
    """
    if fires.shape != text.word.shape or chosen_on.shape != fires.shape[:1]:
        raise MetricError(f"firing of shape {tuple(fires.shape)} for a text of shape {tuple(text.word.shape)}")
    fires = fires.clone()
    fires[:, 0] = False
    if not (fires[chosen_on].any() and fires[~chosen_on].any()):
        raise MetricError(
            "a latent that fires in one half of the contexts only has no score: leave it out of the count"
        )
    part = fires[chosen_on]
    fixed = text.fixed[:, chosen_on]
    hits = (fixed & part).sum((1, 2)).float()
    scores = 2 * hits / (fixed.sum((1, 2)) + part.sum())
    best = int(scores.argmax())
    candidates = [(*text.rules[best], text.fixed[best])]
    before = torch.cat([text.word[:, :1], text.word[:, :-1]], dim=1)
    for kind, lead, word in (("token", "the token is", text.word), ("token before", "the token before is", before)):
        listed = best_words(word[chosen_on][:, 1:], part[:, 1:], len(text.words), few)
        if listed:
            names = " ".join(repr(text.words[i]) for i in listed)
            candidates.append((kind, f"{lead} {'one of ' if len(listed) > 1 else ''}{names}", _is_one(word, listed)))
    kind, rule, holds = max(candidates, key=lambda c: f1(c[2][chosen_on], part))
    said, true = holds[~chosen_on], fires[~chosen_on]
    hit = float((said & true).sum())
    return Found(
        kind=kind,
        rule=rule,
        fitted=f1(holds[chosen_on], part),
        f1=f1(said, true),
        precision=hit / max(1.0, float(said.sum())),
        recall=hit / float(true.sum()),
        holds=holds,
    )


def best_words(word: Int[Tensor, "*any"], fires: Bool[Tensor, "*any"], n_words: int, few: int) -> list[int]:
    """The at most `few` words for which "the word is one of these" has the highest F1, the most frequent hit first.

    Exact: F1 is a ratio, so the best list for a guess of the ratio is the few words with the largest gain above it, and
    the guess rises until it no longer changes (Dinkelbach 1967).
    """
    count = torch.bincount(word.flatten(), minlength=n_words).double()
    hit = torch.bincount(word[fires], minlength=n_words).double()
    total, ratio, listed = float(hit.sum()), 0.0, list[int]()
    for _ in range(50):
        gain = 2 * hit - ratio * count
        top = gain.topk(min(few, n_words))
        chosen = top.indices[top.values > 0]
        better = 2 * float(hit[chosen].sum()) / max(1.0, float(count[chosen].sum()) + total)
        if better <= ratio + 1e-12:
            break
        ratio, listed = better, sorted(chosen.tolist(), key=lambda i: -float(hit[i]))
    return listed


def _is_one(word: Int[Tensor, "context pos"], listed: list[int]) -> Bool[Tensor, "context pos"]:
    holds = torch.isin(word, torch.tensor(listed))
    holds[:, 0] = False
    return holds
