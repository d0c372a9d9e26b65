"""What log-probabilities say: the best of a sweep, an interval against sums by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnlm.errors import InputError
from knnlm.evaluation import Sweep, best_mixture, bootstrap, from_nearest_documents


def test_the_best_of_a_sweep_is_the_lowest_of_those_asked_for():
    rows = [(1, 0.1, 5.0, 12.0), (8, 0.1, 5.0, 9.5), (8, 0.3, 5.0, 9.0), (8, 0.3, 7.0, 11.0)]
    sweep = Sweep(pd.DataFrame(rows, columns=["k", "lam", "temperature", "perplexity"]), 13.0)
    assert sweep.best() == rows[2]
    assert sweep.best(k=1) == rows[0]
    assert sweep.best(lam=0.1 + 1e-12, temperature=5) == rows[1]
    with pytest.raises(InputError, match="no row with"):
        sweep.best(k=2)


@given(
    st.lists(st.lists(st.floats(-9, 9), max_size=5), min_size=1, max_size=6).filter(any),
    st.integers(0, 99),
)
def test_the_bootstrap_of_a_mean_draws_whole_documents(values, seed):
    """Against sums by hand over the drawn documents; one that has no value is never drawn."""
    documents = np.repeat(np.arange(len(values)), [len(part) for part in values])
    flat = np.concatenate(values)
    characters = np.arange(1, len(values) + 1)
    kept = [
        (sum(part), len(part), unit) for part, unit in zip(values, characters, strict=True) if part
    ]
    draws = np.random.default_rng(seed).multinomial(
        len(kept), np.full(len(kept), 1 / len(kept)), size=30
    )
    for units, place in ((None, 1), (characters, 2)):
        drawn = []
        for times in draws.tolist():
            pairs = list(zip(times, kept, strict=True))
            total = sum(n * row[0] for n, row in pairs)
            drawn.append(total / sum(n * row[place] for n, row in pairs))
        estimate, low, high = bootstrap(flat, documents, units, samples=30, seed=seed)
        assert estimate == pytest.approx(
            sum(row[0] for row in kept) / sum(row[place] for row in kept), abs=1e-9
        )
        assert [low, high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=1e-9)
        falling = bootstrap(flat, documents, units, samples=30, seed=seed).through(lambda x: -x)
        assert falling == (-estimate, -high, -low)


@given(st.integers(0, 99), st.integers(1, 20))
def test_the_best_mixture_is_that_of_a_loop(seed, n):
    rng = np.random.default_rng(seed)
    lm = np.log(rng.random(n))
    knn = {t: np.where(rng.random(n) < 0.3, -np.inf, np.log(rng.random(n))) for t in (1.0, 8.0)}
    lams = [0, 0.3, 0.6, 0.9]
    best, least = None, np.inf
    for t, log_prob in knn.items():
        for lam in lams:
            p = (1 - lam) * np.exp(lm) + lam * np.exp(log_prob)
            now = float(np.exp(-np.log(p).mean()))
            if now < least - 1e-12:
                best, least = (lam, t), now
    found = best_mixture(lm, knn, iter(lams))
    p = (1 - found[0]) * np.exp(lm) + found[0] * np.exp(knn[found[1]])
    assert np.isclose(np.exp(-np.log(p).mean()), least)
    assert found == best or np.isclose(np.exp(-np.log(p).mean()), least, rtol=1e-9)


@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 5))
def test_the_nearest_documents_have_most_of_the_neighbors(seed, count, k):
    """For each document of the text, the same stored ones, and no other has more neighbors."""
    rng = np.random.default_rng(seed)
    own = np.sort(rng.integers(0, 3, 12))
    found = rng.integers(-1, 6, (12, 5))
    mask = from_nearest_documents(own, found, count, k)
    assert not mask[found < 0].any()
    for document in range(3):
        stored, first = found[own == document], found[own == document, :k]
        named = set(stored[mask[own == document]].tolist())
        others = set(stored[~mask[own == document]].tolist()) - {-1}
        assert len(named) <= count
        assert not named & others
        votes = {d: (first == d).sum() for d in named | others}
        assert min([votes[d] for d in named], default=9) >= max([votes[d] for d in others] or [0])
        assert len(named) == count or not any(votes[d] for d in others)
