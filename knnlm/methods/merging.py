"""Fewer keys: those that say the same as an earlier one are merged into it (He et al. 2021).

A key goes where one of its nearest keys has the same value, comes earlier in the datastore, and has
itself not gone; the nearest of those takes its vote. A key that w keys were merged into, itself
among them, has weight w, and votes for w:

    p_kNN(y) ∝ Σ 1[vᵢ = y] wᵢ exp(−dᵢ / T) = Σ 1[vᵢ = y] exp(−(dᵢ − T log wᵢ) / T)

Source: arXiv 2109.04212, greedy merging. There each key, in random order, takes in those of its
nearest keys that have taken in none. Here the later key looks for its host, so that nothing is
drawn, and what is decided of one key hangs on earlier ones alone.
"""

import numpy as np

from knnlm.errors import InputError
from knnlm.progress import progress

ROWS_PER_CHUNK = 1 << 16


def merge(neighbor_ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return each key's weight, ``(n,) int32``: 0 for those that went; they sum to n.

    ``np.flatnonzero(weights)`` are the ``rows`` for :meth:`~knnlm.index.Index.build`. Of neighbors
    one chunk of rows is in memory at a time, so that they can be mapped from disk.

    Parameters
    ----------
    neighbor_ids
        ``(n, k)``: of each key the rows of its nearest keys, nearest first, −1 for none. The key
        itself may be among them.
    values
        ``(n,)``: the token behind each key.

    Raises
    ------
    InputError
        When the two are not of equally many keys.

    >>> merge(np.array([[0, 1], [1, 0], [2, 1], [3, 2]]), np.array([5, 5, 5, 8])).tolist()
    [2, 0, 1, 1]
    """
    if np.ndim(neighbor_ids) != 2 or len(neighbor_ids) != len(values):
        raise InputError(
            f"The neighbors have shape {np.shape(neighbor_ids)}, but there are {len(values)} "
            "values. Give the neighbors of every key of the datastore, a row each."
        )
    values = np.asarray(values)
    weights = np.ones(len(values), dtype=np.int32)
    chunks = range(0, len(values), ROWS_PER_CHUNK)
    for lo in progress(chunks, description="merge", unit="chunks"):
        ids = np.asarray(neighbor_ids[lo : lo + ROWS_PER_CHUNK])  # (chunk, k)
        rows = np.arange(lo, lo + len(ids))  # (chunk,)
        possible = (ids >= 0) & (ids < rows[:, None]) & (values[ids] == values[rows, None])
        # Of this chunk all keys stay at first. The rule, applied to all at once, settles another
        # step of the longest chain of hosts each time; chains are short.
        stays, before = np.ones(len(ids), dtype=bool), None
        while before is None or (stays != before).any():
            before = stays
            hosts = possible & (weights[ids] > 0)
            stays = ~hosts.any(axis=1)
            weights[rows] = stays
        gone = np.flatnonzero(~stays)
        nearest = hosts[gone].argmax(axis=1)
        np.add.at(weights, ids[gone, nearest], 1)
    return weights


def weighted_distances(
    distances: np.ndarray, weights: np.ndarray, temperature: float
) -> np.ndarray:
    """Return distance − T log(weight), ``(n, k) float64``: a weight in the form of a distance.

    With these, :func:`~knnlm.mixture.knn_log_prob` and :func:`~knnlm.mixture.knn_distribution`, at
    the same temperature T, count each neighbor by its weight. They can be negative, and are no
    longer in order, which :func:`~knnlm.mixture.knn_log_prob_grid` would need.

    Parameters
    ----------
    distances
        ``(n, k)``; ``inf`` where there is no neighbor stays so.
    weights
        ``(n, k)``: of each neighbor, ``merge(...)[ids]``. A weight of 0 is no vote.
    temperature
        That of the softmax.

    >>> weighted_distances(np.array([[4.0, 4.0, np.inf]]), np.array([[1, 8, 1]]), 2).round(2)
    array([[ 4.  , -0.16,   inf]])
    """
    with np.errstate(divide="ignore"):  # log 0: no vote, an infinite distance
        return distances - temperature * np.log(weights, dtype=np.float64)
