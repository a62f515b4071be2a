"""Chapter 03: the halves of a head's share, false heads, the logit lens by hand, and a liking for a place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting
from labcode import metrics, prompts


def _halves(
    model: Any,
    pop: Any,
    vectors: Tensor,
    others: Tensor,
    *,
    base: str = "names",
    s_sign: float = 1.0,
    swap: bool = False,
) -> Tensor:
    """[half batch]: the effect on the logits of IO and of S, or with one thing wrong."""
    logits = vectors @ model.W_U  # [batch d_vocab]
    rows = torch.arange(len(pop))
    named = logits[:, others]
    taken = {
        "names": named.mean(-1),
        "none": torch.zeros(len(pop)),
        "sum": named.sum(-1),
    }[base]
    both = [logits[rows, pop.io_ids] - taken, s_sign * (logits[rows, pop.s_ids] - taken)]
    return torch.stack(both[::-1] if swap else both)


def _vectors(setting: Setting) -> list[tuple[Any, Any, Tensor, Tensor]]:
    """Random vectors in place of a head's: the arithmetic is the same, and no number can be copied from the page."""
    model, pop, one = setting.model, setting.pop, setting.one
    names, _ = prompts.single_token_names(model)
    others = torch.tensor([prompts.token_id(model, f" {name}") for name in names[:12]])
    width = model.cfg.d_model
    return [
        (model, pop, setting.random(len(pop), width), others),
        (model, one, setting.random(1, width, seed=1), others[:5]),
    ]


def _kept(model: Any, pop: Any, *places: str) -> list[Tensor]:
    """Activations of one run, [batch pos ...] each."""
    _, cache = model.run_with_cache(pop.tokens, names_filter=lambda name: name in places)
    return [cache[place] for place in places]


def _few(setting: Setting) -> Any:
    """The shortest and the longest prompt: a run of all takes a while."""
    order = setting.pop.lengths.argsort(stable=True)
    return setting.pop.subset([int(order[0]), int(order[-1])])


def _false(values: Tensor, groups: Tensor, signs: Tensor, *, one_by_one: bool = False, side: str = "either") -> int:
    """Intervals that miss zero after the flips, or with one thing wrong."""
    found = metrics.bootstrap_cells(values * signs[groups], None if one_by_one else groups)
    above, below = sum(cell.low > 0 for cell in found), sum(cell.high < 0 for cell in found)
    return {"either": above + below, "above": above, "below": below, "none": len(found) - above - below}[side]


def _tables(setting: Setting) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Tables whose rows share their luck and have small means, as heads; the two prompts of a pair are alike."""
    made = []
    for seed, (rows, pairs) in enumerate([(80, 12), (150, 8)]):
        groups = torch.arange(pairs).repeat_interleave(2)
        luck = setting.random(rows, 1, seed=seed + 2) * setting.random(1, pairs, seed=seed)
        noise = setting.random(rows, pairs, seed=seed + 4) + 0.3 * setting.random(rows, 1, seed=seed + 6)
        values = (luck + noise)[:, groups] + 0.2 * setting.random(rows, 2 * pairs, seed=seed + 8)
        made.append((values, groups, torch.where(setting.random(pairs, seed=seed + 10) > 0, 1, -1)))
    return made


def _lens(
    model: Any,
    pop: Any,
    layer: int,
    *,
    place: str = "hook_resid_post",
    norm: str = "own",
    end: bool = True,
) -> Tensor:
    """[batch]: the logit difference read from the stream behind a block, or with one thing wrong."""
    stream, scale = _kept(model, pop, f"blocks.{layer}.{place}", "ln_final.hook_scale")
    column = pop.end if end else torch.full_like(pop.end, pop.tokens.shape[1] - 1)
    rows = torch.arange(len(pop))
    vectors, scale = stream[rows, column], scale[rows, column]  # [batch d_model], [batch 1]
    if norm == "own":
        vectors = model.ln_final(vectors[:, None])[:, 0]
    elif norm == "final":
        vectors = vectors / scale
    direction = (model.W_U[:, pop.io_ids] - model.W_U[:, pop.s_ids]).T
    biases = model.b_U[pop.io_ids] - model.b_U[pop.s_ids]
    return (vectors * direction).sum(-1) + biases


def _layers(setting: Setting) -> list[tuple[Any, Any, int]]:
    n_layers = setting.model.cfg.n_layers
    return [(setting.model, _few(setting), n_layers // 2), (setting.model, setting.one, n_layers - 1)]


def _parts(shares: Tensor, orders: list[str], *, by: str = "order", half: float = 0.5, sign: float = 1.0) -> Tensor:
    """[part head]: what follows the role, and what follows the second place, or with one thing wrong."""
    second = torch.tensor([order == "BABA" for order in orders])
    if by == "turns":
        second = torch.arange(len(orders)) % 2 == 1
    one, other = shares[:, second].mean(-1), shares[:, ~second].mean(-1)
    role = shares.mean(-1) if by == "all" else half * (one + other)
    return torch.stack([role, sign * half * (one - other)])


def _ordered(setting: Setting) -> list[tuple[Tensor, list[str]]]:
    """Heads that follow a role, a place or both, on prompts of which more have one order than the other."""
    made = []
    for seed, orders in enumerate([["BABA"] * 7 + ["ABBA"] * 4, ["ABBA", "BABA", "BABA"] * 3]):
        second = torch.tensor([1.0 if order == "BABA" else -1.0 for order in orders])
        role, place = setting.random(2, 20, 1, seed=seed)
        made.append((role + place * second + 0.1 * setting.random(20, len(orders), seed=seed + 5), orders))
    return made


EXERCISES = [
    Exercise(
        number="03.1",
        what="the effect on the logits of IO and of S",
        dims="half batch",
        takes=("model", "pop", "vectors", "others"),
        cases=_vectors,
        right=_halves,
        says="Each logit is measured against those of other names, since only differences of logits change a "
        "probability. The first row less the second is the head's whole share.",
        mistakes=[
            Mistake(
                gives=lambda *case: _halves(*case, base="none"),
                says="These are bare logits or, what is the same here, logits against the mean of the whole "
                "vocabulary. A vector that raises all names alike then seems to write for both: take away the mean of "
                "the other names.",
            ),
            Mistake(
                gives=lambda *case: _halves(*case, s_sign=-1.0),
                says="Row 0 is right, in row 1 the sign is turned round. Asked is the effect on the logit of S, so a "
                "head that writes against S has a negative number there.",
            ),
            Mistake(
                gives=lambda *case: _halves(*case, swap=True),
                says="The rows are exchanged: IO, the name that is right, comes first, and pop.io_ids are its tokens.",
            ),
            Mistake(
                gives=lambda *case: _halves(*case, base="sum"),
                says="You take away the sum over the other names. Their mean is the level to compare with: the answer "
                "must not grow with the number of names.",
            ),
        ],
    ),
    Exercise(
        number="03.2",
        what="a whole number of intervals",
        near=1e-09,
        takes=("values", "groups", "signs"),
        cases=_tables,
        right=_false,
        says="All of them are false: the coins have taken every mean away. Intervals that are right one by one miss "
        "zero by the dozen where there are many, and in crowds where they share their prompts.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda values, groups, signs: _false(values, groups, torch.ones_like(signs)),
                says="This is the count in the table as it came, with no sign turned. Multiply by signs[groups] first.",
            ),
            Mistake(
                gives=lambda *case: _false(*case, one_by_one=True),
                says="Your intervals take prompts to be independent. The two of a pair share their names and their "
                "coin: give groups to metrics.bootstrap_cells.",
            ),
            Mistake(
                gives=lambda *case: _false(*case, side="above"),
                says="You count the intervals above zero only. Those below zero are false heads as well.",
            ),
            Mistake(
                gives=lambda *case: _false(*case, side="none"),
                says="These are the intervals that hold zero, the ones that raise no alarm. Count the others.",
            ),
        ],
    ),
    Exercise(
        number="03.3",
        what="the logit difference read at that stage",
        dims="batch",
        takes=("model", "pop", "layer"),
        cases=_layers,
        right=_lens,
        says="The stream after the block, at END, through the final norm and along IO − S: a stage is read as if the "
        "model ended there.",
        mistakes=[
            Mistake(
                gives=lambda *case: _lens(*case, norm="none"),
                says="The norm is missing: streams grow from layer to layer, and so do your readings. Send the vectors "
                "through model.ln_final first.",
            ),
            Mistake(
                gives=lambda *case: _lens(*case, place="hook_resid_pre"),
                says="One block too early: you read the stream before the block. After it, that is hook_resid_post.",
            ),
            Mistake(
                gives=lambda *case: _lens(*case, norm="final"),
                says="You divide by the scale of the finished stream. That is direct attribution; in the logit lens an "
                "unfinished stream is divided by its own size, which model.ln_final computes anew.",
            ),
            Mistake(
                gives=lambda *case: _lens(*case, end=False),
                says="You read the last column. Shorter prompts are padded on the right: read each at pop.end.",
            ),
        ],
    ),
    Exercise(
        number="03.4",
        what="the part that follows the role and the part that follows the second place",
        dims="part head",
        takes=("shares", "orders"),
        cases=_ordered,
        right=_parts,
        says="A mean for each order first, then half their sum and half their difference: so it does not matter which "
        "order has more prompts.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda *case: _parts(*case, by="all"),
                says="Your second row is right. The first is the mean over all prompts: where one order has more "
                "prompts, a liking for a place leaks into it. Take a mean for each order first.",
            ),
            Mistake(
                gives=lambda *case: _parts(*case, half=1.0),
                says="Both rows are twice too large: a head that writes role + place in one order and role − place in "
                "the other has half of the sum and half of the difference.",
            ),
            Mistake(
                gives=lambda *case: _parts(*case, sign=-1.0),
                says="The place has the wrong sign: positive is a liking for the name that comes second, and in BABA "
                "that is the right one.",
            ),
            Mistake(
                gives=lambda *case: _parts(*case, by="turns"),
                says="You take every other prompt for BABA. Ask orders which ones are.",
            ),
        ],
    ),
]
