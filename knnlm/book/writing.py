"""Measures of written text: how much of it repeats, is copied, or is no word that anybody wrote."""

import re
from collections.abc import Collection, Iterable

import numpy as np

WORD = re.compile(r"[^\W\d_]+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, and near 2⁶⁴ / 1.618


def ngrams(tokens: np.ndarray, n: int) -> np.ndarray:
    """Return a number for each n consecutive tokens: equal for equal ones.

    The number is a polynomial of the tokens modulo 2⁶⁴, so that two different stretches share one
    about once in 10¹⁹ pairs. Numbers are sorted and compared far faster than tuples.

    Parameters
    ----------
    tokens
        ``(…, length)``, integers from 0: a text, or a row for each of several.
    n
        From 1 to the length.

    Returns
    -------
    numpy.ndarray
        ``(…, length - n + 1) uint64``.

    Raises
    ------
    ValueError
        When there are no n tokens in a row.

    >>> codes = ngrams(np.array([7, 8, 9, 7, 8]), 2)
    >>> len(codes), bool(codes[0] == codes[3]), bool(codes[0] == codes[1])
    (4, True, False)
    """
    length = tokens.shape[-1]
    if not 1 <= n <= length:
        raise ValueError(f"n is {n}, but there are {length} tokens. Choose from 1 to {length}.")
    codes = np.zeros((*tokens.shape[:-1], length - n + 1), dtype=np.uint64)
    for j in range(n):
        some = tokens[..., j : length - n + 1 + j].astype(np.uint64)
        codes = codes * MULTIPLIER + some + np.uint64(1)
    return codes


def distinct(rows: np.ndarray, n: int) -> np.ndarray:
    """Return of each row the share of its n-grams that are different ones: distinct-n.

    What is left to 1 is the share that repeats an earlier one.

    Parameters
    ----------
    rows
        ``(texts, length)``: token ids.
    n
        Tokens in a stretch.

    Returns
    -------
    numpy.ndarray
        ``(texts,) float64``.

    Source: Li et al. 2016 (arXiv 1510.03055), who divide by the number of tokens.

    >>> distinct(np.array([[1, 2, 1, 2, 1]]), 2).tolist()
    [0.5]
    """
    return np.array([len(np.unique(row)) / len(row) for row in ngrams(rows, n)])


def copied(rows: np.ndarray, text: np.ndarray, n: int) -> np.ndarray:
    """Return of each row the share of its n-grams that stand in a text, ``(texts,) float64``.

    Parameters
    ----------
    rows
        ``(texts, length)``: token ids.
    text
        ``(tokens,)``: say, the values of a datastore.
    n
        Tokens in a stretch.

    >>> copied(np.array([[5, 1, 2, 5]]), np.array([1, 2, 5, 9]), 2).round(3).tolist()
    [0.667]
    """
    return np.isin(ngrams(rows, n), ngrams(text, n)).mean(axis=-1)


def longest_run(rows: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Return of each row the most consecutive tokens that stand in a text, ``(texts,) int64``.

    For n = 1, 2, … it looks only where n − 1 tokens of some row stood: soon these places are few.

    Parameters
    ----------
    rows
        ``(texts, length)``: token ids.
    text
        ``(tokens,)``: say, the values of a datastore.

    >>> longest_run(np.array([[5, 1, 2, 5], [8, 8, 9, 8]]), np.array([1, 2, 5, 9])).tolist()
    [3, 1]
    """
    longest = np.zeros(len(rows), dtype=np.int64)
    places = np.arange(len(text))  # where in the text a stretch of some row may begin
    for n in range(1, rows.shape[1] + 1):
        places = places[places + n <= len(text)]
        if not len(places):
            break
        here = ngrams(text[places[:, None] + np.arange(n)], n)[:, 0]  # (places,)
        wanted = ngrams(rows, n)  # (texts, length - n + 1)
        longest[np.isin(wanted, here).any(axis=1)] = n
        places = places[np.isin(here, wanted)]
    return longest


def words(text: str) -> list[str]:
    """Return the words of a text, as they are written: letters in a row, of any script.

    >>> words("The island's GDP fell by 3.5% (2021 est.)")
    ['The', 'island', 's', 'GDP', 'fell', 'by', 'est']
    """
    return WORD.findall(text)


def unknown_words(texts: Iterable[str], known: Collection[str]) -> np.ndarray:
    """Return of each text the share of its words that are not known, ``(texts,) float64``.

    The outermost two do not count, since the borders of a text may cut through them. Where no
    others are left, the share is 0.

    Parameters
    ----------
    texts
        What was written.
    known
        A set of what :func:`words` finds in another text.

    >>> unknown_words(["erland is a grusty island of the Pac"], {"is", "a", "island", "of", "the"})
    array([0.16666667])
    """
    inner = [words(text)[1:-1] for text in texts]
    return np.array([np.mean([word not in known for word in some] or [False]) for some in inner])
