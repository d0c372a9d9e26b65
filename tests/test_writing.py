"""Measures of written text: each against a slow count of tuples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from knnlm.book.writing import copied, distinct, longest_run, ngrams, unknown_words, words

TOKENS = st.integers(0, 2)  # few of them, so that much repeats
ROWS = arrays(np.int32, (3, 7), elements=TOKENS)
TEXT = arrays(np.int32, st.integers(7, 30), elements=TOKENS)


def stretches(tokens, n: int) -> list[tuple]:
    """Return all n consecutive tokens, as tuples."""
    return [tuple(tokens[i : i + n].tolist()) for i in range(len(tokens) - n + 1)]


@given(TEXT, st.integers(1, 7))
def test_two_stretches_have_one_number_where_they_are_the_same_tokens(text, n):
    codes, tuples = ngrams(text, n).tolist(), stretches(text, n)
    assert len(codes) == len(tuples)
    assert len(set(codes)) == len(set(tuples)) == len(set(zip(codes, tuples, strict=True)))


@given(ROWS, st.integers(1, 7))
def test_rows_are_numbered_as_each_alone_and_whatever_their_type(rows, n):
    assert ngrams(rows, n).tolist() == [ngrams(row.astype(np.int64), n).tolist() for row in rows]


@given(ROWS, TEXT, st.integers(1, 7))
def test_shares_are_counts_of_tuples(rows, text, n):
    listed, stored = [stretches(row, n) for row in rows], set(stretches(text, n))
    assert distinct(rows, n) == pytest.approx([len(set(some)) / len(some) for some in listed])
    expected = [sum(one in stored for one in some) / len(some) for some in listed]
    assert copied(rows, text, n) == pytest.approx(expected)


@given(ROWS, arrays(np.int32, st.integers(0, 30), elements=TOKENS))
def test_the_longest_run_is_the_longest_stretch_that_some_place_has(rows, text):
    expected = [
        max((n for n in range(1, 8) if {*stretches(row, n)} & {*stretches(text, n)}), default=0)
        for row in rows
    ]
    assert longest_run(rows, text).tolist() == expected


@pytest.mark.parametrize("n", [0, 5])
def test_stretches_that_no_text_has_are_refused(n):
    with pytest.raises(ValueError, match="from 1 to 4"):
        ngrams(np.arange(4), n)


def test_unknown_words_leave_out_digits_and_both_ends():
    known = set(words("The harbor of Séoul, est. 2023"))
    assert known == {"The", "harbor", "of", "Séoul", "est"}
    texts = ["ibor The harbr of_Séoul 77 est 한국 harb", "harbr harbr", ""]
    assert unknown_words(texts, known).tolist() == [2 / 6, 0, 0]
