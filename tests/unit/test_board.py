"""The circuit board's numbers and its HTML: escaped, valid JSON, right with an empty family; and the drawing in it."""

from __future__ import annotations

import json
import re

import pytest
from markup import Structure

from labbook.show import canvas, growth
from labbook.show.board import Board, Group, board, states, to_html
from labcode import prompts
from labcode.circuit import Keep, Out, Runner, references
from labcode.errors import PatchError
from labcode.metrics import Interval
from labcode.toy import MOVER, NEGATIVE

FULL = MOVER - NEGATIVE
NASTY = '</script><b>"it\'s" & <i>'
GROUPS = (
    Group("finders", ((0, 0, "S2"), (1, 0, "END")), ("duplicate", "induction")),
    Group(NASTY, (), ("backup",)),
    Group("writers", ((2, 0, "END"), (2, 1, "END")), ("name mover",)),
)
WORDS = (("When", ""), ("John", "S2"), ("to", "END"))
DRAWING = canvas.draw(growth.Known(("tiny", 3, 2), WORDS, "Mary", "John", 4.0), 12)


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
    page = to_html(found, DRAWING)
    assert page.count("<script") == page.count("</script>") == 1
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])
    assert data["families"] == ["finders", NASTY, "writers"]
    assert [len(data[key]) for key in ("circuit", "model", "gap")] == [8, 8, 8]
    assert data["circuit"][5] == pytest.approx([FULL] * 3, abs=1e-3)
    assert data["n"] == 4
    assert data["heads"] == ["0.0, 1.0", "none found", "2.0, 2.1"]
    assert data["boxes"] == {"duplicate": 0, "induction": 0, "name mover": 2}, "no switch for a family without heads"
    seen = Structure(re.sub(r"<(rect|path)([^>]*)/>", "", page))
    assert [attributes["data-bar"] for attributes in seen.found["b"] if "data-bar" in attributes] == [
        "circuit",
        "model",
    ]
    assert any(attributes.get("aria-live") == "polite" for attributes in seen.found["p"])


def test_a_drawing_is_there_before_the_script_has_run(found):
    page = to_html(found, DRAWING)
    assert DRAWING in page
    for hidden in ("lab-board-how", "lab-board-bars", "lab-board-says"):
        assert re.search(rf'class="{hidden}"[^>]* hidden>', page)


def test_the_table_and_the_text_round_alike(found):
    """The text's numbers are those of the table: −0.0546 is −0.05 in both, and there is no −0.00."""
    cell = Interval(-0.0546, -0.004, 0.125, 4)
    odd = Board(found.groups, *[[cell] * 8 for _ in range(3)])
    page = to_html(odd, DRAWING)
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])
    assert data["circuit"][0] == [-0.05, 0, 0.12]
    assert "−0.05 [0.00, 0.12]" in page


def test_without_scripts_a_table_tells_the_main_states(found):
    page = to_html(found, DRAWING)
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
