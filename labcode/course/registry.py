"""The exercises by their numbers; the module of a chapter is imported when one of its exercises is asked for."""

from __future__ import annotations

import importlib
import pkgutil
import re

from labcode.course import exercises
from labcode.course.exercise import Exercise

NUMBER = re.compile(r"(\d\d)\.\d+\Z")


def find(number: str) -> Exercise | None:
    """The exercise with this number, or none."""
    found = NUMBER.match(str(number).strip())
    if not found:
        return None
    return next((one for one in of_chapter(found[1]) if one.number == found[0]), None)


def of_chapter(chapter: str) -> list[Exercise]:
    """The exercises of a chapter, "04" say, in the order of the page."""
    name = f"chapter{chapter}"
    if name not in {module.name for module in pkgutil.iter_modules(exercises.__path__)}:
        return []
    return list(importlib.import_module(f"{exercises.__name__}.{name}").EXERCISES)


def numbers() -> list[str]:
    """The numbers of all exercises. Used in the tests."""
    chapters = sorted(module.name.removeprefix("chapter") for module in pkgutil.iter_modules(exercises.__path__))
    return [one.number for chapter in chapters for one in of_chapter(chapter)]
