"""The two equations: against loops, at their borders, and where numbers get very small."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from knnlm.mixture import (
    interpolate,
    knn_distribution,
    knn_log_prob,
    knn_log_prob_grid,
    neighbor_shares,
)

VOCAB = 5
TEMPERATURES = st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 10.0, 1e4])


@st.composite
def neighbors(draw, missing: bool = True):
    """Distances, nearest first (ties are common, some missing), and the tokens behind them."""
    n, k = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    some = st.sampled_from([0.0, 0.5, 1.0, 3.25, 80.0, 1e4])
    values = st.one_of(some, st.just(math.inf)) if missing else some
    distances = draw(arrays(np.float32, (n, k), elements=values))
    distances.sort(axis=1)
    tokens = draw(arrays(np.int32, (n, k), elements=st.integers(0, VOCAB - 1)))
    tokens[np.isinf(distances)] = -1
    return distances, tokens


def loop_distribution(distances, tokens, temperature):
    """p_kNN of one query with Python's own numbers, or None where there is no neighbor."""
    real = [(float(d), int(w)) for d, w in zip(distances, tokens, strict=True) if w >= 0]
    if not real:
        return None
    least = min(d for d, _ in real)
    p = [0.0] * VOCAB
    for d, w in real:
        p[w] += math.exp(-(d - least) / temperature)
    return [x / sum(p) for x in p]


@given(neighbors(), TEMPERATURES)
def test_p_knn_is_the_equation_and_sums_to_one(found, temperature):
    distances, tokens = found
    dense = knn_distribution(distances, tokens, VOCAB, temperature)
    assert dense.shape == (len(distances), VOCAB)
    for p, d, w in zip(dense, distances, tokens, strict=True):
        expected = loop_distribution(d, w, temperature)
        if expected is None:
            assert np.isnan(p).all()
        else:
            assert p.sum() == pytest.approx(1, abs=1e-6)
            np.testing.assert_allclose(p, expected, atol=1e-6)


@given(neighbors(), TEMPERATURES)
def test_the_target_alone_gets_what_the_whole_distribution_gives_it(found, temperature):
    distances, tokens = found
    dense = knn_distribution(distances, tokens, VOCAB, temperature)
    for target in range(VOCAB):
        log_prob = knn_log_prob(distances, tokens == target, temperature)
        np.testing.assert_allclose(np.exp(log_prob), dense[:, target], atol=1e-6)


@given(neighbors(), st.lists(TEMPERATURES, min_size=1, max_size=3), st.data())
def test_several_temperatures_and_ks_are_each_computed_alone(found, temperatures, data):
    distances, tokens = found
    width = distances.shape[1]
    ks = data.draw(st.lists(st.integers(1, width), min_size=1, max_size=4))
    is_target = tokens == 2
    table = knn_log_prob_grid(distances, is_target, temperatures, ks)
    assert table.shape == (len(temperatures), len(ks), len(distances))
    for i, temperature in enumerate(temperatures):
        for j, k in enumerate(ks):
            alone = knn_log_prob(distances[:, :k], is_target[:, :k], temperature)
            np.testing.assert_allclose(table[i, j], alone, rtol=1e-5, atol=1e-6)


@given(neighbors(), TEMPERATURES, st.randoms(use_true_random=False))
def test_neighbors_may_come_in_any_order(found, temperature, random):
    """Also with a hole in the first place: whoever leaves neighbors out need not sort again."""
    distances, tokens = found
    order = random.sample(range(distances.shape[1]), distances.shape[1])
    np.testing.assert_allclose(
        knn_log_prob(distances[:, order], tokens[:, order] == 2, temperature),
        knn_log_prob(distances, tokens == 2, temperature),
        rtol=1e-9,
        atol=1e-12,
    )


@given(neighbors(), TEMPERATURES, st.integers(1, 5))
def test_missing_neighbors_change_nothing(found, temperature, places):
    distances, tokens = found
    wide = np.pad(distances, ((0, 0), (0, places)), constant_values=np.inf)
    wide_tokens = np.pad(tokens, ((0, 0), (0, places)), constant_values=-1)
    np.testing.assert_allclose(
        knn_distribution(wide, wide_tokens, VOCAB, temperature),
        knn_distribution(distances, tokens, VOCAB, temperature),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        knn_log_prob(wide, wide_tokens == 1, temperature),
        knn_log_prob(distances, tokens == 1, temperature),
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_missing_neighbor_is_no_token_even_where_its_place_says_so():
    """Id −1 is looked up as some row: what stands there must not count."""
    distances = np.array([[1.0, np.inf], [np.inf, np.inf]])
    log_prob = knn_log_prob(distances, np.array([[False, True], [True, True]]))
    assert log_prob[0] == -np.inf
    assert np.isnan(log_prob[1])
    dense = knn_distribution(distances, np.array([[3, 0], [0, 0]]), VOCAB)
    assert dense[0].tolist() == [0, 0, 0, 1, 0]
    assert np.isnan(dense[1]).all()


def test_nothing_underflows_at_a_tiny_temperature():
    distances = np.array([[0.0, 1000.0, 1000.0]], dtype=np.float32)
    log_prob = knn_log_prob(distances, np.array([[False, True, True]]), 1e-3)
    assert log_prob[0] == pytest.approx(math.log(2) - 1e6, rel=1e-7)
    assert knn_log_prob(distances, np.array([[True, False, False]]), 1e-3)[0] == 0
    far = np.full((1, 4), 1e6, dtype=np.float32)  # exp(-1e6) is zero: only differences count
    assert knn_log_prob(far, np.eye(1, 4, dtype=bool))[0] == pytest.approx(math.log(1 / 4))


def test_ties_share_alike_and_negative_distances_are_fine():
    assert neighbor_shares(np.full((1, 4), 7.0)).tolist() == [[0.25] * 4]
    products = np.array([[-9.0, -8.0, 2.0]])  # inner products: minus the score
    expected = np.exp([9, 8, -2]) / np.exp([9, 8, -2]).sum()
    np.testing.assert_allclose(neighbor_shares(products)[0], expected, rtol=1e-12)


@given(neighbors(missing=False), TEMPERATURES)
def test_shares_fall_with_distance(found, temperature):
    shares = neighbor_shares(found[0], temperature)
    assert (np.diff(shares, axis=1) <= 0).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)


@given(neighbors(missing=False))
def test_temperature_makes_up_for_scale_and_nothing_else(found):
    distances, _ = found
    np.testing.assert_allclose(
        neighbor_shares(distances, 10.0), neighbor_shares(distances * 4, 40.0), rtol=1e-5
    )
    hot = neighbor_shares(distances, 1e9)
    np.testing.assert_allclose(hot, 1 / distances.shape[1], atol=1e-4)


LOG_PROBS = st.floats(-60, 0)


@given(LOG_PROBS, st.one_of(LOG_PROBS, st.just(-math.inf)), st.floats(0, 1))
@example(-1.0, -math.inf, 1.0)
@example(-50.0, -1.0, 1e-300)
def test_the_mixture_is_the_equation(lm, knn, lam):
    mixed = float(interpolate(np.float64(lm), np.float64(knn), lam))
    expected = lam * math.exp(knn) + (1 - lam) * math.exp(lm)
    assert math.exp(mixed) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@given(LOG_PROBS, st.one_of(LOG_PROBS, st.just(-math.inf), st.just(math.nan)))
def test_the_ends_of_lambda_are_the_two_distributions_to_the_last_bit(lm, knn):
    lm, knn = np.array([lm]), np.array([knn])
    assert interpolate(lm, knn, 0).tobytes() == lm.tobytes()
    at_one = interpolate(lm, knn, 1)
    assert at_one.tobytes() == (lm if np.isnan(knn[0]) else knn).tobytes()


@given(LOG_PROBS, st.one_of(LOG_PROBS, st.just(-math.inf)))
def test_the_mixture_moves_from_one_to_the_other_and_the_mean_loss_is_convex(lm, knn):
    path = np.array(
        [float(interpolate(np.float64(lm), np.float64(knn), x / 20)) for x in range(20)]
    )
    steps = np.diff(path)
    slack = 1e-9
    assert (steps >= -slack).all() if knn >= lm else (steps <= slack).all()
    assert (min(lm, knn) - slack <= path).all()
    assert (path <= max(lm, knn) + slack).all()
    assert (np.diff(-path, 2) >= -slack).all()


def test_where_no_neighbor_exists_the_mixture_is_the_language_model():
    lm = np.log([0.5, 0.25])
    mixed = interpolate(lm, np.array([np.nan, -np.inf]), 0.5)
    assert mixed[0] == lm[0]
    assert mixed[1] == pytest.approx(np.log(0.125))


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    distances, is_target = np.zeros((1, 2)), np.ones((1, 2), dtype=bool)
    with pytest.raises(ValueError, match="above 0"):
        neighbor_shares(distances, temperature)
    with pytest.raises(ValueError, match="above 0"):
        knn_distribution(distances, np.zeros((1, 2), dtype=int), VOCAB, temperature)
    with pytest.raises(ValueError, match="above 0"):
        knn_log_prob(distances, is_target, temperature)
    with pytest.raises(ValueError, match="above 0"):
        knn_log_prob_grid(distances, is_target, [1.0, temperature], [2])


@pytest.mark.parametrize("lam", [-0.1, 1.1, math.nan])
def test_a_lambda_outside_zero_to_one_is_refused(lam):
    with pytest.raises(ValueError, match="from 0 to 1"):
        interpolate(np.zeros(1), np.zeros(1), lam)


@pytest.mark.parametrize("ks", [[0], [3], [1, 3]])
def test_a_k_that_was_not_retrieved_is_refused(ks):
    with pytest.raises(ValueError, match="from 1 to 2"):
        knn_log_prob_grid(np.zeros((1, 2)), np.ones((1, 2), dtype=bool), [1.0], ks)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("temperature", "share"), [(1e-38, 0), (1e30, 2 / 3)])
def test_at_an_extreme_temperature_nothing_is_complained_of(temperature, share):
    distances, tokens = np.float32([[1, 4, 9], [2, 2, np.inf]]), np.array([[0, 1, 1], [1, 0, -1]])
    for p in (
        np.exp(knn_log_prob(distances, tokens == 1, temperature)),
        np.exp(knn_log_prob_grid(distances, tokens == 1, [temperature], [3])[0, 0]),
        knn_distribution(distances, tokens, VOCAB, temperature)[:, 1],
    ):
        np.testing.assert_allclose(p, [share, 1 / 2], atol=1e-6)


def test_a_share_for_each_token_is_the_mixture_of_each_alone():
    rng = np.random.default_rng(0)
    lm, knn = np.log(rng.random((2, 6)))
    knn[2] = np.nan
    shares = np.array([0, 0.3, 0.5, 1, 0.7, 0])
    expected = [float(interpolate(lm[i], knn[i], float(shares[i]))) for i in range(6)]
    assert interpolate(lm, knn, shares).tolist() == expected
    assert interpolate(lm, knn, shares)[0] == lm[0]
    for wrong in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="It is a share"):
            interpolate(lm, knn, np.array([0.2, wrong]))
