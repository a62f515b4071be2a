"""Activation patching and path patching: put one activation, or one wire, of a run into another, and judge the answer.

`sweep` patches every layer, head or position. `path_patch` lets a change travel along one wire only. Both are exact:
their values are those of whole forward passes with hooks, one for each cell, and the arithmetic is compared with the
bridge on the very prompts that are given. How it is fast is told in `labcode.forward`.

To follow a sweep, read `sweep`, then `_parts` (prompts in pieces, each run once as it is), `Cells.runs` (which patched
runs there are), `_values` (in batches), and `Patched.final` (the runs themselves).

Dimensions: `run` counts patched runs, `window` the positions that are computed, `pos` all positions of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import torch

from labcode.errors import PatchError
from labcode.forward import Network, Run, Suffix, record, rotated
from labcode.heads import Head, check_heads
from labcode.inputs import guard
from labcode.metrics import Interval, bootstrap_ratios, end_logits, logit_difference, restoration
from labcode.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

Kind = Literal["resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"]
Input = Literal["logits", "q", "k", "v"]
Direction = Literal["denoising", "noising"]
Metric = Callable[["Float[Tensor, 'batch d_vocab']", "Population"], "Float[Tensor, ' batch']"]

HOOKS = {
    "resid_pre": "hook_resid_pre",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
}
STREAM_KINDS = ("resid_pre", "attn_out", "mlp_out")
GROUPED_KINDS = ("k", "v")
ALL = -1
PROMPTS_AT_ONCE = 20  # run and recorded together: about a quarter of a GB for the embedded model
POSITIONS_AT_ONCE = 2048  # computed together in patched runs: as much again


@dataclass(frozen=True)
class Axis:
    """One axis of the cells: its name ("layer", "head", "key/value head", "position") and a label for each entry."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """Patched runs by cell and prompt.

    Attributes:
        values: the metric of each patched run (logit difference, in nats, unless the sweep had another metric).
        clean, corrupted: the metric of the two unpatched runs.
        axes: names and labels of the cell axes, such as layer and head.
        direction: "denoising" (clean activations into corrupted runs) or "noising" (corrupted into clean).
        draws: prompts that share a draw are resampled together.
    """

    values: Float[Tensor, "*cells batch"]
    clean: Float[Tensor, " batch"]
    corrupted: Float[Tensor, " batch"]
    axes: tuple[Axis, ...]
    direction: str
    draws: Int[Tensor, " batch"]

    def restoration(self) -> Float[Tensor, "*cells batch"]:
        """0 where a run is worth what the corrupted runs are worth, 1 where it is worth what the clean ones are.

        The unit is the mean gap over the prompts (see `metrics.restoration`): prompts with a small gap do not explode.

        Raises:
            MetricError: clean and corrupted runs are worth the same, so there is nothing to restore.
        """
        return restoration(self.values, self.clean, self.corrupted)

    @property
    def _ends(self) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """What runs are worth without a patch, and where a patch can carry them."""
        ends = self.corrupted, self.clean
        return ends if self.direction == "denoising" else ends[::-1]

    def effect(self) -> Float[Tensor, "*cells batch"]:
        """The share of the gap that the patch crosses: 0 if it does nothing, 1 if it carries the run all the way.

        In denoising this is the restoration. In noising it counts each prompt's way down from its own clean run.

        Raises:
            MetricError: as `restoration`.
        """
        start, goal = self._ends
        return restoration(self.values, goal, start)

    def mean(self) -> Float[Tensor, "*cells"]:
        """Mean effect of each cell over the prompts."""
        return self.effect().mean(-1)

    def intervals(self) -> list[Interval]:
        """Bootstrap interval of the mean effect of each cell, in row-major order of the cells.

        The mean gap, its unit, is that of the same resampled prompts: a cell that restores every prompt has no width.
        """
        start, goal = self._ends
        whole = restoration(goal, goal, start)  # each prompt's own gap, in units of the mean gap
        return bootstrap_ratios(self.effect().flatten(0, -2), whole, self.draws)

    def bounds(self) -> tuple[Float[Tensor, "*cells"], Float[Tensor, "*cells"]]:
        """Lower and upper bound of `intervals`, shaped like `mean()`."""
        intervals = self.intervals()
        shape = self.values.shape[:-1]
        low = torch.tensor([i.low for i in intervals]).reshape(shape)
        return low, torch.tensor([i.high for i in intervals]).reshape(shape)

    def sign_stability(self) -> Float[Tensor, "*cells"]:
        """Share of prompts whose effect has the sign of the mean effect: 1 if all agree, about 0.5 for noise."""
        effect = self.effect()
        return (effect.sign() == effect.mean(-1, keepdim=True).sign()).float().mean(-1)

    def top(self, n: int) -> list[tuple[str, float]]:
        """The `n` cells with the largest mean effect in either direction, as (label, mean).

        A label joins those of the axes: "9.6" is layer 9, head 6.
        """
        mean = self.mean().flatten()
        order = mean.abs().argsort(descending=True)[:n].tolist()
        return [(self.label(cell), float(mean[cell])) for cell in order]

    def label(self, cell: int) -> str:
        """The label of a cell, given its row-major number.

        Raises:
            PatchError: no such cell.
        """
        if cell not in range(n := math.prod(self.values.shape[:-1])):
            raise PatchError(f"no cell {cell}: this grid has {n}, counted from 0")
        index = torch.unravel_index(torch.tensor(cell), self.values.shape[:-1])
        labels = {axis.name: axis.labels[int(i)] for axis, i in zip(self.axes, index, strict=True)}
        place = labels.pop("position", None)
        return ".".join(labels.values()) + (f" at {place}" if place else "")


def sweep(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    kind: Kind,
    *,
    at: str | Sequence[str] = "all",
    direction: Direction = "denoising",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    only: Sequence[Head] | None = None,
    metric: Metric = logit_difference,
    runs: Runs | None = None,
) -> Grid:
    """Patch every cell, one at a time, on every prompt.

    Args:
        clean, corrupted: populations that are aligned token by token, as `prompts.corrupt` makes them.
        kind: the activation to patch: the residual stream before a block ("resid_pre"), what attention or the MLP adds
            to it ("attn_out", "mlp_out"), or of each head its output before projection ("z"), queries, keys, values or
            attention pattern. Models with grouped keys and values have fewer key and value heads; there "k" and "v"
            patch those, which several heads share, and the axis is called "key/value head".
        at: "all" positions together; the name of one position, found in each prompt; a list of names, one cell each; or
            "each" position of prompts of one length. For a pattern, the position of the query.
        direction: "denoising" puts clean activations into corrupted runs and asks what is sufficient to bring the
            answer back; "noising" puts corrupted ones into clean runs and asks what is necessary.
        layers, heads: which ones to patch; all by default.
        only: instead of these, a list of (layer, head): one cell each, on a single axis.
        metric: from logits at END and the clean population to one value for each prompt.
        runs: unpatched runs that are shared with other sweeps of the same prompts.

    Returns:
        A grid with axes layer, head (for kinds of heads), position (for "each" or a list of names).

    Raises:
        PatchError: prompts that do not align, an unknown kind, layer, head or position, a metric that gives another
            shape or NaN.

    Source: Zhang and Nanda 2023 (arXiv 2309.16042) for the choices, Heimersheim and Nanda 2024 (arXiv 2404.15255) for
    what either direction shows. Limits: one patch at a time, so an effect that two heads share shows in neither; and
    the value of a patch is that of this pair of runs, not of the component as such.
    """
    cells = _cells(model, clean, kind, at, layers, heads, only)
    parts = []
    for part in _parts(model, clean, corrupted, direction, Patched.hooks(model, kind), runs):
        patched = Patched(model, part, kind)
        parts.append(_values(part, cells, cells.runs(part), patched, metric, f"patching {kind}"))
    return _grid(parts, cells, direction, clean)


def path_patch(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    into: Input = "logits",
    receivers: Sequence[Head] = (),
    *,
    sender_at: str = "all",
    receiver_at: str = "all",
    direction: Direction = "noising",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    only: Sequence[Head] | None = None,
    freeze_mlps: bool = False,
    metric: Metric = logit_difference,
    runs: Runs | None = None,
) -> Grid:
    """Patch the path from each head, one at a time, to the logits or into the receivers, all of these together.

    Activation patching lets a change travel everywhere. Here it leaves the sender and arrives at the receiver only
    through the residual stream and the MLPs between them; every other head adds what it added in the base run. Besides
    the base run A there are three passes. B: the source run. C: the base run with the sender's z from B, all other
    heads as in A, MLPs recomputed; what arrives at the receivers is kept. D: the base run with the receivers' input
    from C, and everything after them free. For the wire to the logits, C is the answer already.

    Args:
        clean, corrupted: aligned populations; in the paper the corrupted one holds three unrelated names ("abc").
        into: "logits", or the input of the receivers that is replaced: queries, keys or values.
        receivers: (layer, head) each. Where heads share keys and values, "k" and "v" reach every head of the group.
        sender_at: the senders' positions: "all" or one named position.
        receiver_at: the positions at which the receivers' input is replaced: "all" or one named position. Keys and
            values act where they are read from, queries where they ask.
        direction: "noising", as in the paper, sends corrupted activations into clean runs; "denoising" the other way.
        layers, heads: the senders; all by default. One that comes too late for every receiver has no effect.
        only: instead of these, a list of (layer, head): one cell each, on a single axis.
        freeze_mlps: freeze MLPs as well, so that the residual stream is the only wire. The paper does not.
        metric, runs: as in `sweep`.

    Returns:
        A grid with axes layer and head of the sender. An effect of 0.2 in noising: this wire alone carries a fifth of
        the gap between clean and corrupted runs.

    Raises:
        PatchError: as `sweep`; receivers missing or without a use.
        HeadError: receivers that this model does not have.

    Limits: norms on the way are recomputed, so the effect of a wire depends on what else is in the stream; and wires
    that only matter together show in none.
    """
    options = (sender_at, direction, layers, heads, only, freeze_mlps, metric, runs)
    return _path_grids(model, clean, corrupted, {into: receiver_at}, receivers, *options)[into]


def path_patches(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    inputs: Mapping[Input, str],
    receivers: Sequence[Head],
    *,
    layers: Sequence[int] | None = None,
    only: Sequence[Head] | None = None,
) -> dict[Input, Grid]:
    """`path_patch` into several inputs of the same receivers; the two unpatched runs are made once for all of them.

    Args:
        inputs: for each of "q", "k", "v" the position at which it is replaced.

    Raises:
        PatchError, HeadError: as `path_patch`.
    """
    return _path_grids(model, clean, corrupted, inputs, receivers, layers=layers, only=only)


def _path_grids(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    inputs: Mapping[Input, str],
    receivers: Sequence[Head],
    sender_at: str = "all",
    direction: Direction = "noising",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    only: Sequence[Head] | None = None,
    freeze_mlps: bool = False,
    metric: Metric = logit_difference,
    runs: Runs | None = None,
) -> dict[Input, Grid]:
    wanted = {into: _receivers(model, into, receivers) for into in inputs}
    cells = _cells(model, clean, "z", sender_at, layers, heads, only)
    for receiver_at in inputs.values():
        if receiver_at != "all" and receiver_at not in clean.positions:
            raise PatchError(f"unknown position {receiver_at!r}: choose 'all' or among {', '.join(clean.positions)}")
    hooks = [*Suffix.hooks(model), "attn.hook_z", "hook_attn_out", *(["hook_mlp_out"] if freeze_mlps else [])]
    found: dict[Input, list[tuple[Tensor, Tensor, Tensor]]] = {into: [] for into in inputs}
    for part in _parts(model, clean, corrupted, direction, hooks, runs):
        for into, receiver_at in inputs.items():
            where = "END" if into == "logits" else receiver_at
            place = torch.full_like(part.start, ALL) if where == "all" else part.clean.positions[where]
            paths = Paths(model, part, into, wanted[into], place, freeze_mlps)
            arriving = paths.that_arrive(cells.runs(part))
            found[into].append(_values(part, cells, arriving, paths, metric, f"paths into {into}"))
    return {into: _grid(parts, cells, direction, clean) for into, parts in found.items()}


def exchange(
    model: TransformerBridge, pop: Population, source: Population, heads: Sequence[Head]
) -> Float[Tensor, " batch"]:
    """The logit difference when these heads, all of them together, write at END what they write there in `source`.

    Raises:
        PatchError: no heads; prompts that do not align.
        HeadError: a head that this model does not have.
    """
    if not heads:
        raise PatchError("no heads to exchange: give at least one", see="nothing-chosen")
    if pop.lengths.tolist() != source.lengths.tolist():
        raise PatchError(
            "prompts of different lengths do not align: make the source with `signal_variant` or `corrupt`",
            see="misaligned-prompts",
        )
    with exchanged(model, pop, source, heads):
        return logit_difference(end_logits(model, pop, batch_size=len(pop)), pop)


@contextmanager
def exchanged(model: TransformerBridge, pop: Population, source: Population, heads: Sequence[Head]) -> Iterator[None]:
    """While it is open, these heads write at END of a run as long as `pop` what they write there in `source`."""
    names = sorted({f"blocks.{layer}.attn.hook_z" for layer, _ in check_heads(model, heads)})
    rows, end = torch.arange(len(pop)), pop.end
    stored: Any = {}
    if names:
        last = max(layer for layer, _ in heads)
        with torch.no_grad():
            _, stored = model.run_with_cache(
                source.tokens.to(model.cfg.device), names_filter=names, stop_at_layer=last + 1
            )

    def put(z: Float[Tensor, "batch pos head d_head"], hook: Any) -> Tensor:
        z = z.clone()
        for layer, head in heads:
            if hook.name == f"blocks.{layer}.attn.hook_z":
                z[rows, end, head] = stored[hook.name][rows, end, head]
        return z

    with model.hooks(fwd_hooks=[(name, put) for name in names]):
        yield


@dataclass(frozen=True)
class Part:
    """Some prompts, run once as the base and once as the source.

    Attributes:
        index: their numbers in the populations.
        clean: the clean prompts, which hold the right answers.
        start: the first position that can differ, of each prompt.
        suffix: the base run, and the arithmetic that continues it.
        source: the run whose activations are patched in.
    """

    index: Int[Tensor, " batch"]
    clean: Population
    start: Int[Tensor, " batch"]
    suffix: Suffix
    source: Run


class Runs:
    """Unpatched runs that several sweeps share: a prompt is run once, however many sweeps ask for it.

    Whole runs are half of the work of a small sweep. The model must stay as it is: hooks that are put on it after a
    prompt was run do nothing here.

    Args:
        model: what is run.
        hooks: what is kept of each run; by default what sweeps of heads, layers and paths need.
    """

    def __init__(self, model: TransformerBridge, hooks: Iterable[str] | None = None) -> None:
        self.model = model
        usual = [*Suffix.hooks(model), "attn.hook_z", "hook_attn_out", "hook_mlp_out"]
        self._hooks = set(usual if hooks is None else hooks)
        self._found: dict[tuple[bytes, ...], Run] = {}
        self._tokens: dict[tuple[bytes, ...], Tensor] = {}
        self._proven: dict[tuple[bytes, ...], Run] = {}

    def of(self, pop: Population, hooks: Iterable[str] = ()) -> Run:
        """The run of these prompts, made now or earlier; again if more of it is needed than was kept."""
        if not self._hooks.issuperset(hooks):
            self._hooks |= set(hooks)
            self._found.clear()
        key = _bytes(pop.tokens, pop.end)
        if key not in self._found:
            run = self._rows(pop) or record(self.model, pop.tokens, pop.end, sorted(self._hooks))
            self._found[key] = run
            self._tokens[key] = torch.cat([pop.tokens, pop.end[:, None]], dim=1)
        return self._found[key]

    def _rows(self, pop: Population) -> Run | None:
        """These prompts out of one earlier run, in another order: the swap of a pair of twins is the pair itself."""
        wanted = torch.cat([pop.tokens, pop.end[:, None]], dim=1)
        for key, run in self._found.items():
            known = self._tokens[key]
            if known.shape[1] != wanted.shape[1]:
                continue
            same = (wanted[:, None] == known).all(-1)  # [prompt known]
            if same.any(1).all():
                rows = same.int().argmax(1)
                # rotary tables have one row for all prompts
                kept = {
                    name: value[rows] if len(value) == len(known) else value for name, value in run.activations.items()
                }
                return Run(kept, run.logits[rows])
        return None

    def suffix(self, network: Network, pop: Population, hooks: Iterable[str], start: Int[Tensor, " batch"]) -> Suffix:
        """The run as a base, its arithmetic proven once.

        Raises:
            PatchError: a model under hooks.
        """
        base, key = self.of(pop, hooks), _bytes(pop.tokens, pop.end, start)
        if self._proven.get(key) is base:
            return Suffix(network, base, pop.end)
        found = Suffix.proven(network, base, pop.end, start)
        self._proven[key] = base
        return found


def _bytes(*tensors: Tensor) -> tuple[bytes, ...]:
    return tuple(tensor.cpu().numpy().tobytes() for tensor in tensors)


def _parts(
    model: TransformerBridge,
    clean: Population,
    corrupted: Population,
    direction: str,
    hooks: Iterable[str],
    runs: Runs | None = None,
) -> Iterator[Part]:
    """Prompts a few at a time, with their two unpatched runs.

    Raises:
        PatchError: prompts that do not align, an unknown direction, a model under hooks, runs of another model.
    """
    if runs is not None and runs.model is not model:
        raise PatchError("these runs are those of another model: make them anew with `Runs(model)`")
    base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    start, network, hooks = first_difference(base, source), Network(model), list(hooks)
    for index in torch.arange(len(base)).split(PROMPTS_AT_ONCE):
        some = [pop.subset(index.tolist()) for pop in (base, source, clean)]
        kept = runs or Runs(model, hooks)  # which is forgotten with these prompts
        suffix = kept.suffix(network, some[0], hooks, start[index])
        yield Part(index, some[2], start[index], suffix, kept.of(some[1], hooks))


def cells_of(model: TransformerBridge, pop: Population, heads: Sequence[Head]) -> Cells:
    """One cell for each of these heads, at all positions."""
    return _cells(model, pop, "z", "all", None, None, heads)


def values_of(model: TransformerBridge, part: Part, cells: Cells) -> Float[Tensor, "cell batch"]:
    """The logit difference of each cell, where heads write what the part's source holds for their z."""
    engine = Patched(model, part, "z")
    return _values(part, cells, cells.runs(part), engine, logit_difference, "ablating heads")[0]


def _values(
    part: Part, cells: Cells, runs: PatchedRuns, engine: Patched | Paths, metric: Metric, what: str
) -> tuple[Float[Tensor, "cell batch"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The value of every cell, of the base run and of the source run; a cell without a run is worth the base run."""
    suffix, clean = part.suffix, part.clean
    at_base, at_source = (_one_each(metric(run.logits, clean), clean) for run in (suffix.base, part.source))
    values = at_base.repeat(len(cells.layer), 1)
    widths = suffix.end[runs.prompt] - runs.start + 1
    batches = [
        (runs[chosen], width)
        for width in widths.unique().tolist()
        for chosen in (widths == width).nonzero()[:, 0].split(max(1, POSITIONS_AT_ONCE // width))
    ]
    for batch, width in progress(batches, what):
        with torch.no_grad():
            x = engine.final(batch, width)
        judged = clean.subset(batch.prompt.tolist())
        if metric is logit_difference:  # needs two logits only
            found = suffix.network.logit_difference(x, judged.io_ids, judged.s_ids)
        else:
            found = metric(suffix.network.logits(x), judged)
        values[batch.cell, batch.prompt] = _one_each(found, judged)
    return values, at_base, at_source


def _one_each(values: Tensor, clean: Population) -> Float[Tensor, " run"]:
    """Raises `PatchError` where a metric has another shape, or is NaN."""
    if values.shape != (len(clean),):
        raise PatchError(
            f"the metric gave shape {tuple(values.shape)} for {len(clean)} runs: one value for each is needed"
        )
    if values.isnan().any():
        text = clean.prompts[int(values.isnan().nonzero()[0])].text
        raise PatchError(
            f"the metric is NaN on {text!r}: check the model's weights and the metric", see="nan-in-the-run"
        )
    return values


def _grid(parts: Sequence[tuple[Tensor, Tensor, Tensor]], cells: Cells, direction: str, clean: Population) -> Grid:
    values, at_base, at_source = (torch.cat(some, dim=-1) for some in zip(*parts, strict=True))
    ends = (at_source, at_base) if direction == "denoising" else (at_base, at_source)
    return Grid(values.unflatten(0, cells.shape), *ends, cells.axes, direction, clean.draws)


@dataclass(frozen=True)
class PatchedRuns:
    """Patched runs, one entry each, in the order of their layers; `head` and `position` are `ALL` where all are meant.

    Attributes:
        start: the first position of the run that can differ from the base run.
    """

    cell: Int[Tensor, " run"]
    prompt: Int[Tensor, " run"]
    layer: Int[Tensor, " run"]
    head: Int[Tensor, " run"]
    position: Int[Tensor, " run"]
    start: Int[Tensor, " run"]

    def __len__(self) -> int:
        return len(self.cell)

    def __getitem__(self, index: Tensor | slice) -> PatchedRuns:
        return PatchedRuns(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Cells:
    """The cells of a sweep, flat, in row-major order of `axes`.

    Attributes:
        axes: what the cells are.
        layer, head, place: of each cell; `head` is `ALL` for activations of the whole stream.
        positions: position of each place in each prompt, or `ALL`.
    """

    axes: tuple[Axis, ...]
    layer: Int[Tensor, " cell"]
    head: Int[Tensor, " cell"]
    place: Int[Tensor, " cell"]
    positions: Int[Tensor, "place batch"]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis.labels) for axis in self.axes)

    def runs(self, part: Part) -> PatchedRuns:
        """The patched runs. A cell whose position precedes the first different token changes nothing and has no run."""
        batch, by_layer = len(part.index), self.layer.argsort(stable=True)
        cell = by_layer.repeat_interleave(batch)
        prompt = torch.arange(batch).repeat(len(by_layer))
        position = self.positions[:, part.index][self.place[by_layer]].flatten()
        first = part.start[prompt]
        start = torch.where(position == ALL, first, position)
        return PatchedRuns(cell, prompt, self.layer[cell], self.head[cell], position, start)[start >= first]


def _cells(
    model: TransformerBridge,
    clean: Population,
    kind: str,
    at: str | Sequence[str],
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    only: Sequence[Head] | None = None,
) -> Cells:
    """Check what is asked for and lay out the cells.

    Raises:
        PatchError: unknown kind, layer, head or position; "each" with prompts of several lengths; `only` beside layers
            and heads, or for an activation that belongs to no head.
    """
    cfg = model.cfg
    if f"blocks.0.{HOOKS[kind]}" not in model.hook_dict:
        raise PatchError(f"this model has no {kind}: its blocks are without it")
    n_heads = (cfg.n_key_value_heads or cfg.n_heads) if kind in GROUPED_KINDS else cfg.n_heads
    name, of_stream = "head" if n_heads == cfg.n_heads else "key/value head", kind in STREAM_KINDS
    if of_stream and (heads, only) != (None, None):
        raise PatchError(
            f"{kind} belongs to no head: leave `heads` and `only` out and give layers, or choose z, q, k, v or pattern"
        )
    if only is None:
        of_layers = _chosen("layer", layers, cfg.n_layers)
        of_heads = [ALL] if of_stream else _chosen(name, heads, n_heads)
        axes = [Axis("layer", tuple(map(str, of_layers))), Axis(name, tuple(map(str, of_heads)))][: 2 - of_stream]
        chosen = list(product(of_layers, of_heads))
    elif (layers, heads) != (None, None):
        raise PatchError("give either `only`, a list of (layer, head), or layers and heads, not both")
    elif not only:
        raise PatchError("no head chosen: give at least one in `only`, or leave it out for all", see="nothing-chosen")
    else:
        _no_twice("head", check_heads(model, only, n_heads))
        axes, chosen = [Axis(name, tuple(f"{layer}.{head}" for layer, head in only))], list(only)
    labels, positions = _places(clean, at)
    if labels:
        axes.append(Axis("position", labels))
    cell, place = torch.cartesian_prod(torch.arange(len(chosen)), torch.arange(len(positions))).unbind(-1)
    layer, head = torch.tensor(chosen).T
    return Cells(tuple(axes), layer[cell], head[cell], place, positions)


def first_difference(base: Population, source: Population) -> Int[Tensor, " batch"]:
    """The first position at which two aligned populations hold different tokens, for each prompt.

    0 where the prompts are equal: then the whole run is computed, so that patching a run with itself tests the engine.

    Raises:
        PatchError: a different number of prompts or of tokens, or a named position in another place; the message shows
            where.
    """
    if not len(base):
        raise PatchError("an empty population: give at least one prompt")
    for row in (base.lengths != source.lengths).nonzero()[:, 0].tolist():
        raise PatchError(_misaligned(row, base.str_tokens[row], source.str_tokens[row]), see="misaligned-prompts")
    # As many tokens, but shifted words. The order of the two first names may differ on purpose.
    for name in set(base.positions) & set(source.positions) - {"IO", "S1", "S1+1"}:
        for row in (base.positions[name] != source.positions[name]).nonzero()[:, 0].tolist():
            raise PatchError(_misaligned(row, base.str_tokens[row], source.str_tokens[row]), see="misaligned-prompts")
    real = torch.arange(base.tokens.shape[1]) < base.lengths[:, None]
    width = min(base.tokens.shape[1], source.tokens.shape[1])
    different = (base.tokens[:, :width] != source.tokens[:, :width]) & real[:, :width]
    return different.int().argmax(dim=1)


def _chosen(what: str, wanted: Sequence[int] | None, n: int) -> list[int]:
    chosen = list(range(n)) if wanted is None else list(wanted)
    if not chosen:
        raise PatchError(
            f"no {what} chosen: give at least one, or leave the choice out for all {n}", see="nothing-chosen"
        )
    for one in chosen:
        if one not in range(n):
            raise PatchError(f"no {what} {one}: this model has {n}, counted from 0")
    _no_twice(what, chosen)
    return chosen


def _no_twice(what: str, chosen: Sequence[Any]) -> None:
    if len(set(chosen)) < len(chosen):
        twice = max(chosen, key=chosen.count)
        raise PatchError(f"{what} {twice} is chosen twice: each cell of a sweep stands for something of its own")


def _places(pop: Population, at: str | Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """Labels of the position axis (none where there is one place) and the positions, [place batch]."""
    if at == "all":
        return (), torch.full((1, len(pop)), ALL)
    if at == "each":
        if pop.lengths.unique().numel() > 1:
            raise PatchError(
                f"prompts of {pop.lengths.unique().tolist()} tokens have no common positions: use at=[names], such as "
                f"at={list(pop.positions)}, or group the prompts by length"
            )
        n = int(pop.lengths[0])
        columns = [{strings[i] for strings in pop.str_tokens} for i in range(n)]
        labels = tuple(f"{i} {min(column).strip()}" if len(column) == 1 else str(i) for i, column in enumerate(columns))
        return labels, torch.arange(n)[:, None].expand(n, len(pop))
    names = [at] if isinstance(at, str) else list(at)
    if not names:
        raise PatchError("no position chosen: give at least one, or at='all'", see="nothing-chosen")
    for name in names:
        if name not in pop.positions:
            raise PatchError(f"unknown position {name!r}: choose 'all', 'each' or among {', '.join(pop.positions)}")
    positions = torch.stack([pop.positions[name] for name in names])
    return (() if isinstance(at, str) else tuple(names)), positions


def _misaligned(row: int, base: Sequence[str], source: Sequence[str]) -> str:
    first = next((i for i, (a, b) in enumerate(zip(base, source, strict=False)) if a != b), min(len(base), len(source)))
    return (
        f"prompt {row} has {len(base)} tokens and its partner {len(source)}, so positions do not correspond. "
        f"They part at position {first}:\n  {list(base[: first + 2])}\n  {list(source[: first + 2])}\n"
        "Use names and words that are single tokens in both."
    )


class Patched:
    """Runs of a part's base, each with one activation of its source.

    Args:
        part: with the activations named by `hooks` in both runs.
    """

    def __init__(self, model: TransformerBridge, part: Part, kind: str) -> None:
        self.model, self.suffix, self.source, self.kind = model, part.suffix, part.source, kind
        self.network, self.base = part.suffix.network, part.suffix.base
        self.source_hook, self.query_hook = _source_hook(model, kind), rotated(model, "q")

    @staticmethod
    def hooks(model: TransformerBridge, kind: str) -> set[str]:
        """The activations that sweeps of this kind need of the two runs."""
        needed = {*Suffix.hooks(model), _source_hook(model, kind)}
        if kind == "mlp_out":
            needed.add("hook_attn_out")
        if kind not in STREAM_KINDS:
            needed.add("attn.hook_z")
        if kind in GROUPED_KINDS:
            needed.add(rotated(model, "q"))
        return needed

    def final(self, runs: PatchedRuns, width: int) -> Float[Tensor, "run d_model"]:
        """The residual stream at END after the last block, of patched runs that share a window width."""
        window = self.suffix.window(runs.prompt, width)
        x = torch.empty(len(runs.cell), width, self.network.d_model)
        live = 0  # so many runs are under way; the others join at their own layer
        for layer in range(int(runs.layer[0]), self.network.n_layers):
            entered = int((runs.layer <= layer).sum())
            joining = slice(live, entered)
            end_only = layer == self.network.n_layers - 1
            out = slice(-1, None) if end_only else slice(None)
            if self.kind == "resid_pre":
                x[joining] = self.entry(layer, runs[joining], window[joining])
                live = entered
            x[:live, out] += self.suffix.attention(layer, x[:live], runs.prompt[:live], window[:live], end_only)
            if self.kind not in ("resid_pre", "mlp_out"):
                x[joining] = self.entry(layer, runs[joining], window[joining])
                live = entered
            x[:live, out] += self.network.mlp(layer, x[:live, out])
            if self.kind == "mlp_out":
                x[joining] = self.entry(layer, runs[joining], window[joining])
                live = entered
        return x[:, -1]

    def entry(
        self, layer: int, runs: PatchedRuns, window: Int[Tensor, "run window"]
    ) -> Float[Tensor, "run window d_model"]:
        """The residual stream right after the patched activation, of runs that are patched at this layer."""
        at = (runs.prompt[:, None], window)
        patched = _is_patched(runs, window)  # [run window]
        resid_pre = self.base["hook_resid_pre", layer][at]
        if self.kind not in STREAM_KINDS:
            return resid_pre + self.network.project(layer, self._z(layer, runs, window, patched))
        source = self.source[self.source_hook, layer][at]
        if self.kind == "resid_pre":
            return torch.where(patched[..., None], source, resid_pre)
        attn_out = self.base["hook_attn_out", layer][at]
        if self.kind == "attn_out":
            return resid_pre + torch.where(patched[..., None], source, attn_out)
        mlp_out = self.base["hook_mlp_out", layer][at]
        return resid_pre + attn_out + torch.where(patched[..., None], source, mlp_out)

    def _z(
        self, layer: int, runs: PatchedRuns, window: Int[Tensor, "run window"], patched: Bool[Tensor, "run window"]
    ) -> Float[Tensor, "run window head d_head"]:
        """z of all heads, where one head's z, q, k, v or pattern comes from the source run.

        The other heads are patched too and then put back: heads of one layer do not see each other.
        """
        base, network, prompt, n_pos = self.base, self.network, runs.prompt, self.suffix.n_pos
        at = (prompt[:, None], window)
        source = self.source[self.source_hook, layer]
        if self.kind == "z":
            z = source[at]
        elif self.kind == "pattern":
            pattern = source[prompt[:, None], :, window][..., :n_pos]  # [run window head pos]
            z = network.mix(pattern, base["attn.hook_v", layer][prompt, :n_pos])
        else:
            taken = _is_patched(runs, torch.arange(n_pos)[None])[..., None, None]  # [run pos 1 1]
            k = base[self.suffix.keys, layer][prompt, :n_pos]  # [run pos kv_head d_head]
            v = base["attn.hook_v", layer][prompt, :n_pos]
            q = source[at] if self.kind == "q" else base[self.query_hook, layer][at]
            if self.kind == "k":
                k = torch.where(taken, source[prompt, :n_pos], k)
            elif self.kind == "v":
                v = torch.where(taken, source[prompt, :n_pos], v)
            z = network.attend(q, k, v, self.suffix.allowed(window))
        heads = torch.arange(network.n_heads)
        if self.kind in GROUPED_KINDS:  # a changed key or value reaches every later query of the heads that share it
            chosen = (heads // (network.n_heads // network.n_kv_heads) == runs.head[:, None])[:, None]  # [run 1 head]
        else:
            chosen = (heads == runs.head[:, None])[:, None] & patched[..., None]  # [run window head]
        return torch.where(chosen[..., None], z, base["attn.hook_z", layer][at])


def _source_hook(model: TransformerBridge, kind: str) -> str:
    """The activation that is patched in: for q and k after rotation, since partners share their positions."""
    return rotated(model, kind) if kind in ("q", "k") else HOOKS[kind]


def _is_patched(runs: PatchedRuns, positions: Int[Tensor, "run pos"]) -> Bool[Tensor, "run pos"]:
    return (runs.position[:, None] == ALL) | (runs.position[:, None] == positions)


class Paths:
    """Passes C and D, for batches of senders and prompts.

    Args:
        part: its base run with z and attn_out, and mlp_out if MLPs are frozen; its source run with z.
        receivers: heads by layer; key/value heads for "k" and "v".
        place: the position in each prompt where a path ends, or `ALL`.
    """

    def __init__(
        self,
        model: TransformerBridge,
        part: Part,
        into: Input,
        receivers: dict[int, list[int]],
        place: Int[Tensor, " batch"],
        freeze_mlps: bool,
    ) -> None:
        self.model, self.suffix, self.network, self.base = model, part.suffix, part.suffix.network, part.suffix.base
        self.senders = Patched(model, part, "z")
        self.into, self.receivers, self.place, self.freeze_mlps = into, receivers, place, freeze_mlps
        self.top = max(receivers, default=self.network.n_layers)  # no sender from here on reaches a receiver

    def that_arrive(self, runs: PatchedRuns) -> PatchedRuns:
        """The runs whose path leads to the receivers, each from where it ends.

        With every other head frozen nothing moves between positions: a path ends at the position where it begins.
        """
        place = self.place[runs.prompt]
        same = (runs.position == ALL) | (runs.position == place)
        arrives = (place == ALL) | ((place >= runs.start) & same)
        starts = replace(runs, start=torch.where(place == ALL, runs.start, place))
        return starts[arrives & (runs.layer < self.top)]

    def final(self, runs: PatchedRuns, width: int) -> Float[Tensor, "run d_model"]:
        """The residual stream at END after the last block, of runs that share a window width."""
        window, place = self.suffix.window(runs.prompt, width), self.place[runs.prompt]
        # A message that ends at one place travels there alone: with heads frozen nothing moves between positions.
        x, arrived = self._send(runs, window if (place == ALL).any() else place[:, None])
        return x[:, -1] if self.into == "logits" else self._receive(runs, window, arrived)

    def _send(
        self, runs: PatchedRuns, window: Int[Tensor, "run window"]
    ) -> tuple[Float[Tensor, "run window d_model"], dict[int, Tensor]]:
        """Pass C: the frozen stream, and by layer the inputs that arrive at its receivers [run window head d_head]."""
        x = torch.empty(*window.shape, self.network.d_model)
        arrived: dict[int, Tensor] = {}
        live = 0  # so many senders have sent
        for layer in range(int(runs.layer[0]), min(self.top + 1, self.network.n_layers)):
            if live and layer in self.receivers:
                arrived[layer] = self._inputs(layer, x[:live], window[:live])
            at = (runs.prompt[:live, None], window[:live])
            x[:live] += self.base["hook_attn_out", layer][at]
            joining = slice(live, live := int((runs.layer <= layer).sum()))
            x[joining] = self.senders.entry(layer, runs[joining], window[joining])
            at = (runs.prompt[:live, None], window[:live])
            x[:live] += self.base["hook_mlp_out", layer][at] if self.freeze_mlps else self.network.mlp(layer, x[:live])
        return x, arrived

    def _inputs(
        self, layer: int, x: Float[Tensor, "run window d_model"], window: Int[Tensor, "run window"]
    ) -> Float[Tensor, "run window head d_head"]:
        """Queries, keys or values of this layer's receivers."""
        x, rotary = self.network.norm(x, self.network.layers[layer].norm1), self.suffix.rotation(layer, window)
        if self.into == "q":
            inputs = self.network.queries(layer, x, rotary)
        else:
            inputs = self.network.keys_values(layer, x, rotary)["kv".index(self.into)]
        return inputs[:, :, self.receivers[layer]]

    def _receive(
        self, runs: PatchedRuns, window: Int[Tensor, "run window"], arrived: dict[int, Tensor]
    ) -> Float[Tensor, "run d_model"]:
        """Pass D, from the first receiver upwards."""
        first, last = min(arrived), self.network.n_layers - 1
        x = self.base["hook_resid_pre", first][runs.prompt[:, None], window]
        for layer in range(first, self.network.n_layers):
            out = slice(-1, None) if layer == last else slice(None)
            inputs = self.suffix.inputs(layer, x, window, end_only=layer == last)
            if layer in arrived:
                self._put(inputs["qkv".index(self.into)], arrived[layer], layer, runs, window)
            x[:, out] += self.suffix.attend(layer, inputs, runs.prompt, window)
            x[:, out] += self.network.mlp(layer, x[:, out])
        return x[:, -1]

    def _put(
        self, target: Tensor, arrived: Tensor, layer: int, runs: PatchedRuns, window: Int[Tensor, "run window"]
    ) -> None:
        """Give the receivers of this layer what has arrived, in the runs whose sender comes before it."""
        place, heads, n = self.place[runs.prompt, None], self.receivers[layer], len(arrived)
        here = ((place == ALL) | (place == window))[:n, :, None, None]
        width = target.shape[1]  # at the last layer there is one query only
        # `arrived` holds the whole window, or the one place, which then stands for every column.
        target[:n, :, heads] = torch.where(here[:, -width:], arrived[:, -width:], target[:n, :, heads])


def _receivers(model: TransformerBridge, into: str, receivers: Sequence[Head]) -> dict[int, list[int]]:
    """Heads by layer, in ascending order; for keys and values the heads that hold them.

    Raises:
        PatchError: receivers that `into` has no use for, or none where it needs them.
        HeadError: a receiver that this model does not have.
    """
    if (into == "logits") == bool(receivers):
        raise PatchError("give receivers, as (layer, head), for into='q', 'k' or 'v', and none for into='logits'")
    cfg = model.cfg
    group = cfg.n_heads // (cfg.n_key_value_heads or cfg.n_heads) if into in GROUPED_KINDS else 1
    wanted: dict[int, set[int]] = {}
    for layer, head in check_heads(model, receivers):
        wanted.setdefault(layer, set()).add(head // group)
    return {layer: sorted(wanted[layer]) for layer in sorted(wanted)}


guard(globals(), PatchError)
