"""Recorded evidence: what inference needs at full size, measured once and measured again in part by every build.

An interval that can tell something needs a hundred prompts, and every head on each of them takes half an hour. So the
measurements of a known model are recorded (`make evidence`), and a chapter reads them. A record can go stale, so each
build takes two prompts of each half, chosen by the day, measures everything on them again (`recheck`), and fails where
a value differs. A model without a record is measured when it is asked for, on fewer prompts, and the page says so.

Two things are recorded. Every head on both halves of the prompts, which `recheck` measures again; and what chapters ask
of the circuit that was found, row by row (`labcode.recorded`), of which they measure a part again where they ask.

There are two halves that share no frame and no name (`labcode.frames`). "discovery" is where heads are found and
thresholds are applied, "test" is where what was found is judged: nothing is chosen there, and the writers whose queries
are followed are those of the discovery.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from labcode import edges, families, frames, prompts
from labcode.corpus import DATA
from labcode.errors import EvidenceError
from labcode.inputs import guard
from labcode.models import edition, pins, weights_key
from labcode.recorded import AT_ONCE, Recorded, fetch, remember, stale, store, today

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.heads import Node
    from labcode.prompts import Population

Half = Literal["discovery", "test"]
HALVES: dict[Half, tuple[tuple[str, ...], int]] = {"discovery": (frames.DISCOVERY, 12), "test": (frames.TEST, 13)}
"""The frames of each half, and the seed that draws its prompts."""
N = 96  # prompts of a half: two pairs for each frame
FEWER = 24  # of a model without a record: one pair for every other frame


@dataclass(frozen=True)
class Evidence:
    """Measurements of one model on both halves.

    Attributes:
        tables: by half and name, as `families.measure` gives them: prompts are the last axis.
        populations: by half, the prompts and their three-names twins.
        origin: "recorded", or "measured" in this run.
        model: whose measurements they are.
        known: what chapters asked of the circuit.
    """

    tables: Mapping[Half, Mapping[str, Tensor]]
    populations: Mapping[Half, tuple[Population, Population]]
    origin: Literal["recorded", "measured"]
    model: TransformerBridge | None = None
    known: Recorded = field(default_factory=Recorded)

    def judged(self, half: Half) -> families.Discovery:
        """The families by the measurements of one half."""
        return families.judge(self.table(half))

    def table(self, half: Half) -> dict[str, Tensor]:
        """The measurements of one half and the group of each prompt, as `families.judge` takes them."""
        return {**self.tables[half], "groups": groups(self.populations[half][0])}

    @cached_property
    def found(self) -> families.Discovery:
        """The families by the discovery half: those whose circuit is recorded."""
        return self.judged("discovery")

    @property
    def filled(self) -> dict[str, list[Node]]:
        """The families that have heads, each head at the position at which it acts."""
        return {name: self.found.nodes(name) for name in families.FAMILIES if self.found.families[name]}

    def arrows(
        self,
        senders: Mapping[str, Sequence[Node]] | None = None,
        receivers: Mapping[str, Sequence[Node]] | None = None,
        inputs: Sequence[str] = ("q", "k", "v"),
    ) -> dict[edges.Arrow, Tensor]:
        """What each arrow of the circuit carries on the prompts of the test half: `edges.arrows`.

        Args:
            senders: all families if None.
            receivers: all families but those at S1+1, which nobody before them writes to, if None.

        Returns:
            Clean - patched logit difference, in nats, [batch]; the groups of intervals are `groups` of the test half.
            Nothing where there are no families.
        """
        if senders is None:
            senders = self.filled
        if receivers is None:
            early = {name for name, family in families.FAMILIES.items() if family.position == "S1+1"}
            receivers = {name: nodes for name, nodes in self.filled.items() if name not in early}
        model = self.model
        if model is None or not senders:
            return {}
        pops = self.populations["test"]

        def measure() -> dict[edges.Arrow, Tensor]:
            return edges.arrows(model, *pops, senders, receivers, inputs, known=self.known)

        if self.origin == "recorded":
            return measure()
        name = repr(("arrows", sorted(senders.items()), sorted(receivers.items()), inputs))
        kept = remember(name, model, pops, lambda: {" > ".join(one): lost for one, lost in measure().items()})
        return {edges.Arrow(*one.split(" > ")): lost for one, lost in kept.items()}


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

    A known model whose weights were changed after it was loaded is another model, and has no record.

    Args:
        folder: where records are.

    Raises:
        EvidenceError: a record that cannot be read, or that lacks something.
    """
    if _recording:
        return replace(_recording[-1], model=model)
    path = folder / f"evidence-{edition(model)}.safetensors"
    if edition(model) and path.is_file() and getattr(model, "lab_weights", "") == weights_key(model):
        tables, known = read(path, pins(edition(model)))
        known.guard(model)
        return Evidence(tables, populations(model), "recorded", model, known)
    pops = populations(model, FEWER, exact=False)
    kept = measure(model, pops, lambda half, made: remember(f"evidence {half}", model, pops[half], made))
    return Evidence(kept, pops, "measured", model)


_recording: list[Evidence] = []


@contextmanager
def recording(found: Evidence) -> Iterator[None]:
    """What `load` gives meanwhile, so that what a chapter measures comes to be known (`make evidence`)."""
    _recording.append(found)
    try:
        yield
    finally:
        _recording.pop()


def read(path: Path, key: str) -> tuple[dict[Half, dict[str, Tensor]], Recorded]:
    """The tables of a record, and its rows.

    Raises:
        EvidenceError: no safetensors file; another checksum than it carries; a record of other weights; halves without
            tables; rows without keys.
    """
    from safetensors import SafetensorError

    tables: dict[str, dict[str, Tensor]] = {half: {} for half in HALVES}
    numbers: dict[str, list[int]] = {}
    rows: dict[str, Tensor] = {}
    more: dict[str, dict[str, Tensor]] = {}
    try:
        flat, said = fetch(path)
        for name, value in flat.items():
            group, _, rest = name.partition("/")
            context, _, part = rest.partition("/")
            if group == "keys":
                numbers[context] = value.tolist()
            elif group == "rows":
                rows[context] = value
            elif group == "edges":
                more.setdefault(context, {})[part] = value
            else:
                tables[group][rest] = value
        known = Recorded({one: dict(zip(numbers[one], of, strict=True)) for one, of in rows.items()}, more)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise EvidenceError(
            f"{path} can't be read ({error}): make it again with `make evidence`", see="evidence"
        ) from error
    if said.get("weights") != key or not all(tables.values()):
        raise EvidenceError(
            f"{path} holds measurements of other weights, or only some of them: make it again with `make evidence`",
            see="evidence",
        )
    return cast("dict[Half, dict[str, Tensor]]", tables), known


def write(
    path: Path, tables: Mapping[Any, Mapping[str, Tensor]], said: Mapping[str, str], known: Recorded | None = None
) -> None:
    """Write a record, with its checksum, aside and rename it into its place."""
    aside = path.with_suffix(".tmp")
    flat = {f"{half}/{name}": value for half, found in tables.items() for name, value in found.items()}
    for context, rows in known.rows.items() if known else ():
        flat |= {f"keys/{context}": torch.tensor(list(rows)), f"rows/{context}": torch.stack(list(rows.values()))}
    for context, table in known.tables.items() if known else ():
        flat |= {f"edges/{context}/{name}": value for name, value in table.items()}
    store(aside, flat, said)
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
        EvidenceError: a value differs by more than `Recorded.tolerance`, or is a number in only one of both; there is
            nothing to compare.
    """
    rng = random.Random((day or today()).isoformat())
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
            # Which heads are asked at S1+1 depends on all prompts together; elsewhere a hole is a difference.
            both = ~(old.isnan() | new.isnan()) if name == "total S1+1" else torch.ones_like(old, dtype=torch.bool)
            n += int(both.sum())
            gap = float((old - new)[both].abs().max()) if both.any() else 0.0
            if not gap <= found.known.tolerance:  # also where it is no number
                raise stale(gap, f"{half}: {name}", found.known.tolerance)
            if gap >= largest:
                largest, where = gap, f"{half}: {name}"
    if not n:
        raise EvidenceError("the record holds nothing to measure again: make it with `make evidence`", see="evidence")
    return Recheck(n, largest, where, texts)


guard(globals(), EvidenceError)
