"""Pointers: a walk against one token after another, and where it is a plain search."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from knnlm.errors import InputError
from knnlm.methods.pointers import Walk, follow
from knnlm.mixture import knn_log_prob

DIM, TEMPERATURE = 2, 3.0


@st.composite
def texts(draw):
    """A datastore of some documents, and a text with what a search finds; two tokens in all."""
    rows, n, k = draw(st.integers(1, 25)), draw(st.integers(1, 25)), draw(st.integers(1, 4))
    starts = sorted(draw(st.sets(st.integers(1, rows), max_size=3)) - {rows})
    numbers = st.integers(-3, 3).map(float)
    store = SimpleNamespace(
        keys=draw(arrays(np.float16, (rows, DIM), elements=numbers)),
        values=draw(arrays(np.int32, rows, elements=st.integers(0, 1))),
        document_starts=np.array([0, *starts]),
    )
    queries = draw(arrays(np.float32, (n, DIM), elements=numbers))
    targets = draw(arrays(np.int32, n, elements=st.integers(0, 1)))
    ids = draw(arrays(np.int64, (n, k), elements=st.integers(-1, rows - 1)))
    return store, queries, targets, ids


def squared_distance(a, b):
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))


def loop_follow(store, queries, targets, ids, tau, borders):
    """Return which tokens were searched, and each one's votes: distance, whether it is right."""
    searched, votes = [], []
    candidates = []
    for t, target in enumerate(targets):
        if t in borders:
            candidates = []
        searched.append(len(candidates) < tau)
        votes.append([])
        if searched[t]:
            candidates = [int(row) for row in ids[t] if row >= 0]
        else:
            for row in candidates:
                away = squared_distance(store.keys[row], queries[t])
                votes[t].append((away, bool(store.values[row] == target)))
        right = [row for row in candidates if store.values[row] == target]
        ends = [*store.document_starts[1:], len(store.values)]
        candidates = [row + 1 for row in right if row + 1 not in ends]
    return searched, votes


def loop_log_prob(votes, temperature):
    total = sum(math.exp(-d / temperature) for d, _ in votes)
    right = sum(math.exp(-d / temperature) for d, hit in votes if hit)
    return math.log(right / total) if right else -math.inf


@given(texts(), st.integers(1, 4), st.integers(1, 30))
def test_a_walk_is_one_token_after_the_other(found, tau, segments):
    store, queries, targets, ids = found
    n = len(targets)
    walk = follow(store, queries, targets, ids, tau, segments=segments)
    borders = {i * n // segments for i in range(segments)}
    searched, votes = loop_follow(*found, tau, borders)
    assert walk.searched.tolist() == searched
    log_prob = walk.log_prob(np.full(n, 0.25), TEMPERATURE)
    for t in range(n):
        mine = walk.positions == t
        pairs = zip(walk.distances[mine].tolist(), walk.is_target[mine].tolist(), strict=True)
        assert sorted(pairs) == sorted(votes[t])
        expected = 0.25 if searched[t] else loop_log_prob(votes[t], TEMPERATURE)
        np.testing.assert_allclose(log_prob[t], expected, rtol=1e-6, atol=1e-9)


@given(texts(), st.integers(1, 5))
def test_with_a_large_tau_it_is_a_plain_search(found, segments):
    targets = found[2]
    walk = follow(*found, 10**9, segments=segments)
    assert walk.searched.all()
    assert len(walk.positions) == 0
    searches = np.log(np.linspace(0.1, 0.9, len(targets)))
    assert walk.log_prob(searches, TEMPERATURE).tobytes() == searches.tobytes()


@given(texts(), st.integers(1, 3))
def test_what_comes_later_changes_nothing_before(found, tau):
    store, queries, targets, ids = found
    half = len(targets) // 2
    walk = follow(*found, tau, segments=1)
    targets = np.where(np.arange(len(targets)) < half, targets, 1 - targets)
    again = follow(store, queries, targets, ids, tau, segments=1)
    assert walk.searched[: half + 1].tolist() == again.searched[: half + 1].tolist()
    one, other = (w.log_prob(np.zeros(len(targets)), TEMPERATURE)[:half] for w in (walk, again))
    np.testing.assert_array_equal(one, other)


def test_over_its_own_text_only_a_new_document_needs_a_search(store):
    """Each row leads to the next; the last row of a document leads nowhere."""
    n = len(store)
    queries, own = store.keys.astype(np.float32), np.arange(n)[:, None]
    walk = follow(store, queries, store.values, own, segments=1)
    assert np.flatnonzero(walk.searched).tolist() == store.document_starts.tolist()
    assert walk.positions.tolist() == np.flatnonzero(~walk.searched).tolist()
    assert not walk.distances.any()
    assert walk.is_target.all()
    assert not walk.log_prob(np.zeros(n), TEMPERATURE).any()


@given(st.sampled_from([1e-3, 1.0, 50.0]), st.data())
def test_votes_of_equally_many_candidates_are_what_the_module_counts(temperature, data):
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    distances = data.draw(arrays(np.float32, shape, elements=st.floats(0, 1000, width=32)))
    is_target = data.draw(arrays(np.bool_, shape))
    positions = np.repeat(np.arange(shape[0]), shape[1])
    mixed = np.random.default_rng(0).permutation(len(positions))  # in any order
    votes = (positions[mixed], distances.ravel()[mixed], is_target.ravel()[mixed])
    walk = Walk(np.zeros(shape[0], dtype=bool), *votes)
    np.testing.assert_allclose(
        walk.log_prob(np.full(shape[0], np.nan), temperature),
        knn_log_prob(distances, is_target, temperature),
        rtol=1e-6,
        atol=1e-9,
    )


def test_what_does_not_fit_together_is_refused():
    store = SimpleNamespace(
        keys=np.zeros((4, DIM)), values=np.zeros(4, dtype=int), document_starts=np.array([0])
    )
    queries, targets, ids = np.zeros((3, DIM)), np.zeros(3, dtype=int), np.zeros((3, 1), dtype=int)
    with pytest.raises(InputError, match="2 queries and neighbors of 3 tokens, but 3 targets"):
        follow(store, queries[:2], targets, ids)
    with pytest.raises(InputError, match="neighbors of 2 tokens"):
        follow(store, queries, targets, ids[:2])
    with pytest.raises(InputError, match="τ is 0"):
        follow(store, queries, targets, ids, 0)
    with pytest.raises(InputError, match="segments 0"):
        follow(store, queries, targets, ids, segments=0)
    for temperature in (0, math.nan):
        with pytest.raises(InputError, match="above 0"):
            follow(store, queries, targets, ids).log_prob(np.zeros(3), temperature)
