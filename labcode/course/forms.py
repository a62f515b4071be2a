"""What an answer can be. Each form reads an answer, or says what was expected and what came; and it compares two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

NEAR = 1e-3


class Misfit(Exception):
    """An answer that is not of its form; the text says what was expected and what came."""


class Form(Protocol):
    """What an answer has to be."""

    def read(self, answer: Any, right: Any) -> Any:
        """The answer as this form compares it. Raises Misfit; `right` tells sizes, never values."""

    def same(self, given: Any, right: Any) -> bool:
        """Whether two answers that were read are the same."""

    def show(self, value: Any) -> str:
        """An answer in a few words."""


@dataclass(frozen=True)
class Number:
    """One number; near is near enough.

    Attributes:
        what: what the number is, in a few words: "a share of the logit difference".
        near: how far off it may be, as a part of what is right, and in all cases as much beside 0.
    """

    what: str = "a number"
    near: float = NEAR

    def read(self, answer: Any, right: Any) -> float:
        """A plain number, or an array or tensor that holds one."""
        plain = answer
        if hasattr(answer, "item"):
            if math.prod(answer.shape) != 1:
                raise Misfit(f"expected {self.what}, one number; what came holds {tuple(answer.shape)} of them")
            _on_a_device(answer)
            plain = answer.item()
        if isinstance(plain, bool) or not isinstance(plain, int | float):
            raise Misfit(f"expected {self.what}, one number; what came is {_kind(answer)}")
        if not math.isfinite(plain):
            raise Misfit(f"expected {self.what}; what came is {plain}, so look for a division by 0 or a log of 0")
        return float(plain)

    def same(self, given: float, right: float) -> bool:
        """Near in proportion, or as near beside 0."""
        return math.isclose(given, right, rel_tol=self.near, abs_tol=self.near)

    def show(self, value: float) -> str:
        """Four digits."""
        return f"{value:.4g}"


@dataclass(frozen=True)
class Numbers:
    """A tensor; lists and arrays are taken too.

    Attributes:
        dims: the names of its dimensions, "layer batch" say.
        what: what the numbers are.
        near: how far off each may be, as a part of the largest that is right.
    """

    dims: str
    what: str = "numbers"
    near: float = NEAR

    def read(self, answer: Any, right: Any) -> Any:
        """A tensor of the right shape, on the processor, without NaN."""
        import numpy as np
        import torch

        expected = f"expected {self.what}, a tensor [{self.dims}]"
        if right is not None:
            expected += f" of shape {tuple(torch.as_tensor(right).shape)}"
        if not isinstance(answer, list | tuple | np.ndarray | torch.Tensor):
            raise Misfit(f"{expected}; what came is {_kind(answer)}")
        if isinstance(answer, torch.Tensor):
            _on_a_device(answer)
        try:
            given = torch.as_tensor(answer).detach().double()
        except (TypeError, ValueError, RuntimeError) as error:
            raise Misfit(f"{expected}; what came can't be made one: {error}") from error
        if right is not None and given.shape != torch.as_tensor(right).shape:
            raise Misfit(f"{expected}; what came has shape {tuple(given.shape)}")
        if not given.isfinite().all():
            bad = int((~given.isfinite()).sum())
            raise Misfit(f"{expected}; {bad} of the {given.numel()} numbers that came are NaN or infinite")
        return given

    def same(self, given: Any, right: Any) -> bool:
        """Every number near, measured by the largest."""
        if given.shape != right.shape:
            return False
        if not given.numel():
            return True
        return bool((given - right).abs().max() <= self.near * max(1e-6, float(right.abs().max())))

    def show(self, value: Any) -> str:
        """The first few."""
        first = ", ".join(f"{x:.4g}" for x in value.flatten()[:4].tolist())
        return f"[{first}{', …' if value.numel() > 4 else ''}]"


@dataclass(frozen=True)
class Choice:
    """One of a few texts; capitals and spaces around it don't matter."""

    options: Sequence[str]

    def read(self, answer: Any, right: Any) -> str:
        """One of the options."""
        if not isinstance(answer, str):
            raise Misfit(f"expected one of {self._listed()}; what came is {_kind(answer)}")
        given = answer.strip().lower()
        if given not in (option.lower() for option in self.options):
            raise Misfit(f"expected one of {self._listed()}; what came is {answer!r}")
        return given

    def same(self, given: str, right: str) -> bool:
        """The same text."""
        return given.lower() == right.lower()

    def show(self, value: str) -> str:
        """In quotes."""
        return repr(value)

    def _listed(self) -> str:
        return ", ".join(map(repr, self.options))


@dataclass(frozen=True)
class Several:
    """A set of things without an order: options, heads as (layer, head) pairs, token ids.

    Attributes:
        what: what is asked for: "the heads that ...".
        options: the texts that it may hold; none where it holds no texts but numbers or pairs of them.
    """

    what: str
    options: Sequence[str] = ()

    def read(self, answer: Any, right: Any) -> frozenset[Any]:
        """A list, tuple or set of texts, whole numbers or tuples of whole numbers."""
        if isinstance(answer, str | Mapping) or not hasattr(answer, "__iter__"):
            raise Misfit(f"expected {self.what}, a list; what came is {_kind(answer)}")
        return frozenset(self._one(one) for one in answer)

    def _one(self, one: Any) -> Any:
        plain = one.tolist() if hasattr(one, "tolist") else one
        if self.options:
            return Choice(self.options).read(plain, None)
        if isinstance(plain, list | tuple):
            return tuple(self._one(part) for part in plain)
        if isinstance(plain, bool) or not isinstance(plain, int):
            raise Misfit(f"expected {self.what}, a list of whole numbers or of tuples of them; it holds {_kind(plain)}")
        return plain

    def same(self, given: frozenset[Any], right: frozenset[Any]) -> bool:
        """The same members."""
        return given == right

    def show(self, value: frozenset[Any]) -> str:
        """Sorted."""
        return "{" + ", ".join(map(str, sorted(value)[:8])) + (", …" if len(value) > 8 else "") + "}"


@dataclass(frozen=True)
class Record:
    """A dictionary with these keys, each with a form of its own."""

    fields: Mapping[str, Form]

    def read(self, answer: Any, right: Any) -> dict[str, Any]:
        """Every field, read by its form."""
        if not isinstance(answer, Mapping):
            raise Misfit(f"expected a dictionary with the keys {self._keys()}; what came is {_kind(answer)}")
        if set(answer) != set(self.fields):
            raise Misfit(
                f"expected a dictionary with the keys {self._keys()}; what came has {sorted(map(str, answer))}"
            )
        read = {}
        for key, form in self.fields.items():
            try:
                read[key] = form.read(answer[key], right[key] if right else None)
            except Misfit as misfit:
                raise Misfit(f"under the key {key!r}: {misfit}") from misfit
        return read

    def same(self, given: dict[str, Any], right: dict[str, Any]) -> bool:
        """Every field the same."""
        return all(form.same(given[key], right[key]) for key, form in self.fields.items())

    def show(self, value: dict[str, Any]) -> str:
        """Every field, as its form shows it."""
        return "{" + ", ".join(f"{key!r}: {form.show(value[key])}" for key, form in self.fields.items()) + "}"

    def _keys(self) -> str:
        return ", ".join(map(repr, self.fields))


def _kind(answer: Any) -> str:
    if answer is None:
        return "None; is a return missing?"
    if answer is ...:
        return "the placeholder `...`; write your answer in its place"
    if callable(answer) and not isinstance(answer, type):
        return "a function; give what it returns"
    if isinstance(answer, str):
        return f"the text {answer[:40]!r}"
    return f"a {type(answer).__name__}"


def _on_a_device(tensor: Any) -> None:
    device = str(getattr(tensor, "device", "cpu"))
    if device != "cpu":
        raise Misfit(f"expected a tensor on the device cpu; what came is on {device}, so give answer.cpu()")
