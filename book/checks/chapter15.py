"""Chapter 15: the largest entries of a code, the cost of a splice, and two measures of an SAE by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting
from labcode.sae import cross_entropy


def _largest(codes: Tensor, n: int) -> Tensor:
    kept = codes.topk(n, dim=-1)
    return torch.zeros_like(codes).scatter(-1, kept.indices, kept.values)


def _of_each_latent(codes: Tensor, n: int) -> Tensor:
    kept = codes.topk(n, dim=0)
    return torch.zeros_like(codes).scatter(0, kept.indices, kept.values)


def _same_for_all(codes: Tensor, n: int) -> Tensor:
    chosen = codes.mean(0).topk(n).indices
    kept = torch.zeros_like(codes)
    kept[:, chosen] = codes[:, chosen]
    return kept


def _smallest(codes: Tensor, n: int) -> Tensor:
    """Of the entries that are above 0."""
    kept = codes.where(codes > 0, torch.inf).topk(n, dim=-1, largest=False)
    return torch.zeros_like(codes).scatter(-1, kept.indices, kept.values)


def _codes(setting: Setting) -> list[tuple[Tensor, int]]:
    """Codes in which every sample has more entries above 0 than are asked for, and some latents are often large."""
    cases = []
    for seed, n in ((0, 3), (1, 1)):
        size = 1 + setting.random(20, seed=seed + 10).abs()
        cases.append((_largest((setting.random(9, 20, seed=seed) * size + 0.5).relu(), 6), n))
    return cases


def _spliced(
    model: Any,
    tokens: Tensor,
    layer: int,
    rebuild: Callable[[Tensor], Tensor] | None,
    *,
    first: int = 1,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Tensor:
    """[context]: the cross-entropy with the stream rebuilt from position `first` on."""

    def splice(h: Tensor, hook: Any) -> Tensor:
        assert rebuild is not None
        h = h.clone()
        h[:, first:] = rebuild(h[:, first:])
        return h

    hooks = [] if rebuild is None else [(f"blocks.{layer}.hook_out", splice)]
    with torch.no_grad():
        return loss(model.run_with_hooks(tokens, fwd_hooks=hooks), tokens)


def _surprise(logits: Tensor, tokens: Tensor, at: slice, ahead: int) -> Tensor:
    """[context position]: -log P of the token `ahead` places on."""
    positions = torch.arange(tokens.shape[1])[at]
    log_p = logits[:, positions].float().log_softmax(-1)
    return -log_p.gather(-1, tokens[:, positions + ahead, None])[..., 0]


def _mixed(h: Tensor) -> Tensor:
    """A bad reconstruction that is as long as the vector, whatever the model."""
    return 0.5 * h + 0.5 * h.roll(1, -1)


def _contexts(setting: Setting) -> list[tuple[Any, Tensor, int, Callable[[Tensor], Tensor]]]:
    """The beginnings of two prompts, none of them padded. One case: a forward pass is slow."""
    shortest = int(setting.pop.lengths.min())
    return [(setting.model, setting.pop.tokens[:2, :shortest], setting.model.cfg.n_layers // 3, _mixed)]


def _explained(x: Tensor, rebuilt: Tensor, center: Tensor) -> Tensor:
    return 1 - (x - rebuilt).square().sum() / (x - center).square().sum()


def _judged(
    x: Tensor, rebuilt: Tensor, clean: Tensor, spliced: Tensor, floor: Tensor, **instead: Tensor
) -> dict[str, float]:
    """Two measures, or with one of them replaced."""
    right = {
        "explained": _explained(x, rebuilt, x.mean(0)),
        "recovered": _part(clean, spliced, floor),
    }
    return {key: float(value) for key, value in (right | instead).items()}


def _part(clean: Tensor, spliced: Tensor, floor: Tensor) -> Tensor:
    return (floor.mean() - spliced.mean()) / (floor.mean() - clean.mean())


def _with(key: str, value: Callable[..., Tensor]) -> Callable[..., dict[str, float]]:
    return lambda *case: _judged(*case, **{key: value(*case)})


def _each_vector(x: Tensor, rebuilt: Tensor, *_: Tensor) -> Tensor:
    error, total = (x - rebuilt).square().sum(-1), (x - x.mean(0)).square().sum(-1)
    return (1 - error / total).mean()


def _measured(setting: Setting) -> list[tuple[Tensor, ...]]:
    """Vectors off the centre and of different lengths, and losses that differ from context to context."""
    cases: list[tuple[Tensor, ...]] = []
    for seed in (0, 1):
        length = 0.5 + setting.random(30, 1, seed=seed + 10).abs()
        x = length * setting.random(30, 8, seed=seed) + setting.random(8, seed=seed + 20)
        rebuilt = x + 0.4 * setting.random(30, 8, seed=seed + 30)
        clean = 3 + 0.5 * setting.random(6, seed=seed + 40).abs()
        spliced = clean + 0.2 + 0.5 * setting.random(6, seed=seed + 50).abs()
        cases.append((x, rebuilt, clean, spliced, spliced + 1 + 2 * setting.random(6, seed=seed + 60).abs()))
    return cases


EXERCISES = [
    Exercise(
        number="15.1",
        what="codes with n entries each",
        dims="sample d_sae",
        takes=("codes", "n"),
        cases=_codes,
        right=_largest,
        says="Each vector keeps its own n largest entries, at their places, and the decoder can be run on what is "
        "left.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=_of_each_latent,
                says="You keep the n samples in which each latent is largest. The entries of one code lie along the "
                "last dimension: take the largest along it.",
            ),
            Mistake(
                gives=_same_for_all,
                says="You keep the same latents for all samples. That is a fixed set of directions, as in PCA; in a "
                "sparse code every vector has its own.",
            ),
            Mistake(
                gives=_smallest,
                says="You keep the smallest entries that are above 0. Look at the argument `largest` of topk, or at "
                "the direction in which you sort.",
            ),
            Mistake(
                gives=lambda codes, n: codes.where(codes > codes.topk(n).values[:, -1:], 0),
                says="You keep one entry too few: the n-th largest is itself not larger than the n-th largest. "
                "Compare with >=.",
            ),
        ],
    ),
    Exercise(
        number="15.2",
        what="cross-entropy of each context, in nats",
        dims="context",
        near=0.0005,
        takes=("model", "tokens", "layer", "rebuild"),
        cases=_contexts,
        right=_spliced,
        says="Everything from position 1 on is rebuilt, position 0 is left alone, and its prediction isn't counted. So "
        "the number is about the reconstruction, and about nothing else.",
        mistakes=[
            Mistake(
                gives=lambda model, tokens, layer, rebuild: _spliced(model, tokens, layer, rebuild, first=0),
                says="Position 0 is replaced too. No SAE of this book has seen such a vector, and all later heads can "
                "look there: change h[:, 1:] only.",
            ),
            Mistake(
                gives=lambda model, tokens, layer, rebuild: _spliced(model, tokens, layer, None),
                says="This is the cross-entropy of the model as it is: the splice isn't in it. Does your hook return "
                "what it has changed, and does it stand on while the model runs?",
            ),
            Mistake(
                gives=lambda model, tokens, layer, rebuild: _spliced(
                    model, tokens, layer, rebuild, loss=lambda logits, t: _surprise(logits, t, slice(0, -1), 1).mean(-1)
                ),
                says="You count the prediction at position 0, too. That position is never rebuilt, so it makes any SAE "
                "look better: start at position 1.",
            ),
            Mistake(
                gives=lambda model, tokens, layer, rebuild: _spliced(
                    model,
                    tokens,
                    layer,
                    rebuild,
                    loss=lambda logits, t: _surprise(logits, t, slice(1, None), 0).mean(-1),
                ),
                says="You score each position on its own token, which the model has just read. It predicts the next "
                "one: hold logits[:, 1:-1] against tokens[:, 2:].",
            ),
        ],
    ),
    Exercise(
        number="15.3",
        what={"explained": "a fraction of the variance", "recovered": "a part of the cross-entropy"},
        takes=("x", "rebuilt", "clean", "spliced", "floor"),
        cases=_measured,
        right=_judged,
        says="Both are parts of a way: from the mean to the vectors, and from the floor to the clean model. Sums and "
        "means come first, one division at the end.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=_with("explained", lambda x, rebuilt, *_: _explained(x, rebuilt, torch.zeros(1))),
                says="Explained: you divide by the squared lengths, so a constant that is the same for all vectors "
                "counts as variance. Take x.mean(0) off first.",
            ),
            Mistake(
                gives=_with("explained", lambda x, rebuilt, *_: _explained(x, rebuilt, x.mean(-1, keepdim=True))),
                says="Explained: your mean is over the coordinates of each vector. Variance is measured from the mean "
                "vector: the mean over samples, x.mean(0).",
            ),
            Mistake(
                gives=_with("explained", _each_vector),
                says="Explained: you take the ratio for each vector and then the mean. A short vector with a small "
                "error then weighs as much as a long one: add up squares first, and divide once.",
            ),
            Mistake(
                gives=_with("explained", lambda x, rebuilt, *_: 1 - _explained(x, rebuilt, x.mean(0))),
                says="Explained: this is the part that is left over, FVU. Asked is the part that is explained.",
            ),
        ],
    ),
]
