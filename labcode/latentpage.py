"""Cards of latents as HTML: an index that sorts and filters, a card for each latent, and a prompt with its latents.

Everything here is a plain table or a closed block without scripts; `labdashboards.js` adds the sorting and the filter.
A model wrote most of the text, so all of it is escaped. Strength is shown by colour and by the underline, and said in
words for each context.

Used in chapter 15.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from labcode.errors import ReportError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from labcode.dashboards import Card, Snippet

HEAD = ("latent", "fires on", "peak", "strongest on", "simple rule", "F1")
SHOWN = 3  # latents for each token of a prompt


@dataclass(frozen=True)
class Page:
    """HTML that a notebook shows, and words for where there is none."""

    html: str
    words: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.words


def browser(cards: Sequence[Card]) -> Page:
    """The index of all cards and the cards themselves.

    Raises:
        ReportError: no cards, or two of the same latent.

    Used in chapter 15.
    """
    known = {card.latent for card in cards}
    if not cards or len(known) < len(cards):
        raise ReportError("the dashboards need at least one card, and each latent only once", see="dashboard-cards")
    head = "".join(f'<th scope="col">{name}</th>' for name in HEAD)
    rows = "".join(_row(card) for card in cards)
    filter_box = (
        '<p class="lab-filter" hidden><label>Show only rows with '
        '<input type="search" autocomplete="off" spellcheck="false"></label> '
        '<span role="status" aria-live="polite"></span></p>'
    )
    page = (
        f'<div class="lab-latents">{filter_box}'
        '<div class="lab-index" role="region" aria-label="Index of latents" tabindex="0">'
        f'<table class="lab-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f"{''.join(_card(card, known) for card in cards)}</div>"
    )
    return Page(page, f"dashboards of {len(cards)} latents")


def prompt(
    tokens: Sequence[str],
    names: dict[int, str],
    codes: Float[Tensor, "pos d_sae"],
    cards: Sequence[Card],
) -> Page:
    """The strongest latents at each token of a prompt; one that has a card is a link to it.

    Args:
        names: the named positions, such as S2, by index.

    Used in chapter 15.
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
    return Page(f'<div class="lab-prompt-latents">{region}{table}</div></div>', "\n".join(lines))


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


def _card(card: Card, known: set[int]) -> str:
    groups = [("Strongest contexts", card.top), *((f"Around the {name}", some) for name, some in card.lower)]
    contexts = "".join(
        f'<tbody><tr><th colspan="2" scope="rowgroup">{html.escape(name)}</th></tr>'
        + "".join(f"<tr><td>{one.value:.1f}</td><td>{_context(one)}</td></tr>" for one in some)
        + "</tbody>"
        for name, some in groups
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
        f'<details class="lab-latent" id="latent-{card.latent}"><summary>Latent {card.latent}: '
        f"{_words(card.words)}</summary>"
        f'<div class="lab-latent-facts"><figure>{_histogram(card)}<figcaption>Activations from 0 to {card.peak:.1f}, '
        f"counts on a logarithmic scale. It fires on {card.density:.2%} of tokens.</figcaption></figure>"
        f"<dl>{listed}</dl></div>"
        f'<div class="lab-index" role="region" aria-label="Contexts of latent {card.latent}" tabindex="0">'
        '<table class="lab-contexts"><thead><tr><th scope="col">value</th><th scope="col">context</th></tr></thead>'
        f"{contexts}</table></div></details>"
    )


def _context(snippet: Snippet) -> str:
    out = []
    for position, (token, strength) in enumerate(zip(snippet.tokens, snippet.strength, strict=True)):
        text = html.escape(_visible(token))
        if strength > 0:
            level = min(4, 1 + int(4 * strength))
            text = f"<strong>{text}</strong>" if position == snippet.at else text
            text = f'<mark class="lab-a{level}" title="{strength:.0%} of the largest value">{text}</mark>'
        out.append(text)
    return "".join(out)


def _histogram(card: Card) -> str:
    tallest = math.log1p(max(card.counts))
    width, height = 168, 56
    step = width / len(card.counts)
    bars = "".join(
        f"M{i * step:.0f} {height}v-{height * math.log1p(count) / tallest:.0f}h{step - 2:.0f}V{height}z"
        for i, count in enumerate(card.counts)
    )
    label = f"Histogram of activations from 0 to {card.peak:.1f}; counts by bin: " + ", ".join(map(str, card.counts))
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f'<path d="{bars}" fill="currentColor"/></svg>'
    )


def _link(latent: int, known: object) -> str:
    return f'<a href="#latent-{latent}">{latent}</a>' if latent in known else str(latent)  # type: ignore[operator]


def _weighted(tokens: Sequence[tuple[str, float]]) -> str:
    return " ".join(f'<span title="{value:+.2f}">{_token(token)}</span>' for token, value in tokens)


def _words(words: Sequence[str]) -> str:
    return " ".join(_token(word) for word in words)


def _token(token: str) -> str:
    return f'<span class="lab-word">{html.escape(_visible(token))}</span>'


def _visible(token: str) -> str:
    # A table has no room for real line breaks, and a token that is only one would be invisible.
    return token.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")
