"""Attention seen: where heads look from one word of a sentence, and whole patterns, as SVG that needs no script.

`arcs` shows for each head one sentence, arcs from the place that looks to the words that it looks at, and what the head
writes there. `grid` shows the patterns of one sentence as small multiples. Numbers come from one run of the model; what
is written is `labcode.families.by_name` of what `labcode.residual.decompose` finds. Tokens are the model's own, so all
are escaped. Colours stand in the markup: a notebook, which has none of the book's style sheets, shows the same drawing.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from labcode.errors import HeadError
from labcode.families import by_name
from labcode.heads import Head, check_heads
from labcode.plots import AGAINST, POSITION_COLOURS, TOWARDS
from labcode.prompts import POSITIONS, quoted
from labcode.residual import Decomposition, decompose

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.prompts import Population

START = "▸"  # stands for BOS, whose own text is markup
NAMED = 3  # shares that are written out, and words raised and lowered
SIDE_BY_SIDE = 3  # more heads than these get a chooser
NOTHING = 1e-6  # what a head that writes nothing may write, by rounding
DRAWN = 0.005  # fainter arcs are left out; the number stays on the word
SMALL = 32  # tokens up to which every cell of a pattern is drawn
SHADE = 0.6  # exponent of a cell's opacity: a tenth of the attention can still be seen
GRID = "#0072B2"
CHECKED = ' checked=""'


@dataclass(frozen=True)
class Token:
    """A token of the sentence: its text as shown, its place counted from 0, and its name, or "" if it has none."""

    text: str
    at: int
    name: str

    @property
    def words(self) -> str:
        """What a sentence calls it: “Mary” (IO), “and” (7), the start token."""
        if self.at == 0 and not self.name:
            return "the start token"
        return f"“{self.text}” ({self.name or self.at})"

    @property
    def colour(self) -> str:
        """Its position's colour through the book, or the page's ink."""
        return POSITION_COLOURS.get(self.name, "currentColor")


@dataclass(frozen=True)
class Look:
    """What one head does at one place of one sentence.

    Attributes:
        head, place: who looks, and the name of the position from which.
        share: attention to each token up to the place, or its share of what is moved; sums to 1.
        raised: direct effect on the logits of IO and of S, relative to the mean over all names.
        more, less: the words whose logits it raises most and lowers most, strongest first. Empty but at END.
    """

    head: Head
    place: str
    share: Float[Tensor, " pos"]
    raised: tuple[float, float]
    more: tuple[str, ...]
    less: tuple[str, ...]

    @property
    def title(self) -> str:
        """Layer and head as the book writes them."""
        return f"{self.head[0]}.{self.head[1]}"


def arcs(
    model: TransformerBridge,
    pop: Population,
    heads: Sequence[Head],
    at: str = "END",
    index: int = 0,
    others: Mapping[Head, str] | None = None,
    weighted: bool = False,
) -> str:
    """For each head the sentence with arcs from one place to the words that it looks at, and what it writes there.

    Args:
        heads: (layer, head); more than three get a chooser. None of them gives a line that says so.
        at: the named position that looks.
        index: which prompt.
        others: heads that look from another position than `at`, such as {(16, 0): "S1+1"}.
        weighted: show attention times the norm of what is moved (the value behind W_O), as a share of its sum.

    Returns:
        HTML, for `display(HTML(...))`.

    Raises:
        HeadError: a head, a position or a prompt that does not exist; a pattern with NaN.
    """
    if not heads:
        return _nothing()
    found = looks(model, pop, heads, at, index, others, weighted)
    tokens = sentence(pop, index)
    largest = max(abs(value) for look in found for value in look.raised) or 1.0
    prompt = pop.prompts[index]
    figures = [_figure(look, tokens, (prompt.io, prompt.s), largest) for look in found]
    return _together([look.title for look in found], figures, _note(found, weighted))


def grid(model: TransformerBridge, pop: Population, heads: Sequence[Head], index: int = 0) -> str:
    """The whole pattern of each head on one sentence: the word that looks down, the word looked at across.

    Args:
        heads: (layer, head); more than three get a chooser. None of them gives a line that says so.
        index: which prompt.

    Returns:
        HTML, for `display(HTML(...))`.

    Raises:
        HeadError: a head or a prompt that does not exist; a pattern with NaN.
    """
    if not heads:
        return _nothing()
    one, chosen = _one(pop, index), check_heads(model, heads)
    seen, _, _ = _run(model, one, chosen)
    tokens = sentence(pop, index)
    figures = [_pattern(head, seen[head], tokens) for head in chosen]
    return _together([f"{layer}.{head}" for layer, head in chosen], figures, _scale(len(tokens)), "lab-patterns")


def sentence(pop: Population, index: int = 0) -> list[Token]:
    """The tokens of one prompt as they are shown."""
    names = {int(pop.positions[name][index]): name for name in reversed(POSITIONS) if name in pop.positions}
    return [
        Token(START if at == 0 else _shown(text), at, names.get(at, ""))
        for at, text in enumerate(pop.str_tokens[index])
    ]


def looks(
    model: TransformerBridge,
    pop: Population,
    heads: Sequence[Head],
    at: str = "END",
    index: int = 0,
    others: Mapping[Head, str] | None = None,
    weighted: bool = False,
) -> list[Look]:
    """The numbers behind `arcs`, from one run.

    Raises:
        HeadError: a head, a position or a prompt that does not exist; a pattern with NaN.
    """
    others = others or {}
    chosen = check_heads(model, heads)
    check_heads(model, others)
    for name in (at, *others.values()):
        if name not in pop.positions:
            raise HeadError(f"unknown position {name!r}: choose among {', '.join(pop.positions)}")
    places = list(dict.fromkeys([at, *others.values()]))
    one = _one(pop, index, places)
    patterns, moved, parts = _run(model, one, chosen)
    raised = by_name(model, parts, one, parts.scale)
    found = []
    for head in chosen:
        place = others.get(head, at)
        row = places.index(place)
        query = int(one.end[row])
        share = patterns[head][query, : query + 1]
        if weighted:
            share = share * moved[head][: query + 1]
            share = share / share.sum()
        more, less = _words(model, parts, head, row) if place == "END" else ((), ())
        names = (float(raised[0][*head, row]), float(raised[1][*head, row]))
        found.append(Look(head, place, share, names, more, less))
    return found


def _one(pop: Population, index: int, places: Sequence[str] = ("END",)) -> Population:
    """The prompt once for each place, which stands where END would: there the stream is taken apart."""
    if index not in range(len(pop)):
        raise HeadError(f"no prompt {index}: this population has {len(pop)}, counted from 0")
    one = pop.subset([index] * len(places))
    ends = torch.stack([one.positions[place][0] for place in places])
    return replace(one, positions={**one.positions, "END": ends})


def _run(
    model: TransformerBridge, one: Population, heads: Sequence[Head]
) -> tuple[dict[Head, Float[Tensor, "pos pos"]], dict[Head, Float[Tensor, " pos"]], Decomposition]:
    """Patterns, the norm of what each token would move, and the stream taken apart, from one run."""
    patterns: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}

    def keep(value: Tensor, hook: Any, layer: int, kept: dict[int, Tensor]) -> None:
        if torch.isnan(value).any():
            raise HeadError(f"NaN in the attention of layer {layer}: check the model's weights", see="nan-in-the-run")
        kept[layer] = value[0].detach().float().cpu()

    hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = [
        (f"blocks.{layer}.attn.{name}", partial(keep, layer=layer, kept=kept))
        for layer in sorted({layer for layer, _ in heads})
        for name, kept in (("hook_pattern", patterns), ("hook_v", values))
    ]
    with model.hooks(fwd_hooks=hooks):
        parts = decompose(model, one, batch_size=len(one))
    group = model.cfg.n_heads // (model.cfg.n_key_value_heads or model.cfg.n_heads)
    moved = {}
    for layer, head in heads:
        out = model.blocks[layer].attn.W_O[head].detach().float().cpu()  # [d_head d_model]
        moved[layer, head] = (values[layer][:, head // group] @ out).norm(dim=-1)
    return {(layer, head): patterns[layer][head] for layer, head in heads}, moved, parts


def _words(
    model: TransformerBridge, parts: Decomposition, head: Head, row: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    term = parts.terms[parts.labels.index(f"{head[0]}.{head[1]}"), row]
    with torch.no_grad():
        push = (term.to(model.W_U.device) @ model.W_U).cpu()  # the scale divides all alike
    if push.abs().max() < NOTHING:  # all words alike: the first of them would be named
        return (), ()
    most, least = push.topk(NAMED).indices, (-push).topk(NAMED).indices
    return _texts(model, most), _texts(model, least)


def _texts(model: TransformerBridge, ids: Int[Tensor, " word"]) -> tuple[str, ...]:
    return tuple(_seen(quoted(model, i)) for i in ids)


def _shown(text: str, longest: int = 16) -> str:
    """A token as a figure can show it: no space around it, nothing invisible, not too long."""
    word = _seen(text.strip(" "))
    return (word if len(word) <= longest else word[: longest - 1] + "…") or "␣"


def _seen(text: str) -> str:
    """No letter that moves or hides others (a page may not even hold some of them), and no piece of one.

    A token may be some of the bytes of a letter. A tokenizer decodes these to U+FFFD, which looks like a fault.
    """
    text = text.replace("\n", "\\n").replace("\t", "\\t").replace("\ufffd", "⟨byte⟩")
    return "".join(letter if letter.isprintable() else f"⟨{ord(letter):02X}⟩" for letter in text)


# ---------------------------------------------------------------------------------------------------------------------
# Arcs
# ---------------------------------------------------------------------------------------------------------------------


def _figure(look: Look, tokens: Sequence[Token], names: tuple[str, str], largest: float) -> str:
    place = look.place
    says = f"from {place}, {_shares(look, tokens, NAMED)}"
    full = f"Head {look.title} looks from {tokens[len(look.share) - 1].words}: {_shares(look, tokens, len(tokens))}"
    right = int(look.share.argmax()) > len(tokens) / 2  # what the main arc lands on has to be in sight
    return (
        f'<figure class="lab-attention"><figcaption><b class="lab-head">{look.title}</b> {html.escape(says)}'
        f"</figcaption>{_scroll(_sentence(look, tokens, full), f'{look.title} from {place}', right)}"
        f"{_writes(look, names, largest)}</figure>"
    )


def _sentence(look: Look, tokens: Sequence[Token], words: str) -> str:
    """The drawing: tokens in a line, their names and the largest shares below, arcs above."""
    widths = [max(36.0, _width(token.text) + 13) for token in tokens]
    centres = [sum(widths[:i]) + widths[i] / 2 for i in range(len(tokens))]
    shares = look.share.tolist()
    query = len(shares) - 1
    drawn = [i for i, share in enumerate(shares) if share >= DRAWN]
    rise = max([_rise(centres[query] - centres[i]) for i in drawn if i < query] or [24.0])
    base = round(0.75 * rise) + 12  # the line on which arcs land
    top = set(_strongest(look.share, NAMED))
    parts = []
    for i in sorted(range(len(tokens)), key=lambda i: shares[i] if i <= query else 0.0):
        token, x = tokens[i], round(centres[i])
        inside = ""
        if i <= query:
            inside = f"<title>{html.escape(token.words)}: {_percent(shares[i], 1)}</title>"
            if i in drawn:
                inside += _arc(shares[i], round(centres[query]), x, base, token.colour)
        inside += _tile(token, x, widths[i], base, asks=i == query)
        if i in top:
            inside += f'<text x="{x}" y="{base + 51}" font-size="12" font-weight="650">{_percent(shares[i])}</text>'
        dim = "" if i <= query else ' opacity=".45"'
        parts.append(f"<g{dim}>{inside}</g>")
    width, height = round(sum(widths)), base + 58
    return (
        f'<svg role="img" aria-label="{html.escape(words, quote=True)}" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" fill="currentColor" font-family="inherit" font-size="14" text-anchor="middle">'
        f"{''.join(parts)}</svg>"
    )


def _arc(share: float, start: int, end: int, base: int, colour: str) -> str:
    faint, strong = (0.25, 0.45) if colour == "currentColor" else (0.45, 0.85)
    if start == end:
        path = f"M{start - 7} {base}c-9-24 23-24 14 0"
    else:
        top = base - round(_rise(start - end))
        path = f"M{start} {base}C{start} {top} {end} {top} {end} {base}"
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{0.8 + 8 * share:.1f}" '
        f'opacity="{faint + (strong - faint) * share:.2f}"/>'
    )


def _tile(token: Token, x: int, width: float, base: int, asks: bool) -> str:
    """The token, on its position's colour if it has one, framed if it is the one that looks; its name below."""
    left, wide, drawn = round(x - width / 2) + 2, round(width) - 4, ""
    if token.name in POSITION_COLOURS:
        drawn = (
            f'<rect x="{left}" y="{base + 3}" width="{wide}" height="22" rx="3" fill="{token.colour}" opacity=".22"/>'
        )
        drawn += f'<path d="M{left} {base + 25}h{wide}" stroke="{token.colour}" stroke-width="2"/>'
    if asks:
        drawn += (
            f'<rect x="{left}" y="{base + 3}" width="{wide}" height="22" rx="3" fill="none" stroke="currentColor"/>'
        )
    drawn += f'<text x="{x}" y="{base + 19}">{html.escape(token.text)}</text>'
    if token.name:
        drawn += f'<text x="{x}" y="{base + 37}" font-size="10" opacity=".75">{token.name}</text>'
    return drawn


def _rise(distance: float) -> float:
    """How high the control points of an arc lie: less than in proportion, so that long arcs stay on the page."""
    return 14 + 4.4 * abs(distance) ** 0.5


def _writes(look: Look, names: tuple[str, str], largest: float) -> str:
    """What the head writes: two bars for the names and, at END, the words that it raises and lowers most."""
    rows = []
    for name, place, value, sign in zip(names, ("IO", "S"), look.raised, (1, -1), strict=True):
        colour = TOWARDS if sign * value >= 0 else AGAINST
        wide = round(60 * abs(value) / largest, 1)
        left = 60 if value >= 0 else round(60 - wide, 1)
        rows.append(
            f"<li><span>{'raises' if value >= 0 else 'lowers'} {html.escape(name)} ({place})</span> "
            f'<svg aria-hidden="true" viewBox="0 0 120 12" width="120" height="12"><rect x="{left}" y="2" '
            f'width="{wide}" height="8" fill="{colour}"/><path d="M60 0v12" stroke="currentColor" opacity=".5"/></svg> '
            f"<b>{_signed(value)}</b></li>"
        )
    lists = ""
    if look.more:
        lists = "".join(
            f"<p><i>{verb} most</i> {' '.join(f'<span>{html.escape(word)}</span>' for word in words)}</p>"
            for verb, words in (("raises", look.more), ("lowers", look.less))
        )
        lists = f"<div>{lists}</div>"
    lead = f"<p>what it writes at {html.escape(look.place)}</p>"
    return f'<div class="lab-writes">{lead}<ul>{"".join(rows)}</ul>{lists}</div>'


def _note(found: Sequence[Look], weighted: bool) -> str:
    """The caption that all heads share."""
    what = "attention" if not weighted else "attention times the norm of what is moved, as a share of its sum"
    elsewhere = list(dict.fromkeys(look.place for look in found if look.place != "END"))
    text = (
        f"Arcs: {what}, from the framed word to each word that it looks at. A word under the pointer gives its number. "
        "Bars: what the head writes there adds to a name’s logit, relative to the mean name, in nats at the final "
        "norm’s scale of this run. Blue works for the right answer, orange against it."
    )
    if elsewhere:
        text += (
            f" At {' and '.join(elsewhere)} nobody asks for the answer: what is written there gets to it only through "
            "later heads, and the bars show what it would say to the logits itself."
        )
    return f'<p class="lab-attention-note">{html.escape(text)}</p>'


# ---------------------------------------------------------------------------------------------------------------------
# Patterns
# ---------------------------------------------------------------------------------------------------------------------


def _pattern(head: Head, pattern: Float[Tensor, "pos pos"], tokens: Sequence[Token]) -> str:
    """One pattern as a triangle of cells, each with its number."""
    n, title = len(tokens), f"{head[0]}.{head[1]}"
    cell = 17 if n <= SMALL else 13
    gutter = round(max(_width(token.text) for token in tokens) * 0.8) + 12
    rows = pattern.tolist()
    cells = "".join(
        f'<path d="M{gutter + cell * key} {cell * query}h{cell - 1}v{cell - 1}h-{cell - 1}z" '
        f'opacity="{rows[query][key] ** SHADE:.2f}"><title>{html.escape(tokens[query].words)} looks at '
        f"{html.escape(tokens[key].words)}: {rows[query][key]:.2f}</title></path>"
        for query in range(n)
        for key in range(query + 1)
        if n <= SMALL or rows[query][key] >= 2 * DRAWN
    )
    edge, end = gutter + cell * n, cell * n
    labels = "".join(
        f'<text x="{gutter - 7}" y="{cell * i + cell - 5}">{html.escape(token.text)}</text>'
        f'<text transform="translate({gutter + cell * i + cell - 5} {end + 12}){"rotate(-50)" if i else ""}">'
        f"{html.escape(token.text)}</text>"
        for i, token in enumerate(tokens)
    )
    marks = "".join(
        f'<path d="M{gutter - 3} {cell * token.at}v{cell - 1}M{gutter + cell * token.at} {end + 2}h{cell - 1}" '
        f'stroke="{token.colour}" stroke-width="3"/>'
        for token in tokens
        if token.name in POSITION_COLOURS
    )
    outline = f"M{gutter - 0.5} -.5V{end}H{edge}" + "".join(f"v-{cell}h-{cell}" for _ in range(n))
    height = end + round(gutter * 0.77) + 8
    named = [token for token in tokens if token.name]
    words = "; ".join(f"from {token.words} {_most(pattern[token.at], tokens, token.at)}" for token in named)
    svg = (
        f'<svg role="img" aria-label="{html.escape(f"Pattern of head {title}: {words}", quote=True)}" '
        f'viewBox="0 -1 {edge + 1} {height}" width="{edge + 1}" height="{height}" fill="currentColor" '
        f'font-family="inherit" font-size="11" text-anchor="end"><path d="{outline}" fill="none" '
        f'stroke="currentColor" opacity=".25"/><g class="lab-cells" fill="{GRID}">{cells}</g>{marks}{labels}</svg>'
    )
    return (
        f'<figure class="lab-attention"><figcaption><b class="lab-head">{title}</b></figcaption>'
        f"{_scroll(svg, f'pattern of {title}')}</figure>"
    )


def _most(row: Float[Tensor, " pos"], tokens: Sequence[Token], query: int) -> str:
    key = int(row[: query + 1].argmax())
    return f"{_percent(float(row[key]))} to {tokens[key].words}"


def _scale(n: int) -> str:
    """The one legend, and how to read the axes."""
    steps = (0.0, 0.1, 0.25, 0.5, 1.0)
    boxes = "".join(
        f'<rect x="{44 * i + 1}" y="1" width="42" height="12" fill="{GRID}" fill-opacity="{step**SHADE:.2f}" '
        f'stroke="currentColor" stroke-opacity=".25"/><text x="{44 * i + 22}" y="26">{step:g}</text>'
        for i, step in enumerate(steps)
    )
    few = "" if n <= SMALL else " Cells below one per cent are left out."
    return (
        '<p class="lab-attention-note"><svg class="lab-cells" role="img" aria-label="Shades from 0 to 1" '
        'viewBox="0 0 222 30" width="222" height="30" fill="currentColor" font-family="inherit" font-size="11" '
        f'text-anchor="middle">{boxes}</svg> Attention from the word at the left to the word below. '
        f"A cell under the pointer gives its number.{few}</p>"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Both
# ---------------------------------------------------------------------------------------------------------------------


def _together(titles: Sequence[str], figures: Sequence[str], note: str, kind: str = "lab-arcs") -> str:
    """Figures one below another; more than three behind radio buttons, whose work is the style sheet's.

    A form keeps its radio buttons to itself, so no name has to be unique on the page; one with the method "dialog"
    outside a dialog is never sent. Where there is no style sheet the buttons stay hidden and every figure is seen.
    """
    if len(figures) <= SIDE_BY_SIDE:
        return f'<div class="lab-attentions {kind}"><div class="lab-heads">{"".join(figures)}</div>{note}</div>'
    choices = "".join(
        f'<label hidden=""><input type="radio" name="head"{"" if i else CHECKED}/> {title}</label>{figure}'
        for i, (title, figure) in enumerate(zip(titles, figures, strict=True))
    )
    every = '<label hidden="" class="lab-every"><input type="radio" name="head"/> all</label>'
    return (
        f'<form class="lab-attentions lab-choice {kind}" method="dialog" autocomplete="off">'
        f'<div class="lab-heads" role="radiogroup" aria-label="Head to show">{choices}{every}</div>{note}</form>'
    )


def _scroll(svg: str, label: str, right: bool = False) -> str:
    """A box that scrolls by itself where the page is too narrow, and begins at its right if the main arc lies there."""
    side = " lab-from-right" if right else ""
    return (
        f'<div class="lab-wide{side}" style="overflow-x:auto" tabindex="0" role="group" '
        f'aria-label="{html.escape(label, quote=True)}">{svg}</div>'
    )


def _nothing() -> str:
    return '<p class="lab-attention-note">No head to show.</p>'


def _strongest(share: Float[Tensor, " pos"], n: int) -> list[int]:
    """Tokens by share, the largest first, without those that round to nothing."""
    return [i for i in share.argsort(descending=True, stable=True).tolist() if share[i] >= DRAWN][:n]


def _shares(look: Look, tokens: Sequence[Token], n: int) -> str:
    return ", ".join(f"{_percent(float(look.share[i]))} to {tokens[i].words}" for i in _strongest(look.share, n))


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f}\u00a0%"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _width(text: str, size: float = 14) -> float:
    """About how wide a word is in a sans serif face."""
    wide = {**dict.fromkeys("iljtfrI.,;:'!|()[]` ", 0.33), **dict.fromkeys("mwMW@%", 0.88)}
    return size * sum(
        wide.get(letter, 0.68 if letter.isupper() else 0.56 if letter.isascii() else 0.9) for letter in text
    )
