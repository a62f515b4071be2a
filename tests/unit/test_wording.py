"""Words that pages star: in one piece, spread over tokens, and not where they are part of an innocent word."""

from __future__ import annotations

import pytest

from labcode.wording import NAMES, OBJECTS, PLACES, TEMPLATES, masked, masked_tokens


@pytest.mark.parametrize(("text", "shown"), [("Oh SHIT.", "Oh S***."), ("apeshit", "apes***"), ("raped", "r****")])
def test_a_coarse_word_keeps_its_first_letter_and_its_length(text, shown):
    assert masked(text) == shown


@pytest.mark.parametrize("text", ["The grape was scraped.", "Drapes and skyscrapers.", "", "a class of assets"])
def test_other_words_stay(text):
    assert masked(text) == text


def test_the_words_of_the_prompts_stay():
    text = " ".join([*NAMES, *OBJECTS, *PLACES, *TEMPLATES])
    assert masked(text) == text


def test_a_word_in_pieces_is_starred_and_the_pieces_keep_their_lengths():
    assert masked_tokens([" a", "pes", "hit", "\n", "x"]) == (" a", "pes", "***", "\n", "x")
    assert masked_tokens([]) == ()
