"""What the chapters reported: claims, self-checks, comparisons and numbers, and the `ledger` directive for them.

The records that `labcode.report` makes travel as glued strings, so they come back from the cache like any other output.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector

from labbook._ext import claims, pages
from labcode import report

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PREFIX = "ledger."
TABLES = {"mechanism": "The mechanism", "findings": "Findings", "replications": "Replications"}
VERDICTS = {"agrees": "lab-yes", "differs": "lab-no"}


@dataclass
class Reported:
    """What one chapter reported, in its order."""

    claims: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    expected: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[str, str] = field(default_factory=dict)
    recorded: set[str] = field(default_factory=set)

    @property
    def crosses(self) -> list[str]:
        """The claims and self-checks that don't hold on this run."""
        return [one["text"] for one in (*self.claims, *self.checks) if not one["holds"]]


def parse(glued: Mapping[str, Mapping[str, Any]]) -> Reported:
    """Read the contents of a chapter's `glue.json`."""
    found = Reported()
    for key, output in glued.items():
        text = "".join(output.get("data", {}).get("text/plain", ""))  # a text or its lines
        if key.startswith(PREFIX):
            record = json.loads(ast.literal_eval(text))
            lists = {"claim": found.claims, "check": found.checks, "compare": found.comparisons}
            lists["expected"] = found.expected
            if record["kind"] == "recorded":
                found.recorded.update(record["names"])
            else:
                lists[record["kind"]].append(record)
        elif text:
            found.numbers[key] = text
    return found


def _read(app: Sphinx, doctree: nodes.document) -> Reported | None:
    docname = app.env.docname
    glued = NbMetadataCollector.get_doc_data(app.env)[docname].get("glue")  # type: ignore[arg-type]
    stored = Path(app.outdir).parent / "jupyter_execute" / f"{docname}.glue.json"
    found = parse(json.loads(stored.read_text(encoding="utf8"))) if glued else Reported()
    claims.settle(docname, doctree, found.claims, app.env.temp_data.get(claims.UNTOLD, set()))
    return found if glued else None


def fill(app: Sphinx, here: str, argument: str) -> list[nodes.Node]:
    """The tables: the mechanism, findings, replications, comparisons with published values, self-checks, numbers."""
    reported = pages.in_order(app.env, "ledger")

    def judged(kind: str, *columns: str, only: Callable[[dict[str, Any]], object] = bool) -> list[list[pages.Cell]]:
        return [
            [
                _mark(one["holds"]),
                *(report.SIGN.sub("−", one.get(column, "")) for column in columns),  # as on the page
                pages.link(app, here, docname, anchor=one.get("key", "")),
            ]
            for docname, found in reported
            for one in getattr(found, kind)
            if only(one)
        ]

    comparisons: list[list[pages.Cell]] = [
        [
            *(one["quantity"], _value(one["measured"]), _published(one), one.get("source") or ""),
            nodes.inline("", one["verdict"], classes=[VERDICTS.get(one["verdict"], "lab-other")]),
            pages.link(app, here, docname),
        ]
        for docname, found in reported
        for one in found.comparisons
    ]

    judgement = ["On this run", "Sentence", "Method", "Against"]

    def listed(what: str, *columns: str) -> list[list[pages.Cell]]:
        return judged("claims", "text", "method", "against", *columns, only=lambda one: table_of(one) == what)

    said_alone = "What the chapters say of this run's model and of no other, most of it by the names of its heads."
    told = [
        nodes.rubric("", "The mechanism"),
        nodes.paragraph("", said_alone),
        *_table("mechanism", [*judgement, "Origin", "Chapter"], listed("mechanism", "origin")),
    ]
    surprises: list[list[pages.Cell]] = [
        [
            *(report.SIGN.sub("−", one[column]) for column in ("what", "expected", "observed")),
            pages.link(app, here, docname, anchor="expected-and-observed"),
        ]
        for docname, found in reported
        for one in found.expected
        if not one["holds"]
    ]
    return [
        *_totals(reported, [what for what in TABLES if what != "mechanism" or app.config.lab_subject]),
        *(told if app.config.lab_subject else []),
        nodes.rubric("", "Findings"),
        nodes.paragraph(
            "",
            "What could have failed, and what it was held against. A recorded value is in part measured "
            "again by each build.",
        ),
        *_table("findings", [*judgement, "Origin", "Chapter"], listed("findings", "origin")),
        nodes.rubric("", "Replications"),
        nodes.paragraph("", "What somebody published of GPT-2 small, asked of this run's model."),
        *_table("replications", [*judgement, "Published", "Chapter"], listed("replications", "source")),
        nodes.rubric("", "Surprises"),
        nodes.paragraph("", "What a chapter said beforehand that one would expect, and what came otherwise."),
        *_table("surprises", ["What", "Expected", "Observed", "Chapter"], surprises),
        nodes.rubric("", "Comparisons"),
        *_table("comparisons", ["Quantity", "This run", "Published", "Source", "Verdict", "Chapter"], comparisons),
        nodes.rubric("", "Self-checks"),
        nodes.paragraph("", "Our tools agree with themselves, or with arithmetic. These say nothing about the model."),
        *_table("checks", ["On this run", "Self-check", "Chapter"], judged("checks", "text")),
        nodes.rubric("", "Numbers"),
        *(_numbers(app, reported) or _table("numbers", [], [])),
    ]


def _totals(reported: Sequence[tuple[str, Reported]], tables: Sequence[str]) -> list[nodes.Node]:
    """How many of each kind there are, and how many came as they should."""
    claims = [one for _, found in reported for one in found.claims]
    checks = [one["holds"] for _, found in reported for one in found.checks]
    expected = [one["holds"] for _, found in reported for one in found.expected]
    compared = [one["verdict"] for _, found in reported for one in found.comparisons]
    rows = []
    for what in tables:
        held = [one["holds"] for one in claims if table_of(one) == what]
        rows.append([TABLES[what], str(len(held)), str(sum(held)), str(len(held) - sum(held))])
    rows.append(["Expectations", str(len(expected)), str(sum(expected)), str(len(expected) - sum(expected))])
    agreed, differed = compared.count("agrees"), compared.count("differs")
    rows.append(["Comparisons with a verdict", str(agreed + differed), str(agreed), str(differed)])
    rows.append(["Self-checks", str(len(checks)), str(sum(checks)), str(len(checks) - sum(checks))])
    return [pages.table(["Kind", "In all", "As said", "Otherwise"], rows, "lab-ledger-totals")]


def table_of(claim: Mapping[str, Any]) -> str:
    """The table that a claim stands in: an edition's claims have their own, published ones theirs."""
    return "mechanism" if claim.get("edition") else "replications" if claim.get("source") else "findings"


def _numbers(app: Sphinx, reported: Sequence[tuple[str, Reported]]) -> list[nodes.Node]:
    shown: list[nodes.Node] = []
    for docname, found in reported:
        if found.numbers:
            rows: list[list[pages.Cell]] = [
                [nodes.literal("", key), _value(_plain(text)), _origin(key, found.recorded)]
                for key, text in found.numbers.items()
            ]
            head = f"<summary>{escape(app.env.titles[docname].astext())} ({len(rows)})</summary>"
            shown.append(nodes.raw("", f'<details class="lab-numbers">{head}', format="html"))
            shown += [*_table("numbers", ["Name", "Value", "Origin"], rows), nodes.raw("", "</details>", format="html")]
    return shown


def _origin(name: str, recorded: set[str]) -> str:
    whole = name.removesuffix("_low").removesuffix("_high")
    return "recorded" if recorded & {name, whole} else "this build"


def _table(what: str, headings: list[str], rows: list[list[pages.Cell]]) -> list[nodes.Node]:
    if not rows and what == "mechanism":
        return [nodes.paragraph("", "Nobody has written it yet.")]
    if not rows:
        return [nodes.paragraph("", f"No chapter has reported any {what}.")]
    return [pages.table(headings, rows, f"lab-ledger-{what}")]


def _mark(holds: bool) -> nodes.Node:
    return nodes.inline("", "✓ holds" if holds else "✗ doesn't", classes=["lab-yes" if holds else "lab-no"])


def _published(row: dict[str, Any]) -> str:
    tolerance = row.get("tolerance")
    value = f"{row.get('bound') or ''} {_value(row.get('published'))}".strip()
    return value + ("" if tolerance is None else f" ± {_value(tolerance)}")


def _plain(text: str) -> Any:
    """What was glued: a number or a text, of which the page stores the repr."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _value(value: Any) -> str:
    if isinstance(value, float):
        return report.SIGN.sub("−", f"{value:.4g}")
    if isinstance(value, list):
        return " to ".join(_value(item) for item in value)
    return "" if value is None else report.SIGN.sub("−", str(value))


def setup(app: Sphinx) -> None:
    """Register the directive, and keep each page's records."""
    pages.collect(app, "ledger pages", pages.has("ledger"))
    pages.load_script(app, "labledger.js", "ledger pages")
    pages.add_directive(app, "ledger", fill)
    pages.collect(app, "ledger", _read)
