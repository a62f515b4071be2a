"""The circuit sketch: what the book knows of the circuit after each chapter, drawn over the one sentence.

It closes every chapter, and grows: a box appears in the chapter that finds it, an arrow in the one that measures it
(`growth`). What is new is bold, what was found before is calm, and what is asked and not answered yet is dotted
(`canvas`). Nothing here measures for long: a model without a record is drawn from what the chapter passes, and all else
stays a question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from labbook.show.canvas import draw
from labbook.show.growth import ARROWS, BOXES, SAYS, Arrow, Known
from labcode import evidence, frames, joint, metrics, models, prompts
from labcode.families import FAMILIES, UNKNOWN, Discovery, passing
from labcode.heads import Head
from labcode.recorded import remember
from labcode.report import CIRCUIT
from labcode.variants import POSITION, TOKEN, fit_signals, signal_variant

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LEAST = 0.1  # nats: a weaker arrow is not drawn here; chapter 11 lists them all
SIGNALS = 16  # prompts on which it is asked what is said: those of chapter 9


def so_far(
    model: TransformerBridge,
    chapter: int,
    seen: evidence.Evidence | None = None,
    arrows: Mapping[tuple[str, str, str], torch.Tensor | float] | None = None,
    again: bool = False,
) -> str:
    """The sketch that closes a chapter, as HTML.

    Args:
        chapter: 1 to 13; later ones show the whole circuit.
        seen: evidence of a model without a record, where the chapter has it. A record is found without it.
        arrows: (sender family, receiver family or "logits", input) -> what is lost, nats, as `edges.arrows` gives them.
            Those of the record if None.
        again: whether a later chapter opens with it.
    """
    known = look(model, chapter, seen, arrows)
    figure = draw(known, chapter, again=again)
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
    edition = models.edition(model)
    if seen is None and edition and (evidence.DATA / f"evidence-{edition}.safetensors").is_file():
        seen = evidence.load(model)
    if seen is None or chapter < min(first for _, first in BOXES.values()):
        return known
    found = seen.found
    if arrows is None and chapter >= min(first for pair, first in ARROWS.items() if "logits" not in pair):
        arrows = {}
        if seen.origin == "recorded":
            arrows = {(one.sender, one.receiver, one.into): lost for one, lost in seen.arrows().items()}
    says = _said(model, found.families["s-inhibition"]) if chapter >= SAYS else ""
    return replace(known, found=found, arrows=_standing(arrows or {}, seen), layers=_instalments(found), says=says)


def _standing(
    arrows: Mapping[tuple[str, str, str], torch.Tensor | float], seen: evidence.Evidence
) -> tuple[Arrow, ...]:
    """The arrows that are no accident among all of them and large enough to be drawn, strongest first."""
    means = {arrow: float(lost.mean() if isinstance(lost, torch.Tensor) else lost) for arrow, lost in arrows.items()}
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


def _said(model: TransformerBridge, heads: Sequence[Head]) -> str:
    """Whether place or name weighs more in what these heads say at END (chapter 9's experiment)."""
    if not heads:
        return ""
    known, _ = prompts.single_token_names(model)
    pop = prompts.population(model, SIGNALS, 8, frames.TEST, frames.names(known, "test"))

    def measure() -> dict[str, torch.Tensor]:
        both = joint.Joint(model, pop)
        values = {("original", "original"): both.clean}
        for place in POSITION:
            for token in TOKEN:
                if (token, place) not in values:
                    other = both.source(signal_variant(model, pop, token, place))
                    values[token, place] = both.run(other, [list(heads)]).values[0]
        return fit_signals(values)

    fit, groups = remember(f"signals of {sorted(heads)}", model, [pop], measure), pop.draws
    if len(groups.unique()) < 6:
        return ""
    place, token, gap = (
        metrics.bootstrap(value, groups) for value in (fit["position"], fit["token"], fit["position"] - fit["token"])
    )
    if gap.low > 0 and place.low > 0:
        return "the place more than the name"
    return "the name more than the place" if gap.high < 0 and token.low > 0 else ""


def _published(known: Known) -> Known:
    """GPT-2 small as the literature has it: heads by family, and no arrow, since none was measured here."""
    listed = {name: list(CIRCUIT.get(name, ())) for name in FAMILIES}
    found = Discovery(listed, {name: [] for name in UNKNOWN}, {}, [], metrics.Interval(0.0, 0.0, 0.0, 0), 0, 0)
    source = "The families of Wang et al. 2022. No arrow is drawn, since none was measured here."
    return Known(("GPT-2 small", 12, 12), known.words, known.answer, known.other, None, found, source=source)


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
