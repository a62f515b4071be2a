"""Text that a model writes: the draw, the loop, what is thrown away, what is kept on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from labcode import prompts
from labcode.sae import corpus, sampling, writing
from labcode.sae.errors import CorpusError
from labcode.sae.openings import WORDS, opening


def test_the_nucleus_is_the_fewest_tokens_that_hold_the_probability():
    logits = torch.log(torch.tensor([[0.05, 0.5, 0.3, 0.15]])).repeat(4000, 1)
    drawn = sampling.nucleus(logits, torch.Generator().manual_seed(0), top_p=0.7)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert shares[0] == 0
    assert shares[3] == 0
    assert abs(float(shares[1]) - 0.5 / 0.8) < 0.03


def test_no_more_than_top_k_tokens_are_drawn():
    drawn = sampling.nucleus(torch.zeros(500, 100), torch.Generator().manual_seed(0), top_p=1.0, top_k=7)
    assert len(drawn.unique()) == 7


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def writer(request):
    """A tiny model with our attention function, its tokenizer, and the plain model."""
    pair = request.getfixturevalue(request.param)
    sampling.register()
    model = AutoModelForCausalLM.from_pretrained(pair.folder, attn_implementation=sampling.ATTENTION).eval()
    return model, AutoTokenizer.from_pretrained(pair.folder), pair


def test_one_token_at_a_time_gives_the_logits_of_a_whole_forward_pass(writer):
    model, _, pair = writer
    tokens = torch.randint(3, 5000, (3, 9), generator=torch.Generator().manual_seed(0))
    cache = sampling.preallocated_cache(9)
    with torch.no_grad():
        for position in range(9):
            at = torch.full((3, 1), position)
            out = model(tokens[:, position : position + 1], position_ids=at, past_key_values=cache, use_cache=True)
        whole = pair.hf(tokens).logits[:, -1]
    assert torch.allclose(out.logits[:, -1], whole, atol=1e-4)


def test_contexts_start_with_their_opening_and_hold_no_special_token(writer):
    model, tokenizer, _ = writer
    tokens = sampling.write(model, tokenizer, 0, first=4, batch=3, length=24, seed=5)
    assert tokens.shape == (3, 24)
    assert (tokens[:, 0] == 0).all()
    for row, number in zip(tokens.tolist(), range(4, 7), strict=True):
        assert tokenizer.decode(row[1:]).startswith(opening(number))
    assert not torch.isin(tokens[:, 1:], torch.tensor(tokenizer.all_special_ids)).any()
    assert torch.equal(tokens, sampling.write(model, tokenizer, 0, first=4, batch=3, length=24, seed=5))
    assert not torch.equal(tokens, sampling.write(model, tokenizer, 0, first=4, batch=3, length=24, seed=6))


def test_openings_hold_words_and_names():
    made = [opening(number) for number in range(1500)]
    assert set(WORDS) <= set(made)
    assert any(" Mary" in text for text in made)
    assert any(" John" in text for text in made)


def test_repetition_is_the_share_of_distinct_4_grams():
    rows = torch.tensor([[0, *range(1, 21)], [0] + [7] * 20, [0] + [1, 2] * 10])
    assert sampling.distinct(rows).tolist() == pytest.approx([1.0, 1 / 17, 2 / 17])


@pytest.fixture
def small(monkeypatch, tmp_path, tiny_llama):
    """Short contexts in a cache folder of the test's own; every kind of repetition is kept."""
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(writing, "LENGTH", 15)
    monkeypatch.setattr(writing, "KEEP_FROM", 0.0)
    return tiny_llama.folder


def test_an_interrupted_run_is_taken_up_again(small, monkeypatch):
    whole, record = writing.generate(small, 100, batch=2)
    parts = sorted((writing.cache_dir() / "corpus").rglob("*.npy"))
    assert len(parts) == 4
    assert whole.shape == (8, 15)
    assert record["tokens"] == 120
    for part in parts[2:]:
        part.unlink()
    made, write = [], sampling.write

    def until_interrupted(*args):
        if made:
            raise KeyboardInterrupt
        made.append(args[3])
        return write(*args)

    monkeypatch.setattr(sampling, "write", until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        writing.generate(small, 100, batch=2)
    monkeypatch.setattr(sampling, "write", lambda *args: made.append(args[3]) or write(*args))
    again, _ = writing.generate(small, 100, batch=2)
    assert made == [4, 6]  # the first two batches were not written again
    assert np.array_equal(whole, again)
    assert list((writing.cache_dir() / "corpus").rglob("*.tmp")) == []


def test_a_model_that_only_repeats_itself_is_an_error(small, monkeypatch):
    monkeypatch.setattr(writing, "KEEP_FROM", 1.1)
    with pytest.raises(CorpusError, match="no repetition"):
        writing.generate(small, 40, batch=2)


@pytest.fixture
def stored(tmp_path, tiny_llama, monkeypatch):
    """A corpus of 40 contexts on disk, in the tokenizer of the tiny models."""
    contexts = np.random.default_rng(0).integers(3, 40_000, (40, writing.LENGTH)).astype(np.uint16)
    key = writing.tokenizer_key(tiny_llama.bridge.tokenizer)
    writing.pack(contexts, {"model": "nobody", "tokenizer": key}, tmp_path, "x")
    monkeypatch.setattr(corpus, "DATA", tmp_path)
    monkeypatch.setattr(corpus, "SHIPPED", "x")
    return contexts


def test_a_corpus_comes_back_as_it_was_with_the_start_token_of_the_prompts(stored, tiny_llama):
    text = corpus.load(tiny_llama.bridge)
    assert np.array_equal(text.tokens[:, 1:].numpy(), stored)
    assert (text.tokens[:, 0] == tiny_llama.bridge.tokenizer.bos_token_id).all()
    assert (text.written_by, text.live) == ("nobody", False)
    assert text.used(50_000).sum() == len(np.unique(stored))


def test_a_cap_keeps_the_held_out_contexts(stored, tiny_llama, monkeypatch):
    _, unseen = corpus.load(tiny_llama.bridge).split()
    monkeypatch.setenv("LAB_TOKENS", "1024")
    capped = corpus.load(tiny_llama.bridge)
    learn, held = capped.split(5)
    assert len(capped) == 8
    assert torch.equal(held, unseen[-2:])  # a quarter of eight
    assert torch.equal(learn[:, 1:], torch.from_numpy(stored[:6].astype(np.int64)))
    with pytest.raises(CorpusError, match="held-out"):
        capped.split(corpus.HELD_OUT + 1)


@pytest.mark.parametrize("asked", ["7", "many", "-2000"])
def test_a_useless_cap_is_an_error(asked, stored, tiny_llama, monkeypatch):
    monkeypatch.setenv("LAB_TOKENS", asked)
    with pytest.raises(CorpusError, match=asked):
        corpus.load(tiny_llama.bridge)


def test_an_altered_or_missing_corpus_is_an_error(stored, tmp_path):
    path = tmp_path / "corpus-x.npy.xz"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CorpusError, match="altered"):
        corpus.read(tmp_path, "x")
    path.unlink()
    with pytest.raises(CorpusError, match=r"labcode\.sae\.corpus"):
        corpus.read(tmp_path, "x")


def test_a_corpus_of_another_tokenizer_is_an_error(stored, tmp_path, toy):
    with pytest.raises(CorpusError, match="another tokenizer"):
        corpus.read(tmp_path, "x", toy.tokenizer)


def test_a_model_of_another_tokenizer_needs_its_folder(stored, tmp_path, toy, monkeypatch):
    monkeypatch.setenv("LAB_MODEL", "smollm2")
    with pytest.raises(CorpusError, match="give the folder"):
        corpus.load(toy)


def test_a_model_of_another_tokenizer_writes_its_own_text(stored, small, tmp_path, tiny_llama, monkeypatch):
    record = json.loads((tmp_path / "corpus-x.json").read_text())
    (tmp_path / "corpus-x.json").write_text(json.dumps({**record, "tokenizer": "another"}))
    monkeypatch.setenv("LAB_TOKENS", "1024")
    monkeypatch.setattr(corpus, "LENGTH", 15)
    text = corpus.load(tiny_llama.bridge, folder=small)
    assert text.live
    assert text.tokens.shape[1] == 16


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CorpusError, match="can't be written"):
        writing.write_aside(tmp_path / "file" / "x", lambda out: out.write(b"1"))


def test_the_shipped_corpus_is_what_the_book_says(smollm2):
    contexts, record = corpus.read(corpus.DATA, corpus.SHIPPED, smollm2.tokenizer)
    assert contexts.dtype == np.uint16
    assert contexts.size >= 600_000
    assert (corpus.DATA / "corpus-smollm2.npy.xz").stat().st_size < 1_500_000
    assert record["command"].startswith("python -m labcode.sae.corpus")
    assert {"seed", "versions", "removed"} <= set(record)
    for name in (" Mary", " John"):
        assert (contexts == prompts.token_id(smollm2, name)).any(1).sum() >= 20
    assert not np.isin(contexts, smollm2.tokenizer.all_special_ids).any()
    whole = sampling.distinct(torch.from_numpy(np.pad(contexts[:200].astype(np.int64), ((0, 0), (1, 0)))))
    assert bool((whole >= writing.KEEP_FROM - 0.01).all())
