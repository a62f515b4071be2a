"""What heads attend to: on repeated random tokens, and from one named position of a sentence to another.

Scores are read from attention patterns while the model runs, layer by layer, and nothing larger than one layer's
pattern is kept. A pattern says where a head looks. It does not say that looking there changes anything: for that,
ablate the head (`labcode.circuit`) or patch it (`labcode.patching`).

Used in chapter 09.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from labcode.errors import HeadError
from labcode.metrics import Interval, bootstrap_cells
from labcode.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

Head = tuple[int, int]
KINDS = ("previous", "duplicate", "induction")


@dataclass(frozen=True)
class RandomScores:
    """Attention of every head on sequences BOS + r + r, where r is random tokens.

    Attributes:
        values: for each of `KINDS` the score of each head on each sequence, from 0 to 1.
        tokens: the sequences.
        seeds: the seed that each sequence comes from.
    """

    values: dict[str, Float[Tensor, "layer head batch"]]
    tokens: Int[Tensor, "batch pos"]
    seeds: Int[Tensor, " batch"]

    def mean(self, kind: str) -> Float[Tensor, "layer head"]:
        """The mean score over the sequences."""
        return self.values[kind].mean(-1)

    def intervals(self, kind: str, level: float = 0.95) -> list[Interval]:
        """The bootstrap interval of each head's mean over the sequences, in the order of (layer, head)."""
        return bootstrap_cells(self.values[kind].flatten(0, 1), level=level)

    def seed_means(self, kind: str) -> Float[Tensor, "layer head seed"]:
        """The mean score for each seed by itself: they should agree."""
        return torch.stack([self.values[kind][..., self.seeds == seed].mean(-1) for seed in self.seeds.unique()], -1)


def random_token_scores(
    model: TransformerBridge, length: int = 50, n: int = 4, seeds: Sequence[int] = (0, 1, 2), batch_size: int = 8
) -> RandomScores:
    """Previous-token, duplicate-token and induction score of every head on repeated random tokens.

    For a token at position p of the second half, whose first occurrence is at p - length: the duplicate score is the
    attention from p to that occurrence, the induction score the attention from p to the token *after* it. The previous
    score is the attention from p to p - 1, over both halves. Each is a mean over positions; the first token of r is
    left out of the previous score, since the start token comes before it, and many heads rest there.

    Args:
        length: tokens in r, at least 3: with fewer, the three places would not be three.
        n: sequences for each seed.
        batch_size: sequences in one pass.

    Raises:
        HeadError: sequences longer than the model's context; too few ordinary tokens to draw `length` distinct ones;
            length, n or seeds too small; a pattern with NaN.

    Source: Wang et al. 2022 (arXiv 2211.00593), appendices H and I; Olsson et al. 2022 (arXiv 2209.11895). Limits: the
    tokens are drawn evenly from the vocabulary, so most of them are rare, and no text looks like this.

    Used in chapter 09.
    """
    tokens, origin = _sequences(model, length, n, seeds)
    last = 2 * length
    everywhere, second = torch.arange(2, last + 1), torch.arange(length + 1, last + 1)

    def read(pattern: Tensor, rows: slice) -> Float[Tensor, "kind head batch"]:
        found = (
            pattern[:, :, everywhere, everywhere - 1],
            pattern[:, :, second, second - length],
            pattern[:, :, second, second - length + 1],
        )
        return torch.stack([attention.mean(-1).T for attention in found])

    scores = _read_patterns(model, tokens, read, batch_size)  # [layer kind head batch]
    return RandomScores({kind: scores[:, i] for i, kind in enumerate(KINDS)}, tokens, origin)


def position_attention(
    model: TransformerBridge, pop: Population, source: str, target: str, batch_size: int = 16
) -> Float[Tensor, "layer head batch"]:
    """Attention of every head from one named position to another, in each prompt.

    Args:
        source: where the head looks from, the query: "S2" for duplicate-token and induction heads, "END" for movers.
        target: where it looks to, the key.

    Returns:
        Attention from 0 to 1; `metrics.bootstrap_cells` with `pop.draws` gives its intervals.

    Raises:
        HeadError: an unknown position; a prompt in which the target comes after the source; a pattern with NaN.

    Used in chapters 07 to 09.
    """
    return position_attentions(model, pop, [(source, target)], batch_size)[0]


def position_attentions(
    model: TransformerBridge, pop: Population, pairs: Sequence[tuple[str, str]], batch_size: int = 16
) -> Float[Tensor, "pair layer head batch"]:
    """`position_attention` for several (source, target) in one run.

    Raises:
        HeadError: as `position_attention`.

    Used in chapters 07, 08, 10 and 12, through `labcode.evidence`.
    """
    for source, target in pairs:
        for name in (source, target):
            if name not in pop.positions:
                raise HeadError(
                    f"unknown position {name!r}: choose among {', '.join(pop.positions)}", see="unknown-position"
                )
        ahead = (pop.positions[target] > pop.positions[source]).nonzero().flatten().tolist()
        if ahead:
            raise HeadError(
                f"{target} comes after {source} in {len(ahead)} of {len(pop)} prompts, first in "
                f"{pop.prompts[ahead[0]].text!r}: no head looks ahead. Exchange the two, or take a subset of the "
                "prompts",
                see="looking-ahead",
            )
    queries, keys = (torch.stack([pop.positions[pair[i]] for pair in pairs]) for i in (0, 1))  # [pair batch]

    def read(pattern: Tensor, rows: slice) -> Float[Tensor, "pair head batch"]:
        return pattern[torch.arange(len(pattern)), :, queries[:, rows], keys[:, rows]].transpose(1, 2)

    return _read_patterns(model, pop.tokens, read, batch_size).transpose(0, 1)


def same_layer_heads(
    model: TransformerBridge, heads: Sequence[Head], exclude: Sequence[Head] = (), seed: int = 0
) -> list[Head]:
    """As many other heads, drawn at random from the same layers: a control for ablating `heads`.

    A layer that has no head left to give is replaced by the nearest one that has.

    Args:
        heads: the heads to be replaced; none of them is drawn.
        exclude: further heads that are not to be drawn, such as those of other families.

    Returns:
        The drawn heads in the order of the model, not of `heads`.

    Raises:
        HeadError: fewer other heads in the model than `heads`.

    Used in chapters 07 to 11.
    """
    taken = {*heads, *exclude}
    every = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    free = [head for head in every if head not in taken]
    if len(free) < len(heads):
        raise HeadError(
            f"{len(heads)} heads to replace, and only {len(free)} others in this model: take a smaller set",
            see="too-few-heads",
        )
    rng, drawn = random.Random(seed), []
    for layer, _ in heads:
        rng.shuffle(free)
        chosen = min(free, key=lambda head: abs(head[0] - layer))
        free.remove(chosen)
        drawn.append(chosen)
    return sorted(drawn)


def _sequences(
    model: TransformerBridge, length: int, n: int, seeds: Sequence[int]
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]:
    if length < 3 or n < 1 or not seeds:
        raise HeadError(
            f"length = {length}, n = {n}, {len(seeds)} seeds: take a length of 3 or more, and one of each",
            see="random-tokens",
        )
    if 2 * length + 1 > model.cfg.n_ctx:
        raise HeadError(
            f"twice {length} tokens and the start token are {2 * length + 1}, this model's context is "
            f"{model.cfg.n_ctx}: take a length of at most {(model.cfg.n_ctx - 1) // 2}",
            see="context-too-short",
        )
    tokenizer = model.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ordinary = [i for i in range(min(len(tokenizer), model.cfg.d_vocab)) if i not in special]
    if len(ordinary) < length:
        raise HeadError(
            f"{length} different tokens asked for, this vocabulary has {len(ordinary)} ordinary ones",
            see="vocabulary-too-small",
        )
    rows, origin = [], []
    for seed in seeds:
        rng = random.Random(seed)
        for _ in range(n):
            r = rng.sample(ordinary, length)
            rows.append([tokenizer.bos_token_id, *r, *r])
            origin.append(seed)
    return torch.tensor(rows), torch.tensor(origin)


def _read_patterns(
    model: TransformerBridge, tokens: Tensor, read: Callable[[Tensor, slice], Tensor], batch_size: int
) -> Float[Tensor, "layer ... batch"]:
    """What `read` takes from each layer's pattern [batch head query key], for the prompts in `rows` of the batch."""
    found = []
    for start in progress(range(0, len(tokens), batch_size), "attention patterns"):
        rows = slice(start, start + batch_size)
        layers: dict[int, Tensor] = {}

        def keep(pattern: Tensor, hook: Any, layer: int, rows: slice, layers: dict[int, Tensor]) -> None:
            if torch.isnan(pattern).any():
                raise HeadError(
                    f"NaN in the attention of layer {layer}: check the model's weights", see="nan-in-the-run"
                )
            layers[layer] = read(pattern, rows).float().cpu()

        hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = [
            (f"blocks.{layer}.attn.hook_pattern", partial(keep, layer=layer, rows=rows, layers=layers))
            for layer in range(model.cfg.n_layers)
        ]
        # Logits of every position would be the largest tensor of the run, and nobody reads them.
        hooks.append(("unembed.hook_in", lambda stream, hook: stream[:, -1:]))
        with torch.no_grad():
            model.run_with_hooks(tokens[rows].to(model.cfg.device), fwd_hooks=hooks)
        found.append(torch.stack([layers[layer] for layer in range(model.cfg.n_layers)]))
    return torch.cat(found, dim=-1)
