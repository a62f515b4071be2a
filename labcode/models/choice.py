"""Which model a run uses: `LAB_MODEL` is read here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from labcode.errors import ModelError
from labcode.models.cache import say
from labcode.models.folders import checked_folder
from labcode.models.known import KNOWN, Choice

T = TypeVar("T")


def choose(request: str | None = None) -> Choice:
    """Decide which model to use, without loading, downloading or converting anything.

    Args:
        request: `auto`, `gpt2`, `smollm2` or the path of a folder; None reads `LAB_MODEL`, else `auto`.
            `auto` takes GPT-2 small if its files are in the hub's cache or the hub answers within five
            seconds, else the embedded SmolLM2.

    Raises:
        ModelError: No such model or folder, or a folder that the lab can't use.

    Used by every chapter's first cell, through `load`.
    """
    asked = (os.environ.get("LAB_MODEL") if request is None else request) or "auto"
    # The site build chooses once and hands its reason to the kernels beside the choice.
    handed = os.environ.get("LAB_MODEL_WHY") if request is None else None
    if asked == "auto":
        return _auto()
    if asked in KNOWN:
        return Choice(asked, handed or f"LAB_MODEL={asked} asks for it")
    if not (os.sep in asked or "/" in asked or asked.startswith(("~", ".")) or Path(asked).exists()):
        raise ModelError(
            f"LAB_MODEL={asked} isn't a model: use auto, {', '.join(KNOWN)}, or the path of a model folder",
            see="unknown-model",
        )
    folder = checked_folder(Path(asked))
    return Choice(str(folder), handed or "LAB_MODEL names this folder", folder)


def _auto() -> Choice:
    from labcode.models import hub

    if hub.cached() is not None:
        return Choice("gpt2", "its files are in the hub's cache")
    why_not = hub.unreachable()
    if why_not is None:
        return Choice("gpt2", "the hub answers")
    return Choice("smollm2", f"GPT-2 small isn't in the hub's cache and {why_not}")


def located(choice: Choice, probed: bool = False) -> Choice:
    """The choice with its verified local folder: downloads or converts where that is still to be done.

    Args:
        choice: From `choose`.
        probed: The hub has just been asked, and answered.

    Raises:
        ModelError: The files can't be had, verified or written.
    """
    if choice.name == "gpt2":
        from labcode.models.hub import fetched_folder

        return replace(choice, folder=fetched_folder(probed))
    if choice.name == "smollm2":
        from labcode.models.convert import converted_folder

        return replace(choice, folder=converted_folder())
    return replace(choice, folder=checked_folder(Path(choice.name)))


def first_that_works(request: str | None, accept: Callable[[Choice], T]) -> tuple[Choice, T]:
    """Choose, locate and `accept` a model; `auto` falls back to the embedded one if GPT-2 small fails.

    A model that was asked for by name never falls back.

    Raises:
        ModelError: From the choice, from locating it, or from `accept`.
    """
    choice = choose(request)
    asked = (os.environ.get("LAB_MODEL") if request is None else request) or "auto"
    try:
        choice = located(choice, probed=asked == "auto")
        return choice, accept(choice)
    except ModelError as error:
        if asked != "auto" or choice.name == "smollm2":
            raise
        say(f"GPT-2 small can't be used: {error}")
        choice = located(Choice("smollm2", f"GPT-2 small can't be used here: {error}"))
        return choice, accept(choice)
