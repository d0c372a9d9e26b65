"""The two equations of kNN-LM (Khandelwal et al. 2020, eq. 2 and 3). NumPy in, NumPy out.

Throughout, ``distances`` is ``(n, k)``: for each of n queries the distances of its neighbors;
``is_target`` is ``(n, k)``: whether the token that followed a neighbor is the one to predict. A
place with no neighbor (id −1 in FAISS) has distance ``inf``, and so a share of zero. Where a query
has no neighbor at all, p_kNN does not exist: it is ``nan``, and the mixture is p_LM alone.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


def knn_log_prob(
    distances: np.ndarray, is_target: np.ndarray, temperature: float = 1.0
) -> np.ndarray:
    """Return log p_kNN of the tokens to predict, ``(n,) float64`` (eq. 2).

    A softmax of −distance / temperature over a query's neighbors, added up over those that are
    followed by the target. In logarithms, so that nothing underflows. It is ``-inf`` where no
    neighbor has the target.

    >>> distances, is_target = np.array([[0.0, 0.0, 9.0]]), np.array([[True, False, False]])
    >>> np.exp(knn_log_prob(distances, is_target, temperature=2)).round(3).tolist()
    [0.497]
    """
    _check_temperature(temperature)
    nearest = distances.min(axis=1, keepdims=True)  # (n, 1)
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf: no neighbor at all
        score = np.subtract(nearest, distances, dtype=np.float64) / temperature  # (n, k), up to 0
        of_target = np.where(is_target, score, -np.inf)  # (n, k)
        total = np.logaddexp.reduce(score, axis=1)  # (n,)
        return np.logaddexp.reduce(of_target, axis=1) - total  # (n,)


def interpolate(
    lm_log_prob: np.ndarray, knn_log_prob: np.ndarray, lam: float | np.ndarray
) -> np.ndarray:
    """Return log(λ p_kNN + (1 − λ) p_LM) from the two log-probabilities (eq. 3), elementwise.

    At λ = 0 it is ``lm_log_prob`` to the last bit, also where p_kNN does not exist (``nan``).
    Several λ are broadcast against the two, e.g. one for each token (He et al. 2021).

    >>> np.exp(interpolate(np.log([0.5, 0.1]), np.log([0.7, 0.9]), 0.5)).round(3).tolist()
    [0.6, 0.5]
    """
    if not 0 <= np.min(lam) <= np.max(lam) <= 1:
        raise ValueError(f"λ is {lam}. It is a share: choose one from 0 to 1.")
    with np.errstate(divide="ignore", invalid="ignore"):
        mixed = np.logaddexp(np.log1p(-lam) + lm_log_prob, np.log(lam) + knn_log_prob)
    return np.where(np.isnan(knn_log_prob), lm_log_prob, mixed)


class Setting(NamedTuple):
    """One choice of the mixture's parameters, with the perplexity it gave where it was chosen."""

    k: int
    lam: float
    temperature: float
    perplexity: float = float("nan")


def neighbor_shares(distances: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return each neighbor's share of p_kNN, ``(n, k)``: softmax of −distance / temperature.

    >>> neighbor_shares(np.array([[0.0, 0.0, np.inf]])).tolist()
    [[0.5, 0.5, 0.0]]
    """
    _check_temperature(temperature)
    distances = np.asarray(distances)
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf: no neighbor at all
        weights = np.exp((distances.min(axis=1, keepdims=True) - distances) / temperature)
    return weights / weights.sum(axis=1, keepdims=True)


def knn_distribution(
    distances: np.ndarray,
    neighbor_tokens: np.ndarray,
    vocab_size: int,
    temperature: float = 1.0,
) -> np.ndarray:
    """Return p_kNN over the whole vocabulary, ``(n, vocab_size)`` (eq. 2).

    ``neighbor_tokens`` is ``(n, k)``: the token that followed each neighbor's context.

    >>> knn_distribution(np.array([[0.0, 0.0, 0.0]]), np.array([[2, 0, 2]]), 3).round(3).tolist()
    [[0.333, 0.0, 0.667]]
    """
    n = len(distances)
    cells = np.arange(n)[:, None] * vocab_size + np.where(np.isinf(distances), 0, neighbor_tokens)
    shares = neighbor_shares(distances, temperature)
    counts = np.bincount(cells.ravel(), weights=shares.ravel(), minlength=n * vocab_size)
    p = counts.reshape(n, vocab_size)
    p[np.isnan(shares[:, 0])] = np.nan
    return p


def knn_log_prob_grid(
    distances: np.ndarray,
    is_target: np.ndarray,
    temperatures: npt.ArrayLike,
    ks: npt.ArrayLike,
) -> np.ndarray:
    """Return what :func:`knn_log_prob` does for every temperature and k, at the price of about one.

    Parameters
    ----------
    distances
        ``(n, k)``, nearest first.
    is_target
        ``(n, k) bool``.
    temperatures
        Each above 0, in units of the distance.
    ks
        For each, only the nearest so many count.

    Returns
    -------
    numpy.ndarray
        ``(temperatures, ks, n) float64``.
    """
    n, width = distances.shape
    each_temperature, each_k = np.atleast_1d(temperatures), np.atleast_1d(ks)
    if not 1 <= each_k.min() <= each_k.max() <= width:
        raise ValueError(
            f"k is {each_k.tolist()}, but there are {width} neighbors. Choose from 1 to {width}."
        )
    # The sums for a k are made of the segments that end at or before it.
    ends = np.unique(each_k)  # (segments,)
    segments = [slice(lo, hi) for lo, hi in zip([0, *ends[:-1]], ends, strict=True)]

    # Neighbors with the target, of all queries in one row, are shifted by the nearest of their
    # own, so that nothing underflows.
    row, place = np.nonzero(
        is_target[:, : ends[-1]] & np.isfinite(distances[:, : ends[-1]])
    )  # (m,)
    nearest = np.full(n, np.inf, dtype=distances.dtype)
    nearest[row[::-1]] = distances[row[::-1], place[::-1]]  # (n,)
    farther = nearest[row] - distances[row, place]  # up to 0
    cell = row * len(ends) + np.searchsorted(ends, place, side="right")

    result = np.empty((len(each_temperature), len(each_k), n))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        farther_than_first = distances[:, :1] - distances[:, : ends[-1]]  # (n, the largest k)
        for i, t in enumerate(each_temperature.tolist()):
            _check_temperature(t)
            shares = np.exp(farther_than_first / t)
            total = np.stack([shares[:, some].sum(axis=1) for some in segments], axis=1)
            target = np.bincount(cell, np.exp(farther / t), n * len(ends)).reshape(n, -1)
            log_prob = np.log(target.cumsum(axis=1)) - np.log(total.cumsum(axis=1))  # (n, segments)
            log_prob += np.where(np.isinf(nearest), 0, (distances[:, 0] - nearest) / t)[:, None]
            result[i] = np.minimum(log_prob, 0).T[np.searchsorted(ends, each_k)]  # (ks, n)
    result[..., np.isinf(distances[:, 0])] = np.nan
    return result


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}. It divides distances: choose one above 0.")
