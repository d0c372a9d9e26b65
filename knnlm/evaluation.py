"""What to report: perplexity, the best of a sweep, intervals over documents, near-duplicates."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from knnlm.errors import InputError
from knnlm.mixture import Setting, interpolate


def perplexity(log_probs: np.ndarray, units: int | None = None) -> float:
    """Return exp of the mean negative log-probability, per token, or per unit such as words.

    >>> perplexity(np.log([0.5, 0.125]))
    4.0
    """
    total = -np.sum(np.asarray(log_probs, dtype=np.float64))
    return float(np.exp(total / (len(log_probs) if units is None else units)))


@dataclass(frozen=True)
class Sweep:
    """Perplexity at every λ, temperature and k: ``table`` has these four columns."""

    table: pd.DataFrame
    perplexity_lm: float

    def best(self, **fixed: float) -> Setting:
        """Return the row with the lowest perplexity, among those with e.g. ``k=8``."""
        table = self.table
        for name, value in fixed.items():
            table = table[np.isclose(table[name], value)]
        if table.empty:
            raise InputError(f"The sweep has no row with {fixed}. Choose values that were swept.")
        row = table.loc[table["perplexity"].idxmin()]
        return Setting(
            int(row["k"]), float(row["lam"]), float(row["temperature"]), float(row["perplexity"])
        )


def best_mixture(
    lm_log_prob: np.ndarray, knn_log_probs: Mapping[float, np.ndarray], lams: Iterable[float]
) -> tuple[float, float]:
    """Return the λ and the temperature at which the mixture's perplexity is lowest.

    For what :meth:`~knnlm.retrieval.Retrieval.sweep` does not know: weighted neighbors, pointers, a
    cache.

    Parameters
    ----------
    lm_log_prob
        ``(n,)``, in nats: of what is mixed into.
    knn_log_probs
        ``(n,)`` by temperature, in nats: of what is mixed in.
    lams
        Shares of it to try.

    >>> known = {1: np.log([0.1, 0.5]), 2: np.log([0.5, 0.5])}
    >>> best_mixture(np.log([0.5, 0.1]), known, [0, 0.5, 1])
    (1, 2)
    """
    lm_log_prob, lams = np.asarray(lm_log_prob, dtype=np.float64), list(lams)
    total = {
        (lam, temperature): interpolate(lm_log_prob, log_prob, lam).sum()
        for temperature, log_prob in knn_log_probs.items()
        for lam in lams
    }
    return max(total, key=lambda pair: total[pair])


class Interval(NamedTuple):
    """An estimate with the bounds between which 95 % of the resampled estimates lie."""

    estimate: float
    low: float
    high: float

    def through(self, function: Callable[[float], float]) -> "Interval":
        """Return the interval of ``function(estimate)``, for one that only rises or only falls."""
        bounds = sorted([float(function(self.low)), float(function(self.high))])
        return Interval(float(function(self.estimate)), *bounds)


def bootstrap(
    values: np.ndarray,
    documents: np.ndarray,
    units: np.ndarray | None = None,
    *,
    samples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the mean of values with a 95 % interval over the documents they come from.

    Documents, not tokens, are drawn with replacement, since the tokens of one document share its
    subject. With the difference of two models' log-probabilities as values it is the *paired*
    bootstrap (Koehn 2004, there with sentences): both models meet the same draws.

    Parameters
    ----------
    values
        ``(n,)``: say, log-probabilities of n tokens.
    documents
        ``(n,)``: the number of the document to which each value belongs.
    units
        Of each document what to divide by, such as its characters; by default its number of
        values, so that the estimate is their mean.

    >>> bootstrap(np.array([1.0, 1.0, 4.0]), np.array([0, 0, 1])).estimate
    2.0
    """
    minlength = 0 if units is None else len(units)
    counts = np.bincount(documents, minlength=minlength)
    present = counts > 0
    units = counts[present] if units is None else np.asarray(units)[present]
    sums = np.bincount(documents, values, minlength)[present]
    n = len(units)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples)
    drawn = (draws @ sums) / (draws @ units)
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    return Interval(float(sums.sum() / units.sum()), low, high)


def from_nearest_documents(
    documents: np.ndarray, neighbor_documents: np.ndarray, count: int, k: int = 8
) -> np.ndarray:
    """Return which neighbors come from the stored documents nearest to their token's, ``(n, m)``.

    Nearest to a document are the ``count`` from which most of its tokens' first k neighbors come:
    its near-duplicates above all. What a memory gains without them says what it would bring to a
    text that it does not hold in other words.

    Parameters
    ----------
    documents
        ``(n,)``: the number of the document to which each token belongs, as in
        :attr:`~knnlm.retrieval.Retrieval.documents`.
    neighbor_documents
        ``(n, m)``, nearest first: the number of the stored document that each neighbor is from, −1
        for none, as ``document_of(store.document_starts, ids)`` returns.
    count
        Documents to name for each; of those with equally many neighbors, the first.
    k
        How many neighbors of a token count.

    >>> own, found = np.array([0, 0, 1]), np.array([[4, 2], [4, 3], [2, 4]])
    >>> from_nearest_documents(own, found, count=1, k=1).tolist()
    [[True, False], [True, False], [True, False]]
    """
    there, own = neighbor_documents >= 0, documents[:, None]
    votes = np.zeros((documents.max() + 1, neighbor_documents.max() + 1))
    np.add.at(votes, (own, neighbor_documents[:, :k]), there[:, :k])
    is_near = np.zeros(votes.shape, dtype=bool)
    np.put_along_axis(is_near, np.argsort(-votes, axis=1, kind="stable")[:, :count], True, axis=1)
    return is_near[own, neighbor_documents] & there
