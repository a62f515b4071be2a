"""The last line of a docstring names the chapters that use the function: held against the chapters' own cells."""

from __future__ import annotations

import ast
import importlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from onekernel import BOOK, chapter

from labbook._ext import api

SAYS = re.compile(
    r"Used in (?:(?P<all>all chapters)|chapters? (?P<list>\d\d(?:(?:, | and | to )\d\d)*))(?P<rest>[^.]*)"
)


def used_by(page: Path) -> set[Any]:
    """The functions and classes of labcode that the cells of a chapter name."""
    names: dict[str, Any] = {}
    trees = [ast.parse(cell.source) for cell in chapter(page.stem).cells if cell.cell_type == "code"]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "labcode":
            for alias in node.names:
                try:
                    thing = importlib.import_module(f"{node.module}.{alias.name}")
                except ModuleNotFoundError:
                    thing = getattr(importlib.import_module(node.module), alias.name)
                names[alias.asname or alias.name] = thing
    found = {thing for thing in names.values() if callable(thing)}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            thing = getattr(names.get(node.value.id), node.attr, None)
            found |= {thing} if callable(thing) else set()
    return found


CHAPTERS = {int(page.name[:2]): used_by(page) for page in sorted(BOOK.glob("[0-9][0-9]-*.md"))}


def numbers(listed: str) -> set[int]:
    """The chapters that "02, 04 to 06 and 09" names."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d\d)(?: to (\d\d))?", listed):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def public() -> Iterator[tuple[str, Any]]:
    """Every documented function and class of the package, by its full name."""
    for name in api.modules():
        module = importlib.import_module(name)
        for thing in vars(module).values():
            if callable(thing) and getattr(thing, "__module__", "") == name and not thing.__name__.startswith("_"):
                yield f"{name}.{thing.__name__}", thing


PUBLIC = dict(public())
USES: dict[str, set[int]] = defaultdict(set)
for number, things in CHAPTERS.items():
    for thing in things:
        USES[f"{thing.__module__}.{thing.__qualname__}"].add(number)


@pytest.mark.parametrize(
    "name", sorted(name for name in PUBLIC if USES[name] or "Used in chapter" in str(PUBLIC[name].__doc__))
)
def test_a_docstring_names_the_chapters_that_use_it(name):
    uses = USES[name]
    says = SAYS.search(" ".join(str(PUBLIC[name].__doc__).split()))
    assert says, f"{name} is used in chapters {sorted(uses)}: say so in the last line of its docstring"
    said = set(CHAPTERS) if says["all"] else numbers(says["list"])
    assert uses <= said
    if "through" not in says["rest"]:
        assert uses == said
