"""Cards of latents: for each one where it fires, how often, what it promotes, and what lies near it; and their HTML.

Top contexts alone flatter a latent: at its peak almost any latent looks like something. So a card also shows contexts
from the middle and from the low end of its activations.

The page is plain tables and closed blocks without scripts; with `labdashboards.js` it shows one latent at a time, each
under an address of its own, and the index can be sorted and filtered. A model wrote most of the text, so all of it is
escaped. Strength is shown by colour and by the underline, and said in words for each
context.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from labcode import latents
from labcode.corpus import masked, masked_tokens
from labcode.errors import MetricError, ReportError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.latents import Codes

BEFORE, AFTER = 12, 5  # tokens shown around the one that is looked at
TOP, BINS = 6, 12
LOWER = (0.75, 0.5, 0.25)  # quantiles of the activations that are not zero
EACH = 2  # contexts for each of them
HEAD = ("latent", "fires on", "peak", "strongest on", "simple rule", "F1")
SHOWN = 3  # latents for each token of a prompt


@dataclass(frozen=True)
class Snippet:
    """A piece of a context.

    Attributes:
        strength: each token's activation as a share of the latent's largest one.
        at: which token it is shown for. value: the activation there.
    """

    tokens: tuple[str, ...]
    strength: tuple[float, ...]
    at: int
    value: float


@dataclass(frozen=True)
class Card:
    """What a dashboard shows of one latent.

    Attributes:
        density: share of tokens at which it fires. peak: largest activation.
        counts: how many activations lie in each of `BINS` equal bins from 0 to the peak.
        words: tokens at its strongest activations, the most frequent first.
        top: contexts with the strongest activations. lower: a name and contexts for each quantile of `LOWER`.
        promoted, suppressed: tokens and logits per unit of activation.
        neighbours: latents with the nearest decoder directions, and cosines.
        rule, f1: from `labcode.readable`, where a rule was fitted.
    """

    latent: int
    density: float
    peak: float
    counts: tuple[int, ...]
    words: tuple[str, ...]
    top: tuple[Snippet, ...]
    lower: tuple[tuple[str, tuple[Snippet, ...]], ...]
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    neighbours: tuple[tuple[int, float], ...]
    rule: str = ""
    f1: float | None = None


def card(
    model: TransformerBridge,
    sae: Any,
    codes: Codes,
    latent: int,
    used: Bool[Tensor, " d_vocab"] | None = None,
    rule: str = "",
    f1: float | None = None,
) -> Card:
    """The dashboard of one latent.

    Args:
        used: tokens among which the promoted and suppressed ones are chosen; the others are rarely trained ones.

    Raises:
        SaeError: no such latent.
        MetricError: the latent does not fire on this text, so there is nothing to show.
    """
    acts = codes.of(latent)  # [context pos]
    fired = acts > 0
    if not fired.any():
        raise MetricError(
            f"latent {latent} does not fire on these {len(acts)} contexts: take more text, or leave it out"
        )
    peak = float(acts.max())

    def snippets(where: Sequence[tuple[int, int]]) -> tuple[Snippet, ...]:
        return tuple(snippet(model, codes, acts, peak, *place) for place in where)

    high, low = latents.promoted(model, sae, latent, used)
    strongest = best_of_each_context(acts, 20)
    words = Counter(model.tokenizer.decode([int(codes.tokens[place])]) for place in strongest)
    return Card(
        latent=latent,
        density=float(fired[:, 1:].float().mean()),
        peak=peak,
        counts=tuple(torch.histc(acts[fired], bins=BINS, min=0, max=peak).int().tolist()),
        words=tuple(masked(word) for word, _ in words.most_common(4)),
        top=snippets(strongest[:TOP]),
        lower=tuple((f"{q:.0%} quantile", snippets(around(acts, q, EACH))) for q in LOWER),
        promoted=tuple((masked(model.tokenizer.decode([i])), value) for i, value in high),
        suppressed=tuple((masked(model.tokenizer.decode([i])), value) for i, value in low),
        neighbours=tuple(latents.neighbours(sae, latent, 5)),
        rule=rule,
        f1=f1,
    )


def best_of_each_context(acts: Float[Tensor, "context pos"], n: int) -> list[tuple[int, int]]:
    """The strongest token of each of the `n` contexts where a latent is strongest: (context, position).

    One place for each context, since a latent that fires through a whole text would fill the list with one text.
    """
    value, position = acts.max(dim=-1)
    order = value.argsort(descending=True, stable=True)[:n].tolist()
    return [(i, int(position[i])) for i in order if value[i] > 0]


def around(acts: Float[Tensor, "context pos"], quantile: float, n: int) -> list[tuple[int, int]]:
    """Up to `n` places, in different contexts, whose activation is nearest to a quantile of those that are not zero."""
    places = (acts > 0).nonzero()
    values = acts[acts > 0]
    order = (values - values.quantile(quantile)).abs().argsort(stable=True)
    found: dict[int, int] = {}
    for context, position in places[order].tolist():
        found.setdefault(context, position)
        if len(found) == n:
            break
    return list(found.items())


def snippet(
    model: TransformerBridge,
    codes: Codes,
    acts: Float[Tensor, "context pos"],
    peak: float,
    context: int,
    position: int,
    before: int = BEFORE,
    after: int = AFTER,
) -> Snippet:
    """The tokens around one place, each with its activation as a share of `peak`.

    Args:
        acts: of one latent on the text of `codes`. before, after: tokens shown around the place.
    """
    window = slice(max(0, position - before), position + after + 1)
    ids = codes.tokens[context, window].tolist()
    return Snippet(
        tokens=masked_tokens([model.tokenizer.decode([i]) for i in ids]),
        strength=tuple(round(value / peak, 3) for value in acts[context, window].tolist()),
        at=position - window.start,
        value=float(acts[context, position]),
    )


@dataclass(frozen=True)
class Markup:
    """HTML that a notebook shows, and words for where there is none."""

    html: str
    words: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.words


def browser(cards: Sequence[Card]) -> Markup:
    """The index of all cards and the cards themselves, the first one open.

    Raises:
        ReportError: no cards, or two of the same latent.
    """
    known = {card.latent for card in cards}
    if not cards or len(known) < len(cards):
        raise ReportError("the dashboards need at least one card, and each latent only once")
    head = "".join(f'<th scope="col">{name}</th>' for name in HEAD)
    rows = "".join(_row(card) for card in cards)
    filter_box = (
        '<p class="lab-filter" hidden><label>Show only rows with '
        '<input type="search" autocomplete="off" spellcheck="false"></label> '
        '<span role="status" aria-live="polite"></span></p>'
    )
    around = zip([None, *cards], cards, [*cards[1:], None], strict=False)
    blocks = "".join(_block(card, known, before, after) for before, card, after in around)
    page = (
        f'<div class="lab-latents">{filter_box}'
        '<div class="lab-index" role="region" aria-label="Index of latents" tabindex="0">'
        f'<table class="lab-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        '<p class="lab-missing" role="status" hidden></p><nav class="lab-steps" aria-label="Latents" hidden></nav>'
        f"{blocks}</div>"
    )
    return Markup(page, f"dashboards of {len(cards)} latents")


def contexts(
    model: TransformerBridge,
    codes: Codes,
    latent: int,
    places: Sequence[tuple[int, int]],
    before: int = BEFORE,
    after: int = AFTER,
) -> Markup:
    """Contexts of one latent as a table, each with the value at the token that it is shown for, and no more.

    Args:
        places: context and position. before, after: tokens shown around each.
    """
    acts = codes.of(latent)
    peak = max(float(acts.max()), 1e-9)
    some = [snippet(model, codes, acts, peak, *place, before, after) for place in places]
    head = '<thead><tr><th scope="col">value</th><th scope="col">context</th></tr></thead>'
    label = f"Contexts of latent {latent}"
    page = (
        f'<div class="lab-prompt-latents"><div class="lab-index" role="group" aria-label="{label}" tabindex="0">'
        f'<table class="lab-contexts">{head}<tbody>{"".join(map(_line, some))}</tbody></table></div></div>'
    )
    return Markup(page, "\n".join(f"{one.value:5.1f}  {''.join(map(visible, one.tokens))}" for one in some))


def prompt(
    tokens: Sequence[str],
    names: dict[int, str],
    codes: Float[Tensor, "pos d_sae"],
    cards: Sequence[Card],
) -> Markup:
    """The strongest latents at each token of a prompt; one that has a card is a link to it.

    Args:
        names: the named positions, such as S2, by index.
    """
    known = {card.latent: card for card in cards}
    rows, lines = [], []
    for position, token in enumerate(tokens):
        top = codes[position].topk(SHOWN)
        cells, said = [], []
        for value, latent in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            if value <= 0:
                continue
            words = _words(known[latent].words[:2]) if latent in known else ""
            cells.append(f'<td><span class="lab-value">{value:.1f}</span> {_link(latent, known)} {words}</td>')
            said.append(f"{latent} ({value:.1f})")
        cells += ["<td>none</td>" if not cells and not i else "<td></td>" for i in range(SHOWN - len(cells))]
        name = f" <strong>{html.escape(names[position])}</strong>" if position in names else ""
        rows.append(f'<tr><th scope="row">{_token(token)}{name}</th>{"".join(cells)}</tr>')
        lines.append(f"{token!r}: {', '.join(said) or 'none'}")
    head = '<th scope="col">token</th>' + "".join(f'<th scope="col">{n}</th>' for n in ("first", "second", "third"))
    table = f'<table class="lab-table"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    region = '<div class="lab-index" role="region" aria-label="Latents at each token of the prompt" tabindex="0">'
    return Markup(f'<div class="lab-prompt-latents">{region}{table}</div></div>', "\n".join(lines))


def _row(card: Card) -> str:
    score = "" if card.f1 is None else f"{card.f1:.2f}"
    cells = (
        (f'<a href="#latent-{card.latent}">{card.latent}</a>', card.latent),
        (f"{card.density:.2%}", card.density),
        (f"{card.peak:.1f}", card.peak),
        (_words(card.words), None),
        (html.escape(card.rule.replace("\n", "↵")), None),
        (score, -1 if card.f1 is None else card.f1),
    )
    data = (f"<td>{shown}</td>" if v is None else f'<td data-v="{v:.6g}">{shown}</td>' for shown, v in cells)
    return f'<tr data-latent="{card.latent}">{"".join(data)}</tr>'


def _block(card: Card, known: set[int], before: Card | None, after: Card | None) -> str:
    groups = [("Strongest contexts", card.top), *((f"Around the {name}", some) for name, some in card.lower)]
    contexts = "".join(
        f'<tbody><tr><th colspan="2" scope="rowgroup">{html.escape(name)}</th></tr>'
        + "".join(map(_line, some))
        + "</tbody>"
        for name, some in groups
    )
    steps = " · ".join(
        f'<a href="#latent-{to.latent}">{name}: {to.latent}</a>'
        for name, to in (("previous", before), ("next", after))
        if to
    )
    near = ", ".join(f"{_link(latent, known)} ({cosine:.2f})" for latent, cosine in card.neighbours)
    facts = (
        ("Simple rule", f"{html.escape(card.rule)} (F1 {card.f1:.2f})" if card.f1 is not None else ""),
        ("Promotes", _weighted(card.promoted)),
        ("Suppresses", _weighted(card.suppressed)),
        ("Nearest latents (cosine)", near),
    )
    listed = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts if text)
    return (
        f'<details class="lab-latent" id="latent-{card.latent}"{"" if before else " open"}>'
        f"<summary>Latent {card.latent}: {_words(card.words)}</summary>"
        f'<div class="lab-latent-facts"><figure>{_histogram(card)}<figcaption>Tokens (up, on a logarithmic scale) by '
        f"activation (across), to a peak of {card.peak:.1f}. It fires on {card.density:.2%} of tokens.</figcaption>"
        "</figure>"
        f"<dl>{listed}</dl></div>"
        f'<div class="lab-index" role="group" aria-label="Contexts of latent {card.latent}" tabindex="0">'
        '<table class="lab-contexts"><thead><tr><th scope="col">value</th><th scope="col">context</th></tr></thead>'
        f'{contexts}</table></div><p class="lab-by-hand">{steps}</p></details>'
    )


def _line(one: Snippet) -> str:
    return f"<tr><td>{one.value:.1f}</td><td>{highlighted(one)}</td></tr>"


def highlighted(one: Snippet) -> str:
    """The text of a snippet as HTML: tokens at which the latent fires are marked, the one it is shown for is bold."""
    out = []
    for position, (token, strength) in enumerate(zip(one.tokens, one.strength, strict=True)):
        text = html.escape(visible(token))
        if strength > 0:
            level = min(4, 1 + int(4 * strength))
            text = f"<strong>{text}</strong>" if position == one.at else text
            text = f'<mark class="lab-a{level}" title="{strength:.0%} of the largest value">{text}</mark>'
        out.append(text)
    return "".join(out)


def _histogram(card: Card) -> str:
    """Bars, and two axes with the values of their ticks."""
    left, top, width, height = 38, 8, 190, 84
    floor, most = top + height, max(card.counts)

    def up(count: float) -> float:
        return height * math.log1p(count) / math.log1p(most)

    step = width / len(card.counts)
    bars = "".join(
        f"M{left + i * step:.0f} {floor}v-{up(count):.0f}h{step - 2:.0f}V{floor}z"
        for i, count in enumerate(card.counts)
    )
    across = [(left + width * value / card.peak, f"{value:g}") for value in _ticks(card.peak)]
    tens = [10**power for power in range(9) if 10**power <= most]
    if most < 1000 and up(most) - up(tens[-1]) > 14:  # room for the largest count
        tens.append(most)
    counted = [(floor - up(count), f"{count:g}" if count < 1000 else f"{count // 1000}k") for count in tens]
    lines = "".join(f"M{x:.0f} {floor}v4" for x, _ in across) + "".join(f"M{left} {y:.0f}h-4" for y, _ in counted)
    texts = [f'<text x="{x:.0f}" y="{floor + 16}" text-anchor="middle">{word}</text>' for x, word in across]
    texts += [f'<text x="{left - 7}" y="{y + 4:.0f}" text-anchor="end">{word}</text>' for y, word in counted]
    label = f"Histogram of activations from 0 to {card.peak:.1f}; counts by bin: " + ", ".join(map(str, card.counts))
    return (
        f'<svg viewBox="0 0 {left + width + 14} {floor + 22}" role="img" aria-label="{label}">'
        f'<path d="{bars}" fill="currentColor"/><g class="lab-latent-axis" font-size="12">'
        f'<path d="M{left} {top}V{floor}h{width}{lines}" fill="none" stroke="currentColor"/>'
        f"{''.join(texts)}</g></svg>"
    )


def _ticks(peak: float) -> list[float]:
    """Round values from 0 to the peak, three to five of them."""
    power = 10.0 ** math.floor(math.log10(peak / 2))
    # Just below a power of ten the logarithm rounds up to it, and no size is small enough.
    step = max((size * power for size in (1, 2, 5) if size * power <= peak / 2), default=power)
    return [round(step * i, 10) for i in range(int(peak / step + 1e-9) + 1)]


def _link(latent: int, known: object) -> str:
    return f'<a href="#latent-{latent}">{latent}</a>' if latent in known else str(latent)  # type: ignore[operator]


def _weighted(tokens: Sequence[tuple[str, float]]) -> str:
    return " ".join(f'<span title="{value:+.2f}">{_token(token)}</span>' for token, value in tokens)


def _words(words: Sequence[str]) -> str:
    return " ".join(_token(word) for word in words)


def _token(token: str) -> str:
    return f'<span class="lab-word">{html.escape(visible(token))}</span>'


def visible(token: str) -> str:
    """The token with signs for what cannot be seen."""
    # A table has no room for real line breaks, and a token that is only one would be invisible.
    return token.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")
