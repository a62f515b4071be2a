"""What heads write where nobody can know who is who: their mean output over prompts of the same template.

Wang et al. 2022, section 2.1: the reference holds three unrelated names, and the mean is taken position by position
over the prompts of one template.

Used in chapter 10, through `labcode.circuit`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from labcode.circuit.ablation import shape_of
from labcode.errors import PatchError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population


class Means:
    """Mean z of every head, for the templates of a population.

    Args:
        pop: the prompts that will be run.
        reference: the prompts whose outputs are averaged; several for each template make a better mean.

    Raises:
        PatchError: a prompt whose template the reference lacks, with S2 and END at the same positions.

    Used in chapter 10.
    """

    def __init__(self, model: TransformerBridge, pop: Population, reference: Population, batch_size: int = 16) -> None:
        cfg = model.cfg
        wanted = sorted({shape_of(pop, number) for number in range(len(pop))}, key=str)
        self._group = {shape: number for number, shape in enumerate(wanted)}
        shapes = [shape_of(reference, number) for number in range(len(reference))]
        for number, prompt in enumerate(pop.prompts):
            if shape_of(pop, number) not in shapes:
                raise PatchError(
                    f"no reference prompt has the template of {prompt.text!r}, with S2 and END at the same positions: "
                    "make the reference with corrupt(model, pop, 'abc')",
                    see="no-resample-partner",
                )
        width = int(pop.end.max()) + 1
        self._sums = torch.zeros(len(wanted), cfg.n_layers, width, cfg.n_heads, cfg.d_head)
        counts = torch.zeros(len(wanted))
        names = [f"blocks.{layer}.attn.hook_z" for layer in range(cfg.n_layers)]
        rows = [number for number, shape in enumerate(shapes) if shape in self._group]
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            piece = reference.subset(chosen)
            with torch.no_grad():
                _, cache = model.run_with_cache(
                    piece.tokens.to(cfg.device), names_filter=names, stop_at_layer=cfg.n_layers
                )
            n_pos = min(width, piece.tokens.shape[1])
            for row, number in enumerate(chosen):
                group = self._group[shapes[number]]
                for layer, name in enumerate(names):
                    self._sums[group, layer, :n_pos] += cache[name][row, :n_pos].cpu()
                counts[group] += 1
        self._sums /= counts[:, None, None, None, None]

    def of(self, pop: Population, layer: int, n_pos: int) -> Float[Tensor, "batch pos head d_head"]:
        """What takes the place of the heads' output in one layer, for each of these prompts.

        Raises:
            PatchError: a template that was not among those of the population given.
        """
        shapes = [shape_of(pop, number) for number in range(len(pop))]
        for shape, prompt in zip(shapes, pop.prompts, strict=True):
            if shape not in self._group:
                raise PatchError(
                    f"these means do not hold the template of {prompt.text!r}: measure them with it",
                    see="no-resample-partner",
                )
        groups = [self._group[shape] for shape in shapes]
        return self._sums[groups, layer, :n_pos]
