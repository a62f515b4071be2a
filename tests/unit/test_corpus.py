"""Text for autoencoders: what a model writes, what is thrown away, what is kept on disk, what a page stars."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labbook.data.make.corpus import pack
from labcode import corpus, prompts, sealed
from labcode.errors import EvidenceError, SaeError


def test_contexts_start_with_their_opening_and_hold_no_special_token(tiny):
    """The openings have different lengths, so this also holds the padding against texts that are written alone."""
    text = corpus.sample(tiny, first=4, batch=3, seed=5)
    assert text.shape == (3, corpus.LENGTH)
    for row, number in zip(text.tolist(), range(4, 7), strict=True):
        assert tiny.tokenizer.decode(row).startswith(corpus.opening(number))
    assert not torch.isin(text, torch.tensor(tiny.tokenizer.all_special_ids)).any()
    assert torch.equal(text, corpus.sample(tiny, first=4, batch=3, seed=5))
    assert not torch.equal(text, corpus.sample(tiny, first=4, batch=3, seed=6))


def test_each_token_is_drawn_from_the_nucleus_of_a_whole_forward_pass(tiny, monkeypatch):
    monkeypatch.setattr(corpus, "LENGTH", 12)
    monkeypatch.setattr(corpus, "TOP_K", 40)
    monkeypatch.setattr(corpus, "TOP_P", 0.3)
    text = corpus.sample(tiny, first=4, batch=3, seed=5)
    with torch.no_grad():
        logits = tiny(torch.cat([torch.full((3, 1), tiny.tokenizer.bos_token_id), text], 1))
    logits[..., sorted(set(tiny.tokenizer.all_special_ids))] = -torch.inf
    for row, number in enumerate(range(4, 7)):
        for at in range(len(tiny.tokenizer.encode(corpus.opening(number), add_special_tokens=False)), 12):
            best = logits[row, at].topk(40)
            place = int((best.indices == text[row, at]).nonzero())
            ahead = float(best.values.softmax(0)[:place].sum())
            assert ahead <= 0.3 + 1e-3, "tokens that are more likely make up the nucleus without this one"


def test_openings_hold_words_and_names():
    made = [corpus.opening(number) for number in range(1500)]
    assert set(corpus.WORDS) <= set(made)
    assert any(" Mary" in text for text in made)
    assert any(" John" in text for text in made)


def test_repetition_is_the_share_of_distinct_4_grams():
    rows = torch.tensor([[*range(1, 21)], [7] * 20, [1, 2] * 10])
    assert corpus.distinct(rows).tolist() == pytest.approx([1.0, 1 / 17, 2 / 17])


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Short contexts in a cache folder of the test's own; every kind of repetition is kept."""
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus, "LENGTH", 15)
    monkeypatch.setattr(corpus, "KEEP_FROM", 0.0)


def test_an_interrupted_run_is_taken_up_again(small, tiny, monkeypatch, tmp_path):
    made, sample = [], corpus.sample

    def until_interrupted(*args):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(args[1])
        return sample(*args)

    monkeypatch.setattr(corpus, "sample", until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        corpus.write_corpus(tiny, 100, batch=2)
    monkeypatch.setattr(corpus, "sample", lambda *args: made.append(args[1]) or sample(*args))
    text, record = corpus.write_corpus(tiny, 100, batch=2)
    assert made == [0, 2, 4, 6]  # the first two batches were not written again
    assert text.shape == (8, 15)
    assert record["tokens"] == 120
    assert np.array_equal(text[4:6], sample(tiny, 4, 2, 0))
    assert {path.suffix for path in (tmp_path / "cache" / "corpus").rglob("*.*")} <= {".safetensors", ".lock"}


def test_a_damaged_batch_is_written_again(small, tiny, tmp_path):
    text, _ = corpus.write_corpus(tiny, 30, batch=2)
    (file,) = (tmp_path / "cache" / "corpus").rglob("text.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    assert np.array_equal(corpus.write_corpus(tiny, 30, batch=2)[0], text)


def test_a_model_that_only_repeats_itself_is_an_error(small, tiny, monkeypatch):
    monkeypatch.setattr(corpus, "KEEP_FROM", 1.1)
    with pytest.raises(SaeError, match="no repetition"):
        corpus.write_corpus(tiny, 40, batch=2)


@pytest.fixture
def stored(tmp_path, tiny, monkeypatch):
    """A corpus of 40 contexts on disk, in the tokenizer of the tiny models."""
    contexts = np.random.default_rng(0).integers(3, 40_000, (40, corpus.LENGTH)).astype(np.uint16)
    pack(contexts, {"model": "nobody", "tokenizer": corpus.tokenizer_key(tiny.tokenizer)}, tmp_path, "smollm2")
    monkeypatch.setattr(corpus, "DATA", tmp_path)
    return contexts


def test_a_corpus_comes_back_as_it_was_with_the_start_token_of_the_prompts(stored, tiny):
    text = corpus.load_corpus(tiny)
    assert np.array_equal(text.tokens[:, 1:].numpy(), stored)
    assert (text.tokens[:, 0] == tiny.tokenizer.bos_token_id).all()
    assert (text.written_by, text.live) == ("nobody", False)
    assert text.used(50_000).sum() == len(np.unique(stored))


def test_a_cap_keeps_the_held_out_contexts(stored, tiny, monkeypatch):
    _, unseen = corpus.load_corpus(tiny).split()
    monkeypatch.setenv("LAB_TOKENS", "1024")
    capped = corpus.load_corpus(tiny)
    learn, held = capped.split(5)
    assert len(capped) == 8
    assert torch.equal(held, unseen[-2:])  # a quarter of eight
    assert torch.equal(learn[:, 1:], torch.from_numpy(stored[:6].astype(np.int64)))
    with pytest.raises(SaeError, match="held-out"):
        capped.split(corpus.HELD_OUT + 1)


@pytest.mark.parametrize("asked", ["7", "many", "-2000"])
def test_a_useless_cap_is_an_error(asked, stored, tiny, monkeypatch):
    monkeypatch.setenv("LAB_TOKENS", asked)
    with pytest.raises(SaeError, match=asked):
        corpus.load_corpus(tiny)


def test_a_damaged_or_missing_corpus_is_an_error(stored, tmp_path, tiny):
    path = tmp_path / "corpus-smollm2.npy.xz"
    path.write_bytes(path.read_bytes()[:-40])
    for _ in range(2):
        with pytest.raises(EvidenceError, match=r"corpus-smollm2\.json can't be read .*restore it"):
            corpus.load_corpus(tiny)
        path.unlink(missing_ok=True)


def test_a_model_of_another_tokenizer_writes_its_own_text(stored, small, tmp_path, tiny, monkeypatch):
    files = tmp_path / "corpus-smollm2.json", tmp_path / "corpus-smollm2.npy.xz"
    sealed.write(files[0], {**sealed.read(*files), "tokenizer": "another"}, files[1])
    monkeypatch.setenv("LAB_TOKENS", "1024")
    text = corpus.load_corpus(tiny)
    assert text.live
    assert text.tokens.shape[1] == 16


def test_the_shipped_corpus_is_what_the_book_says(smollm2):
    contexts, record = corpus.read_corpus(corpus.DATA, "smollm2")
    assert record["tokenizer"] == corpus.tokenizer_key(smollm2.tokenizer)
    assert contexts.dtype == np.uint16
    assert contexts.size >= 600_000
    assert {"command", "seed", "versions", "removed"} <= set(record)
    for name in (" Mary", " John"):
        assert (contexts == prompts.token_id(smollm2, name)).any(1).sum() >= 20
    assert not np.isin(contexts, smollm2.tokenizer.all_special_ids).any()
    assert bool((corpus.distinct(torch.from_numpy(contexts[:200].astype(np.int64))) >= corpus.KEEP_FROM).all())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Oh SHIT.", "Oh S***."),
        ("apeshit", "apes***"),
        ("raped", "r****"),
        *((same, same) for same in ("The grape was scraped.", "Drapes and skyscrapers.", "", "a class of assets")),
        *((" ".join(words), " ".join(words)) for words in (prompts.NAMES, prompts.OBJECTS, prompts.PLACES)),
    ],
)
def test_a_coarse_word_keeps_its_first_letter_and_its_length_and_others_stay(text, shown):
    assert corpus.masked(text) == shown


def test_a_word_in_pieces_is_starred_and_the_pieces_keep_their_lengths():
    assert corpus.masked_tokens([" a", "pes", "hit", "\n", "x"]) == (" a", "pes", "***", "\n", "x")
    assert corpus.masked_tokens([]) == ()
