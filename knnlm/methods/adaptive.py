"""A λ for each token, and which tokens to search for (He, Neubig and Berg-Kirkpatrick 2021).

A small network reads some numbers x about a token, such as its query, and says how far to trust the
neighbors:

    p(y) = λ(x) p_kNN(y) + (1 − λ(x)) p_LM(y),    λ(x) = sigmoid(network(x))

It learns, from text that is neither in the datastore nor to be evaluated, to make small the mean of

    −log p(y) + penalty · λ(x)

Without a penalty, λ says whom to believe. With one it is large only where the neighbors earn more
than it costs, and so it says where a search pays: see :func:`threshold`.

Source: arXiv 2109.04212, adaptive retrieval. The penalty is their L1 regularization. Their network
also reads the language model's confidence and counts of the last few tokens.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import logsigmoid

from knnlm.errors import InputError
from knnlm.progress import progress
from knnlm.retrieval import Retrieval

ROWS_PER_CHUNK = 1 << 16


@dataclass(frozen=True)
class AdaptiveLam:
    """A network from features to λ: make one with :meth:`fit`, or :meth:`open` what was saved."""

    net: nn.Sequential

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        lm_log_prob: np.ndarray,
        knn_log_prob: np.ndarray,
        documents: np.ndarray,
        *,
        penalty: float = 0.0,
        hidden: int = 64,
        epochs: int = 8,
        batch_size: int = 512,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> "AdaptiveLam":
        """Train a network on the first four fifths of the documents; the others choose the epoch.

        Parameters
        ----------
        features
            ``(n, d)``, finite: the queries of n tokens, say, or ``np.hstack`` of these and
            :func:`neighbor_features`.
        lm_log_prob, knn_log_prob
            ``(n,)``, in nats: of each target. Of p_kNN it may be ``-inf`` (no neighbor has the
            target) or ``nan`` (no neighbor at all: the mixture is p_LM, whatever λ is).
        documents
            ``(n,) int``: the number of the document to which each target belongs, as in
            :attr:`~knnlm.retrieval.Retrieval.documents`.
        penalty
            What a λ of one costs, in nats.
        hidden, epochs, batch_size, learning_rate
            Of the network and its training, by AdamW.
        seed
            Of the first weights and of the order of tokens. The global generators of PyTorch are
            left as they were.

        Raises
        ------
        InputError
            When the arrays are not of equally many tokens, there are fewer than two documents, or
            the loss is never a finite number.
        """
        _check_lengths(features, lm_log_prob, knn_log_prob, documents)
        learn, check = _split(documents)
        lm = _tensor(lm_log_prob)
        # Without a neighbor p_LM stands in for p_kNN: the same mixture for every λ, and a gradient
        # of zero, where nan would spoil all weights.
        knn = _tensor(np.where(np.isnan(knn_log_prob), lm_log_prob, knn_log_prob))

        def loss(net: nn.Module, rows: np.ndarray) -> torch.Tensor:
            logit = net(_tensor(features[rows]))[:, 0]  # (rows,)
            parts = logsigmoid(-logit) + lm[rows], logsigmoid(logit) + knn[rows]
            return (penalty * torch.sigmoid(logit) - torch.logaddexp(*parts)).mean()

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
            net = _network(features.shape[1], hidden)
            _train(net, loss, learn, check, epochs, batch_size, learning_rate)
        return cls(net)

    @torch.inference_mode()
    def lam(self, features: np.ndarray) -> np.ndarray:
        """Return λ of each token, ``(n,) float64`` from 0 to 1, given ``(n, d)`` features."""
        width = len(self.net.get_buffer("scale.running_mean"))
        if np.ndim(features) != 2 or features.shape[1] != width:
            raise InputError(
                f"The features have shape {np.shape(features)}, the network reads {width} numbers "
                "a token. Give the features that it was trained on."
            )
        logits = torch.empty(len(features), dtype=torch.float64)
        for lo in range(0, len(features), ROWS_PER_CHUNK):
            rows = slice(lo, lo + ROWS_PER_CHUNK)
            logits[rows] = self.net(_tensor(features[rows]))[:, 0].double()
        return torch.sigmoid(logits).numpy()

    def save(self, path: str | Path) -> None:
        """Write the weights to a ``.safetensors`` file."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file(self.net.state_dict(), path)

    @classmethod
    def open(cls, path: str | Path) -> "AdaptiveLam":
        """Open what :meth:`save` wrote; raise InputError where a file is something else."""
        try:
            weights = load_file(path)
            hidden, width = weights["hidden.weight"].shape
            net = _network(width, hidden)
            net.load_state_dict(weights)
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{path} holds no network for λ ({type(error).__name__}). "
                "Check the path, or fit one and save it."
            ) from error
        return cls(net.eval())


def neighbor_features(distances: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return six numbers a token about its neighbors: how far they are, and whether they agree.

    They are known only after a search: to weigh one, not to spare it.

    Parameters
    ----------
    distances
        ``(n, k)``, nearest first; ``inf`` where there is no neighbor.
    values
        ``(n, 16)`` or more columns, or all k where k is smaller: the token behind each neighbor,
        −1 where there is none.

    Returns
    -------
    numpy.ndarray
        ``(n, 6) float32``: log(1 + distance) of neighbors 1, 8, 32 and k, where the last one that
        there is stands for those that are missing; among the first 16, the share that has the
        nearest one's value, and the number of different values. All are zero without a neighbor.

    >>> neighbor_features(np.array([[0.0, 0.0, np.inf]]), np.array([[7, 5, -1]])).tolist()
    [[0.0, 0.0, 0.0, 0.0, 0.5, 2.0]]
    """
    if len(distances) != len(values):
        raise InputError(
            f"There are distances for {len(distances)} tokens, but values for {len(values)}. "
            "Give a row for each token in both."
        )
    k = distances.shape[1]
    there = np.isfinite(distances).sum(axis=1, keepdims=True)  # (n, 1)
    places = np.clip([0, 7, 31, k - 1], 0, np.maximum(there - 1, 0))  # (n, 4)
    far = np.where(there, np.take_along_axis(distances, places, axis=1), 0)
    far = np.sign(far) * np.log1p(np.abs(far))  # the distance of an inner product is negative

    values = values[:, :16]
    real = values >= 0
    alike = ((values == values[:, :1]) & real).sum(axis=1)
    votes = alike / np.maximum(real.sum(axis=1), 1)
    ordered = np.sort(values, axis=1)
    kinds = 1 + (np.diff(ordered, axis=1) != 0).sum(axis=1) - (ordered[:, 0] < 0)
    return np.column_stack([far, votes, kinds]).astype(np.float32)


def retrieval_features(retrieval: Retrieval, k: int | None = None) -> np.ndarray:
    """Return ``(n, dim + 6) float32`` of a retrieval that kept its queries: these, and neighbors.

    Parameters
    ----------
    k
        Of how many neighbors; of all by default.
    """
    distances, ids = (array[:, :k] for array in retrieval.neighbors)
    values = retrieval.index.datastore.values_of(ids[:, :16])
    return np.hstack([retrieval.queries, neighbor_features(distances, values)])


def threshold(score: np.ndarray, share: float) -> float:
    """Return the border above which lies this share of the scores, to search only for those.

    Taken from one text, it serves for another that has not been read yet. With λ of a network with
    a penalty as ``score`` and that of one without as ``lam``, the mixture is
    ``interpolate(lm_log_prob, knn_log_prob, np.where(score > border, lam, 0))``: p_LM where nothing
    was searched. Scores that equal the border are not above it.

    >>> threshold(np.array([0.1, 0.9, 0.5, 0.7]), 0.5)
    0.6
    """
    if not 0 <= share <= 1:
        raise InputError(f"The share to search for is {share}. Choose one from 0 to 1.")
    return float(np.quantile(score, 1 - share)) if share < 1 else -np.inf


def _network(width: int, hidden: int) -> nn.Sequential:
    layers = {
        "scale": nn.BatchNorm1d(width, affine=False),
        "hidden": nn.Linear(width, hidden),
        "relu": nn.ReLU(),
        "logit": nn.Linear(hidden, 1),
    }
    return nn.Sequential(OrderedDict(layers))


def _split(documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens to learn from, and those of the last fifth of the documents."""
    number = np.unique(documents, return_inverse=True)[1]  # (n,), from 0 without gaps
    held = number > 0.8 * number.max(initial=0)
    if not held.any():
        raise InputError(
            f"All {len(held)} tokens are of one document, and one is to be held back to choose the "
            "epoch. Give two documents or more."
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def _train(
    net: nn.Sequential,
    loss: Callable[[nn.Module, np.ndarray], torch.Tensor],
    learn: np.ndarray,
    check: np.ndarray,
    epochs: int,
    batch_size: int,
    learning_rate: float,
) -> None:
    """Train on some rows, and leave the network as it was after the epoch that others find best."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate)
    best, kept = np.inf, None
    for _ in progress(range(epochs), description="fit λ", unit="epochs"):
        net.train()
        for rows in torch.randperm(len(learn)).split(batch_size):
            if len(rows) > 1:  # one token alone has no variance to be scaled by
                optimizer.zero_grad()
                loss(net, learn[rows.numpy()]).backward()
                optimizer.step()
        net.eval()
        with torch.inference_mode():
            now = loss(net, check).item()
        if now < best:
            best, kept = now, {name: w.clone() for name, w in net.state_dict().items()}
    if kept is None:
        raise InputError(
            f"After none of {epochs} epochs was the loss a finite number. "
            "Give features and log p_LM that are finite, and at least one epoch."
        )
    net.load_state_dict(kept)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _check_lengths(features: np.ndarray, *others: np.ndarray) -> None:
    shapes = [np.shape(x) for x in (features, *others)]
    if len(shapes[0]) != 2 or set(shapes[1:]) != {shapes[0][:1]}:
        raise InputError(
            f"Features, both log-probabilities and documents have shapes {shapes}. "
            "Give (n, d) features, and n of each of the others."
        )
