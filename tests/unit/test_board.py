"""The circuit board's numbers and its HTML: escaped, valid JSON, right with an empty family; and the diagram."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest
from markup import Structure

from labbook.show import diagram
from labbook.show.board import Board, Group, board, states, to_html
from labcode import prompts
from labcode.circuit import Keep, Out, Runner, references
from labcode.errors import PatchError
from labcode.metrics import Interval
from labcode.toy import MOVER, NEGATIVE

FULL = MOVER - NEGATIVE
NASTY = '</script><b>"it\'s" & <i>'
GROUPS = (
    Group("finders", ((0, 0, "S2"), (1, 0, "END")), "#E69F00"),
    Group(NASTY, (), '#000"'),
    Group("writers", ((2, 0, "END"), (2, 1, "END")), "#0072B2"),
)


@pytest.fixture(scope="module")
def found(toy):
    pop = prompts.population(toy, 4, seed=1, templates=prompts.TEMPLATES[:1])
    tried = states(GROUPS)
    return board(GROUPS, Runner(toy, pop, references(toy, pop)).values(tried), pop.draws)


def test_states_tick_by_bits():
    tried = states(GROUPS)
    assert len(tried) == 16
    assert tried[0] == Keep(())
    assert tried[2 * 1] == Keep(GROUPS[0].nodes)
    assert tried[2 * 1 + 1] == Out(GROUPS[2].nodes)
    assert tried[-1] == Out(())


def test_the_numbers_of_the_toy(found):
    """Bit 0: who S is; bit 2: who writes. The empty family in bit 1 changes nothing."""
    means = {key: [cell.mean for cell in getattr(found, key)] for key in ("circuit", "model", "gap")}
    assert means["circuit"] == pytest.approx([0, 0, 0, 0, -FULL / 3, FULL, -FULL / 3, FULL], abs=1e-3)
    assert means["model"] == pytest.approx(means["circuit"], abs=1e-3)
    assert means["gap"] == pytest.approx([0] * 8, abs=1e-3)


def test_the_page_holds_valid_json_and_escaped_names(found):
    page = to_html(found)
    assert page.count("<script") == page.count("</script>") == 1
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])
    assert data["families"] == ["finders", NASTY, "writers"]
    assert [len(data[key]) for key in ("circuit", "model", "gap")] == [8, 8, 8]
    assert data["circuit"][5] == pytest.approx([FULL] * 3, abs=1e-3)
    assert data["n"] == 4
    seen = Structure(page)
    assert [attributes["data-bit"] for attributes in seen.found["input"]] == ["0", "1", "2"]
    assert ["disabled" in attributes for attributes in seen.found["input"]] == [False, True, False]
    assert {attributes["type"] for attributes in seen.found["input"]} == {"checkbox"}
    assert len(seen.found["label"]) == 3
    assert len(seen.found["fieldset"]) == len(seen.found["legend"]) == 1
    assert [attributes["data-bar"] for attributes in seen.found["b"]] == ["circuit", "model"], "none from a title"
    assert any(attributes.get("aria-live") == "polite" for attributes in seen.found["p"])


def test_the_table_and_the_text_round_alike(found):
    """The text's numbers are those of the table: −0.0546 is −0.05 in both, and there is no −0.00."""
    cell = Interval(-0.0546, -0.004, 0.125, 4)
    odd = Board(found.groups, *[[cell] * 8 for _ in range(3)])
    page = to_html(odd)
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])
    assert data["circuit"][0] == [-0.05, 0, 0.12]
    assert "−0.05 [0.00, 0.12]" in page


def test_without_scripts_a_table_tells_the_main_states(found):
    page = to_html(found)
    cells = re.findall(r"<tr><td>(.*?)</td>", page)
    assert cells == ["all families", "none", "all but finders", "all but writers", "finders alone", "writers alone"]
    assert "4.00 [4.00, 4.00]" in page
    assert "none found" in page


@pytest.mark.parametrize("n", [0, 8])
def test_a_board_of_too_many_families_or_none_is_refused(n):
    with pytest.raises(PatchError, match=f"a board of {n} families: choose between 1 and 7"):
        states(GROUPS[:1] * n)


def test_values_of_other_states_are_refused(found, toy):
    pop = prompts.population(toy, 4, seed=1, templates=prompts.TEMPLATES[:1])
    run = Runner(toy, pop, references(toy, pop)).values([Out(), Keep()])
    with pytest.raises(PatchError, match="2 states for a board of 3 families"):
        board(GROUPS, run, pop.draws)


BOXES = {
    "early": diagram.FamilyBox("early <heads>", "S1+1", [(1, 2)], "#999999"),
    "many": diagram.FamilyBox("many", "S2", [(3, head) for head in range(7)], "#E69F00"),
    "gone": diagram.FamilyBox("gone", "END", [], "#56B4E9"),
    "late": diagram.FamilyBox("late", "END", [(5, 0)], "#0072B2"),
}


WIRES = {("early", "many"): "k +0.60", ("many", "gone"): "q", ("many", "late"): "q <0.5>", ("late", "late"): "v"}


def drawing(boxes=BOXES, wires=WIRES):
    return ET.fromstring(diagram.circuit(boxes, wires))


def test_the_diagram_shows_every_head_and_says_it():
    figure = drawing()
    texts = [node.text for node in figure.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:3] == ["S1+1", "S2", "END"]
    shown = " ".join(texts).split()
    for box in BOXES.values():
        assert all(f"{layer}.{head}" in shown for layer, head in box.heads)
        assert box.title in figure.get("aria-label")
    assert "none found" in texts
    assert "late read many (q <0.5>)" in figure.get("aria-label")
    assert {"k +0.60", "q <0.5>"} <= set(texts)
    assert "gone read" not in figure.get("aria-label"), "no wire to a family without heads"


def test_boxes_of_the_diagram_neither_overlap_nor_leave_it():
    figure = drawing()
    width, height = (float(part) for part in figure[0].get("viewBox").split()[2:])
    rects = [
        tuple(float(node.get(key)) for key in ("x", "y", "width", "height"))
        for node in figure.iter("{http://www.w3.org/2000/svg}rect")
    ]
    assert len(rects) == 4
    for i, (x, y, w, h) in enumerate(rects):
        assert x >= 0
        assert x + w <= width
        assert y + h <= height
        for left, top, wide, high in rects[i + 1 :]:
            assert x + w <= left or left + wide <= x or y + h <= top or top + high <= y


def test_a_diagram_of_nothing_is_still_one():
    empty = {name: diagram.FamilyBox(box.title, box.position, [], box.colour) for name, box in BOXES.items()}
    assert "No family reads another" in drawing(empty).get("aria-label")
