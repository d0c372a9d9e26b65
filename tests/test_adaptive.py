"""A λ for each token: what it learns, what it survives; features and threshold against loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from knnlm.errors import InputError
from knnlm.methods.adaptive import AdaptiveLam, neighbor_features, threshold
from knnlm.mixture import interpolate

DOCUMENTS, LENGTH = 10, 60
NAN, INF = math.nan, math.inf


def make_tokens(seed: int = 0):
    """Tokens whose first feature says who is right: the neighbors above 0, the model below."""
    rng = np.random.default_rng(seed)
    n = DOCUMENTS * LENGTH
    features = rng.normal(size=(n, 3)).astype(np.float32)
    right, wrong = np.log(0.9), np.log(0.1)
    lm = np.where(features[:, 0] > 0, wrong, right)
    knn = np.where(features[:, 0] > 0, right, wrong)
    return features, lm, knn, np.repeat(np.arange(DOCUMENTS), LENGTH)


def fit(features, lm, knn, documents, **how):
    return AdaptiveLam.fit(
        features, lm, knn, documents, **{"batch_size": 32, "learning_rate": 1e-2} | how
    )


def loop_loss(lam, lm, knn, penalty):
    """The mean of −log(λ p_kNN + (1 − λ) p_LM) + penalty · λ, with Python's own numbers."""
    total = 0.0
    for share, model, neighbors in zip(lam, lm, knn, strict=True):
        p = math.exp(model)
        if not math.isnan(neighbors):
            p = share * math.exp(neighbors) + (1 - share) * p
        total += penalty * share - math.log(p)
    return total / len(lam)


@pytest.fixture(scope="module")
def tokens():
    return make_tokens()


@pytest.fixture(scope="module")
def network(tokens) -> AdaptiveLam:
    return fit(*tokens)


def test_it_learns_whom_to_believe(network):
    features, lm, knn, _ = make_tokens(seed=1)
    lam = network.lam(features)
    assert lam.dtype == np.float64
    assert lam[features[:, 0] > 0.3].min() > 0.7
    assert lam[features[:, 0] < -0.3].max() < 0.3
    best = max(interpolate(lm, knn, share / 20).mean() for share in range(21))
    assert interpolate(lm, knn, lam).mean() > best + 0.3


@given(arrays(np.float32, (4, 3), elements=st.floats(-1e6, 1e6, width=32)))
def test_lam_is_a_share_of_each_token_alone(network, features):
    lam = network.lam(features)
    assert lam.shape == (4,)
    assert ((lam >= 0) & (lam <= 1)).all()
    alone = [network.lam(features[i : i + 1])[0] for i in range(4)]
    np.testing.assert_allclose(lam, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("penalty", [0, 0.5])
def test_the_epoch_is_the_one_that_the_documents_held_back_find_best(tokens, penalty):
    features, lm, knn, documents = tokens
    held = documents >= 8
    losses, lams = [], []
    for epochs in range(1, 9):
        lams.append(fit(*tokens, penalty=penalty, epochs=epochs, learning_rate=0.3).lam(features))
        losses.append(loop_loss(lams[-1][held], lm[held], knn[held], penalty))
    kept = np.minimum.accumulate(losses)
    assert losses == kept.tolist()
    assert len(set(losses)) < len(losses)  # an epoch that made it worse was not kept
    assert np.array_equal(lams[-1], lams[losses.index(min(losses))])


@pytest.mark.parametrize("document", range(DOCUMENTS))
def test_the_last_fifth_of_the_documents_is_held_back_and_all_else_is_learned_from(
    tokens, document
):
    features, lm, knn, documents = tokens
    changed = documents == document
    one = fit(*tokens, epochs=1)
    other = fit(
        features, np.where(changed, knn, lm), np.where(changed, lm, knn), documents, epochs=1
    )
    assert np.array_equal(one.lam(features), other.lam(features)) == (document >= 8)


def test_a_penalty_pushes_lam_down(tokens):
    means = [fit(*tokens, penalty=a).lam(tokens[0]).mean() for a in (0, 0.5, 1, 3)]
    assert (np.diff(means) < -0.02).all()


def test_documents_may_have_any_numbers(tokens, network):
    features, lm, knn, documents = tokens
    again = fit(features, lm, knn, 7 + 3 * documents)
    assert np.array_equal(again.lam(features), network.lam(features))


def test_the_seed_decides_and_the_global_generator_is_left_alone(tokens, network):
    features = tokens[0]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again, other = fit(*tokens), fit(*tokens, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(again.lam(features), network.lam(features))
    assert not np.array_equal(other.lam(features), network.lam(features))


def test_no_neighbor_and_no_right_neighbor_do_no_harm(tokens):
    features, lm, knn, documents = tokens
    rng = np.random.default_rng(0)
    knn = np.where(features[:, 0] > 0, knn, -INF)
    knn[rng.random(len(knn)) < 0.3] = NAN
    network = fit(features, lm, knn, documents)
    lam = network.lam(features)
    assert lam[features[:, 0] > 0.3].min() > 0.7
    assert lam[features[:, 0] < -0.3].max() < 0.3
    none = fit(features, lm, np.full_like(lm, NAN), documents, penalty=1.0)
    assert none.lam(features).mean() < 0.2  # no neighbor anywhere: only the price is left
    for weight in (*network.net.state_dict().values(), *none.net.state_dict().values()):
        assert torch.isfinite(weight).all()


def test_a_last_batch_of_one_token_is_left_out(tokens):
    features, lm, knn, documents = tokens
    network = fit(features, lm, knn, documents, batch_size=8 * LENGTH - 1, epochs=1)
    assert np.isfinite(network.lam(features)).all()


def test_what_was_saved_is_what_is_opened(tokens, network, tmp_path):
    path = tmp_path / "new folder" / "lam.safetensors"
    network.save(path)
    again = AdaptiveLam.open(path)
    assert np.array_equal(again.lam(tokens[0]), network.lam(tokens[0]))


@pytest.mark.parametrize("content", [None, b"", b"no such file", "another network"])
def test_a_file_that_is_no_network_is_refused(content, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "lam.safetensors"
    if content == "another network":
        save_file({"hidden.weight": torch.zeros(2, 3), "other": torch.zeros(1)}, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="holds no network"):
        AdaptiveLam.open(path)


def test_what_does_not_fit_together_is_refused(tokens, network):
    features, lm, knn, documents = tokens
    for wrong in (
        (features[:-1], lm, knn, documents),
        (features[:, 0], lm, knn, documents),
        (features, lm[:-1], knn, documents),
        (features, lm, knn[:, None], documents),
        (features, lm, knn, documents[1:]),
    ):
        with pytest.raises(InputError, match="have shapes"):
            AdaptiveLam.fit(*wrong)
    with pytest.raises(InputError, match="two documents"):
        AdaptiveLam.fit(features, lm, knn, np.zeros_like(documents))
    with pytest.raises(InputError, match="two documents"):
        AdaptiveLam.fit(features[:0], lm[:0], knn[:0], documents[:0])
    with pytest.raises(InputError, match="finite number"):
        AdaptiveLam.fit(np.where(features > 2, np.inf, features), lm, knn, documents)
    with pytest.raises(InputError, match="at least one epoch"):
        AdaptiveLam.fit(features, lm, knn, documents, epochs=0)
    for shape in ((5, 2), (3,)):
        with pytest.raises(InputError, match="reads 3 numbers"):
            network.lam(np.zeros(shape, dtype=np.float32))


def loop_features(distances, values):
    """Six numbers about the neighbors of one token."""
    real = [float(d) for d in distances if d < INF]
    if not real:
        return [0.0] * 6
    far = []
    for place in (0, 7, 31, len(distances) - 1):
        d = real[min(place, len(real) - 1)]
        far.append(math.copysign(math.log(1 + abs(d)), d))
    first = [int(v) for v in values[:16] if v >= 0]
    return [*far, first.count(first[0]) / len(first), len(set(first))]


@st.composite
def neighbors(draw):
    """Distances, nearest first, and values; the last ones of a row may be missing."""
    n, k = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 8, 15, 16, 17, 31, 32, 40]))
    values = st.one_of(st.floats(-50, 1e4, width=32), st.just(INF))
    distances = np.sort(draw(arrays(np.float32, (n, k), elements=values)), axis=1)
    tokens = draw(arrays(np.int32, (n, k), elements=st.integers(0, 3)))
    tokens[np.isinf(distances)] = -1
    return distances, tokens


@given(neighbors())
def test_neighbor_features_are_what_a_loop_finds(found):
    distances, values = found
    features = neighbor_features(distances, values)
    assert features.dtype == np.float32
    expected = [loop_features(d, v) for d, v in zip(distances, values, strict=True)]
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(features, neighbor_features(distances, values[:, :16]))


def test_neighbor_features_of_different_tokens_are_refused():
    with pytest.raises(InputError, match="for 3 tokens, but values for 2"):
        neighbor_features(np.zeros((3, 4)), np.zeros((2, 4), dtype=int))


SCORES = arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1), unique=True)


@given(SCORES, st.floats(0, 1))
def test_the_share_with_the_largest_scores_is_above_the_threshold(scores, share):
    above = scores > threshold(scores, share)
    assert abs(above.sum() - share * len(scores)) <= 1
    ranked = sorted(scores, reverse=True)
    assert sorted(scores[above], reverse=True) == ranked[: above.sum()]


def test_all_or_none_can_be_searched():
    scores = np.array([0.2, 0.2, 0.9])
    assert threshold(scores, 1) == -INF
    assert (scores > threshold(scores, 1)).all()
    assert not (scores > threshold(scores, 0)).any()
    for share in (-0.1, 1.1, NAN):
        with pytest.raises(InputError, match="from 0 to 1"):
            threshold(scores, share)


def test_where_nothing_was_searched_the_mixture_is_the_language_model_to_the_last_bit():
    lm = np.log([0.3, 0.2, 0.6])
    knn = np.array([np.log(0.9), -INF, NAN])
    assert interpolate(lm, knn, np.where([False] * 3, 0.5, 0)).tobytes() == lm.tobytes()
