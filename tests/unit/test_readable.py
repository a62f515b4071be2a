"""The count of readable latents: rules that were planted are found, chance is not, and only unseen text scores."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import torch

from labcode import readable
from labcode.errors import MetricError

WORDS = ["<s>", " John", " Mary", " 7", ",", " the", "ing", "\n", " gone", " Store", " 12", "."]


@pytest.fixture(scope="module")
def tokens():
    drawn = torch.randint(1, len(WORDS), (80, 30), generator=torch.Generator().manual_seed(0))
    drawn[:, 0] = 0
    return drawn


@pytest.fixture(scope="module")
def text(tokens):
    return readable.Text(tokens, WORDS.__getitem__)


@pytest.fixture(scope="module")
def half():
    return torch.arange(80) % 2 == 0


def before(tokens):
    return torch.cat([tokens[:, :1], tokens[:, :-1]], dim=1)


@pytest.mark.parametrize(
    ("kind", "plant"),
    [
        ("token", lambda t: (t == 1) | (t == 5)),
        ("token before", lambda t: before(t) == 8),
        ("class", lambda t: (t == 3) | (t == 10)),
        ("repeated token", lambda t: torch.stack([(t[:, :i] == t[:, i : i + 1]).any(1) for i in range(30)], 1)),
        ("position", lambda t: torch.arange(30).expand_as(t) <= 4),
    ],
)
def test_a_planted_rule_is_found(text, tokens, half, kind, plant):
    found = readable.fit(text, plant(tokens), half)
    assert found.f1 == pytest.approx(1.0)
    assert kind in (found.kind, "class"), "a class of two tokens is a list of two tokens as well"
    true = plant(tokens).clone()
    true[:, 0] = False
    assert torch.equal(found.holds, true)


def test_a_list_is_named_with_its_words(text, tokens, half):
    found = readable.fit(text, (tokens == 1) | (tokens == 5), half)
    assert found.kind == "token"
    assert "' John'" in found.rule
    assert "' the'" in found.rule


def test_noise_has_no_rule_and_fitting_flatters(text, half):
    noise = torch.rand(20, 80, 30, generator=torch.Generator().manual_seed(1)) < 0.02
    found = [readable.fit(text, fires, half, few=3) for fires in noise]
    assert max(one.f1 for one in found) < 0.3
    assert sum(one.fitted for one in found) > sum(one.f1 for one in found)


def test_the_score_comes_from_the_other_half(text, tokens, half):
    fires = torch.where(half[:, None], tokens == 1, tokens == 2)  # the rule changes between the halves
    found = readable.fit(text, fires, half)
    assert found.fitted == pytest.approx(1.0)
    assert found.f1 == 0


def test_precision_and_recall_are_those_of_the_plain_loop(text, tokens, half):
    generator = torch.Generator().manual_seed(3)
    fires = ((tokens == 1) | (tokens == 4)) & (torch.rand(80, 30, generator=generator) < 0.6)
    found = readable.fit(text, fires, half, few=2)
    hit = said = true = 0
    for context in range(1, 80, 2):
        for position in range(1, 30):
            s, t = bool(found.holds[context, position]), bool(fires[context, position])
            hit, said, true = hit + (s and t), said + s, true + t
    assert found.precision == pytest.approx(hit / said)
    assert found.recall == pytest.approx(hit / true)
    assert found.f1 == pytest.approx(2 * hit / (said + true))


@pytest.mark.parametrize("few", [1, 2, 3, 6])
def test_the_best_list_is_the_best_of_all_lists(few):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        word = torch.randint(0, 6, (300,), generator=generator)
        fires = torch.rand(300, generator=generator) < torch.rand(6, generator=generator)[word]
        lists = chain.from_iterable(combinations(range(6), n) for n in range(1, few + 1))
        best = max(readable.f1(torch.isin(word, torch.tensor(listed)), fires) for listed in lists)
        listed = readable.best_words(word, fires, 6, few)
        assert len(listed) <= few
        assert readable.f1(torch.isin(word, torch.tensor(listed)), fires) == pytest.approx(best)


def test_position_zero_never_counts(text, tokens, half):
    fires = tokens == 1
    fires[:, 0] = True
    assert readable.fit(text, fires, half).f1 == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        (" 12", "number"),
        (".", "end of a sentence"),
        ("\n\n", "line break"),
        (" John", "first name"),
        (" John", "capitalised word"),
        ("ing", "middle or end of a word"),
        (" THE", "article or the like"),
        ("é", "not ASCII"),
    ],
)
def test_classes_say_what_they_say(word, name):
    assert readable.CLASSES[name](word)
    assert not readable.CLASSES[name](" §") or name == "not ASCII"


def test_a_latent_that_cannot_be_scored_is_named(text, tokens, half):
    with pytest.raises(MetricError, match="half"):
        readable.fit(text, (tokens == 1) & half[:, None], half)
    with pytest.raises(MetricError, match="shape"):
        readable.fit(text, tokens[:3] == 1, half)
