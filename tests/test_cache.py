"""The continuous cache: against the formula read out slowly; never ahead, never next door."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from knnlm.errors import InputError
from knnlm.methods.cache import cache_log_prob
from knnlm.mixture import knn_log_prob

TEMPERATURES = [0.5, 4.0]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@st.composite
def texts(draw):
    """Keys, targets of three kinds, and documents in order."""
    n = draw(st.integers(1, 20))
    keys = draw(arrays(np.float32, (n, 2), elements=st.floats(-2, 2, width=16)))
    targets = draw(arrays(np.int32, n, elements=st.integers(0, 2)))
    return keys, targets, np.sort(draw(arrays(np.int64, n, elements=st.integers(0, 2))))


def squared_distance(a, b):
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))


def loop_cache(keys, targets, documents, temperature, length):
    """Each of the last positions of the document votes for the token behind it."""
    result = []
    for t in range(len(targets)):
        right = total = 0.0
        for i in range(max(0, t - length), t):
            if documents[i] == documents[t]:
                away = squared_distance(keys[i], keys[t])
                vote = math.exp(-away / temperature)
                total += vote
                right += vote * (targets[i] == targets[t])
        result.append((math.log(right / total) if right else -math.inf) if total else math.nan)
    return result


@given(texts(), st.integers(1, 25), st.integers(1, 25))
def test_it_is_the_formula_whatever_the_block(text, length, block):
    found = cache_log_prob(*text, TEMPERATURES, length=length, block=block)
    assert found.dtype == np.float64
    expected = [loop_cache(*text, temperature, length) for temperature in TEMPERATURES]
    np.testing.assert_allclose(found, expected, **CLOSE)


@given(texts(), st.integers(1, 25))
def test_it_never_looks_ahead(text, block):
    keys, targets, documents = text
    half = len(keys) // 2
    before = cache_log_prob(keys, targets, documents, TEMPERATURES, block=block)
    later = np.arange(len(keys)) >= half
    keys = np.where(later[:, None], 7 - keys, keys)
    after = cache_log_prob(
        keys, np.where(later, 5, targets), np.where(later, 9, documents), TEMPERATURES, block=block
    )
    np.testing.assert_allclose(after[:, :half], before[:, :half], **CLOSE)


@given(texts(), st.integers(1, 25))
def test_each_document_has_a_cache_of_its_own(text, length):
    together = cache_log_prob(*text, TEMPERATURES, length=length)
    borders = np.flatnonzero(np.diff(text[2])) + 1
    parts = zip(*(np.split(x, borders) for x in text), strict=True)
    alone = [cache_log_prob(*part, TEMPERATURES, length=length) for part in parts]
    np.testing.assert_allclose(together, np.hstack(alone), **CLOSE)
    assert np.isnan(together[:, [0, *borders]]).all()
    assert np.isnan(together).sum() == 2 * (1 + len(borders))


def test_it_is_p_knn_of_a_datastore_of_what_came_before():
    rng = np.random.default_rng(0)
    keys, targets = rng.normal(size=(40, 8)).astype(np.float32), rng.integers(0, 3, 40)
    found = cache_log_prob(keys, targets, np.zeros(40, dtype=int), [2.0])[0]
    for t in range(1, 40):
        distances = np.square(keys[:t] - keys[t]).sum(axis=1)[None]
        expected = knn_log_prob(distances, (targets[:t] == targets[t])[None], 2.0)
        np.testing.assert_allclose(found[t], expected[0], **CLOSE)


def test_close_keys_far_from_the_origin_are_told_apart():
    """In float32 the norms alone would be off by more than the distances are long."""
    rng = np.random.default_rng(0)
    keys = (rng.normal(size=(30, 8)) * 0.1 + 300).astype(np.float32)
    targets, documents = rng.integers(0, 3, 30), np.zeros(30, dtype=int)
    found = cache_log_prob(keys, targets, documents, [0.02])[0]
    np.testing.assert_allclose(found, loop_cache(keys, targets, documents, 0.02, 1000), **CLOSE)


def test_a_vote_that_is_right_but_very_small_is_kept():
    keys = np.array([[0.0], [40.0], [40.0]], dtype=np.float32)
    found = cache_log_prob(keys, np.array([1, 0, 1]), np.zeros(3, dtype=int), [1.0])[0]
    np.testing.assert_allclose(found, [math.nan, -math.inf, -1600])


def test_keys_may_be_mapped_from_disk_and_of_half_precision(tmp_path):
    rng = np.random.default_rng(0)
    keys, targets = rng.normal(size=(30, 4)).astype(np.float16), rng.integers(0, 3, 30)
    documents = np.repeat([3, 1, 3], 10)  # a number that comes again is another document
    np.save(tmp_path / "keys.npy", keys)
    mapped = np.load(tmp_path / "keys.npy", mmap_mode="r")
    found = cache_log_prob(mapped, targets, documents, [1.0], block=7)[0]
    np.testing.assert_allclose(
        found, loop_cache(keys, targets, np.arange(30) // 10, 1, 99), **CLOSE
    )


def test_what_does_not_fit_together_is_refused():
    keys, targets = np.zeros((3, 2), dtype=np.float32), np.zeros(3, dtype=int)
    for wrong in ((keys[:2], targets, targets), (keys, targets, targets[:2])):
        with pytest.raises(InputError, match="but 3 targets"):
            cache_log_prob(*wrong, [1.0])
    for wrong in ({"length": 0}, {"block": 0}):
        with pytest.raises(InputError, match="at least 1"):
            cache_log_prob(keys, targets, targets, [1.0], **wrong)
    with pytest.raises(ValueError, match="above 0"):
        cache_log_prob(keys, targets, targets, [0.0])
