"""Dashboards of latents: for each one where it fires, how often, what it promotes, and what lies near it.

A `Card` holds what is shown of one latent, as text and numbers. `labcode.latentpage` makes a page of cards.

Top contexts alone flatter a latent: at its peak almost any latent looks like something. So a card also shows contexts
from the middle and from the low end of its activations.

Used in chapter 15.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from labcode.errors import MetricError
from labcode.sae import latents
from labcode.wording import masked, masked_tokens

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.sae.activations import Activations
    from labcode.sae.latents import Codes

BEFORE, AFTER = 12, 5  # tokens shown around the one that is looked at
TOP, BINS = 6, 12
LOWER = (0.75, 0.5, 0.25)  # quantiles of the activations that are not zero
EACH = 2  # contexts for each of them


@dataclass(frozen=True)
class Snippet:
    """A piece of a context.

    Attributes:
        strength: each token's activation as a share of the latent's largest one.
        at: which token it is shown for. value: the activation there.
    """

    tokens: tuple[str, ...]
    strength: tuple[float, ...]
    at: int
    value: float


@dataclass(frozen=True)
class Card:
    """What a dashboard shows of one latent.

    Attributes:
        density: share of tokens at which it fires. peak: largest activation.
        counts: how many activations lie in each of `BINS` equal bins from 0 to the peak.
        words: tokens at its strongest activations, the most frequent first.
        top: contexts with the strongest activations. lower: a name and contexts for each quantile of `LOWER`.
        promoted, suppressed: tokens and logits per unit of activation.
        neighbours: latents with the nearest decoder directions, and cosines.
        rule, f1: from `labcode.readable`, where a rule was fitted.
    """

    latent: int
    density: float
    peak: float
    counts: tuple[int, ...]
    words: tuple[str, ...]
    top: tuple[Snippet, ...]
    lower: tuple[tuple[str, tuple[Snippet, ...]], ...]
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    neighbours: tuple[tuple[int, float], ...]
    rule: str = ""
    f1: float | None = None


def card(
    model: TransformerBridge,
    sae: Any,
    codes: Codes,
    latent: int,
    used: Bool[Tensor, " d_vocab"] | None = None,
    rule: str = "",
    f1: float | None = None,
) -> Card:
    """The dashboard of one latent.

    Args:
        used: tokens among which the promoted and suppressed ones are chosen; the others are rarely trained ones.

    Raises:
        SaeError: no such latent.
        MetricError: the latent does not fire on this text, so there is nothing to show.

    Used in chapter 15.
    """
    acts = codes.of(latent)  # [context pos]
    fired = acts > 0
    if not fired.any():
        raise MetricError(
            f"latent {latent} does not fire on these {len(acts)} contexts: take more text, or leave it out",
            see="silent-latent",
        )
    peak = float(acts.max())

    def snippets(where: Sequence[tuple[int, int]]) -> tuple[Snippet, ...]:
        return tuple(_snippet(model, codes, acts, peak, context, position) for context, position in where)

    high, low = latents.promoted(model, sae, latent, used)
    strongest = best_of_each_context(acts, 20)
    words = Counter(model.tokenizer.decode([int(codes.tokens[place])]) for place in strongest)
    return Card(
        latent=latent,
        density=float(fired[:, 1:].float().mean()),
        peak=peak,
        counts=tuple(torch.histc(acts[fired], bins=BINS, min=0, max=peak).int().tolist()),
        words=tuple(masked(word) for word, _ in words.most_common(4)),
        top=snippets(strongest[:TOP]),
        lower=tuple((f"{q:.0%} quantile", snippets(around(acts, q, EACH))) for q in LOWER),
        promoted=tuple((masked(model.tokenizer.decode([i])), value) for i, value in high),
        suppressed=tuple((masked(model.tokenizer.decode([i])), value) for i, value in low),
        neighbours=tuple(latents.neighbours(sae, latent, 5)),
        rule=rule,
        f1=f1,
    )


def best_of_each_context(acts: Float[Tensor, "context pos"], n: int) -> list[tuple[int, int]]:
    """The strongest token of each of the `n` contexts where a latent is strongest: (context, position).

    One place for each context, since a latent that fires through a whole text would fill the list with one text.

    Used in chapter 15, through `dashboard`.
    """
    value, position = acts.max(dim=-1)
    order = value.argsort(descending=True, stable=True)[:n].tolist()
    return [(i, int(position[i])) for i in order if value[i] > 0]


def around(acts: Float[Tensor, "context pos"], quantile: float, n: int) -> list[tuple[int, int]]:
    """Up to `n` places, in different contexts, whose activation is nearest to a quantile of those that are not zero.

    Used in chapter 15, through `dashboard`.
    """
    places = (acts > 0).nonzero()
    values = acts[acts > 0]
    order = (values - values.quantile(quantile)).abs().argsort(stable=True)
    found: dict[int, int] = {}
    for context, position in places[order].tolist():
        found.setdefault(context, position)
        if len(found) == n:
            break
    return list(found.items())


def codes_of(acts: Activations, sae: Any, tokens: Tensor) -> Codes:
    """Codes from activations that were collected already; vectors that were left out as massive have none.

    Used in chapter 15.
    """
    k = min(sae.cfg.d_sae, int(getattr(sae.cfg, "k", 0)) or 128)
    values, index = torch.zeros(*tokens.shape, k), torch.zeros(*tokens.shape, k, dtype=torch.int32)
    start = 0
    for piece in acts.values.split(4096):
        with torch.no_grad():
            top = sae.encode(piece.float()).topk(k, dim=-1)
        place = acts.context[start : start + len(piece)], acts.position[start : start + len(piece)]
        values[place], index[place] = top.values, top.indices.to(torch.int32)
        start += len(piece)
    return latents.Codes(tokens, values, index, sae.cfg.d_sae)


def _snippet(model: Any, codes: Codes, acts: Tensor, peak: float, context: int, position: int) -> Snippet:
    window = slice(max(0, position - BEFORE), position + AFTER + 1)
    ids = codes.tokens[context, window].tolist()
    return Snippet(
        tokens=masked_tokens([model.tokenizer.decode([i]) for i in ids]),
        strength=tuple(round(value / peak, 3) for value in acts[context, window].tolist()),
        at=position - window.start,
        value=float(acts[context, position]),
    )
