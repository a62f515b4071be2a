"""Path patching: how much of what a head does reaches the answer, or another head, along the direct wire.

Activation patching lets a change travel everywhere. Path patching (Wang et al. 2022, section 3 and appendix B) lets it
leave the sender and arrive at the receiver only through the residual stream and the MLPs between them. Every other head
is frozen: it adds what it added in the base run.

Three passes besides the base run A. B: the source run. C: the base run with the sender's z from B, all other heads as
in A, MLPs recomputed; what arrives at the receivers is kept. D: the base run with the receivers' input from C, and
everything after them free. For the wire to the logits, C is the answer already.

Used in chapters 06 to 09.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch

from labcode.metrics import logit_difference
from labcode.patching import Direction, Grid, Metric, PatchError
from labcode.patching.cells import Cells
from labcode.patching.drive import Piece, drive, in_batches
from labcode.patching.plan import ALL, GROUPED_KINDS, Rows, plan
from labcode.patching.suffix import Edit, Run, Suffix

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

Head = tuple[int, int]
Input = Literal["logits", "q", "k", "v"]


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
    freeze_mlps: bool = False,
    metric: Metric = logit_difference,
    max_bytes: int = 2**29,
) -> Grid:
    """Patch the path from each head, one at a time, to the logits or into the receivers, all of these together.

    Args:
        clean, corrupted: aligned populations; in the paper the corrupted one holds three unrelated names ("abc").
        into: "logits", or the input of the receivers that is replaced: queries, keys or values.
        receivers: (layer, head) each. Where heads share keys and values, "k" and "v" reach every head of the group.
        sender_at: the senders' positions: "all" or one named position.
        receiver_at: the positions at which the receivers' input is replaced: "all" or one named position. Keys and
            values act where they are read from, queries where they ask.
        direction: "noising", as in the paper, sends corrupted activations into clean runs; "denoising" the other way.
        layers, heads: the senders; all by default. One that comes too late for every receiver has no effect.
        freeze_mlps: freeze MLPs as well, so that the residual stream is the only wire. The paper does not.
        metric, max_bytes: as in `labcode.patching.sweep`.

    Returns:
        A grid with axes layer and head of the sender. An effect of 0.2 in noising: this wire alone carries a fifth of
        the gap between clean and corrupted runs.

    Raises:
        PatchError: as `labcode.patching.sweep`; receivers missing, unknown or without a use; a model that is neither
            GPT-2-like nor Llama-like.

    Limits: norms on the way are recomputed, so the effect of a wire depends on what else is in the stream; and wires
    that only matter together show in none.

    Used in chapters 06 to 08.
    """
    wanted = _receivers(model, into, receivers)
    work = plan(model, clean, "z", sender_at, layers, heads)
    if receiver_at != "all" and receiver_at not in clean.positions:
        raise PatchError(
            f"unknown position {receiver_at!r}: choose 'all' or among {', '.join(clean.positions)}",
            see="unknown-position",
        )

    def patched(piece: Piece, source: Run, suffix: Suffix | None) -> Float[Tensor, "cell batch"]:
        if suffix is None:
            raise PatchError(
                "path patching needs a GPT-2-like or Llama-like model; sweep() works on this one, slowly",
                see="unsupported-model",
            )
        where = "END" if into == "logits" else receiver_at
        place = torch.full_like(piece.start, ALL) if where == "all" else piece.clean.positions[where]
        paths = Paths(model, suffix, source, into, wanted, place, freeze_mlps)
        rows = paths.that_arrive(piece.plan.rows(piece.start))
        return in_batches(piece, suffix, rows, paths.final, f"paths into {into}")

    hooks = [*Suffix.hooks(model), "attn.hook_z", "hook_attn_out", *(["hook_mlp_out"] if freeze_mlps else [])]
    return drive(model, clean, corrupted, direction, work, metric, max_bytes, hooks, patched)


class Paths:
    """Passes C and D, for batches of senders and prompts.

    Args:
        suffix: the base run, with z and attn_out, and mlp_out if MLPs are frozen.
        source: the run that the senders' z is taken from.
        receivers: heads by layer; key/value heads for "k" and "v".
        place: the position in each prompt where a path ends, or `ALL`.
    """

    def __init__(
        self,
        model: TransformerBridge,
        suffix: Suffix,
        source: Run,
        into: Input,
        receivers: dict[int, list[int]],
        place: Int[Tensor, " batch"],
        freeze_mlps: bool,
    ) -> None:
        self.suffix, self.network, self.base = suffix, suffix.network, suffix.base
        self.senders = Cells(model, suffix, source, "z")
        self.into, self.receivers, self.place, self.freeze_mlps = into, receivers, place, freeze_mlps
        self.top = max(receivers, default=self.network.n_layers)  # no sender from here on reaches a receiver

    def that_arrive(self, rows: Rows) -> Rows:
        """The rows whose path leads to the receivers, each from where it ends.

        With every other head frozen nothing moves between positions: a path ends at the position where it begins.
        """
        place = self.place[rows.prompt]
        same = (rows.position == ALL) | (rows.position == place)
        arrives = (place == ALL) | ((place >= rows.start) & same)
        starts = replace(rows, start=torch.where(place == ALL, rows.start, place))
        return starts[arrives & (rows.layer < self.top)]

    def final(self, rows: Rows, width: int) -> Float[Tensor, "run d_model"]:
        """The residual stream at END after the last block, of runs that share a window width."""
        window, place = self.suffix.window(rows.prompt, width), self.place[rows.prompt]
        # A message that ends at one place travels there alone: with heads frozen nothing moves between positions.
        x, arrived = self._send(rows, window if (place == ALL).any() else place[:, None])
        return x[:, -1] if self.into == "logits" else self._receive(rows, window, arrived)

    def _send(
        self, rows: Rows, window: Int[Tensor, "run window"]
    ) -> tuple[Float[Tensor, "run window d_model"], dict[int, Tensor]]:
        """Pass C: the frozen stream, and by layer the inputs that arrive at its receivers [run window head d_head]."""
        x = torch.empty(*window.shape, self.network.d_model)
        arrived: dict[int, Tensor] = {}
        live = 0  # so many senders have sent
        for layer in range(int(rows.layer[0]), min(self.top + 1, self.network.n_layers)):
            if live and layer in self.receivers:
                arrived[layer] = self._inputs(layer, x[:live], window[:live])
            at = (rows.prompt[:live, None], window[:live])
            x[:live] += self.base["hook_attn_out", layer][at]
            joining = slice(live, live := int((rows.layer <= layer).sum()))
            x[joining] = self.senders.entry(layer, rows[joining], window[joining])
            at = (rows.prompt[:live, None], window[:live])
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
        self, rows: Rows, window: Int[Tensor, "run window"], arrived: dict[int, Tensor]
    ) -> Float[Tensor, "run d_model"]:
        """Pass D, from the first receiver upwards."""
        first, last = min(arrived), self.network.n_layers - 1
        x = self.base["hook_resid_pre", first][rows.prompt[:, None], window]
        for layer in range(first, self.network.n_layers):
            out = slice(-1, None) if layer == last else slice(None)
            edit = self._edit(layer, rows, window, arrived[layer]) if layer in arrived else None
            x[:, out] += self.suffix.attention(layer, x, rows.prompt, window, layer == last, edit)
            x[:, out] += self.network.mlp(layer, x[:, out])
        return x[:, -1]

    def _edit(self, layer: int, rows: Rows, window: Int[Tensor, "run window"], arrived: Tensor) -> Edit:
        """Give the receivers of this layer what has arrived, in the runs whose sender comes before it."""
        place, heads, n = self.place[rows.prompt, None], self.receivers[layer], len(arrived)
        here = ((place == ALL) | (place == window))[:n, :, None, None]

        def edit(q: Tensor, k: Tensor, v: Tensor) -> None:
            target = {"q": q, "k": k, "v": v}[self.into]
            width = target.shape[1]  # at the last layer there is one query only
            # `arrived` holds the whole window, or the one place, which then stands for every column.
            target[:n, :, heads] = torch.where(here[:, -width:], arrived[:, -width:], target[:n, :, heads])

        return edit


def _receivers(model: TransformerBridge, into: str, receivers: Sequence[Head]) -> dict[int, list[int]]:
    """Heads by layer, in ascending order; for keys and values the heads that hold them.

    Raises:
        PatchError: an unknown input or head, or receivers that `into` has no use for, or none where it needs them.
    """
    if into not in ("logits", "q", "k", "v"):
        raise PatchError(f"unknown input {into!r}: choose 'logits', 'q', 'k' or 'v'", see="unknown-kind")
    if (into == "logits") == bool(receivers):
        raise PatchError(
            "give receivers, as (layer, head), for into='q', 'k' or 'v', and none for into='logits'", see="receivers"
        )
    cfg = model.cfg
    group = cfg.n_heads // (cfg.n_key_value_heads or cfg.n_heads) if into in GROUPED_KINDS else 1
    wanted: dict[int, set[int]] = {}
    for layer, head in receivers:
        if layer not in range(cfg.n_layers) or head not in range(cfg.n_heads):
            raise PatchError(
                f"no head {layer}.{head}: this model has {cfg.n_layers} layers of {cfg.n_heads} heads",
                see="no-such-part",
            )
        wanted.setdefault(layer, set()).add(head // group)
    return {layer: sorted(wanted[layer]) for layer in sorted(wanted)}
