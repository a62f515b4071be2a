"""States of a model: which heads, at which named positions, keep their own output.

Used in chapter 10, through `labcode.circuit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from labcode.patching import PatchError

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

Node = tuple[int, int, str]
"""Layer, head, and the named position at which it acts, or "all"."""


@dataclass(frozen=True)
class Keep:
    """Only `nodes` keep their own output; every other head, at every position but the first, gets the mean.

    Used in chapter 10.
    """

    nodes: Sequence[Node] = ()


@dataclass(frozen=True)
class Out:
    """Only `nodes` get the mean; everything else keeps its own output. Used in chapter 10."""

    nodes: Sequence[Node] = ()


State = Keep | Out


def check(model: TransformerBridge, pop: Population, states: Sequence[State]) -> None:
    """Raise where `states` cannot be run.

    Raises:
        PatchError: no states, or a node whose head or position does not exist.
    """
    if not states:
        raise PatchError("no states to run: give at least one Keep(nodes) or Out(nodes)", see="states")
    cfg = model.cfg
    for layer, head, place in {node for state in states for node in state.nodes}:
        if layer not in range(cfg.n_layers) or head not in range(cfg.n_heads):
            raise PatchError(
                f"no head {layer}.{head}: this model has {cfg.n_layers} layers of {cfg.n_heads} heads",
                see="no-such-part",
            )
        if place != "all" and place not in pop.positions:
            raise PatchError(
                f"{layer}.{head} at {place!r}: no such position, choose 'all' or among {', '.join(pop.positions)}",
                see="unknown-position",
            )


def kept_heads(
    pop: Population, states: Sequence[State], n_layers: int, n_heads: int
) -> Int[Tensor, "layer state batch pos"]:
    """Which heads keep their own output, bit h for head h. The first position and what lies after END are 0."""
    n_prompts, n_pos = pop.tokens.shape
    places = torch.arange(n_pos)
    real = (places > 0) & (places <= pop.end[:, None])  # [batch pos]
    here = {name: real & (places == at[:, None]) for name, at in pop.positions.items()} | {"all": real}
    kept = torch.zeros(n_layers, len(states), n_prompts, n_pos, dtype=torch.long)
    for number, state in enumerate(states):
        for layer, head, place in state.nodes:
            kept[layer, number] |= here[place].long() << head
    out = torch.tensor([isinstance(state, Out) for state in states])
    everyone = real.long() * ((1 << n_heads) - 1)
    return torch.where(out[:, None, None], everyone & ~kept, kept)
