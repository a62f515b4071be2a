"""Chapter 07: one sender and several receivers, wires without freezing, and the other direction on paper."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting
from labcode import metrics
from labcode.heads import Head
from labcode.patching import path_patch
from labcode.toy import MOVER, NEGATIVE

WIRES = (
    "0.0 k 1.0",
    "0.0 v 1.0",
    "0.0 q 2.0",
    "0.0 q 2.1",
    "0.0 logits",
    "1.0 q 2.0",
    "1.0 q 2.1",
    "1.0 logits",
    "2.0 logits",
)


def _split(wire: str) -> tuple[Head, str, list[Head]]:
    """The sender, the input and the receivers of a wire that is written as in `WIRES`."""
    sender, into, *receivers = wire.split()
    number = {name: (int(name[0]), int(name[-1])) for name in (sender, *receivers)}
    return number[sender], into, [number[name] for name in receivers]


def _at_end(model: Any, tokens: Tensor, judged: Any, hooks: list[Any]) -> Tensor:
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    return metrics.logit_difference(logits[torch.arange(len(judged)), judged.end], judged)


def _not_frozen(
    model: Any, clean: Any, corrupted: Any, sender: Head, into: str, receivers: list[Head], whole: bool = False
) -> Tensor:
    """[batch]: as `path_patch` to one wire, with all heads but the sender free, or with the whole input patched."""
    layer, head = sender
    _, source = model.run_with_cache(corrupted.tokens)

    def send(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, head] = source[hook.name][:, :, head]
        return z

    sent = [(f"blocks.{layer}.attn.hook_z", send)]
    if into == "logits":
        return _at_end(model, clean.tokens, clean, sent)
    with model.hooks(fwd_hooks=sent):
        _, arrived = model.run_with_cache(clean.tokens)
    if whole:
        arrived = source

    def deliver(x: Tensor, hook: Any, index: int) -> Tensor:
        x = x.clone()
        x[:, :, index] = arrived[hook.name][:, :, index]
        return x

    hooks = [(f"blocks.{at}.attn.hook_{into}", partial(deliver, index=index)) for at, index in receivers]
    return _at_end(model, clean.tokens, clean, hooks)


def _wire(model: Any, clean: Any, corrupted: Any, wire: tuple[Head, Any, list[Head]], **how: Any) -> Tensor:
    (layer, head), into, receivers = wire
    return path_patch(model, clean, corrupted, into, receivers, layers=[layer], heads=[head], **how).values[0, 0]


def _heard(
    model: Any, clean: Any, corrupted: Any, sender: Head, receivers: list[Head], into: str, **how: Any
) -> Tensor:
    """[receiver batch]: the logit difference with the wire into each receiver patched, one at a time."""
    return torch.stack([_wire(model, clean, corrupted, (sender, into, [one]), **how) for one in receivers])


def _free(
    model: Any, clean: Any, corrupted: Any, sender: Head, receivers: list[Head], into: str, whole: bool = False
) -> Tensor:
    return torch.stack([_not_frozen(model, clean, corrupted, sender, into, [one], whole) for one in receivers])


def _together(model: Any, clean: Any, corrupted: Any, sender: Head, receivers: list[Head], into: str) -> Tensor:
    return _wire(model, clean, corrupted, (sender, into, receivers)).expand(len(receivers), -1)


def _toy_wires(setting: Setting) -> list[tuple[Any, ...]]:
    from labcode import prompts

    toy = setting.toy
    one, pop = prompts.canonical(toy), prompts.population(toy, 8, seed=2024)
    abc, swapped = prompts.corrupt(toy, one, "abc"), prompts.corrupt(toy, pop, "swap")
    return [
        (toy, one, abc, (1, 0), [(2, 0), (2, 1)], "q"),
        (toy, pop, swapped, (0, 0), [(1, 0), (2, 0)], "q"),
        (toy, one, abc, (0, 0), [(1, 0), (1, 1)], "k"),
        (toy, pop, swapped, (0, 1), [(2, 1), (2, 0)], "q"),
    ]


def _changed(setting: Setting) -> list[str]:
    """The wires of the toy that are worth something else where no head is frozen."""
    found: list[str] = setting.once("06 changed wires", lambda: _compared(setting.toy))
    return found


def _compared(toy: Any) -> list[str]:
    from labcode import prompts

    one = prompts.canonical(toy)
    abc = prompts.corrupt(toy, one, "abc")
    frozen = {wire: _wire(toy, one, abc, _split(wire)) for wire in WIRES}
    free = {wire: _not_frozen(toy, one, abc, *_split(wire)) for wire in WIRES}
    return [wire for wire in WIRES if not torch.isclose(frozen[wire], free[wire], atol=1e-3).all()]


RESTORING = ("0.0 k 1.0", "0.0 v 1.0", "1.0 q 2.0", "1.0 q 2.1")


def _restored(setting: Setting, how: str = "swap", direction: str = "denoising") -> dict[str, float]:
    from labcode import prompts

    toy = setting.toy
    one = prompts.canonical(toy)
    bad = prompts.corrupt(toy, one, "swap" if how == "swap" else "abc")
    return {wire: float(_wire(toy, one, bad, _split(wire), direction=direction)) for wire in RESTORING}


def _listed(*values: float) -> dict[str, float]:
    return dict(zip(RESTORING, values, strict=True))


EXERCISES = [
    Exercise(
        number="07.1",
        what="logit differences with one wire patched",
        dims="receiver batch",
        takes=("model", "clean", "corrupted", "sender", "receivers", "into"),
        cases=_toy_wires,
        right=_heard,
        says="One wire for each receiver. Where the wires differ, a patch of all receivers at once would have mixed "
        "different mechanisms, or hidden one behind the other.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=_together,
                says="All rows are the same, because you patched all receivers together. What each of them "
                "makes of the message can't be told apart then: patch one receiver at a time.",
            ),
            Mistake(
                gives=_free,
                says="The other heads are not frozen. What arrives at the receiver then includes what the heads "
                "between made of the message: hold the z of every head but the sender.",
            ),
            Mistake(
                gives=partial(_free, whole=True),
                says="You replace the whole input, whoever sent it. Only what the sender's message changes may arrive: "
                "take the input from the run with every other head frozen.",
            ),
            Mistake(
                gives=partial(_heard, direction="denoising"),
                says="Clean and corrupted are swapped: you send clean messages into the corrupted run. Here the "
                "corrupted message goes into the clean run.",
            ),
        ],
    ),
    Exercise(
        number="07.2",
        what="the wires that come out different",
        options=WIRES,
        right=lambda setting: set(_changed(setting)),
        says="These wires skip a layer with a head that passes the message on. Without freezing they carry its answer "
        "too; wires between neighbouring layers, and those of the last layer, have nobody in between.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda setting: [wire for wire in WIRES if wire not in _changed(setting)],
                says="These are the wires that stay the same. Asked are those that come out different.",
            ),
            Mistake(
                gives=lambda setting: ["0.0 q 2.0"],
                says="That is one of them, the only one in the table of the page. 2.1 hears 1.0 as well, and the "
                "logits hear everybody: try all nine wires.",
            ),
            Mistake(
                gives=lambda setting: ["0.0 q 2.0", "0.0 q 2.1"],
                says="Right for the wires into heads. Now those to the logits: without freezing they become the total "
                "effect of the sender.",
            ),
            Mistake(
                gives=lambda setting: ["0.0 q 2.0", "0.0 q 2.1", "0.0 logits"],
                says="One is missing. 0.0 is not the only head that others pass on: who comes after 1.0?",
            ),
        ],
    ),
    Exercise(
        number="07.3",
        what="a logit difference",
        right=_restored,
        says="The values carry which name, the keys only that there is a repetition. And a wire to one of two heads "
        "that work against each other can do more than the whole answer, or the opposite.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda setting: _restored(setting, direction="noising"),
                says="You sent the message of the swapped prompt into the clean run. The other direction is asked: a "
                "clean message into the swapped run, which is worth -4 before anything is sent.",
            ),
            Mistake(
                gives=lambda setting: _restored(setting, how="abc", direction="noising"),
                says="These are the numbers of the page: corrupted messages with three other names, sent into the "
                "clean run. Asked is a clean message, sent into the swapped run.",
            ),
            Mistake(
                gives=lambda setting: _restored(setting, how="abc"),
                says="In a prompt with three other names no message brings Mary or John back, so all is 0. Here the "
                "corrupted prompt is the swapped one: it ends with Mary's name where John's was.",
            ),
            Mistake(
                gives=lambda setting: _listed(-4.0, 4.0, MOVER, -NEGATIVE),
                says="Into 2.0 or 2.1 you count the receiver alone. The other of the two does not hear the message, "
                "and still writes what it wrote in the swapped run: add that.",
            ),
        ],
    ),
]
