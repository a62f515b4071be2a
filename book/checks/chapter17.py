"""Chapter 17: the activation of another run, two words read off a direction, and one latent out with the error kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting
from labcode import metrics, prompts


def _two_runs(setting: Setting) -> list[tuple[Tensor, Tensor, Tensor, list[int]]]:
    """Codes of two runs, in which some latents are off in one of them; rows of the decoder are not of length 1."""
    cases = []
    for seed, latents in ((0, [7, 2]), (1, [5])):
        code, other = ((0.5 + setting.random(4, 12, seed=10 * seed + i)).relu() for i in (1, 2))
        code[:, latents] += 1.0
        cases.append((code, other, setting.random(12, 6, seed=10 * seed + 3), latents))
    return cases


def _step(code: Tensor, other: Tensor, decoder: Tensor, latents: Sequence[int]) -> Tensor:
    return (other - code)[:, latents] @ decoder[latents]


def _raises(model: Any, direction: Tensor, first: str, second: str, *, space: str = " ") -> float:
    """How much a direction adds to logit(first) - logit(second)."""
    a, b = (model.tokenizer.encode(space + name, add_special_tokens=False)[0] for name in (first, second))
    return float(direction @ (model.W_U[:, a] - model.W_U[:, b]))


def _directions(setting: Setting) -> list[tuple[Any, Tensor, str, str]]:
    """Directions that write against the first name of a pair, for two pairs."""
    cases = []
    for seed, prompt in enumerate(setting.pop.prompts[:2]):
        a, b = (prompts.token_id(setting.model, f" {name}") for name in (prompt.io, prompt.s))
        apart = (setting.model.W_U[:, b] - setting.model.W_U[:, a]).detach()
        noise = setting.random(setting.model.cfg.d_model, seed=seed)
        # So long that the answer is far from 0, which is what one of the mistakes gives.
        cases.append((setting.model, 3 * apart / apart.norm().square() + 0.1 * noise, prompt.io, prompt.s))
    return cases


class _Small:
    """A TopK autoencoder with random directions, with the names that those of sae-lens have."""

    def __init__(self, decoder: Tensor, encoder: Tensor, center: Tensor, k: int) -> None:
        self.W_dec, self.W_enc, self.b_dec = decoder, encoder, center
        self.b_enc = torch.zeros(len(decoder))
        self.cfg = SimpleNamespace(d_in=decoder.shape[1], d_sae=len(decoder), k=k)

    def encode(self, x: Tensor) -> Tensor:
        kept = ((x - self.b_dec) @ self.W_enc + self.b_enc).topk(self.cfg.k, dim=-1)
        return torch.zeros(*x.shape[:-1], len(self.W_dec)).scatter(-1, kept.indices, kept.values.relu())

    def decode(self, code: Tensor) -> Tensor:
        return code @ self.W_dec + self.b_dec


def _prompts_and_sae(setting: Setting) -> list[tuple[Any, Any, _Small, int, int]]:
    """Two prompts whose S2 stands at different places, and a latent that is active at both places of either.

    One case, and two prompts: a forward pass is slow.
    """
    model, s2 = setting.model, setting.pop.positions["S2"]
    pop = setting.pop.subset([0, int((s2 != s2[0]).int().argmax()) or 1])
    layer, latent = model.cfg.n_layers // 3, 5
    name = f"blocks.{layer}.hook_out"
    _, cache = model.run_with_cache(pop.tokens, names_filter=[name], stop_at_layer=layer + 1)
    h = cache[name].detach()
    unit, center = torch.nn.functional.normalize, 0.5 * h[:, 1:].mean((0, 1))
    decoder = setting.random(64, h.shape[-1])
    decoder[latent] = unit(h[:, pop.positions["S2"]] - center, dim=-1).sum((0, 1))
    decoder = unit(decoder, dim=-1)
    # The encoder is not the decoder turned round, and so long that taking a latent out can be seen on any model.
    encoder = 3 * (decoder + 0.5 * setting.random(64, h.shape[-1], seed=1) / h.shape[-1] ** 0.5).T
    return [(model, pop, _Small(decoder, encoder, center, k=12), layer, latent)]


Change = Callable[[Tensor, Tensor, Tensor, Any, int], Tensor]


def _run(change: Change, place: Callable[[Any], tuple[Any, Any]]) -> Callable[..., Tensor]:
    """[batch]: the logit difference with the vectors at a place replaced.

    Args:
        change: of the vectors there, their code, the code without the latent, the autoencoder and the latent.
        place: indices of rows and columns, given the population.
    """

    def answer(model: Any, pop: Any, sae: Any, layer: int, latent: int) -> Tensor:
        def hook(h: Tensor, hook: Any) -> Tensor:
            at = place(pop)
            there = h[at]
            code = sae.encode(there)
            new = code.clone()
            new[..., latent] = 0.0
            h = h.clone()
            h[at] = change(there, code, new, sae, latent)
            return h

        with torch.no_grad(), model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_out", hook)]):
            return metrics.logit_difference(metrics.end_logits(model, pop), pop)

    return answer


def _kept(h: Tensor, code: Tensor, new: Tensor, sae: Any, latent: int) -> Tensor:
    return h + (new - code) @ sae.W_dec


def _at_s2(pop: Any) -> tuple[Any, Any]:
    return torch.arange(len(pop)), pop.positions["S2"]


def _after_start(pop: Any) -> tuple[Any, Any]:
    return slice(None), slice(1, None)


EXERCISES = [
    Exercise(
        number="17.1",
        what="what is added to the stream of each prompt",
        dims="batch d_model",
        takes=("code", "other", "decoder", "latents"),
        cases=_two_runs,
        right=_step,
        says="The change of the activations, times the decoder, and nothing else: all other latents and the error stay "
        "as they are.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda code, other, decoder, latents: -_step(code, other, decoder, latents),
                says="The sign is turned round: new less old. Yours moves away from the other run.",
            ),
            Mistake(
                gives=lambda code, other, decoder, latents: other[:, latents] @ decoder[latents],
                says="You add the new activation without taking the old one off, so the latent is there twice.",
            ),
            Mistake(
                gives=lambda code, other, decoder, latents: -code[:, latents] @ decoder[latents],
                says="This takes the latents out. Asked is to put in the activations of the other run.",
            ),
            Mistake(
                gives=lambda code, other, decoder, latents: (other - code) @ decoder,
                says="You change all latents. Only those on the list take the other run's activation.",
            ),
        ],
    ),
    Exercise(
        number="17.2",
        what="a difference of logits",
        takes=("model", "direction", "first", "second"),
        cases=_directions,
        right=_raises,
        says="The ids are those of the names inside a sentence: with a space, and without a start token. Both slips "
        "run without an error, so print the ids that you compare.",
        mistakes=[
            Mistake(
                gives=lambda model, direction, first, second: 0.0,
                says="It is zero for every direction: both of your ids are the same token. The tokenizer puts a start "
                "token in front, or gives one id for all that it does not know. Ask for add_special_tokens=False.",
            ),
            Mistake(
                gives=lambda model, direction, first, second: _raises(model, direction, first, second, space=""),
                says="These are the names without their space, other tokens than those inside a sentence: ' Mary'.",
            ),
            Mistake(
                gives=lambda model, direction, first, second: _raises(model, direction, second, first),
                says="The sign is turned round: the logit of the first name, less that of the second.",
            ),
            Mistake(
                gives=lambda model, direction, first, second: float(
                    direction @ model.W_U[:, prompts.token_id(model, f" {first}")]
                ),
                says="This is what the direction adds to the first name alone. A direction may raise all names, and "
                "that decides nothing: take the second name's logit off.",
            ),
        ],
    ),
    Exercise(
        number="17.3",
        what="logit differences",
        dims="batch",
        takes=("model", "pop", "sae", "layer", "latent"),
        cases=_prompts_and_sae,
        right=_run(_kept, _at_s2),
        says="One latent is gone, at one token of each prompt. What the autoencoder does not explain went on to the "
        "later heads, so the change is the latent's own.",
        mistakes=[
            Mistake(
                gives=_run(lambda h, code, new, sae, latent: sae.decode(new), _at_s2),
                says="The error is dropped at S2: you put in the edited reconstruction. Then most of what changes is "
                "the loss of the error. Add only the change: (new code - code) @ W_dec.",
            ),
            Mistake(
                gives=_run(_kept, _after_start),
                says="The latent is taken out at all positions. Asked is S2 alone: pop.positions['S2'], one place for "
                "each prompt.",
            ),
            Mistake(
                gives=_run(_kept, lambda pop: (slice(None), pop.positions["S2"])),
                says="Each prompt is changed at the S2 of every prompt. h[:, at] takes all places for all rows: pair "
                "them, with h[torch.arange(len(pop)), at].",
            ),
            Mistake(
                gives=_run(
                    lambda h, code, new, sae, latent: sae.decode(new) + 2 * (h - sae.decode(code)),
                    _at_s2,
                ),
                says="The error is there twice. The old vector has it already: add nothing but the change of the code, "
                "or put the parts together, each once.",
            ),
        ],
    ),
]
