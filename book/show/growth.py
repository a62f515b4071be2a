"""What the book knows of the circuit after each chapter, in boxes, arrows and words: the data of `sketch`.

`BOXES`, `ARROWS` and `QUESTIONS` say in which chapter a box is found, an arrow measured and a question open. Heads and
numbers are the run's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from labcode.families import FAMILIES, UNKNOWN, Discovery, passing
from labcode.heads import Head
from labcode.report import signed

Row = str  # S1+1, S2, END, writers (which act at END too), logits

BOXES: dict[str, tuple[Row, int]] = {
    "previous": ("S1+1", 10),
    "duplicate": ("S2", 10),
    "induction": ("S2", 10),
    "at S2": ("S2", 6),
    "s-inhibition": ("END", 9),
    "at END": ("END", 6),
    "suppressor": ("writers", 8),
    "name mover": ("writers", 8),
    "subject mover": ("writers", 8),
    "negative": ("writers", 8),
    "backup": ("writers", 8),
    "writers": ("writers", 3),
}
"""Where a box stands and the chapter that finds it: families, and before them heads of which only the effect is known.

The heads of such a box move into their families as those appear. What is left over has no definition yet.
"""
ARROWS: dict[tuple[Row, Row], int] = {
    ("writers", "logits"): 3,
    ("END", "writers"): 7,
    ("S2", "writers"): 7,
    ("S2", "END"): 9,
    ("S1+1", "S2"): 10,
}
"""The chapter that measures the arrows between two rows; all others are those of `WHOLE`."""
QUESTIONS: dict[Row, tuple[tuple[int, int, str], ...]] = {
    "S2": ((2, 5, "Who notices that a name came before?"), (6, 9, "How do they notice?")),
    "END": ((2, 5, "Who takes that to END?"), (6, 8, "What do they say?")),
    "writers": ((2, 2, "Who copies a name, or rules one out?"), (3, 7, "Copy, or rule out?")),
}
"""What is asked of a row, from one chapter to another."""
NEWS, SAYS, WHOLE = 5, 9, 11
"""The chapters that find where the news is and when it moves; what is said to the writers; how wide arrows are."""

GENERIC = {"S2": "at S2", "END": "at END", "writers": "writers"}
TITLES = {"at S2": ("act at S2", "others at S2"), "at END": ("act at END", "others at END"),
          "writers": ("write the answer", "other writers")}  # fmt: skip
INPUTS = {"q": "queries", "k": "keys", "v": "values"}
SHOWN = 4  # heads named in a box
FULL = 4  # arrows named in the caption


@dataclass(frozen=True)
class Arrow:
    """From a family to one that reads it, or to the logits: through which input, and what is lost without it, nats."""

    sender: str
    receiver: str
    into: str
    nats: float


@dataclass(frozen=True)
class Known:
    """What the run says, whatever the chapter.

    Attributes:
        model: its name, its layers and its heads.
        words: the sentence, each word with its position ("" if it has none).
        answer, other: IO and S of the sentence.
        lead: logit of the answer minus that of the other, nats.
        found: the families; None if nobody has measured this model.
        arrows: those that stand out.
        layers: of which the heads at END bring most, in order.
        says: what S-inhibition heads say, in a few words.
        source: a sentence on where it is from, if it is not from this run.
    """

    model: tuple[str, int, int]
    words: tuple[tuple[str, str], ...]
    answer: str
    other: str
    lead: float | None
    found: Discovery | None = None
    arrows: tuple[Arrow, ...] = ()
    layers: tuple[int, ...] = ()
    says: str = ""
    source: str = ""


@dataclass(frozen=True)
class Box:
    """One box in one chapter: of a family, of heads with an effect alone, or of a question that has no heads yet."""

    key: str
    row: Row
    title: str
    heads: tuple[Head, ...]
    colour: str  # of its family; "" is the page's ink
    new: bool
    asks: str = ""
    says: str = ""
    against: tuple[Head, ...] = ()  # those of its heads that write against the answer, where it holds both kinds

    @property
    def named(self) -> str:
        """Its first heads, and how many more."""
        return _some(self.heads)


class Wire(NamedTuple):
    """An arrow between two boxes of a chapter."""

    sender: str
    receiver: str
    into: str
    nats: float
    new: bool
    exact: bool  # whether `nats` is what the whole box sends; else only its sign is known


def boxes(known: Known, chapter: int) -> list[Box]:
    """The boxes of a chapter, in their order; families without heads are there, with no heads."""
    shown: list[Box] = []
    for key, (row, since) in BOXES.items():
        asks = next((text for a, b, text in QUESTIONS.get(row, ()) if a <= chapter <= b), "")
        new = since == chapter
        if key in FAMILIES and since <= chapter:
            heads = tuple(known.found.families[key]) if known.found else ()
            says = known.says if key == "s-inhibition" and heads else ""
            shown.append(Box(key, row, FAMILIES[key].title, heads, FAMILIES[key].colour, new, says=says))
        elif key not in FAMILIES:
            theirs = [other for other, (place, _) in BOXES.items() if place == row and other in FAMILIES]
            placed = {head for box in shown if box.key in theirs for head in box.heads}
            later = any(BOXES[other][1] <= chapter for other in theirs)
            heads = tuple(head for head in _effects(known.found, key) if head not in placed)
            heads = heads if since <= chapter else ()
            if heads or asks:
                title = TITLES[key][later] if heads else ""
                first = any(chapter == a for a, _, _ in QUESTIONS.get(row, ()))
                against = _against(known.found, heads) if key == "writers" else ()
                shown.append(Box(key, row, title, heads, "", new if heads else first, asks, against=against))
    return shown


def _effects(found: Discovery | None, key: str) -> list[Head]:
    """The heads of a box that is known by its effect alone, strongest first; those that write come first."""
    if found is None or not found.evidence:
        return []
    seen = found.evidence
    direct, total = seen["direct"].mean, seen["total END"].mean
    carries = passing(seen, UNKNOWN["acts at END"]) & (direct.abs() < total / 2)
    writes = passing(seen, UNKNOWN["writes for the answer"]) | passing(seen, UNKNOWN["writes against the answer"])
    mask, size = {
        "at S2": (passing(seen, UNKNOWN["acts at S2"]), seen["total S2"].mean),
        "at END": (carries, total),
        "writers": (writes & ~carries, direct.abs()),
    }[key]
    return sorted(((a, b) for a, b in mask.nonzero().tolist()), key=lambda head: -float(size[head]))


def _against(found: Discovery | None, heads: Iterable[Head]) -> tuple[Head, ...]:
    return tuple(head for head in heads if found and float(found.evidence["direct"].mean[head]) < 0)


def wires(known: Known, chapter: int) -> list[Wire]:
    """The arrows of a chapter between its boxes, strongest first; of several between two boxes the strongest."""
    here = {box.key: box for box in boxes(known, chapter) if box.heads}

    def holder(family: str) -> str:
        row = BOXES[family][0] if family in BOXES else ""
        return family if family in here or not row else GENERIC.get(row, "")

    best: dict[tuple[str, str], Wire] = {}
    for one in known.arrows:
        rows = (BOXES[one.sender][0], BOXES[one.receiver][0] if one.receiver in BOXES else "logits")
        pair = (holder(one.sender), holder(one.receiver) if one.receiver != "logits" else "logits")
        since = ARROWS.get(rows, WHOLE)
        whole = pair == (one.sender, one.receiver)
        drawn = pair[0] in here and (pair[1] in here or pair[1] == "logits")
        if drawn and since <= chapter and pair not in best and (whole or pair[1] != "logits"):
            best[pair] = Wire(*pair, one.into, one.nats, since == chapter, whole)
    if known.found and known.found.evidence:  # the wire of each single head to the logits is in the evidence
        first = ARROWS["writers", "logits"]
        direct = known.found.evidence["direct"].mean * known.found.gap.mean
        for box in here.values():
            sent = sum(float(direct[head]) for head in box.heads)
            if box.row == "writers" and first <= chapter and (box.key, "logits") not in best:
                best[box.key, "logits"] = Wire(box.key, "logits", "logits", sent, first == chapter, False)
    return list(best.values())


def tells(known: Known, chapter: int, again: bool = False) -> tuple[str, str]:
    """The story in words: what is new in this chapter (`again`: read in a later one), and all that is drawn."""
    drawn, arrows = boxes(known, chapter), wires(known, chapter)
    by_key = {box.key: box for box in drawn}
    new: list[str] = []
    if chapter == 1 and known.lead is not None:
        ahead = "ahead of" if known.lead >= 0 else "behind"
        new.append(f"the model puts {known.answer} {abs(known.lead):.2f} nats {ahead} {known.other}")
    if chapter == 2:
        new.append("three questions. " + " ".join(box.asks for box in reversed(drawn)))
    if chapter == NEWS and known.layers:
        new.append(_news(known))
    new += [_found(box) for box in drawn if box.new and box.heads]
    gone = [box.title for box in drawn if box.new and box.key in FAMILIES and not box.heads]
    if gone:
        new.append(f"not found: {', '.join(gone)}" if known.found else f"not measured here: {', '.join(gone)}")
    if chapter == WHOLE and known.arrows:
        new.append("how much each arrow carries")
    told = [_reads(by_key, one, chapter) for one in arrows if one.new and one.sender != "writers"]
    new += told[:FULL] + ([f"{len(told) - FULL} more arrows"] if len(told) > FULL else [])
    where = f"in chapter {chapter}" if again else "here"
    here = f"New {where}: {'; '.join(new)}.".replace("?.", "?") if new else "Nothing new is drawn in this chapter."
    here = known.source or re.sub(r"-(?=\d)", "−", here)
    lines = [f"The sentence: {' '.join(text for text, _ in known.words)}."]
    if known.lead is not None:
        lead = f"{known.lead:+.2f}".replace("-", "−")
        lines.append(f"{known.answer} is {lead} nats ahead of {known.other}.")
    if chapter == 1:
        lines.append("The model is a closed box.")
    if chapter >= NEWS and known.layers:
        lines.append(_news(known)[:1].upper() + _news(known)[1:] + ".")
    for box in drawn:
        mark = "new: " if box.new else ""
        heads = ", ".join(f"{a}.{b}" for a, b in box.heads)
        if box.title:
            what = f"{box.title} at {_at(box)}: {heads or ('none found' if known.found else 'not measured')}"
            lines.append(mark + what + (f", which tell {box.says}" if box.says else "") + ".")
        if box.asks:
            lines.append(f"Open question at {_at(box)}: {box.asks}")
    lines += [("new: " if one.new else "") + _reads(by_key, one, chapter) + "." for one in arrows]
    return here, " ".join([f"{known.model[0]}, circuit sketch after chapter {chapter}.", here, *lines])


def _news(known: Known) -> str:
    first, last = known.layers[0], known.layers[-1]
    layers = f"layers {first} and {last}" if first != last else f"layer {first}"
    return f"the news of the repeated name waits at S2 until layer {first} and reaches END in {layers}"


def _at(box: Box) -> str:
    return "END" if box.row == "writers" else box.row


def _found(box: Box) -> str:
    if box.key in FAMILIES:
        says = f", which tell {box.says}" if box.says else ""
        return f"{box.title} at {_at(box)}, {box.named}{says}"
    if box.key != "writers":
        return f"{box.named} matter at {_at(box)}"
    ours = [head for head in box.heads if head not in box.against]
    sides = [f"{_some(heads)} {how}" for heads, how in ((ours, "for"), (box.against, "against")) if heads]
    return f"at END these heads write to the logits: {', and '.join(sides)} the answer"


def _reads(by_key: Mapping[str, Box], one: Wire, chapter: int) -> str:
    sender = by_key[one.sender]
    worth = f" ({signed(one.nats)} nats)".replace("-", "−") if chapter >= WHOLE and one.exact else ""
    if one.receiver == "logits":
        how = side(one, sender)
        return f"{sender.named} write {'for and against' if how == 'both' else how} the answer{worth}"
    other = by_key[one.receiver]
    whom = "each other" if one.sender == one.receiver else f"{sender.named} at {_at(sender)}"
    return f"{other.named} at {_at(other)} read {whom} through their {INPUTS.get(one.into, one.into)}{worth}"


def side(one: Wire, sender: Box) -> str:
    """Whether an arrow to the logits writes for the answer, against it, or both."""
    if 0 < len(sender.against) < len(sender.heads):
        return "both"
    return "for" if one.nats >= 0 else "against"


def _some(heads: Sequence[Head], most: int = SHOWN) -> str:
    names = [f"{layer}.{head}" for layer, head in heads[:most]]
    more = len(heads) - most
    if more > 0:
        return ", ".join(names) + f" and {more} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "no head"
