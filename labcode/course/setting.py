"""What a check may use: the reader's model, a few prompts for it, the toy, and numbers drawn with a seed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from labcode.prompts import Population

PROMPTS = 8


class Setting:
    """The things that answers are checked on, each made when it is first asked for and then kept."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._kept: dict[str, Any] = {}

    @cached_property
    def one(self) -> Population:
        """The canonical prompt."""
        from labcode import prompts

        return prompts.canonical(self.model)

    @cached_property
    def pop(self) -> Population:
        """A few prompts that the chapters don't use."""
        from labcode import prompts

        return prompts.population(self.model, PROMPTS, seed=2024)

    @cached_property
    def swapped(self) -> Population:
        """The same with IO at S2: the other name is right."""
        from labcode import prompts

        return prompts.corrupt(self.model, self.pop, "swap")

    @cached_property
    def abc(self) -> Population:
        """The same with three names that are not in the prompt."""
        from labcode import prompts

        return prompts.corrupt(self.model, self.pop, "abc", seed=2024)

    @cached_property
    def toy(self) -> Any:
        """The model that was wired by hand."""
        from labcode.toy import build

        return build()

    def random(self, *shape: int, seed: int = 0) -> Tensor:
        """Normal numbers, the same for the same shape and seed."""
        import torch

        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made at the first call with this name: a run, say, that several answers are made of."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]
