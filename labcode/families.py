"""Head families: which head does which job, decided by criteria that were written down before the search.

In reading order: the criteria, the same ones on every model; what is measured of every head, once; the discovery, which
applies the criteria to the measurements and decides nothing else; and the memory that keeps a measurement, since it
takes minutes and several chapters share it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from labcode import prompts
from labcode.errors import FamilyError, ModelError
from labcode.heads import Head, Node, position_attentions
from labcode.metrics import Interval, bootstrap_cells
from labcode.models import build_once, cache_dir, weights_key
from labcode.patching import exchanged, path_patch, sweep
from labcode.residual import decompose

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

# A definition asks for both kinds of evidence, where a head looks and what it costs to intervene on it. The thresholds
# are round numbers from the literature, not fitted: an effect of one fiftieth of the gap between clean and corrupted
# runs is twice what Wang et al. (2022, section 4.2) ask of a head before they call it needed, and a tenth of a head's
# attention is several times an even share over a sentence.
LOOKS = 0.1  # mean attention that counts as looking somewhere
EFFECT = 0.02  # mean effect that counts, as a share of the gap; its interval must lie on the same side of 0


@dataclass(frozen=True)
class Criterion:
    """One condition of a definition.

    Attributes:
        text: the condition in words.
        kind: "looks" (observational) or "acts" (an intervention, or what is written to the logits).
        measure: the name of the measurement, as `measure` calls it.
        sign: +1 where it has to reach the threshold from above, -1 where it has to fall below its negative.
        over: name of another measurement that this one has to exceed, if any, instead of a threshold: the interval of
            the difference has to lie above 0.
    """

    text: str
    kind: str
    measure: str
    sign: int = 1
    over: str = ""


@dataclass(frozen=True)
class Family:
    """A family: what its heads do, the position at which they act, and the criteria that a member meets, all of them.

    Attributes:
        name: key in `FAMILIES`. title: the name in running text.
        position: where its heads act: S1+1, S2 or END.
        definition: one sentence.
        colour: kept through the whole book.
    """

    name: str
    title: str
    position: str
    definition: str
    criteria: tuple[Criterion, ...]
    colour: str


def _look(source: str, target: str) -> Criterion:
    text = f"attention {source} → {target} at least {LOOKS}"
    return Criterion(text, "looks", f"attention {source}→{target}")


def _costs(place: str) -> Criterion:
    text = f"corrupting it at {place} loses at least {EFFECT:.0%} of the gap"
    return Criterion(text, "acts", f"total {place}")


def _more(text: str, measure: str, over: str) -> Criterion:
    return Criterion(text, "acts", measure, over=over)


_WRITES_FOR = Criterion(f"its wire to the logits is worth at least {EFFECT:.0%} of the gap", "acts", "direct")
_WRITES_AGAINST = Criterion(
    f"its wire to the logits is worth at most −{EFFECT:.0%} of the gap", "acts", "direct", sign=-1
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "previous",
            "previous-token heads",
            "S1+1",
            "At the word after the first S it looks back at S, and corrupting it there costs part of the answer.",
            (_look("S1+1", "S1"), _costs("S1+1")),
            "#999999",
        ),
        Family(
            "duplicate",
            "duplicate-token heads",
            "S2",
            "At the second S it looks at the first, and corrupting it there costs part of the answer.",
            (_look("S2", "S1"), _costs("S2")),
            "#E69F00",
        ),
        Family(
            "induction",
            "induction heads",
            "S2",
            "At the second S it looks at the word after the first, and corrupting it there costs part of the answer.",
            (_look("S2", "S1+1"), _costs("S2")),
            "#F0E442",
        ),
        Family(
            "s-inhibition",
            "S-inhibition heads",
            "END",
            "At END it looks at the second S, and part of the answer is lost when the writers' queries hear it wrong.",
            (
                _look("END", "S2"),
                Criterion(
                    f"its wire to the writers' queries is worth at least {EFFECT:.0%} of the gap", "acts", "query"
                ),
            ),
            "#56B4E9",
        ),
        Family(
            "name mover",
            "name movers",
            "END",
            "At END it looks at IO and writes for the answer, more by raising IO than by lowering S.",
            (_look("END", "IO"), _WRITES_FOR, _more("raises IO more than it lowers S", "for IO", "against S")),
            "#0072B2",
        ),
        Family(
            "suppressor",
            "subject suppressors",
            "END",
            "At END it looks at the second S and writes for the answer, more by lowering S than by raising IO.",
            (_look("END", "S2"), _WRITES_FOR, _more("lowers S more than it raises IO", "against S", "for IO")),
            "#009E73",
        ),
        Family(
            "negative",
            "negative name movers",
            "END",
            "At END it looks at IO and writes against the answer.",
            (_look("END", "IO"), _WRITES_AGAINST),
            "#D55E00",
        ),
        Family(
            "backup",
            "backup writers",
            "END",
            "At END it looks at IO, and writes for the answer once the writers are out, more than before.",
            (
                _look("END", "IO"),
                Criterion(
                    f"its attribution with the writers out is at least {EFFECT:.0%} of the gap",
                    "acts",
                    "attribution, alone",
                ),
                _more("writes more with the writers out", "attribution, alone", "attribution"),
            ),
            "#CC79A7",
        ),
    )
}

UNKNOWN: dict[str, Criterion] = {
    "writes for the answer": _WRITES_FOR,
    "writes against the answer": _WRITES_AGAINST,
    "acts at S2": _costs("S2"),
    "acts at END": _costs("END"),
}
"""What a head does that matters and passes no definition: it is listed under the first of these that fits."""

PAIRS = (("S1+1", "S1"), ("S2", "S1"), ("S2", "S1+1"), ("END", "IO"), ("END", "S1"), ("END", "S2"))
"""From where to where attention is read: those pairs of positions that some family of the literature is known for."""


def measured(model: TransformerBridge, n: int = 24, seed: int = 21) -> dict[str, Tensor]:
    """What `discover` judges: `measure` on `n` prompts and their three-names twins, and the draw of each prompt."""
    pop = prompts.population(model, n=n, seed=seed)
    corrupted = prompts.corrupt(model, pop, "abc", seed=seed)
    found = remember("heads", model, (pop, corrupted), lambda: measure(model, pop, corrupted))
    return found | {"draws": pop.draws}


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
    query               what is lost when the wire from the head at END to the queries of all writers does
    for IO, against S   the head's direct attribution at END, clean minus corrupted, split: how much it raises the
                        logit of IO, and lowers that of S, relative to the mean logit of all names
    attribution         the sum of these two: its direct attribution to the logit difference
    attribution, alone  the same while all writers' outputs at END come from the corrupted run
    ==================  ==========================================================================================

    and, per prompt or head only, `clean` and `corrupted` [batch], the logit differences of the two runs, and `writers`
    [writer 2], the heads called writers above.

    Args:
        corrupted: the same prompts with three unrelated names, as `prompts.corrupt(model, pop, "abc")` makes them.
        writers: the heads called writers above; by default those that `writing` picks on these very prompts.

    Source: Wang et al. 2022 (arXiv 2211.00593), sections 3.1 to 3.3. Limits: one corruption, one head at a time; two
    heads that stand in for each other show in neither `total`.
    """
    looking = position_attentions(model, pop, PAIRS)
    found = {f"attention {a}→{b}": seen for (a, b), seen in zip(PAIRS, looking, strict=True)}
    for place in ("S2", "END"):
        grid = sweep(model, pop, corrupted, "z", at=place, direction="noising")
        found[f"total {place}"] = grid.clean - grid.values
    found["total S1+1"] = _at_the_next_word(model, pop, corrupted, found["attention S1+1→S1"].mean(-1) >= LOOKS)
    grid = path_patch(model, pop, corrupted, sender_at="END")
    found |= {"direct": grid.clean - grid.values, "clean": grid.clean, "corrupted": grid.corrupted}
    if writers is None:
        writers = writing(found["direct"], grid.clean - grid.corrupted, pop.draws)
    wires = path_patch(model, pop, corrupted, "q", writers, sender_at="END", receiver_at="END")
    found["query"] = wires.clean - wires.values
    found["for IO"], found["against S"] = _writes(model, pop, corrupted, ())
    found["attribution"] = found["for IO"] + found["against S"]
    found["attribution, alone"] = sum(_writes(model, pop, corrupted, writers), torch.tensor(0.0))
    return found | {"writers": torch.tensor(writers)}


def writing(
    direct: Float[Tensor, "layer head batch"], gap: Float[Tensor, " batch"], draws: Int[Tensor, " batch"]
) -> list[Head]:
    """The writers: heads outside layer 0 whose mean wire to the logits is worth `EFFECT` of the gap, surely above 0.

    Where there is none, the head with the largest mean stands in for them.
    """
    n_heads = direct.shape[1]
    cells = bootstrap_cells(direct.flatten(0, 1), draws)
    later = range(n_heads, len(cells))  # nobody can tell a head of layer 0 anything
    chosen = [i for i in later if cells[i].mean >= EFFECT * float(gap.mean()) and cells[i].low > 0]
    return [divmod(i, n_heads) for i in chosen or [max(later, key=lambda i: cells[i].mean)]]


def _at_the_next_word(
    model: TransformerBridge, pop: Population, corrupted: Population, asked: Bool[Tensor, "layer head"]
) -> Float[Tensor, "layer head batch"]:
    lost = torch.full((*asked.shape, len(pop)), torch.nan)
    if asked.any():
        only = [(int(layer), int(head)) for layer, head in asked.nonzero()]
        grid = sweep(model, pop, corrupted, "z", at="S1+1", direction="noising", only=only)
        lost[asked] = grid.clean - grid.values
    return lost


def _writes(
    model: TransformerBridge, pop: Population, corrupted: Population, out: Sequence[Head]
) -> tuple[Float[Tensor, "layer head batch"], Float[Tensor, "layer head batch"]]:
    """What each head adds for IO and against S at END, clean minus corrupted, with the heads in `out` corrupted."""
    with exchanged(model, pop, corrupted, out):
        clean, other = _by_name(model, pop, pop), _by_name(model, corrupted, pop)
    return clean[0] - other[0], other[1] - clean[1]


def _by_name(
    model: TransformerBridge, run: Population, answers: Population
) -> tuple[Float[Tensor, "layer head batch"], Float[Tensor, "layer head batch"]]:
    """Direct attribution of each head to the logits of IO and of S, relative to the mean over all names."""
    parts = decompose(model, run, batch_size=len(run))
    kept, _ = prompts.single_token_names(model)
    ids = torch.tensor([prompts.token_id(model, " " + name) for name in kept])
    names = model.W_U[:, ids].mean(-1)  # [d_model]
    terms = parts.terms[parts.select("head")]  # [layer*head batch d_model]
    found = []
    for answer in (answers.io_ids, answers.s_ids):
        direction = (model.W_U[:, answer] - names[:, None]).T.cpu()  # [batch d_model]
        share = torch.einsum("tbm,bm->tb", terms, direction) / parts.scale
        found.append(share.unflatten(0, (model.cfg.n_layers, model.cfg.n_heads)))
    return found[0], found[1]


@dataclass(frozen=True)
class Measurement:
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
    """A head that meets some criteria of a family and not all of them."""

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
        near_misses: heads that meet some criteria of a family and not all; most of them look and do not act.
        writers: the heads whose queries were asked in "query".
        gap: mean clean minus mean corrupted logit difference.
        n: number of prompts.
    """

    families: dict[str, list[Head]]
    unknown: dict[str, list[Head]]
    evidence: dict[str, Measurement]
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

    The measurement is remembered, so only the first call of a model takes its minutes.
    """
    return judge(measured(model, n, seed))


def judge(table: dict[str, Tensor], rows: Sequence[int] | None = None) -> Discovery:
    """Apply the criteria to measurements, or to those of some prompts.

    Raises:
        FamilyError: fewer than two draws: no interval, so no verdict.
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
    for criterion in (one for family in FAMILIES.values() for one in family.criteria if one.over):
        per_head[f"{criterion.measure} − {criterion.over}"] = per_head[criterion.measure] - per_head[criterion.over]
    found = {key: _measurement(key, values, draws, gap.mean) for key, values in per_head.items()}
    heads = [(int(a), int(b)) for a, b in torch.cartesian_prod(*map(torch.arange, found["direct"].mean.shape))]
    families: dict[str, list[Head]] = {name: [] for name in FAMILIES}
    misses: list[NearMiss] = []
    for head in heads:
        for family in FAMILIES.values():
            met = [criterion.text for criterion in family.criteria if passes(found, criterion, head)]
            missed = [criterion.text for criterion in family.criteria if criterion.text not in met]
            if not missed:
                families[family.name].append(head)
            elif met:
                misses.append(NearMiss(head, family.name, tuple(met), tuple(missed)))
    _one_family_each(families, found)
    for name, members in families.items():
        size = found[FAMILIES[name].criteria[1].measure].mean
        members.sort(key=lambda head: -abs(float(size[head])))
    unknown = _unknown({head for members in families.values() for head in members}, heads, found)
    writers = [(int(a), int(b)) for a, b in table["writers"]]
    return Discovery(families, unknown, found, misses, writers, gap, len(index))


def passes(found: dict[str, Measurement], criterion: Criterion, head: Head) -> bool:
    """Whether a head meets a criterion: reaches the threshold, effects with an interval on the same side of 0."""
    seen = found[criterion.measure]
    if criterion.over:
        return bool(found[f"{criterion.measure} − {criterion.over}"].low[head] > 0)
    if seen.unit == "attention":
        return bool(seen.mean[head] >= LOOKS)
    edge = seen.low[head] if criterion.sign > 0 else -seen.high[head]
    return bool(criterion.sign * seen.mean[head] >= EFFECT and edge > 0)


def jaccard(a: Iterable[object], b: Iterable[object]) -> float:
    """Members in common over members in all; 1 for two empty families."""
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


def _measurement(
    key: str, values: Float[Tensor, "layer head batch"], draws: Int[Tensor, " batch"], gap: float
) -> Measurement:
    looks = key.startswith("attention")
    scaled = values if looks else values / (gap or torch.nan)
    asked = ~scaled.isnan().any(-1)
    low, high = torch.full(asked.shape, torch.nan), torch.full(asked.shape, torch.nan)
    if asked.any():
        cells = bootstrap_cells(scaled[asked], draws)
        low[asked], high[asked] = (torch.tensor([getattr(cell, end) for cell in cells]) for end in ("low", "high"))
    return Measurement(scaled.mean(-1), low, high, "attention" if looks else "share of the gap")


def _one_family_each(families: dict[str, list[Head]], found: dict[str, Measurement]) -> None:
    """A head that looks at S1 and at the word after it goes where it looks more; a writer is no backup."""
    same, after = found["attention S2→S1"].mean, found["attention S2→S1+1"].mean
    both = set(families["duplicate"]) & set(families["induction"])
    families["duplicate"] = [head for head in families["duplicate"] if head not in both or same[head] >= after[head]]
    families["induction"] = [head for head in families["induction"] if head not in both or same[head] < after[head]]
    writers = {*families["name mover"], *families["suppressor"]}
    families["backup"] = [head for head in families["backup"] if head not in writers]


def _unknown(known: set[Head], heads: list[Head], found: dict[str, Measurement]) -> dict[str, list[Head]]:
    placed = set(known)
    unknown: dict[str, list[Head]] = {}
    for name, criterion in UNKNOWN.items():
        unknown[name] = [head for head in heads if head not in placed and passes(found, criterion, head)]
        placed |= set(unknown[name])
    return unknown


def remember(
    name: str, model: TransformerBridge, pops: Sequence[Population], measure: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `measure` returns, from the lab's cache folder if it was measured before.

    A name alone would go stale. The key of a measurement holds the model's weights and tokenizer, the prompts, all of
    labcode's source and the version of torch, so a result is found again only where the same code would give it again.
    It is written aside and renamed, and a lock lets one process measure while others wait for it.

    Args:
        name: of the measurement, since others may be made of the same prompts.
        measure: makes the tensors, by name. Called at most once, and by one process at a time.

    Returns:
        The tensors. Where the cache folder can't be used there is a warning, and they are measured.
    """
    from safetensors.torch import load_file, save_file

    parts = [name, weights_key(model), source_key(Path(__file__).parent), *map(prompt_key, pops)]
    folder = cache_dir() / "measured" / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    made: dict[str, Tensor] = {}

    def build(aside: Path) -> None:
        made.update(measure())
        save_file({key: value.detach().contiguous() for key, value in made.items()}, aside / "values.safetensors")

    def read(target: Path) -> dict[str, Tensor] | None:
        try:
            return load_file(target / "values.safetensors")
        except Exception:  # whatever is wrong with the file, measuring again mends it
            return None

    try:
        build_once(folder, lambda target: read(target) is not None, build, needs=2**20)
    except ModelError as reason:
        warnings.warn(f"this measurement is not kept: {reason}", stacklevel=2)
        return made or measure()
    return made or read(folder) or measure()


def prompt_key(pop: Population) -> str:
    """Everything about prompts that a measurement can depend on, as a short text."""
    places = [pop.positions[name] for name in sorted(pop.positions)]
    parts = [pop.tokens, pop.lengths, pop.io_ids, pop.s_ids, pop.draws, *places]
    return hashlib.sha256(b"\0".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()


@cache
def source_key(folder: Path) -> str:
    """A hash of all Python files of a folder, and of torch's version."""
    digest = hashlib.sha256(torch.__version__.encode())
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()
