"""Ablation: take heads out of a run, and see what the answer is worth without them.

What "out" means is a choice, and results depend on it. What a head writes (its z) is replaced by

* "zero": nothing. Simple, but a state that the model never sees: what the head writes whatever the prompt goes too.
* "mean": its average over all reference prompts and all their positions but the first. It keeps what the head always
  writes, and nothing about the place in the sentence.
* "template-mean": its average at the same position over the reference prompts of the same template, as in Wang et al.
  2022, section 2.1, where the reference holds three unrelated names. It keeps everything but who is who.
* "resample": its value at the same position in one other prompt of the same template, drawn at random. A state that the
  model does see, at the price of that prompt's noise. All heads take theirs from the same prompt.

Used in chapters 05, 07 to 10.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn.functional import pad

from labcode.metrics import end_logits, logit_difference
from labcode.patching import PatchError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

How = Literal["zero", "mean", "template-mean", "resample"]
Head = tuple[int, int]


def ablate(
    model: TransformerBridge,
    pop: Population,
    heads: Sequence[Head] = (),
    how: How = "zero",
    *,
    mlps: Sequence[int] = (),
    at: str = "all",
    reference: Population | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> Float[Tensor, " batch"]:
    """The logit difference of each prompt with heads and MLPs ablated, all of them together.

    Args:
        heads: (layer, head) each.
        how: what takes the place of their output, see above.
        mlps: layers whose MLP output is ablated in the same way.
        at: "all" positions or one named position. Only "zero" changes the first position too: its token is the same in
            every prompt, so there is nothing to average out.
        reference: the prompts that stand for "no information", such as `corrupt(model, pop, "abc")`. "zero" needs none.
        seed: of the draw for "resample".

    Returns:
        Logit differences, to be compared with those of `ablate(model, pop)`, which takes nothing out.

    Raises:
        PatchError: an unknown head, layer, position or `how`; no reference where one is needed, or none in it that has
            a prompt's template.

    Limits: other heads may take over what was taken out (Wang et al. 2022, section 3.4), so a small drop does not mean
    a small role.

    Used in chapters 05, 09 and 10.
    """
    outputs = _outputs(model, heads, mlps)
    if how not in ("zero", "mean", "template-mean", "resample"):
        raise PatchError(
            f"unknown ablation {how!r}: choose 'zero', 'mean', 'template-mean' or 'resample'", see="unknown-ablation"
        )
    if at != "all" and at not in pop.positions:
        raise PatchError(
            f"unknown position {at!r}: choose 'all' or among {', '.join(pop.positions)}", see="unknown-position"
        )
    if how != "zero" and reference is None:
        raise PatchError(
            f"{how!r} needs a reference population, such as corrupt(model, pop, 'abc')", see="no-reference"
        )
    baseline = None
    if reference is not None and how != "zero":
        stored = _outputs_of(model, reference, outputs, batch_size)
        baseline = Baseline(stored, reference, _partners(pop, reference, how, seed))
    results = []
    for first in range(0, len(pop), batch_size):
        index = range(first, min(first + batch_size, len(pop)))
        piece = pop.subset(index)
        columns = torch.arange(piece.tokens.shape[1])
        start = 0 if how == "zero" else 1
        where = columns >= start if at == "all" else columns == piece.positions[at][:, None]  # [(batch) pos]
        hooks = []
        for name, chosen in outputs.items():
            value = torch.tensor(0.0) if baseline is None else baseline.values(name, index, len(columns))
            hooks.append((name, partial(_replace, heads=chosen, where=where, value=value)))
        with model.hooks(fwd_hooks=hooks):
            results.append(logit_difference(end_logits(model, piece, batch_size), piece))
    return torch.cat(results)


class Baseline:
    """What takes the place of ablated outputs.

    Args:
        stored: for each hook the outputs of the reference prompts, [batch pos ... d].
        partners: for each ablated prompt, the reference prompts whose outputs are averaged, position by position; None
            to average over all prompts and positions.
    """

    def __init__(self, stored: dict[str, Tensor], reference: Population, partners: list[list[int]] | None) -> None:
        self.stored, self.partners = stored, partners
        columns = torch.arange(reference.tokens.shape[1])
        self.counted = (columns > 0) & (columns < reference.lengths[:, None])  # [batch pos]

    def values(self, name: str, prompts: Sequence[int], n_pos: int) -> Tensor:
        """Replacements for some of the ablated prompts: [batch pos ... d], or [... d] where they are all the same."""
        stored = self.stored[name]
        if self.partners is None:
            return stored[self.counted].mean(0)
        rows = torch.stack([stored[self.partners[prompt]].mean(0) for prompt in prompts])
        missing = max(0, n_pos - rows.shape[1])  # columns that are padding in each of these prompts
        return pad(rows, (0, 0) * (rows.ndim - 2) + (0, missing))[:, :n_pos]


def _outputs(model: TransformerBridge, heads: Sequence[Head], mlps: Sequence[int]) -> dict[str, list[int] | None]:
    """Names of the hooks, with the heads that are ablated at each; None for an MLP."""
    cfg = model.cfg
    heads_at: dict[str, list[int]] = {}
    for layer, head in sorted(set(heads)):
        if layer not in range(cfg.n_layers) or head not in range(cfg.n_heads):
            raise PatchError(
                f"no head {layer}.{head}: this model has {cfg.n_layers} layers of {cfg.n_heads} heads",
                see="no-such-part",
            )
        heads_at.setdefault(f"blocks.{layer}.attn.hook_z", []).append(head)
    for layer in mlps:
        if f"blocks.{layer}.hook_mlp_out" not in model.hook_dict:
            raise PatchError(
                f"no MLP in layer {layer}: this model has {cfg.n_layers} layers, counted from 0", see="no-such-part"
            )
    return {**heads_at, **{f"blocks.{layer}.hook_mlp_out": None for layer in mlps}}


def _outputs_of(
    model: TransformerBridge, pop: Population, outputs: dict[str, list[int] | None], batch_size: int
) -> dict[str, Tensor]:
    """The outputs in a plain run, [batch pos head d_head] or [batch pos d_model], padded to one width."""
    stored: dict[str, list[Tensor]] = {name: [] for name in outputs}
    width = pop.tokens.shape[1]
    above = 1 + max((int(name.split(".")[1]) for name in outputs), default=0)
    for piece in pop.chunks(batch_size):
        with torch.no_grad():
            _, cache = model.run_with_cache(
                piece.tokens.to(model.cfg.device), names_filter=list(outputs), stop_at_layer=above
            )
        for name, heads in outputs.items():
            kept = cache[name] if heads is None else cache[name][:, :, heads]
            stored[name].append(pad(kept, (0, 0) * (kept.ndim - 2) + (0, width - kept.shape[1])))
    return {name: torch.cat(pieces) for name, pieces in stored.items()}


def _partners(pop: Population, reference: Population, how: str, seed: int) -> list[list[int]] | None:
    """For each prompt, the reference prompts that stand in for it; None where all do."""
    if how == "mean":
        return None
    groups: dict[tuple[object, ...], list[int]] = {}
    for number in range(len(reference)):
        groups.setdefault(shape_of(reference, number), []).append(number)
    rng, partners = random.Random(seed), []
    for number, prompt in enumerate(pop.prompts):
        same = groups.get(shape_of(pop, number), [])
        if how == "resample":
            same = [other for other in same if reference.str_tokens[other] != pop.str_tokens[number]]
            same = [rng.choice(same)] if same else []
        if not same:
            raise PatchError(
                f"no other reference prompt has the template of {prompt.text!r}: take reference prompts of the same "
                "templates, for instance corrupt(model, pop, 'abc')",
                see="no-resample-partner",
            )
        partners.append(same)
    return partners


def shape_of(pop: Population, number: int) -> tuple[object, ...]:
    """What prompts must share to be aligned: the template, and S2 and END at the same positions."""
    prompt = pop.prompts[number]
    template = prompt.text if prompt.template < 0 else prompt.template
    return template, int(pop.positions["S2"][number]), int(pop.end[number])


def _replace(activation: Tensor, hook: Any, heads: list[int] | None, where: Tensor, value: Tensor) -> Tensor:
    if heads is None:
        return torch.where(where[..., None], value, activation)
    changed = activation.clone()
    changed[:, :, heads] = torch.where(where[..., None, None], value, activation[:, :, heads])
    return changed
