"""What is known of every head, measured once: where it looks, what it costs to corrupt it, what it writes.

One table for the whole model, per prompt, so that `labcode.families` can apply its criteria without running anything.
Costs are differences of logit differences, in nats: positive where the head works for the right name.

Used in chapters 07, 08, 10 and 12, through `labcode.families`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from labcode import prompts
from labcode.heads import position_attentions
from labcode.metrics import bootstrap_cells
from labcode.patching import sweep
from labcode.paths import path_patch
from labcode.residual import decompose
from labcode.store import prompt_key, remember

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

Head = tuple[int, int]

LOOKS = (("S1+1", "S1"), ("S2", "S1"), ("S2", "S1+1"), ("END", "IO"), ("END", "S1"), ("END", "S2"))
"""From where to where attention is read: those pairs of positions that some family of the literature is known for."""


def measured(model: TransformerBridge, n: int, seed: int, looks: float, least: float) -> dict[str, Tensor]:
    """`measure` on `n` prompts and their three-names twins, remembered, with the draw of each prompt as `draws`.

    Used in chapters 07, 08, 10 and 12, through `labcode.families`.
    """
    pop = prompts.population(model, n=n, seed=seed)
    corrupted = prompts.corrupt(model, pop, "abc", seed=seed)
    key = (prompt_key(pop), prompt_key(corrupted), looks, least)
    return remember("evidence", model, key, lambda: measure(model, pop, corrupted, looks, least)) | {"draws": pop.draws}


def measure(
    model: TransformerBridge, pop: Population, corrupted: Population, looks: float, least: float
) -> dict[str, Float[Tensor, "layer head batch"]]:
    """Every measurement that a family's definition can name, for every head and prompt.

    ==================  ==========================================================================================
    attention A→B       attention from position A to position B in the clean run (`heads.position_attention`)
    total P             what is lost when the head's output at P comes from the corrupted run (noising); P is S2 or END,
                        or S1+1, where only heads are asked that look at S1, since a sweep so early costs the most;
                        the others are NaN
    direct              what is lost when the wire from the head at END to the logits carries the corrupted message
    query               what is lost when the wire from the head at END to the queries of all writers does
    for IO, against S   the head's direct attribution at END, clean minus corrupted, split: how much it raises the
                        logit of IO, and lowers that of S, relative to the mean logit of all names
    attribution         the sum of these two: its direct attribution to the logit difference
    attribution, alone  the same while all writers' outputs at END come from the corrupted run
    ==================  ==========================================================================================

    and, per prompt or head only, `clean` and `corrupted` [batch], the logit differences of the two runs, and `writers`
    [writer 2], the heads called writers above: those outside layer 0 whose mean `direct` is at least `least` of the
    gap between the two runs, with an interval above 0. Where there is none, the largest stands in for them.

    Args:
        corrupted: the same prompts with three unrelated names, as `prompts.corrupt(model, pop, "abc")` makes them.
        looks: mean attention from S1+1 to S1 from which on a head is asked at S1+1.
        least: share of the gap.

    Source: Wang et al. 2022 (arXiv 2211.00593), sections 3.1 to 3.3. Limits: one corruption, one head at a time; two
    heads that stand in for each other show in neither `total`.

    Used in chapters 07, 08, 10 and 12, through `labcode.families`.
    """
    looking = position_attentions(model, pop, LOOKS)
    found = {f"attention {a}→{b}": seen for (a, b), seen in zip(LOOKS, looking, strict=True)}
    for place in ("S2", "END"):
        grid = sweep(model, pop, corrupted, "z", at=place, direction="noising")
        found[f"total {place}"] = grid.clean - grid.values
    found["total S1+1"] = _at_the_next_word(model, pop, corrupted, found["attention S1+1→S1"].mean(-1) >= looks)
    grid = path_patch(model, pop, corrupted, sender_at="END")
    found |= {"direct": grid.clean - grid.values, "clean": grid.clean, "corrupted": grid.corrupted}
    writers = _writers(found["direct"], (grid.clean - grid.corrupted).mean(), pop, least)
    wires = path_patch(model, pop, corrupted, "q", writers, sender_at="END", receiver_at="END")
    found["query"] = wires.clean - wires.values
    found["for IO"], found["against S"] = _writes(model, pop, corrupted, ())
    found["attribution"] = found["for IO"] + found["against S"]
    found["attribution, alone"] = sum(_writes(model, pop, corrupted, writers), torch.tensor(0.0))
    return found | {"writers": torch.tensor(writers)}


def _at_the_next_word(
    model: TransformerBridge, pop: Population, corrupted: Population, asked: Bool[Tensor, "layer head"]
) -> Float[Tensor, "layer head batch"]:
    lost = torch.full((*asked.shape, len(pop)), torch.nan)
    if asked.any():
        only = [(int(layer), int(head)) for layer, head in asked.nonzero()]
        grid = sweep(model, pop, corrupted, "z", at="S1+1", direction="noising", only=only)
        lost[asked] = grid.clean - grid.values
    return lost


def _writers(direct: Float[Tensor, "layer head batch"], gap: Tensor, pop: Population, least: float) -> list[Head]:
    n_heads = direct.shape[1]
    cells = bootstrap_cells(direct.flatten(0, 1), pop.draws)
    later = range(n_heads, len(cells))  # nobody can tell a head of layer 0 anything
    chosen = [i for i in later if cells[i].mean >= least * float(gap) and cells[i].low > 0]
    return [divmod(i, n_heads) for i in chosen or [max(later, key=lambda i: cells[i].mean)]]


def _writes(
    model: TransformerBridge, pop: Population, corrupted: Population, out: tuple[Head, ...] | list[Head]
) -> tuple[Float[Tensor, "layer head batch"], Float[Tensor, "layer head batch"]]:
    """What each head adds for IO and against S at END, clean minus corrupted, with the heads in `out` corrupted."""
    rows = torch.arange(len(pop))
    layers = sorted({layer for layer, _ in out})
    names = [f"blocks.{layer}.attn.hook_z" for layer in layers]
    stored: Any = {}
    if names:
        with torch.no_grad():
            _, stored = model.run_with_cache(
                corrupted.tokens.to(model.cfg.device), names_filter=names, stop_at_layer=layers[-1] + 1
            )

    def corrupt(z: Tensor, hook: object) -> Tensor:
        z, heads = z.clone(), [head for layer, head in out if f"blocks.{layer}.attn.hook_z" == hook.name]  # type: ignore[attr-defined]
        end = pop.end.to(z.device)
        for head in heads:
            z[rows, end, head] = stored[hook.name][rows, end, head].to(z.dtype)  # type: ignore[attr-defined]
        return z

    with model.hooks(fwd_hooks=[(name, corrupt) for name in names]):
        clean, other = (_by_name(model, prompts_, pop) for prompts_ in (pop, corrupted))
    return clean[0] - other[0], other[1] - clean[1]


def _by_name(
    model: TransformerBridge, run: Population, answers: Population
) -> tuple[Float[Tensor, "layer head batch"], Float[Tensor, "layer head batch"]]:
    """Direct attribution of each head to the logits of IO and of S, relative to the mean over all names."""
    parts = decompose(model, run, batch_size=len(run))
    kept, _ = prompts.single_token_names(model)
    ids = torch.tensor([prompts.token_id(model, " " + name) for name in kept])
    names = model.W_U[:, ids].mean(-1)  # [d_model]
    terms = parts.terms[parts.select("head")]  # [layer*head batch d_model]
    found = []
    for answer in (answers.io_ids, answers.s_ids):
        direction = (model.W_U[:, answer] - names[:, None]).T.cpu()  # [batch d_model]
        share = torch.einsum("tbm,bm->tb", terms, direction) / parts.scale
        found.append(share.unflatten(0, (model.cfg.n_layers, model.cfg.n_heads)))
    return found[0], found[1]
