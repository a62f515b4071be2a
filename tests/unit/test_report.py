"""Numbers, claims and comparisons in a real kernel: what they show, what they record, what they refuse."""

from __future__ import annotations

import ast
import json
import re

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from labcode import metrics, report
from labcode.errors import ReportError
from labcode.report import Figure

CELL = """
import torch
from labcode import metrics, report
report.put(a=0.25, b=torch.tensor(1.5), n=3, name="x", ld=metrics.Interval(1.0, 0.5, 1.5, 8))
report.check("one < two & <script>alert(1)</script>", 1 < 2)
report.check("three is two", False)
report.claim("three-is-two", False, "noised", "<chance>", source="A & B 2022", origin="recorded")
report.put("recorded", old=7, wide=metrics.Interval(3.0, 2.0, 4.0, 8))
report.claim("water-is-wet", torch.tensor(True), "denoised", "<dry>")
report.compare({"wang.accuracy": 0.99}, same_model=True)
report.compare({"wang.accuracy": 0.5}, same_model=True)
report.compare({"wang.accuracy": 0.5}, same_model=False)
report.expected([report.Row("a", "1", "2", False)])
"""


@pytest.fixture(scope="module")
def outputs():
    """As the build executes the cell: without what `report.claim` prints elsewhere."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LAB_BUILD", "1")
        return run()


def run():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    return NotebookClient(notebook, timeout=120).execute().cells[0].outputs


@pytest.fixture(scope="module")
def glued(outputs):
    found = {}
    for output in outputs:
        name = output.get("metadata", {}).get("scrapbook", {}).get("name")
        if name:
            found[name] = ast.literal_eval(next(iter(output["data"].values())))
    return found


def test_numbers_arrive_plain(glued):
    assert (glued["a"], glued["b"], glued["n"], glued["name"]) == (0.25, 1.5, 3, "x")
    assert (glued["ld"], glued["ld_low"], glued["ld_high"]) == (1.0, 0.5, 1.5)


def test_claims_are_recorded_with_their_method(glued):
    claims = [json.loads(value) for name, value in glued.items() if name.startswith("ledger.claim.")]
    assert [(claim["key"], claim["holds"], claim["method"]) for claim in claims] == [
        ("three-is-two", False, "noised"),
        ("water-is-wet", True, "denoised"),
    ]
    assert [(claim["against"], claim["source"], claim["origin"]) for claim in claims] == [
        ("<chance>", "A & B 2022", "recorded"),
        ("<dry>", "", "measured"),
    ]
    checks = [json.loads(value) for name, value in glued.items() if name.startswith("ledger.check.")]
    assert [(check["holds"], check["method"]) for check in checks] == [(True, "self-check"), (False, "self-check")]
    assert checks[1]["text"] == "three is two"


@pytest.mark.parametrize(
    ("bound", "agreeing", "off"),
    [("", (0.45, 0.55), (0.3, 0.7)), ("above", (0.45, 9.0), (0.3,)), ("below", (-9.0, 0.55), (0.7,))],
)
def test_a_published_bound_is_open_on_its_own_side(bound, agreeing, off):
    figure = Figure("q", 0.5, 0.1, "s", bound)
    assert all(figure.agrees(value) for value in agreeing)
    assert not any(figure.agrees(value) for value in off)
    assert str(figure) == f"{bound} +0.50 ± 0.1".strip()


@pytest.mark.parametrize("key", report.PUBLISHED)
def test_a_published_share_has_no_sign_and_any_other_figure_has_one(key):
    figure = report.PUBLISHED[key]
    share = re.search(r"share|P\(|' attention|copy score|distance", figure.quantity)
    assert figure.written(figure.value)[0] in ("0" if share else "+-")
    assert (f"+{figure.value:.2f}"[:4] in str(figure)) is (not share and figure.value > 0)


def test_comparisons_give_a_verdict_only_on_the_same_model(glued):
    found = [json.loads(value) for name, value in glued.items() if name.startswith("ledger.compare.")]
    assert [row["verdict"] for row in found] == ["agrees", "differs", "other model"]
    assert {row["published"] for row in found} == {0.993}


def test_recorded_values_are_said_to_be_recorded(glued):
    names = [json.loads(value)["names"] for name, value in glued.items() if name.startswith("ledger.recorded.")]
    assert sorted(one for some in names for one in some) == ["old", "wide", "wide_high", "wide_low"]


def test_what_the_page_shows_is_escaped_and_marked(outputs):
    pages = [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert not any("<script>" in page for page in pages)
    assert "✓ holds" in pages[0]
    assert "&lt;script&gt;" in pages[0]
    assert "self-check" in pages[0]
    assert "✗ does not hold on this run" in pages[1]
    assert "✗ a surprise" in pages[-1]


def test_a_claim_is_silent_in_a_build_and_prints_elsewhere(outputs, capsys, monkeypatch):
    def printed(outputs):
        return "".join(output["text"] for output in outputs if output.output_type == "stream")

    assert printed(outputs) == ""
    assert not any("water-is-wet" in str(output.get("data", {}).get("text/html", "")) for output in outputs)
    monkeypatch.delenv("LAB_BUILD", raising=False)
    verdicts = [line for line in printed(run()).splitlines() if line[0] in "✓✗"]
    assert verdicts == [
        "✗ three-is-two does not hold on this run (noised, against <chance>; a replication of A & B 2022; from "
        "recorded evidence)",
        "✓ water-is-wet holds (denoised, against <dry>)",
    ]
    report.claim("water-is-dry", np.bool_(False), "observed", "wet", source="A 2022", origin="recorded")
    said = "✗ water-is-dry does not hold on this run (observed, against wet; a replication of A 2022; from recorded "
    assert capsys.readouterr().out == f"{said}evidence)\n"


@pytest.mark.parametrize("key", ["a", "", "water is wet", "A-b", "a_b", "a--b", "a-", "-a", "1-a", "ä-b", "a-b\n"])
def test_what_names_no_claim(key):
    with pytest.raises(ReportError, match="can't name a claim"):
        report.claim(key, True, "observed")


NO_VERDICT = [float("nan"), None, "True", "", [], [True], {}, 1, 0, 1.0, len, torch.ones(2) > 0, torch.tensor(1.0)]


@pytest.mark.parametrize("value", [*NO_VERDICT, np.array([True, False]), np.float64("nan"), torch.tensor([])])
def test_what_is_no_verdict(value):
    with pytest.raises(ReportError, match="one truth value"):
        report.claim("it-is-so", value, "observed")
    with pytest.raises(ReportError, match="one truth value"):
        report.check("it is so", value)


@pytest.mark.parametrize("value", [True, np.bool_(True), np.array([True]), torch.tensor(True), torch.tensor([[True]])])
def test_what_is_a_verdict(value, capsys):
    report.claim("it-is-so", value, "observed")
    assert "✓ it-is-so holds (observed)" in capsys.readouterr().out


def test_a_check_prints_outside_a_notebook(capsys):
    report.check("water is wet", torch.tensor(True))
    report.check("water is dry", False)
    said = capsys.readouterr().out
    assert "✓ holds: water is wet" in said
    assert "✗ does not hold on this run: water is dry" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, [1], torch.ones(2)])
def test_what_no_sentence_can_carry(value):
    with pytest.raises((ReportError, RuntimeError)):
        report.put(x=value)


def test_unknown_method_and_unknown_figure():
    with pytest.raises(ReportError, match="unknown method"):
        report.claim("a-b", True, "obvious")
    with pytest.raises(ReportError, match="needs a sentence"):
        report.check("  ", True)
    with pytest.raises(ReportError, match="no published figure 'nobody'"):
        report.compare({"nobody": 1.0}, same_model=True)


def test_an_interval_is_what_put_takes_for_one():
    assert {"mean", "low", "high"} <= set(metrics.Interval.__dataclass_fields__)


def test_numbers_in_tables_have_a_minus_and_stay_whole():
    rows = [["x", "-0.5", "20.0 lost -0.5 [-1.0, -0.1], as GPT-2 did"], ["-2", "1.2 [-0.3, 2.0]", "a-b"]]
    page = report.table(["a", "b", "c"], rows)
    assert '<td class="lab-number">−0.5</td>' in page
    assert '<td class="lab-number">1.2 [−0.3, 2.0]</td>' in page
    assert 'lost <span class="lab-whole">−0.5 [−1.0, −0.1]</span>, as GPT-2 did' in page
    assert "<td>a-b</td>" in page
    assert "<td>−2</td>" in page, "what names a row is no quantity"


def test_a_column_of_numbers_has_its_heading_above_them():
    rows = [["20.0", "-0.5", "a"], ["none", "1.2 [1.0, 1.4]", "b"], ["x", "–", ""]]
    page = report.table(["head", "share", "note"], rows)
    headings = ['<th scope="col">head', '<th scope="col" class="lab-number">share', '<th scope="col">note']
    assert [heading in page for heading in headings] == [True, True, True]
    assert '<th scope="col">only</th>' in report.table(["only"], [])


def test_a_reader_s_notebook_prints_what_its_sentences_speak_of(monkeypatch, capsys):
    monkeypatch.delenv("LAB_BUILD", raising=False)
    report.put(n=3, ld=metrics.Interval(1.23456, 1.0, 1.5, 9), word="Mary")
    said = capsys.readouterr().out
    assert "ld = 1.235; ld_low = 1; ld_high = 1.5" in said
    assert "n = 3; word = Mary" in said
    monkeypatch.setenv("LAB_BUILD", "1")
    report.put(n=3)
    assert capsys.readouterr().out == ""


def test_expectations_go_to_the_ledger(glued):
    rows = [json.loads(value) for name, value in glued.items() if name.startswith("ledger.expected.")]
    assert [(row["what"], row["expected"], row["observed"], row["holds"]) for row in rows] == [("a", "1", "2", False)]
