"""The recorded comparison of architectures: what trains it is sparse and judged as by hand, and the file is its own."""

from __future__ import annotations

import json

import pytest
import torch

from labbook.data.make import front
from labcode import corpus, sae, sealed

WIDTH, LATENTS = 32, 64


@pytest.fixture(scope="module")
def vectors():
    generator = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(48, WIDTH, generator=generator), dim=-1)
    which = torch.rand(6000, 48, generator=generator).topk(3).indices
    code = torch.zeros(6000, 48).scatter_(1, which, 1 + torch.rand(6000, 3, generator=generator))
    where = torch.arange(6000)
    values = code @ truth + 2 * torch.randn(WIDTH, generator=generator)
    return sae.Activations(values, where, where, 0, 1.0, layer=1)


@pytest.mark.parametrize("name", front.ARCHITECTURES)
def test_each_architecture_trains_to_a_sparse_code(vectors, name):
    kind = front.ARCHITECTURES[name]
    dial = 4 if kind.dial == "k" else kind.levels[-1] / 4
    more = {"matryoshka_widths": [8, LATENTS]} if "matryoshka_widths" in dict(kind.more) else {}
    options = {"lr": 5e-3, "samples": 60_000, "more": more, "d_sae": LATENTS, "batch": 200}
    made, course = front.train(vectors, name, dial, **options)
    codes = made.encode(vectors.values)
    left = (vectors.values - made.decode(codes)).pow(2).sum() / (vectors.values - vectors.center).pow(2).sum()
    assert 0.5 < (codes > 0).float().sum(-1).mean() < LATENTS / 4
    assert left < 0.6
    assert abs(left - course["fvu"]) < 0.1, "as it is used, it does what it did in training"
    again, same = front.train(vectors, name, dial, **options)
    assert same == course
    assert torch.equal(again.W_dec, made.W_dec)


def test_a_perfect_autoencoder_leaves_nothing_and_costs_nothing(tiny_gpt2):
    model = tiny_gpt2.bridge
    tokens = torch.randint(3, 100, (6, 9), generator=torch.Generator().manual_seed(0))
    data = sae.collect(model, tokens, 1)
    judge = front.Judge(model, tokens, data, 4)

    class Perfect:
        def encode(self, x):
            return torch.cat([x, -x], -1).relu()

        def decode(self, code):
            return code[..., : code.shape[-1] // 2] - code[..., code.shape[-1] // 2 :]

        def __call__(self, x):
            return self.decode(self.encode(x))

    found = judge(Perfect())
    assert max(found["left"]) < 1e-6 * min(judge.record["variance"])
    assert found["active"] == pytest.approx([n * model.cfg.d_model for n in judge.record["vectors"]], rel=0.01)
    assert found["spliced"] == pytest.approx(judge.record["clean"], abs=1e-4)
    assert sum(judge.record["vectors"]) == len(data)
    assert sum(judge.record["variance"]) == pytest.approx(
        float((data.values.float() - data.center).pow(2).sum()), rel=1e-3
    )


def test_a_run_that_was_cut_off_goes_on(tmp_path):
    calls = []

    def measure(setting):
        calls.append(setting)
        return {"value": 1 / 3}

    def again(head, *rows):
        record = front.Record(tmp_path / "front.json", head, {"held_out": {"clean": [0.123456789]}})
        return record, [record.row("rows", measure, *row) for row in rows]

    one, two = ("topk", 16, 1e-3), ("topk", 32, 1e-3)
    again({"versions": 1}, one, two)
    assert len(sealed.read(tmp_path / "front.json")["rows"]) == 2, "kept as they are made"
    record, rows = again({"versions": 1}, two)
    assert len(calls) == 2, "nothing is made twice"
    assert rows[0]["value"] == 0.33333
    record.finish()
    kept = sealed.read(tmp_path / "front.json")
    assert [row["dial"] for row in kept["rows"]] == [32], "and nothing is left that nobody asks for"
    again({"versions": 2}, two)
    assert len(calls) == 3, "made by other code, it is made again"


def test_the_file_is_what_the_command_would_write():
    record = sealed.read(corpus.DATA / "sae-front.json")
    assert record["command"].startswith("python -m labbook.data.make.front --contexts ")
    assert set(record["versions"]) >= {"torch", "sae-lens"}
    assert record["architectures"] == json.loads(json.dumps({k: front.described(k) for k in front.ARCHITECTURES}))
    assert record["settings"]["d_sae"] == front.D_SAE
    for name, kind in front.ARCHITECTURES.items():
        rows = [row for row in record["rows"] if row["architecture"] == name]
        runs = [(row["dial"], row["seed"]) for row in rows]
        more = [(kind.levels[1], seed) for seed in front.SEEDS[1:]]
        assert runs == [*((level, front.SEEDS[0]) for level in kind.levels), *more]
        tried = {row["lr"]: row["train"]["loss"] for row in record["searched"][::-1] if row["architecture"] == name}
        assert {row["lr"] for row in rows} == {min(front.RATES, key=lambda lr, of=tried: of[lr])}
        l0 = [sum(row["active"]) / sum(record["held_out"]["vectors"]) for row in rows]
        assert 8 < min(l0) < 30, name
        assert 34 < max(l0) < 128, f"{name}: to be read at 32 the runs lie on both sides of it"
    n = len(record["held_out"]["vectors"])
    for row in record["rows"]:
        assert len(row["left"]) == len(row["active"]) == n
        assert len(row["spliced"]) == len(record["held_out"]["clean"])
