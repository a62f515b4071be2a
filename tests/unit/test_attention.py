"""Attention seen: the numbers are the bridge's own, what is written is worked out by hand, and the markup is sound."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import torch

from labbook.show import attention
from labcode import prompts
from labcode.errors import HeadError
from labcode.plots import AGAINST, POSITION_COLOURS, TOWARDS

SVG = "{http://www.w3.org/2000/svg}"
HEADS = [(2, 1), (0, 0), (1, 1)]
NASTY = "<script>&\"'\n\x00</svg>"


@pytest.fixture
def pop(tiny):
    return prompts.population(tiny, 4, seed=1)


def tree(page):
    """The markup as a tree: it is well-formed XML too."""
    return ET.fromstring(page.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '))


def percent(text):
    return float(re.search(r"([\d.]+)\u00a0%", text)[1]) / 100


@pytest.mark.parametrize("at", ["END", "S2", "S1+1"])
@pytest.mark.parametrize("index", [0, 3])
def test_shares_are_the_bridges_pattern(tiny, pop, at, index):
    query = int(pop.positions[at][index])
    _, cache = tiny.run_with_cache(pop.subset([index]).tokens)
    found = attention.looks(tiny, pop, HEADS, at, index)
    figures = tree(attention.arcs(tiny, pop, HEADS, at, index)).iter("figure")
    for (layer, head), look, figure in zip(HEADS, found, figures, strict=True):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head, query, : query + 1]
        torch.testing.assert_close(look.share, pattern, atol=1e-5, rtol=0)
        titles = sorted((node.text for node in figure.iter(f"{SVG}title")), key=percent)
        assert [percent(one) for one in titles] == pytest.approx(sorted(pattern.tolist()), abs=6e-4)
        strongest = attention.sentence(pop, index)[int(pattern.argmax())]
        assert titles[-1].startswith(f"{strongest.words}: ")


@pytest.mark.parametrize("at", ["END", "S2"])
def test_what_is_written_is_z_through_w_o_and_the_unembedding_at_this_runs_scale(tiny, pop, at):
    index, (layer, head) = 1, (1, 1)
    query = int(pop.positions[at][index])
    _, cache = tiny.run_with_cache(pop.subset([index]).tokens)
    z = cache[f"blocks.{layer}.attn.hook_z"][0, query, head]
    logits = z @ tiny.blocks[layer].attn.W_O[head] @ tiny.W_U / cache["ln_final.hook_scale"][0, query]
    mean = logits[[prompts.token_id(tiny, " " + name) for name in prompts.single_token_names(tiny)[0]]].mean()
    look = attention.looks(tiny, pop, [(layer, head)], at, index)[0]
    expected = [float(logits[ids[index]] - mean) for ids in (pop.io_ids, pop.s_ids)]
    assert look.raised == pytest.approx(expected, abs=1e-4)
    assert min(map(abs, expected)) > 1e-3, "or zeros would pass"
    if at == "END":
        order = logits.argsort()
        assert look.more == tuple(prompts.quoted(tiny, i) for i in order[-3:].flip(0))
        assert look.less == tuple(prompts.quoted(tiny, i) for i in order[:3])
    else:
        assert look.more == look.less == ()


def test_weighted_shares_are_attention_times_the_norm_of_what_is_moved(tiny, pop):
    layer, head = 1, 1
    _, cache = tiny.run_with_cache(pop.subset([0]).tokens)
    value = cache[f"blocks.{layer}.attn.hook_v"][0]
    value = value[:, head * value.shape[1] // tiny.cfg.n_heads] @ tiny.blocks[layer].attn.W_O[head]
    expected = cache[f"blocks.{layer}.attn.hook_pattern"][0, head, -1] * value.norm(dim=-1)
    expected = expected / expected.sum()
    plain, weighted = (attention.looks(tiny, pop, [(layer, head)], weighted=on)[0].share for on in (False, True))
    torch.testing.assert_close(weighted, expected, atol=1e-5, rtol=0)
    assert (plain - weighted).abs().max() > 0.01
    assert "norm of what is moved" in attention.arcs(tiny, pop, [(layer, head)], weighted=True)
    assert "norm of what is moved" not in attention.arcs(tiny, pop, [(layer, head)])


def test_values_belong_to_the_head_where_heads_share_them(tiny_llama):
    """Heads 0 and 1 of a group move the same values through their own W_O; the next group has values of its own."""
    model = tiny_llama.bridge
    group = model.cfg.n_heads // model.cfg.n_key_value_heads
    assert 1 < group < model.cfg.n_heads
    pop = prompts.canonical(model)
    _, cache = model.run_with_cache(pop.tokens)
    for head in range(model.cfg.n_heads):
        # z is the pattern's mix of the values: that settles which values the head has.
        pattern, values = (
            cache["blocks.2.attn.hook_pattern"][0, head],
            cache["blocks.2.attn.hook_v"][0, :, head // group],
        )
        torch.testing.assert_close(pattern @ values, cache["blocks.2.attn.hook_z"][0, :, head], atol=1e-5, rtol=1e-4)
        out = model.blocks[2].attn.W_O[head]
        moved = pattern[-1] * (values @ out).norm(dim=-1)
        share = attention.looks(model, pop, [(2, head)], weighted=True)[0].share
        torch.testing.assert_close(share, moved / moved.sum(), atol=1e-5, rtol=0)


def test_other_places_of_some_heads(tiny, pop):
    """Each head from its own place, as if it had been asked alone."""
    found = attention.looks(tiny, pop, HEADS, "END", 2, others={(0, 0): "S2", (1, 1): "S1+1"})
    assert [look.place for look in found] == ["END", "S2", "S1+1"]
    for look in found:
        alone = attention.looks(tiny, pop, [look.head], look.place, 2)[0]
        torch.testing.assert_close(look.share, alone.share, atol=1e-6, rtol=0)
        assert look.raised == pytest.approx(alone.raised, abs=1e-5)


def test_the_toy_as_worked_out_on_paper(toy):
    """The name mover adds 6 to the difference, the negative one takes 2, and both look at IO alone."""
    pop = prompts.canonical(toy)
    mover, negative = attention.looks(toy, pop, [(2, 0), (2, 1)])
    assert mover.raised[0] - mover.raised[1] == pytest.approx(6, abs=1e-3)
    assert negative.raised[0] - negative.raised[1] == pytest.approx(-2, abs=1e-3)
    assert mover.more[0] == "“ Mary”"
    assert negative.less[0] == "“ Mary”"
    finder = attention.looks(toy, pop, [(1, 0)])[0]
    assert (finder.more, finder.less) == ((), ()), "it writes nothing that the logits read"
    page = attention.arcs(toy, pop, [(2, 0), (2, 1)])
    figures = list(tree(page).iter("figure"))
    assert "from END, 100\u00a0% to “Mary” (IO)" in "".join(figures[0].find("figcaption").itertext())
    bars = [
        [rect.get("fill") for rect in figure.find("div[@class='lab-writes']").iter(f"{SVG}rect")] for figure in figures
    ]
    assert bars[0][0] == TOWARDS
    assert bars[1][0] == AGAINST
    assert {path.get("stroke") for path in figures[0].iter(f"{SVG}path")} >= {POSITION_COLOURS["IO"]}


def test_bars_say_which_way_and_for_whom(tiny, pop):
    """Raising IO and lowering S are towards the right answer; words, sign, side and colour agree."""
    found = attention.looks(tiny, pop, [(layer, head) for layer in range(3) for head in range(2)])
    signs = set()
    for look, figure in zip(
        found, tree(attention.arcs(tiny, pop, [one.head for one in found])).iter("figure"), strict=True
    ):
        for value, helps, row in zip(look.raised, (1, -1), figure.iter("li"), strict=True):
            bar = next(row.iter(f"{SVG}rect"))
            signs.add((value > 0, helps))
            assert row.find("span").text.startswith("raises " if value > 0 else "lowers ")
            assert row.find("b").text == f"{value:+.2f}".replace("-", "−")
            assert bar.get("fill") == (TOWARDS if value * helps > 0 else AGAINST)
            assert (float(bar.get("x")) == 60) is (value > 0)
    assert len(signs) == 4, "or a part of this would not have been tried"


def test_cells_of_the_grid_are_the_pattern(tiny, pop):
    _, cache = tiny.run_with_cache(pop.subset([1]).tokens)
    figures = tree(attention.grid(tiny, pop, HEADS, index=1)).iter("figure")
    tokens = attention.sentence(pop, 1)
    for (layer, head), figure in zip(HEADS, figures, strict=True):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head]
        titles = [node.text for node in figure.iter(f"{SVG}title")]
        cells = [(query, key) for query in range(len(tokens)) for key in range(query + 1)]
        assert titles == [
            f"{tokens[query].words} looks at {tokens[key].words}: {float(pattern[query, key]):.2f}"
            for query, key in cells
        ]


def test_words_of_the_sentence(tiny):
    pop = prompts.canonical(tiny)
    words = [token.words for token in attention.sentence(pop)]
    assert words[0] == "the start token"
    assert [words[int(pop.positions[name][0])] for name in prompts.POSITIONS] == [
        "“Mary” (IO)",
        "“John” (S1)",
        "“and” (S1+1)",
        "“John” (S2)",
        "“to” (END)",
    ]
    assert words[1] == "“When” (1)"


@pytest.mark.parametrize("show", [attention.arcs, attention.grid])
def test_tokens_and_names_are_escaped(tiny, pop, show):
    strings = (pop.str_tokens[0][0], *[NASTY] * (len(pop.str_tokens[0]) - 1))
    nasty = replace(
        pop,
        str_tokens=(strings, *pop.str_tokens[1:]),
        prompts=(replace(pop.prompts[0], io="<b>&", s='"<i>'), *pop.prompts[1:]),
    )
    page = show(tiny, nasty, HEADS)
    root = tree(page)
    tags = {node.tag.removeprefix(SVG) for node in root.iter()}
    assert tags == {node.tag.removeprefix(SVG) for node in tree(show(tiny, pop, HEADS)).iter()}
    assert "\x00" not in page
    assert any("<script>&\"'\\n⟨0" in (node.text or "") for node in root.iter(f"{SVG}text"))


def test_a_piece_of_a_letter_is_called_a_byte(tiny, pop):
    strings = tuple(" \ufffd" for _ in pop.str_tokens[0])
    shown = attention.sentence(replace(pop, str_tokens=(strings, *pop.str_tokens[1:])))
    assert shown[3].text == "⟨byte⟩"


def test_long_and_empty_tokens_keep_a_place(tiny, pop):
    strings = tuple("x" * 90 if i == 2 else " " for i in range(len(pop.str_tokens[0])))
    shown = [token.text for token in attention.sentence(replace(pop, str_tokens=(strings, *pop.str_tokens[1:])))]
    assert shown[2] == "x" * 15 + "…"
    assert shown[3] == "␣"


@pytest.mark.parametrize("show", [attention.arcs, attention.grid])
def test_every_drawing_says_what_it_shows(tiny, pop, show):
    root = tree(show(tiny, pop, HEADS))
    figures = list(root.iter("figure"))
    assert len(figures) == 3
    for (layer, head), figure in zip(HEADS, figures, strict=True):
        assert figure.find("figcaption/b").text == f"{layer}.{head}"
        (drawing,) = (svg for svg in figure.iter(f"{SVG}svg") if svg.get("role") == "img")
        assert f"ead {layer}.{head}" in drawing.get("aria-label")
        assert "% to " in drawing.get("aria-label").replace("\u00a0", " ")
        box = next(node for node in figure.iter("div") if drawing in list(node))
        assert box.get("tabindex") == "0", "it scrolls, so the keyboard has to reach it"
        assert box.get("role") == "group"
        assert box.get("aria-label")
    for drawing in root.iter(f"{SVG}svg"):
        assert drawing.get("role") == "img" or drawing.get("aria-hidden") == "true"


@pytest.mark.parametrize("show", [attention.arcs, attention.grid])
def test_more_than_three_heads_get_a_chooser_and_all_are_in_the_page(tiny, pop, show):
    heads = [*HEADS, (2, 0)]
    few, root = tree(show(tiny, pop, heads[:3])), tree(show(tiny, pop, heads))
    assert list(few.iter("input")) == []
    assert few.tag == "div"
    assert root.tag == "form"
    assert root.get("method") == "dialog", "so that Enter sends nothing"
    assert len(list(root.iter("figure"))) == 4
    labels = list(root.iter("label"))
    assert ["".join(label.itertext()).strip() for label in labels] == ["2.1", "0.0", "1.1", "2.0", "all"]
    inputs = list(root.iter("input"))
    assert {(one.get("type"), one.get("name")) for one in inputs} == {("radio", "head")}
    assert ["checked" in one.attrib for one in inputs] == [True, False, False, False, False]
    heads_box = root.find("div[@role='radiogroup']")
    followers = [(a.tag, b.tag) for a, b in zip(heads_box, list(heads_box)[1:], strict=False)]
    assert followers.count(("label", "figure")) == 4, "the style sheet shows the figure after the label that is chosen"
    assert "<script" not in show(tiny, pop, heads)


def test_there_are_no_ids_that_could_collide(tiny, pop):
    for page in (attention.arcs(tiny, pop, [*HEADS, (2, 0)]), attention.grid(tiny, pop, [*HEADS, (2, 0)])):
        attributes = {name for node in tree(page).iter() for name in node.attrib}
        assert not attributes & {"id", "for", "href", "aria-labelledby", "aria-describedby"}


def test_drawings_stay_in_their_frame(tiny, pop):
    for page in (attention.arcs(tiny, pop, HEADS), attention.grid(tiny, pop, HEADS)):
        for drawing in tree(page).iter(f"{SVG}svg"):
            left, top, width, height = (float(part) for part in drawing.get("viewBox").split())
            for text in drawing.iter(f"{SVG}text"):
                if text.get("x") is not None:
                    assert left <= float(text.get("x")) <= left + width
                    assert top <= float(text.get("y")) <= top + height


def test_a_view_begins_at_its_right_only_if_the_main_arc_lands_there(tiny, pop):
    look, tokens = attention.looks(tiny, pop, HEADS)[0], attention.sentence(pop)
    for at in range(len(tokens)):
        share = torch.zeros(len(look.share))
        share[min(at, len(share) - 1)] = 1.0
        page = attention._figure(replace(look, share=share), tokens, ("Mary", "John"), 1.0)
        assert ("lab-from-right" in page) is (min(at, len(share) - 1) > len(tokens) / 2)


def test_one_head_is_a_small_figure(smollm2):
    pop = prompts.canonical(smollm2)
    assert len(attention.arcs(smollm2, pop, [(23, 3)])) < 6000


def test_what_does_not_exist_is_named(tiny, pop):
    with pytest.raises(HeadError, match=r"no head 7\.0: this model has 3 layers"):
        attention.arcs(tiny, pop, [(7, 0)])
    with pytest.raises(HeadError, match=r"no head 0\.99"):
        attention.grid(tiny, pop, [(0, 99)])
    with pytest.raises(HeadError, match="unknown position 'S3': choose among IO, S1"):
        attention.arcs(tiny, pop, HEADS, at="S3")
    with pytest.raises(HeadError, match="unknown position 'S3'"):
        attention.arcs(tiny, pop, HEADS, others={(0, 0): "S3"})
    for index in (4, -1):
        with pytest.raises(HeadError, match=f"no prompt {index}: this population has 4"):
            attention.grid(tiny, pop, HEADS, index=index)


def test_no_head_is_a_line(tiny, pop):
    """A family may be empty on another model, and its figure must not stop the chapter."""
    for page in (attention.arcs(tiny, pop, []), attention.grid(tiny, pop, [])):
        assert tree(page).text == "No head to show."
