"""Cards: what a card shows is what the codes hold, and nothing that a model wrote becomes markup."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from markup import Structure

from labbook.show import cards
from labcode.errors import MetricError, ReportError
from labcode.latents import Codes

EVIL = "<script>alert(1)</script>"


def made(latent=3, words=(" John",), **more):
    snippet = cards.Snippet((" a", words[0], "\n"), (0.0, 1.0, 0.3), 1, 7.5)
    usual = {"density": 0.0125, "peak": 7.5, "counts": (9, 0, 3), "words": tuple(words), "f1": 0.81}
    usual |= {"top": (snippet,), "lower": (("50% quantile", (snippet,)),), "neighbours": ((5, 0.4),)}
    usual |= {"promoted": ((words[0], 0.5),), "suppressed": ((words[0], -0.5),), "rule": f"the token is {words[0]!r}"}
    return cards.Card(latent, **usual | more)


def test_text_that_a_model_wrote_is_escaped_everywhere():
    card = made(words=(EVIL, '"><img src=x onerror=alert(1)>'))
    codes = torch.zeros(2, 8)
    codes[1, 3] = 2.0
    for page in (cards.browser([card]).html, cards.prompt([EVIL, EVIL], {1: EVIL}, codes, [card]).html):
        found = Structure(page)
        assert not {"script", "img", "style", "iframe"} & set(found.tags)
        assert not [name for some in found.found.values() for one in some for name in one if name.startswith("on")]
        assert EVIL in found.text


def test_the_index_is_a_table_with_an_anchor_for_each_card():
    page = Structure(cards.browser([made(3), made(5), made(8)]).html)
    assert [one["id"] for one in page.found["details"]] == ["latent-3", "latent-5", "latent-8"]
    links = {one["href"] for one in page.found["a"]}
    assert links == {"#latent-3", "#latent-5", "#latent-8"}, "no link leads to a card that is not there, or outside"
    assert "F1 0.81" in page.text
    assert ["open" in one for one in page.found["details"]] == [True, False, False]
    assert [name in page.text for name in ("previous: 3", "next: 5", "previous: 8")] == [True, True, False]


@pytest.mark.parametrize("peak", [1.9999999999999996e-07, 0.2, 7.5, 1999.9999999999998])
def test_any_peak_has_three_to_five_ticks(peak):
    ticks = cards._ticks(peak)
    assert 3 <= len(ticks) <= 5
    assert (ticks[0], ticks[-1]) == (0, pytest.approx(peak, rel=0.5))


def test_strength_is_in_the_mark_and_in_words():
    page = cards.browser([made()]).html
    assert '<mark class="lab-a4" title="100% of the largest value"><strong> John</strong></mark>' in page
    assert '<mark class="lab-a2" title="30% of the largest value">↵</mark>' in page
    assert "<td>7.5</td>" in page
    assert 'role="img" aria-label="Histogram' in page


@pytest.mark.parametrize(
    ("peak", "counts", "ticks"),
    [
        (7.5, (9, 0, 3), ["0", "2", "4", "6", "1", "9"]),
        (0.4, (12000, 40), ["0", "0.2", "0.4", "1", "10", "100", "1k", "10k"]),
        (41.0, (1, 0), ["0", "20", "40", "1"]),
    ],
)
def test_the_axes_of_the_histogram_have_values(peak, counts, ticks):
    page = cards.browser([made(peak=peak, counts=counts)]).html
    assert re.findall(r"<text[^>]*>([^<]*)</text>", page) == ticks
    for x in re.findall(r'<text x="(\d+)"[^>]*middle', page):
        assert 38 <= int(x) <= 228


def test_no_cards_and_the_same_latent_twice_are_refused():
    for refused in ([], [made(), made()]):
        with pytest.raises(ReportError, match="card"):
            cards.browser(refused)


def test_a_page_of_eighty_cards_is_light():
    token = " antidisestablishment"
    one = cards.Snippet((token,) * 18, (0.5,) * 18, 12, 1.0)
    many = [made(i, words=(token,) * 4, top=(one,) * 3, lower=(("q", (one,) * 6),)) for i in range(80)]
    assert len(cards.browser(many).html.encode()) < 1_500_000


@pytest.fixture(scope="module")
def planted():
    """Random codes of 20 contexts of 16 tokens, three latents at each token but the first."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 400, (20, 16), generator=generator)
    index = torch.stack([torch.randperm(40, generator=generator)[:3] for _ in range(320)]).view(20, 16, 3)
    values = torch.rand(20, 16, 3, generator=generator) + 0.1
    values[:, 0] = 0
    return Codes(tokens, values, index.to(torch.int32), 40)


def test_the_top_contexts_are_those_of_a_plain_search(planted):
    acts = planted.of(7)
    slow = sorted(
        ((max(row.tolist()), context) for context, row in enumerate(acts) if row.max() > 0), key=lambda pair: -pair[0]
    )
    found = cards.best_of_each_context(acts, 5)
    assert [context for context, _ in found] == [context for _, context in slow[:5]]
    assert [float(acts[place]) for place in found] == pytest.approx([value for value, _ in slow[:5]])


def test_lower_contexts_are_near_their_quantile(planted):
    acts = planted.of(7)
    values = acts[acts > 0]
    for quantile in (0.25, 0.5, 0.75):
        target = float(values.quantile(quantile))
        found = cards.around(acts, quantile, 2)
        assert len({context for context, _ in found}) == 2
        nearest = float((values - target).abs().min())
        assert abs(float(acts[found[0]]) - target) == pytest.approx(nearest)


def test_a_card_of_a_real_model(smollm2):
    tokenizer = smollm2.tokenizer
    text = f"When John and Mary went to the store, {EVIL} John gave a drink to Mary."
    row = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    tokens = torch.tensor([row, row[:1] + row[:0:-1]])
    generator = torch.Generator().manual_seed(6)
    directions = torch.nn.functional.normalize(torch.randn(12, smollm2.cfg.d_model, generator=generator), dim=-1)
    sae = SimpleNamespace(cfg=SimpleNamespace(d_sae=12, k=2), W_dec=directions)
    values = torch.zeros(*tokens.shape, 2)
    script = next(i for i, token in enumerate(row) if "script" in tokenizer.decode([token]))
    values[0, script, 0], values[1, 2, 0] = 4.0, 1.0
    codes = Codes(tokens, values, torch.full((*tokens.shape, 2), 9, dtype=torch.int32), 12)
    used = torch.zeros(smollm2.cfg.d_vocab, dtype=torch.bool)
    used[tokens.unique()] = True
    card = cards.card(smollm2, sae, codes, 9, used)
    assert card.peak == 4.0
    assert card.density == pytest.approx(2 / tokens[:, 1:].numel())
    assert sum(card.counts) == 2
    assert {word for word, _ in (*card.promoted, *card.suppressed)} <= {tokenizer.decode([i]) for i in tokens.unique()}
    assert all(one.strength[one.at] == pytest.approx(one.value / 4, abs=1e-3) for one in card.top)
    assert card.top[0].strength[card.top[0].tokens.index(tokenizer.decode([row[script]]))] == 1
    assert [value for _, value in card.promoted] == sorted((v for _, v in card.promoted), reverse=True)
    found = Structure(cards.browser([card]).html)
    assert "script" not in found.tags
    assert "<script>" in found.text
    shown = cards.contexts(smollm2, codes, 9, [(0, script)], before=2, after=0)
    assert "script" not in Structure(shown.html).found
    assert shown.words.startswith("  4.0  ")
    with pytest.raises(MetricError, match="latent 1 does not fire"):
        cards.card(smollm2, sae, codes, 1, used)


def test_the_prompt_view_names_the_strongest_latents_of_each_token():
    codes = torch.zeros(3, 10)
    codes[1, [2, 4, 6, 8]] = torch.tensor([1.0, 4.0, 3.0, 2.0])
    view = cards.prompt(["<s>", " John", " gave"], {1: "S2"}, codes, [made(4)])
    page = Structure(view.html)
    assert page.text.index("4") < page.text.index("6") < page.text.index("8")
    assert [one["href"] for one in page.found["a"]] == ["#latent-4"], "latent 6 has no card"
    assert "S2" in page.text
    assert "' gave': none" in view.words
