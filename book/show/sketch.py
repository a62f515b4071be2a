"""The circuit sketch: what the book knows of the circuit after each chapter, drawn over the one sentence.

It closes every chapter, and grows: a box appears in the chapter that finds it, an arrow in the one that measures it.
`BOXES`, `ARROWS` and `QUESTIONS` say which; the heads and the numbers are the run's. What is new is bold, what was found
before is calm, and what is asked and not answered yet is dotted. One drawing for wide columns and one for narrow ones,
of which the style sheet in the drawing shows one; everything is said in words too. Nothing here measures for long: a
model without a record is drawn from what the chapter passes, and all else stays a question.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from labcode import evidence, metrics, models, prompts
from labcode.families import FAMILIES, UNKNOWN, Discovery, passing, remember
from labcode.heads import Head
from labcode.patching import exchange
from labcode.plots import POSITION_COLOURS
from labcode.report import CIRCUIT, signed
from labcode.variants import POSITION, TOKEN, fit_signals, signal_variant

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

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
LEAST = 0.1  # nats: a weaker arrow is not drawn here; chapter 11 lists them all
SHOWN = 4  # heads named in a box
FULL = 4  # arrows named in the caption
SIGNALS = 12  # prompts on which it is asked what is said
INK, PAPER = "currentColor", "var(--pst-color-background, Canvas)"
HALO = f' paint-order="stroke" stroke="{PAPER}" stroke-width="3.5" stroke-linejoin="round"'


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


@dataclass(frozen=True)
class Box:
    """One box in one chapter: of a family, of heads with an effect alone, or of a question that has no heads yet."""

    key: str
    row: Row
    title: str
    heads: tuple[Head, ...]
    colour: str
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


# ---------------------------------------------------------------------------------------------------------------------
# What is known
# ---------------------------------------------------------------------------------------------------------------------


def so_far(
    model: TransformerBridge,
    chapter: int,
    seen: evidence.Evidence | None = None,
    arrows: Mapping[tuple[str, str, str], torch.Tensor | float] | None = None,
) -> str:
    """The sketch that closes a chapter, as HTML.

    Args:
        chapter: 1 to 13; later ones show the whole circuit.
        seen: evidence of a model without a record, where the chapter has it. A record is found without it.
        arrows: (sender family, receiver family or "logits", input) -> what is lost, nats, as `edges.arrows` gives them.
            Those of the record if None.
    """
    known = look(model, chapter, seen, arrows)
    figure = draw(known, chapter)
    return figure + draw(_published(known), 13, "GPT-2 small, as published") if chapter == 13 else figure


def look(
    model: TransformerBridge,
    chapter: int,
    seen: evidence.Evidence | None = None,
    arrows: Mapping[tuple[str, str, str], torch.Tensor | float] | None = None,
) -> Known:
    """What the sketch of a chapter is drawn from; nothing that an earlier chapter does not show is measured."""
    one = prompts.canonical(model)
    names = {int(where[0]): name for name, where in reversed(one.positions.items())}
    words = _words(one.str_tokens[0], names)
    with torch.no_grad():
        logits = model(one.tokens)[0, int(one.end[0])].float()
    lead = float(logits[one.io_ids[0]] - logits[one.s_ids[0]])
    title = models.summary(model).split(":")[0]
    known = Known(
        (title, model.cfg.n_layers, model.cfg.n_heads), words, one.prompts[0].io, one.prompts[0].s,
        lead if lead == lead else None,
    )  # fmt: skip
    if (
        seen is None
        and models.edition(model)
        and (evidence.DATA / f"evidence-{models.edition(model)}.safetensors").is_file()
    ):
        seen = evidence.load(model)
    if seen is None or chapter < min(first for _, first in BOXES.values()):
        return known
    found = seen.judged("discovery")
    if arrows is None and chapter >= min(first for pair, first in ARROWS.items() if "logits" not in pair):
        measured = getattr(seen, "arrows", None)
        arrows = measured() if measured and seen.origin == "recorded" else {}
    says = _said(model, seen, found.families["s-inhibition"]) if chapter >= SAYS else ""
    return replace(known, found=found, arrows=_standing(arrows or {}, seen), layers=_instalments(found), says=says)


def _standing(
    arrows: Mapping[tuple[str, str, str], torch.Tensor | float], seen: evidence.Evidence
) -> tuple[Arrow, ...]:
    """The arrows that are no accident among all of them and large enough to be drawn, strongest first."""
    means = {arrow: float(torch.as_tensor(lost).mean()) for arrow, lost in arrows.items()}
    many = {arrow: lost for arrow, lost in arrows.items() if isinstance(lost, torch.Tensor) and lost.ndim}
    live = [arrow for arrow in many if many[arrow].abs().max() > 1e-4]
    sure = set(arrows) - set(many)
    groups = evidence.groups(seen.populations["test"][0])
    if live and all(len(many[arrow]) == len(groups) for arrow in live):
        chosen = metrics.screen(torch.stack([many[arrow] for arrow in live]), groups).chosen
        sure |= {live[i] for i in chosen}
    kept = [Arrow(*arrow, means[arrow]) for arrow in sure if abs(means[arrow]) >= LEAST]
    return tuple(sorted(kept, key=lambda one: -abs(one.nats)))


def _instalments(found: Discovery) -> tuple[int, ...]:
    """The two layers whose heads at END lose most of the answer, of those with a head that counts; or one, or none."""
    counts = passing(found.evidence, UNKNOWN["acts at END"])
    loss = found.evidence["total END"].mean.sum(1)
    able = [layer for layer in range(len(loss)) if counts[layer].any() and loss[layer] > 0]
    return tuple(sorted(sorted(able, key=lambda layer: -float(loss[layer]))[:2]))


def _said(model: TransformerBridge, seen: evidence.Evidence, heads: Sequence[Head]) -> str:
    """Whether place or name weighs more in what these heads say at END (chapter 9's experiment, on fewer prompts)."""
    pop = seen.populations["test"][0]
    pop = pop.subset(range(0, len(pop), max(1, len(pop) // SIGNALS)))
    groups = evidence.groups(pop)
    if not heads or len(groups.unique()) < 6:
        return ""

    def measure() -> dict[str, torch.Tensor]:
        return fit_signals({
            (token, place): exchange(model, pop, signal_variant(model, pop, token, place), heads)
            for place in POSITION for token in TOKEN
        })  # fmt: skip

    fit = remember(f"signals of {sorted(heads)}", model, [pop], measure)
    place, token, gap = (
        metrics.bootstrap(value, groups) for value in (fit["position"], fit["token"], fit["position"] - fit["token"])
    )
    if gap.low > 0 and place.low > 0:
        return "the place more than the name" if token.low > 0 else "the place, not the name"
    if gap.high < 0 and token.low > 0:
        return "the name more than the place" if place.low > 0 else "the name, not the place"
    return ""


def _published(known: Known) -> Known:
    """GPT-2 small as the literature has it: heads by family, and no arrow, since none was measured here."""
    listed = {name: list(CIRCUIT.get(name, ())) for name in FAMILIES}
    found = Discovery(listed, {name: [] for name in UNKNOWN}, {}, [], metrics.Interval(0.0, 0.0, 0.0, 0), 0, 0)
    return Known(("GPT-2 small", 12, 12), known.words, known.answer, known.other, None, found)


def _words(tokens: Sequence[str], names: Mapping[int, str]) -> tuple[tuple[str, str], ...]:
    """The words of the sentence, put together from tokens, without the start token; a named token stands alone."""
    words: list[tuple[str, str]] = []
    for at, token in enumerate(tokens):
        text, name = "".join(c if c.isprintable() else "�" for c in token), names.get(at, "")
        if at == 0 and not name:
            continue
        if words and not name and not words[-1][1] and text.strip() and not text.startswith(" "):
            words[-1] = (words[-1][0] + text.strip(), "")
        else:
            words.append((text.strip() or "␣", name))
    return tuple(words)


# ---------------------------------------------------------------------------------------------------------------------
# What a chapter shows
# ---------------------------------------------------------------------------------------------------------------------


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
                shown.append(Box(key, row, title, heads, INK, new if heads else first, asks, against=against))
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


def tells(known: Known, chapter: int) -> tuple[str, str]:
    """The story in words: what is new in this chapter, and all that is drawn."""
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
    here = (
        f"New here: {'; '.join(new)}.".replace("?.", "?")
        if new
        else "Nothing new is drawn here: what we believed stands."
    )
    lines = [f"The sentence: {' '.join(text for text, _ in known.words)}."]
    if known.lead is not None:
        lines.append(f"{known.answer} is {known.lead:+.2f} nats ahead of {known.other}.")
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
    worth = f" ({signed(one.nats)} nats)" if chapter >= WHOLE and one.exact else ""
    if one.receiver == "logits":
        how = _for(one, sender)
        return f"{sender.named} write {'for and against' if how == 'both' else how} the answer{worth}"
    other = by_key[one.receiver]
    whom = "each other" if one.sender == one.receiver else f"{sender.named} at {_at(sender)}"
    return f"{other.named} at {_at(other)} read {whom} through their {INPUTS.get(one.into, one.into)}{worth}"


def _for(one: Wire, sender: Box) -> str:
    if 0 < len(sender.against) < len(sender.heads):
        return "both"
    return "for" if one.nats >= 0 else "against"


def _some(heads: Sequence[Head], most: int = SHOWN) -> str:
    names = [f"{layer}.{head}" for layer, head in heads[:most]]
    more = len(heads) - most
    if more > 0:
        return ", ".join(names) + f" and {more} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "no head"


# ---------------------------------------------------------------------------------------------------------------------
# Where things stand
# ---------------------------------------------------------------------------------------------------------------------


class Rect(NamedTuple):
    """A place in the drawing: its upper left corner and its size."""

    x: float
    y: float
    w: float
    h: float

    @property
    def right(self) -> float:
        """Its right edge."""
        return self.x + self.w

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.y + self.h

    @property
    def cx(self) -> float:
        """Its middle, across."""
        return self.x + self.w / 2

    @property
    def cy(self) -> float:
        """Its middle, down."""
        return self.y + self.h / 2


class Text(NamedTuple):
    """A line of a box: its text, and whether it is bold or italic."""

    text: str
    style: str = ""


@dataclass
class Scene:
    """A drawing in the making: its size, its letters, what has been put where, and its marks from back to front."""

    width: float
    size: float
    height: float = 0.0
    places: dict[str, Rect] = field(default_factory=dict)
    texts: dict[str, list[Text]] = field(default_factory=dict)
    back: list[str] = field(default_factory=list)
    front: list[str] = field(default_factory=list)

    @property
    def line(self) -> float:
        """From one line of text to the next."""
        return round(self.size * 1.3)

    def need(self, key: str, texts: Sequence[Text], width: float) -> float:
        """Wrap the text of a box to its width; its height."""
        self.texts[key] = [
            Text(part, one.style) for one in texts for part in _wrapped(one, width - 10, self.size)
        ]  # fmt: skip
        return self.line * len(self.texts[key]) + 13

    def words(
        self,
        x: float,
        y: float,
        text: str,
        style: str = "",
        anchor: str = "middle",
        small: float = 0,
        halo: bool = False,
    ) -> None:
        """A line of text, in front of everything; with the page's ground around it where arrows pass."""
        look = {"bold": ' font-weight="650"', "italic": ' font-style="italic"'}.get(style, "")
        size = f' font-size="{self.size - small:g}"' if small else ""
        self.front.append(
            f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{look}{size}{HALO if halo else ""}>'
            f"{html.escape(text)}</text>"
        )


def _wide(text: str, size: float, bold: bool = False) -> float:
    """About how wide a text is."""
    narrow = sum(letter in " .,;:'!|ijltfr" for letter in text)
    return size * ((0.69 if bold else 0.62) * (len(text) - narrow) + (0.4 if bold else 0.35) * narrow)


def _wrapped(one: Text, width: float, size: float) -> list[str]:
    lines: list[str] = []
    for word in one.text.replace("-", "-\0").replace("\0", "\0").split(" "):
        for i, part in enumerate(word.split("\0")):
            glue = "" if i else " "
            if lines and _wide(lines[-1] + glue + part, size, one.style == "bold") <= width:
                lines[-1] += glue + part
            else:
                lines.append(part)
    return lines


def _lines(box: Box, known: Known) -> list[Text]:
    texts = [Text(box.title, "bold")] if box.title else []
    if box.heads:
        ours = [head for head in box.heads if head not in box.against]
        if ours and box.against:
            texts += [Text(f"for: {_listed(ours, SHOWN - 1)}"), Text(f"against: {_listed(box.against, SHOWN - 1)}")]
        else:
            texts.append(Text(_listed(box.heads, SHOWN)))
    elif box.title:
        texts.append(Text("none found" if known.found else "not measured here", "italic"))
    if box.says:
        texts.append(Text(f"“{box.says}”", "italic"))
    return texts + ([Text(box.asks, "italic")] if box.asks else [])


def _listed(heads: Sequence[Head], most: int) -> str:
    more = len(heads) - most
    return ", ".join(f"{layer}.{head}" for layer, head in heads[:most]) + (f" +{more} more" if more > 0 else "")


def _rows(known: Known, chapter: int) -> tuple[dict[Row, list[Box]], str]:
    """The boxes of each row that get a place, and a line on those writers that were not found."""
    rows: dict[Row, list[Box]] = {"S1+1": [], "S2": [], "END": [], "writers": []}
    for box in boxes(known, chapter):
        rows[box.row].append(box)
    missing = [box for box in rows["writers"] if box.key in FAMILIES and not box.heads]
    rest = [box for box in rows["writers"] if box not in missing]
    if not missing:
        return rows, ""
    titles = ", ".join(box.title for box in missing)
    if any(box.heads for box in rest):
        rows["writers"] = rest
        return rows, f"not found: {titles}"
    one = replace(missing[0], title=titles[:1].upper() + titles[1:])
    rows["writers"] = [one, *rest]
    return rows, ""


def _broad(known: Known, chapter: int) -> Scene:
    """The sentence in one line at the bottom, the circuit above it, from left to right and upwards to the answer."""
    scene = Scene(760, 12.5)
    columns = {"S1+1": Rect(12, 0, 104, 0), "S2": Rect(142, 0, 154, 0), "END": Rect(364, 0, 386, 0)}
    rows, missing = _rows(known, chapter)
    by_key = {box.key: box for row in rows.values() for box in row}
    arrows = [one for one in wires(known, chapter) if one.sender in by_key]
    # Heights first, then from the bottom (0) upwards.
    chips = {row: _chip(known, row, chapter) for row in columns if row != "S1+1" or rows["S1+1"]}
    chip = max(scene.need(f"chip {row}", texts, columns[row].w) for row, texts in chips.items())
    floor = -chip - 26.0
    top = floor
    for row in ("S1+1", "S2"):
        y = floor
        for box in rows[row]:
            h = scene.need(box.key, _lines(box, known), columns[row].w)
            y -= h
            scene.places[box.key] = Rect(columns[row].x, y, columns[row].w, h)
            y -= 22
        top = min(top, y + 22)
    end = _side_by_side(scene, rows["END"], known, columns["END"], 200)
    writers = _side_by_side(scene, rows["writers"], known, columns["END"], 250)
    y = floor - end
    for box in rows["END"]:
        scene.places[box.key] = scene.places[box.key]._replace(y=y, h=end)
    roof = y - 64 - writers
    for box in rows["writers"]:
        scene.places[box.key] = scene.places[box.key]._replace(y=roof, h=writers)
    top = min(roof - 24, top - (66 if missing else 34), -200.0)
    answer = 44 if known.lead is not None else 30
    shift = answer + 10 + 40 - top
    scene.places = {key: place._replace(y=place.y + shift) for key, place in scene.places.items()}
    bottom = shift - 6
    frame = Rect(4, top + shift, 752, bottom - top - shift)
    scene.places["logits"] = Rect(columns["END"].cx - 110, 8, 220, answer)
    _answer(scene, known)
    _frame(scene, frame, known, closed=chapter == 1)
    if missing:
        for i, text in enumerate(_wrapped(Text(missing), 290, scene.size)):
            scene.words(16, top + shift + 40 + 15 * i, text, "italic", "start", small=1)
    word_y = bottom + 74
    centres = _sentence(scene, known, 22, word_y, 16)
    if chapter == 1:
        x = centres.get("END", 380.0)
        scene.back += [_path([(x, word_y - 20), (x, bottom)], 2, 0.8)]
        scene.back += [_path([(columns["END"].cx, frame.y), (columns["END"].cx, 8.0 + answer)], 2, 0.8)]
    else:
        for row in chips:
            place = Rect(columns[row].x, bottom - chip - 6, columns[row].w, chip)
            scene.places[f"chip {row}"] = place
            _box(
                scene,
                f"chip {row}",
                POSITION_COLOURS.get(row, INK),
                1,
                0.16 if row in POSITION_COLOURS else 0.07,
                plain=True,
            )
            if row in centres:
                x, y1, y2 = centres[row], word_y - 18, place.bottom
                half = (y1 + y2) / 2
                scene.back.append(
                    f'<path d="M{x:.0f} {y1:.0f}C{x:.0f} {half:.0f} {place.cx:.0f} {half:.0f} {place.cx:.0f} {y2:.0f}" '
                    f'stroke="{POSITION_COLOURS.get(row, INK)}" stroke-width="4" opacity=".55"/>'
                )
        if chapter >= NEWS and known.layers:
            a, b = scene.places["chip S2"], scene.places["chip END"]
            for i in range(len(known.layers)):
                y = a.cy + 11 * (i - (len(known.layers) - 1) / 2)
                scene.back.append(_path([(a.right, y), (b.x, y)], 2.2 if chapter == NEWS else 1.4, 0.8))
    for box in by_key.values():
        _family(scene, box)
    if chapter > 1:
        _connect(scene, by_key, arrows, chapter, _route_broad)
    scene.height = word_y + 34
    return scene


def _tall(known: Known, chapter: int) -> Scene:
    """The sentence in three lines, each with the boxes of its last word below it, from top to bottom to the answer."""
    scene = Scene(360, 12)
    rows, missing = _rows(known, chapter)
    by_key = {box.key: box for row in rows.values() for box in row}
    arrows = [one for one in wires(known, chapter) if one.sender in by_key]
    passing_by = any(by_key[one.sender].row == "S2" and one.receiver in by_key
                     and by_key[one.receiver].row == "writers" for one in arrows)  # fmt: skip
    lanes = 22 if passing_by else 0
    y = 0.0
    for row in ("S1+1", "S2", "END", "writers"):
        column = Rect(6 + (lanes if row == "END" else 0), 0, 348 - (lanes if row == "END" else 0), 0)
        if row != "writers":
            y = _segment(scene, known, row, y)
            if chapter >= NEWS and known.layers and row in ("S2", "END"):
                scene.words(10, y + 12, _chip(known, row, chapter)[-1].text, "italic", "start", halo=True)
                y += scene.line + 4
        if not rows[row] or chapter == 1:
            continue
        wide = 170 if row == "S1+1" else 230
        y += (34 if chapter > BOXES["at END"][1] else 8) if row == "writers" else 8
        h = _side_by_side(scene, rows[row], known, column, wide)
        for box in rows[row]:
            scene.places[box.key] = scene.places[box.key]._replace(y=y, h=h)
        y += h + (0 if row == "writers" else 34 if arrows and chapter >= BOXES["at S2"][1] else 14)
    if chapter == 1:
        frame = Rect(6, y + 24, 348, 90)
        _frame(scene, frame, known, closed=True)
        scene.back += [_path([(180, y - 4), (180, frame.y)], 2, 0.8)]
        scene.back += [_path([(180, frame.bottom), (180, frame.bottom + 40)], 2, 0.8)]
        y = frame.bottom - 6
    scene.places["logits"] = Rect(60, y + 46, 240, 44 if known.lead is not None else 30)
    _answer(scene, known)
    for box in by_key.values():
        _family(scene, box)
    if chapter > 1:
        _connect(scene, by_key, arrows, chapter, _route_tall)
    y = scene.places["logits"].bottom
    for text in _wrapped(Text(missing), 340, scene.size) if missing else []:
        y += scene.line + 4
        scene.words(180, y, text, "italic")
    scene.height = y + 8
    return scene


def _side_by_side(scene: Scene, row: Sequence[Box], known: Known, column: Rect, most: float) -> float:
    """Share a row's width among its boxes; the height of the highest."""
    if not row:
        return 0.0
    gap = 10
    w = min(most, (column.w - gap * (len(row) - 1)) / len(row))
    left = column.cx - (w * len(row) + gap * (len(row) - 1)) / 2
    heights = [scene.need(box.key, _lines(box, known), w) for box in row]
    for i, box in enumerate(row):
        scene.places[box.key] = Rect(left + i * (w + gap), 0, w, heights[i])
    return max(heights)


def _chip(known: Known, row: Row, chapter: int) -> list[Text]:
    texts = [Text(f"at {row}", "bold")]
    if chapter >= NEWS and known.layers:
        first, last = known.layers[0], known.layers[-1]
        layers = f"layers {first} and {last}" if first != last else f"layer {first}"
        texts += {"S2": [Text(f"the news waits until layer {first}")], "END": [Text(f"it arrives in {layers}")]}.get(
            row, []
        )
    return texts


# ---------------------------------------------------------------------------------------------------------------------
# Marks
# ---------------------------------------------------------------------------------------------------------------------


def _family(scene: Scene, box: Box) -> None:
    if box.key not in scene.places:
        return
    if not box.heads:
        _box(scene, box.key, INK, 2 if box.new else 1.2, 0.0, dots="1.5 5" if box.new else "1 5", plain=True)
    elif box.colour == INK:
        _box(scene, box.key, INK, 3 if box.new else 1.2, 0.07 if box.new else 0.03)
    else:
        _box(scene, box.key, box.colour, 3.4 if box.new else 1.6, 0.26 if box.new else 0.12)


def _box(scene: Scene, key: str, colour: str, stroke: float, fill: float, dots: str = "", plain: bool = False) -> None:
    """A box that hides what runs behind it, and its text."""
    place, texts = scene.places[key], scene.texts[key]
    at = f'x="{place.x:.0f}" y="{place.y:.0f}" width="{place.w:.0f}" height="{place.h:.0f}" rx="9"'
    line = f' stroke-dasharray="{dots}" stroke-linecap="round"' if dots else ""
    name = "" if key.startswith("chip") or (plain and not dots) else f' data-box="{html.escape(key, quote=True)}"'
    scene.front.append(f'<rect {at} fill="{PAPER}" stroke="none"/>')
    scene.front.append(
        f'<rect {at} fill="{colour}" fill-opacity="{fill:g}" stroke="{colour}" stroke-width="{stroke:g}"{line}{name}/>'
    )
    y = place.cy - scene.line * len(texts) / 2 + scene.line * 0.76
    for text in texts:
        scene.words(place.cx, y, text.text, text.style)
        y += scene.line


def _frame(scene: Scene, place: Rect, known: Known, closed: bool) -> None:
    name, layers, heads = known.model
    scene.back.append(
        f'<rect x="{place.x:.0f}" y="{place.y:.0f}" width="{place.w:.0f}" height="{place.h:.0f}" rx="14" fill="{INK}" '
        f'fill-opacity="{0.1 if closed else 0.025}" stroke="{INK}" stroke-opacity="{0.8 if closed else 0.25}" '
        f'stroke-width="{3 if closed else 1}"/>'
    )
    if closed:
        scene.words(place.cx, place.cy - 8, name, "bold")
        scene.words(place.cx, place.cy + 10, f"{layers} layers of {heads} heads")
        scene.words(place.cx, place.cy + 28, "what happens in here?", "italic")
    else:
        scene.words(place.x + 12, place.y + 20, name, "", "start", small=1)


def _answer(scene: Scene, known: Known) -> None:
    place, colour = scene.places["logits"], POSITION_COLOURS["IO"]
    texts = [Text(known.answer, "bold")]
    if known.lead is not None:
        ahead = "ahead of" if known.lead >= 0 else "behind"
        texts.append(Text(f"{abs(known.lead):.2f} nats {ahead} {known.other}"))
    scene.texts["logits"] = texts
    _box(scene, "logits", colour, 1.6, 0.22, plain=True)


def _sentence(scene: Scene, known: Known, x: float, y: float, size: float) -> dict[str, float]:
    """The words from x on; the middle of each that has a position."""
    return _row_of_words(scene, known.words, x, y, size)


def _segment(scene: Scene, known: Known, row: Row, y: float) -> float:
    """The words up to a position and after the one before; the y below them."""
    ends = [at for at, (_, name) in enumerate(known.words) if name in ("S1+1", "S2", "END")]
    stop = next((at for at, (_, name) in enumerate(known.words) if name == row), None)
    if stop is None:
        return y
    start = max([at + 1 for at in ends if at < stop], default=0)
    lines: list[list[tuple[str, str]]] = [[]]
    for word in known.words[start : stop + 1]:
        if lines[-1] and sum(_wide(text, 15) + 10 for text, _ in [*lines[-1], word]) > 340:
            lines.append([])
        lines[-1].append(word)
    for line in lines:
        _row_of_words(scene, line, 10, y + 20, 15)
        y += 46
    return y


def _row_of_words(scene: Scene, words: Iterable[tuple[str, str]], x: float, y: float, size: float) -> dict[str, float]:
    centres = {}
    for text, name in words:
        w, colour = _wide(text, size), POSITION_COLOURS.get(name)
        if text in (",", ".") and not name:
            x -= size * 0.3
        if colour:
            x += size * 0.25
            scene.front.append(
                f'<rect x="{x - 4:.0f}" y="{y - size:.0f}" width="{w + 8:.0f}" height="{size * 1.45:.0f}" rx="3" '
                f'fill="{PAPER}"/><rect x="{x - 4:.0f}" y="{y - size:.0f}" width="{w + 8:.0f}" '
                f'height="{size * 1.45:.0f}" rx="3" fill="{colour}" fill-opacity=".25"/><path d="M{x - 4:.0f} {y + size * 0.45:.0f}h{w + 8:.0f}" '
                f'stroke="{colour}" stroke-width="2.5"/>'
            )
        scene.front.append(
            f'<text x="{x + w / 2:.0f}" y="{y:.0f}" text-anchor="middle" font-size="{size:g}"{"" if colour else HALO}>'
            f"{html.escape(text)}</text>"
        )
        if name and name != "S1+1":
            scene.words(x + w / 2, y + size * 0.45 + scene.size + 2, name, "bold", small=1, halo=True)
        if name:
            centres[name] = x + w / 2
        x += w + size * (0.75 if name in POSITION_COLOURS else 0.5)
    return centres


Point = tuple[float, float]


def _path(points: Sequence[Point], width: float, opacity: float, curve: bool = False) -> str:
    """A line with round corners, or a curve of four points, with an arrow's head at its end."""
    (x0, y0), (x1, y1) = points[-2], points[-1]
    length = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1e-6)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    tip, half = 5 + width, 3.2 + width * 0.75
    base = (x1 - ux * tip, y1 - uy * tip)
    stops = [*points[:-1], base]
    if curve:
        path = f"M{_xy(stops[0])}C{_xy(stops[1])} {_xy(stops[2])} {_xy(stops[3])}"
    else:
        path = f"M{_xy(stops[0])}"
        for before, corner, after in zip(stops, stops[1:], stops[2:], strict=False):
            near, far = _towards(corner, before), _towards(corner, after)
            path += f"L{_xy(near)}Q{_xy(corner)} {_xy(far)}"
        path += f"L{_xy(base)}"
    head = [(x1, y1), (base[0] - uy * half, base[1] + ux * half), (base[0] + uy * half, base[1] - ux * half)]
    return (
        f'<g opacity="{opacity:g}"><path d="{path}" stroke-width="{width:.1f}"/>'
        f'<path d="M{_xy(head[0])}L{_xy(head[1])}L{_xy(head[2])}z" fill="{INK}" stroke="none"/></g>'
    )


def _xy(point: Point) -> str:
    return f"{point[0]:.1f} {point[1]:.1f}"


def _towards(corner: Point, other: Point, radius: float = 9) -> Point:
    length = abs(other[0] - corner[0]) + abs(other[1] - corner[1])
    share = min(radius, length / 2) / max(length, 1e-6)
    return corner[0] + (other[0] - corner[0]) * share, corner[1] + (other[1] - corner[1]) * share


class Route(NamedTuple):
    """The way of an arrow, whether it is a curve, and where its label stands."""

    points: list[Point]
    curve: bool
    label: Point
    anchor: str


def _connect(scene: Scene, by_key: Mapping[str, Box], arrows: Sequence[Wire], chapter: int, route: object) -> None:
    """Draw the arrows behind the boxes, and their labels in front."""
    for one in arrows:
        way = route(scene, by_key, arrows, one)  # type: ignore[operator]
        if chapter >= WHOLE and one.exact:
            width = min(9.0, 1 + 3.2 * abs(one.nats))
        else:
            width = 2.6 if one.new else 1.5
        mark = _path(way.points, width, 0.9 if one.new or chapter >= WHOLE else 0.55, way.curve)
        scene.back.append(f'<g data-arrow="{one.sender} &gt; {one.receiver}">{mark}</g>')
        into = (
            one.into
            if one.receiver != "logits"
            else ""
            if chapter >= WHOLE and one.exact
            else _for(one, by_key[one.sender])
        )
        label = f"{into} {signed(one.nats)}".strip().replace("-", "−") if chapter >= WHOLE and one.exact else into
        if scene.width < 500 and one.receiver in by_key and by_key[one.receiver].row == "writers":
            label = into  # no room for numbers between many arrows
        scene.words(*way.label, label, "bold" if one.new else "", way.anchor, 1, halo=True)


def _spread(scene: Scene, arrows: Sequence[Wire], one: Wire, at: str, by: float, room: float) -> float:
    """How far from the middle of an edge an arrow leaves (at "sender") or ends (at "receiver")."""
    key = getattr(one, at)
    other = "receiver" if at == "sender" else "sender"
    same = [wire for wire in arrows if getattr(wire, at) == key and wire.sender != wire.receiver]
    same = [wire for wire in same if _kind(scene, wire) == _kind(scene, one)]
    same.sort(key=lambda wire: (scene.places[getattr(wire, other)].cx, scene.places[getattr(wire, other)].cy))
    step = min(by, room / max(len(same), 1))
    return step * (same.index(one) - (len(same) - 1) / 2)


def _kind(scene: Scene, wire: Wire) -> str:
    """Arrows that share an edge."""
    if wire.receiver == "logits":
        return "up"
    a, b = scene.places[wire.sender], scene.places[wire.receiver]
    return "across" if a.right < b.x or (b.right < a.x and scene.width > 500) else "up"


def _loop(place: Rect, above: bool) -> Route:
    """From a box to itself, around its right upper corner."""
    x, y = place.right, place.y
    points = [(x, y + 20), (x + 26, y + 20), (x - 16, y - 28), (x - 16, y)]
    return Route(points, True, (x - 24, y - 6), "end")


def _route_broad(scene: Scene, by_key: Mapping[str, Box], arrows: Sequence[Wire], one: Wire) -> Route:
    a, b = scene.places[one.sender], scene.places[one.receiver]
    if one.sender == one.receiver:
        return _loop(a, True)
    here = by_key[one.sender].row
    there = by_key[one.receiver].row if one.receiver != "logits" else "logits"
    if here == "S2" and there in ("END", "writers"):
        crossing = [
            w
            for w in arrows
            if by_key[w.sender].row == "S2" and w.receiver in by_key and by_key[w.receiver].row in ("END", "writers")
        ]
        crossing.sort(key=lambda w: (scene.places[w.receiver].y, scene.places[w.receiver].x, scene.places[w.sender].y))
        lane = 303 + min(9.0, 40 / len(crossing)) * crossing.index(one)
        out = a.cy + _spread(scene, arrows, one, "sender", 10, a.h - 16)
        leftmost = min(scene.places[w.receiver].x for w in crossing if scene.places[w.receiver].y == b.y)
        first = all(
            place.x >= b.x
            for key, place in scene.places.items()
            if key in by_key and place.y == b.y and by_key[key].row == there
        )
        if first and leftmost == b.x:
            entries = [w for w in crossing if w.receiver == one.receiver]
            into = b.cy + min(16.0, (b.h - 14) / len(entries)) * (entries.index(one) - (len(entries) - 1) / 2)
            return Route([(a.right, out), (lane, out), (lane, into), (b.x, into)], False, (b.x - 13, into - 5), "end")
        x = b.x + 14 + 12 * [w for w in crossing if w.receiver == one.receiver].index(one)
        channel = b.bottom + 18 + 5 * crossing.index(one)
        return Route(
            [(a.right, out), (lane, out), (lane, channel), (x, channel), (x, b.bottom)],
            False,
            (x - 6, channel + 13),
            "end",
        )
    if here == "S1+1":
        points = [(a.right, a.cy), (a.right + 14, a.cy), (b.x - 24, b.cy), (b.x, b.cy)]
        return Route(points, True, (b.x - 7, b.cy - 10), "end")
    out = a.cx + _spread(scene, arrows, one, "sender", 26, a.w - 20)
    into = b.cx + _spread(scene, arrows, one, "receiver", 40, b.w - 20)
    if there == "logits":
        half = (a.y + b.bottom) / 2
        return Route([(out, a.y), (out, half), (into, half), (into, b.bottom)], True, (out + 8, a.y - 6), "start")
    if a.y > b.bottom:
        half = (a.y + b.bottom) / 2
        return Route(
            [(out, a.y), (out, half), (into, half), (into, b.bottom)], True, (into + 8, b.bottom + 17), "start"
        )
    top = min(a.y, b.y) - 22
    return Route(
        [(a.cx + 12, a.y), (a.cx + 12, top), (b.cx + 12, top), (b.cx + 12, b.y)], True, (b.cx + 18, b.y - 6), "start"
    )


def _route_tall(scene: Scene, by_key: Mapping[str, Box], arrows: Sequence[Wire], one: Wire) -> Route:
    a, b = scene.places[one.sender], scene.places[one.receiver]
    if one.sender == one.receiver:
        return _loop(a, True)
    here = by_key[one.sender].row
    there = by_key[one.receiver].row if one.receiver != "logits" else "logits"
    out = a.cx + _spread(scene, arrows, one, "sender", 20, a.w - 16)
    into = b.cx + _spread(scene, arrows, one, "receiver", 26, b.w - 16)
    if here == "S2" and there == "writers":
        crossing = [
            w
            for w in arrows
            if by_key[w.sender].row == "S2" and w.receiver in by_key and by_key[w.receiver].row == "writers"
        ]
        at = crossing.index(one)
        lane, channel = 5 + 8 * at, b.y - 14 - 6 * (len(crossing) - at)
        below = a.bottom + 12 + 5 * at
        x = b.x + 12 + 22 * [w for w in crossing if w.receiver == one.receiver].index(one)
        points = [(out, a.bottom), (out, below), (lane, below), (lane, channel), (x, channel), (x, b.y)]
        return Route(points, False, (x + 5, b.y - 6), "start")
    if b.y > a.bottom:
        half = (a.bottom + b.y) / 2
        label = (out + 7, a.bottom + 13) if there == "logits" else (into + 8, b.y - 6)
        return Route([(out, a.bottom), (out, half), (into, half), (into, b.y)], True, label, "start")
    low = max(a.bottom, b.bottom) + 22
    return Route(
        [(a.cx, a.bottom), (a.cx, low), (b.cx, low), (b.cx, b.bottom)], True, (b.cx + 6, b.bottom + 13), "start"
    )


STYLE = (
    "<style>.lab-sketch{container-type:inline-size;margin:1.4rem 0}.lab-sketch svg{display:block;width:100%;height:auto}"
    ".lab-sketch .lab-tall{display:none;max-width:26rem;margin:auto}"
    "@container (max-width:560px){.lab-sketch .lab-broad{display:none}.lab-sketch .lab-tall{display:block}}"
    "@media print{.lab-sketch{break-inside:avoid}}</style>"
)


def draw(known: Known, chapter: int, title: str = "") -> str:
    """The figure of one chapter: both drawings, all that they show as a text alternative, and what is new below."""
    chapter = max(1, chapter)
    here, everything = tells(known, chapter)
    svgs = ""
    for name, scene in (("broad", _broad(known, chapter)), ("tall", _tall(known, chapter))):
        style = STYLE if name == "broad" else ""
        svgs += (
            f'<svg class="lab-{name}" viewBox="0 0 {scene.width:g} {scene.height:.0f}" fill="none" stroke="{INK}" '
            f'font-family="inherit" font-size="{scene.size:g}" aria-hidden="true">{style}{"".join(scene.back)}'
            f'<g><g fill="{INK}" stroke="none">{"".join(scene.front)}</g></g></svg>'
        )
    legend = "Bold is new, calm was found before, dotted is not known yet."
    if chapter > WHOLE:
        legend = ""
    elif chapter >= min(first for pair, first in ARROWS.items() if "logits" not in pair):
        legend += " q, k, v: read through queries, keys, values."
    head = f"<b>{html.escape(title)}.</b> " if title else ""
    return (
        f'<figure class="lab-sketch"><div role="img" aria-label="{html.escape(everything, quote=True)}">{svgs}</div>'
        f"<figcaption><p>{head}{html.escape(here)} <small>{legend}</small></p></figcaption></figure>"
    )
