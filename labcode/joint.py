"""Whole sets of heads patched together, many sets at once.

`patching.sweep` patches one head at a time. Here all heads of a set take one activation from another run, and many sets
share the two recorded runs: a null of twenty random sets then costs little more than one set. The arithmetic is that of
`labcode.forward`: only what a patch can change is computed anew, from the lowest patched layer and from the patched
position on, and it is compared with the bridge on the prompts that are given.

Dimensions: `run` counts patched runs, `window` the positions that are computed, `pos` all positions of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from labcode.errors import PatchError
from labcode.forward import Network, Run, Suffix, record, rotated
from labcode.heads import Head, check_heads
from labcode.inputs import guard
from labcode.patching import HOOKS

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

Kind = Literal["z", "q", "k", "v", "kv"]


@dataclass(frozen=True)
class JointRuns:
    """What comes of each set.

    Attributes:
        values: the logit difference.
        attention: of each watched head, from END.
        z: what each watched head reads at END, before its output matrix.
    """

    values: Float[Tensor, "set batch"]
    attention: Float[Tensor, "set watched batch pos"]
    z: Float[Tensor, "set watched batch d_head"]


class Joint:
    """Prompts, run once, into which activations of other runs can be put.

    Attributes:
        pop: the prompts.
        base: their run, with the stream before each block, and with keys and values.

    Raises:
        PatchError: a model under hooks.

    Limits: all prompts are recorded together, so take some dozens at most.
    """

    def __init__(self, model: TransformerBridge, pop: Population) -> None:
        self.model, self.pop = model, pop
        self.network = Network(model)
        self.base = record(model, pop.tokens, pop.end, Suffix.hooks(model))
        self.suffix = Suffix.proven(self.network, self.base, pop.end, pop.positions["S2"])
        rows = torch.arange(len(pop))
        self._clean = self.base.logits[rows, pop.io_ids] - self.base.logits[rows, pop.s_ids]
        self.hooks = {
            kind: rotated(model, kind) if kind in ("q", "k") else HOOKS[kind] for kind in ("z", "q", "k", "v")
        }

    @property
    def clean(self) -> Float[Tensor, " batch"]:
        """The logit differences of the prompts as they are."""
        return self._clean.cpu()

    def source(self, other: Population) -> Run:
        """A run of prompts that are aligned with `pop`, to take activations from.

        Raises:
            PatchError: prompts of other lengths, or with S2 elsewhere.
        """
        for mine, its in ((self.pop.lengths, other.lengths), (self.pop.positions["S2"], other.positions["S2"])):
            if mine.tolist() != its.tolist():
                raise PatchError(
                    "prompts of different lengths do not align: make the source with `signal_variant` or `corrupt`",
                    see="misaligned-prompts",
                )
        return record(self.model, other.tokens, other.end, sorted(set(self.hooks.values())))

    def end_of(self, other: Population) -> Run:
        """What heads write at END of other prompts, to be put at END of these; they may differ in length.

        Raises:
            PatchError: another number of prompts.
        """
        if len(other) != len(self.pop):
            raise PatchError(f"{len(self.pop)} prompts against {len(other)}: each prompt needs one partner")
        found, rows = record(self.model, other.tokens, other.end, ["attn.hook_z"]), torch.arange(len(other))
        kept = {
            name: value[rows, other.end][:, None].expand(-1, self.suffix.n_pos, -1, -1)
            for name, value in found.activations.items()
        }
        return Run(kept, found.logits)

    def run(
        self,
        source: Run,
        sets: Sequence[Sequence[Head]],
        kind: Kind = "z",
        at: str = "END",
        watch: Sequence[Head] = (),
        shared: bool = True,
    ) -> JointRuns:
        """Each set of heads, all of them together, with one activation of `source` at one position.

        Args:
            sets: heads as (layer, head); an empty set leaves the run as it is. Where heads share keys and values, "k"
                and "v" reach every head of the group.
            kind: outputs before projection ("z"), queries, keys, values, or keys and values in one run ("kv").
            at: the position whose activation is taken. Keys and values act where they are read from.
            watch: heads whose attention and reading at END are kept.
            shared: if False, only the members of a set read its keys and values, and not the heads that share them.

        Raises:
            PatchError: no set, or an unknown position.
            HeadError: a head that this model does not have.
        """
        if not sets:
            raise PatchError(f"0 sets at {at!r}: give at least one set", see="nothing-chosen")
        if at not in self.pop.positions:
            raise PatchError(f"sets at {at!r}: give one of {', '.join(self.pop.positions)}")
        chosen = self._chosen(sets, kind)
        readers = None if shared or kind in ("z", "q") else self._chosen(sets, "z")
        watched = check_heads(self.model, watch)
        first = min([layer for members in (*sets, watched) for layer, _ in members], default=self.network.n_layers - 1)
        n_sets, n, width = len(sets), len(self.pop), self.suffix.n_pos
        values = self._clean.repeat(n_sets, 1)
        attention = torch.zeros(n_sets, len(watched), n, width)
        z_end = torch.zeros(n_sets, len(watched), n, self.network.d_head)
        widths = self.pop.end - self.pop.positions[at] + 1
        for here in widths.unique().tolist():
            rows = (widths == here).nonzero()[:, 0]
            which = torch.arange(n_sets).repeat_interleave(len(rows))
            prompt = rows.repeat(n_sets)
            for layer, x, pattern, z in self._layers(
                source, chosen[which], kind, prompt, here, first, None if readers is None else readers[which]
            ):
                if layer == self.network.n_layers:
                    ids = self.pop.io_ids[prompt], self.pop.s_ids[prompt]
                    values[which, prompt] = self.network.logit_difference(x[:, -1], *ids)
                for i, head in enumerate(watched):
                    if head[0] == layer:
                        attention[which, i, prompt], z_end[which, i, prompt] = pattern[:, head[1]], z[:, head[1]]
        return JointRuns(values, attention, z_end)

    def _chosen(self, sets: Sequence[Sequence[Head]], kind: Kind) -> Bool[Tensor, "set layer head"]:
        n_heads = self.network.n_kv_heads if kind in ("k", "v", "kv") else self.network.n_heads
        chosen = torch.zeros(len(sets), self.network.n_layers, n_heads, dtype=torch.bool)
        for i, members in enumerate(sets):
            for layer, head in check_heads(self.model, members):
                chosen[i, layer, head // (self.network.n_heads // n_heads)] = True
        return chosen

    @torch.no_grad()
    def _layers(
        self,
        source: Run,
        chosen: Bool[Tensor, "run layer head"],
        kind: Kind,
        prompt: Int[Tensor, " run"],
        width: int,
        first: int,
        readers: Bool[Tensor, "run layer head"] | None,
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """For each layer from `first` on: its number, the stream before it, and attention and z of END.

        Last the number of layers and the final stream. The window begins at the patched position.
        """
        suffix, network = self.suffix, self.network
        window = suffix.window(prompt, width)
        place = window[:, 0]
        x = self.base["hook_resid_pre", first][prompt[:, None], window]

        def put(layer: int, target: Tensor, what: str) -> None:  # [run window head d_head]
            new = source[self.hooks[what], layer][prompt, place]
            target[:, 0] = torch.where(chosen[:, layer, :, None], new, target[:, 0])

        def read(layer: int, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            k, v, allowed = suffix.seen(layer, inputs, prompt, window)
            return _from_end(inputs[0], k, allowed), network.attend(inputs[0], k, v, allowed)

        for layer in range(first, network.n_layers):
            inputs = suffix.inputs(layer, x, window, end_only=False)
            plain = read(layer, inputs) if readers is not None else None
            for what in kind.replace("z", ""):
                put(layer, inputs["qkv".index(what)], what)
            pattern, z = read(layer, inputs)
            if plain is not None and readers is not None:
                mine = readers[:, layer]  # the heads that share what they read see what was there before
                pattern = torch.where(mine[:, :, None], pattern, plain[0])
                z = torch.where(mine[:, None, :, None], z, plain[1])
            yield layer, x, pattern, z[:, -1]
            if kind == "z":
                put(layer, z, kind)
            x = x + network.project(layer, z)
            x = x + network.mlp(layer, x)
        yield network.n_layers, x, x, x


def _from_end(
    q: Float[Tensor, "run window head d_head"],
    k: Float[Tensor, "run pos kv_head d_head"],
    allowed: Bool[Tensor, "run window pos"],
) -> Float[Tensor, "run head pos"]:
    """The attention pattern of the last query in the window."""
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    scores = torch.einsum("rhd,rphd->rhp", q[:, -1], k) / q.shape[-1] ** 0.5
    return scores.masked_fill(~allowed[:, -1:], -torch.inf).softmax(-1)


guard(globals(), PatchError)
