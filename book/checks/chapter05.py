"""Chapter 05: where a patch can do nothing, what one layer adds, and the restoration of a population by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting
from labcode import prompts


def _differing(clean: Tensor, corrupted: Tensor) -> list[int]:
    return [at for at, pair in enumerate(zip(clean.tolist(), corrupted.tolist(), strict=True)) if pair[0] != pair[1]]


def _rows(setting: Setting) -> list[tuple[Tensor, Tensor]]:
    """The canonical prompt with one and with three names replaced, and two rows that no tokenizer made."""
    one = setting.one
    found = [(one.tokens[0], prompts.corrupt(setting.model, one, how).tokens[0]) for how in ("swap", "abc")]
    return [*found, (torch.tensor([1, 5, 6, 7, 8, 9, 3]), torch.tensor([1, 5, 6, 2, 8, 4, 3]))]


def _few(setting: Setting) -> list[int]:
    """The shortest and the longest prompt, with other names in each: a run of all takes a while."""
    order = setting.pop.lengths.argsort(stable=True)
    return [int(order[0]), int(order[-1])]


def _runs(model: Any, rows: Sequence[Tensor], places: Sequence[str], at: Tensor, column: Tensor) -> tuple[Tensor, ...]:
    """Logits [batch d_vocab] of each token batch; the last one is patched with activations of the first.

    One pass instead of two or three, with one column unembedded, since a check has to be quick.
    """
    take = torch.arange(len(rows[0]))
    give = take + (len(rows) - 1) * len(take)

    def put(activation: Tensor, hook: Any) -> Tensor:
        activation = activation.clone()
        activation[give, at] = activation[take, at]
        return activation

    def read(stream: Tensor, hook: Any) -> Tensor:
        return stream[torch.arange(len(stream)), column.repeat(len(rows))][:, None]

    hooks = [*((place, put) for place in places), ("unembed.hook_in", read)]
    return model.run_with_hooks(torch.cat(list(rows)), fwd_hooks=hooks)[:, 0].chunk(len(rows))


def _difference(logits: Tensor, pop: Any) -> Tensor:
    rows = torch.arange(len(pop))
    return logits[rows, pop.io_ids] - logits[rows, pop.s_ids]


def _adds(
    model: Any,
    clean: Any,
    corrupted: Any,
    layer: int,
    *,
    what: Sequence[str] = ("hook_attn_out", "hook_mlp_out"),
) -> Tensor:
    """[batch]: the logit difference when one layer adds at END what it adds in the clean run, or with a mistake."""
    places = [f"blocks.{layer}.{place}" for place in what]
    *_, logits = _runs(model, [clean.tokens, corrupted.tokens], places, clean.end, clean.end)
    return _difference(logits, clean)


def _layers(setting: Setting) -> list[tuple[Any, Any, Any, int]]:
    model, few = setting.model, _few(setting)
    return [(model, setting.pop.subset(few), setting.swapped.subset(few), model.cfg.n_layers // 2)]


def _restored(
    model: Any,
    clean: Any,
    corrupted: Any,
    layer: int,
    position: str,
    *,
    unit: str = "mean gap",
    swap: bool = False,
) -> float:
    """The share of the mean gap that one patched vector restores, or with a mistake."""
    base, source = (clean, corrupted) if swap else (corrupted, clean)
    rows = [source.tokens, base.tokens, base.tokens]
    runs = _runs(model, rows, [f"blocks.{layer}.hook_resid_pre"], clean.positions[position], clean.end)
    giving, receiving, patched = (_difference(logits, clean) for logits in runs)
    high, low = (receiving, giving) if swap else (giving, receiving)
    moved = patched - low
    if unit == "own gap":
        return float((moved / (high - low)).mean())
    return float(moved.mean() / {"mean gap": high - low, "clean": high}[unit].mean())


def _places(setting: Setting) -> list[tuple[Any, Any, Any, int, str]]:
    model, few = setting.model, _few(setting)
    return [(model, setting.pop.subset(few), setting.abc.subset(few), model.cfg.n_layers // 3, "S2")]


EXERCISES = [
    Exercise(
        number="05.1",
        what="the positions",
        takes=("clean", "corrupted"),
        cases=_rows,
        right=lambda clean, corrupted: set(range(min(_differing(clean, corrupted)))),
        says="Attention looks only backwards. Up to the first token that differs both runs are the same in every "
        "layer, and from there on they need not be, whatever the tokens.",
        mistakes=[
            Mistake(
                gives=lambda clean, corrupted: set(range(len(clean))) - set(_differing(clean, corrupted)),
                says="You took all positions with the same token. Behind a token that differs, the same token can hold "
                "another vector: attention has carried something there.",
            ),
            Mistake(
                gives=lambda clean, corrupted: range(min(_differing(clean, corrupted)) + 1),
                says="One too many: the first token that differs has another vector from the start.",
            ),
            Mistake(
                gives=lambda clean, corrupted: range(1, min(_differing(clean, corrupted))),
                says="BOS is missing. It is position 0, the same in both runs, and a patch there does nothing either.",
            ),
            Mistake(
                gives=lambda clean, corrupted: range(max(_differing(clean, corrupted))),
                says="You go up to the last token that differs. From the first one on, the runs can be different.",
            ),
        ],
    ),
    Exercise(
        number="05.2",
        what="the logit difference of each patched prompt",
        dims="batch",
        takes=("model", "clean", "corrupted", "layer"),
        cases=_layers,
        right=_adds,
        says="Only what this layer writes at END comes from the clean run; what was there before stays corrupted. That "
        "is the patch for a sentence about a layer.",
        mistakes=[
            Mistake(
                gives=lambda *case: _adds(*case, what=["hook_resid_pre"]),
                says="You patch the stream before the layer, as the report did. It carries what all earlier layers "
                "wrote: patch what the layer adds, hook_attn_out and hook_mlp_out.",
            ),
            Mistake(
                gives=lambda *case: _adds(*case, what=["hook_resid_post"]),
                says="You patch the stream after the layer, and that carries everything written so far. Patch what the "
                "layer adds, hook_attn_out and hook_mlp_out.",
            ),
            Mistake(
                gives=lambda *case: _adds(*case, what=["hook_attn_out"]),
                says="Attention is patched, the MLP is not: it works on, and reads the patched attention besides.",
            ),
            Mistake(
                gives=lambda *case: _adds(*case, what=["hook_mlp_out"]),
                says="The MLP is patched, attention is not. A layer adds both.",
            ),
        ],
    ),
    Exercise(
        number="05.3",
        what="a share of the mean gap",
        takes=("model", "clean", "corrupted", "layer", "position"),
        cases=_places,
        right=_restored,
        says="Each prompt is patched at its own position and read at its own END, and all have one unit, the mean gap.",
        mistakes=[
            Mistake(
                gives=lambda *case: _restored(*case, swap=True),
                says="Clean and corrupted are exchanged in the patch: you put corrupted vectors into the clean run. "
                "For denoising, the corrupted run receives.",
            ),
            Mistake(
                gives=lambda *case: 1 - _restored(*case),
                says="Your ruler is upside down: with yours the clean run is 0. Take the corrupted run's value away, "
                "and divide by clean less corrupted.",
            ),
            Mistake(
                gives=lambda *case: _restored(*case, unit="clean"),
                says="You divide by the clean run's value. The way from corrupted to clean is their difference.",
            ),
            Mistake(
                gives=lambda *case: _restored(*case, unit="own gap"),
                says="This is a mean of ratios: you divide each prompt by its own gap, and a small gap rules the mean. "
                "Take the means first and divide once, as in chapter 04.",
            ),
        ],
    ),
]
