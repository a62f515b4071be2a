"""Put a number into the prose, check a claim, set a value beside the published one.

What is published, with its source, stands at the end. It describes GPT-2 small and no other model. Tolerances allow for
what differs between set-ups (prompts, names, start token).

In the book each call leaves a record in the notebook's outputs; the build collects them into the ledger. A claim is a
sentence of the chapter, and the build puts its verdict there; one that does not hold shows a cross and the chapter goes
on. Outside a notebook the calls print what they would show.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from labcode.errors import ReportError
from labcode.inputs import guard, shown

Method = Literal["observed", "denoised", "noised", "ablated"]
Origin = Literal["measured", "recorded"]
KEY = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+")
LONG = ' class="lab-long"'  # a cell that holds a sentence
NUMERIC = ' class="lab-number"'
NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?%?(?: \[[^\]]*\])?")
SIGN = re.compile(r"(?<![\w.])-(?=\.?\d)")  # a hyphen that is a minus
SPAN = re.compile(r"[+−]?[\d.]+%? \[[^\]<>]*\]")  # a mean and its interval

_numbers = count(1)


def put(origin: Origin = "measured", /, **values: Any) -> None:
    """Make values available to the chapter's sentences: put(gap=0.5) is {glue:text}`gap` there.

    Tensors and numpy scalars of one element become plain numbers. A `metrics.Interval` gives three names:
    put(ld=interval) is `ld`, `ld_low` and `ld_high`. Outside the book's build the values are printed, since the
    sentences of a notebook show names only.

    Args:
        origin: "recorded" where the values come from the recorded evidence (`evidence.Evidence.origin`); the ledger
            marks them.

    Raises:
        ReportError: a NaN or infinite number, or anything but a number, truth value, string or interval.
    """
    names, told = [], []
    for name, value in values.items():
        if all(hasattr(value, part) for part in ("mean", "low", "high")):
            put(origin, **{name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high})
            continue
        one = not hasattr(value, "shape") or math.prod(value.shape) == 1
        plain = value.item() if one and hasattr(value, "item") else value
        if not isinstance(plain, bool | int | float | str):
            raise ReportError(f"put({name}=...): a sentence takes a number or a string, not {type(value).__name__}")
        if not isinstance(plain, str) and not (abs(plain) < 2**63):
            raise ReportError(f"put({name}={shown(plain)}): no sentence can carry it; look for its cause in the run")
        _glue(name, plain)
        names.append(name)
        told.append(f"{name} = {plain:.4g}" if isinstance(plain, float) else f"{name} = {plain}")
    if origin == "recorded" and names:
        _record({"kind": "recorded", "names": names})
    if names and not os.environ.get("LAB_BUILD"):
        print("; ".join(told))


def claim(
    key: str, holds: bool, method: Method, against: str = "", *, source: str = "", origin: Origin = "measured"
) -> None:
    """Say whether a sentence of the chapter holds on this run, how that was found, and against what.

    The sentence stands in the text, as `[The answer is +1.2 nats.]{.claim #answer-is-positive}`; the build puts the
    verdict behind it. Anywhere else the verdict is printed. A claim could have failed: `against` says what would then
    have been the case, the null. What only asks whether our tools agree with themselves is a `check`.

    Args:
        key: the sentence's name, words in lower case with hyphens between them, unique in the book.
        holds: one truth value, also of numpy or torch.
        method: what was done; it leaves to the sentence what follows from it. "observed": nothing was changed in the
            runs that were read. "denoised": clean activations were put into other runs. "noised": activations of other
            runs were put into clean ones. "ablated": parts were taken out, or all but some.
        against: the null in a few words, for instance "heads drawn at random". The build asks for it.
        source: where the claim was published, if this is a replication. Else it is a finding of this run.
        origin: "recorded" where the values come from the recorded evidence.

    Raises:
        ReportError: an unknown method, a key that is none, or no truth value.
    """
    more = {"against": against, "source": source, "origin": origin}
    if not KEY.fullmatch(key):
        raise ReportError(f"{key!r} can't name a claim: use words in lower case, a hyphen between two", see="claim-key")
    if not os.environ.get("LAB_BUILD"):
        mark = f"✓ {key} holds" if holds else f"✗ {key} does not hold on this run"
        print(f"{mark} ({_how(method, more)})")
    _record({"kind": "claim", "key": key, "holds": holds, "method": method, **more})


def check(text: str, holds: bool) -> None:
    """Show whether our tools agree with themselves, or with arithmetic: by hand and by the library, parts and whole.

    The ledger lists checks apart from claims and does not count them, since they say nothing about the model.

    Raises:
        ReportError: no text, or no truth value.
    """
    if not text.strip():
        raise ReportError("a self-check needs a sentence")
    mark = "✓ holds" if holds else "✗ does not hold on this run"
    page = (
        f'<div class="lab-claim" data-holds="{str(holds).lower()}"><span class="lab-verdict">{mark}</span> '
        f'<span class="lab-text">{html.escape(text)}</span> <span class="lab-evidence">self-check</span></div>'
    )
    _show(page, f"{mark}: {text} (self-check)")
    _record({"kind": "check", "text": text, "holds": holds, "method": "self-check"})


def _how(method: str, more: Mapping[str, str]) -> str:
    how = method
    if more.get("against"):
        how += f", against {more['against']}"
    if more.get("source"):
        how += f"; a replication of {more['source']}"
    if more.get("origin") == "recorded":
        how += "; from recorded evidence"
    return how


def compare(values: Mapping[str, float], same_model: bool) -> None:
    """Set measured values beside published ones of GPT-2 small, as a table.

    Args:
        values: a key of `PUBLISHED` for each measured value.
        same_model: whether this run's model is GPT-2 small. If it is not, no verdict is given: the two need not agree.

    Raises:
        ReportError: an unknown key.
    """
    rows, lines = [], []
    for key, value in values.items():
        figure = _figure(key)
        verdict = ("agrees" if figure.agrees(float(value)) else "differs") if same_model else "other model"
        said = {"agrees": "✓ agrees", "differs": "✗ differs", "other model": "another model: no verdict"}[verdict]
        measured, published = figure.written(float(value)), str(figure)
        rows.append([figure.quantity, measured, published, figure.source, said])
        lines.append(f"{figure.quantity}: {measured} here, {published} published ({figure.source}): {said}")
        _record(
            {
                "kind": "compare",
                "key": key,
                "quantity": figure.quantity,
                "measured": float(value),
                "published": figure.value,
                "tolerance": figure.tolerance,
                "bound": figure.bound,
                "source": figure.source,
                "verdict": verdict,
            }
        )
    head = ["quantity", "this run", "GPT-2 small, published", "source", "verdict"]
    _show(table(head, rows), "\n".join(lines))


def published(keys: Sequence[str]) -> None:
    """Show published figures of GPT-2 small by themselves, where this run's model has no counterpart to them.

    Raises:
        ReportError: an unknown key.
    """
    figures = [_figure(key) for key in keys]
    rows = [[figure.quantity, figure.written(figure.value), figure.source] for figure in figures]
    show_table(["quantity, GPT-2 small", "published", "source"], rows)


@dataclass(frozen=True)
class Row:
    """One line of an expected-versus-observed table: what, what one would expect, what came, whether it fits."""

    what: str
    expected: str
    observed: str
    as_expected: bool


def expected(rows: Sequence[Row]) -> None:
    """Show an expected-versus-observed table; a surprise is marked, not hidden, and the ledger lists it."""
    cells = [[r.what, r.expected, r.observed, "✓ as expected" if r.as_expected else "✗ a surprise"] for r in rows]
    lines = [
        f"{r.what}: expected {r.expected}; observed {r.observed} ({cell[-1]})"
        for r, cell in zip(rows, cells, strict=True)
    ]
    _show(table(["what", "expected", "observed on this run", "verdict"], cells), "\n".join(lines))
    for row in rows:
        kept = {"what": row.what, "expected": row.expected, "observed": row.observed, "holds": row.as_expected}
        _record({"kind": "expected", **kept})


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of escaped text. Numbers are right-aligned, with their heading; the first column names its rows."""
    numbers = [i > 0 and 2 * sum(bool(NUMBER.fullmatch(row[i])) for row in rows) > len(rows) for i in range(len(head))]
    top = "".join(
        f'<th scope="col"{NUMERIC if right else ""}>{html.escape(cell)}</th>'
        for cell, right in zip(head, numbers, strict=True)
    )
    body = "".join("<tr>" + "".join(_cell(text, i > 0) for i, text in enumerate(row)) + "</tr>" for row in rows)
    return f'<table class="lab-table"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def _cell(text: str, right: bool) -> str:
    if right and NUMBER.fullmatch(text):
        return f"<td{NUMERIC}>{SIGN.sub('−', html.escape(text))}</td>"
    shown = SPAN.sub(lambda found: f'<span class="lab-whole">{found[0]}</span>', SIGN.sub("−", html.escape(text)))
    return f"<td{LONG if len(text) > 40 else ''}>{shown}</td>"


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Show a table of escaped text."""
    _show(table(head, rows), "\n".join(" | ".join(row) for row in [head, *rows]))


def _figure(key: str) -> Figure:
    if key not in PUBLISHED:
        raise ReportError(f"no published figure {key!r}: the known ones are {', '.join(sorted(PUBLISHED))}")
    return PUBLISHED[key]


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _glue(name: str, value: Any) -> None:
    if _in_notebook():
        from myst_nb import glue

        glue(name, value, display=False)


def _record(record: dict[str, Any]) -> None:
    # The Sphinx side finds these by their prefix; glue stores a string's repr, which it reads back.
    _glue(f"ledger.{record['kind']}.{next(_numbers)}", json.dumps(record))


def _show(page: str, text: str) -> None:
    if not _in_notebook():
        print(text)
        return
    from IPython.display import display

    display({"text/html": page, "text/plain": text}, raw=True)


@dataclass(frozen=True)
class Figure:
    """A published value of GPT-2 small.

    Attributes:
        quantity: what it is.
        value: as published.
        tolerance: how far off a repetition may be, in the same unit.
        source: where it stands.
        bound: "above" or "below" where the source says only that; then the other side agrees without limit.
        share: whether it is a share, a probability or a distance, which is written without a plus.
    """

    quantity: str
    value: float
    tolerance: float
    source: str
    bound: str = ""
    share: bool = False

    def agrees(self, value: float) -> bool:
        """Whether a measured value repeats this one."""
        off = value - self.value
        short = {"above": -off, "below": off}.get(self.bound, abs(off))
        return short <= self.tolerance

    def __str__(self) -> str:
        """The value with its tolerance: "+3.56 ± 0.8", "above 0.95 ± 0.05"."""
        return f"{self.bound} {self.written(self.value)} ± {self.tolerance:.2g}".strip()

    def written(self, value: float) -> str:
        """A value of this quantity with its sign; a share has at most a minus."""
        return signed(value).lstrip("+" if self.share else "")


def signed(value: float) -> str:
    """A number with its sign and two decimals, three where it is small: "+3.56", "+0.004"."""
    return f"{value:+.2f}" if abs(value) >= 0.1 else f"{value:+.3f}"


WANG = "Wang et al. 2022"
DEMOS = "TransformerLens demos, eight prompts"
LAB = "this project's first lab, one prompt"

PUBLISHED: dict[str, Figure] = {
    "wang.logit_difference": Figure("mean logit difference", 3.56, 0.8, f"{WANG}, section 2, 100,000 prompts"),
    "wang.accuracy": Figure("share of prompts with IO above S", 0.993, 0.02, f"{WANG}, section 2", share=True),
    "wang.p_io": Figure("mean P(IO)", 0.49, 0.12, f"{WANG}, section 2", share=True),
    "demos.logit_difference": Figure("mean logit difference, eight prompts", 3.5519, 0.01, DEMOS),
    "lab.mary_john": Figure("logit difference, IO Mary, S John", 3.172, 0.02, LAB),
    "lab.john_mary": Figure("logit difference, IO John, S Mary", 2.48, 0.02, LAB),
    "lab.alice_bob": Figure("logit difference, IO Alice, S Bob", 3.79, 0.02, LAB),
    "lab.bob_alice": Figure("logit difference, IO Bob, S Alice", 2.73, 0.02, LAB),
    "lab.corrupted": Figure("logit difference with S2 = Mary", -3.535, 0.02, LAB),
    "lab.dla.9.9": Figure("direct attribution of head 9.9", 1.66, 0.05, LAB),
    "lab.dla.9.6": Figure("direct attribution of head 9.6", 1.32, 0.05, LAB),
    "lab.dla.10.0": Figure("direct attribution of head 10.0", 0.88, 0.05, LAB),
    "lab.dla.10.10": Figure("direct attribution of head 10.10", 0.74, 0.05, LAB),
    "lab.dla.8.10": Figure("direct attribution of head 8.10", 0.46, 0.05, LAB),
    "lab.dla.10.7": Figure("direct attribution of head 10.7", -1.46, 0.05, LAB),
    "lab.dla.11.10": Figure("direct attribution of head 11.10", -1.10, 0.05, LAB),
    "lab.dla.11.1": Figure("direct attribution of head 11.1", -0.84, 0.05, LAB),
    "lab.dla.10.6": Figure("direct attribution of head 10.6", -0.54, 0.05, LAB),
    "lab.resid.8.S2": Figure("stream before layer 8 at S2, restoration", 0.57, 0.02, LAB),
    "lab.resid.8.END": Figure("stream before layer 8 at END, restoration", 0.22, 0.02, LAB),
    "lab.resid.9.S2": Figure("stream before layer 9 at S2, restoration", 0.14, 0.02, LAB),
    "lab.resid.9.END": Figure("stream before layer 9 at END, restoration", 0.87, 0.02, LAB),
    "lab.attn.7.END": Figure("attention 7 at END, restoration", 0.21, 0.02, LAB),
    "lab.attn.8.END": Figure("attention 8 at END, restoration", 0.40, 0.02, LAB),
    "lab.attn.9.END": Figure("attention 9 at END, restoration", 0.16, 0.02, LAB),
    "lab.attn.11.END": Figure("attention 11 at END, restoration", -0.21, 0.02, LAB),
    "lab.mlp.0.S2": Figure("MLP 0 at S2, restoration", 0.77, 0.02, LAB),
    "lab.z.8.10": Figure("head 8.10, all positions, restoration", 0.195, 0.01, LAB),
    "lab.z.8.6": Figure("head 8.6, all positions, restoration", 0.152, 0.01, LAB),
    "lab.z.9.9": Figure("head 9.9, all positions, restoration", 0.121, 0.01, LAB),
    "lab.z.7.3": Figure("head 7.3, all positions, restoration", 0.119, 0.01, LAB),
    "lab.z.5.5": Figure("head 5.5, all positions, restoration", 0.115, 0.01, LAB),
    "lab.z.11.10": Figure("head 11.10, all positions, restoration", -0.123, 0.01, LAB),
    "lab.z.10.7": Figure("head 10.7, all positions, restoration", -0.295, 0.01, LAB),
    "lab.zero.9.9": Figure("logit difference with head 9.9 zeroed", 3.10, 0.05, LAB),
    "lab.zero.10.7": Figure("logit difference with head 10.7 zeroed", 4.53, 0.05, LAB),
    "lab.zero.movers": Figure("logit difference with 9.9, 9.6, 10.0, 10.10 zeroed", 2.52, 0.05, LAB),
    "demos.zero.9.9": Figure("mean logit difference with 9.9 zeroed at END", 2.99, 0.02, DEMOS),
    "wang.extra_s.logit_difference": Figure("mean logit difference, S once more", 3.64, 0.8, f"{WANG}, section 4.4"),
    "wang.extra_s.p_io": Figure("mean P(IO), S once more", 0.59, 0.12, f"{WANG}, section 4.4", share=True),
    "wang.extra_s.wrong": Figure("share wrong, S once more", 0.004, 0.05, f"{WANG}, section 4.4", share=True),
    "wang.extra_io.logit_difference": Figure("mean logit difference, IO once more", 1.23, 0.8, f"{WANG}, section 4.4"),
    "wang.extra_io.p_io": Figure("mean P(IO), IO once more", 0.36, 0.12, f"{WANG}, section 4.4", share=True),
    "wang.extra_io.wrong": Figure("share wrong, IO once more", 0.234, 0.15, f"{WANG}, section 4.4", share=True),
    "wang.attention.name_movers": Figure(
        "name movers' attention END → IO", 0.59, 0.15, f"{WANG}, section 3.1", share=True
    ),
    "wang.attention.s_inhibition": Figure(
        "S-inhibition heads' attention END → S2", 0.51, 0.15, f"{WANG}, section 3.2", share=True
    ),
    "wang.faithfulness": Figure(
        "share of the answer that the circuit keeps", 0.87, 0.1, f"{WANG}, section 4", share=True
    ),
    "wang.naive": Figure("distance |F(M) − F(C)| of the naive circuit", 0.1, 0.5, f"{WANG}, section 4.3", share=True),
    "wang.movers_out": Figure("share lost without the name movers", 0.05, 0.1, f"{WANG}, section 3.4", share=True),
    "wang.copy.name_movers": Figure("name movers' copy score", 0.95, 0.05, f"{WANG}, section 3.1", "above", share=True),
    "wang.copy.negative": Figure("negative movers' negated copy score", 0.98, 0.05, f"{WANG}, section 3.1", share=True),
    "wang.copy.average": Figure("average head's copy score", 0.20, 0.05, f"{WANG}, section 3.1", "below", share=True),
    "wang.correlation": Figure("attention END → IO against writing IO", 0.81, 0.15, f"{WANG}, section 3.1", "above"),
    "wang.signal.original.original": Figure("token original, position original", 3.55, 0.8, f"{WANG}, appendix A"),
    "wang.signal.original.inverted": Figure("token original, position inverted", -0.99, 0.8, f"{WANG}, appendix A"),
    "wang.signal.random.original": Figure("token random, position original", 2.45, 0.8, f"{WANG}, appendix A"),
    "wang.signal.random.inverted": Figure("token random, position inverted", -1.96, 0.8, f"{WANG}, appendix A"),
    "wang.signal.inverted.original": Figure("token inverted, position original", 1.77, 0.8, f"{WANG}, appendix A"),
    "wang.signal.inverted.inverted": Figure("token inverted, position inverted", -3.16, 0.8, f"{WANG}, appendix A"),
    "wang.signal.position": Figure("weight of the position signal", 2.31, 0.5, f"{WANG}, appendix A"),
    "wang.signal.token": Figure("weight of the token signal", 0.99, 0.4, f"{WANG}, appendix A"),
}

CIRCUIT: dict[str, tuple[tuple[int, int], ...]] = {
    "previous": ((2, 2), (4, 11)),
    "duplicate": ((0, 1), (3, 0), (0, 10)),
    "induction": ((5, 5), (6, 9), (5, 8), (5, 9)),
    "s-inhibition": ((7, 3), (7, 9), (8, 6), (8, 10)),
    "name mover": ((9, 6), (9, 9), (10, 0)),
    "backup": ((9, 0), (9, 7), (10, 1), (10, 2), (10, 6), (10, 10), (11, 2), (11, 9)),
    "negative": ((10, 7), (11, 10)),
}
"""The 26 heads of GPT-2 small's circuit, (layer, head), by family (Wang et al. 2022, section 3 and figure 2).

Names are those of `labcode.families`. 0.10, 5.8 and 5.9 are "fuzzy" members (appendices H and I).
"""

CIRCUIT_LAYERS, CIRCUIT_HEADS = 12, 144
"""Layers and heads of the model that `CIRCUIT` was found in."""


guard(globals(), ReportError)
