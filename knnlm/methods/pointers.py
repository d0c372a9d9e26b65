"""Following pointers instead of searching (RetoMaton: Alon et al. 2022).

The candidates for a token are rows of the datastore. Those whose value was the token that came stay
on the track, and their pointers lead to the rows behind them:

    candidates(t + 1) = {row + 1 : row in candidates(t), value(row) = token(t)}

within a document. Where fewer than τ are left, a search replaces them by the nearest neighbors.
All candidates vote by their exact distance, as in p_kNN.

Source: arXiv 2201.12431, sections 3 and 4. There entries are also clustered, so that a candidate
may go on where a similar one went on, and what a search finds votes along with those that are left.
"""

from typing import NamedTuple

import numpy as np

from knnlm.datastore import Datastore
from knnlm.errors import InputError
from knnlm.progress import progress


class Walk(NamedTuple):
    """What :func:`follow` found: n tokens, and a flat list of the m votes of candidates."""

    searched: np.ndarray
    """``(n,) bool``: which tokens need a search."""
    positions: np.ndarray
    """``(m,) int64``: the token that a vote is for; one that was searched has none here."""
    distances: np.ndarray
    """``(m,) float32``: squared Euclidean, of the candidate's key from the query."""
    is_target: np.ndarray
    """``(m,) bool``: whether the candidate's value is the target."""

    def log_prob(self, knn_log_prob: np.ndarray, temperature: float) -> np.ndarray:
        """Return log p_kNN of each target, ``(n,) float64``.

        Parameters
        ----------
        knn_log_prob
            ``(n,)``: that of a search, in nats; only where ``searched`` is it used.
        temperature
            For the candidates' votes.
        """
        if not temperature > 0:
            raise InputError(
                f"temperature is {temperature}. It divides distances: choose one above 0."
            )
        n = len(self.searched)
        scores = -self.distances.astype(np.float64) / temperature  # (m,)
        right = self.is_target
        followed = _log_sum_exp(self.positions[right], scores[right], n)
        with np.errstate(invalid="ignore"):  # where it was searched there is no vote
            followed -= _log_sum_exp(self.positions, scores, n)
        return np.where(self.searched, knn_log_prob, followed)


def follow(
    store: Datastore,
    queries: np.ndarray,
    targets: np.ndarray,
    neighbor_ids: np.ndarray,
    tau: int = 1,
    *,
    segments: int = 128,
) -> Walk:
    """Follow pointers through a text, and say where a search is needed.

    A token's candidates come from the token before, so there is a loop over steps. The text is cut
    into segments that walk side by side, each of which begins with a search.

    Parameters
    ----------
    store
        Its ``keys``, ``values`` and ``document_starts`` are read, and of the keys only the
        candidates' rows.
    queries
        ``(n, dim)``: of each token of the text.
    targets
        ``(n,)``: the token to predict at each position.
    neighbor_ids
        ``(n, k)``: the rows that a search finds, −1 for none.
    tau
        Search where fewer candidates are left: 1 follows until the last is lost.
    segments
        How many stretches walk side by side. The keys of at most so many times k candidates are
        in memory.

    Raises
    ------
    InputError
        When the arrays are not of equally many tokens, or τ or the segments are fewer than one.
    """
    n = len(targets)
    if len(queries) != n or len(neighbor_ids) != n:
        raise InputError(
            f"There are {len(queries)} queries and neighbors of {len(neighbor_ids)} tokens, but "
            f"{n} targets. Give all of the same text."
        )
    if tau < 1 or segments < 1:
        raise InputError(f"τ is {tau} and segments {segments}. Both must be at least 1.")
    borders = np.linspace(0, n, segments + 1).astype(int)
    ends = np.append(store.document_starts[1:], len(store.values))  # no pointer leads to these
    searched = np.zeros(n, dtype=bool)
    seg = rows = np.empty(0, dtype=np.int64)  # the candidates: of which segment, which row
    votes = []
    steps = range(np.diff(borders).max())
    for step in progress(steps, description="follow", unit="steps"):
        at = borders[:-1] + step  # (segments,)
        alive = at < borders[1:]
        needs = alive & (np.bincount(seg, minlength=segments) < tau)
        going = (alive & ~needs)[seg]
        seg, rows = seg[going], rows[going]
        away = store.keys[rows].astype(np.float32) - queries[at[seg]]  # (candidates, dim)
        hit = store.values[rows] == targets[at[seg]]
        votes.append((at[seg], np.einsum("nd,nd->n", away, away), hit))

        new = np.flatnonzero(needs)
        searched[at[new]] = True
        ids = np.asarray(neighbor_ids[at[new]])  # (new, k)
        found = (store.values[np.maximum(ids, 0)] == targets[at[new], None]) & (ids >= 0)
        which, place = np.nonzero(found)
        seg = np.concatenate([seg[hit], new[which]])
        rows = np.concatenate([rows[hit], ids[which, place]]) + 1
        goes_on = ends[np.searchsorted(ends, rows)] != rows
        seg, rows = seg[goes_on], rows[goes_on]
    return Walk(searched, *map(np.concatenate, zip(*votes, strict=True)))


def _log_sum_exp(positions: np.ndarray, scores: np.ndarray, n: int) -> np.ndarray:
    """Return for each position the log of its summed exp(score), ``(n,)``; ``-inf`` for none."""
    most = np.full(n, -np.inf)
    np.maximum.at(most, positions, scores)
    total = np.bincount(positions, np.exp(scores - most[positions]), n)
    with np.errstate(divide="ignore"):
        return most + np.log(total)
