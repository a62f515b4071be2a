"""Circuits: what is left of the answer when heads are taken out, or when only some keep their own output.

`ablate` takes heads out in one of five ways. What "out" means is a choice, and results depend on it: what a head writes
(its z) is replaced by

* "zero": nothing. Simple, but a state that the model never sees: what the head writes whatever the prompt goes too.
* "mean": its average over all reference prompts and all their positions but the first. It keeps what the head always
  writes, and nothing about the place in the sentence.
* "template-mean": its average at the same position over the reference prompts of the same template, as in Wang et al.
  2022, section 2.1, where the reference holds three unrelated names. It keeps everything but who is who.
* "resample": its value at the same position in one other prompt of the same template, drawn at random. A state that the
  model does see, at the price of that prompt's noise. All heads take theirs from the same prompt.
* "corrupted": its value at the same position in the reference prompt of the same number, as in activation patching.

`Runner` runs a model in many states at once, each keeping (`Keep`) or losing (`Out`) heads at named positions, with one
of these, by default the template mean, in place of the others. States share most of their arithmetic. The stream at one
position after one layer depends on little: where every head there is replaced, only on itself one layer before; where
some head keeps its own output, also on the streams at this position and to its left, which that head can read. So
states that differ elsewhere, or later, share it, and it is computed once: a *row*. Whoever is read by no head any more
is dropped, but for END, which holds the answer. `schedule` is the bookkeeping, with whole numbers; `_run` is the
arithmetic.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from labcode import patching
from labcode.errors import PatchError
from labcode.forward import Network, Run, Suffix, record
from labcode.heads import Head, Node, check_heads
from labcode.inputs import guard
from labcode.metrics import end_logits, logit_difference
from labcode.progress import progress
from labcode.prompts import build, corrupt
from labcode.recorded import Recorded, prompt_key

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

How = Literal["zero", "mean", "template-mean", "resample", "corrupted"]
LEAST = 8  # reference prompts in a mean: with few, the mean of a template still knows single names
MAX_HEADS = 62  # so many fit in the bits of one whole number
# Bounds that keep the working memory at about half a GB for the embedded model.
PROMPTS_AT_ONCE = 20
STATES_AT_ONCE = 1024
ROWS_AT_ONCE = 10_000  # rows of one layer
ASKING_AT_ONCE = 1024  # rows whose heads read others
MLP_AT_ONCE = 4096  # rows in one MLP


@dataclass(frozen=True)
class Keep:
    """Only `nodes` keep their own output; every other head, at every position but the first, gets the mean."""

    nodes: Sequence[Node] = ()


@dataclass(frozen=True)
class Out:
    """Only `nodes` get the mean; everything else keeps its own output."""

    nodes: Sequence[Node] = ()


State = Keep | Out


def check_states(model: TransformerBridge, pop: Population, states: Sequence[State]) -> None:
    """Raise where `states` cannot be run.

    Raises:
        PatchError: no states, or a node whose position does not exist.
        HeadError: a node whose head does not exist.
    """
    if not states:
        raise PatchError("no states to run: give at least one Keep(nodes) or Out(nodes)")
    nodes = {node for state in states for node in state.nodes}
    check_heads(model, [node[:2] for node in nodes])
    for layer, head, place in nodes:
        if place != "all" and place not in pop.positions:
            raise PatchError(
                f"{layer}.{head} at {place!r}: no such position, choose 'all' or among {', '.join(pop.positions)}"
            )


def kept_heads(
    pop: Population, states: Sequence[State], n_layers: int, n_heads: int
) -> Int[Tensor, "layer state batch pos"]:
    """Which heads keep their own output, bit h for head h. The first position and what lies after END are 0."""
    n_prompts, n_pos = pop.tokens.shape
    places = torch.arange(n_pos)
    real = (places > 0) & (places <= pop.end[:, None])  # [batch pos]
    here = {name: real & (places == at[:, None]) for name, at in pop.positions.items()} | {"all": real}
    kept = torch.zeros(n_layers, len(states), n_prompts, n_pos, dtype=torch.long)
    for number, state in enumerate(states):
        for layer, head, place in state.nodes:
            kept[layer, number] |= here[place].long() << head
    out = torch.tensor([isinstance(state, Out) for state in states])
    everyone = real.long() * ((1 << n_heads) - 1)
    return torch.where(out[:, None, None], everyone & ~kept, kept)


def ablate(
    model: TransformerBridge,
    pop: Population,
    heads: Sequence[Head] = (),
    how: How = "zero",
    *,
    at: str = "all",
    reference: Population | None = None,
    seed: int = 0,
) -> Float[Tensor, " batch"]:
    """The logit difference of each prompt with heads ablated, all of them together.

    Args:
        heads: (layer, head) each.
        how: what takes the place of their output, see above.
        at: "all" positions or one named position. Only "zero" changes the first position too: its token is the same in
            every prompt, so there is nothing to average out.
        reference: the prompts that stand for "no information", such as `corrupt(model, pop, "abc")`. "zero" needs none.
        seed: of the draw for "resample".

    Returns:
        Logit differences, to be compared with those of `ablate(model, pop)`, which takes nothing out.

    Raises:
        PatchError: an unknown head, layer, position or `how`; no reference where one is needed, or none in it that has
            a prompt's template.

    Limits: other heads may take over what was taken out (Wang et al. 2022, section 3.4), so a small drop does not mean
    a small role.
    """
    heads_at: dict[int, list[int]] = {}
    for layer, head in sorted(set(check_heads(model, heads))):
        heads_at.setdefault(layer, []).append(head)
    if at != "all" and at not in pop.positions:
        raise PatchError(f"unknown position {at!r}: choose 'all' or among {', '.join(pop.positions)}")
    means, results = Means(model, pop, reference, how=how, least=1, seed=seed), []
    for piece in pop.chunks(PROMPTS_AT_ONCE):
        columns = torch.arange(piece.tokens.shape[1])
        start = 0 if how == "zero" else 1
        where = columns >= start if at == "all" else columns == piece.positions[at][:, None]  # [(batch) pos]
        hooks = []
        for layer, chosen in heads_at.items():
            value = means.of(piece, layer, len(columns))[:, :, chosen]
            hooks.append((f"blocks.{layer}.attn.hook_z", partial(_replace, heads=chosen, where=where, value=value)))
        with model.hooks(fwd_hooks=hooks):
            results.append(logit_difference(end_logits(model, piece, len(piece)), piece))
    return torch.cat(results)


def ablate_each(
    model: TransformerBridge,
    pop: Population,
    heads: Sequence[Head],
    hows: Sequence[How] = ("zero",),
    *,
    reference: Population | None = None,
    seed: int = 0,
) -> Float[Tensor, "how head batch"]:
    """`ablate` of each head by itself, at all positions, in one or several ways.

    The prompts are run once, and each ablation from the layer of its head on.

    Args:
        hows, reference, seed: as for `ablate`.

    Raises:
        PatchError: as `ablate`; no heads; a model under hooks.
    """
    if not hows:
        raise PatchError("no way to ablate: give at least one, such as 'zero'", see="nothing-chosen")
    baselines = [(how, Means(model, pop, reference, how=how, least=1, seed=seed)) for how in hows]
    cells = patching.cells_of(model, pop, heads)
    network, pieces = Network(model), []
    for index in torch.arange(len(pop)).split(PROMPTS_AT_ONCE):
        piece = pop.subset(index.tolist())
        base = record(model, piece.tokens, piece.end, [*Suffix.hooks(model), "attn.hook_z"])
        suffix, found = Suffix.proven(network, base, piece.end, torch.zeros_like(piece.end)), []
        for how, means in baselines:
            put = dict(base.activations)
            for layer in {layer for layer, _ in heads}:
                put[f"blocks.{layer}.attn.hook_z"] = means.of(piece, layer, suffix.n_pos)
            start = torch.full_like(piece.end, 0 if how == "zero" else 1)
            part = patching.Part(index, piece, start, suffix, Run(put, base.logits))
            found.append(patching.values_of(model, part, cells))
        pieces.append(torch.stack(found))
    return torch.cat(pieces, dim=-1)


def _partners(pop: Population, reference: Population, how: str, seed: int) -> list[list[int]] | None:
    """For each prompt, the reference prompts that stand in for it; None where all do."""
    if how == "mean":
        return None
    if how == "corrupted":
        shapes = ([shape_of(one, i) for i in range(len(one))] for one in (pop, reference))
        if next(shapes) != next(shapes):
            raise PatchError(
                "the reference prompts do not align with the prompts one by one: make them with corrupt(model, pop, "
                "'abc') or 'swap'",
                see="misaligned-prompts",
            )
        return [[number] for number in range(len(pop))]
    groups: dict[tuple[object, ...], list[int]] = {}
    for number in range(len(reference)):
        groups.setdefault(shape_of(reference, number), []).append(number)
    rng, partners = random.Random(seed), []
    for number, prompt in enumerate(pop.prompts):
        same = groups.get(shape_of(pop, number), [])
        if how == "resample":
            same = [other for other in same if reference.str_tokens[other] != pop.str_tokens[number]]
            same = [rng.choice(same)] if same else []
        if not same:
            raise PatchError(
                f"no other reference prompt has the template of {prompt.text!r}: take reference prompts of the same "
                "templates, for instance corrupt(model, pop, 'abc')",
                see="no-resample-partner",
            )
        partners.append(same)
    return partners


def shape_of(pop: Population, number: int) -> tuple[object, ...]:
    """What prompts must share to be aligned: the template, and S2 and END at the same positions."""
    prompt = pop.prompts[number]
    template = prompt.text if prompt.template < 0 else prompt.template
    return template, int(pop.positions["S2"][number]), int(pop.end[number])


def _replace(z: Tensor, hook: Any, heads: list[int], where: Tensor, value: Tensor) -> Tensor:
    changed = z.clone()
    changed[:, :, heads] = torch.where(where[..., None, None], value, z[:, :, heads])
    return changed


def references(model: TransformerBridge, pop: Population, least: int = LEAST, seed: int = 0) -> Population:
    """Twins of these prompts with three unrelated names, at least `least` of them for each template.

    Prompts of a template that has too few are taken several times, with new names each time.

    Raises:
        PromptError: as `corrupt`.
    """
    shapes = [shape_of(pop, number) for number in range(len(pop))]
    copies = {shape: -(-least // shapes.count(shape)) for shape in shapes}
    twins = [prompt for prompt, shape in zip(pop.prompts, shapes, strict=True) for _ in range(copies[shape])]
    return corrupt(model, build(model, twins), "abc", seed)


class Means:
    """What takes the place of z of every head, for the prompts of a population: a mean over reference prompts.

    Args:
        pop: the prompts that will be run.
        reference: the prompts whose outputs are averaged, such as `references(model, pop)`; "zero" needs none.
        how: see the top of this module. "resample" and "corrupted" are means of a single prompt, the same one for
            prompts of the same text.
        least: so many reference prompts a mean has at least, for each template where it is by template.
        seed: of the draw for "resample".

    Raises:
        PatchError: an unknown `how`, no reference, too few reference prompts, or none with a prompt's template and with
            S2 and END at the same positions.
    """

    def __init__(
        self,
        model: TransformerBridge,
        pop: Population,
        reference: Population | None,
        batch_size: int = 16,
        *,
        how: How = "template-mean",
        least: int = LEAST,
        seed: int = 0,
    ) -> None:
        if how != "zero" and reference is None:
            raise PatchError(f"{how!r} needs a reference population, such as corrupt(model, pop, 'abc')")
        self.model, cfg, self.how = model, model.cfg, how
        keys = [self._key(pop, number) for number in range(len(pop))]
        self._group = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        width = 1 if how in ("zero", "mean") else int(pop.end.max()) + 1
        self._sums = torch.zeros(len(self._group), cfg.n_layers, width, cfg.n_heads, cfg.d_head)
        if reference is None or how == "zero":
            return
        partners = _partners(pop, reference, how, seed) or [list(range(len(reference)))] * len(pop)
        chosen = dict(zip(keys, partners, strict=True))
        for prompt, rows in zip(pop.prompts, partners, strict=True):
            if how in ("mean", "template-mean") and len(rows) < least:
                raise PatchError(
                    f"a mean of {len(rows)} reference prompts for {prompt.text!r}, and at least {least} are asked for: "
                    "make them with circuit.references(model, pop), which takes as many for each template",
                    see="few-references",
                )
        self._add(model, reference, [chosen[key] for key in self._group], batch_size)

    def _add(self, model: TransformerBridge, reference: Population, chosen: list[list[int]], batch_size: int) -> None:
        """Fill in the means of these reference prompts, group by group."""
        groups_of: dict[int, list[int]] = {}
        for group, rows in enumerate(chosen):
            for row in rows:
                groups_of.setdefault(row, []).append(group)
        names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
        width, order = self._sums.shape[2], sorted(groups_of)
        counts = torch.zeros(len(chosen))
        for start in range(0, len(order), batch_size):
            piece = reference.subset(order[start : start + batch_size])
            with torch.no_grad():
                _, cache = model.run_with_cache(
                    piece.tokens.to(model.cfg.device), names_filter=names, stop_at_layer=model.cfg.n_layers
                )
            z = torch.stack([cache[name] for name in names], 1)  # [batch layer pos head d_head]
            for i, row in enumerate(order[start : start + batch_size]):
                # Over all positions but the first, or position by position.
                own = z[i, :, 1 : int(piece.lengths[i])].sum(1, keepdim=True) if width == 1 else z[i, :, :width]
                for group in groups_of[row]:
                    self._sums[group, :, : own.shape[1]] += own
                    counts[group] += int(piece.lengths[i]) - 1 if width == 1 else 1
        self._sums /= counts[:, None, None, None, None]

    def _key(self, pop: Population, number: int) -> tuple[object, ...]:
        """What prompts with the same replacements have in common."""
        if self.how in ("zero", "mean"):
            return ()
        shape = shape_of(pop, number)
        return shape if self.how == "template-mean" else (*shape, pop.prompts[number].text)

    def of(self, pop: Population, layer: int, n_pos: int) -> Float[Tensor, "batch pos head d_head"]:
        """What takes the place of the heads' output in one layer, for each of these prompts.

        Raises:
            PatchError: a template, or where it counts a prompt, that was not in the population given.
        """
        groups = []
        for number, prompt in enumerate(pop.prompts):
            key = self._key(pop, number)
            if key not in self._group:
                raise PatchError(
                    f"these means do not hold the template of {prompt.text!r}: measure them with it",
                    see="no-resample-partner",
                )
            groups.append(self._group[key])
        found = self._sums[groups, layer]
        return found.expand(-1, n_pos, -1, -1) if found.shape[1] == 1 else found[:, :n_pos]


def finite(values: Float[Tensor, "*any batch"], pop: Population) -> Float[Tensor, "*any batch"]:
    """The values, if all of them are finite.

    Raises:
        PatchError: one that is not; the message names its prompt.
    """
    bad = ~torch.isfinite(values).reshape(-1, len(pop)).all(0)
    if bad.any():
        raise PatchError(
            f"no finite answer on {pop.prompts[int(bad.nonzero()[0])].text!r}: check the model's weights",
            see="nan-in-the-run",
        )
    return values


class Runner:
    """A model on some prompts, set up once and then run in as many states as one likes.

    Heads that a state does not keep get their mean over the reference prompts of the same template, position by
    position (Wang et al. 2022, section 2.1), or what else `how` says. MLPs are kept and recomputed. The first position
    is never replaced: its token is the same in every prompt.

    Args:
        pop: the prompts that are run.
        reference: prompts of the same templates that know nothing of who is who: `references(model, pop)`.
        means: those of another runner of the same model, whose templates include these; else they are measured.
        how, least, seed: of the means, where they are measured, as for `Means`.
        known: what is recorded. States that it holds are taken from it, and nothing is set up before it is needed.

    Attributes:
        model, pop: as given. means: as given, or measured. draws: of the prompts, for intervals.

    Raises:
        PatchError: as `Means`; a model under hooks.

    Limits: a mean of few reference prompts is noisy; and the state with everything replaced is one that the model never
    saw in training.
    """

    def __init__(
        self,
        model: TransformerBridge,
        pop: Population,
        reference: Population | None,
        *,
        means: Means | None = None,
        how: How = "template-mean",
        least: int = LEAST,
        seed: int = 0,
        known: Recorded | None = None,
    ) -> None:
        if model.cfg.n_heads > MAX_HEADS:
            raise PatchError(
                f"{model.cfg.n_heads} heads in a layer: circuits know up to {MAX_HEADS}", see="unsupported-model"
            )
        self.model, self.pop, self.draws = model, pop, pop.draws.cpu()
        self.reference, self._given = reference, means
        self.known = None if means else known  # means that are given are those of prompts that no key names
        self._how: dict[str, Any] = {"how": how, "least": least, "seed": seed}
        self._pieces = list(pop.chunks(PROMPTS_AT_ONCE))
        self._few: dict[tuple[int, ...], Runner] = {}
        if self.known is None:
            self._suffixes  # noqa: B018

    @cached_property
    def means(self) -> Means:
        """What takes the place of heads.

        Raises:
            PatchError: as `Means`; a model under hooks.
        """
        if any(place.fwd_hooks for place in self.model.hook_dict.values()):
            raise PatchError(
                "means are measured where they are first asked for, and hooks would change them: take hooks off the "
                "model, or ask for the runner's means before you put them on",
                see="hooked-model",
            )
        return self._given or Means(self.model, self.pop, self.reference, **self._how)

    @cached_property
    def _suffixes(self) -> list[Suffix]:
        self.means  # noqa: B018
        network = Network(self.model)
        return [_recorded(self.model, network, piece) for piece in self._pieces]

    def values(self, states: Sequence[State]) -> Float[Tensor, "state batch"]:
        """The logit difference of each prompt in each state: `Keep(nodes)` and `Out(nodes)`, in any mixture.

        Raises:
            PatchError: no states, an unknown position, or no finite answer.
            HeadError: an unknown head.
        """
        check_states(self.model, self.pop, states)
        if self.known is None:
            return self._measured(states)
        keys = [(type(state).__name__, *sorted({tuple(node) for node in state.nodes})) for state in states]
        return self.known.values(self._context, keys, len(self.pop), partial(self._asked, states))

    @property
    def origin(self) -> Literal["recorded", "measured"]:
        """Whether some values so far came from the record."""
        return "recorded" if self.known and self.known.has_given(self._context) else "measured"

    @cached_property
    def _context(self) -> tuple[Hashable, ...]:
        """What the values of all states depend on."""
        reference = prompt_key(self.reference) if self.reference else ""
        return ("states", prompt_key(self.pop), reference, *self._how.values())

    def _asked(self, states: Sequence[State], numbers: list[int], prompts: list[int] | None) -> Tensor:
        some = [states[number] for number in numbers]
        if prompts is None:
            return self._measured(some)
        few = tuple(prompts)
        if few not in self._few:
            # A draw of another prompt, or one's own twin, is by the place among all prompts: those means stay.
            drawn = self._how["how"] in ("resample", "corrupted")
            means = self.means if drawn else self._given
            self._few[few] = Runner(self.model, self.pop.subset(few), self.reference, means=means, **self._how)
        return self._few[few].values(some)

    def _measured(self, states: Sequence[State]) -> Float[Tensor, "state batch"]:
        with torch.no_grad():
            found = torch.cat([self._values(number, states) for number in range(len(self._pieces))], dim=1)
        return finite(found, self.pop)

    def _values(self, number: int, states: Sequence[State]) -> Float[Tensor, "state batch"]:
        """For one piece of the prompts; states that need too many rows are run half by half."""
        pop, cfg = self._pieces[number], self.model.cfg
        plan = None
        if len(states) <= STATES_AT_ONCE:
            plan = schedule(kept_heads(pop, states, cfg.n_layers, cfg.n_heads), pop.end)
        if plan is None or (len(states) > 1 and plan.most_rows > ROWS_AT_ONCE):
            half = len(states) // 2
            return torch.cat([self._values(number, part) for part in (states[:half], states[half:])])
        return _run(self._suffixes[number], plan, pop, self.means)


def _recorded(model: TransformerBridge, network: Network, pop: Population) -> Suffix:
    """The arithmetic for these prompts, compared with the bridge; of the run only what `_run` reads stays."""
    base = record(model, pop.tokens, pop.end, Suffix.hooks(model))
    suffix = Suffix.proven(network, base, pop.end, torch.ones_like(pop.end))
    kept = {}
    for layer in range(model.cfg.n_layers):
        for hook in Suffix.hooks(model):
            name = f"blocks.{layer}.{hook}"
            if hook in (suffix.keys, "attn.hook_v"):
                kept[name] = base.activations[name][:, :1].clone()
            elif hook != "hook_resid_pre" or layer == 0:
                kept[name] = base.activations[name].clone()
    return Suffix(network, Run(kept, base.logits[:, :0]), pop.end)


class Streams(NamedTuple):
    """Streams that are computed, one a row: prompt and position of each."""

    prompt: np.ndarray
    place: np.ndarray


class LayerRows(NamedTuple):
    """One layer: from the rows before it to the rows after it."""

    rows: Streams
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

    start: Streams
    steps: list[LayerRows]
    last: np.ndarray

    @property
    def most_rows(self) -> int:
        """The largest number of rows after any layer."""
        return max(len(step.source) for step in self.steps)


def schedule(kept: Int[Tensor, "layer state batch pos"], end: Int[Tensor, " batch"]) -> Schedule:
    """The rows of these states.

    Args:
        kept: `kept_heads`.
        end: position of END in each prompt.
    """
    bits, end = kept.cpu().numpy(), end.cpu()
    n_layers, n_states, n_prompts, n_pos = bits.shape
    at_end = np.broadcast_to(np.arange(n_pos) == end.numpy()[:, None], (n_states, n_prompts, n_pos))
    needed = [*_read_later(bits != 0), np.zeros_like(at_end)]
    alive = needed[0] | at_end
    prompt, place = (np.broadcast_to(grid, alive.shape) for grid in np.indices((n_prompts, n_pos)))
    row, first = _number(prompt * n_pos + place, alive)
    start = Streams(prompt[alive][first], place[alive][first])
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
            LayerRows(
                Streams(prompts, places),
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


def _run(suffix: Suffix, plan: Schedule, pop: Population, replaced: Means) -> Float[Tensor, "state batch"]:
    """The logit difference of each prompt in each state.

    Args:
        suffix: the plain run of these prompts, proven against the bridge. Of it only the stream before layer 0 and keys
            and values of the first position are read.
        plan: the rows.
        replaced: what takes the place of the output of heads that are not kept.
    """
    network = suffix.network
    x = suffix.base["hook_resid_pre", 0][_long(plan.start.prompt), _long(plan.start.place)]  # [row d_model]
    before = plan.start
    for layer, step in enumerate(progress(plan.steps, "circuit states", len(plan.steps))):
        means = replaced.of(pop, layer, pop.tokens.shape[1])
        source, prompt, place = _long(step.source), _long(step.rows.prompt), _long(step.rows.place)
        after = x[source] + network.project(layer, means)[prompt, place]
        if len(step.asking):
            asking = _long(step.asking)
            after[asking] = x[source[asking]] + _attention(suffix, layer, x, before, step, means)
        for rows in torch.arange(len(after)).split(MLP_AT_ONCE):
            after[rows] += network.mlp(layer, after[rows])
        x, before = after, step.rows
    last = x[_long(plan.last)]  # [state batch d_model]
    n_states = len(last)
    right, wrong = (ids.repeat(n_states) for ids in (pop.io_ids, pop.s_ids))
    return network.logit_difference(last.flatten(0, 1), right, wrong).unflatten(0, (n_states, len(pop)))


def _attention(
    suffix: Suffix, layer: int, x: Tensor, before: Streams, step: LayerRows, means: Tensor
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
    heads = torch.arange(network.n_heads)
    parts = []
    for chunk in torch.arange(len(step.asking)).split(ASKING_AT_ONCE):
        asking = _long(step.asking)[chunk]
        prompt, place = _long(step.rows.prompt)[asking], _long(step.rows.place)[asking, None]
        seen = number[_long(step.seen)[chunk]]  # [asking pos]
        keys, values = k[seen], v[seen]  # [asking pos kv_head d_head]
        keys[:, 0], values[:, 0] = first[0][prompt], first[1][prompt]
        mine = number[_long(step.source)[asking]]
        q = network.queries(layer, normed[mine], suffix.rotation(layer, place))
        allowed = torch.arange(n_pos) <= place[..., None]  # [asking 1 pos]: its own position and those before it
        z = network.attend(q, keys, values, allowed)[:, 0]  # [asking head d_head]
        own = (_long(step.kept)[chunk, None] >> heads) & 1
        z = torch.where(own[..., None] > 0, z, means[prompt, place[:, 0]])
        parts.append(network.project(layer, z))
    return torch.cat(parts)


def _long(array: object) -> Tensor:
    return torch.as_tensor(array, dtype=torch.long)


guard(globals(), PatchError)
