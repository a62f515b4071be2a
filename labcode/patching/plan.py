"""What a sweep is going to patch: the checked cells, and for each of their runs the first position that can change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch

from labcode.errors import PatchError

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

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


@dataclass(frozen=True)
class Axis:
    """One axis of the cells: its name ("layer", "head", "key/value head", "position") and a label for each entry."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
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

    def __getitem__(self, index: Tensor | slice) -> Rows:
        return Rows(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep, flat, in row-major order of `axes`.

    Attributes:
        kind: the activation that is patched.
        axes: what the cells are.
        layer, head, place: of each cell; `head` is `ALL` for activations of the whole stream.
        positions: position of each place in each prompt, or `ALL`.
    """

    kind: str
    axes: tuple[Axis, ...]
    layer: Int[Tensor, " cell"]
    head: Int[Tensor, " cell"]
    place: Int[Tensor, " cell"]
    positions: Int[Tensor, "place batch"]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis.labels) for axis in self.axes)

    def subset(self, prompts: Sequence[int]) -> Plan:
        """The same cells for some of the prompts."""
        return replace(self, positions=self.positions[:, list(prompts)])

    def rows(self, first_difference: Int[Tensor, " batch"]) -> Rows:
        """The patched runs. A cell whose position precedes the first different token changes nothing and has no row."""
        batch, by_layer = len(first_difference), self.layer.argsort(stable=True)
        cell = by_layer.repeat_interleave(batch)
        prompt = torch.arange(batch).repeat(len(by_layer))
        position = self.positions[self.place[by_layer]].flatten()
        first = first_difference[prompt]
        start = torch.where(position == ALL, first, position)
        return Rows(cell, prompt, self.layer[cell], self.head[cell], position, start)[start >= first]


def plan(
    model: TransformerBridge,
    clean: Population,
    kind: str,
    at: str | Sequence[str],
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    only: Sequence[tuple[int, int]] | None = None,
) -> Plan:
    """Check what is asked for and lay out the cells.

    Raises:
        PatchError: unknown kind, layer, head or position; "each" with prompts of several lengths; `only` beside layers
            and heads, or for an activation that belongs to no head.
    """
    cfg = model.cfg
    if kind not in HOOKS:
        raise PatchError(f"unknown kind {kind!r}: choose one of {', '.join(HOOKS)}", see="unknown-kind")
    if f"blocks.0.{HOOKS[kind]}" not in model.hook_dict:
        raise PatchError(f"this model has no {kind}: its blocks are without it", see="missing-part")
    n_heads = (cfg.n_key_value_heads or cfg.n_heads) if kind in GROUPED_KINDS else cfg.n_heads
    name = "head" if n_heads == cfg.n_heads else "key/value head"
    if only is not None:
        return _plan_only(clean, kind, at, only, (cfg.n_layers, n_heads), name, (layers, heads))
    chosen_layers = _chosen("layer", layers, cfg.n_layers)
    axes, chosen_heads = [Axis("layer", tuple(map(str, chosen_layers)))], [ALL]
    if kind not in STREAM_KINDS:
        chosen_heads = _chosen(name, heads, n_heads)
        axes.append(Axis(name, tuple(map(str, chosen_heads))))
    elif heads is not None:
        raise PatchError(
            f"{kind} belongs to no head: leave `heads` out, or choose one of z, q, k, v, pattern", see="headless-kind"
        )
    labels, positions = _places(clean, at)
    if labels:
        axes.append(Axis("position", labels))
    choices = torch.tensor(chosen_layers), torch.tensor(chosen_heads), torch.arange(len(positions))
    layer, head, place = torch.cartesian_prod(*choices).unbind(-1)
    return Plan(kind, tuple(axes), layer, head, place, positions)


def _plan_only(
    clean: Population,
    kind: str,
    at: str | Sequence[str],
    only: Sequence[tuple[int, int]],
    shape: tuple[int, int],
    name: str,
    product: tuple[Sequence[int] | None, Sequence[int] | None],
) -> Plan:
    if kind in STREAM_KINDS:
        raise PatchError(
            f"{kind} belongs to no head: leave `only` out and give layers, or choose z, q, k, v, pattern",
            see="headless-kind",
        )
    if product != (None, None):
        raise PatchError(
            "give either `only`, a list of (layer, head), or layers and heads, not both", see="heads-twice"
        )
    if not only:
        raise PatchError("no head chosen: give at least one in `only`, or leave it out for all", see="nothing-chosen")
    for layer, head in only:
        _chosen("layer", [layer], shape[0])
        _chosen(name, [head], shape[1])
    labels, positions = _places(clean, at)
    axes = [Axis(name, tuple(f"{layer}.{head}" for layer, head in only))]
    if labels:
        axes.append(Axis("position", labels))
    cell, place = torch.cartesian_prod(torch.arange(len(only)), torch.arange(len(positions))).unbind(-1)
    layer, head = torch.tensor(list(only)).T
    return Plan(kind, tuple(axes), layer[cell], head[cell], place, positions)


def first_difference(base: Population, source: Population) -> Int[Tensor, " batch"]:
    """The first position at which two aligned populations hold different tokens, for each prompt.

    0 where the prompts are equal: then the whole run is computed, so that patching a run with itself tests the engine.

    Raises:
        PatchError: a different number of prompts or of tokens, or S2 in another place; the message shows where.
    """
    if not len(base):
        raise PatchError("an empty population: give at least one prompt", see="empty-population")
    if len(base) != len(source):
        raise PatchError(f"{len(base)} prompts against {len(source)}: each prompt needs one partner", see="no-partner")
    for row in (base.lengths != source.lengths).nonzero()[:, 0].tolist():
        raise PatchError(_misaligned(row, base.str_tokens[row], source.str_tokens[row]), see="misaligned-prompts")
    # As many tokens, but shifted words. The order of the two first names may differ on purpose, so S2 is what we ask.
    for row in (base.positions["S2"] != source.positions["S2"]).nonzero()[:, 0].tolist():
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
            raise PatchError(f"no {what} {one}: this model has {n}, counted from 0", see="no-such-part")
    return chosen


def _places(pop: Population, at: str | Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """Labels of the position axis (none where there is one place) and the positions, [place batch]."""
    if at == "all":
        return (), torch.full((1, len(pop)), ALL)
    if at == "each":
        if pop.lengths.unique().numel() > 1:
            raise PatchError(
                f"prompts of {pop.lengths.unique().tolist()} tokens have no common positions: use at=[names], such as "
                f"at={list(pop.positions)}, or group the prompts by length",
                see="different-lengths",
            )
        n = int(pop.lengths[0])
        columns = [{strings[i] for strings in pop.str_tokens} for i in range(n)]
        labels = tuple(f"{i} {min(column).strip()}" if len(column) == 1 else str(i) for i, column in enumerate(columns))
        return labels, torch.arange(n)[:, None].expand(n, len(pop))
    names = [at] if isinstance(at, str) else list(at)
    for name in names:
        if name not in pop.positions:
            raise PatchError(
                f"unknown position {name!r}: choose 'all', 'each' or among {', '.join(pop.positions)}",
                see="unknown-position",
            )
    positions = torch.stack([pop.positions[name] for name in names])
    return (() if isinstance(at, str) else tuple(names)), positions


def _misaligned(row: int, base: Sequence[str], source: Sequence[str]) -> str:
    first = next((i for i, (a, b) in enumerate(zip(base, source, strict=False)) if a != b), min(len(base), len(source)))
    return (
        f"prompt {row} has {len(base)} tokens and its partner {len(source)}, so positions do not correspond. "
        f"They part at position {first}:\n  {list(base[: first + 2])}\n  {list(source[: first + 2])}\n"
        "Use names and words that are single tokens in both."
    )
