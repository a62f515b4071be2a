"""Which name was repeated, or where it first stood: telling two signals apart by exchanging them.

A head that tells the writers who the subject is can say its *name* (token signal) or its *place*, first or second of
the two (position signal). Prompts in which one of them is changed and the other kept tell which: the head's output at
END is taken from there, everything else stays (Wang et al. 2022, appendix A).

Used in chapter 08.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from labcode import prompts
from labcode.errors import PatchError
from labcode.metrics import end_logits, logit_difference

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

Head = tuple[int, int]
TOKEN = {"original": 1.0, "random": 0.0, "inverted": -1.0}
"""The names of a variant, and the value that the token signal has there in the fit."""
POSITION = {"original": 1.0, "inverted": -1.0}
"""The place of the repeated name in a variant, and the value that the position signal has there."""


SignalError = PatchError


def variant(model: TransformerBridge, pop: Population, token: str, position: str, seed: int = 0) -> Population:
    """The same prompts with another repeated name, or with the same name first in the other place, or both.

    For "When John and Mary …, John …", S John and IO Mary:

    ========  ========  =============================  ===============================================
    token     position  prompt
    ========  ========  =============================  ===============================================
    original  original  John and Mary …, John
    original  inverted  Mary and John …, John          the same name, its first mention elsewhere
    random    original  Alice and Bob …, Alice         other names, the repeated one in the same place
    random    inverted  Bob and Alice …, Alice
    inverted  original  Mary and John …, Mary          IO is the repeated one, in the place of S
    inverted  inverted  John and Mary …, Mary          `prompts.corrupt(model, pop, "swap")`
    ========  ========  =============================  ===============================================

    Returns:
        Prompts aligned with `pop` token by token. Right answers and named positions stay those of `pop`.

    Raises:
        SignalError: an unknown token or position; prompts that are corrupted already; fewer than four usable names.

    Used in chapter 08.
    """
    if token not in TOKEN or position not in POSITION:
        raise SignalError(
            f"no variant with {token!r} token and {position!r} position: choose a token among {', '.join(TOKEN)} "
            f"and a position among {', '.join(POSITION)}",
            see="unknown-variant",
        )
    if pop.corruption:
        raise SignalError(
            f"these prompts are changed already ({pop.corruption!r}): start from the clean population",
            see="corrupted-twice",
        )
    repeated, other = (pop.io_ids, pop.s_ids) if token == "inverted" else (pop.s_ids, pop.io_ids)
    if token == "random":
        repeated, other = _two_fresh_names(model, pop, seed)
    first, second = (repeated, other) if position == "original" else (other, repeated)
    tokens, rows = pop.tokens.clone(), torch.arange(len(pop))
    for place, ids in (("S1", first), ("IO", second), ("S2", repeated)):
        tokens[rows, pop.positions[place]] = ids
    strings = tuple(
        tuple(model.tokenizer.decode([i]) for i in tokens[row, :length].tolist())
        for row, length in enumerate(pop.lengths.tolist())
    )
    return replace(pop, tokens=tokens, str_tokens=strings, corruption=f"{token} token, {position} position")


def exchange(
    model: TransformerBridge, pop: Population, source: Population, heads: Sequence[Head]
) -> Float[Tensor, " batch"]:
    """The logit difference when these heads, all of them together, write at END what they write there in `source`.

    Raises:
        SignalError: no heads, or one that does not exist; prompts that do not align.

    Used in chapter 08.
    """
    cfg = model.cfg
    for layer, head in heads:
        if layer not in range(cfg.n_layers) or head not in range(cfg.n_heads):
            raise SignalError(
                f"no head {layer}.{head}: this model has {cfg.n_layers} layers of {cfg.n_heads} heads",
                see="no-such-part",
            )
    if not heads:
        raise SignalError("no heads to exchange: give at least one", see="nothing-chosen")
    if pop.lengths.tolist() != source.lengths.tolist():
        raise SignalError(
            "prompts of different lengths do not align: make the source with `variant` or `corrupt`",
            see="misaligned-prompts",
        )
    names = sorted({f"blocks.{layer}.attn.hook_z" for layer, _ in heads})
    rows, end = torch.arange(len(pop)), pop.end
    with torch.no_grad():
        _, stored = model.run_with_cache(
            source.tokens.to(cfg.device), names_filter=names, stop_at_layer=1 + max(layer for layer, _ in heads)
        )

    def put(z: Float[Tensor, "batch pos head d_head"], hook: Any) -> Tensor:
        z = z.clone()
        for layer, head in heads:
            if hook.name == f"blocks.{layer}.attn.hook_z":
                z[rows, end, head] = stored[hook.name][rows, end, head]
        return z

    with model.hooks(fwd_hooks=[(name, put) for name in names]):
        return logit_difference(end_logits(model, pop, batch_size=len(pop)), pop)


def fit(values: Mapping[tuple[str, str], Float[Tensor, " batch"]]) -> dict[str, Float[Tensor, " batch"]]:
    """The least-squares line, constant + a · position + b · token, of each prompt.

    Args:
        values: for each (token, position) the logit difference of every prompt.

    Returns:
        "position", "token" and "constant" for each prompt, in the unit of the values; since the fit is linear, their
        means are the fit of the means. "residual" is the root mean square of what each prompt's line misses.

    Raises:
        SignalError: too few variants to tell the three apart.

    Used in chapter 08.
    """
    design = torch.tensor([[POSITION[position], TOKEN[token], 1.0] for token, position in values])
    if len(design) == 0 or int(torch.linalg.matrix_rank(design)) < 3:
        raise SignalError(
            f"{len(values)} variants cannot tell position, token and constant apart: take all six", see="six-variants"
        )
    table = torch.stack([value.float() for value in values.values()])  # [variant batch]
    weights = torch.linalg.lstsq(design, table).solution
    missed = (table - design @ weights).square().mean(0).sqrt()
    return dict(zip(("position", "token", "constant"), weights, strict=True)) | {"residual": missed}


def _two_fresh_names(model: TransformerBridge, pop: Population, seed: int) -> tuple[Tensor, Tensor]:
    known, _ = prompts.single_token_names(model)
    ids = [prompts.token_id(model, " " + name) for name in known]
    if len(ids) < 4:
        raise SignalError(f"random names need four usable names, this tokenizer has {len(ids)}", see="too-few-names")
    rng = random.Random(seed)
    drawn = [
        rng.sample([i for i in ids if i not in (int(io), int(s))], 2)
        for io, s in zip(pop.io_ids, pop.s_ids, strict=True)
    ]
    return torch.tensor(drawn).unbind(-1)  # type: ignore[return-value]
