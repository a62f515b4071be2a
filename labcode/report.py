"""Put a number into the prose, check a claim, set a value beside the published one.

In the book each call leaves a record in the notebook's outputs; the build collects them into the ledger. A claim that
does not hold shows a cross and the chapter goes on. Outside a notebook the calls print what they would show.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, get_args

from labcode.errors import ReportError
from labcode.published import PUBLISHED, Figure, signed

Evidence = Literal["observational", "sufficient", "necessary", "sufficient and necessary"]
EVIDENCE = get_args(Evidence)
LONG = ' class="lab-long"'  # a cell that holds a sentence

_numbers = count(1)


def put(**values: Any) -> None:
    """Make values available to the chapter's sentences: put(gap=0.5) is {glue:text}`gap` there.

    Tensors and numpy scalars of one element become plain numbers. A `metrics.Interval` gives three names:
    put(ld=interval) is `ld`, `ld_low` and `ld_high`.

    Raises:
        ReportError: a NaN or infinite number, or anything but a number, truth value, string or interval.

    Used in all chapters.
    """
    for name, value in values.items():
        if all(hasattr(value, part) for part in ("mean", "low", "high")):
            put(**{name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high})
            continue
        plain = value.item() if hasattr(value, "item") else value
        if not isinstance(plain, bool | int | float | str):
            raise ReportError(
                f"put({name}=...): a sentence takes a number or a string, not {type(value).__name__}", see="put-type"
            )
        if isinstance(plain, float) and not math.isfinite(plain):
            raise ReportError(
                f"put({name}={plain}): no sentence can carry it; look for its cause in the run", see="put-nan"
            )
        _glue(name, plain)


def claim(text: str, holds: bool, evidence: Evidence) -> None:
    """Show whether a sentence holds on this run, and which kind of evidence it rests on.

    "observational": read off a run in which nothing was changed. "sufficient": putting the part's clean value into a
    corrupted run restores the behaviour (denoising). "necessary": taking the part away from a clean run harms it
    (noising, ablation).

    Raises:
        ReportError: an unknown kind of evidence, or no text.

    Used in all chapters.
    """
    if evidence not in EVIDENCE:
        raise ReportError(
            f"unknown kind of evidence {evidence!r}: choose one of {', '.join(EVIDENCE)}", see="evidence-kind"
        )
    if not text.strip():
        raise ReportError("a claim needs a sentence", see="claim-without-text")
    verdict = bool(holds)
    mark = "✓ holds" if verdict else "✗ does not hold on this run"
    page = (
        f'<div class="lab-claim" data-holds="{str(verdict).lower()}"><span class="lab-verdict">{mark}</span> '
        f'<span class="lab-text">{html.escape(text)}</span> '
        f'<span class="lab-evidence">evidence: {evidence}</span></div>'
    )
    _show(page, f"{mark}: {text} (evidence: {evidence})")
    _record({"kind": "claim", "text": text, "holds": verdict, "evidence": evidence})


def compare(values: Mapping[str, float], same_model: bool) -> None:
    """Set measured values beside published ones of GPT-2 small, as a table.

    Args:
        values: a key of `published.PUBLISHED` for each measured value.
        same_model: whether this run's model is GPT-2 small. If it is not, no verdict is given: the two need not agree.

    Raises:
        ReportError: an unknown key.

    Used in chapters 01, 02, 04, 05, 07, 08 and 10 to 12.
    """
    rows, lines = [], []
    for key, value in values.items():
        figure = _figure(key)
        verdict = ("agrees" if figure.agrees(float(value)) else "differs") if same_model else "other model"
        said = {"agrees": "✓ agrees", "differs": "✗ differs", "other model": "another model: no verdict"}[verdict]
        measured, published = signed(float(value)), str(figure)
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

    Used in chapters 04, 05 and 10.
    """
    figures = [_figure(key) for key in keys]
    rows = [[figure.quantity, signed(figure.value), figure.source] for figure in figures]
    show_table(["quantity, GPT-2 small", "published", "source"], rows)


@dataclass(frozen=True)
class Row:
    """One line of an expected-versus-observed table: what, what one would expect, what came, whether it fits.

    Used in all chapters.
    """

    what: str
    expected: str
    observed: str
    as_expected: bool


def expected(rows: Sequence[Row]) -> None:
    """Show an expected-versus-observed table; a surprise is marked, not hidden. Used in all chapters."""
    cells = [[r.what, r.expected, r.observed, "✓ as expected" if r.as_expected else "✗ a surprise"] for r in rows]
    lines = [
        f"{r.what}: expected {r.expected}; observed {r.observed} ({cell[-1]})"
        for r, cell in zip(rows, cells, strict=True)
    ]
    _show(table(["", "expected", "observed on this run", ""], cells), "\n".join(lines))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of escaped text."""
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f'<table class="lab-table"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def _cell(text: str) -> str:
    return f"<td{LONG if len(text) > 40 else ''}>{html.escape(text)}</td>"


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Show a table of escaped text. Used in all chapters."""
    _show(table(head, rows), "\n".join(" | ".join(row) for row in [head, *rows]))


def _figure(key: str) -> Figure:
    if key not in PUBLISHED:
        raise ReportError(
            f"no published figure {key!r}: the known ones are {', '.join(sorted(PUBLISHED))}", see="no-published-figure"
        )
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
