"""Recorded evidence: what inference needs at full size, measured once and measured again in part by every build.

An interval that can tell something needs a hundred prompts, and every head on each of them takes half an hour. So the
measurements of a known model are recorded (`make evidence`), and a chapter reads them. A record can go stale, so each
build takes two prompts of each half, chosen by the day, measures everything on them again (`recheck`), and fails where
a value differs. A model without a record is measured when it is asked for, on fewer prompts, and the page says so.

There are two halves that share no frame and no name (`labcode.frames`). "discovery" is where heads are found and
thresholds are applied, "test" is where what was found is judged: nothing is chosen there, and the writers whose queries
are followed are those of the discovery.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from labcode import families, frames, prompts
from labcode.corpus import DATA
from labcode.errors import EvidenceError
from labcode.models import edition, pins

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

Half = Literal["discovery", "test"]
HALVES: dict[Half, tuple[tuple[str, ...], int]] = {"discovery": (frames.DISCOVERY, 12), "test": (frames.TEST, 13)}
"""The frames of each half, and the seed that draws its prompts."""
N = 96  # prompts of a half: two pairs for each frame
FEWER = 24  # of a model without a record: one pair for every other frame
TOLERANCE = 1e-4  # in the unit of each value: nats, or shares of attention
AT_ONCE = 2  # prompts of each half that a build measures again: a little more than 2 % of 96


@dataclass(frozen=True)
class Evidence:
    """Measurements of one model on both halves.

    Attributes:
        tables: by half and name, as `families.measure` gives them: prompts are the last axis.
        populations: by half, the prompts and their three-names twins.
        origin: "recorded", or "measured" in this run.
    """

    tables: Mapping[Half, Mapping[str, Tensor]]
    populations: Mapping[Half, tuple[Population, Population]]
    origin: Literal["recorded", "measured"]

    def judged(self, half: Half) -> families.Discovery:
        """The families by the measurements of one half."""
        return families.judge(self.table(half))

    def table(self, half: Half) -> dict[str, Tensor]:
        """The measurements of one half and the group of each prompt, as `families.judge` takes them."""
        return {**self.tables[half], "groups": groups(self.populations[half][0])}


def groups(pop: Population) -> Tensor:
    """What intervals resample: the frame of each prompt. Prompts that share their names share their frame."""
    return torch.tensor([prompt.template for prompt in pop.prompts])


def populations(model: TransformerBridge, n: int = N, exact: bool = True) -> dict[Half, tuple[Population, Population]]:
    """The prompts of both halves, with their three-names twins; the same on every machine for one tokenizer.

    Args:
        exact: as for `prompts.population`; a record has the prompts that it has.
    """
    known, _ = prompts.single_token_names(model)
    found = {}
    for half, (templates, seed) in HALVES.items():
        pop = prompts.population(model, n, seed, templates, frames.names(known, half), exact)
        found[half] = pop, prompts.corrupt(model, pop, "abc", seed)
    return found


def measure(
    model: TransformerBridge,
    pops: Mapping[Half, tuple[Population, Population]],
    keep: Callable[[Half, Callable[[], dict[str, Tensor]]], dict[str, Tensor]] = lambda half, made: made(),
) -> dict[Half, dict[str, Tensor]]:
    """Everything on both halves, the discovery first.

    Args:
        keep: takes a half and what measures it, and returns its tables, perhaps from an earlier run that was cut off.
    """
    first = keep("discovery", lambda: families.measure(model, *pops["discovery"]))
    writers = [(int(layer), int(head)) for layer, head in first["writers"]]
    return {
        "discovery": first,
        "test": keep("test", lambda: families.measure(model, *pops["test"], writers)),
    }


def load(model: TransformerBridge, folder: Path = DATA) -> Evidence:
    """The record of this model, else measurements on fewer prompts, which are remembered.

    Args:
        folder: where records are.

    Raises:
        EvidenceError: a record that cannot be read, or that lacks something.
    """
    path = folder / f"evidence-{edition(model)}.safetensors"
    if edition(model) and path.is_file():
        return Evidence(read(path, pins(edition(model))), populations(model), "recorded")
    pops = populations(model, FEWER, exact=False)
    kept = measure(model, pops, lambda half, made: families.remember(f"evidence {half}", model, pops[half], made))
    return Evidence(kept, pops, "measured")


def read(path: Path, key: str) -> dict[Half, dict[str, Tensor]]:
    """The tables of a record.

    Raises:
        EvidenceError: no safetensors file; a record of other weights; halves without tables.
    """
    from safetensors import SafetensorError, safe_open

    tables: dict[Half, dict[str, Tensor]] = {half: {} for half in HALVES}
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            for name in list(file.keys()):
                half, _, table = name.partition("/")
                tables[half][table] = file.get_tensor(name)  # type: ignore[index]
    except (SafetensorError, OSError, KeyError) as error:
        raise EvidenceError(
            f"{path} can't be read ({error}): make it again with `make evidence`", see="evidence"
        ) from error
    if said.get("weights") != key or not all(tables.values()):
        raise EvidenceError(
            f"{path} holds measurements of other weights, or only some of them: make it again with `make evidence`",
            see="evidence",
        )
    return tables


def write(path: Path, tables: Mapping[Half, Mapping[str, Tensor]], said: Mapping[str, str]) -> None:
    """Write a record aside and rename it into its place."""
    from safetensors.torch import save_file

    aside = path.with_suffix(".tmp")
    flat = {f"{half}/{name}": value.contiguous() for half, found in tables.items() for name, value in found.items()}
    save_file(flat, aside, dict(said))
    aside.replace(path)


@dataclass(frozen=True)
class Recheck:
    """What a build measured again: so many values, the largest difference, and where it was."""

    n: int
    largest: float
    where: str
    prompts: Mapping[Half, tuple[str, ...]]


def recheck(model: TransformerBridge, found: Evidence, day: datetime.date | None = None) -> Recheck:
    """Measure everything again on some prompts of each half, and compare.

    Raises:
        EvidenceError: a value differs by more than `TOLERANCE`.
    """
    rng = random.Random((day or datetime.datetime.now(datetime.UTC).date()).isoformat())
    n, largest, where = 0, 0.0, ""
    texts: dict[Half, tuple[str, ...]] = {}
    for half, (pop, corrupted) in found.populations.items():
        rows = sorted(rng.sample(range(len(pop)), AT_ONCE))
        some = pop.subset(rows)
        texts[half] = tuple(pop.prompts[row].text for row in rows)
        recorded = found.tables[half]
        writers = [(int(one), int(head)) for one, head in recorded["writers"]]
        again = families.measure(model, some, corrupted.subset(rows), writers)
        every = families.names_in(pop)
        columns = [every.index(name) for name in families.names_in(some)]
        for name, value in recorded.items():
            if name == "writers":
                continue
            old, new = value[..., columns if name == "OV" else rows], again[name]
            both = ~(old.isnan() | new.isnan())  # which heads are asked at S1+1 depends on all prompts together
            n += int(both.sum())
            gap = float((old - new)[both].abs().max()) if both.any() else 0.0
            if gap >= largest:
                largest, where = gap, f"{half}: {name}"
    if largest > TOLERANCE:
        raise EvidenceError(
            f"the recorded evidence differs from this run by {largest:.1g} ({where}), and {TOLERANCE:g} is allowed: "
            "the code or the model has changed since; make it again with `make evidence`",
            see="evidence",
        )
    return Recheck(n, largest, where, texts)
