"""Which residual streams are different at all, over many states of the same prompts.

The stream at one position after one layer depends on little. Where every head there gets the mean, only on itself one
layer before. Where some head keeps its own output, also on the streams at this position and to its left, which that
head can read. So states that differ elsewhere, or later, share it, and it is computed once: a *row*. Whoever is read by
no head any more is dropped, but for END, which holds the answer.

This is bookkeeping with whole numbers; the arithmetic is in `labcode.circuit.engine`.

Used in chapter 10, through `labcode.circuit`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor


class Rows(NamedTuple):
    """Streams that are computed, one a row: prompt and position of each."""

    prompt: np.ndarray
    place: np.ndarray


class Step(NamedTuple):
    """One layer: from the rows before it to the rows after it."""

    rows: Rows
    """The rows after this layer."""
    source: np.ndarray
    """For each of them, the row before this layer."""
    asking: np.ndarray
    """Numbers of the rows in which some head keeps its own output."""
    kept: np.ndarray
    """For each asking row, the heads that do, bit h for head h."""
    seen: np.ndarray
    """[asking pos]: the rows before this layer that its heads can read, -1 to its right and at the first position."""


class Schedule(NamedTuple):
    """All layers, the rows to begin with, and the last row of each state and prompt [state batch]."""

    start: Rows
    steps: list[Step]
    last: np.ndarray

    @property
    def most_rows(self) -> int:
        """The largest number of rows after any layer."""
        return max(len(step.source) for step in self.steps)


def schedule(kept: Int[Tensor, "layer state batch pos"], end: Int[Tensor, " batch"]) -> Schedule:
    """The rows of these states.

    Args:
        kept: `states.kept_heads`.
        end: position of END in each prompt.
    """
    bits = kept.numpy()
    n_layers, n_states, n_prompts, n_pos = bits.shape
    at_end = np.broadcast_to(np.arange(n_pos) == end.numpy()[:, None], (n_states, n_prompts, n_pos))
    needed = [*_read_later(bits != 0), np.zeros_like(at_end)]
    alive = needed[0] | at_end
    prompt, place = (np.broadcast_to(grid, alive.shape) for grid in np.indices((n_prompts, n_pos)))
    row, first = _number(prompt * n_pos + place, alive)
    start = Rows(prompt[alive][first], place[alive][first])
    steps = []
    for layer in range(n_layers):
        alive = needed[layer + 1] | at_end
        asks = (bits[layer] != 0) & alive
        code = -1 - row  # nothing is read here: the row goes on as it is
        if asks.any():
            _, which = np.unique(bits[layer], return_inverse=True)
            code = np.where(asks, _history(row) * (which.max() + 1) + which.reshape(row.shape), code)
        after, first = _number(code, alive)
        asking = asks[alive][first]
        states, prompts, places = (index[first] for index in np.nonzero(alive))
        steps.append(
            Step(
                Rows(prompts, places),
                row[alive][first],
                asking.nonzero()[0],
                bits[layer][alive][first][asking],
                np.where(np.arange(n_pos) <= places[asking, None], row[states[asking], prompts[asking]], -1),
            )
        )
        row = after
    last = np.take_along_axis(row, np.broadcast_to(end.numpy()[None, :, None], (n_states, n_prompts, 1)), 2)[..., 0]
    return Schedule(start, steps, last)


def _read_later(reads: np.ndarray) -> list[np.ndarray]:
    """For each layer, where a head reads this layer's input or a later one, from this position or one to its right."""
    from_right = np.logical_or.accumulate(reads[..., ::-1], axis=-1)[..., ::-1]
    from_right[..., 0] = False  # the first position is never replaced, so it is that of the plain run
    return list(np.logical_or.accumulate(from_right[::-1], axis=0)[::-1])


def _number(code: np.ndarray, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Consecutive numbers for the codes of what is alive (-1 elsewhere), and where each code first stands there."""
    _, first, inverse = np.unique(code[alive], return_index=True, return_inverse=True)
    numbers = np.full(code.shape, -1)
    numbers[alive] = inverse.reshape(-1)
    return numbers, first


def _history(row: np.ndarray) -> np.ndarray:
    """A number for each (state, prompt, position) that is the same where all rows up to there are the same."""
    found = np.empty_like(row)
    n = row.max() + 2
    before = np.broadcast_to(np.arange(row.shape[1]), row.shape[:2])  # prompts never share rows
    taken = 0
    for place in range(row.shape[2]):
        _, inverse = np.unique(before * n + row[..., place] + 1, return_inverse=True)
        before = inverse.reshape(before.shape)
        found[..., place] = before + taken
        taken += int(before.max()) + 1
    return found
