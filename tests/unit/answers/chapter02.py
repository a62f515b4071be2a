"""Answers to the exercises of chapter 02: right ones, written differently, and wrong ones with words of the reply."""

from __future__ import annotations

import torch

from labcode import metrics, residual

MODELS = {"02.2": "tiny_gpt2", "02.3": "tiny_gpt2"}  # a LayerNorm, and an unembedding with a bias


def columns(model, pop, vectors, others):
    base = (vectors @ model.W_U[:, others]).mean(-1)
    for_io = (vectors * model.W_U[:, pop.io_ids].T).sum(-1) - base
    for_s = (vectors * model.W_U[:, pop.s_ids].T).sum(-1) - base
    return torch.stack([for_io, for_s])


def one_by_one(model, pop, vectors, others):
    def relative(vector, token):
        level = sum(float(vector @ model.W_U[:, other]) for other in others) / len(others)
        return float(vector @ model.W_U[:, token]) - level

    return [[relative(*pair) for pair in zip(vectors, ids, strict=True)] for ids in (pop.io_ids, pop.s_ids)]


def bare(model, pop, vectors, others):
    return torch.stack([torch.einsum("bm,mb->b", vectors, model.W_U[:, ids]) for ids in (pop.io_ids, pop.s_ids)])


def against_s(model, pop, vectors, others):
    for_io, for_s = columns(model, pop, vectors, others)
    return torch.stack([for_io, -for_s])


def all_prompts(model, pop, vectors, others):
    return bare(model, pop, vectors, others) - (vectors @ model.W_U[:, others]).mean()


def sum_of_names(model, pop, vectors, others):
    return bare(model, pop, vectors, others) - (vectors @ model.W_U[:, others]).sum(-1)


def whole_vocabulary(model, pop, vectors, others):
    return bare(model, pop, vectors, others) - vectors @ model.W_U.mean(-1)


def from_a_share(model, pop):
    """What is computed without the scale over what is computed with it, at the strongest term."""
    parts = residual.decompose(model, pop)
    forgotten = (parts.terms * residual.logit_direction(model, pop)).sum(-1)
    strongest = forgotten.abs().sum(-1).argmax()
    return forgotten[strongest] / residual.direct_attribution(model, pop, parts)[strongest]


def final_stream(model, pop, block="hook_resid_post", end=True):
    kept = []
    place = f"blocks.{model.cfg.n_layers - 1}.{block}"
    model.run_with_hooks(pop.tokens, fwd_hooks=[(place, lambda stream, hook: kept.append(stream.clone()))])
    rows = torch.arange(len(pop))
    return kept[0][rows, pop.end] if end else kept[0][:, -1]


def spread(model, pop):
    """A LayerNorm divides by the standard deviation, and a small number keeps it from 0."""
    return (final_stream(model, pop).var(-1, unbiased=False) + model.cfg.eps).sqrt()


def of_padding(model, pop):
    return (final_stream(model, pop, end=False).var(-1, unbiased=False) + model.cfg.eps).sqrt()


def length(model, pop):
    return final_stream(model, pop).norm(dim=-1)


def block_too_early(model, pop):
    return final_stream(model, pop, block="hook_resid_pre").square().mean(-1).sqrt()


def over_the_difference(model, pop):
    total = (final_stream(model, pop) * residual.logit_direction(model, pop)).sum(-1)
    return total / metrics.logit_difference(metrics.end_logits(model, pop), pop)


def with_library(model, pop, layer):
    stages, values = residual.logit_lens(model, pop)
    return values[stages.index(f"mlp {layer}")]


def as_if_it_ended_there(model, pop, layer, place="hook_resid_post", end=True):
    """The stage is put in the place of the finished stream, and the model reads it."""
    kept = {}

    def keep(stream, hook):
        kept["stage"] = stream.clone()

    def put(stream, hook):
        return kept["stage"]

    # The last block keeps first and puts then: hooks at one place are called in the order of the list.
    last = model.cfg.n_layers - 1
    logits = model.run_with_hooks(
        pop.tokens, fwd_hooks=[(f"blocks.{layer}.{place}", keep), (f"blocks.{last}.hook_resid_post", put)]
    )
    rows = torch.arange(len(pop))
    return metrics.logit_difference(logits[rows, pop.end] if end else logits[:, -1], pop)


def by_hand(model, pop, layer, norm=None, bias=True):
    _, cache = model.run_with_cache(pop.tokens)
    rows = torch.arange(len(pop))
    stream = cache[f"blocks.{layer}.hook_resid_post"][rows, pop.end]
    scale = {
        None: (stream.var(-1, unbiased=False) + model.cfg.eps).sqrt(),
        "final": cache["ln_final.hook_scale"][rows, pop.end, 0],
        "none": 1.0,
    }[norm]
    values = torch.einsum("bm,bm->b", stream, residual.logit_direction(model, pop)) / scale
    return values + residual.bias_difference(model, pop) if bias else values


RIGHT = {
    "02.1": [columns, one_by_one],
    "02.2": [lambda model, pop: residual.decompose(model, pop).scale, spread, from_a_share],
    "02.3": [with_library, as_if_it_ended_there, by_hand],
}
WRONG = {
    "02.1": [
        (bare, "These are bare logits"),
        (against_s, "in row 1 the sign is turned round"),
        (lambda *case: columns(*case).flip(0), "The rows are exchanged"),
        (sum_of_names, "the sum over the other names"),
        (all_prompts, "all prompts get the same level"),
        (whole_vocabulary, "the mean of the whole vocabulary"),
        (lambda *case: columns(*case)[0], "expected the effect on the logits of IO and of S, a tensor [half batch]"),
    ],
    "02.2": [
        (lambda model, pop: 1 / spread(model, pop), "Upside down"),
        (length, "This is the length of the stream"),
        (of_padding, "You read the last column"),
        (lambda model, pop: spread(model, pop).mean().repeat(len(pop)), "All prompts got the mean"),
        (block_too_early, "before the last block"),
        (over_the_difference, "the unembedding's bias"),
        (lambda model, pop: spread(model, pop) ** 2, "no mistake that this check knows"),
    ],
    "02.3": [
        (lambda *case: by_hand(*case, norm="none"), "The norm is missing"),
        (lambda *case: as_if_it_ended_there(*case, place="hook_resid_pre"), "One block too early"),
        (lambda *case: by_hand(*case, norm="final"), "the scale of the finished stream"),
        (lambda *case: as_if_it_ended_there(*case, end=False), "You read the last column"),
        (lambda *case: -with_library(*case), "The sign is turned round"),
        (lambda *case: by_hand(*case, bias=False), "has a bias"),
        (lambda model, pop, layer: with_library(model, pop, 0), "no mistake that this check knows"),
    ],
}
