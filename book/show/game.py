"""The detection game: who has read a latent's dashboard says where in new text the latent fires.

That is detection scoring (Paulo et al. 2024) with the reader as the judge. For each latent there are `FIRING` contexts
in which it fires at the marked token and as many in which it is off there, so chance is one half. Of those some are
near misses: the same tokens, or tokens that its rule names, where the latent is off all the same.

The page has all contexts, and the answers in closed blocks at its end; `labgame.js` asks for one latent after the
other and keeps the score. A model wrote the text, so all of it is escaped. The answers that the script counts with are
encoded in an attribute: that hides them from a glance and from nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from labbook.show import cards
from labcode import metrics
from labcode.corpus import masked_tokens
from labcode.errors import MetricError, ReportError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.latents import Codes

FIRING = 5  # contexts in which the latent fires, and as many in which it does not
NEAR = 2  # near misses among those in which it does not, where the text has so many
NOBODY = f"No latent of this run fires in {FIRING} of the unseen contexts, so there is no game."
SHOWN = 5  # strongest contexts of the dashboard; the others are from further down


class TooFew(MetricError):
    """A latent fires, or is off, in too few contexts to be asked about."""


@dataclass(frozen=True)
class Questions:
    """What is asked about one latent, and the answers.

    Attributes:
        places: context and position of each marked token; each in a context of its own.
        fires: whether the latent fires there. share: its value there, as a share of the largest one in this text.
        near: whether it is a near miss. said: whether its rule says that it fires.
    """

    latent: int
    places: tuple[tuple[int, int], ...]
    fires: tuple[bool, ...]
    share: tuple[float, ...]
    near: tuple[bool, ...]
    said: tuple[bool, ...]

    @property
    def right(self) -> tuple[bool, ...]:
        """Where the rule is right."""
        return tuple(a == b for a, b in zip(self.fires, self.said, strict=True))


@dataclass(frozen=True)
class Round:
    """One latent of the game: what the reader sees of it, what is asked, and its rule.

    Attributes:
        seen: contexts of its dashboard. asked: tokens around each place, and which of them is marked.
    """

    questions: Questions
    seen: tuple[cards.Snippet, ...]
    asked: tuple[tuple[tuple[str, ...], int], ...]
    rule: str


def dashboard(codes: Codes, latent: int) -> list[tuple[int, int]]:
    """The places that a dashboard shows: the strongest contexts, and one around each lower quantile."""
    acts = codes.of(latent)
    if not (acts > 0).any():
        raise TooFew(f"latent {latent} does not fire on the text of the dashboards: take more text, or leave it out")
    lower = [place for q in cards.LOWER for place in cards.around(acts, q, 1)]
    return list(dict.fromkeys(cards.best_of_each_context(acts, SHOWN) + lower))


def questions(chosen: Codes, unseen: Codes, latent: int, says: Bool[Tensor, "context pos"], seed: int = 0) -> Questions:
    """Draw the contexts about which a latent is asked; the same seed draws the same ones.

    All draws are uniform over the tokens that have a code, but no context is used twice. A near miss is a token at
    which the latent is off although its rule names it, or although it is one that the dashboard shows firing.

    Args:
        chosen: codes of the text that the dashboard shows and that chose the rule. unseen: codes of other text.
        says: where in the unseen text the rule says that the latent fires.

    Raises:
        MetricError: shapes that do not fit.
        TooFew: the latent fires, or is off, in too few contexts.
    """
    if says.shape != unseen.tokens.shape:
        raise MetricError(f"a rule of shape {tuple(says.shape)} for a text of shape {tuple(unseen.tokens.shape)}")
    like = torch.stack([chosen.tokens[place] for place in dashboard(chosen, latent)])
    acts = unseen.of(latent)
    fires = acts > 0
    off = ~fires & (unseen.values > 0).any(-1)  # position 0 and massive vectors have no code
    generator = torch.Generator().manual_seed(seed * 1_000_003 + latent)
    taken: set[int] = set()

    def draw(where: Tensor, n: int) -> list[tuple[int, int]]:
        places, found = where.nonzero(), list[tuple[int, int]]()
        order = torch.randperm(len(places), generator=generator)
        for piece in places[order].split(64):  # nearly always the first few are enough
            for context, position in piece.tolist():
                if len(found) == n:
                    return found
                if context not in taken:
                    taken.add(context)
                    found.append((context, position))
        return found

    firing = draw(fires, FIRING)
    near = draw(off & (says | torch.isin(unseen.tokens, like)), NEAR)
    rest = draw(off, FIRING - len(near))
    if len(firing) < FIRING or len(near) + len(rest) < FIRING:
        missing = "fires" if len(firing) < FIRING else "is off"
        raise TooFew(
            f"latent {latent} {missing} in too few of the {len(acts)} unseen contexts: the game needs {FIRING} in "
            f"which it fires and {FIRING} others; take more text, or leave it out"
        )
    drawn = firing + near + rest
    order = torch.randperm(len(drawn), generator=generator).tolist()
    places = tuple(drawn[i] for i in order)
    return Questions(
        latent=latent,
        places=places,
        fires=tuple(bool(fires[place]) for place in places),
        share=tuple(round(float(acts[place] / acts.max()), 3) for place in places),
        near=tuple(place in near for place in places),
        said=tuple(bool(says[place]) for place in places),
    )


def draws(
    chosen: Codes, unseen: Codes, says: Mapping[int, Bool[Tensor, "context pos"]], seed: int = 0
) -> list[Questions]:
    """The questions about each latent of `says`; a latent that fires, or is off, in too few contexts is left out."""
    found = []
    for latent, rule in says.items():
        try:
            found.append(questions(chosen, unseen, latent, rule, seed))
        except TooFew:
            continue
    return found


def rounds(
    model: TransformerBridge, chosen: Codes, unseen: Codes, asked: Sequence[Questions], rules: Mapping[int, str]
) -> list[Round]:
    """A round of the game for each of some drawn questions, with its text.

    Args:
        chosen, unseen: as for `questions`, which drew `asked` from them. rules: the latents' rules in words.
    """
    made = []
    for drawn in asked:
        acts = chosen.of(drawn.latent)
        peak = float(acts.max())
        seen = dashboard(chosen, drawn.latent)
        made.append(
            Round(
                questions=drawn,
                seen=tuple(cards.snippet(model, chosen, acts, peak, *place) for place in seen),
                asked=tuple(_around(model, unseen.tokens, *place) for place in drawn.places),
                rule=rules[drawn.latent],
            )
        )
    return made


def _around(
    model: TransformerBridge, tokens: Int[Tensor, "context pos"], context: int, position: int
) -> tuple[tuple[str, ...], int]:
    window = slice(max(1, position - cards.BEFORE), position + cards.AFTER + 1)
    ids = tokens[context, window].tolist()
    return masked_tokens([model.tokenizer.decode([i]) for i in ids]), position - window.start


def by_rule(drawn: Sequence[Questions]) -> metrics.Interval:
    """The share of contexts on which the latents' rules are right, with Wilson's interval.

    The interval tells how they would do on other contexts like these of the same latents, and not on other latents.
    Where nothing was asked it is as wide as can be, around chance.
    """
    right = [one for some in drawn for one in some.right]
    return metrics.share(sum(right), len(right)) if right else metrics.Interval(0.5, 0.0, 1.0, 0)


@dataclass(frozen=True)
class Told:
    """What rules say about the contexts they are asked about. The intervals are over latents.

    Attributes:
        right: share of contexts on which they are right.
        firing, near, other: share of contexts that they call firing, among those where the latent fires, near misses,
            and others where it is off.
        silence: of a latent's ten contexts, the firings that its rule misses less those that it invents.
    """

    right: metrics.Interval
    firing: metrics.Interval
    near: metrics.Interval
    other: metrics.Interval
    silence: metrics.Interval


def told(drawn: Sequence[Questions]) -> Told:
    """What the rules of some latents say; of what was not asked, intervals as wide as can be."""
    nothing = metrics.Interval(0.5, 0.0, 1.0, 0)
    if not drawn:
        return Told(nothing, nothing, nothing, nothing, metrics.Interval(0.0, -FIRING, FIRING, 0))
    fires, near, said = (torch.tensor([getattr(one, name) for one in drawn]) for name in ("fires", "near", "said"))

    def share(of: Tensor) -> metrics.Interval:  # of [latent context]
        some = of.any(1)
        rates = (said & of).sum(1)[some] / of.sum(1)[some]
        return metrics.bounded(rates[None])[0] if some.any() else nothing

    missed, invented = (fires & ~said).sum(1), (said & ~fires).sum(1)  # [latent] each
    return Told(
        right=metrics.bounded((fires == said).float().mean(1)[None])[0],
        firing=share(fires),
        near=share(near),
        other=share(~fires & ~near),
        silence=metrics.bounded((missed - invented).float()[None], span=(-FIRING, FIRING))[0],
    )


def page(played: Sequence[Round]) -> cards.Markup:
    """The page of the game; without latents it is a sentence that says so.

    Raises:
        ReportError: the same latent twice.
    """
    latents = [one.questions.latent for one in played]
    if len(set(latents)) < len(latents):
        raise ReportError(f"the game asks about each latent only once: {', '.join(map(str, latents))}")
    if not played:
        return cards.Markup(f"<p>{NOBODY}</p>", NOBODY)
    asked = "".join(_round(one, number, len(played)) for number, one in enumerate(played, start=1))
    answers = "".join(map(_answers, played))
    markup = f'<div class="lab-game">{asked}<div class="lab-game-answers">{answers}</div></div>'
    return cards.Markup(markup, f"a game about {len(played)} latents: {', '.join(map(str, latents))}")


def _round(one: Round, number: int, n: int) -> str:
    q = one.questions
    rows = "".join(f"<tr><td>{piece.value:.1f}</td><td>{cards.highlighted(piece)}</td></tr>" for piece in one.seen)
    lines = "".join(f"<li><p>{_marked(*piece)}</p></li>" for piece in one.asked)
    # Another build may ask about other contexts; a score belongs to these.
    mark = hashlib.sha256(repr((q.places, one.asked)).encode()).hexdigest()[:8]
    key = base64.b64encode(bytes(f + 2 * s for f, s in zip(q.fires, q.said, strict=True))).decode()
    return (
        f'<section class="lab-round" data-round="{q.latent}-{mark}" data-key="{key}" '
        f'aria-label="Latent {q.latent}, {number} of {n}">'
        f'<p class="lab-round-title"><strong>Latent {q.latent}</strong> ({number} of {n})</p>'
        f'<div class="lab-index" role="region" aria-label="Dashboard of latent {q.latent}" tabindex="0">'
        '<table class="lab-contexts"><thead><tr><th scope="col">value</th><th scope="col">where it fires</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
        "<p>New text. Does it fire at the framed token?</p>"
        f'<ol class="lab-asked">{lines}</ol>'
        f'<p class="lab-by-hand"><a href="#answers-{q.latent}">The answers</a> stand at the end.</p></section>'
    )


def _marked(tokens: Sequence[str], at: int) -> str:
    before, token, after = "".join(tokens[:at]), tokens[at], "".join(tokens[at + 1 :])
    space = (
        token[: len(token) - len(token.lstrip(" "))] if token.strip() else ""
    )  # else the frame may break over a line
    parts = [html.escape(cards.visible(part)) for part in (before + space, token[len(space) :], after)]
    return f'{parts[0].lstrip(" ")}<mark class="lab-here">{parts[1]}</mark>{parts[2]}'


def _answers(one: Round) -> str:
    q = one.questions
    lines = []
    for fires, share, near, said in zip(q.fires, q.share, q.near, q.said, strict=True):
        words = f"It fires, at {share:.0%} of its largest value" if fires else "It is off"
        words += ", a near miss" if near else ""
        lines.append(f"<li>{words}; the rule says that it {'fires' if said else 'is off'}.</li>")
    return (
        f'<details id="answers-{q.latent}"><summary>Answers for latent {q.latent}</summary>'
        f"<p>Its simple rule: {html.escape(one.rule.replace(chr(10), '↵'))}. "
        f"It is right on {sum(q.right)} of these {len(q.right)} contexts.</p>"
        f"<ol>{''.join(lines)}</ol></details>"
    )
