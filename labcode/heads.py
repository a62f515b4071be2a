"""Heads: what they are called, what they attend to, and what their OV circuits do to a name.

Attention is read from patterns while the model runs, layer by layer, and nothing larger than one layer's pattern is
kept. A pattern says where a head looks. It does not say that looking there changes anything: for that, ablate the head
(`labcode.circuit`) or patch it (`labcode.patching`).

The OV circuit of a head is W_V W_O: what it would write if all its attention rested on one token. It is a property of
the weights, apart from the stream that it is fed with, so it says what a head *can* do. Where it looks is the other
half.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from labcode import prompts
from labcode.errors import HeadError
from labcode.inputs import guard
from labcode.metrics import Interval, bootstrap_cells
from labcode.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

Head = tuple[int, int]
"""Layer and head, both counted from 0: (9, 6) is 9.6."""
Node = tuple[int, int, str]
"""A head at a named position: (9, 6, "END")."""
KINDS = ("previous", "duplicate", "induction")


def check_heads(model: TransformerBridge, heads: Iterable[Head], n_heads: int = 0) -> list[Head]:
    """The heads as a list.

    Args:
        n_heads: how many a layer has, where key and value heads are meant.

    Raises:
        HeadError: one that this model does not have.
    """
    checked, n_layers, n_heads = list(heads), model.cfg.n_layers, n_heads or model.cfg.n_heads
    for layer, head in checked:
        if layer not in range(n_layers) or head not in range(n_heads):
            raise HeadError(f"no head {layer}.{head}: this model has {n_layers} layers of {n_heads} heads")
    return checked


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

    def intervals(self, kind: str) -> list[Interval]:
        """The bootstrap interval of each head's mean over the sequences, in the order of (layer, head)."""
        return bootstrap_cells(self.values[kind].flatten(0, 1), span=(0, 1))


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
        Attention from 0 to 1; `metrics.bootstrap` with `pop.draws` and a `span` of (0, 1) gives the interval of a head.

    Raises:
        HeadError: an unknown position; a prompt in which the target comes after the source; a pattern with NaN.
    """
    return position_attentions(model, pop, [(source, target)], batch_size)[0]


def position_attentions(
    model: TransformerBridge, pop: Population, pairs: Sequence[tuple[str, str]], batch_size: int = 16
) -> Float[Tensor, "pair layer head batch"]:
    """`position_attention` for several (source, target) in one run.

    Raises:
        HeadError: as `position_attention`.
    """
    if not pairs:
        raise HeadError("no positions to look from and to: give at least one pair, such as ('END', 'IO')")
    for source, target in pairs:
        for name in (source, target):
            if name not in pop.positions:
                raise HeadError(f"unknown position {name!r}: choose among {', '.join(pop.positions)}")
        ahead = (pop.positions[target] > pop.positions[source]).nonzero().flatten().tolist()
        if ahead:
            raise HeadError(
                f"{target} comes after {source} in {len(ahead)} of {len(pop)} prompts, first in "
                f"{pop.prompts[ahead[0]].text!r}: no head looks ahead. Exchange the two, or take a subset of the "
                "prompts"
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
    """
    taken = {*check_heads(model, heads), *check_heads(model, exclude)}
    every = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    free = [head for head in every if head not in taken]
    if len(free) < len(heads):
        raise HeadError(f"{len(heads)} heads to replace, and only {len(free)} others in this model: take a smaller set")
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
        raise HeadError(f"length = {length}, n = {n}, {len(seeds)} seeds: take a length of 3 or more, and one of each")
    if 2 * length + 1 > model.cfg.n_ctx:
        raise HeadError(
            f"twice {length} tokens and the start token are {2 * length + 1}, this model's context is "
            f"{model.cfg.n_ctx}: take a length of at most {(model.cfg.n_ctx - 1) // 2}"
        )
    tokenizer = model.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ordinary = [i for i in range(min(len(tokenizer), model.cfg.d_vocab)) if i not in special]
    if len(ordinary) < length:
        raise HeadError(f"{length} different tokens asked for, this vocabulary has {len(ordinary)} ordinary ones")
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
            layers[layer] = read(pattern, rows).float()

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


@dataclass(frozen=True)
class CopyScores:
    """Where a name comes among all tokens, by what each head writes on reading it; 0 is the first place.

    Attributes:
        ranks: of the name, by what the head writes. negated: by the opposite of what it writes.
        names: the names that were read.
    """

    ranks: Int[Tensor, "layer head name"]
    negated: Int[Tensor, "layer head name"]
    names: tuple[str, ...]

    def copies(self, k: int = 5) -> Float[Tensor, "layer head"]:
        """The copy score: the share of names that come among the first `k` tokens."""
        return (self.ranks < k).float().mean(-1)


def copy_scores(model: TransformerBridge, n: int | Sequence[str] | None = 24, seed: int = 0) -> CopyScores:
    """Whether each head, reading a name, would write that name: weights only, no sentence.

    A name is fed in as it stands after the first block, behind the start token; that stream goes through the norm and
    the OV circuit of each head, and what comes out through the final norm and the unembedding.

    Args:
        n: so many of the book's names, drawn at random; None for all, or the names themselves. All heads and names
            together cost a minute.

    Raises:
        HeadError: no names.

    Source: Wang et al. 2022 (arXiv 2211.00593), section 3.1. Limits: the paper reads its names within sentences, we
    by themselves; and a head deep in a model reads a stream that has changed since the first block, so a low score
    can mean that it expects other input (see `ov_ranks`).
    """
    known, _ = prompts.single_token_names(model)
    if n is None:
        names = known
    else:
        names = random.Random(seed).sample(known, min(n, len(known))) if isinstance(n, int) else list(n)
    if not names:
        raise HeadError("no names to read: take at least one")
    ids = torch.tensor([prompts.token_id(model, " " + name) for name in names])
    stream = name_streams(model, ids)
    found = [ov_ranks(model, layer, stream, ids) for layer in progress(range(model.cfg.n_layers), "OV circuits")]
    ranks, negated = (torch.stack(one) for one in zip(*found, strict=True))
    return CopyScores(ranks, negated, tuple(names))


def name_streams(model: TransformerBridge, ids: Int[Tensor, " name"]) -> Float[Tensor, "name d_model"]:
    """The residual stream after the first block, at each token, read by itself behind the start token."""
    start = torch.full_like(ids, model.tokenizer.bos_token_id)
    hook = "blocks.0.hook_resid_post"
    with torch.no_grad():
        tokens = torch.stack([start, ids], dim=1).to(model.cfg.device)
        _, cache = model.run_with_cache(tokens, names_filter=hook, return_type=None)
    return cache[hook][:, 1].float()


def ov_ranks(
    model: TransformerBridge, layer: int, stream: Float[Tensor, "batch d_model"], ids: Int[Tensor, " batch"]
) -> tuple[Int[Tensor, "head batch"], Int[Tensor, "head batch"]]:
    """The place of the token `ids` among all tokens, by what each head of a layer writes on reading `stream`.

    Args:
        stream: before the layer's norm. What a head really reads is the stream before its own layer.

    Returns:
        Places counted from 0, by what the head writes and by its opposite. Tokens that tie do not count as ahead.

    Raises:
        HeadError: a layer that does not exist, or another number of streams than of tokens.

    Limits: value biases belong to no token and are left out, as compatibility mode folds them away.
    """
    block, cfg = model.blocks[layer], model.cfg
    group = cfg.n_heads // (cfg.n_key_value_heads or cfg.n_heads)
    with torch.no_grad():
        read = block.ln1(stream.to(cfg.device)[:, None])[:, 0]  # [batch d_model]
        values = block.attn.W_V.repeat_interleave(group, dim=0) if group > 1 else block.attn.W_V
        written = torch.einsum("bm,hmd,hdn->hbn", read, values, block.attn.W_O)
        out = model.ln_final(written.flatten(0, 1)[:, None])[:, 0]
        push = (out @ model.W_U).unflatten(0, (cfg.n_heads, len(ids)))  # [head batch d_vocab]
    bias = model.b_U.detach()
    column = ids[None, :, None].expand(cfg.n_heads, -1, 1)
    places = [(logits > logits.gather(-1, column)).sum(-1) for logits in (push + bias, bias - push)]
    return places[0], places[1]


guard(globals(), HeadError)
