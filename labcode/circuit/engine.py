"""The arithmetic of a schedule: every row of every layer, with the weights of `labcode.patching.network`.

Used in chapter 10, through `labcode.circuit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from labcode.circuit.schedule import Rows, Schedule, Step
from labcode.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from labcode.patching.suffix import Suffix
    from labcode.prompts import Population

Normal = Callable[[int], "Float[Tensor, 'batch pos head d_head']"]


def run(
    suffix: Suffix, plan: Schedule, pop: Population, normal: Normal, max_bytes: int
) -> Float[Tensor, "state batch"]:
    """The logit difference of each prompt in each state.

    Args:
        suffix: the plain run of these prompts, proven against the bridge. Of it only the stream before layer 0 and keys
            and values of the first position are read.
        plan: the rows.
        normal: for a layer, what takes the place of a head's output.
        max_bytes: bound for what one chunk of rows needs beside the rows themselves.
    """
    network = suffix.network
    x = suffix.base["hook_resid_pre", 0][_long(plan.start.prompt), _long(plan.start.place)]  # [row d_model]
    before = plan.start
    for layer, step in enumerate(progress(plan.steps, "circuit states", len(plan.steps))):
        means = normal(layer)
        source, prompt, place = _long(step.source), _long(step.rows.prompt), _long(step.rows.place)
        after = x[source] + network.project(layer, means)[prompt, place]
        if len(step.asking):
            asking = _long(step.asking)
            after[asking] = x[source[asking]] + _attention(suffix, layer, x, before, step, means, max_bytes)
        for rows in torch.arange(len(after)).split(max(1, max_bytes // _mlp_bytes(suffix))):
            after[rows] += network.mlp(layer, after[rows])
        x, before = after, step.rows
    last = x[_long(plan.last)]  # [state batch d_model]
    n_states = len(last)
    right, wrong = (ids.repeat(n_states) for ids in (pop.io_ids, pop.s_ids))
    return network.logit_difference(last.flatten(0, 1), right, wrong).unflatten(0, (n_states, len(pop)))


def bytes_of_a_row(suffix: Suffix) -> int:
    """What a row holds while its layer is computed: two streams, its normalised copy, its keys and values."""
    net = suffix.network
    return 4 * (4 * net.d_model + 4 * net.n_kv_heads * net.d_head)


def _attention(
    suffix: Suffix, layer: int, x: Tensor, before: Rows, step: Step, means: Tensor, max_bytes: int
) -> Float[Tensor, "asking d_model"]:
    """What attention adds to the asking rows: heads that are kept read the rows before, the others write the mean."""
    network = suffix.network
    n_pos = step.seen.shape[1]
    read = torch.zeros(len(x), dtype=torch.bool)
    read[_long(step.source[step.asking])] = True
    read[_long(step.seen[step.seen >= 0])] = True
    kept_rows = read.nonzero()[:, 0]
    number = torch.full((len(x) + 1,), -1)  # the last entry answers for "no row", which is -1
    number[kept_rows] = torch.arange(len(kept_rows))
    normed = network.norm(x[kept_rows], network.layers[layer].norm1)[:, None]  # [row 1 d_model]
    turn = suffix.rotation(layer, _long(before.place)[kept_rows, None])
    k, v = (part[:, 0] for part in network.keys_values(layer, normed, turn))  # [row kv_head d_head]
    first = tuple(suffix.base[hook, layer][:, 0] for hook in (suffix.keys, "attn.hook_v"))  # [batch kv_head d_head]
    bytes_each = 4 * n_pos * (4 * network.n_kv_heads * network.d_head + 2 * network.n_heads) + 16 * network.d_model
    size = max(1, max_bytes // bytes_each)
    heads = torch.arange(network.n_heads)
    parts = []
    for chunk in torch.arange(len(step.asking)).split(size):
        asking = _long(step.asking)[chunk]
        prompt, place = _long(step.rows.prompt)[asking], _long(step.rows.place)[asking, None]
        seen = number[_long(step.seen)[chunk]]  # [asking pos]
        keys, values = k[seen], v[seen]  # [asking pos kv_head d_head]
        keys[:, 0], values[:, 0] = first[0][prompt], first[1][prompt]
        mine = number[_long(step.source)[asking]]
        q = network.queries(layer, normed[mine], suffix.rotation(layer, place))
        z = network.attend(q, keys, values, _allowed(n_pos, place))[:, 0]  # [asking head d_head]
        own = (_long(step.kept)[chunk, None] >> heads) & 1
        z = torch.where(own[..., None] > 0, z, means[prompt, place[:, 0]])
        parts.append(network.project(layer, z))
    return torch.cat(parts)


def _allowed(n_pos: int, place: Tensor) -> Tensor:
    """[asking 1 pos]: a query sees its own position and those before it."""
    return torch.arange(n_pos) <= place[..., None]


def _mlp_bytes(suffix: Suffix) -> int:
    weights = suffix.network.layers[0].mlp_in
    return 4 * (3 * (0 if weights is None else len(weights.weight)) + 3 * suffix.network.d_model)


def _long(array: object) -> Tensor:
    return torch.as_tensor(array, dtype=torch.long)
