"""Classes of tokens that can be told from the token's text alone: numbers, marks, names, the closed classes of English.

A token may be in several. The closed classes go by spelling, so that "that" is a conjunction here, and also an article
or the like.

Used in chapter 15, through `labcode.readable`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable

from labcode.wording import NAMES

_MARKS = frozenset(string.punctuation + "“”‘’…–—")
_CLOSED = {
    "pronoun": "i you he she it we they me him her us them my your his its our their who whom whose",
    "article or the like": "a an the this that these those each every some any no all both",
    "preposition": "of in to for with on at by from about into over after under between through during against",
    "conjunction": "and or but nor so yet because if when while although since unless that than",
    "form of be, have or do": "is are was were be been being am has have had having do does did doing",
    "modal verb": "can could may might must shall should will would",
}


def _listed(words: str) -> Callable[[str], bool]:
    every = frozenset(words.split())
    return lambda word: word.strip().lower() in every


CLASSES: dict[str, Callable[[str], bool]] = {
    "number": lambda w: w.strip().isdigit(),
    "punctuation mark": lambda w: bool(w.strip()) and set(w.strip()) <= _MARKS,
    "end of a sentence": lambda w: w.strip() in {".", "!", "?", "...", ".”", '."'},
    "quotation mark": lambda w: bool(w.strip()) and set(w.strip()) <= set("\"'“”‘’`"),
    "bracket": lambda w: bool(w.strip()) and set(w.strip()) <= set("()[]{}<>"),
    "line break": lambda w: "\n" in w,
    "capitalised word": lambda w: bool(re.fullmatch(r" ?[A-Z][a-z]+", w)),
    "word in capitals": lambda w: bool(re.fullmatch(r" ?[A-Z]{2,}", w)),
    "single letter": lambda w: bool(re.fullmatch(r" ?[A-Za-z]", w)),
    "lower-case word": lambda w: bool(re.fullmatch(r" [a-z]+", w)),
    "middle or end of a word": lambda w: bool(re.fullmatch(r"[a-z]+", w)),
    "long word": lambda w: w.strip().isalpha() and len(w.strip()) >= 7,
    "first name": lambda w: w.strip() in NAMES,
    "not ASCII": lambda w: not w.isascii(),
    **{name: _listed(words) for name, words in _CLOSED.items()},
}
