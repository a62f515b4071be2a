"""Head families, found by applying the criteria of `labcode.criteria` to what `labcode.evidence` measured.

Nothing is decided here: a head is in a family if it passes each of its tests, and in the list of near misses if it
passes some. Controls shuffle the measurements and count who passes then.

Used in chapters 07 to 12 and 16.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from labcode import evidence
from labcode.criteria import EFFECT, FAMILIES, LOOKS, UNKNOWN, FamilyError, Head, Node, Test
from labcode.metrics import Interval, bootstrap_cells

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Evidence:
    """The mean of one measurement over the prompts, with its 95 % interval, for every head.

    Attributes:
        unit: "attention" or "share of the gap".
    """

    mean: Float[Tensor, "layer head"]
    low: Float[Tensor, "layer head"]
    high: Float[Tensor, "layer head"]
    unit: str

    def at(self, head: Head, n: int = 0) -> Interval:
        """The interval of one head; `n` is the number of prompts, for the record."""
        return Interval(float(self.mean[head]), float(self.low[head]), float(self.high[head]), n)


@dataclass(frozen=True)
class NearMiss:
    """A head that passes some tests of a family and not all of them."""

    head: Head
    family: str
    met: tuple[str, ...]
    missed: tuple[str, ...]


@dataclass(frozen=True)
class Discovery:
    """Families of one model, found on one population.

    Attributes:
        families: members by family name, those with the largest effect first. A head is in one family for each position
            at most: duplicate and induction heads are told apart by where they look more, backups are no other writers.
        unknown: heads that matter and pass no definition, by what they do (`UNKNOWN`).
        evidence: every measurement, for every head; effects are shares of the gap.
        near_misses: heads that pass some tests of a family and not all; most of them look and do not act.
        writers: the heads whose queries were asked in "query".
        gap: mean clean minus mean corrupted logit difference.
        n: number of prompts.
    """

    families: dict[str, list[Head]]
    unknown: dict[str, list[Head]]
    evidence: dict[str, Evidence]
    near_misses: list[NearMiss]
    writers: list[Head]
    gap: Interval
    n: int

    def nodes(self, name: str) -> list[Node]:
        """The members of a family with the position at which they act.

        Raises:
            FamilyError: an unknown family.
        """
        if name in UNKNOWN:
            place = "S2" if name == "acts at S2" else "END"
            return [(*head, place) for head in self.unknown[name]]
        if name not in FAMILIES:
            raise FamilyError(
                f"unknown family {name!r}: choose among {', '.join([*FAMILIES, *UNKNOWN])}", see="unknown-family"
            )
        return [(*head, FAMILIES[name].position) for head in self.families[name]]

    @property
    def circuit(self) -> list[Node]:
        """The heads of all families, each at its position."""
        return sorted({node for name in FAMILIES for node in self.nodes(name)})

    @property
    def extended(self) -> list[Node]:
        """The circuit and the heads that matter and belong to no family."""
        return sorted({*self.circuit, *(node for name in UNKNOWN for node in self.nodes(name))})


def discover(model: TransformerBridge, n: int = 24, seed: int = 21) -> Discovery:
    """Measure every head on `n` prompts and apply the criteria of `FAMILIES`.

    The measurement is remembered (`labcode.store`), so only the first call of a model takes its minutes.

    Used in chapters 07, 08, 10, 11, 12 and 16.
    """
    return judge(measured(model, n, seed))


def measured(model: TransformerBridge, n: int = 24, seed: int = 21) -> dict[str, Tensor]:
    """What `discover` judges: the tables of `evidence.measure`, and the draw of each prompt.

    Used in chapter 12.
    """
    return evidence.measured(model, n, seed, LOOKS, EFFECT)


def judge(table: dict[str, Tensor], rows: Sequence[int] | None = None) -> Discovery:
    """Apply the criteria to measurements, or to those of some prompts.

    Raises:
        FamilyError: fewer than two draws: no interval, so no verdict.

    Used in chapter 12.
    """
    index = torch.arange(len(table["draws"])) if rows is None else torch.tensor(list(rows))
    draws = table["draws"][index]
    if draws.unique().numel() < 2:
        raise FamilyError(
            f"{draws.unique().numel()} draw of prompts is too few for an interval: take at least 4 prompts",
            see="too-few-draws",
        )
    gaps = (table["clean"] - table["corrupted"])[index]
    gap = bootstrap_cells(gaps[None], draws)[0]
    per_head = {key: values[..., index] for key, values in table.items() if values.ndim == 3}
    for test in (test for family in FAMILIES.values() for test in family.tests if test.over):
        per_head[f"{test.measure} − {test.over}"] = per_head[test.measure] - per_head[test.over]
    found = {key: _evidence(key, values, draws, gap.mean) for key, values in per_head.items()}
    heads = [(int(a), int(b)) for a, b in torch.cartesian_prod(*map(torch.arange, found["direct"].mean.shape))]
    families: dict[str, list[Head]] = {name: [] for name in FAMILIES}
    misses: list[NearMiss] = []
    for head in heads:
        for family in FAMILIES.values():
            met = [test for test in family.tests if passes(found, test, head)]
            if len(met) == len(family.tests):
                families[family.name].append(head)
            elif met:
                missed = tuple(test.text for test in family.tests if test not in met)
                misses.append(NearMiss(head, family.name, tuple(test.text for test in met), missed))
    _one_family_each(families, found)
    for name, members in families.items():
        size = found[FAMILIES[name].tests[1].measure].mean
        members.sort(key=lambda head: -abs(float(size[head])))
    unknown = _unknown({head for members in families.values() for head in members}, heads, found)
    writers = [(int(a), int(b)) for a, b in table["writers"]]
    return Discovery(families, unknown, found, misses, writers, gap, len(index))


def passes(found: dict[str, Evidence], test: Test, head: Head) -> bool:
    """Whether a head passes one test: reaches the threshold, effects with an interval on the same side of 0.

    Used in chapter 12.
    """
    seen = found[test.measure]
    if test.over:
        return bool(found[f"{test.measure} − {test.over}"].low[head] > 0)
    if seen.unit == "attention":
        return bool(seen.mean[head] >= LOOKS)
    edge = seen.low[head] if test.sign > 0 else -seen.high[head]
    return bool(test.sign * seen.mean[head] >= EFFECT and edge > 0)


def jaccard(a: Iterable[object], b: Iterable[object]) -> float:
    """Members in common over members in all; 1 for two empty families. Used in chapter 12."""
    one, other = set(a), set(b)
    return len(one & other) / len(one | other) if one | other else 1.0


def shuffled_control(
    table: dict[str, Tensor], how: Literal["heads", "layers", "roles"], n: int = 50, seed: int = 0
) -> Float[Tensor, " shuffle"]:
    """How many heads pass some definition when it ought to mean nothing.

    Args:
        how: "heads" gives every head the effects of another head, anywhere in the model, and leaves it its own
            attention: what chance alone would pair. "layers" does so within each layer, which is harder to fail, since
            heads that matter share layers. "roles" tosses a coin for each draw of prompts and, on heads, counts the
            loss as a gain: as if nobody knew which name was the subject.
        n: number of shuffles.

    Used in chapter 12.
    """
    generator = torch.Generator().manual_seed(seed)
    n_layers, n_heads = table["direct"].shape[:2]
    draws, member = table["draws"].unique(return_inverse=True)
    counts = []
    for _ in range(n):
        mixed = dict(table)
        anywhere = torch.randperm(n_layers * n_heads, generator=generator)
        inside = torch.stack([torch.randperm(n_heads, generator=generator) for _ in range(n_layers)])
        sign = torch.randint(0, 2, (len(draws),), generator=generator)[member] * 2.0 - 1
        for key, values in table.items():
            if values.ndim != 3 or key.startswith("attention"):
                continue
            if how == "heads":
                mixed[key] = values.flatten(0, 1)[anywhere].reshape(values.shape)
            elif how == "layers":
                mixed[key] = torch.take_along_dim(values, inside[..., None], dim=1)
            elif how == "roles":
                mixed[key] = values * sign
            else:
                raise FamilyError(f"unknown shuffle {how!r}: choose 'heads', 'layers' or 'roles'", see="unknown-family")
        found = judge(mixed)
        counts.append(len({head for members in found.families.values() for head in members}))
    return torch.tensor(counts, dtype=torch.float)


def _evidence(
    key: str, values: Float[Tensor, "layer head batch"], draws: Int[Tensor, " batch"], gap: float
) -> Evidence:
    looks = key.startswith("attention")
    scaled = values if looks else values / (gap or torch.nan)
    asked = ~scaled.isnan().any(-1)
    low, high = torch.full(asked.shape, torch.nan), torch.full(asked.shape, torch.nan)
    if asked.any():
        cells = bootstrap_cells(scaled[asked], draws)
        low[asked], high[asked] = (torch.tensor([getattr(cell, end) for cell in cells]) for end in ("low", "high"))
    return Evidence(scaled.mean(-1), low, high, "attention" if looks else "share of the gap")


def _one_family_each(families: dict[str, list[Head]], found: dict[str, Evidence]) -> None:
    """A head that looks at S1 and at the word after it goes where it looks more; a writer is no backup."""
    same, after = found["attention S2→S1"].mean, found["attention S2→S1+1"].mean
    both = set(families["duplicate"]) & set(families["induction"])
    families["duplicate"] = [head for head in families["duplicate"] if head not in both or same[head] >= after[head]]
    families["induction"] = [head for head in families["induction"] if head not in both or same[head] < after[head]]
    writing = {*families["name mover"], *families["suppressor"]}
    families["backup"] = [head for head in families["backup"] if head not in writing]


def _unknown(known: set[Head], heads: list[Head], found: dict[str, Evidence]) -> dict[str, list[Head]]:
    placed = set(known)
    unknown: dict[str, list[Head]] = {}
    for name, test in UNKNOWN.items():
        unknown[name] = [head for head in heads if head not in placed and passes(found, test, head)]
        placed |= set(unknown[name])
    return unknown
