"""The drawing of an attribution graph: escaped, all edges in words too, nodes apart, a sentence where there is none."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import torch
from markup import Structure

from labbook.show import graph
from labcode.attribution import Edge, Graph, Node
from labcode.metrics import Interval

NASTY = '</text><script>"it\'s" & <i>'
LATENT = Node("latent", NASTY, "S2", 1.5, "named", 3)
ERROR = Node("error", "error, SAE", "S2", 1.5)
GIVEN = Node("frozen", "other words", "elsewhere", 1.5)
HEAD = Node("head", "2.1", "END", 2, "name mover", head=(2, 1))
ANSWER = Node("answer", "IO − S", "END", 4.0)
EDGES = {
    Edge(LATENT, HEAD, "k"): torch.tensor([1.5, -0.5]),
    Edge(ERROR, HEAD, "v"): torch.tensor([-0.75, 0.25]),
    Edge(GIVEN, HEAD, "q"): torch.tensor([0.25, 0.25]),
    Edge(HEAD, ANSWER, ""): torch.tensor([0.5, 0.5]),
}
FOUND = Graph((LATENT, ERROR, GIVEN, HEAD, ANSWER), EDGES, {}, 0.0, torch.tensor([1.0, 1.0]))


def test_strongest_first():
    assert [edge.into for edge in FOUND.strongest(9)] == ["k", "v", "", "q"]
    assert torch.equal(FOUND.into(HEAD), torch.tensor([1.0, 0.0]))


def test_everything_is_escaped_and_well_formed():
    page = graph.draw(FOUND, FOUND.strongest(9), measured={Edge(LATENT, HEAD, "k"): Interval(1.0, 0.5, 1.5, 8)})
    assert "<script" not in page
    assert NASTY not in page
    Structure(page)
    svg = re.search(r'<svg viewBox.*?role="group".*?</svg>', page, re.S)
    ET.fromstring(svg[0].replace('xmlns="http://www.w3.org/2000/svg"', ""))


def test_nodes_have_names_and_edges_two_cues():
    page = graph.draw(FOUND, FOUND.strongest(9))
    assert len(re.findall(r'<g class="lab-graph-node [^>]*role="img" [^>]*aria-label="[^"]', page)) == 5
    assert 'role="button"' not in page, "the script makes buttons of them"
    assert page.count("data-card=") == 5
    against = re.findall(r'<path class="lab-graph-edge against" data-from[^>]*>', page)
    assert len(against) == 1
    assert "stroke-dasharray" in against[0]
    assert page.count("lab-graph-hatch") == 2  # the error and what is taken as given
    assert "id=" not in page  # two figures of a page share no id


def test_no_two_nodes_overlap():
    nodes = [Node("latent", f"latent {i}", "S2", 1.5, "", i) for i in range(5)] + [HEAD, ANSWER, ERROR, GIVEN]
    places, height, _ = graph._places(nodes)
    assert len(set(places.values())) == len(nodes)
    for node, (x, y) in places.items():
        assert 0 <= x <= graph.W - graph.BOX[0]
        assert 0 <= y <= height - graph.BOX[1]
        for other, (a, b) in places.items():
            assert node == other or abs(a - x) >= graph.BOX[0] or abs(b - y) >= graph.BOX[1]


def test_the_table_has_every_edge_and_no_edges_is_a_sentence():
    page = graph.draw(FOUND, FOUND.strongest(9), prompt=None)
    assert page.count("<tr>") >= 5
    assert "−0.25" in page  # the mean of the error's edge
    assert graph.draw(FOUND, []).startswith("<p>No edges")


def test_no_text_leaves_its_box():
    for title in ("IO", "earlier heads", "earlier MLPs", "other words", "a title that is long"):
        made = ET.fromstring(graph._node(Node("frozen", title, "S2", 1.0), (0.0, 0.0), 0, {}, {}))
        text = next(node for node in made.iter("text") if node.text.strip() == title)
        size = float(re.sub(r"[^\d.]", "", text.get("style") or "13"))
        assert 0.62 * size * len(title) < graph.BOX[0] - 8


def test_edges_pass_behind_the_names_of_layers():
    page = graph.draw(FOUND, FOUND.strongest(9))
    assert "data-from" not in page[page.index("lab-graph-layer") :]
