"""Chapter 16: contexts for a dashboard, a rule that learns by heart, and latents that fire on repeated words."""

from __future__ import annotations

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting
from labcode.latents import repeated
from labcode.readable import f1


def _top(values: Tensor, n: int, *, first: int = 1, ascending: bool = False) -> Tensor:
    """[n 2]: context and position of the strongest token of a context, for the n strongest contexts."""
    highest, where = values[:, first:].max(-1)
    contexts = highest.argsort(descending=not ascending)[:n]
    return torch.stack([contexts, where[contexts] + first], -1)


def _top_tokens(values: Tensor, n: int) -> Tensor:
    """[n 2]: the n strongest tokens, of whatever context."""
    later = values[:, 1:]
    at = later.flatten().topk(n).indices
    return torch.stack([at // later.shape[1], at % later.shape[1] + 1], -1)


def _firing(setting: Setting) -> list[tuple[Tensor, int]]:
    """Values with several strong ones in one context, and the largest of all at the start token."""
    cases = []
    for seed, n in ((0, 4), (1, 3)):
        values = (setting.random(9, 14, seed=seed) - 0.3).relu()
        values[5, 3], values[5, 9] = 5.0, 4.5
        values[:, 0] = 6 + setting.random(9, seed=seed + 10).abs()
        cases.append((values, n))
    return cases


def _list_of(tokens: Tensor, fires: Tensor, part: Tensor, few: int, *, first: int = 1) -> Tensor:
    """The `few` tokens on which it fires most often, of those where it fires at least half the time."""
    text, fired = tokens[part, first:], fires[part, first:]
    n = int(tokens.max()) + 1
    seen, hit = (torch.bincount(ids, minlength=n) for ids in (text.flatten(), text[fired]))
    best = hit.masked_fill(2 * hit < seen, 0).topk(min(few, n))
    return best.indices[best.values > 0]


def _scores(
    tokens: Tensor,
    fires: Tensor,
    chosen: Tensor,
    few: int,
    *,
    listed: Tensor | None = None,
    first: int = 1,
) -> dict[str, float]:
    """F1 of the list on the contexts that chose it and on the others, or with one thing wrong."""
    listed = _list_of(tokens, fires, chosen, few) if listed is None else listed
    says, true = torch.isin(tokens, listed)[:, first:], fires[:, first:]
    return {name: f1(says[part], true[part]) for name, part in (("chosen", chosen), ("other", ~chosen))}


def _text(setting: Setting) -> list[tuple[Tensor, Tensor, Tensor, int]]:
    """A text with frequent and rare tokens; the latent likes a third of them, among them the one that starts texts.

    The seeds are chosen so that no two tokens are hit equally often where the list is cut.
    """
    cases = []
    for seed, few in ((10, 3), (3, 40)):
        tokens = (10 * setting.random(12, 40, seed=seed).abs()).long()
        tokens[:, 0] = 3
        chance = torch.where(tokens % 3 == 0, 0.85, 0.15)
        fires = torch.special.ndtr(setting.random(12, 40, seed=seed + 10)) < chance
        fires[:, 0] = False
        cases.append((tokens, fires, torch.arange(12) % 2 == 0, few))
    return cases


def _gap(fired: Tensor, again: Tensor, new: Tensor) -> Tensor:
    """[latent]: how often latents fire at the first kind of place, less how often at the second."""
    return fired[again].double().mean(0) - fired[new].double().mean(0)


def _again(tokens: Tensor) -> Tensor:
    return repeated(tokens)


def _anywhere(tokens: Tensor) -> Tensor:
    """Whether the token stands more than once in its context."""
    return (tokens[:, :, None] == tokens[:, None, :]).sum(-1) > 1


def _in_the_text(tokens: Tensor) -> Tensor:
    return repeated(tokens.reshape(1, -1)).view_as(tokens)


def _turned(fired: Tensor, tokens: Tensor, counted: Tensor) -> Tensor:
    """How often it is a repetition where the latent fires, less how often it is none."""
    firing = (fired & counted[..., None]).double()
    share = (firing * _again(tokens)[..., None]).sum((0, 1)) / firing.sum((0, 1)).clamp(min=1)
    return share - (1 - share)


def _words(setting: Setting) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Three latents and some noise: one for repetitions, one for first occurrences, one for frequent words."""
    cases = []
    for seed in (0, 1):
        tokens = 1 + (12 * setting.random(8, 25, seed=seed).abs()).long()
        tokens[:, 0] = 0
        again = repeated(tokens)[..., None]
        chance = torch.full((8, 25, 5), 0.2)
        chance[..., 0:1] += 0.6 * again
        chance[..., 1:2] += 0.5 * ~again
        chance[..., 2:3] += 0.5 * (tokens < 8)[..., None]
        fired = torch.special.ndtr(setting.random(8, 25, 5, seed=seed + 10)) < chance
        fired[:, 0] = False
        counted = tokens % 4 > 0
        cases.append((fired, tokens, counted))
    return cases


EXERCISES = [
    Exercise(
        number="16.1",
        what="a context and a position in each row",
        dims="n 2",
        near=1e-06,
        takes=("values", "n"),
        cases=_firing,
        right=_top,
        says="One token from each context, the strongest first, and no start token. These are the contexts that a "
        "dashboard shows, and the part of the firing that flatters.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda values, n: _top(values, n, first=0),
                says="The start token is among them. The SAE was not trained on position 0, and what a plain encoder "
                "gives there means nothing: leave it out, or it fills the dashboard.",
            ),
            Mistake(
                gives=_top_tokens,
                says="You take the strongest tokens, and some context comes twice. One sentence with several strong "
                "tokens would fill the dashboard: take one token from each context.",
            ),
            Mistake(
                gives=lambda values, n: _top(values, n, ascending=True),
                says="You take the weakest contexts. argsort starts with the smallest: give descending=True.",
            ),
            Mistake(
                gives=lambda values, n: _top(values, n) - torch.tensor([0, 1]),
                says="Your positions are one too small. Where position 0 was cut off, places count from position 1: "
                "add it again.",
            ),
        ],
    ),
    Exercise(
        number="16.2",
        what="an F1",
        takes=("tokens", "fires", "chosen", "few"),
        cases=_text,
        right=_scores,
        says="The list is made on one part and scored on both. Only the second score says whether the latent was "
        "understood; the first rises with every token that the list learns by heart.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda tokens, fires, chosen, few: _scores(
                    tokens, fires, chosen, few, listed=_list_of(tokens, fires, torch.ones_like(chosen), few)
                ),
                says="Your list is made of the whole text. Then the other part has helped to choose it, and is no "
                "test: count hits in the contexts that `chosen` marks.",
            ),
            Mistake(
                gives=lambda tokens, fires, chosen, few: _scores(
                    tokens, fires, chosen, few, listed=_list_of(tokens, fires, ~chosen, few)
                ),
                says="Your list is made on the contexts that should test it. `chosen` is true for those that choose.",
            ),
            Mistake(
                gives=lambda tokens, fires, chosen, few: {
                    name: _scores(tokens, fires, chosen, few)[other]
                    for name, other in (("chosen", "other"), ("other", "chosen"))
                },
                says="The two scores are exchanged. `chosen` is the score on the contexts that made the list.",
            ),
            Mistake(
                gives=lambda tokens, fires, chosen, few: _scores(tokens, fires, chosen, few, first=0),
                says="The start token is counted. It has no code, so no latent can fire there, but its id may be on "
                "the list: leave out position 0.",
            ),
        ],
    ),
    Exercise(
        number="16.3",
        what="differences of two rates",
        dims="latent",
        takes=("fired", "tokens", "counted"),
        cases=_words,
        right=lambda fired, tokens, counted: _gap(fired, _again(tokens) & counted, ~_again(tokens) & counted),
        says="Two rates of the same latent, at words that came before in their context and at words that are new. It "
        "needs no prompt and no names; chapter 17 starts from such a number.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=_turned,
                says="You ask how many of the firings are repetitions. That depends on how often words are repeated at "
                "all. Asked is how many of the repetitions make the latent fire, and how many of the first ones.",
            ),
            Mistake(
                gives=lambda fired, tokens, counted: _gap(
                    fired, _in_the_text(tokens) & counted, ~_in_the_text(tokens) & counted
                ),
                says="A word counts as repeated for you if it stood in an earlier context. The model reads each "
                "context by itself: start afresh in every row.",
            ),
            Mistake(
                gives=lambda fired, tokens, counted: _gap(
                    fired, _anywhere(tokens) & counted, ~_anywhere(tokens) & counted
                ),
                says="You call a word repeated if it stands twice in its context, the first time too. At the first "
                "time the model can't know: only earlier positions count.",
            ),
            Mistake(
                gives=lambda fired, tokens, counted: _gap(fired, _again(tokens), ~_again(tokens)),
                says="You count all tokens. Function words repeat all the time and would carry the result: only places "
                "where `counted` is true.",
            ),
        ],
    ),
]
