"""Head families: which head does which job, decided by criteria that were written down before the search.

In reading order: the criteria, the same ones on every model; what is measured of every head, once; and the discovery,
which applies the criteria to the measurements and decides nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch

from labcode import prompts
from labcode.errors import FamilyError
from labcode.heads import Head, Node, copy_scores, position_attentions
from labcode.inputs import guard
from labcode.metrics import Interval, bootstrap, bootstrap_cells, bounded, screen, tossed
from labcode.patching import exchanged, path_patch, sweep
from labcode.residual import Decomposition, decompose

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

# What counts, with its reason, written down before the recorded prompts were measured. Most families are those that the
# literature found in GPT-2 small. Subject suppressors and subject movers were added after a look at the embedded model,
# on other prompts.
LOOKS = 2
"""A head looks somewhere if it gives the place at least this many times an even share of its attention, on average.

An even share is what a head without any preference gives each position that it can see, so it depends on how many there
are: an eighth at the eighth token. Twice of that cannot be given to more than half of the positions.
"""
EFFECT = 0.02
"""An effect that counts is worth at least this share of the gap between clean and corrupted runs, and is no accident.

No accident: it exceeds the threshold of `metrics.screen` over all heads of the model, whose chance to let any head pass
where nothing is there is one in twenty. With enough prompts a screen passes effects too small to care about. One
fiftieth is the size that Wang et al. (2022, appendix F) ask of a head to call it important.
"""

COPIES = 0.2
"""An OV circuit copies names if it puts so many more of them among its first five tokens than among its last five.

The average head of GPT-2 small stays below this share of names (Wang et al. 2022, section 3.1). The last five count
against it, since what suppresses a name does not copy it; suppressing is the same the other way round.
"""


@dataclass(frozen=True)
class Criterion:
    """One condition of a definition.

    Attributes:
        text: the condition in words.
        kind: "looks" (attention, observed), "acts" (what an intervention costs, or what is written to the logits) or
            "weights" (what the OV circuit does to a name, without any sentence).
        measure: the name of the measurement, as `measure` calls it.
        sign: +1 where it has to reach the threshold from above, -1 where it has to fall below its negative.
    """

    text: str
    kind: Literal["looks", "acts", "weights"]
    measure: str
    sign: int = 1


@dataclass(frozen=True)
class Family:
    """A family: what its heads do, the position at which they act, and the criteria that a member meets, all of them.

    Attributes:
        name: key in `FAMILIES`. title: the name in running text.
        position: where its heads act: S1+1, S2 or END.
        definition: one sentence.
        strength: the measurement by which its members are ordered.
        colour: kept through the whole book.
    """

    name: str
    title: str
    position: str
    definition: str
    criteria: tuple[Criterion, ...]
    strength: str
    colour: str


def _look(source: str, target: str) -> Criterion:
    return Criterion(
        f"attention {source} → {target} at least {LOOKS} times an even share", "looks", f"attention {source}→{target}"
    )


def _costs(place: str) -> Criterion:
    return Criterion(f"corrupting it at {place} loses at least {EFFECT:.0%} of the gap", "acts", f"total {place}")


def _moves(measure: str, what: str, sign: int = 1) -> Criterion:
    return Criterion(f"{what} by at least {EFFECT:.0%} of the gap", "acts", measure, sign)


def _worth(to: str, measure: str) -> Criterion:
    return Criterion(f"its wire to the {to} is worth at least {EFFECT:.0%} of the gap", "acts", measure)


def _does(what: str, other: str, sign: int = 1) -> Criterion:
    text = f"its OV circuit {what} more names than it {other}, by at least {COPIES:.0%} of them all"
    return Criterion(text, "weights", "OV", sign)


_COPIES, _RULES_OUT = _does("copies", "suppresses"), _does("suppresses", "copies", -1)
_FOR = _worth("logits", "direct")
_AGAINST = Criterion(f"its wire to the logits is worth at most −{EFFECT:.0%} of the gap", "acts", "direct", -1)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "previous",
            "previous-token heads",
            "S1+1",
            "At the word after the first S it looks back at S, and corrupting it there costs part of the answer.",
            (_look("S1+1", "S1"), _costs("S1+1")),
            "total S1+1",
            "#999999",
        ),
        Family(
            "duplicate",
            "duplicate-token heads",
            "S2",
            "At the second S it looks at the first, and corrupting it there costs part of the answer.",
            (_look("S2", "S1"), _costs("S2")),
            "total S2",
            "#E69F00",
        ),
        Family(
            "induction",
            "induction heads",
            "S2",
            "At the second S it looks at the word after the first, and corrupting it there costs part of the answer.",
            (_look("S2", "S1+1"), _costs("S2")),
            "total S2",
            "#F0E442",
        ),
        Family(
            "s-inhibition",
            "S-inhibition heads",
            "END",
            "At END it looks at the second S, and part of the answer is lost when the writers' queries hear it wrong.",
            (
                _look("END", "S2"),
                _worth("writers' queries", "query"),
            ),
            "query",
            "#56B4E9",
        ),
        Family(
            "name mover",
            "name movers",
            "END",
            "At END it looks at IO and raises IO, which is for the answer: it copies.",
            (_look("END", "IO"), _moves("for IO", "it raises IO"), _FOR, _COPIES),
            "direct",
            "#0072B2",
        ),
        Family(
            "suppressor",
            "subject suppressors",
            "END",
            "At END it looks at S and lowers S, which is for the answer: it rules out what it looks at.",
            (_look("END", "S"), _moves("against S", "it lowers S"), _FOR, _RULES_OUT),
            "direct",
            "#009E73",
        ),
        Family(
            "negative",
            "negative name movers",
            "END",
            "At END it looks at IO and lowers IO, which is against the answer: it rules out what it looks at.",
            (_look("END", "IO"), _moves("for IO", "it lowers IO", -1), _AGAINST, _RULES_OUT),
            "direct",
            "#D55E00",
        ),
        Family(
            "subject mover",
            "subject movers",
            "END",
            "At END it looks at S and raises S, which is against the answer: it copies.",
            (_look("END", "S"), _moves("against S", "it raises S", -1), _AGAINST, _COPIES),
            "direct",
            "#7A5195",
        ),
        Family(
            "backup",
            "backup name movers",
            "END",
            "At END it looks at IO, and raises IO once the writers are out, more than it did before.",
            (
                _look("END", "IO"),
                _moves("for IO, alone", "with the writers out it raises IO"),
                _moves("for IO, gained", "with the writers out it raises IO more than before,"),
                _COPIES,
            ),
            "for IO, alone",
            "#CC79A7",
        ),
    )
}

UNKNOWN: dict[str, Criterion] = {
    "writes for the answer": _FOR,
    "writes against the answer": _AGAINST,
    "acts at S2": _costs("S2"),
    "acts at END": _costs("END"),
}
"""What a head does that matters and passes no definition: it is listed under the first of these that fits."""

PAIRS = (("S1+1", "S1"), ("S2", "S1"), ("S2", "S1+1"), ("END", "IO"), ("END", "S1"), ("END", "S2"))
"""From where to where attention is read: those pairs of positions that some family of the literature is known for."""


def measure(
    model: TransformerBridge, pop: Population, corrupted: Population, writers: Sequence[Head] | None = None
) -> dict[str, Float[Tensor, "layer head batch"]]:
    """Every measurement that a family's definition can name, for every head and prompt.

    Costs are differences of logit differences, in nats: positive where the head works for the right name.

    ==================  ==========================================================================================
    attention A→B       attention from position A to position B in the clean run (`heads.position_attentions`)
    total P             what is lost when the head's output at P comes from the corrupted run (noising); P is S2 or END,
                        or S1+1, where only heads are asked that look at S1, since a sweep so early costs the most;
                        the others are NaN
    direct              what is lost when the wire from the head at END to the logits carries the corrupted message
    query               what is lost when the wire from the head at END to the queries of all writers does; a writer
                        whose own wire there is worth `EFFECT` of the gap informs the others, and is left out
    for IO, against S   the head's direct attribution at END, clean minus corrupted, split: how much it raises the
                        logit of IO, and lowers that of S, relative to the mean logit of all names; both at the final
                        norm's scale in the clean run, so that the difference is what the head writes
    for IO, alone       the same while all writers' outputs at END come from the corrupted run, and the final norm's
                        scale stays what it was: without the writers the stream is shorter, and the norm would then
                        multiply what every head writes, whether it changed or not
    OV                  1 for each of the names that the head's OV circuit copies, -1 for each that it suppresses
                        (`heads.copy_scores`); its last axis is `names_in`, and not the prompts
    ==================  ==========================================================================================

    and, per prompt or head only, `clean` and `corrupted` [batch], the logit differences of the two runs, `even P`
    [batch], an even share of the attention at P, and `writers` [writer 2], the heads called writers above, as `writing`
    picks them.

    Args:
        corrupted: the same prompts with three unrelated names, as `prompts.corrupt(model, pop, "abc")` makes them.
        writers: heads to take for the writers, found on other prompts; `writing` picks them on these if None.

    Source: Wang et al. 2022 (arXiv 2211.00593), sections 3.1 to 3.3. Limits: one corruption, one head at a time; two
    heads that stand in for each other show in neither `total`.
    """
    looking = position_attentions(model, pop, PAIRS)
    found = {f"attention {a}→{b}": seen for (a, b), seen in zip(PAIRS, looking, strict=True)}
    found |= {f"even {place}": 1.0 / (pop.positions[place] + 1) for place in ("S1+1", "S2", "END")}
    for place in ("S2", "END"):
        grid = sweep(model, pop, corrupted, "z", at=place, direction="noising")
        found[f"total {place}"] = grid.clean - grid.values
    found["total S1+1"] = _at_the_next_word(
        model, pop, corrupted, found["attention S1+1→S1"].mean(-1) >= LOOKS * found["even S1+1"].mean()
    )
    grid = path_patch(model, pop, corrupted, sender_at="END")
    found |= {"direct": grid.clean - grid.values, "clean": grid.clean, "corrupted": grid.corrupted}
    if writers is None:
        writers = writing(found["direct"], grid.clean - grid.corrupted, pop.draws)
        writers = _who_tell_nobody(model, pop, corrupted, writers)
    wires = path_patch(model, pop, corrupted, "q", writers, sender_at="END", receiver_at="END")
    found["query"] = wires.clean - wires.values
    here, there = (decompose(model, run, batch_size=len(run)) for run in (pop, corrupted))
    clean, other = (by_name(model, parts, pop, here.scale) for parts in (here, there))
    found["for IO"], found["against S"] = clean[0] - other[0], other[1] - clean[1]
    with exchanged(model, pop, corrupted, writers):
        alone, still = (decompose(model, run, batch_size=len(run)) for run in (pop, corrupted))
    clean, other = (by_name(model, parts, pop, here.scale) for parts in (alone, still))
    found["for IO, alone"] = clean[0] - other[0]
    scores = copy_scores(model, names_in(pop))
    copies = (scores.ranks < 5).float() - (scores.negated < 5).float()  # [layer head name]
    return found | {"OV": copies, "writers": torch.tensor(writers)}


def names_in(pop: Population) -> list[str]:
    """The names of these prompts, in alphabetical order: the last axis of "OV"."""
    return sorted({name for prompt in pop.prompts for name in (prompt.io, prompt.s)})


def writing(
    direct: Float[Tensor, "layer head batch"], gap: Float[Tensor, " batch"], groups: Int[Tensor, " batch"]
) -> list[Head]:
    """The writers: heads outside layer 0 whose wire to the logits is worth `EFFECT` of the gap, and no accident.

    Where there is none, the head with the largest mean stands in for them.
    """
    n_heads = direct.shape[1]
    means = direct.mean(-1).flatten()
    sure = set(screen(direct.flatten(0, 1), groups).chosen)
    later = range(n_heads, len(means))  # nobody can tell a head of layer 0 anything
    chosen = [i for i in later if means[i] >= EFFECT * float(gap.mean()) and i in sure]
    return [divmod(i, n_heads) for i in chosen or [max(later, key=lambda i: float(means[i]))]]


def _who_tell_nobody(
    model: TransformerBridge, pop: Population, corrupted: Population, writers: Sequence[Head]
) -> list[Head]:
    """Without those that inform the others: who asks where writers are told to look must not count the teller in."""
    layers = sorted({layer for layer, _ in writers})
    wires = path_patch(model, pop, corrupted, "q", writers, sender_at="END", receiver_at="END", layers=layers)
    told = (wires.clean - wires.values).mean(-1)  # [layer head]
    least = EFFECT * float((wires.clean - wires.corrupted).mean())
    return [(layer, head) for layer, head in writers if told[layers.index(layer), head] < least] or list(writers)


def _at_the_next_word(
    model: TransformerBridge, pop: Population, corrupted: Population, asked: Bool[Tensor, "layer head"]
) -> Float[Tensor, "layer head batch"]:
    lost = torch.full((*asked.shape, len(pop)), torch.nan)
    if asked.any():
        only = [(int(layer), int(head)) for layer, head in asked.nonzero()]
        grid = sweep(model, pop, corrupted, "z", at="S1+1", direction="noising", only=only)
        lost[asked] = grid.clean - grid.values
    return lost


def by_name(
    model: TransformerBridge, parts: Decomposition, answers: Population, scale: Float[Tensor, " batch"]
) -> tuple[Float[Tensor, "layer head batch"], Float[Tensor, "layer head batch"]]:
    """Direct attribution of each head to the logits of IO and of S, relative to the mean over all names.

    Args:
        parts: of `decompose`, at END or at the place that it was given for END.
        answers: whose IO and S are meant.
        scale: the final norm's, held at this value.
    """
    kept, _ = prompts.single_token_names(model)
    ids = torch.tensor([prompts.token_id(model, " " + name) for name in kept])
    names = model.W_U[:, ids].mean(-1)  # [d_model]
    terms = parts.terms[parts.select("head")]  # [layer*head batch d_model]
    found = []
    for answer in (answers.io_ids, answers.s_ids):
        direction = (model.W_U[:, answer] - names[:, None]).T  # [batch d_model]
        share = torch.einsum("tbm,bm->tb", terms, direction) / scale
        found.append(share.unflatten(0, (model.cfg.n_layers, model.cfg.n_heads)))
    return found[0], found[1]


Unit = Literal["attention", "share of the gap", "share of the names"]


@dataclass(frozen=True)
class Measurement:
    """The mean of one measurement over the prompts, with its 95 % interval, for every head.

    Shares of the gap are divided by its mean, so their intervals are those of the effect, given the gap.

    Attributes:
        sure: whether the mean is no accident among all heads (`metrics.screen`). It is asked of effects only: attention
            is never negative, so its sign says nothing.
        least: what a mean has to reach to count: `LOOKS` even shares, `EFFECT` or `COPIES`.
        unit: of the means.
        n: the number of prompts, or of names.
    """

    mean: Float[Tensor, "layer head"]
    low: Float[Tensor, "layer head"]
    high: Float[Tensor, "layer head"]
    sure: Bool[Tensor, "layer head"]
    least: float
    unit: Unit
    n: int

    def at(self, head: Head) -> Interval:
        """The interval of one head."""
        return Interval(float(self.mean[head]), float(self.low[head]), float(self.high[head]), self.n)

    def counts(self, sign: int = 1) -> Bool[Tensor, "layer head"]:
        """Which heads reach the threshold, above it for a `sign` of +1, below its negative for -1."""
        return (sign * self.mean >= self.least) & self.sure


@dataclass(frozen=True)
class NearMiss:
    """A head that meets some criteria of a family and not all of them."""

    head: Head
    family: str
    met: tuple[str, ...]
    missed: tuple[str, ...]


@dataclass(frozen=True)
class Discovery:
    """Families of one model, found on one population.

    Attributes:
        families: members by family name, those with the largest effect first. Families that share a position share no
            head: duplicate and induction heads are told apart by where they look more, and so are those that look at IO
            and at S; a backup is no name mover.
        unknown: heads that matter and pass no definition, by what they do (`UNKNOWN`).
        evidence: every measurement, for every head; effects are shares of the gap.
        writers: the heads whose queries were asked in "query".
        gap: mean clean minus mean corrupted logit difference.
        n: number of prompts.
        n_groups: number of groups, the effective size of the sample.
    """

    families: dict[str, list[Head]]
    unknown: dict[str, list[Head]]
    evidence: dict[str, Measurement]
    writers: list[Head]
    gap: Interval
    n: int
    n_groups: int

    def nodes(self, name: str) -> list[Node]:
        """The members of a family with the position at which they act.

        Raises:
            FamilyError: an unknown family.
        """
        if name in UNKNOWN:
            place = "S2" if name == "acts at S2" else "END"
            return [(*head, place) for head in self.unknown[name]]
        place = _family(name).position
        return [(*head, place) for head in self.families[name]]

    def failed(self, name: str, head: Head) -> list[str]:
        """The criteria of a family that a head does not meet, in words.

        An effect that is large enough and may be an accident fails "by the screen over all heads".

        Raises:
            FamilyError: an unknown family.
        """
        texts = []
        for one in _family(name).criteria:
            if not passing(self.evidence, one)[head]:
                found = self.evidence[one.measure]
                enough = one.sign * float(found.mean[head]) >= found.least
                texts.append(one.text + (", by the screen over all heads" if enough else ""))
        return texts

    @property
    def near_misses(self) -> list[NearMiss]:
        """Heads that meet some criteria of a family and not all; most of them look and do not act."""
        met = {
            (name, one.text): passing(self.evidence, one)
            for name, family in FAMILIES.items()
            for one in family.criteria
        }
        misses = []
        for name, family in FAMILIES.items():
            of_all = torch.stack([met[name, one.text] for one in family.criteria])  # [criterion layer head]
            for layer, head in (of_all.any(0) & ~of_all.all(0)).nonzero().tolist():
                met_ = tuple(one.text for one in family.criteria if met[name, one.text][layer, head])
                misses.append(NearMiss((layer, head), name, met_, tuple(self.failed(name, (layer, head)))))
        return misses

    @property
    def circuit(self) -> list[Node]:
        """The heads of all families, each at its position."""
        return sorted({node for name in FAMILIES for node in self.nodes(name)})

    @property
    def extended(self) -> list[Node]:
        """The circuit and the heads that matter and belong to no family."""
        return sorted({*self.circuit, *(node for name in UNKNOWN for node in self.nodes(name))})


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise FamilyError(f"unknown family {name!r}: choose among {', '.join([*FAMILIES, *UNKNOWN])}")
    return FAMILIES[name]


def judge(table: Mapping[str, Tensor], rows: Sequence[int] | None = None) -> Discovery:
    """Apply the criteria to measurements, or to those of some prompts.

    Args:
        table: what `measure` returns, and `groups` [batch]: prompts of one group are not independent of each other.
        rows: the prompts.

    Raises:
        FamilyError: fewer than two groups of prompts: no interval, so no verdict; a measurement that is missing, or a
            prompt.
    """
    if missing := {"groups", "clean", "corrupted", "writers", "OV", "for IO", "for IO, alone", "direct"} - set(table):
        raise FamilyError(f"no {', '.join(sorted(missing))} in the table: give what `measure` returns, and `groups`")
    n = len(table["groups"])
    index = torch.arange(n) if rows is None else torch.tensor(list(rows), dtype=torch.long)
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < n:
        raise FamilyError(f"prompts from {int(index.min())} to {int(index.max())}: there are {n}, counted from 0")
    groups = table["groups"][index]
    n_groups = groups.unique().numel()
    if n_groups < 2:
        raise FamilyError(f"{n_groups} group of prompts is too few for an interval: take at least 4 prompts")
    gap = bootstrap((table["clean"] - table["corrupted"])[index], groups)
    found = {}
    for key, values in _cells(table).items():
        if key == "OV":
            found[key] = _measurement(values, torch.arange(values.shape[-1]), "share of the names", COPIES)
        elif key.startswith("attention"):
            even = table["even " + key.removeprefix("attention ").split("→")[0]][index].mean()
            found[key] = _measurement(values[..., index], groups, "attention", LOOKS * float(even))
        else:
            found[key] = _measurement(values[..., index] / (gap.mean or torch.nan), groups, "share of the gap", EFFECT)
    members = _members(partial(passing, found), found)
    families = {name: _by_size(mask, found[FAMILIES[name].strength]) for name, mask in members.items()}
    placed = torch.stack(list(members.values())).any(0)
    unknown: dict[str, list[Head]] = {}
    for name, criterion in UNKNOWN.items():
        new = passing(found, criterion) & ~placed
        unknown[name], placed = [(a, b) for a, b in new.nonzero().tolist()], placed | new
    writers = [(int(a), int(b)) for a, b in table["writers"]]
    return Discovery(families, unknown, found, writers, gap, len(index), n_groups)


def _cells(table: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "layer head batch"]]:
    """The measurements of heads, and those that are made of two of them."""
    cells = {key: values for key, values in table.items() if values.ndim == 3}
    cells["attention END→S"] = cells["attention END→S1"] + cells["attention END→S2"]
    cells["for IO, gained"] = cells["for IO, alone"] - cells["for IO"]
    return cells


def passing(found: Mapping[str, Measurement], criterion: Criterion) -> Bool[Tensor, "layer head"]:
    """Which heads meet a criterion."""
    return found[criterion.measure].counts(criterion.sign)


def _members(
    meeting: Callable[[Criterion], Bool[Tensor, "*n layer head"]], found: Mapping[str, Measurement]
) -> dict[str, Bool[Tensor, "*n layer head"]]:
    """Who meets all criteria of each family; families at one position share no head.

    Where a head fits two, the place decides at which it looks more. A name mover is no backup.
    """
    meets = {name: torch.stack([meeting(one) for one in family.criteria]).all(0) for name, family in FAMILIES.items()}
    members = dict(meets)
    for these, those, here, there in (
        (("duplicate",), ("induction",), "S2→S1", "S2→S1+1"),
        (("name mover", "negative", "backup"), ("suppressor", "subject mover"), "END→IO", "END→S"),
    ):
        more = found[f"attention {here}"].mean >= found[f"attention {there}"].mean
        one, other = (torch.stack([meets[name] for name in names]).any(0) for names in (these, those))
        members |= {name: meets[name] & (more | ~other) for name in these}
        members |= {name: meets[name] & ~(more & one) for name in those}
    members["backup"] = members["backup"] & ~members["name mover"]
    return members


def _by_size(mask: Bool[Tensor, "layer head"], size: Measurement) -> list[Head]:
    return sorted(((a, b) for a, b in mask.nonzero().tolist()), key=lambda head: -abs(float(size.mean[head])))


def _measurement(
    values: Float[Tensor, "layer head sample"], groups: Int[Tensor, " sample"], unit: Unit, least: float
) -> Measurement:
    asked = ~values.isnan().any(-1)
    low, high = torch.full(asked.shape, torch.nan), torch.full(asked.shape, torch.nan)
    sure = torch.full(asked.shape, unit != "share of the gap")
    if asked.any():
        if unit == "share of the names":
            intervals = bounded(values[asked], groups, (-1, 1))
        else:
            intervals = bootstrap_cells(values[asked], groups, (0, 1) if unit == "attention" else None)
        low[asked], high[asked] = (torch.tensor([getattr(one, end) for one in intervals]) for end in ("low", "high"))
        if unit == "share of the gap":
            chosen = torch.zeros(int(asked.sum()), dtype=torch.bool)
            chosen[screen(values[asked], groups).chosen] = True
            sure[asked] = chosen
    return Measurement(values.mean(-1), low, high, sure, least, unit, values.shape[-1])


def jaccard(a: Iterable[Hashable], b: Iterable[Hashable]) -> float:
    """Members in common over members in all; 1 for two empty families."""
    one, other = set(a), set(b)
    return len(one & other) / len(one | other) if one | other else 1.0


def shuffled_control(
    table: Mapping[str, Tensor], how: Literal["heads", "layers", "roles"], n: int = 500, seed: int = 0
) -> dict[str, Int[Tensor, " shuffle"]]:
    """How many heads each family has when its definition ought to mean nothing; "any" counts heads of any family.

    Limits: at S1+1 only heads that look at S1 are measured, so the effects of others can hardly fill the family of
    previous-token heads: its counts are too low. Tossed roles are what the screen's threshold was made from: that about
    nobody passes shows that it works, and no more.

    Args:
        how: "heads" gives every head the effects of another head, anywhere in the model, and leaves it its own
            attention and OV circuit: what chance alone would pair. "layers" does so within each layer, which is harder
            to fail, since heads that matter share layers. "roles" tosses a coin for each group of prompts and, on
            heads, counts the loss as a gain: as if nobody knew which name was the subject.
        n: number of shuffles.

    Raises:
        FamilyError: an unknown shuffle.
    """
    found = judge(table).evidence
    generator = torch.Generator().manual_seed(seed)
    n_layers, n_heads = found["direct"].mean.shape
    if how == "heads":
        order = torch.stack([torch.randperm(n_layers * n_heads, generator=generator) for _ in range(n)])
    elif how == "layers":
        inside = torch.rand(n, n_layers, n_heads, generator=generator).argsort(-1)
        order = (inside + n_heads * torch.arange(n_layers)[:, None]).flatten(1)
    signs = torch.randint(0, 2, (n, len(table["groups"].unique())), generator=generator) * 2 - 1
    cells, groups = _cells(table), table["groups"]
    gap = float((table["clean"] - table["corrupted"]).mean())

    def counted(criterion: Criterion) -> Bool[Tensor, "shuffle layer head"]:
        if criterion.kind != "acts":
            return passing(found, criterion).expand(n, -1, -1)
        if how == "roles":
            return _tossed(cells[criterion.measure], groups, signs, criterion.sign * EFFECT * gap)
        return passing(found, criterion).flatten()[order].unflatten(1, (n_layers, n_heads))

    members = _members(counted, found)
    counts = {name: mask.flatten(1).sum(-1) for name, mask in members.items()}
    return counts | {"any": torch.stack(list(members.values())).any(0).flatten(1).sum(-1)}


def _tossed(
    values: Float[Tensor, "layer head batch"],
    groups: Int[Tensor, " batch"],
    signs: Int[Tensor, "shuffle group"],
    least: float,
) -> Bool[Tensor, "shuffle layer head"]:
    """Which heads have an effect of at least `least`, in its direction, once the signs of whole groups are tossed.

    The threshold of a screen is that of the largest |t| over all tosses, so it is the same for each of them.
    """
    asked = ~values.isnan().any(-1)
    passed = torch.zeros(len(signs), *asked.shape, dtype=torch.bool)
    if asked.any():
        means, threshold = tossed(values[asked], groups, signs)
        passed[:, asked] = (means * (1 if least > 0 else -1) >= abs(least)) & threshold
    return passed


guard(globals(), FamilyError)
