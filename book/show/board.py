"""The circuit board: a drawing of the circuit whose families can be knocked out, each state of it computed once.

A state is a set of families that are kept. For each there are two runs: the circuit, in which only the heads of these
families keep their own output, and the model, in which only the heads of the other families lose theirs. The
difference between the two is what the circuit lacks there (Wang et al. 2022, section 4.1). All numbers travel inside
the page as JSON; `labboard.js` turns the drawing's boxes into switches and shows the numbers of their state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from labcode.circuit import Keep, Out
from labcode.errors import PatchError
from labcode.heads import Node
from labcode.metrics import Interval, bootstrap_cells
from labcode.report import table

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

MOST = 7  # families on one board: 128 states


@dataclass(frozen=True)
class Group:
    """One switch of the board: heads that are kept together, and the keys of their boxes. `nodes` may be empty."""

    title: str
    nodes: tuple[Node, ...]
    boxes: tuple[str, ...]

    @property
    def heads(self) -> str:
        """Its heads, written layer.head."""
        return ", ".join(f"{layer}.{head}" for layer, head, _ in self.nodes) or "none found"


@dataclass(frozen=True)
class Board:
    """The numbers of all states. State t keeps family i where bit i of t is 1; the last one keeps all.

    Attributes:
        groups: the families.
        circuit: F of the circuit, with these families only.
        model: F of the model without the other families.
        gap: the second minus the first. Its absolute value is the incompleteness score.
    """

    groups: tuple[Group, ...]
    circuit: list[Interval]
    model: list[Interval]
    gap: list[Interval]


def states(groups: Sequence[Group]) -> list[Keep | Out]:
    """What has to be run: for each of the 2^n states the circuit, then the model.

    Raises:
        PatchError: no family, or more than seven.
    """
    if not 0 < len(groups) <= MOST:
        raise PatchError(f"a board of {len(groups)} families: choose between 1 and {MOST}, or group some")
    found: list[Keep | Out] = []
    for state in range(2 ** len(groups)):
        kept: list[Node] = []
        others: list[Node] = []
        for bit, group in enumerate(groups):
            (kept if state >> bit & 1 else others).extend(group.nodes)
        found += [Keep(tuple(kept)), Out(tuple(others))]
    return found


def board(groups: Sequence[Group], values: Float[Tensor, "state batch"], draws: Int[Tensor, " batch"]) -> Board:
    """The board, from `circuit.Runner.values` of `states(groups)`.

    Raises:
        PatchError: values of another number of states.
    """
    if len(values) != 2 * 2 ** len(groups):
        raise PatchError(f"{len(values)} states for a board of {len(groups)} families: run those of states(groups)")
    circuit, model = values[0::2], values[1::2]
    return Board(tuple(groups), *(bootstrap_cells(part, draws) for part in (circuit, model, model - circuit)))


def to_html(found: Board, drawing: str) -> str:
    """The drawing, bars and a text for the state that is chosen in it, and the main states as a table.

    Without scripts the drawing and the table are there; what needs the script is hidden until it has run.

    Args:
        drawing: of the circuit, from `canvas.draw`: its boxes named by a group's `boxes` become switches.
    """
    rows = "".join(
        f'<div class="lab-board-row"><span>{words}</span><div class="lab-board-track"><b data-bar="{key}"></b>'
        f'<i data-whisker="{key}"></i></div><span data-number="{key}"></span></div>'
        for key, words in (("circuit", "circuit"), ("model", "model"))
    )
    found = _rounded(found)
    numbers = table(["kept", "circuit", "model without the others", "gap"], _main_states(found))
    return (
        '<div class="lab-board"><div class="lab-board-how" hidden><p>Click a family to knock it out, and once more to '
        "keep it; or go to it with Tab and press Enter or Space.</p>"
        '<p><button type="button" data-all="1">Keep all</button> '
        '<button type="button" data-all="0">Knock out all</button></p></div>'
        f'{drawing}<div class="lab-board-bars" aria-hidden="true" hidden>{rows}'
        '<div class="lab-board-row"><span></span><div class="lab-board-axis"><span data-at="zero">0</span>'
        '<span data-at="whole">whole model</span></div><span></span></div></div>'
        '<p class="lab-board-says" role="status" aria-live="polite" hidden></p>'
        f'<details class="lab-numbers" open><summary>The main states as a table</summary>{numbers}</details>'
        f'<script type="application/json">{_json(found)}</script></div>'
    )


def _rounded(found: Board) -> Board:
    """Every number as it is shown, in the table as in the text: rounding twice may give another one."""

    def two(value: float) -> float:
        return round(value, 2) + 0.0  # there is no −0.00

    def shown(part: Sequence[Interval]) -> list[Interval]:
        return [Interval(two(cell.mean), two(cell.low), two(cell.high), cell.n) for cell in part]

    return Board(found.groups, *map(shown, (found.circuit, found.model, found.gap)))


def _main_states(found: Board) -> list[list[str]]:
    """All families, none, all but one, one alone; without those that have no heads."""
    n = len(found.groups)
    full = 2**n - 1
    rows = {"all families": full, "none": 0}
    filled = [bit for bit, group in enumerate(found.groups) if group.nodes]
    rows |= {f"all but {found.groups[bit].title}": full - 2**bit for bit in filled}
    rows |= {f"{found.groups[bit].title} alone": 2**bit for bit in filled}
    return [
        [name, *(str(part[state]) for part in (found.circuit, found.model, found.gap))] for name, state in rows.items()
    ]


def _json(found: Board) -> str:
    def numbers(part: Sequence[Interval]) -> list[list[float]]:
        return [[cell.mean, cell.low, cell.high] for cell in part]

    data: Mapping[str, object] = {
        "families": [group.title for group in found.groups],
        "heads": [group.heads for group in found.groups],
        "boxes": {key: bit for bit, group in enumerate(found.groups) if group.nodes for key in group.boxes},
        "n": found.circuit[0].n,
        "circuit": numbers(found.circuit),
        "model": numbers(found.model),
        "gap": numbers(found.gap),
    }
    # "<" would let a title end the script element.
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
