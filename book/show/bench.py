"""The patch bench: every patch of some pairs of sentences, computed beforehand and chosen by the reader.

The numbers are recorded by `labbook.data.make.bench`, a file for each pair; `labbench.js` loads the file of the pair
that is chosen and does the rest. The page itself holds what a reader without scripts can use: the strongest cells of
each pair. It also holds the missions, each with the cells that fulfil it.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from labcode import sealed
from labcode.errors import ReportError
from labcode.report import table

FOLDER = Path(__file__).parents[1] / "data" / "bench"  # read by the Sphinx side too, which imports no torch
ASSETS = Path(__file__).parents[1] / "_ext" / "assets"
NAMES = (
    *("swap-mary", "swap-anna", "three-names", "first-name"),
    *("capital-france", "capital-japan", "pronoun-lisa", "pronoun-sarah"),
)
KINDS = {
    "resid_pre": "residual stream before a layer",
    "attn_out": "what attention adds",
    "mlp_out": "what the MLP adds",
    "z": "output of one head",
}
DIRECTIONS = {
    "denoising": "clean into the corrupted run (denoising)",
    "noising": "corrupted into the clean run (noising)",
}
SHOWN = 3  # strongest cells in the static tables
Record = Mapping[str, Any]


def load(names: Sequence[str] = NAMES) -> list[Record]:
    """The recorded pairs.

    Raises:
        ReportError: a pair that is not recorded.
        EvidenceError: a record that is damaged or was changed.
    """
    found: list[Record] = []
    for name in names:
        path = FOLDER / f"{name}.json"
        if not path.is_file():
            raise ReportError(f"the patch bench has no {path.name}: make it with python -m labbook.data.make.bench")
        found.append(_read(path))
    return found


_read = cache(sealed.read)


@dataclass(frozen=True)
class Cell:
    """One patched run of a pair.

    Attributes:
        layer, column: where it is; the column is a token, or a head.
        value: logit difference in nats. way: 0 where nothing changes, 1 where the run is worth what the other run is.
        top: the likeliest next token.
    """

    layer: int
    column: int
    value: float
    way: float
    top: str


def ends(found: Record) -> tuple[float, float]:
    """The logit differences of the clean and of the corrupted run, in nats."""
    return found["runs"]["clean"]["diff"][0] / 1000, found["runs"]["corrupted"]["diff"][0] / 1000


def cells(found: Record, direction: str, kind: str) -> list[Cell]:
    """All cells of a kind, in the order of the record."""
    clean, corrupted = ends(found)
    origin, goal = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    kept = found["cells"][kind][direction]
    start = 0 if kind == "z" else found["start"]
    width = found["heads"] if kind == "z" else len(found["clean"]) - start
    made = []
    for i, milli in enumerate(kept["diff"]):
        value, top = milli / 1000, found["words"][kept["top"][i * len(kept["top"]) // len(kept["diff"])]]
        way = (value - origin) / (goal - origin)
        made.append(Cell(found["layers"][i // width], start + i % width, value, way, top))
    return made


# Missions


@dataclass(frozen=True)
class Mission:
    """Something to find on the bench.

    Attributes:
        name: under which the reader's success is kept. pair, direction, kind: where it is played.
        text: what is asked. found: what is said once it is done.
        fits: from the record and its cells, whether a cell fulfils it.
    """

    name: str
    pair: str
    direction: str
    kind: str
    text: str
    found: str
    fits: Callable[[Record, Cell, Sequence[Cell]], bool]

    def solutions(self, record: Record) -> list[list[int]]:
        """The cells that fulfil it, as [layer, column]."""
        every = cells(record, self.direction, self.kind)
        return [[one.layer, one.column] for one in every if self.fits(record, one, every)]


def _last(found: Record) -> int:
    return len(found["clean"]) - 1


def _leaves(found: Record, one: Cell, every: Sequence[Cell]) -> bool:
    """The first layer before which the stream at the first different token is worth less than half."""
    here = [cell for cell in every if cell.column == found["start"]]
    gone = [cell.layer for cell in here if cell.way < 0.5]
    return one.column == found["start"] and bool(gone) and one.layer == min(gone)


def _largest_at_end(found: Record, one: Cell, every: Sequence[Cell]) -> bool:
    here = [cell for cell in every if cell.column == _last(found)]
    return one.column == _last(found) and one.way == max(cell.way for cell in here)


MISSIONS = (
    Mission(
        *("one-head", "swap-mary", "denoising", "z"),
        "Restore Mary with one head: find a head whose clean output alone makes Mary the likeliest word again.",
        "One head out of hundreds, and the answer turns round.",
        lambda found, one, every: one.top == found["answers"][0],
    ),
    Mission(
        *("worse", "swap-mary", "denoising", "z"),
        "Find a head whose clean output makes it worse than the corrupted run, by a twentieth of the gap or more.",
        "This head writes against the right answer: in the clean run it works against Mary.",
        lambda found, one, every: one.way <= -0.05,
    ),
    Mission(
        *("last-token", "swap-mary", "denoising", "resid_pre"),
        "Restore the answer at the last token only: find the lowest layer whose stream there makes Mary the likeliest.",
        "From here up the last token carries the answer by itself.",
        lambda found, one, every: (
            one.column == _last(found)
            and one.layer
            == min((c.layer for c in every if c.column == _last(found) and c.top == found["answers"][0]), default=-1)
        ),
    ),
    Mission(
        *("left-s2", "swap-mary", "noising", "resid_pre"),
        "Find the layer where the news has left the second name: the first whose stream there is worth less than half.",
        "Below, the news stands at the second name; above, it has been read and carried on.",
        _leaves,
    ),
    Mission(
        *("capital", "capital-france", "denoising", "attn_out"),
        "Which layer's attention fetches the country? Find the one that does most at the last token.",
        "One layer of attention brings most of the country to where the answer is written.",
        _largest_at_end,
    ),
)


# The page


def to_html(records: Sequence[Record], missions: Sequence[Mission] = MISSIONS, subject: str = "") -> str:
    """The bench: what the script needs, and tables for those without it.

    Args:
        subject: the model that the rest of the book was built with, if it is another one than was recorded.
    """
    model = html.escape(records[0]["model"])
    said = ""
    if subject and subject != records[0]["model"]:
        said = (
            f'<p class="lab-bench-other">This book was built with {html.escape(subject)}. The bench shows '
            f"recorded runs of {model}: its numbers are not those of the chapters.</p>"
        )
    by_name = {found["name"]: found for found in records}
    index = {
        "model": records[0]["model"],
        "pairs": [{"name": found["name"], "title": found["title"]} for found in records],
        "kinds": KINDS,
        "directions": DIRECTIONS,
        "missions": [
            {
                **{key: getattr(one, key) for key in ("name", "pair", "direction", "kind", "text", "found")},
                "cells": one.solutions(by_name[one.pair]),
            }
            for one in missions
            if one.pair in by_name
        ],
    }
    tables = "".join(_static(found) for found in records)
    return (
        f'<div class="lab-bench">{said}<div class="lab-bench-live"></div>'
        f'<details class="lab-numbers lab-bench-tables" open><summary>The strongest cells of each pair, as tables'
        f"</summary>{tables}</details>"
        f'<script type="application/json" class="lab-bench-index">{_inline(index)}</script></div>'
    )


def _static(found: Record) -> str:
    clean, corrupted = ends(found)
    right, wrong = found["answers"]
    words = (
        f"{_sentence(found['clean'])} (clean, {right.strip()} leads {wrong.strip()} by {_signed(clean)} nats) and "
        f"{_sentence(found['corrupted'])} (corrupted, {_signed(corrupted)} nats)."
    )
    rows = [row for direction in DIRECTIONS for kind in KINDS for row in _rows(found, direction, kind)]
    head = ["direction", "what is patched", "where", "nats", "share of the way", "now the likeliest word"]
    return f"<h3>{html.escape(found['title'])}</h3><p>{html.escape(words)}</p>{table(head, rows)}"


def _rows(found: Record, direction: str, kind: str) -> Iterator[list[str]]:
    ranked = sorted(cells(found, direction, kind), key=lambda one: -abs(one.way))
    if kind == "resid_pre":  # those at the first layers and the last are the sentence and the answer themselves
        ranked = [one for one in ranked if one.layer > 0]
    for one in ranked[: SHOWN if kind != "resid_pre" else 1]:
        where = f"{one.layer}.{one.column}" if kind == "z" else f"layer {one.layer} at {_token(found, one.column)}"
        yield [direction, KINDS[kind], where, _signed(one.value), f"{one.way:.2f}", one.top.strip() or repr(one.top)]


def _token(found: Record, column: int) -> str:
    return f"“{found['clean'][column].strip()}”"


def _sentence(tokens: Sequence[str]) -> str:
    return "“" + "".join(tokens[1:]).strip() + " …”"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _inline(value: object) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def script_of(found: Record) -> str:
    """A record as the script that hands it to the bench: pages that are opened as files can load scripts only."""
    return f"(globalThis.labBenchPairs ??= []).push({_inline(found)});\n"


def standalone(title: str, question: str, records: Sequence[Record]) -> str:
    """The bench of these pairs as one page that needs no other file."""
    styles, code = ((ASSETS / name).read_text(encoding="utf8") for name in ("labbench.css", "labbench.js"))
    store = (ASSETS / "lab.js").read_text(encoding="utf8")
    data = "".join(f"<script>{script_of(found)}</script>" for found in records)
    asked = f"<p>{html.escape(question)}</p>" if question else ""
    made = records[0]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return (
        '<!DOCTYPE html><html lang="en" data-theme="auto"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="lab-model" content="{html.escape(made["model"])}">'
        f"<title>{html.escape(title)}: a patch bench</title><style>{styles}</style></head>"
        f'<body class="lab-bench-alone"><main><h1>{html.escape(title)}</h1>{asked}{to_html(records, ())}'
        f"<p><small>Model {html.escape(made['model'])}, weights {made['weights'][:12]}; {html.escape(versions)}. "
        f"Made with {html.escape(made['command'])}.</small></p></main>"
        f"{data}<script>{store}</script><script>{code}</script></body></html>"
    )
