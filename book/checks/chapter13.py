"""Chapter 13: a Jaccard index by chance, heads at the edge of a threshold, and how many heads pass by luck."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting
from labcode.heads import Head


def _drawn(model: Any, heads: Iterable[Head]) -> tuple[int, int]:
    """How many heads are drawn, and from how many."""
    chosen = set(heads)
    return len(chosen), model.cfg.n_heads * len({layer for layer, _ in chosen})


def _by_chance(model: Any, heads: Iterable[Head]) -> float:
    k, pool = _drawn(model, heads)
    shared = k * k / pool
    return shared / (2 * k - shared)


def _from_all(model: Any, heads: Iterable[Head]) -> float:
    k = len(set(heads))
    return k / (2 * model.cfg.n_layers * model.cfg.n_heads - k)


def _instead(share: Callable[[int, int], float]) -> Callable[[Any, Iterable[Head]], float]:
    return lambda model, heads: share(*_drawn(model, heads))


def _circuits(setting: Setting) -> list[tuple[Any, set[Head]]]:
    """Heads of the first and the last layer, in the reader's model and in the toy."""
    return [(model, {(0, 0), (0, 1), (model.cfg.n_layers - 1, 0)}) for model in (setting.model, setting.toy)]


def _heads(counts: Tensor, *, turned: bool = False) -> set[Head]:
    """The heads for which a table says yes, as (layer, head)."""
    return {(head, layer) if turned else (layer, head) for layer, head in counts.nonzero().tolist()}


def _between(effect: Tensor, low: float, high: float) -> Tensor:
    return (effect.abs() >= low) & (effect.abs() < high)


def _effects(setting: Setting) -> list[tuple[Tensor, float]]:
    return [(0.03 * setting.random(5, 4, seed=1), 0.02), (0.2 * setting.random(3, 7, seed=2), 0.1)]


def _by_luck(looks: Tensor, acts: Tensor) -> float:
    """Summed over layers: heads that look, times the share of heads that act."""
    return float((looks.double().sum(1) * acts.double().mean(1)).sum())


def _tables(setting: Setting) -> list[tuple[Tensor, Tensor]]:
    """What looks and what acts share layers, as in a real model."""
    tables = []
    for layers, heads, seed in ((4, 6, 0), (5, 3, 1)):
        layer = setting.random(layers, 1, seed=seed)
        looks, acts = (layer + setting.random(layers, heads, seed=seed + k) > 0.3 for k in (10, 20))
        tables.append((looks, acts))
    return tables


EXERCISES = [
    Exercise(
        number="13.1",
        what="a Jaccard index",
        takes=("model", "heads"),
        cases=_circuits,
        right=_by_chance,
        says="Two sets of k out of N heads share about k²/N by chance, so the index is k / (2N - k). The fewer heads "
        "there are to choose from, the less an agreement says.",
        mistakes=[
            Mistake(
                gives=_from_all,
                says="You draw from all heads of the model. Asked is a draw from the layers that `heads` uses: count "
                "those layers, and the heads in them.",
            ),
            Mistake(
                gives=_instead(lambda k, pool: k / pool),
                says="You divide by the size of one set. The Jaccard index divides by the heads that are in either of "
                "the two, and that is more unless they are the same.",
            ),
            Mistake(
                gives=_instead(lambda k, pool: k / (2 * pool)),
                says="You divide by the sum of the two sizes. That counts the heads in common twice: the union is the "
                "sum less what they share.",
            ),
            Mistake(
                gives=_instead(lambda k, pool: (k / pool) ** 2),
                says="You divide by all heads that could be drawn. Heads that are in neither set don't count in a "
                "Jaccard index: divide by the union.",
            ),
        ],
    ),
    Exercise(
        number="13.2",
        what="the heads at the edge, as (layer, head) pairs",
        takes=("effect", "threshold"),
        cases=_effects,
        right=lambda effect, threshold: _heads(_between(effect, threshold / 2, 2 * threshold)),
        says="These heads are in or out by the choice of a round number, and no measurement changes when it moves. So "
        "the number has to stand before the table is seen.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda effect, threshold: _heads((effect >= threshold / 2) & (effect < 2 * threshold)),
                says="Heads with a negative effect are missing. A negative name mover matters as much as a name mover: "
                "compare the size of the effect, without its sign.",
            ),
            Mistake(
                gives=lambda effect, threshold: _heads(_between(effect, threshold / 2, 2 * threshold), turned=True),
                says="Layer and head are exchanged: the first dimension of the table is the layer, and a head is "
                "written (layer, head).",
            ),
            Mistake(
                gives=lambda effect, threshold: _heads(_between(effect, threshold, 2 * threshold)),
                says="These are the heads that you lose when the threshold doubles. Those that you gain when it is "
                "halved belong to the edge too.",
            ),
            Mistake(
                gives=lambda effect, threshold: _heads(_between(effect, threshold / 2, threshold)),
                says="These are the heads that you gain when the threshold is halved. Those that you lose when it "
                "doubles belong to the edge too.",
            ),
        ],
    ),
    Exercise(
        number="13.3",
        what="a number of heads",
        takes=("looks", "acts"),
        cases=_tables,
        right=_by_luck,
        says="Within a layer, luck gives a head that looks an effect that counts as often as such effects are there. A "
        "layer with many of both passes many heads by luck, and that is the control to beat.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda looks, acts: looks.double().sum() * acts.double().mean(),
                says="You deal the effects out over the whole model. Asked is the harder control, within each layer: "
                "work out each layer for itself, then add up.",
            ),
            Mistake(
                gives=lambda looks, acts: (looks & acts).sum(),
                says="This is how many heads really pass. Asked is how many would pass if the effects of a layer went "
                "to its heads at random.",
            ),
            Mistake(
                gives=lambda looks, acts: (looks.double().sum(0) * acts.double().mean(0)).sum(),
                says="You shuffle over layers, among heads with the same number. The table is [layer head], so within "
                "a layer means along the last dimension.",
            ),
            Mistake(
                gives=lambda looks, acts: (looks.double().mean(1) * acts.double().mean(1)).sum(),
                says="You add up probabilities: in each layer, that of one head to pass. There are several heads in a "
                "layer, and each has that chance.",
            ),
        ],
    ),
]
