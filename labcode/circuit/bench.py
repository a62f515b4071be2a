"""A model on some prompts, set up once and then run in as many states as one likes.

Used in chapter 10.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from labcode.circuit import engine
from labcode.circuit.means import Means
from labcode.circuit.schedule import Schedule, schedule
from labcode.circuit.states import State, check, kept_heads
from labcode.errors import ModelError, PatchError
from labcode.metrics import end_logits, logit_difference
from labcode.patching.suffix import Run, Suffix, prompts_at_once, record
from labcode.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

MAX_HEADS = 62  # so many fit in the bits of one whole number


def values(
    model: TransformerBridge,
    pop: Population,
    reference: Population,
    states: Sequence[State],
    *,
    max_bytes: int = 2**29,
) -> Float[Tensor, "state batch"]:
    """The logit difference of each prompt in each state.

    Heads that a state does not keep get their mean over the reference prompts of the same template, position by
    position (Wang et al. 2022, section 2.1). MLPs are kept and recomputed. The first position is never replaced: its
    token is the same in every prompt.

    Args:
        reference: prompts of the same templates that know nothing of who is who: `corrupt(model, pop, "abc")`, or that
            of a larger population for better means.
        states: `Keep(nodes)` and `Out(nodes)`, in any mixture.
        max_bytes: bound for stored activations and working memory, beside the model's own.

    Raises:
        PatchError: no states, an unknown head or position, or a template that the reference lacks.

    Limits: a mean of few reference prompts is noisy; and the state with everything replaced is one that the model never
    saw in training.

    Used in chapter 10, through `Bench.values`.
    """
    check(model, pop, states)
    return Bench(model, pop, reference, max_bytes=max_bytes).values(states)


class Bench:
    """What `values` needs before the first state: means of the reference, and the arithmetic, proven on these prompts.

    Args:
        model, pop, reference, max_bytes: as for `values`.
        means: those of another bench of the same model, whose templates include these; else they are measured.

    Attributes:
        model, pop: as given. draws: of the prompts, for intervals. means: of the reference.
        engine: "rows", or "replay" where the model's arithmetic is not known and every state takes a forward pass.

    Raises:
        PatchError: a template that the reference lacks, or a model that is not on the CPU.

    Used in chapter 10.
    """

    def __init__(
        self,
        model: TransformerBridge,
        pop: Population,
        reference: Population,
        *,
        means: Means | None = None,
        max_bytes: int = 2**29,
    ) -> None:
        if str(model.cfg.device) != "cpu":
            raise PatchError(
                "circuits run on the CPU, whose numbers are the reference: load with device='cpu'", see="not-on-the-cpu"
            )
        self.model, self.pop, self.draws, self.max_bytes = model, pop, pop.draws, max_bytes
        self.means = means or Means(model, pop, reference)
        self.pieces = list(pop.chunks(min(32, prompts_at_once(model, pop.tokens.shape[1], max_bytes // 2))))
        self.engine = "rows"
        try:
            if model.cfg.n_heads > MAX_HEADS:
                raise ModelError(f"more than {MAX_HEADS} heads in a layer", see="unsupported-model")
            self._suffixes = [_proven(model, piece) for piece in self.pieces]
        except ModelError as reason:
            self.engine = "replay"
            warnings.warn(f"slow: each state takes a whole forward pass, because this model has {reason}", stacklevel=2)

    def values(self, states: Sequence[State]) -> Float[Tensor, "state batch"]:
        """As `circuit.values`."""
        check(self.model, self.pop, states)
        run = self._by_rows if self.engine == "rows" else self._by_replay
        with torch.no_grad():
            found = torch.cat([run(number, states) for number in range(len(self.pieces))], dim=1)
        if not torch.isfinite(found).all():
            row = int((~torch.isfinite(found)).any(0).nonzero()[0])
            raise PatchError(
                f"no finite answer on {self.pop.prompts[row].text!r}: check the model's weights", see="nan-in-the-run"
            )
        return found

    def _by_rows(self, number: int, states: Sequence[State]) -> Float[Tensor, "state batch"]:
        pop, suffix, cfg = self.pieces[number], self._suffixes[number], self.model.cfg
        room = max(1, self.max_bytes // 4)
        plan = None
        # Each state keeps one number for each layer, prompt and position, and a few more while they are sorted.
        if 3 * 8 * cfg.n_layers * pop.tokens.numel() * len(states) <= 2 * room or len(states) == 1:
            plan = schedule(kept_heads(pop, states, cfg.n_layers, cfg.n_heads), pop.end)
        if plan is None or (len(states) > 1 and _bytes(plan, suffix) > room):
            half = len(states) // 2
            return torch.cat([self._by_rows(number, part) for part in (states[:half], states[half:])])
        normal = partial(self._normal, number)
        return engine.run(suffix, plan, pop, normal, room)

    def _by_replay(self, number: int, states: Sequence[State]) -> Float[Tensor, "state batch"]:
        pop, cfg = self.pieces[number], self.model.cfg
        own = kept_heads(pop, states, cfg.n_layers, cfg.n_heads)  # [layer state batch pos]
        heads, found = torch.arange(cfg.n_heads), []
        start = torch.arange(own.shape[-1]) == 0
        for state in progress(range(len(states)), "circuit states"):
            hooks = []
            for layer in range(cfg.n_layers):
                keep = ((own[layer, state, ..., None] >> heads) & 1 > 0) | start[:, None]  # [batch pos head]
                hook = partial(_replace, keep=keep, mean=self._normal(number, layer))
                hooks.append((f"blocks.{layer}.attn.hook_z", hook))
            with self.model.hooks(fwd_hooks=hooks):
                found.append(logit_difference(end_logits(self.model, pop, len(pop)), pop))
        return torch.stack(found)

    def _normal(self, number: int, layer: int) -> Float[Tensor, "batch pos head d_head"]:
        pop = self.pieces[number]
        return self.means.of(pop, layer, pop.tokens.shape[1])


def _proven(model: TransformerBridge, pop: Population) -> Suffix:
    """The arithmetic for these prompts, compared with the bridge; of the run only what the engine reads stays."""
    (base,) = record(model, [pop], Suffix.hooks(model))
    suffix = Suffix.proven(model, base, pop.end, torch.ones_like(pop.end))
    kept = {}
    for layer in range(model.cfg.n_layers):
        for hook in Suffix.hooks(model):
            name = f"blocks.{layer}.{hook}"
            if hook in (suffix.keys, "attn.hook_v"):
                kept[name] = base.activations[name][:, :1].clone()
            elif hook != "hook_resid_pre" or layer == 0:
                kept[name] = base.activations[name].clone()
    return Suffix(suffix.network, Run(kept, base.logits[:, :0]), pop.end)


def _bytes(plan: Schedule, suffix: Suffix) -> int:
    return plan.most_rows * engine.bytes_of_a_row(suffix)


def _replace(z: Tensor, hook: Any, keep: Tensor, mean: Tensor) -> Tensor:
    return torch.where(keep[..., None], z, mean)
