"""Cases to read: as tables, as a shortened record, as shaded text, one of each document."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from knnlm.cases import Case


def end_of(text: str, length: int = 32) -> str:
    """Return the last characters of a text after a "…", with its line breaks to be seen.

    >>> end_of("Area\\ntotal: 41,277", 14)
    '… total: 41,277'
    """
    return "…" + text.replace("\n", " ⏎ ")[-length:]


def percent(p: float) -> str:
    """Return a probability in percent, with more digits where it is small.

    >>> percent(0.254), percent(0.0025), percent(1e-9)
    ('25%', '0.25%', '< 0.01%')
    """
    return f"{p:.0%}" if p >= 0.01 else f"{p:.2%}" if p >= 0.0001 else "< 0.01%"


def overview(cases: Iterable[Case], length: int = 32) -> pd.DataFrame:
    """Return a row a case: how its context ends, the true token, and what three models gave it.

    Parameters
    ----------
    cases
        As :func:`~knnlm.cases.find_cases` returns. The names of their documents, up to a colon,
        become the index.
    length
        Characters of context.
    """
    rows = {
        "context": [end_of(case.context, length) for case in cases],
        "next": [repr(case.label) for case in cases],
        "p_LM": [percent(case.lm_probability) for case in cases],
        "p_kNN": [percent(case.knn_probability) for case in cases],
        "mixture": [percent(case.knn_lm_probability) for case in cases],
    }
    return pd.DataFrame(rows, index=[case.document.partition(":")[0] for case in cases])


def neighbors(case: Case, top: int = 8, length: int = 32) -> pd.DataFrame:
    """Return a row a neighbor, nearest first: its context, what came next, its share of p_kNN.

    Parameters
    ----------
    case
        The token whose neighbors to show.
    top
        How many.
    length
        Characters of context.
    """
    found = case.neighbors
    rows = {
        "context": [end_of(context, length) for context in found.contexts],
        "next": [repr(label) for label in found.labels],
        "share": [percent(share) for share in found.softmax],
        "distance": np.round(found.distance, 1),
    }
    names = [name.partition(":")[0] for name in found.documents]
    return pd.DataFrame(rows, index=names).head(top)


def short_json(
    record: Mapping[str, Any], entries: int = 2, letters: int = 40, indent: str = ""
) -> str:
    """Return a record as JSON, a line a field: the first entries of lists, the ends of texts.

    Parameters
    ----------
    record
        As :meth:`~knnlm.cases.Case.to_dict` returns.
    entries
        Of each list, how many to show.
    letters
        Of each text, how many to show; its last ones.
    indent
        What stands before each line of a record within a record.

    >>> print(short_json({"label": " coast", "softmax": [0.251234, 0.125, 0.1]}))
    {
      "label": " coast",
      "softmax": [0.2512, 0.125]
    }
    """

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(part) for part in value[:entries]]
        if isinstance(value, float):
            return float(f"{value:.4g}")
        return value[-letters:] if isinstance(value, str) else value

    inner = indent + "  "
    lines = [
        f'{inner}"{name}": '
        + (
            short_json(value, entries, letters, inner)
            if isinstance(value, dict)
            else json.dumps(short(value), ensure_ascii=False)
        )
        for name, value in record.items()
    ]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def best_of_each(
    score: np.ndarray, documents: np.ndarray, among: np.ndarray | None = None
) -> np.ndarray:
    """Return the position of each document's highest score, the highest of all first.

    Parameters
    ----------
    score
        ``(n,)``: of each token, such as its gain.
    documents
        ``(n,)``: the number of the document to which each belongs.
    among
        ``(n,) bool``: only these tokens; a document that has none of them is left out.

    >>> best_of_each(np.array([3, 1, 2, 5]), np.array([0, 0, 1, 1])).tolist()
    [3, 0]
    """
    table = pd.DataFrame({"score": score, "document": documents})
    scores = table[slice(None) if among is None else among].groupby("document")["score"]
    return scores.idxmax()[scores.max().sort_values(ascending=False).index].to_numpy()


def shaded(pieces: Sequence[str] | np.ndarray, gain: Sequence[float] | np.ndarray) -> str:
    """Return HTML of a text with each token shaded by its gain: darker is more.

    Green where memory helped, orange where it hurt, and underlined where that was by more than
    0.2 nats.

    Parameters
    ----------
    pieces
        The text of each token.
    gain
        Its log p − log p_LM, in nats.
    """
    parts = []
    for piece, nats in zip(pieces, gain, strict=True):
        color = "0,158,115" if nats > 0 else "213,94,0"
        line = "; text-decoration: underline" if nats < -0.2 else ""
        strength = min(0.75, abs(nats) / 2)
        text = html.escape(piece, quote=False).replace("\n", "<br>")
        parts.append(f'<span style="background: rgba({color},{strength:.2f}){line}">{text}</span>')
    return f'<p style="line-height: 1.7">{"".join(parts)}</p>'
