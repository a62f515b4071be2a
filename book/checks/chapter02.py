"""Chapter 02: the halves of a head's share, the factor that a forgotten norm costs, and the logit lens by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting
from labcode import prompts


def _halves(
    model: Any,
    pop: Any,
    vectors: Tensor,
    others: Tensor,
    *,
    base: str = "names",
    s_sign: float = 1.0,
    swap: bool = False,
) -> Tensor:
    """[half batch]: the effect on the logits of IO and of S, or with one thing wrong."""
    logits = vectors @ model.W_U  # [batch d_vocab]
    rows = torch.arange(len(pop))
    named = logits[:, others]
    taken = {
        "names": named.mean(-1),
        "none": torch.zeros(len(pop)),
        "sum": named.sum(-1),
    }[base]
    both = [logits[rows, pop.io_ids] - taken, s_sign * (logits[rows, pop.s_ids] - taken)]
    return torch.stack(both[::-1] if swap else both)


def _vectors(setting: Setting) -> list[tuple[Any, Any, Tensor, Tensor]]:
    """Random vectors in place of a head's: the arithmetic is the same, and no number can be copied from the page."""
    model, pop, one = setting.model, setting.pop, setting.one
    names, _ = prompts.single_token_names(model)
    others = torch.tensor([prompts.token_id(model, f" {name}") for name in names[:12]])
    width = model.cfg.d_model
    return [
        (model, pop, setting.random(len(pop), width), others),
        (model, one, setting.random(1, width, seed=1), others[:5]),
    ]


def _kept(model: Any, pop: Any, *places: str) -> list[Tensor]:
    """Activations of one run, [batch pos ...] each."""
    _, cache = model.run_with_cache(pop.tokens, names_filter=lambda name: name in places)
    return [cache[place] for place in places]


def _at_end(activation: Tensor, pop: Any) -> Tensor:
    return activation[torch.arange(len(pop)), pop.end]


def _few(setting: Setting) -> Any:
    """The shortest and the longest prompt: a run of all takes a while."""
    order = setting.pop.lengths.argsort(stable=True)
    return setting.pop.subset([int(order[0]), int(order[-1])])


def _factor(model: Any, pop: Any) -> Tensor:
    """[batch]: the number by which the final norm divides at END."""
    return _at_end(_kept(model, pop, "ln_final.hook_scale")[0], pop)[:, 0]


def _lens(
    model: Any,
    pop: Any,
    layer: int,
    *,
    place: str = "hook_resid_post",
    norm: str = "own",
    end: bool = True,
) -> Tensor:
    """[batch]: the logit difference read from the stream behind a block, or with one thing wrong."""
    stream, scale = _kept(model, pop, f"blocks.{layer}.{place}", "ln_final.hook_scale")
    column = pop.end if end else torch.full_like(pop.end, pop.tokens.shape[1] - 1)
    rows = torch.arange(len(pop))
    vectors, scale = stream[rows, column], scale[rows, column]  # [batch d_model], [batch 1]
    if norm == "own":
        vectors = model.ln_final(vectors[:, None])[:, 0]
    elif norm == "final":
        vectors = vectors / scale
    direction = (model.W_U[:, pop.io_ids] - model.W_U[:, pop.s_ids]).T
    biases = model.b_U[pop.io_ids] - model.b_U[pop.s_ids]
    return (vectors * direction).sum(-1) + biases


def _layers(setting: Setting) -> list[tuple[Any, Any, int]]:
    n_layers = setting.model.cfg.n_layers
    return [(setting.model, _few(setting), n_layers // 2), (setting.model, setting.one, n_layers - 1)]


EXERCISES = [
    Exercise(
        number="02.1",
        what="the effect on the logits of IO and of S",
        dims="half batch",
        takes=("model", "pop", "vectors", "others"),
        cases=_vectors,
        right=_halves,
        says="Each logit is measured against those of other names, since only differences of logits change a "
        "probability. The first row less the second is the head's whole share.",
        mistakes=[
            Mistake(
                gives=lambda *case: _halves(*case, base="none"),
                says="These are bare logits or, what is the same here, logits against the mean of the whole "
                "vocabulary. A vector that raises all names alike then seems to write for both: take away the mean of "
                "the other names.",
            ),
            Mistake(
                gives=lambda *case: _halves(*case, s_sign=-1.0),
                says="Row 0 is right, in row 1 the sign is turned round. Asked is the effect on the logit of S, so a "
                "head that writes against S has a negative number there.",
            ),
            Mistake(
                gives=lambda *case: _halves(*case, swap=True),
                says="The rows are exchanged: IO, the name that is right, comes first, and pop.io_ids are its tokens.",
            ),
            Mistake(
                gives=lambda *case: _halves(*case, base="sum"),
                says="You take away the sum over the other names. Their mean is the level to compare with: the answer "
                "must not grow with the number of names.",
            ),
        ],
    ),
    Exercise(
        number="02.2",
        what="the factor of each prompt",
        dims="batch",
        takes=("model", "pop"),
        cases=lambda setting: [(setting.model, _few(setting))],
        right=_factor,
        says="It is the scale at END, another for each prompt. Within a prompt no ranking changes, and only the sum of "
        "all shares gives the mistake away.",
        mistakes=[
            Mistake(
                gives=lambda model, pop: 1 / _factor(model, pop),
                says="Upside down: a share is too large by the very number that one forgot to divide by, not by 1 over "
                "that number.",
            ),
            Mistake(
                gives=lambda model, pop: _factor(model, pop) * model.cfg.d_model**0.5,
                says="This is the length of the stream. The norm divides by the root of the MEAN square, and that is "
                "the length over the root of d_model.",
            ),
            Mistake(
                gives=lambda model, pop: _kept(model, pop, "ln_final.hook_scale")[0][:, -1, 0],
                says="You read the last column. Shorter prompts are padded, so for them this is the scale of padding: "
                "read each prompt at pop.end.",
            ),
            Mistake(
                gives=lambda model, pop: _factor(model, pop).mean().expand(len(pop)),
                says="All prompts got the mean. Each has a factor of its own, and this is why means over prompts get "
                "wrong in their proportions.",
            ),
        ],
    ),
    Exercise(
        number="02.3",
        what="the logit difference read at that stage",
        dims="batch",
        takes=("model", "pop", "layer"),
        cases=_layers,
        right=_lens,
        says="The stream after the block, at END, through the final norm and along IO − S: a stage is read as if the "
        "model ended there.",
        mistakes=[
            Mistake(
                gives=lambda *case: _lens(*case, norm="none"),
                says="The norm is missing: streams grow from layer to layer, and so do your readings. Send the vectors "
                "through model.ln_final first.",
            ),
            Mistake(
                gives=lambda *case: _lens(*case, place="hook_resid_pre"),
                says="One block too early: you read the stream before the block. After it, that is hook_resid_post.",
            ),
            Mistake(
                gives=lambda *case: _lens(*case, norm="final"),
                says="You divide by the scale of the finished stream. That is direct attribution; in the logit lens an "
                "unfinished stream is divided by its own size, which model.ln_final computes anew.",
            ),
            Mistake(
                gives=lambda *case: _lens(*case, end=False),
                says="You read the last column. Shorter prompts are padded on the right: read each at pop.end.",
            ),
        ],
    ),
]
