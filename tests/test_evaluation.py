"""What log-probabilities say: the best of a sweep, an interval against sums by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnlm.errors import InputError
from knnlm.evaluation import Sweep, bootstrap


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
