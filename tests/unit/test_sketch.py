"""The sketch that grows: what appears when, that it is the run's, and that the markup is sound."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import torch
from markup import Structure

from labbook.show import canvas, growth, sketch
from labcode import evidence, families, metrics
from labcode.families import FAMILIES, Discovery, Measurement

CHAPTERS = range(1, 14)
SVG = "{http://www.w3.org/2000/svg}"
HEADS = {
    "previous": [(1, 0)],
    "duplicate": [(0, 1), (0, 2)],
    "induction": [(2, 0)],
    "s-inhibition": [(3, 1), (3, 2)],
    "name mover": [(4, 0)],
    "suppressor": [(4, 1)],
    "negative": [],
    "subject mover": [(4, 2)],
    "backup": [],
}
WRITES = {(4, 0): 0.5, (4, 1): 0.3, (4, 2): -0.2, (5, 0): 0.1}
AT_S2 = {(0, 1): 0.3, (0, 2): 0.2, (2, 0): 0.4, (2, 1): 0.1, (2, 2): 0.05, (1, 1): 0.04, (1, 2): 0.03}
AT_END = {(3, 1): 0.3, (3, 2): 0.2, **WRITES}
ARROWS = (
    growth.Arrow("name mover", "logits", "logits", 2.0),
    growth.Arrow("induction", "s-inhibition", "v", 0.9),
    growth.Arrow("previous", "induction", "k", 0.6),
    growth.Arrow("s-inhibition", "name mover", "q", 0.5),
    growth.Arrow("duplicate", "suppressor", "k", 0.4),
    growth.Arrow("duplicate", "name mover", "v", -0.4),
    growth.Arrow("s-inhibition", "s-inhibition", "q", 0.3),
    growth.Arrow("suppressor", "subject mover", "q", 0.2),
)
WORDS = tuple(
    (text, {1: "S1", 2: "S1+1", 3: "IO", 8: "S2", 12: "END"}.get(at, ""))
    for at, text in enumerate("When John and Mary went to the store, <John> gave a drink to".split())
)


def measured(values):
    mean = torch.zeros(6, 3)
    for head, value in values.items():
        mean[head] = value
    return Measurement(mean, mean, mean, torch.ones(6, 3).bool(), 0.02, "share of the gap", 8)


EVIDENCE = {"direct": measured(WRITES), "total S2": measured(AT_S2), "total END": measured(AT_END)}
FOUND = Discovery(
    HEADS, {name: [] for name in families.UNKNOWN}, EVIDENCE, [], metrics.Interval(4.0, 3.0, 5.0, 8), 8, 8
)
KNOWN = growth.Known(("tiny <model>", 6, 3), WORDS, "Mary", "<John>", 3.0, FOUND, ARROWS, (3, 4), "the place")
# As many arrows between two columns as the runs of the book have.
FULL = replace(
    KNOWN,
    arrows=tuple(
        growth.Arrow(*(end.replace("_", " ") for end in ends.split()), nats)
        for ends, nats in {
            "suppressor logits logits": 2.69, "subject_mover logits logits": -0.36, "previous induction k": 0.47,
            "induction s-inhibition v": 0.45, "duplicate s-inhibition v": 0.21,
            "duplicate duplicate q": 0.28, "duplicate suppressor k": 0.25, "induction suppressor k": 0.16,
            "suppressor subject_mover q": -0.13, "s-inhibition suppressor q": 0.13, "duplicate subject_mover k": 0.11,
        }.items()
    ),
)  # fmt: skip
NOTHING = replace(KNOWN, found=None, arrows=(), layers=(), says="")
EMPTY = replace(
    KNOWN,
    found=replace(FOUND, families={name: [] for name in FAMILIES}, evidence={k: measured({}) for k in EVIDENCE}),
    arrows=(), layers=(), says="",
)  # fmt: skip


def drawing(known, chapter):
    page = canvas.draw(known, chapter)
    return ET.fromstring(page.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '))


def svgs(known, chapter):
    return drawing(known, chapter).findall(f".//{SVG}svg")


def heads_of(known, chapter):
    return {(box.row, head) for box in growth.boxes(known, chapter) for head in box.heads}


def test_the_sketch_only_grows():
    for chapter in CHAPTERS[:-1]:
        assert heads_of(KNOWN, chapter) <= heads_of(KNOWN, chapter + 1)
        titles = [{box.key for box in growth.boxes(KNOWN, c) if box.key in FAMILIES} for c in (chapter, chapter + 1)]
        assert titles[0] <= titles[1]
    ways = [{(w.sender, w.receiver) for w in growth.wires(KNOWN, c)} for c in CHAPTERS]
    assert ways[:2] == [set(), set()]
    assert ways[9] <= ways[10] == ways[11] == ways[12]


def test_a_family_appears_from_its_chapter_on_and_not_before():
    for name, family in FAMILIES.items():
        for chapter in CHAPTERS:
            there = family.title.lower() in canvas.draw(KNOWN, chapter).lower()
            assert there is (chapter >= growth.BOXES[name][1]), (name, chapter)


def test_all_families_and_all_rows_are_in_the_table():
    assert set(FAMILIES) < set(growth.BOXES)
    assert {row for row, _ in growth.BOXES.values()} == {"S1+1", "S2", "END", "writers"}


def test_before_they_have_a_family_heads_are_known_by_their_effect():
    by_key = {box.key: box for box in growth.boxes(KNOWN, 6)}
    assert by_key["writers"].heads == ((4, 0), (4, 1), (4, 2), (5, 0))
    assert by_key["writers"].against == ((4, 2),)
    assert by_key["at END"].heads == ((3, 1), (3, 2)), "those that write by themselves are writers"
    assert by_key["at S2"].heads[:2] == ((2, 0), (0, 1))
    later = {box.key: box for box in growth.boxes(KNOWN, 10)}
    assert later["writers"].heads == ((5, 0),)
    assert "at END" not in later
    assert later["at S2"].heads == ((2, 1), (2, 2), (1, 1), (1, 2))


def test_the_drawing_shows_the_heads_of_the_run_and_how_many_more():
    for svg in svgs(KNOWN, 6):
        text = " ".join(node.text for node in svg.iter(f"{SVG}text"))
        assert all(f"{a}.{b}" in text for a, b in [(2, 0), (0, 1), (3, 1), (3, 2), (4, 0), (4, 2)])
        assert "+3 more" in text
        assert "1.2" not in text


def test_arrows_are_those_measured_and_only_from_their_chapter():
    def drawn(chapter):
        return [
            {node.get("data-arrow") for node in svg.iter(f"{SVG}g") if node.get("data-arrow")}
            for svg in svgs(KNOWN, chapter)
        ]

    assert drawn(6) == [{"writers > logits"}] * 2
    assert drawn(7) == [{"writers > logits", "at END > writers", "at S2 > writers"}] * 2
    assert "at S2 > s-inhibition" in drawn(9)[0]
    whole = {f"{one.sender} > {one.receiver}" for one in ARROWS}
    wires_alone = {f"{name} > logits" for name in ("suppressor", "subject mover", "writers")}
    assert drawn(11) == [whole | wires_alone] * 2
    assert drawn(10)[0] == {one for one in drawn(11)[0] if "s-inhibition > s-inh" not in one and "> subject" not in one}
    fewer = replace(KNOWN, arrows=())
    assert {w.receiver for w in growth.wires(fewer, 11)} == {"logits"}
    assert not [w for w in growth.wires(replace(fewer, found=None), 11)]


def test_a_box_is_one_group_with_its_text_and_an_arrow_one_with_its_label():
    """The circuit board makes a switch of the one, and takes the other back with it."""
    for svg in svgs(KNOWN, 12):
        boxes = {
            rect.get("data-box"): " ".join(node.text for node in group.iter(f"{SVG}text"))
            for group in svg.iter(f"{SVG}g")
            for rect in group.findall(f"{SVG}rect")
            if rect.get("data-box")
        }
        assert {name for name, heads in HEADS.items() if heads} < set(boxes)
        assert "4.1" in boxes["suppressor"]
        labels = {
            group.get("data-arrow"): group.findtext(f"{SVG}text")
            for group in svg.iter(f"{SVG}g")
            if group.get("data-arrow") and group.find(f"{SVG}text") is not None
        }
        assert labels["induction > s-inhibition"] == "v +0.90"


def test_only_the_whole_circuit_says_how_much():
    assert "+0.9" not in canvas.draw(KNOWN, 10)
    assert "v +0.90" in canvas.draw(KNOWN, 11)
    assert "through their values (+0.90 nats)" in growth.tells(KNOWN, 11)[1]


def test_the_legend_names_the_lines_that_are_drawn_and_no_others():
    whole = replace(KNOWN, found=replace(FOUND, families={**HEADS, "negative": [(4, 2)], "backup": [(5, 1)]}))
    dotted = "dotted has no known head"
    assert dotted in canvas.draw(KNOWN, 2).lower()
    for chapter in CHAPTERS:
        page = canvas.draw(whole, chapter)
        lines = [node.get("stroke-dasharray") for node in drawing(whole, chapter).iter(f"{SVG}rect")]
        assert (dotted in page.lower()) is (any(lines) and chapter <= 11), chapter
    assert "Bold is new" not in canvas.draw(KNOWN, 1)
    assert "Bold is new" in canvas.draw(KNOWN, 10)


def test_what_an_older_chapter_found_is_not_new_where_it_is_shown_again():
    assert "New in chapter 10: " in canvas.draw(KNOWN, 10, again=True)
    assert "New here" not in canvas.draw(KNOWN, 10, again=True)


def spans(svg):
    """Each text with the box that it takes about: left, top, right, bottom."""
    found = []
    for node in svg.iter(f"{SVG}text"):
        size = float(node.get("font-size", svg.get("font-size")))
        x, y, wide = float(node.get("x")), float(node.get("y")), 0.5 * size * len(node.text)
        left = x - {"start": 0, "middle": wide / 2, "end": wide}[node.get("text-anchor")]
        found.append((node.text, left, y - 0.8 * size, left + wide, y))
    return found


def along(path):
    """Points on an arrow's line: of its curve, or of the straight parts between its corners."""
    at = [complex(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]
    shares = [i / 40 for i in range(41)]
    if "C" in path:
        a, b, c, d = at
        return [(1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d for t in shares]
    return [start + (end - start) * t for start, end in itertools.pairwise(at) for t in shares]


@pytest.mark.parametrize("known", [KNOWN, FULL])
@pytest.mark.parametrize("chapter", [7, 9, 10, 11, 12])
def test_no_arrow_strikes_through_a_label_or_runs_through_the_sentence(known, chapter):
    for svg in svgs(known, chapter):
        rects = [[float(node.get(key)) for key in ("x", "y", "width", "height")]
                 for node in svg.iter(f"{SVG}rect") if "background" in node.get("fill", "")]  # fmt: skip
        arrows = [group for group in svg.iter(f"{SVG}g") if group.get("data-arrow")]
        lines = [point for group in arrows for node in group.iter(f"{SVG}path") if node.get("stroke-width")
                 for point in along(node.get("d"))]  # fmt: skip
        labels = {node.text for group in arrows for node in group.findall(f"{SVG}text") if node.text}
        places = []
        for text, left, top, right, bottom in spans(svg):
            word = text in {word for word, _ in WORDS}
            if word:
                assert [1 for x, y, w, h in rects if left >= x and top >= y and right <= x + w and bottom <= y + h], (
                    text
                )
            if word or text in labels or "it arrives" in text:
                struck = [point for point in lines if left < point.real < right and top < point.imag < bottom]
                assert struck == [], text
                places.append((text, left, top, right, bottom))
        for (one, a, b, c, d), (other, e, f, g, h) in itertools.combinations(places, 2):
            assert c <= e or g <= a or d <= f or h <= b, f"{one!r} lies on {other!r}"


def test_a_word_that_would_fill_its_box_gets_a_wider_one():
    boxes = [node for node in svgs(KNOWN, 12)[1].iter(f"{SVG}rect") if node.get("data-box")]
    wide = {node.get("data-box"): float(node.get("width")) for node in boxes}
    assert wide["suppressor"] > wide["name mover"]


def test_what_is_new_is_said():
    assert "3.00 nats ahead of <John>" in growth.tells(KNOWN, 1)[0]
    assert growth.tells(KNOWN, 2)[0].count("?") == 3
    assert "waits at S2 until layer 3 and reaches END in layers 3 and 4" in growth.tells(KNOWN, 5)[0]
    here, everything = growth.tells(KNOWN, 9)
    assert here == (
        "New here: S-inhibition heads at END, 3.1 and 3.2, which tell the place; "
        "3.1 and 3.2 at END read 2.0, 0.1, 0.2, 2.1 and 3 more at S2 through their values."
    )
    assert "new: S-inhibition heads at END: 3.1, 3.2" in everything
    assert "name movers at END: 4.0" in everything
    assert "Nothing new" in growth.tells(KNOWN, 4)[0]


@pytest.mark.parametrize("known", [KNOWN, NOTHING, EMPTY])
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_chapter_is_sound_markup_without_ids(known, chapter):
    page = canvas.draw(known, chapter)
    assert " id=" not in page
    assert "<John>" not in page
    assert "<model>" not in page
    Structure(re.sub(r"<(rect|path)([^>]*)/>", "", page))
    figure = drawing(known, chapter)
    assert figure[0].get("role") == "img"
    assert "circuit sketch after chapter" in figure[0].get("aria-label")
    for svg in figure.findall(f".//{SVG}svg"):
        wide, high = (float(part) for part in svg.get("viewBox").split()[2:])
        places = [tuple(float(node.get(key)) for key in ("x", "y", "width", "height"))
                  for node in svg.iter(f"{SVG}rect") if node.get("data-box")]  # fmt: skip
        for i, (x, y, w, h) in enumerate(places):
            assert x >= 0
            assert y >= 0
            assert x + w <= wide
            assert y + h <= high
            for left, top, w2, h2 in places[i + 1 :]:
                assert x + w <= left or left + w2 <= x or y + h <= top or top + h2 <= y
        assert all(float(node.get("font-size", "11")) >= 11 for node in svg.iter(f"{SVG}text"))


def test_without_families_boxes_are_dotted():
    for known, said in ((NOTHING, "not measured"), (EMPTY, "none found")):
        for svg in svgs(known, 11):
            drawn = [node for node in svg.iter(f"{SVG}rect") if node.get("data-box")]
            assert len(drawn) == 5
            assert all(node.get("stroke-dasharray") for node in drawn)
        assert said in growth.tells(known, 11)[1]


def test_a_model_without_a_record_is_drawn_at_once(tiny, monkeypatch):
    monkeypatch.setattr(families, "measure", lambda *_: pytest.fail("a sketch never measures"))
    for chapter in (1, 6, 13):
        assert "lab-sketch" in sketch.so_far(tiny, chapter)


def test_the_record_fills_the_sketch(smollm2):
    known = sketch.look(
        smollm2, 8, arrows={("s-inhibition", "name mover", "q"): 0.5, ("induction", "suppressor", "k"): 0.01}
    )
    assert known.arrows == (growth.Arrow("s-inhibition", "name mover", "q", 0.5),), "a weak arrow is left out"
    assert len(known.layers) == 2
    by_key = {box.key: box for box in growth.boxes(known, 8)}
    assert by_key["suppressor"].heads
    assert known.words[-1] == ("to", "END")
    assert [text for text, name in known.words if name in ("IO", "S1", "S2")] == ["John", "Mary", "John"]


def test_gpt2_as_published_stands_beside_the_last_one(smollm2):
    page = sketch.so_far(smollm2, 13, arrows={})
    assert page.count("<figure") == 2
    assert "as published" in page
    assert "9.9" in page


def test_another_models_evidence_is_drawn_where_a_chapter_passes_it(tiny):
    pops = evidence.populations(tiny, 4, exact=False)
    seen = evidence.Evidence(evidence.measure(tiny, pops), pops, "measured", tiny)
    for chapter in (3, 11, 13):
        page = sketch.so_far(tiny, chapter, seen=seen)
        assert "not measured here" not in page
    known = sketch.look(tiny, 11, seen, {("induction", "name mover", "k"): 0.5})
    assert len(known.arrows) == 1
    here = {box.key for box in growth.boxes(known, 11) if box.heads}
    drawn = {wire[:2] for wire in growth.wires(known, 11)}
    assert ("induction", "name mover") in drawn or not {"induction", "name mover"} <= here
