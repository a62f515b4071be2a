"""The record against a run: two small models stand for the one that was recorded and one that has changed since."""

from __future__ import annotations

import datetime
import os
from dataclasses import replace

import pytest
import torch

from labcode import evidence, frames, models, prompts
from labcode.errors import EvidenceError
from labcode.recorded import SHARE, Recorded

FEW = 8


@pytest.fixture(scope="module")
def found(tiny_gpt2):
    pops = evidence.populations(tiny_gpt2.bridge, FEW)
    return evidence.Evidence(evidence.measure(tiny_gpt2.bridge, pops), pops, "recorded")


def test_the_halves_share_no_frame_and_no_name(smollm2):
    assert len(set(frames.DISCOVERY + frames.TEST)) == 48
    pops = {half: pop for half, (pop, _) in evidence.populations(smollm2).items()}
    names = {half: {name for prompt in pop.prompts for name in (prompt.io, prompt.s)} for half, pop in pops.items()}
    assert not names["discovery"] & names["test"]
    for pop in pops.values():
        _, counts = evidence.groups(pop).unique(return_counts=True)
        assert counts.tolist() == [4] * 24


@pytest.mark.parametrize("frame", frames.DISCOVERY + frames.TEST)
def test_every_frame_is_one_of_ours(frame, smollm2):
    pop = prompts.population(smollm2, 2, templates=[frame], exact=True)
    assert pop.prompts[0].text.endswith(" to")
    assert "a o" not in pop.prompts[0].text  # an article that does not fit


def test_a_record_is_what_a_day_measures_again(found, tiny_gpt2):
    again = evidence.recheck(tiny_gpt2.bridge, found, datetime.date(2026, 1, 2))
    assert again.largest < 1e-5
    per_prompt = sum(v[..., 0].numel() for v in found.tables["test"].values() if v.shape[-1] == FEW)
    assert again.n >= 0.9 * 2 * evidence.AT_ONCE * (per_prompt - 12)  # at S1+1 only some heads are asked
    other = evidence.recheck(tiny_gpt2.bridge, found, datetime.date(2026, 1, 3))
    assert again.prompts != other.prompts
    assert {half: len(texts) for half, texts in again.prompts.items()} == dict.fromkeys(
        evidence.HALVES, evidence.AT_ONCE
    )


def test_a_changed_value_stops_the_build(found, tiny_gpt2):
    tables = {half: dict(table) for half, table in found.tables.items()}
    tables["test"]["direct"] = tables["test"]["direct"] + 2e-4
    with pytest.raises(EvidenceError, match=r"test: direct"):
        evidence.recheck(tiny_gpt2.bridge, replace(found, tables=tables))


@pytest.mark.parametrize("which", ["recorded", "measured", "both"])
def test_what_is_no_number_stops_the_build(found, tiny_gpt2, which, monkeypatch):
    tables = {half: dict(table) for half, table in found.tables.items()}
    if which != "measured":
        tables["test"]["direct"] = tables["test"]["direct"] * torch.nan
    if which != "recorded":
        measure = evidence.families.measure

        def spoilt(*given):
            seen = measure(*given)
            return seen | {"direct": seen["direct"] * torch.nan}

        monkeypatch.setattr(evidence.families, "measure", spoilt)
    with pytest.raises(EvidenceError, match=r"by nan .*: direct"):
        evidence.recheck(tiny_gpt2.bridge, replace(found, tables=tables))


def test_a_record_of_nothing_is_no_record(found, tiny_gpt2):
    tables = {half: {"writers": table["writers"]} for half, table in found.tables.items()}
    with pytest.raises(EvidenceError, match="nothing to measure again"):
        evidence.recheck(tiny_gpt2.bridge, replace(found, tables=tables))


def test_the_test_half_follows_the_writers_of_the_discovery(found):
    assert torch.equal(found.tables["test"]["writers"], found.tables["discovery"]["writers"])


def test_it_is_written_and_read_back(found, tmp_path):
    path = tmp_path / "evidence-x.safetensors"
    known = Recorded({"context": {3: torch.rand(FEW), 7: torch.rand(FEW)}}, {"scores": {"mean": torch.rand(5)}})
    evidence.write(path, found.tables, {"weights": "key"}, known)
    back, rows = evidence.read(path, "key")
    assert os.listdir(tmp_path) == [path.name]
    assert rows.rows.keys() == {"context"}
    assert all(torch.equal(rows.rows["context"][number], row) for number, row in known.rows["context"].items())
    assert torch.equal(rows.tables["scores"]["mean"], known.tables["scores"]["mean"])
    for half, tables in found.tables.items():
        assert all(torch.equal(back[half][name].nan_to_num(9), value.nan_to_num(9)) for name, value in tables.items())
    with pytest.raises(EvidenceError, match="other weights"):
        evidence.read(path, "another key")
    data = bytearray(path.read_bytes())
    data[-100] ^= 64
    path.write_bytes(data)
    with pytest.raises(EvidenceError, match=r"can't be read .its checksum is another"):
        evidence.read(path, "key")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(EvidenceError, match="can't be read"):
        evidence.read(path, "key")


def test_a_quick_look_does_not_change_the_prompts_of_a_record(monkeypatch, smollm2):
    monkeypatch.setenv("LAB_PROMPTS", "8")
    assert {len(pop) for pop, _ in evidence.populations(smollm2).values()} == {evidence.N}
    assert {len(pop) for pop, _ in evidence.populations(smollm2, 24, exact=False).values()} == {8}


def test_pins_name_the_weights_without_loading():
    assert models.pins("smollm2") != models.pins("gpt2")


def test_a_record_with_rows_but_no_keys_is_refused(found, tmp_path):
    path = tmp_path / "evidence-x.safetensors"
    tables = {**found.tables, "rows": {"context": torch.rand(2, FEW)}}
    evidence.write(path, tables, {"weights": "key"})
    with pytest.raises(EvidenceError, match="can't be read"):
        evidence.read(path, "key")
    tables["keys"] = {"context": torch.tensor([1, 2, 3])}
    evidence.write(path, tables, {"weights": "key"})
    with pytest.raises(EvidenceError, match="can't be read"):
        evidence.read(path, "key")


def test_what_a_chapter_asks_while_recording_is_known_afterwards(found, tiny_gpt2):
    model = tiny_gpt2.bridge
    with evidence.recording(replace(found, known=Recorded())):
        seen = evidence.load(model)
    assert seen.model is model
    some = {"a": [(0, 0, "S2")]}, {"b": [(1, 0, "END")]}
    lost = seen.arrows(*some)
    assert len(seen.known.measured) == len(lost) == 4
    again = replace(seen, known=seen.known.asked()).arrows(*some)
    assert all(torch.equal(lost[arrow], value) for arrow, value in again.items())


def test_a_known_model_with_changed_weights_has_no_record(smollm2, monkeypatch):
    monkeypatch.setattr(evidence, "populations", lambda *given, **how: {})
    monkeypatch.setattr(evidence, "measure", lambda *given: {})
    assert evidence.load(smollm2).origin == "recorded"
    row = smollm2.embed.weight.data[[260]]
    try:
        smollm2.embed.weight.data[260] = 0
        assert evidence.load(smollm2).origin == "measured"
    finally:
        smollm2.embed.weight.data[[260]] = row
    assert evidence.load(smollm2).origin == "recorded"


def test_the_record_holds_the_arrows_of_the_circuit(smollm2):
    seen = evidence.load(smollm2)
    arrows = seen.arrows()
    assert {arrow.sender for arrow in arrows} == set(seen.filled)
    assert not seen.known.measured
    assert seen.known.n_again >= 2 * SHARE * len(arrows)
