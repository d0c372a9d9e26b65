"""Which kind of token stands where on a page of the Factbook, and what each kind gains.

A line of such a page is a label, a colon, and a text. Chapter 5 asks for words: what begins one,
what goes on with one. Chapter 10, whose tokens are larger, asks for the parts of a line.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

LABEL = 12  # a colon further back than that ends no label


def word_kinds(pieces: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return the kind of each token of a text, ``(n,) str``: of six, the first that fits.

    ``"label"``: a line's end, or what stands before the line's first colon, that included, if this
    is among its first twelve tokens; ``"number"``: with a digit; ``"rest of a word"``: letters
    after letters; ``"name"``: with a capital; ``"word"``; ``"punctuation"``: all else.

    Parameters
    ----------
    pieces
        The text of each token, in order.

    >>> word_kinds(["\\n", "Seat", ":", " Ber", "n", " since", " 1848"]).tolist()
    ['label', 'label', 'label', 'name', 'rest of a word', 'word', 'number']
    """
    pieces = np.asarray(pieces, dtype=str)
    ends = np.array(["\n" in piece for piece in pieces])
    colons = np.array([":" in piece for piece in pieces])
    before = np.array(["", *pieces[:-1]])
    here = np.arange(len(pieces))
    line = np.cumsum(ends)  # (n,): a line begins with the token that ends the last one
    place = here - np.maximum.accumulate(np.where(ends, here, 0))  # in its line
    first = np.full(len(pieces) + 1, len(pieces) + LABEL)  # of each line, the place of its colon
    np.minimum.at(first, line[colons], place[colons])
    kinds = {
        "label": ends | (place <= first[line]) & (first[line] < LABEL),
        "number": [any(map(str.isdigit, piece)) for piece in pieces],
        "rest of a word": [
            piece[:1].isalpha() and last[-1:].isalpha()
            for piece, last in zip(pieces, before, strict=True)
        ],
        "name": [piece.strip()[:1].isupper() for piece in pieces],
        "word": [piece.strip()[:1].isalpha() for piece in pieces],
    }
    return np.select([np.asarray(fits) for fits in kinds.values()], list(kinds), "punctuation")


def line_kinds(pieces: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return the kind of each token of a text, ``(n,) str``: of five, the first that fits.

    ``"labels"``: from a line's beginning to its first colon, that included, and a heading without
    one; ``"numbers"``: with a digit; ``"words"``: with a letter; ``"line ends"``;
    ``"punctuation"``: all else. Before the first line end there is no label: an excerpt begins
    anywhere.

    Parameters
    ----------
    pieces
        The text of each token, in order.

    >>> line_kinds(["km", ".\\n", "Area", ":", " 41", " km", "."]).tolist()
    ['words', 'line ends', 'labels', 'labels', 'numbers', 'words', 'punctuation']
    """
    has_digit, has_letter, ends, colon = (
        np.array([bool(re.search(pattern, piece)) for piece in pieces])
        for pattern in (r"\d", r"[^\W\d_]", r"\n", ":")
    )
    here = np.arange(len(pieces))
    last_end = np.maximum.accumulate(np.where(ends, here, -1))
    last_colon = np.maximum.accumulate(np.where(colon, here, -1))
    before = np.append(-1, last_colon[:-1])  # the last colon before each token
    in_label = ~ends & ((last_colon < last_end) | (colon & (before < last_end)))
    kinds = {"labels": in_label, "numbers": has_digit, "words": has_letter, "line ends": ends}
    return np.select(list(kinds.values()), list(kinds), "punctuation")


def gains(gain: np.ndarray, groups: Sequence | np.ndarray | pd.Categorical) -> pd.DataFrame:
    """Return what the tokens of each group gain.

    Parameters
    ----------
    gain
        ``(n,)``: log p − log p_LM of each token, in nats.
    groups
        ``(n,)``: the group of each; those of a categorical are kept in its order.

    Returns
    -------
    pandas.DataFrame
        By group: ``gain``, the mean in nats; ``share`` of all tokens; ``of_gain``, the part of the
        sum of all gains, in percent.

    >>> gains(np.array([1.0, 3.0, 0.0, -2.0]), ["a", "a", "b", "b"])["of_gain"].tolist()
    [200.0, -100.0]
    """
    table = pd.DataFrame({"gain": gain, "group": groups})
    grouped = table.groupby("group", observed=True)["gain"]
    return pd.DataFrame(
        {
            "gain": grouped.mean(),
            "share": grouped.size() / len(gain),
            "of_gain": 100 * grouped.sum() / np.sum(gain),
        }
    )
