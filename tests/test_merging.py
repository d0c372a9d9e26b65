"""Merged keys: the rule against a loop, and a weight as so many copies of one key."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from knnlm.errors import InputError
from knnlm.methods import merging
from knnlm.methods.merging import merge, weighted_distances
from knnlm.mixture import knn_log_prob


def loop_merge(neighbor_ids, values):
    """Walk from the first key to the last; each looks for the nearest host that is still there."""
    weights = [1] * len(values)
    for key, ids in enumerate(neighbor_ids):
        for host in ids:
            if 0 <= host < key and values[host] == values[key] and weights[host] > 0:
                weights[host] += 1
                weights[key] = 0
                break
    return weights


@st.composite
def datastores(draw):
    """For each of n keys k neighbors, in any order, and a value; there are few values."""
    n, k = draw(st.integers(1, 30)), draw(st.integers(1, 5))
    ids = draw(arrays(np.int64, (n, k), elements=st.integers(-1, n - 1)))
    return ids, draw(arrays(np.int32, n, elements=st.integers(0, 1)))


@given(datastores(), st.integers(1, 30))
def test_weights_are_those_of_a_walk_over_all_keys(found, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "ROWS_PER_CHUNK", chunk)
        assert merge(*found).tolist() == loop_merge(*found)


@given(datastores())
def test_weights_sum_to_the_number_of_keys_and_no_merge_is_left_to_do(found):
    ids, values = found
    weights = merge(ids, values)
    assert weights.sum() == len(values)
    kept = np.flatnonzero(weights)
    assert kept[0] == 0
    for key in kept:
        for host in ids[key]:
            assert not (0 <= host < key and values[host] == values[key] and weights[host])


def test_the_longest_chain_is_followed_to_its_end():
    n = 1001
    before = np.arange(n)[:, None] - 1  # each key's only neighbor; the first has none
    assert merge(before, np.zeros(n, dtype=int)).tolist() == [2, 0] * 500 + [1]


def test_different_values_are_never_merged():
    ids = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1]])
    assert merge(ids, np.array([3, 4, 5])).tolist() == [1, 1, 1]


def test_neighbors_may_be_mapped_from_disk(tmp_path):
    rng = np.random.default_rng(0)
    ids, values = rng.integers(-1, 50, (50, 3)).astype(np.int32), rng.integers(0, 2, 50)
    np.save(tmp_path / "ids.npy", ids)
    mapped = np.load(tmp_path / "ids.npy", mmap_mode="r")
    assert merge(mapped, values).tolist() == loop_merge(ids, values)


@pytest.mark.parametrize("shape", [(3, 2), (4,)])
def test_neighbors_of_other_keys_are_refused(shape):
    with pytest.raises(InputError, match="4 values"):
        merge(np.zeros(shape, dtype=int), np.zeros(4, dtype=int))


@st.composite
def neighbors(draw):
    """Distances in any order, some missing, whether each has the target, weights, and T."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 6)))
    some = st.one_of(st.floats(0, 100, width=32), st.just(np.inf))
    distances = draw(arrays(np.float32, shape, elements=some))
    is_target = draw(arrays(np.bool_, shape))
    weights = draw(arrays(np.int32, shape, elements=st.integers(0, 5)))
    return distances, is_target, weights, draw(st.sampled_from([0.5, 1.0, 8.0]))


@given(neighbors())
def test_a_weight_counts_as_so_many_neighbors(found):
    distances, is_target, weights, temperature = found
    by_weight = knn_log_prob(
        weighted_distances(distances, weights, temperature), is_target, temperature
    )
    for row, log_prob in enumerate(by_weight):
        copies = [np.repeat(x[row], weights[row])[None] for x in (distances, is_target)]
        expected = knn_log_prob(*copies, temperature)[0] if weights[row].any() else np.nan
        np.testing.assert_allclose(log_prob, expected, rtol=1e-6, atol=1e-6)


@given(neighbors())
def test_weights_of_one_change_nothing(found):
    distances, _, weights, temperature = found
    same = weighted_distances(distances, np.ones_like(weights), temperature)
    assert np.array_equal(same, distances)


def test_copies_can_go_and_all_is_said_as_before():
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(12, 4))
    drawn = rng.integers(0, 12, 60)  # copies: of a key, and of its value
    keys, values = keys[drawn], drawn % 3
    apart = np.square(keys[:, None] - keys).sum(axis=2)
    ids = np.argsort(apart, axis=1, kind="stable")
    weights = merge(np.where(np.take_along_axis(apart, ids, axis=1) == 0, ids, -1), values)
    rows = np.flatnonzero(weights)
    assert len(rows) == len(np.unique(drawn))
    queries = rng.normal(size=(5, 4))
    before = np.square(queries[:, None] - keys).sum(axis=2)
    after = weighted_distances(before[:, rows], weights[rows], 2.0)
    for target in range(3):
        expected = knn_log_prob(before, np.tile(values == target, (5, 1)), 2.0)
        merged = knn_log_prob(after, np.tile(values[rows] == target, (5, 1)), 2.0)
        np.testing.assert_allclose(merged, expected, rtol=1e-9)
