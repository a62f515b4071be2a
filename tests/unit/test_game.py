"""The detection game: what is asked is balanced and drawn as it says, the answers are those of the codes."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from markup import Structure

from labbook.show import game
from labcode.errors import MetricError, ReportError
from labcode.latents import Codes

EVIL = '<script>alert("1")</script>'
COARSE = " shit"
ASSETS = Path(__file__).parents[2] / "book" / "_ext" / "assets"
N, LATENTS = 40, 6


def decode(ids):
    words = {7: EVIL, 8: COARSE, 9: "\n"}
    return words.get(ids[0], f" w{ids[0]}")


MODEL = SimpleNamespace(tokenizer=SimpleNamespace(decode=decode))


def text(seed: int, contexts: int = N) -> Codes:
    """Latent i fires on tokens 10 i to 10 i + 9 of three in four contexts; latent 5 on one token of the whole text."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 10 * (LATENTS - 1), (contexts, 30), generator=generator)
    index = torch.randint(0, LATENTS - 1, (contexts, 30, 2), generator=generator)
    index[:, :, 0] = tokens // 10
    values = torch.rand(contexts, 30, 2, generator=generator) + 0.5
    values[:, :, 1] = 0.0
    values[::4, :, 0], index[::4, :, 0], values[::4, :, 1] = 0.0, 0, 0.3
    values[:, 0] = 0.0
    index[3, 4, 0] = 5
    return Codes(tokens, values, index.to(torch.int32), LATENTS)


@pytest.fixture(scope="module")
def chosen():
    codes = text(0)
    codes.values[::4] = 0.0  # so that the dashboards show a latent's own tokens only
    return codes


@pytest.fixture(scope="module")
def unseen():
    return text(1)


def says(codes: Codes, latent: int) -> torch.Tensor:
    return codes.tokens // 10 == latent  # right but in each fourth context


@pytest.fixture(scope="module")
def played(chosen, unseen):
    rules = {i: f"the token is one of {EVIL!r}\n {i}" for i in range(4)}
    drawn = game.draws(chosen, unseen, {i: says(unseen, i) for i in (2, 0, 3)})
    return game.rounds(MODEL, chosen, unseen, drawn, rules)


def test_what_is_asked_is_balanced_and_answered_by_the_codes(chosen, unseen):
    for latent in range(4):
        drawn = game.questions(chosen, unseen, latent, says(unseen, latent))
        acts = unseen.of(latent)
        assert drawn.fires == tuple(bool(acts[place] > 0) for place in drawn.places)
        assert sum(drawn.fires) == game.FIRING == len(drawn.places) / 2
        assert drawn.share == pytest.approx([float(acts[place] / acts.max()) for place in drawn.places], abs=1e-3)
        assert len({context for context, _ in drawn.places}) == len(drawn.places), "no context twice"
        assert all((unseen.values[place] > 0).any() for place in drawn.places), "a token without a code is no negative"
        assert drawn.said == tuple(bool(says(unseen, latent)[place]) for place in drawn.places)
        assert sum(drawn.right) == sum(a == b for a, b in zip(drawn.fires, drawn.said, strict=True))


def test_near_misses_are_tokens_of_the_rule_or_of_the_dashboard_where_the_latent_is_off(chosen, unseen):
    drawn = game.questions(chosen, unseen, 1, says(unseen, 1))
    near = [place for place, one in zip(drawn.places, drawn.near, strict=True) if one]
    assert len(near) == game.NEAR
    assert all(unseen.of(1)[place] == 0 and says(unseen, 1)[place] for place in near)
    shown = {int(chosen.tokens[place]) for place in game.dashboard(chosen, 1)}
    nothing = torch.zeros(unseen.tokens.shape, dtype=torch.bool)
    drawn = game.questions(chosen, unseen, 1, nothing)
    near = [place for place, one in zip(drawn.places, drawn.near, strict=True) if one]
    assert near
    assert {int(unseen.tokens[place]) for place in near} <= shown


def test_where_no_near_miss_exists_other_tokens_take_its_place(chosen):
    never = text(1)
    never.values[::4] = 0.0  # where the latent could be off at its own tokens nothing has a code
    drawn = game.questions(chosen, never, 1, says(never, 1))
    assert not any(drawn.near)
    assert len(drawn.places) - sum(drawn.fires) == game.FIRING
    assert all(drawn.right), "and then this rule is right everywhere"


def test_firing_of_all_strengths_is_asked_about(chosen, unseen):
    shares = [
        share
        for seed in range(40)
        for share in game.questions(chosen, unseen, 2, says(unseen, 2), seed).share
        if share > 0
    ]
    truth = unseen.of(2)[unseen.of(2) > 0]
    assert sum(shares) / len(shares) == pytest.approx(float((truth / truth.max()).mean()), abs=0.05)


def test_the_same_seed_draws_the_same_contexts(chosen, unseen):
    one, same, other = (game.questions(chosen, unseen, 2, says(unseen, 2), seed) for seed in (0, 0, 1))
    assert one == same
    assert one.places != other.places
    before = torch.random.get_rng_state()
    game.questions(chosen, unseen, 2, says(unseen, 2))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_order_tells_nothing(chosen, unseen):
    first = [game.questions(chosen, unseen, 2, says(unseen, 2), seed).fires[0] for seed in range(60)]
    assert 15 < sum(first) < 45


def test_a_latent_that_fires_too_seldom_is_refused(chosen, unseen):
    with pytest.raises(MetricError, match="latent 5 fires in too few of the 40 unseen contexts: the game needs 5"):
        game.questions(chosen, unseen, 5, says(unseen, 5))
    silent = Codes(chosen.tokens, chosen.values * 0, chosen.index, LATENTS)
    with pytest.raises(MetricError, match="latent 1 does not fire on the text of the dashboards"):
        game.questions(silent, unseen, 1, says(unseen, 1))
    always = text(1, 8)
    with pytest.raises(MetricError, match="latent 1 is off in too few"):
        game.questions(chosen, always, 1, says(always, 1))
    with pytest.raises(MetricError, match="a rule of shape"):
        game.questions(chosen, unseen, 1, says(unseen, 1)[:3])


def test_latents_that_fire_too_seldom_are_left_out_of_a_count(chosen, unseen):
    drawn = game.draws(chosen, unseen, {i: says(unseen, i) for i in (5, 1, 3)})
    assert [one.latent for one in drawn] == [1, 3]
    assert drawn[0] == game.questions(chosen, unseen, 1, says(unseen, 1))
    with pytest.raises(MetricError, match="a rule of shape"):
        game.draws(chosen, unseen, {1: says(unseen, 1)[:3]})


def test_the_same_latent_twice_is_refused_and_no_latents_are_a_sentence(played):
    with pytest.raises(ReportError, match="only once: 2, 2"):
        game.page([played[0], played[0]])
    assert Structure(game.page([]).html).text == game.page([]).words == game.NOBODY
    assert (game.by_rule([]).mean, game.by_rule([]).n) == (0.5, 0)


def test_the_score_of_the_rules_has_wilsons_interval(played):
    score = game.by_rule([one.questions for one in played])
    right = sum(sum(one.questions.right) for one in played)
    assert (score.mean, score.n) == (right / 30, 30)
    assert score.low < score.mean < score.high


def test_what_rules_say_is_counted_by_kind_of_context():
    def made(latent, fires, near, said):
        return game.Questions(latent, ((0, 1),) * 4, fires, (0.5,) * 4, near, said)

    two = (True, True, False, False)
    drawn = [made(i, two, (False, False, True, False), (True, False, True, False)) for i in range(10)]
    found = game.told(drawn)
    assert [one.mean for one in (found.right, found.firing, found.near, found.other)] == [0.5, 0.5, 1.0, 0.0]
    assert found.silence.mean == 0.0, "one missed, one invented"
    silent = game.told([made(i, two, (False,) * 4, (False,) * 4) for i in range(10)])
    assert (silent.right.mean, silent.firing.mean, silent.silence.mean) == (0.5, 0.0, 2.0)
    assert (silent.near.low, silent.near.high, silent.near.n) == (0.0, 1.0, 0), "nothing is known of near misses"
    assert (game.told([]).right.n, game.told([]).silence.mean) == (0, 0.0)


def test_the_page_has_the_answers_in_closed_blocks_and_for_the_script(played):
    page = Structure(game.page(played).html)
    assert [one["id"] for one in page.found["details"]] == ["answers-2", "answers-0", "answers-3"]
    assert all("open" not in one for one in page.found["details"])
    assert {one["href"] for one in page.found["a"]} == {"#answers-2", "#answers-0", "#answers-3"}
    rounds = page.found["section"]
    for one, section in zip(played, rounds, strict=True):
        key = base64.b64decode(section["data-key"])
        assert tuple(bool(bit & 1) for bit in key) == one.questions.fires
        assert tuple(bool(bit & 2) for bit in key) == one.questions.said
        assert section["data-round"].startswith(f"{one.questions.latent}-")
    assert len({section["data-round"] for section in rounds}) == 3
    lines = game.page(played).html.count("<li>It fires"), game.page(played).html.count("<li>It is off")
    assert lines == (15, 15)
    assert page.tags.count("mark") >= 30
    assert "button" not in page.tags
    assert "input" not in page.tags, "controls are the script's"


def test_another_draw_is_another_round(chosen, unseen, played):
    drawn = game.draws(chosen, unseen, {2: says(unseen, 2)}, seed=1)
    again = game.rounds(MODEL, chosen, unseen, drawn, {2: "x"})
    ids = [Structure(game.page(some).html).found["section"][0]["data-round"] for some in (played, again)]
    assert ids[0] != ids[1]


def test_text_that_a_model_wrote_is_escaped_and_masked(played):
    markup = game.page(played).html
    page = Structure(markup)
    assert not {"script", "img", "style"} & set(page.tags)
    assert EVIL in page.text
    assert "shit" not in markup
    assert "s***" in markup
    assert "\n" not in markup, "a token that is a line break is shown as a sign"


def test_the_frame_stands_around_the_word_and_not_around_its_space():
    assert game._marked((" a", " b", " c"), 1) == 'a <mark class="lab-here">b</mark> c'
    assert game._marked((" a", " "), 1) == 'a<mark class="lab-here"> </mark>'
    assert game._marked((" a",), 0) == '<mark class="lab-here">a</mark>'


def test_the_game_is_small(chosen, unseen):
    generator = torch.Generator().manual_seed(2)
    rare = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda _: f" {letters(generator)}"))
    some = game.draws(chosen, unseen, {i: says(unseen, i) for i in range(4)})
    four = game.rounds(rare, chosen, unseen, some, dict.fromkeys(range(4), "the token is one of ten"))
    markup = game.page(four).html.encode()
    code = b"".join((ASSETS / name).read_bytes() for name in ("labgame.js", "labgame.css"))
    assert 2 * len(gzip.compress(markup)) + len(gzip.compress(code)) < 25_000


def letters(generator: torch.Generator) -> str:
    """Four letters, anew each time: text that no program can pack."""
    return "".join(map(chr, torch.randint(97, 123, (4,), generator=generator).tolist()))
