"""The `coursemap` directive: what builds on what, as a drawing and as a table with each chapter's question and minutes.

Everything comes from the chapters' first lines, so the map can't say something else than they do.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx import addnodes

from labbook._ext import pages
from labbook._ext.chapters import Chapter, chapters, hours, links, minutes

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

# Sizes in the drawing's own units; a row is a part of the book.
WIDTH, LEFT, BOX, HIGH, GAP, ROW, TOP = 880, 120, 108, 50, 21, 100, 12
TIP = (
    '<marker id="lab-tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
    '<path d="M0 0 L7 4 L0 8" fill="none" stroke="currentColor"/></marker>'
)
LETTERS = 16  # of a title that fit on a line of a box


def parts(env: BuildEnvironment, known: dict[int, Chapter]) -> dict[str, list[Chapter]]:
    """The chapters under the captions of the table of contents."""
    by_page = {chapter.docname: chapter for chapter in known.values()}
    found: dict[str, list[Chapter]] = {}
    for tree in env.get_doctree(env.config.root_doc).findall(addnodes.toctree):
        inside = [by_page[page] for _, page in tree["entries"] if page in by_page]
        if inside:
            found.setdefault(tree.get("caption") or "Chapters", []).extend(inside)
    return found


def drawing(grouped: dict[str, list[Chapter]], address: Callable[[Chapter], str]) -> str:
    """The chapters as boxes that are links, a row for each part, with an arrow from each prerequisite."""
    place: dict[int, tuple[float, float]] = {}
    boxes, arrows, captions = [], [], []
    for row, (caption, inside) in enumerate(grouped.items()):
        top = TOP + row * ROW
        words = textwrap.wrap(caption, LETTERS)  # beside the boxes, where no arrow goes
        middle = top + HIGH / 2 + 5 - 7.5 * (len(words) - 1)
        captions += [f'<text x="2" y="{middle + 15 * i:g}">{escape(line)}</text>' for i, line in enumerate(words)]
        for column, chapter in enumerate(inside):
            x, y = LEFT + column * (BOX + GAP), top
            place[chapter.number] = (x, y)
            lines = textwrap.wrap(f"{chapter.number} {chapter.title}", LETTERS, max_lines=3, placeholder=" …")
            first = y + HIGH / 2 + 5 - 7.5 * (len(lines) - 1)
            said = escape(f"{chapter.number} {chapter.title}", quote=True)  # the words shown, without their line breaks
            boxes.append(
                f'<a href="{escape(address(chapter), quote=True)}" aria-label="{said}">'
                f'<rect x="{x}" y="{y}" width="{BOX}" height="{HIGH}" rx="7" '
                'fill="var(--pst-color-background)" stroke="currentColor"/>'
                + "".join(
                    f'<text x="{x + BOX / 2:g}" y="{first + 15 * i:g}" text-anchor="middle">{escape(line)} </text>'
                    for i, line in enumerate(lines)
                )
                + "</a>"
            )
    for after, before in direct(grouped).items():
        arrows += [_arrow(place[n], place[after]) for n in before if n in place]
    height = TOP + len(grouped) * ROW - (ROW - HIGH) + 10
    said = escape(spoken(grouped), quote=True)
    return (
        f'<figure class="lab-diagram lab-map" role="group" aria-label="{said}"><svg viewBox="0 0 {WIDTH} {height}" '
        'xmlns="http://www.w3.org/2000/svg" font-family="inherit" font-size="12.5" fill="currentColor" stroke="none">'
        f'{TIP}<g fill="none" stroke="currentColor">{"".join(arrows)}</g>{"".join(boxes)}'
        f'<g font-weight="bold">{"".join(captions)}</g></svg></figure>'
    )


def direct(grouped: dict[str, list[Chapter]]) -> dict[int, list[int]]:
    """The prerequisites that no other prerequisite already needs: the arrows worth drawing."""
    needs = {chapter.number: chapter.builds_on for inside in grouped.values() for chapter in inside}

    def earlier(n: int, seen: frozenset[int] = frozenset()) -> set[int]:
        before = set(needs.get(n, ())) - seen
        return before.union(*(earlier(one, seen | before) for one in before))

    return {
        n: [one for one in before if not any(one in earlier(other) for other in before if other != one)]
        for n, before in needs.items()
    }


def spoken(grouped: dict[str, list[Chapter]]) -> str:
    """The drawing in words."""
    told = [
        f"{chapter.number} {chapter.title}"
        + (f" builds on {' and '.join(map(str, chapter.builds_on))}" if chapter.builds_on else " builds on nothing")
        for inside in grouped.values()
        for chapter in inside
    ]
    return f"Which chapter builds on which. {'; '.join(told)}."


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x0, y0), (x1, y1) = start, end
    low, a, b = y0 + HIGH, x0 + BOX / 2, x1 + BOX / 2
    if y0 == y1 and x1 - x0 <= BOX + GAP:  # to the neighbour
        path = f"M{x0 + BOX} {y0 + HIGH / 2:g} H{x1 - 1}"
    elif y0 == y1:  # over the boxes between
        a, b = x0 + 0.75 * BOX, x1 + 0.25 * BOX
        path = f"M{a:g} {y0} C{a + 20:g} {y0 - 24} {b - 20:g} {y0 - 24} {b:g} {y1 - 1}"
    elif y1 - y0 > ROW:  # through the gap beside the boxes between
        a, gap = (x0 + 20, x0 - GAP / 2) if b < a else (x0 + BOX - 20, x0 + BOX + GAP / 2)
        path = f"M{a:g} {low} C{a:g} {low + 25} {gap:g} {low + 15} {gap:g} {low + 45} V{y1 - 50}"
        path += f" C{gap:g} {y1 - 20} {b:g} {y1 - 35} {b:g} {y1 - 1}"
    else:
        bend = (low + y1) / 2
        path = f"M{a:g} {low} C{a:g} {bend:g} {b:g} {bend:g} {b:g} {y1 - 1}"
    return f'<path d="{path}" stroke-opacity="0.7" marker-end="url(#lab-tip)"/>'


def fill(app: Sphinx, here: str, argument: str) -> list[nodes.Node]:
    """The drawing, and the table with the sum of the minutes."""
    known = chapters(app.env)
    grouped = parts(app.env, known)
    if not grouped:
        return [nodes.paragraph("", "This book has no numbered chapter.")]
    rows: list[list[pages.Cell]] = [
        [
            links(app, here, [chapter.number], "{number}. {title}"),
            chapter.question,
            links(app, here, list(chapter.builds_on)) or "nothing",
            *("" if time is None else f"{time} min" for time in (chapter.reading, chapter.doing)),
        ]
        for inside in grouped.values()
        for chapter in inside
    ]
    reading = sum(chapter.reading or 0 for chapter in known.values())
    sums = (f"All {len(known)} chapters", "", "", hours(reading), hours(minutes(known, list(known)) - reading))
    rows.append([nodes.strong("", text) if text else "" for text in sums])
    made = pages.table(["Chapter", "Question", "Builds on", "Reading", "Doing"], rows)
    drawn = drawing(grouped, lambda chapter: app.builder.get_relative_uri(here, chapter.docname))
    return [nodes.raw("", drawn, format="html"), made]


def setup(app: Sphinx) -> None:
    """Register the directive."""
    pages.add_directive(app, "coursemap", fill)
