"""A memory of this page: the continuous cache (Grave, Joulin and Usunier 2017).

At position t of a document, each of the last L positions votes for the token that followed it:

    p_cache(y) ∝ Σ 1[wᵢ = y] exp(−d(kᵢ, k_t) / T)    over t − L ≤ i < t

where kᵢ is the key at position i, wᵢ the token behind it, and d the squared Euclidean distance. It
is p_kNN with another datastore, which fills as the text is read and is emptied at each document.

Source: arXiv 1612.04426, section 3. They have inner products in place of distances.
"""

from collections.abc import Sequence

import numpy as np

from knnlm.errors import InputError
from knnlm.mixture import knn_log_prob_grid
from knnlm.progress import progress


def cache_log_prob(
    keys: np.ndarray,
    targets: np.ndarray,
    documents: np.ndarray,
    temperatures: Sequence[float],
    length: int = 1000,
    block: int = 256,
) -> np.ndarray:
    """Return log p_cache of each target at each temperature, in nats.

    ``block`` positions at a time are compared with all that are in the cache of any of them.

    Parameters
    ----------
    keys
        ``(n, dim)``, in the order of the text; they may be mapped from disk.
    targets
        ``(n,)``: the token behind each.
    documents
        ``(n,)``: the number of the document to which each target belongs. Where it changes, the
        cache is emptied.
    temperatures
        Each above 0, in units of the distance.
    length
        L: how many positions a cache holds.
    block
        Positions at a time: memory for block × (length + block) distances.

    Returns
    -------
    numpy.ndarray
        ``(temperatures, n) float64``: ``-inf`` where no vote is right, ``nan`` at the first token
        of each document, which has no past.

    Raises
    ------
    InputError
        When the arrays are not of equally many tokens, or the length or block is below 1.
    """
    n = len(targets)
    if len(keys) != n or len(documents) != n:
        raise InputError(
            f"There are {len(keys)} keys and {len(documents)} document numbers, but {n} targets. "
            "Give all of the same text."
        )
    if length < 1 or block < 1:
        raise InputError(f"length is {length} and block {block}. Both must be at least 1.")
    here = np.arange(n)
    begins = np.diff(documents, prepend=-1) != 0
    first = np.maximum.accumulate(np.where(begins, here, 0))  # (n,): where its document begins
    oldest = np.maximum(first, here - length)  # (n,): the first position in its cache
    result = np.empty((len(temperatures), n))
    for lo in progress(range(0, n, block), description="cache", unit="blocks"):
        now = here[lo : lo + block]
        past = here[oldest[lo] : now[-1] + 1]
        distances = _squared_distances(keys[now], keys[past])  # (block, past)
        distances[(past < oldest[now, None]) | (past >= now[:, None])] = np.inf
        is_target = targets[past] == targets[now, None]
        order = np.argsort(distances, axis=1)  # the grid wants the nearest first
        distances = np.take_along_axis(distances, order, axis=1)
        is_target = np.take_along_axis(is_target, order, axis=1)
        grid = knn_log_prob_grid(distances, is_target, temperatures, [len(past)])
        result[:, now] = grid[:, 0]  # (temperatures, block)
    return result


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Σ (a − b)² of each pair, ``(len(a), len(b)) float32``.

    Added up in float64: where two keys are close, little is left of the difference of their norms.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.maximum(squares, 0).astype(np.float32)
