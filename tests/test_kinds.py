"""Kinds of tokens, each against a loop that reads a line from its beginning."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnlm.book import kinds

PIECES = st.lists(
    st.sampled_from(["Area", " Oslo", " km", "er", ":", " est.:", "1", " 2nd", ".", "\n", ".\n\n"]),
    min_size=1,
    max_size=30,
)


def lines_of(pieces: list[str]) -> list[list[str]]:
    """The tokens of each line, the one that ends the line before among them."""
    lines = [[]]
    for piece in pieces:
        if "\n" in piece:
            lines.append([])
        lines[-1].append(piece)
    return lines


@given(PIECES)
def test_kinds_of_words_are_those_of_a_loop_over_lines(pieces):
    expected, before = [], ""
    for line in lines_of(pieces):
        colon = next((i for i, piece in enumerate(line) if ":" in piece), 99)
        for place, piece in enumerate(line):
            bare = piece.strip()
            if "\n" in piece or (place <= colon and colon < 12):
                kind = "label"
            elif any(letter.isdigit() for letter in piece):
                kind = "number"
            elif piece[0].isalpha() and before[-1:].isalpha():
                kind = "rest of a word"
            elif bare[:1].isupper():
                kind = "name"
            else:
                kind = "word" if bare[:1].isalpha() else "punctuation"
            expected.append(kind)
            before = piece
    assert kinds.word_kinds(pieces).tolist() == expected


def test_a_colon_far_back_ends_no_label():
    long = ["\n", *[" a"] * 11, ":", " b"]
    assert kinds.word_kinds(long)[1] == "word"
    assert kinds.word_kinds(long[1:])[0] == "label"


@given(PIECES)
def test_kinds_in_a_line_are_those_of_a_loop_over_lines(pieces):
    expected = []
    for number, line in enumerate(lines_of(pieces)):
        colons = [i for i, piece in enumerate(line) if ":" in piece]
        for place, piece in enumerate(line):
            if number and "\n" not in piece and (not colons or place <= colons[0]):
                kind = "labels"
            elif any(letter.isdigit() for letter in piece):
                kind = "numbers"
            elif any(letter.isalpha() for letter in piece):
                kind = "words"
            else:
                kind = "line ends" if "\n" in piece else "punctuation"
            expected.append(kind)
    assert kinds.line_kinds(pieces).tolist() == expected


def test_gains_are_sums_by_hand():
    gain, groups = np.array([0.5, 1.5, -1.0, 3.0]), ["a", "b", "a", "b"]
    table = kinds.gains(gain, groups)
    assert table.loc["a"].tolist() == pytest.approx([-0.25, 0.5, -12.5])
    assert table.loc["b"].tolist() == pytest.approx([2.25, 0.5, 112.5])
    ordered = kinds.gains(gain, pd.Categorical(groups, categories=["c", "b", "a"]))
    assert ordered.index.tolist() == ["b", "a"]
