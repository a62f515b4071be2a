"""An attribution graph as a drawing: nodes in two columns, S2 and END, layers upwards, and edges between them.

One drawing serves wide columns and phones: it is taller than wide. Width and colour of an edge say its number, and a
dash says a negative one without colour. What has no edges into it, errors and frozen parts, is hatched. Each node is a
button: `labgraph.js` then shows its edges alone and its card. All edges stand in a table below, for those who read or
print instead.
"""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from labcode.attribution import Edge, Graph, Node
from labcode.report import signed, table

if TYPE_CHECKING:
    from labcode.metrics import Interval

W, BOX, TALL, GAP = 460.0, (100.0, 36.0), 68.0, 8.0
COLUMNS = {"S2": 6.0, "END": 246.0}
FOR, AGAINST = "#0072b2", "#d55e00"
HALO = 'paint-order="stroke" stroke="var(--pst-color-background, Canvas)" stroke-width="4" style="opacity:1"'
HATCHED = ("error", "frozen")
PORTS = {"q": 0.22, "k": 0.5, "v": 0.78}  # where an input of a head stands, as a share of the box's width


def draw(
    found: Graph,
    edges: Sequence[Edge],
    prompt: int | None = 0,
    measured: Mapping[Edge, Interval] | None = None,
    names: Mapping[Node, str] | None = None,
) -> str:
    """The figure of some edges, as HTML; a sentence where there are none.

    Args:
        edges: those that are drawn, strongest first.
        prompt: its values are drawn; the means over all prompts if None.
        measured: what interventions lost, for the table and the cards.
        names: second lines for some nodes, such as what a latent stands for.
    """
    if not edges:
        return "<p>No edges: this model has no heads of the later families that read what differs here.</p>"
    values = {edge: float(found.edges[edge].mean() if prompt is None else found.edges[edge][prompt]) for edge in edges}
    nodes = list(dict.fromkeys(node for edge in edges for node in (edge.source, edge.target)))
    nodes.sort(key=lambda node: (_row(node), node.place != "S2", node.title))
    number = {node: i for i, node in enumerate(nodes)}
    places, height, levels = _places(nodes)
    top = max(abs(value) for value in values.values())
    back = "".join(_edge(edge, values[edge], top, places, number) for edge in reversed(edges))
    front = "".join(
        f'<text x="{W - 2:g}" y="{y - 3:.0f}" class="lab-graph-layer" {HALO}>{html.escape(words)}</text>'
        for words, y in levels
    )  # in front of the edges
    front += "".join(_node(node, places[node], number[node], values, names or {}) for node in nodes)
    heads = "".join(
        f'<text x="{x + 105:g}" y="{height - 4:.0f}" class="lab-graph-place">{name}</text>'
        for name, x in COLUMNS.items()
    )
    rules = "".join(f'<path class="lab-graph-rule" d="M0 {y:.0f}H{W:g}"/>' for _, y in levels)
    says = (
        f"Attribution graph of {len(nodes)} nodes and {len(edges)} edges, layers upwards, two columns: S2 and END. "
        "Each node is a button that tells its edges; the table below has them all."
    )
    cards = "".join(_card(node, number[node], values, measured or {}, names or {}) for node in nodes)
    return (
        f'<figure class="lab-graph"><div class="lab-graph-both"><svg viewBox="0 0 {W:g} {height:.0f}" '
        f'role="group" aria-label="{html.escape(says, quote=True)}">{rules}{heads}<g aria-hidden="true">{back}</g>'
        f'{front}</svg><div class="lab-graph-cards" aria-live="polite"><p data-hint hidden>Choose a node to see '
        f"its edges and their numbers; choose it again, or press Escape, to see all.</p>{cards}</div></div>"
        f'{_legend()}<details class="lab-numbers" open><summary>The {len(edges)} edges as a table</summary>'
        f"{_table(edges, values, measured or {})}</details></figure>"
    )


def _row(node: Node) -> float:
    """Where a node stands from the bottom: frozen sums below all that they are not part of."""
    return -1.0 if node.kind == "frozen" else node.height


def _places(nodes: Sequence[Node]) -> tuple[dict[Node, tuple[float, float]], float, list[tuple[str, float]]]:
    """The upper left corner of each node, the height of the drawing, and the lines between its floors."""
    rows: dict[float, dict[str, list[Node]]] = defaultdict(lambda: defaultdict(list))
    for node in nodes:
        rows[_row(node)][node.place if node.place in COLUMNS else "END"].append(node)
    floors = [max(-(-len(here) // 2) for here in rows[row].values()) for row in sorted(rows)]
    height = sum(floors) * TALL + 34
    places, levels, y = {}, [], height - 22.0
    for floor, row in zip(floors, sorted(rows), strict=True):
        y -= floor * TALL
        for column, here in rows[row].items():
            for i, node in enumerate(here):
                across, up = i % 2, i // 2
                alone = 52.0 if len(here) == 1 else 0.0
                shift = COLUMNS[column] + across * (BOX[0] + GAP) + alone
                places[node] = shift, y + (floor - 1 - up) * TALL + (TALL - BOX[1]) / 2
        first = next(iter(next(iter(rows[row].values()))))
        words = (
            "taken as given" if row < 0
            else "" if first.kind == "answer"
            else f"after layer {int(row)}" if first.kind in ("latent", "latents", "error")
            else f"layer {int(row)}"
        )  # fmt: skip
        if words:
            levels.append((words, y + floor * TALL))
    return places, height, levels


def _edge(
    edge: Edge, value: float, top: float, places: Mapping[Node, tuple[float, float]], number: Mapping[Node, int]
) -> str:
    (x0, y0), (x1, y1) = places[edge.source], places[edge.target]
    start = x0 + BOX[0] / 2, y0
    end = x1 + BOX[0] * {"q": 0.22, "k": 0.5, "v": 0.78}.get(edge.into, 0.5), y1 + BOX[1]
    bend = max(18.0, abs(start[1] - end[1]) * 0.45)
    turns = (start, (start[0], start[1] - bend), (end[0], end[1] + bend), end)
    path = "M{} C{} {} {}".format(*(f"{x:.1f} {y:.1f}" for x, y in turns))
    width = 1.2 + 7.5 * abs(value) / top
    dash = "" if value > 0 else f' stroke-dasharray="{max(5, width):.0f} {max(4, width * 0.8):.0f}"'
    return (
        f'<path class="lab-graph-edge {"for" if value > 0 else "against"}" data-from="{number[edge.source]}" '
        f'data-to="{number[edge.target]}" d="{path}" stroke-width="{width:.1f}"{dash}/>'
    )


def _node(
    node: Node, at: tuple[float, float], number: int, values: Mapping[Edge, float], names: Mapping[Node, str]
) -> str:
    (x, y), (w, h) = at, BOX
    hatch = ""
    if node.kind in HATCHED:
        lines = ""
        for k in range(-int(h), int(w), 8):
            a, b = max(0, k), min(w, k + h)
            lines += f"M{x + a:.0f} {y + h - (a - k):.0f}L{x + b:.0f} {y + h - (b - k):.0f}"
        hatch = f'<path class="lab-graph-hatch" d="{lines}"/>'
    second = names.get(node, "") or _second(node)
    into = [port for port in PORTS if any(edge.target == node and edge.into == port for edge in values)]
    ports = "".join(
        f'<text class="lab-graph-port" x="{x + w * PORTS[port]:.0f}" y="{y + h + 10:.0f}">{port} </text>'
        for port in into
    )
    ins = sum(edge.target == node for edge in values)
    outs = sum(edge.source == node for edge in values)
    where = f", at {node.place}" if node.kind in ("head", "latent") else ""
    shown = " ".join(filter(None, [node.title, second, *into]))  # what can be read on the node comes first
    says = f"{shown}{where}: {ins} edges in, {outs} out"
    return (
        f'<g class="lab-graph-node {html.escape(node.kind)}" role="img" '
        f'data-node="{number}" aria-label="{html.escape(says, quote=True)}"><rect x="{x:.0f}" y="{y:.0f}" '
        f'width="{w:g}" height="{h:g}" rx="{16 if node.kind in ("head", "answer") else 5}"/>{hatch}'
        f'<text x="{x + w / 2:.0f}" y="{y + 15:.0f}"{_fitting(node.title, 13)}>{html.escape(node.title)} </text>'
        f'<text class="lab-graph-second" x="{x + w / 2:.0f}" y="{y + 29:.0f}"{_fitting(second, 11)}>'
        f"{html.escape(second)} </text>{ports}</g>"
    )


def _fitting(text: str, size: float) -> str:
    """Smaller letters for a text that would leave its box, as an attribute."""
    room = (BOX[0] - 10) / (0.64 * max(len(text), 1))
    return f' style="font-size:{room:.1f}px"' if room < size else ""


def _second(node: Node) -> str:
    if node.kind == "frozen" and node.place != "elsewhere":
        return f"at {node.place}"
    return {"head": node.family, "latent": "named by text" if node.family == "named" else "", "answer": "logits"}.get(
        node.kind, ""
    )


def _says(node: Node, names: Mapping[Node, str]) -> str:
    where = "" if node.kind == "answer" or node.place == "elsewhere" else f" at {node.place}"
    what = {"head": f"head {node.title}", "answer": "the answer, logit of IO less that of S"}.get(node.kind, node.title)
    more = names.get(node, "") or (_second(node) if node.kind in ("head", "latent") else "")
    return f"{what}{where}" + (f" ({more})" if more else "")


def _card(
    node: Node,
    number: int,
    values: Mapping[Edge, float],
    measured: Mapping[Edge, Interval],
    names: Mapping[Node, str],
) -> str:
    def rows(side: str, chosen: list[Edge]) -> str:
        if not chosen:
            return ""
        items = "".join(
            f"<li><b>{_minus(values[edge])}</b> {html.escape(_other(edge, side))}"
            + (f" <small>(measured {html.escape(str(measured[edge]))})</small>" if edge in measured else "")
            + "</li>"
            for edge in chosen
        )
        return f"<p>{side}</p><ul>{items}</ul>"

    here = sorted(values, key=lambda edge: -abs(values[edge]))
    into = rows("In", [edge for edge in here if edge.target == node])
    out = rows("Out", [edge for edge in here if edge.source == node])
    return f'<div data-card="{number}" hidden><h4>{html.escape(_says(node, names))}</h4>{into}{out}</div>'


def _other(edge: Edge, side: str) -> str:
    node = edge.source if side == "In" else edge.target
    port = f", {edge.into}" if edge.into else ""
    where = f" at {node.place}" if node.place in COLUMNS and node.kind != "answer" else ""
    return f"{'from' if side == 'In' else 'to'} {node.title}{where}{port}"


def _minus(value: float) -> str:
    return signed(value).replace("-", "−")


def _legend() -> str:
    def line(kind: str, dash: str) -> str:
        return (
            f'<svg viewBox="0 0 40 10" width="40" height="10" aria-hidden="true"><path class="lab-graph-edge {kind}" '
            f'd="M1 5H39" stroke-width="4"{dash}/></svg>'
        )

    return (
        f'<figcaption class="lab-graph-legend">{line("for", "")} for the answer &emsp;'
        f"{line('against', ' stroke-dasharray=' + chr(34) + '6 4' + chr(34))} against it &emsp; "
        "the wider, the more nats &emsp; hatched: no edges into it, an error or what is taken as given</figcaption>"
    )


def _table(edges: Sequence[Edge], values: Mapping[Edge, float], measured: Mapping[Edge, Interval]) -> str:
    def name(node: Node) -> str:
        return node.title if node.kind == "answer" or node.place == "elsewhere" else f"{node.title} at {node.place}"

    head = ["from", "to", "input", "nats"] + (["measured on many prompts"] if measured else [])
    rows = [
        [name(edge.source), name(edge.target), edge.into or "—", _minus(values[edge])]
        + ([str(measured[edge]) if edge in measured else "—"] if measured else [])
        for edge in edges
    ]
    return table(head, rows)
