"""The patch bench: the record is what plain hooks give, the page shows the record, and missions can be done."""

from __future__ import annotations

import gzip
import json
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from labbook.data.make import bench as maker
from labbook.show import bench
from labcode import models, patching
from labcode.errors import PromptError, ReportError

RECORDS = {found["name"]: found for found in bench.load()}


@pytest.fixture(scope="module")
def pairs(smollm2):
    return {pair.name: pair for pair in maker.book_pairs(smollm2)}


@pytest.mark.parametrize(
    ("name", "direction", "kind", "layer", "column"),
    [
        ("swap-mary", "denoising", "z", 23, 3),
        ("three-names", "noising", "resid_pre", 12, 4),
        ("capital-japan", "denoising", "attn_out", 23, 8),
        ("pronoun-lisa", "noising", "mlp_out", 0, 4),
    ],
)
def test_a_cell_is_what_plain_hooks_give(smollm2, pairs, name, direction, kind, layer, column):
    found, pair = RECORDS[name], pairs[name]
    assert found["weights"] == models.weights_key(smollm2)
    assert [list(pair.clean.str_tokens[0]), list(pair.corrupted.str_tokens[0])] == [found["clean"], found["corrupted"]]
    base, source = pair.corrupted.tokens, pair.clean.tokens
    if direction == "noising":
        base, source = source, base
    hook = f"blocks.{layer}.{patching.HOOKS[kind]}"
    with torch.no_grad():
        _, kept = smollm2.run_with_cache(source, names_filter=hook)

    def put(value, hook):
        value = value.clone()
        place = (slice(None), slice(None), column) if kind == "z" else (slice(None), column)
        value[place] = kept[hook.name][place]
        return value

    with torch.no_grad():
        logits = smollm2.run_with_hooks(base, fwd_hooks=[(hook, put)])[0, -1]
    cell = next(c for c in bench.cells(found, direction, kind) if (c.layer, c.column) == (layer, column))
    difference = float(logits[pair.clean.io_ids[0]] - logits[pair.clean.s_ids[0]])
    assert cell.value == pytest.approx(difference, abs=2e-3)
    best = logits.softmax(-1).topk(5)
    start, width = (0, 9) if kind == "z" else (found["start"], len(found["clean"]) - found["start"])
    at = 5 * (layer * width + column - start)
    part = found["cells"][kind][direction]
    assert [found["words"][i] for i in part["top"][at : at + 5]] == [
        smollm2.tokenizer.decode([i]) for i in best.indices
    ]
    assert part["share"][at : at + 5] == pytest.approx((1000 * best.values).tolist(), abs=1)
    assert cell.top == smollm2.tokenizer.decode([best.indices[0]])


def test_the_metric_keeps_runs_in_any_order(smollm2, pairs):
    whole = bench.cells(RECORDS["swap-mary"], "denoising", "z")
    some = maker.record(smollm2, pairs["swap-mary"], layers=[23, 5])
    assert [round(c.value, 2) for c in bench.cells(some, "denoising", "z")] == [
        round(c.value, 2) for layer in (23, 5) for c in whole if c.layer == layer
    ]


def test_the_clean_answer_leads_clearly_everywhere():
    for found in RECORDS.values():
        clean, corrupted = bench.ends(found)
        assert clean > 1.5
        assert corrupted < clean - 1.5
        assert found["words"][found["runs"]["clean"]["top"][0]] == found["answers"][0]


def test_every_record_says_how_it_was_made_and_all_are_small():
    size = 0
    for found in RECORDS.values():
        assert {"model", "weights", "versions", "command"} <= set(found)
        n = len(found["clean"]) - found["start"]
        for kind, by_direction in found["cells"].items():
            for part in by_direction.values():
                cells = 30 * (9 if kind == "z" else n)
                assert [len(part[key]) for key in ("diff", "top", "share")] == [cells, 5 * cells, 5 * cells]
        size += len(gzip.compress(json.dumps(found).encode()))
    assert size < 1.5e6


def test_the_one_token_that_differs_carries_everything_at_first():
    for name, found in RECORDS.items():
        differ = [i for i, (a, b) in enumerate(zip(found["clean"], found["corrupted"], strict=True)) if a != b]
        assert differ[0] == found["start"]
        if name != "three-names":
            assert differ == [found["start"]]
            for direction in bench.DIRECTIONS:
                first = bench.cells(found, direction, "resid_pre")[0]
                assert (first.layer, first.column) == (0, found["start"])
                assert first.way == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("mission", bench.MISSIONS, ids=lambda one: one.name)
def test_a_mission_can_be_done_and_not_by_chance(mission):
    found = RECORDS[mission.pair]
    cells = bench.cells(found, mission.direction, mission.kind)
    assert 0 < len(mission.solutions(found)) <= 0.02 * len(cells)


def test_the_page_names_the_recorded_model_where_it_is_another():
    records = list(RECORDS.values())
    assert "This book was built with" not in bench.to_html(records, subject=records[0]["model"])
    assert "built with &lt;b&gt;" in bench.to_html(records, subject="<b>")
    assert bench.to_html(records).count("<table") == len(bench.NAMES)


def test_markup_in_a_record_stays_text():
    evil = {**RECORDS["swap-mary"], "title": "</script><b>"}
    assert "</script><b>" not in bench.to_html([evil], ())
    assert "</script><b>" not in bench.script_of(evil)


def test_a_pair_that_is_not_recorded_says_how_to_record_it():
    with pytest.raises(ReportError, match=r"no gone\.json: make it with python -m"):
        bench.load(["gone"])


TASK = """
name = "Capitals"
question = "Which city?"

[[pair]]
clean = "The capital of France is the city of"
corrupted = "The capital of Italy is the city of"
right = " Paris"
wrong = " Rome"
"""


def options(tmp_path, text):
    file = tmp_path / "task.toml"
    file.write_text(text, encoding="utf8")
    return Namespace(task=str(file), out=str(tmp_path / "made" / "page.html"))


def test_a_task_of_ones_own_becomes_a_page(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load", lambda: tiny_llama[0])
    monkeypatch.setattr(maker, "LEAST", -100.0)
    wanted = options(tmp_path, TASK)
    maker.make(wanted)
    page = Path(wanted.out).read_text(encoding="utf8")
    assert "<h1>Capitals</h1><p>Which city?</p>" in page
    assert page.count("labBenchPairs ??= []") == 1
    assert "src=" not in re.sub(r"script\.src", "", page)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = 3 4", "is no task that can be read"),
        ("", "has no pairs"),
        (TASK.replace("right =", "rihgt ="), "right missing, rihgt unknown"),
    ],
)
def test_a_file_that_is_no_task_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch, text, said):
    monkeypatch.setattr(models, "load", lambda: pytest.fail("loaded"))
    with pytest.raises(PromptError, match=said):
        maker.make(options(tmp_path, text))


def test_a_pair_that_the_model_does_not_tell_apart_is_refused(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load", lambda: tiny_llama[0])
    monkeypatch.setattr(maker, "LEAST", 1e6)
    with pytest.raises(PromptError, match="This model does not tell the two apart"):
        maker.make(options(tmp_path, TASK))
