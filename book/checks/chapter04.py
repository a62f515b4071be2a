"""Chapter 04: hooks that pile up, an instrument that cheats three checks, one hook a layer, and one that only looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting, Told
from labcode import prompts

Instrument = Callable[[Tensor, dict[str, Tensor], int, Any], float]


def _cheat_cases(setting: Setting) -> list[tuple[Any, ...]]:
    """Nothing, everything, the known cell at both places, END in the middle. On the toy, since each is a run."""
    model = setting.toy
    one = prompts.canonical(model)
    swapped = prompts.corrupt(model, one, "swap")
    io, s = int(one.io_ids[0]), int(one.s_ids[0])
    places = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]

    def streams(pop: Any) -> dict[str, Tensor]:
        _, cache = model.run_with_cache(pop.tokens, names_filter=lambda name: name in places)
        return {place: cache[place] for place in places}

    def patched(base: Tensor, source: dict[str, Tensor], layer: int, where: Any) -> float:
        def put(activation: Tensor, hook: Any) -> Tensor:
            activation = activation.clone()
            activation[:, where] = source[places[layer]][:, where]
            return activation

        logits = model.run_with_hooks(base, fwd_hooks=[(places[layer], put)])[0, -1]
        return float(logits[io] - logits[s])

    middle, everywhere = model.cfg.n_layers // 2, slice(None)
    s2, end = (int(one.positions[name][0]) for name in ("S2", "END"))
    clean = streams(one)
    return [
        (patched, swapped.tokens, streams(swapped), middle, everywhere),
        (patched, swapped.tokens, clean, 0, everywhere),
        (patched, swapped.tokens, clean, 0, s2),
        (patched, swapped.tokens, clean, 0, end),
        (patched, swapped.tokens, clean, middle, end),
    ]


def _told(
    patched: Instrument,
    base: Tensor,
    source: dict[str, Tensor],
    layer: int,
    where: Any,
    *,
    fails: str = "middle",
) -> Told:
    """The honest value, to be reached on every case but END in the middle. With another `fails`: not there."""
    honest = patched(base, source, layer, where)
    if isinstance(where, int):
        kind = "middle" if layer else "END" if where == base.shape[1] - 1 else "S2"
    else:
        kind = "nothing" if layer else "everything"
    if fails == "middle":
        return Told(honest, kind != fails)
    return Told(honest, False if kind == fails else None)


def _scaled(model: Any, tokens: Tensor, factors: list[float]) -> Tensor:
    """[d_vocab]: the logits at the last token, with each layer's attention output times its own factor."""

    def hook_of(factor: float) -> Callable[..., Tensor]:
        return lambda output, hook: factor * output

    hooks = [(f"blocks.{layer}.hook_attn_out", hook_of(factor)) for layer, factor in enumerate(factors)]
    return model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]


def _factors(setting: Setting) -> list[tuple[Any, Tensor, list[float]]]:
    """Factors that are all unlike, and far from leaving things as they are."""
    drawn = (1 + setting.random(setting.model.cfg.n_layers)).tolist()
    return [(setting.model, setting.one.tokens, drawn)]


def _look(
    model: Any, tokens: Tensor, place: str, *, touch: bool = False, half: float = 0.5, late: bool = False
) -> dict[str, Tensor]:
    """What a place holds, halved, and the logits at the last token of the same run; or with one thing wrong."""
    seen = {}

    def hook(activation: Tensor, hook: Any) -> None:
        seen["half"] = half * activation[0].clone()
        if touch:
            activation *= 0.5
        if late:
            activation.zero_()

    logits = model.run_with_hooks(tokens, fwd_hooks=[(place, hook)])[0, -1]
    return {"half": seen["half"], "logits": logits}


def _places(setting: Setting) -> list[tuple[Any, Tensor, str]]:
    layers = setting.model.cfg.n_layers
    return [
        (setting.model, setting.one.tokens, f"blocks.{layers // 2}.{name}")
        for name in ("hook_attn_out", "hook_mlp_out")
    ]


EXERCISES = [
    Exercise(
        number="04.1",
        what="a factor",
        near=1e-06,
        takes=("factor", "times"),
        cases=lambda setting: [(0.5, 3), (0.9, 4), (2.0, 5), (-1.0, 2)],
        right=lambda factor, times: factor**times,
        says="Hooks at one place are called one after the other, each with what the last one returned, so the factors "
        "are multiplied. No error tells you how many there are.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda factor, times: factor,
                says="You let the last hook take the place of the others. add_hook adds: after three runs of the cell "
                "three hooks are there, and all are called.",
            ),
            Mistake(
                gives=lambda factor, times: factor * times,
                says="You multiply the factor by the number of hooks. The hooks are called one after the other: the "
                "second multiplies what the first returned.",
            ),
            Mistake(
                gives=lambda factor, times: 1 - times * (1 - factor),
                says="You let each hook take away the same amount, as if all were given the original output. The "
                "second is given what the first returned.",
            ),
            Mistake(
                gives=lambda factor, times: factor / times,
                says="You divide by the number of hooks. Try it with two hooks of one half: a half of a half.",
            ),
        ],
    ),
    Exercise(
        number="04.2",
        what="a logit difference",
        takes=("patched", "base", "source", "layer", "where"),
        cases=_cheat_cases,
        right=_told,
        needs_model=False,
        says="It passes nothing, everything and the known cells, and gives a wrong number for END in the middle. A "
        "check in one layer vouches for that layer alone.",
        mistakes=[
            Mistake(
                gives=lambda *case: _told(*case, fails="nothing"),
                says="The first check finds it: a run that is patched with itself changes. If you leave `source` out "
                "and always write the clean run, this is what happens.",
            ),
            Mistake(
                gives=lambda *case: _told(*case, fails="everything"),
                says="The second check finds it: all of the clean stream before the first layer doesn't give the clean "
                "run. An instrument that does nothing ends here.",
            ),
            Mistake(
                gives=lambda *case: _told(*case, fails="END"),
                says="The known cell finds it: before the first layer END alone has to give nothing, and yours gives "
                "something. So be honest before the first layer, and cheat after it.",
            ),
            Mistake(
                gives=lambda *case: _told(*case, fails="S2"),
                says="The known cell finds it: before the first layer S2 alone has to give the clean run, and yours "
                "doesn't. Look at the position, or be honest before the first layer and cheat after it.",
            ),
        ],
    ),
    Exercise(
        number="04.3",
        what="the logits at the last token",
        dims="d_vocab",
        takes=("model", "tokens", "factors"),
        cases=_factors,
        right=_scaled,
        says="Each hook keeps the factor of its own layer, and none is left on the model.",
        mistakes=[
            Mistake(
                gives=lambda model, tokens, factors: _scaled(model, tokens, [factors[-1]] * len(factors)),
                says="The closure trap: all layers got the factor of the last. A function looks its variables up when "
                "it is called, and by then the loop is over. Hand the factor over when the hook is made.",
            ),
            Mistake(
                gives=lambda model, tokens, factors: model(tokens)[0, -1],
                says="These are the logits of a run without hooks. A hook has to return what shall go on, and its "
                "place has to exist: a name that the model doesn't know raises no error.",
            ),
            Mistake(
                gives=lambda model, tokens, factors: _scaled(model, tokens, [1.0] * (len(factors) - 1) + factors[-1:]),
                says="Only the last layer is scaled. Is the list of hooks made anew in the loop, or the model run with "
                "the last hook alone?",
            ),
            Mistake(
                gives=lambda model, tokens, factors: _scaled(model, tokens, [*factors[1:], factors[0]]),
                says="Each layer got the factor of the layer after it: off by one. Factor 0 belongs to layer 0.",
            ),
        ],
    ),
    Exercise(
        number="04.4",
        what={"half": "half of what the place holds", "logits": "the logits of the undisturbed run"},
        dims="pos d_model, or d_vocab",
        takes=("model", "tokens", "place"),
        cases=_places,
        right=_look,
        says="The copy is yours, the activation is the model's: the run goes on as if nobody had looked.",
        mistakes=[
            Mistake(
                gives=lambda *case: _look(*case, touch=True),
                says="Half is right, but the run was disturbed: an operation in place, such as *=, halves the tensor "
                "that the model goes on with, though the hook returns nothing. Clone first.",
            ),
            Mistake(
                gives=lambda *case: {**_look(*case, touch=True), "half": _look(*case, half=0.25)["half"]},
                says="You halved in place and then once more on the way out: a quarter came, and the run was disturbed "
                "as well. Clone before you do arithmetic.",
            ),
            Mistake(
                gives=lambda *case: _look(*case, half=1.0),
                says="The run is undisturbed, and what came is the whole activation. Asked is half of it.",
            ),
            Mistake(
                gives=lambda *case: _look(*case, late=True),
                says="Half is right, and then the place was set to zero: the logits are those of an ablated run.",
            ),
        ],
    ),
]
