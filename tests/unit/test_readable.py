"""The count of readable latents: rules that were planted are found, chance is not, and only unseen text scores."""

from __future__ import annotations

from itertools import chain, combinations
from types import SimpleNamespace

import pytest
import torch

from labcode import metrics, readable, sealed
from labcode.errors import EvidenceError, MetricError
from labcode.latents import Codes, repeated
from labcode.sae import Activations, shipped

WORDS = ["<s>", " John", " Mary", " 7", ",", " the", "ing", "\n", " gone", " Store", " 12", ".", " marry", "Married"]
WORDS += [" marrying", " wife"]
ARE = {word: i for i, word in enumerate(WORDS)}


def written(seed):
    drawn = torch.randint(1, len(WORDS), (60, 30), generator=torch.Generator().manual_seed(seed))
    drawn[:, 0] = 0
    return drawn


@pytest.fixture(scope="module")
def tokens():
    return written(0)


@pytest.fixture(scope="module")
def text(tokens):
    return readable.Text(tokens, WORDS.__getitem__)


@pytest.fixture(scope="module")
def new():
    return written(1)


@pytest.fixture(scope="module")
def unseen(new):
    return readable.Text(new, WORDS.__getitem__)


def before(tokens):
    return torch.cat([tokens[:, :1], tokens[:, :-1]], dim=1)


def among(tokens, *words):
    return torch.isin(tokens, torch.tensor([ARE[word] for word in words]))


@pytest.mark.parametrize(
    ("kind", "back", "plant"),
    [
        ("token", False, lambda t: among(t, " John", " the")),
        ("token", True, lambda t: among(before(t), " gone")),
        ("class", False, lambda t: among(t, " 7", " 12")),
        ("repeated token", False, repeated),
        ("position", False, lambda t: torch.arange(30).expand_as(t) <= 4),
    ],
)
def test_a_planted_rule_is_found(text, tokens, unseen, new, kind, back, plant):
    rule = readable.fit(text, plant(tokens))
    found = readable.score(rule, unseen, plant(new))
    assert found.f1 == pytest.approx(1.0)
    assert kind == rule.kind or kind == "class", "a class of two tokens is a list of two tokens as well"
    assert rule.back == back
    true = plant(new).clone()
    true[:, 0] = False
    assert torch.equal(found.holds, true)


def test_a_family_is_one_entry_of_a_list(text, tokens, unseen, new):
    words = (" marry", "Married", " marrying")
    rule = readable.fit(text, among(tokens, *words), few=1)
    assert (rule.kind, len(rule.listed)) == ("word family", 1)
    assert set(rule.forms[0]) == {"marry", "married", "marrying"}
    assert readable.score(rule, unseen, among(new, *words)).f1 == pytest.approx(1.0)
    spelled = readable.fit(text, among(tokens, *words), few=1, kinds=("token",))
    assert spelled.fitted < 0.6, "one token of three"


def test_a_hand_made_text_has_the_f1_that_was_counted():
    texts = ["<s>", " wife", "Married", " of", " marry", " marries", " John"]
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 5, 2, 3, 6, 1]])
    text = readable.Text(tokens, texts.__getitem__)
    rule = readable.Rule("word family", ("marri",), forms=(("marry", "married"),))
    fires = among_ids(tokens, 1, 4, 5)  # " wife" twice, " marry" once, " marries" twice
    # The rule names Married and marry and marries: 3 + 2 tokens. Right are marry and marries: 3. It fires on 5.
    found = readable.score(rule, text, fires)
    assert (found.hit.tolist(), found.said.tolist(), found.true.tolist()) == ([2, 1], [3, 2], [3, 2])
    assert found.f1 == pytest.approx(2 * 3 / (5 + 5))
    assert (found.precision, found.recall) == pytest.approx((3 / 5, 3 / 5))
    assert str(rule) == "the token is a form of marry/married"
    back = readable.score(readable.Rule("word family", ("marri",), back=True), text, fires)
    # After Married (twice), marry, marries come " of", " of", " marries", "Married": the latent fires on one of four.
    assert (float(back.hit.sum()), float(back.said.sum())) == (1, 4)


def among_ids(tokens, *ids):
    return torch.isin(tokens, torch.tensor(ids))


@pytest.mark.parametrize(
    ("one", "other"),
    [(" marry", "Married"), (" marry", " marrying"), (" number", "numbers"), (" The", "the"), (" is", "Is")],
)
def test_forms_of_a_word_are_a_family(one, other):
    assert readable.family(one) == readable.family(other)


def test_what_is_no_form_is_no_family():
    assert len({readable.family(word) for word in (" marry", " wife", "\n", ".", " 7", " 77", " ")}) == 7


def test_a_list_is_named_with_its_words(text, tokens):
    rule = str(readable.fit(text, among(tokens, " John", " the")))
    assert rule in ("the token is one of ' John' ' the'", "the token is one of ' the' ' John'")


def test_noise_has_no_rule_and_fitting_flatters(text, unseen):
    noise = torch.rand(20, 2, 60, 30, generator=torch.Generator().manual_seed(1)) < 0.02
    found = [readable.score(readable.fit(text, a, few=3), unseen, b) for a, b in noise]
    assert max(one.f1 for one in found) < 0.3
    assert sum(one.fitted for one in found) > sum(one.f1 for one in found)


def test_the_score_comes_from_the_other_text(text, tokens, unseen, new):
    found = readable.score(readable.fit(text, among(tokens, " John")), unseen, among(new, " Mary"))
    assert found.fitted == pytest.approx(1.0)
    assert found.f1 == 0


def test_precision_and_recall_are_those_of_the_plain_loop(text, tokens, unseen, new):
    generator = torch.Generator().manual_seed(3)
    rule = readable.fit(text, among(tokens, " John", ","), few=2)
    fires = among(new, " John", ",") & (torch.rand(60, 30, generator=generator) < 0.6)
    found = readable.score(rule, unseen, fires)
    hit = said = true = 0
    for context in range(60):
        for position in range(1, 30):
            s, t = bool(found.holds[context, position]), bool(fires[context, position])
            hit, said, true = hit + (s and t), said + s, true + t
    assert found.precision == pytest.approx(hit / said)
    assert found.recall == pytest.approx(hit / true)
    assert found.f1 == pytest.approx(2 * hit / (said + true))
    assert float(readable.Scores.of([found]).f1[0]) == pytest.approx(found.f1)


@pytest.mark.parametrize("few", [1, 2, 3, 6])
def test_the_best_list_is_the_best_of_all_lists(few):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        word = torch.randint(0, 6, (300,), generator=generator)
        fires = torch.rand(300, generator=generator) < torch.rand(6, generator=generator)[word]
        lists = chain.from_iterable(combinations(range(6), n) for n in range(1, few + 1))
        best = max(readable.f1(torch.isin(word, torch.tensor(listed)), fires) for listed in lists)
        count, hit = torch.bincount(word, minlength=6).double(), torch.bincount(word[fires], minlength=6).double()
        listed, ratio = readable.best_list(count, hit, float(fires.sum()), few)
        assert len(listed) <= few
        assert readable.f1(torch.isin(word, torch.tensor(listed)), fires) == pytest.approx(best)
        assert ratio == pytest.approx(best)


def test_position_zero_never_counts(text, tokens, unseen, new):
    fires, again = among(tokens, " John"), among(new, " John")
    fires[:, 0] = again[:, 0] = True
    assert readable.score(readable.fit(text, fires), unseen, again).f1 == pytest.approx(1.0)


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


def test_a_latent_that_cannot_be_scored_is_named(text, tokens):
    with pytest.raises(MetricError, match="does not fire"):
        readable.fit(text, torch.zeros_like(tokens, dtype=torch.bool))
    with pytest.raises(MetricError, match="shape"):
        readable.fit(text, tokens[:3] == 1)
    with pytest.raises(MetricError, match="no such rule"):
        readable.Rule("class", ("verb",)).holds(text)


def drawn_scores(contexts, rules, seed, chance):
    g = torch.Generator().manual_seed(seed)
    true = 1 + torch.randint(5, (rules, contexts), generator=g).float()
    return readable.Scores((true * (torch.rand(rules, contexts, generator=g) < chance)).float(), true.clone(), true)


def test_an_interval_is_wider_where_contexts_are_few():
    wide, narrow = (readable.interval(drawn_scores(n, 40, 0, 0.5)) for n in (12, 200))
    assert wide.low < wide.mean < wide.high
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    # Of one rule, only the contexts vary; of all the same rules, too.
    one = drawn_scores(30, 1, 1, 0.5)
    many = readable.Scores(*(x.repeat(50, 1) for x in (one.hit, one.said, one.true)))
    a, b = readable.interval(one), readable.interval(many)
    assert (a.low, a.high) == pytest.approx((b.low, b.high))


def test_a_difference_is_that_of_pairs():
    scores = drawn_scores(40, 30, 2, 0.5)
    same = readable.interval(scores, scores)
    assert (same.mean, same.low, same.high) == pytest.approx((0, 0, 0), abs=1e-6)
    better = readable.Scores(scores.true, scores.said, scores.true)
    gap = readable.interval(better, scores)
    assert gap.mean == pytest.approx(1 - float(scores.f1.mean()))
    assert gap.low > 0
    with pytest.raises(MetricError, match="pairs"):
        readable.interval(scores, scores.kept(torch.arange(30) < 3))
    with pytest.raises(MetricError, match="no scores"):
        readable.interval(scores.kept(torch.zeros(30, dtype=torch.bool)))


@pytest.fixture(scope="module")
def fits(tokens, text):
    """Two latents, one of a family and one for repetitions."""
    family = among(tokens, " marry", "Married", " marrying")
    fires = torch.stack([family, repeated(tokens)], -1)
    fires[:, 0] = False
    codes = Codes(tokens, fires.float() * 2, torch.arange(2).expand(60, 30, 2).to(torch.int32), 2)
    return readable.fit_all(codes, text, [0, 1], [1])


def test_narrower_questions_are_fitted_together(fits):
    assert fits.rules[0].kind in ("word", "word family", "token")
    assert fits.rules[0].fitted == pytest.approx(1)
    assert fits.rules[1].kind == "repeated token"
    assert set(fits.narrow) == set(readable.QUESTIONS)


def test_a_direction_stands_in_for_a_latent(tokens, text):
    family = among(tokens, " marry", "Married", " marrying")
    family[:, 0] = False
    context, position = torch.arange(60).repeat_interleave(29), torch.arange(1, 30).repeat(60)
    x = torch.randn(60 * 29, 4, generator=torch.Generator().manual_seed(5))
    x[:, 2] += 9 * family[:, 1:].flatten()
    acts = Activations(x, context, position, 0, 1.0, 0)
    height = readable.along(torch.eye(4), x, torch.zeros(4))
    assert torch.allclose(height, readable.along(torch.eye(4), 3 * x, torch.zeros(4))), "length does not count"
    cut, rule = readable.stand_in(text, acts, height[:, 2], int(family.sum()))
    value = readable.placed(acts, text.shape, height[:, 2], cut)
    assert int((value > 0).sum()) == int(family.sum())
    assert readable.score(rule, text, value > 0).f1 > 0.9, "this coordinate is the latent"


def test_the_share_that_passes_has_an_interval_too():
    scores = drawn_scores(40, 30, 2, 0.5)
    perfect = readable.Scores(scores.true, scores.true, scores.true)
    all_pass = readable.interval(perfect, passing=True)
    assert (all_pass.low, all_pass.high) == pytest.approx((metrics.share(30, 30).low, 1))
    share = readable.interval(scores, passing=True)
    assert share.mean == pytest.approx(float((scores.f1 >= readable.PASS).float().mean()))


def test_stand_ins_spread_like_the_decoder():
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 1, 1, 1])
    made = readable.stand_ins(torch.randn(20, 4), torch.zeros(4), rows, 400)
    assert all(torch.allclose(of.norm(dim=0), torch.ones(400)) for of in made.values())
    spread = {name: of.abs().mean(1) for name, of in made.items()}
    assert spread["random, spread like latents"][0] > 2 * spread["random, spread like latents"][1]
    assert spread["random direction"][0] < 1.2 * spread["random direction"][1]


def test_a_rule_may_be_kept_from_looking(tokens, text):
    fires = repeated(tokens)
    assert readable.fit(text, fires).kind == "repeated token"
    assert not readable.fit(text, fires, sees="this token").looks_back
    married = among(tokens, " marry")
    assert readable.fit(text, married, sees="before").looks_back
    back = torch.cat([torch.zeros_like(married[:, :1]), married[:, :-1]], dim=1)
    assert readable.fit(text, back, sees="before").fitted > readable.fit(text, back, sees="this token").fitted


def test_what_is_recorded_comes_back(fits, tmp_path, monkeypatch):
    sae = SimpleNamespace(**{name: torch.ones(2) for name in ("W_enc", "b_enc", "W_dec", "b_dec")})
    monkeypatch.setattr(readable, "weights_key", lambda _: "w")
    model = type("Model", (), {"hook_dict": {}, "cfg": SimpleNamespace(d_model=2, d_vocab=2, device="cpu")})()
    path = tmp_path / "r.json"
    sealed.write(path, readable.pack(fits) | {"weights": "w", "sae": readable.sae_key(sae)})
    again = readable.recorded(model, sae, path)
    assert again.recorded
    assert again.rules == fits.rules
    assert [rule.forms for rule in again.rules.values()] == [rule.forms for rule in fits.rules.values()]
    sae.W_dec = torch.zeros(2)
    assert readable.recorded(model, sae, path) is None, "rules of another autoencoder"
    assert readable.recorded(model, sae, tmp_path / "none.json") is None
    path.write_text("{")
    with pytest.raises(EvidenceError, match="restore it"):
        readable.recorded(model, sae, path)


def test_the_recorded_rules_are_of_the_shipped_autoencoder(smollm2):
    path = readable.DATA / readable.RECORD
    fits = readable.recorded(smollm2, shipped(smollm2).sae)
    assert fits is not None, "make them again: python -m labbook.data.make.readability"
    assert path.stat().st_size < 1_000_000
    assert len(fits.sample) == 300
    assert set(fits.sample) <= set(fits.rules)
    assert all(set(fits.sample) == set(fits.narrow[name]) for name in readable.QUESTIONS)
    assert len(fits.shuffled["f1"]["model"]) == len(fits.shuffled["f1"]["shuffled"])


def test_only_latents_that_fire_often_in_both_texts_can_be_tested():
    tokens = torch.zeros(4, 11, dtype=torch.long)
    index = torch.arange(3, dtype=torch.int32).expand(4, 11, 3)
    values = torch.zeros(4, 11, 3)
    values[:, 1:, 0] = 1.0
    values[:2, 1:, 1] = 1.0
    values[0, 1:, 2] = 1.0
    often = Codes(tokens, values, index, 3)
    assert readable.can_be_tested(often, often).tolist() == [True, True, False]
    assert readable.draw(readable.can_be_tested(often, often), 5) in ([0, 1], [1, 0])
