"""Answers to the exercises of chapter 16: right ones, written differently, and wrong ones with words of the reply."""

from __future__ import annotations

import torch

from labcode import latents, metrics, prompts


def latent_by_latent(code, other, decoder, latents):
    return sum(torch.outer(other[:, i] - code[:, i], decoder[i]) for i in latents)


def by_a_new_code(code, other, decoder, latents):
    new = code.clone()
    new[:, latents] = other[:, latents]
    return new @ decoder - code @ decoder


def by_token_id(model, direction, first, second):
    logits = direction @ model.W_U
    return logits[prompts.token_id(model, f" {first}")] - logits[prompts.token_id(model, f" {second}")]


def by_start_of_sentence(model, direction, first, second):
    """With the start token, which is then left out."""
    ids = [model.tokenizer(f"and {name}", add_special_tokens=False).input_ids[-1] for name in (first, second)]
    return torch.tensor([1.0, -1.0]) @ (direction @ model.W_U[:, ids])


def first_ids(model, direction, first, second):
    start = model.tokenizer.bos_token_id
    ids = [[start, *model.tokenizer.encode(f" {name}", add_special_tokens=False)][0] for name in (first, second)]
    return direction @ (model.W_U[:, ids[0]] - model.W_U[:, ids[1]])


def bare(model, direction, first, second):
    logits = direction @ model.W_U
    a, b = (model.tokenizer.encode(name, add_special_tokens=False)[0] for name in (first, second))
    return logits[a] - logits[b]


def first_alone(model, direction, first, second):
    return (direction @ model.W_U)[prompts.token_id(model, f" {first}")]


def embedded(model, direction, first, second):
    a, b = (prompts.token_id(model, f" {name}") for name in (first, second))
    return (model.W_E @ direction)[a] - (model.W_E @ direction)[b]


def with_library(model, pop, sae, layer, latent):
    rows = torch.arange(len(pop))

    def change(code):
        code[rows, pop.positions["S2"], latent] = 0.0
        return code

    with latents.edited(model, sae, change, layer):
        return metrics.logit_difference(metrics.end_logits(model, pop), pop)


def with_bench(model, pop, sae, layer, latent):
    editor = latents.Editor(model, pop, layer)
    return editor.base + latents.ablation(editor, sae, "S2", [latent]).change[:, 0]


def difference(model, pop, layer, change):
    """One prompt at a time, without its padding; `change` works on h [pos d_model] in place."""
    found = []
    for i, prompt in enumerate(pop.prompts):
        tokens = pop.tokens[i : i + 1, : int(pop.lengths[i])]

        def hook(h, hook, i=i):
            h = h.clone()
            change(h[0], i)
            return h

        logits = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.hook_out", hook)])[0, -1]
        io, s = (prompts.token_id(model, f" {name}") for name in (prompt.io, prompt.s))
        found.append(logits[io] - logits[s])
    return torch.stack(found)


def prompt_by_prompt(model, pop, sae, layer, latent, sign=-1.0, place=None, directions=None):
    places = pop.positions["S2"] if place is None else place
    directions = sae.W_dec if directions is None else directions

    def change(h, i):
        at = places[i] if places is not ... else slice(1, None)
        h[at] += sign * sae.encode(h[at])[..., latent, None] * directions[latent]

    return difference(model, pop, layer, change)


def with_parts(model, pop, sae, layer, latent, errors=1):
    """Reconstruction and error, put together again."""

    def change(h, i):
        at = pop.positions["S2"][i]
        code = sae.encode(h[at])
        error = h[at] - sae.decode(code)
        code[latent] = 0
        h[at] = sae.decode(code) + errors * error

    return difference(model, pop, layer, change)


def everyones_places(model, pop, sae, layer, latent):
    def change(h, i):
        for at in pop.positions["S2"].unique():
            h[at] -= sae.encode(h[at])[latent] * sae.W_dec[latent]

    return difference(model, pop, layer, change)


RIGHT = {
    "16.1": [latent_by_latent, by_a_new_code],
    "16.2": [by_token_id, by_start_of_sentence],
    "16.3": [with_library, prompt_by_prompt, with_parts, with_bench],
}
WRONG = {
    "16.1": [
        (lambda *case: -by_a_new_code(*case), "turned round"),
        (
            lambda code, other, decoder, latents: by_a_new_code(torch.zeros_like(code), other, decoder, latents),
            "there twice",
        ),
        (
            lambda code, other, decoder, latents: by_a_new_code(code, torch.zeros_like(other), decoder, latents),
            "takes the latents out",
        ),
        (lambda code, other, decoder, latents: other @ decoder - code @ decoder, "You change all latents"),
        (
            lambda code, other, decoder, latents: sum(
                torch.outer((other - code)[:, i], decoder[row]) for row, i in enumerate(latents)
            ),
            "the first rows of the decoder",
        ),
        (lambda *case: latent_by_latent(*case).mean(0).repeat(len(case[0]), 1), "All prompts get the same step"),
        (lambda *case: latent_by_latent(*case) * 2, "no mistake that this check knows"),
    ],
    "16.2": [
        (first_ids, "both of your ids are the same token"),
        (bare, "without their space"),
        (lambda *case: -by_token_id(*case), "turned round"),
        (first_alone, "the first name alone"),
        (embedded, "the embedding, W_E"),
        (lambda *case: 100.0, "no mistake that this check knows"),
    ],
    "16.3": [
        (lambda *case: with_parts(*case, errors=0), "The error is dropped"),
        (lambda *case: prompt_by_prompt(*case, place=...), "at all positions"),
        (everyones_places, "at the S2 of every prompt"),
        (lambda *case: with_parts(*case, errors=2), "The error is there twice"),
        (lambda *case: prompt_by_prompt(*case, sign=1.0), "doubled, not taken out"),
        (lambda *case: prompt_by_prompt(*case, directions=case[2].W_enc.T), "the encoder's column"),
        (lambda *case: prompt_by_prompt(*case, place=case[1].end), "taken out at END"),
        (lambda *case: prompt_by_prompt(*case, sign=0.0), "no mistake that this check knows"),
    ],
}
