"""What happened at one token: three distributions and the neighbors, in the Korean study's JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from knnlm.errors import InputError
from knnlm.language_model import LanguageModel
from knnlm.mixture import Setting, interpolate, knn_distribution, neighbor_shares
from knnlm.retrieval import Retrieval
from knnlm.tokens import TokenStream

SORTS = ("helped", "hurt", "position")
AT_ONCE = 256


@dataclass(frozen=True)
class NeighborList:
    """The neighbors of one token, nearest first; each field has one entry a neighbor."""

    labels: list[str]
    """The token that followed the neighbor's context."""
    values: list[int]
    """Its id."""
    distance: list[float]
    softmax: list[float]
    """Its share of p_kNN."""
    contexts: list[str]
    """The text before it."""
    documents: list[str]
    """The name of the document it was read from; not part of the JSON."""


@dataclass(frozen=True)
class Case:
    """One token of a text: what p_LM, p_kNN and their mixture made of it."""

    position: int
    document: str
    context: str
    label: str
    lm: list[tuple[str, float]]
    knn: list[tuple[str, float]]
    knn_lm: list[tuple[str, float]]
    lm_probability: float
    knn_probability: float
    knn_lm_probability: float
    neighbors: NeighborList

    def to_dict(self) -> dict:
        """Return the record with exactly the study's fields; ``knn_lm_percent`` is in percent."""
        neighbors = self.neighbors
        return {
            "context": self.context,
            "label": self.label,
            "lm": [list(pair) for pair in self.lm],
            "knn": [list(pair) for pair in self.knn],
            "lm+knn": [list(pair) for pair in self.knn_lm],
            "lm_probability": self.lm_probability,
            "knn_probability": self.knn_probability,
            "knn_lm_percent": 100 * self.knn_lm_probability,
            "neighbors": {
                "labels": neighbors.labels,
                "values": neighbors.values,
                "distance": neighbors.distance,
                "softmax": neighbors.softmax,
                "contexts": neighbors.contexts,
            },
        }


def find_cases(
    lm: LanguageModel,
    retrieval: Retrieval,
    setting: Setting | None = None,
    *,
    k: int = 8,
    lam: float = 0.25,
    temperature: float = 1.0,
    top: int = 20,
    sort: str = "helped",
    positions: Sequence[int] | np.ndarray | None = None,
    most_likely: int = 5,
    context: int = 32,
) -> list[Case]:
    """Return the tokens where memory helped or hurt most, or the first ones, or those named.

    The table of ``retrieval`` says which; only the windows of the chosen ones are read again, for
    the distribution over the vocabulary.

    Parameters
    ----------
    setting
        What :meth:`~knnlm.evaluation.Sweep.best` returns, instead of the three numbers below.
    top
        How many.
    sort
        ``"helped"``: largest log p − log p_LM of the true token first; ``"hurt"``: smallest first;
        ``"position"``: as they stand in the text.
    positions
        Choose these positions instead.
    most_likely
        How many tokens of each distribution to name.
    context
        Tokens of context to show, of the case and of its neighbors.
    """
    if sort not in SORTS:
        raise InputError(f"Cases cannot be sorted by {sort!r}. Use one of {', '.join(SORTS)}.")
    if setting is not None:
        k, lam, temperature = setting.k, setting.lam, setting.temperature
    mixture = Setting(min(k, retrieval.k), lam, temperature)
    chosen = _most(retrieval, mixture, sort)[:top] if positions is None else np.asarray(positions)
    reader = _Reader(lm, retrieval, mixture, most_likely, context)
    parts = [chosen[lo : lo + AT_ONCE] for lo in range(0, len(chosen), AT_ONCE)]
    return [case for part in parts for case in reader.read(part.astype(np.int64))]


def _most(retrieval: Retrieval, mixture: Setting, sort: str) -> np.ndarray:
    """Return all positions, those first that are asked for."""
    gain = retrieval.log_prob(mixture) - retrieval.lm_log_prob
    gain = gain.round(9)  # all without the token among their neighbors lose alike: log(1 - λ)
    order = {  # of equals, where the model was surest comes first
        "helped": np.lexsort((-retrieval.lm_log_prob, -gain)),
        "hurt": np.lexsort((-retrieval.lm_log_prob, gain)),
        "position": np.arange(len(gain)),
    }
    return order[sort]


class _Reader:
    """Reads the windows of some positions again, and says what happened at each."""

    def __init__(
        self,
        lm: LanguageModel,
        retrieval: Retrieval,
        mixture: Setting,
        most_likely: int,
        context: int,
    ):
        self.lm, self.retrieval, self.mixture = lm, retrieval, mixture
        self.most_likely, self.context = most_likely, context
        record, targets = retrieval.record, retrieval.targets
        self.stream = TokenStream.of_record(record, targets, lm.tokenizer_fingerprint)

    def read(self, positions: np.ndarray) -> list[Case]:
        """Return the case of each position."""
        retrieval, record = self.retrieval, self.retrieval.record
        k, lam, temperature, _ = self.mixture
        distances, ids = (np.asarray(array[positions, :k]) for array in retrieval.neighbors)
        values = retrieval.index.datastore.values_of(ids)
        window, stride = record["window"], record["stride"]
        log_lm = self.lm.log_distribution(self.stream, positions, window, stride)
        p_lm = np.exp(log_lm.astype(np.float64))  # (positions, V), as the two below
        p_knn = knn_distribution(distances, values, self.lm.vocab_size, temperature)
        with np.errstate(divide="ignore"):
            p_mix = np.exp(interpolate(np.log(p_lm), np.log(p_knn), lam))
        shares = neighbor_shares(distances, temperature)
        neighbors = map(self._neighbors, ids, values, distances, shares)
        return list(map(self._case, positions.tolist(), p_lm, p_knn, p_mix, neighbors))

    def _case(
        self,
        position: int,
        p_lm: np.ndarray,
        p_knn: np.ndarray,
        p_mix: np.ndarray,
        neighbors: NeighborList,
    ) -> Case:
        """Return a case, given three distributions ``(V,)`` and the neighbors."""
        target = int(self.retrieval.targets[position])
        document = int(self.retrieval.documents[position])
        first = max(int(self.stream.document_starts[document]), position - self.context + 1)
        return Case(
            position=position,
            document=self.stream.document_names[document],
            context=self._decode(self.stream.tokens[first : position + 1]),
            label=self._decode([target]),
            lm=self._likeliest(p_lm),
            knn=self._likeliest(p_knn),
            knn_lm=self._likeliest(p_mix),
            lm_probability=float(p_lm[target]),
            knn_probability=float(np.nan_to_num(p_knn[target])),
            knn_lm_probability=float(p_mix[target]),
            neighbors=neighbors,
        )

    def _neighbors(
        self, ids: np.ndarray, values: np.ndarray, distances: np.ndarray, shares: np.ndarray
    ) -> NeighborList:
        """Return the neighbors of one token, ``(k,)`` each, without places that have none."""
        store, found = self.retrieval.index.datastore, ids >= 0
        tokens, rows = values[found].tolist(), ids[found].tolist()
        return NeighborList(
            labels=[self._decode([token]) for token in tokens],
            values=tokens,
            distance=distances[found].tolist(),
            softmax=shares[found].tolist(),
            contexts=[self._decode(store.context(row, self.context)) for row in rows],
            documents=[store.document_name(row) for row in rows],
        )

    def _decode(self, tokens: list[int] | np.ndarray) -> str:
        return cast(str, self.lm.tokenizer.decode(tokens))  # of several texts it would be a list

    def _likeliest(self, p: np.ndarray) -> list[tuple[str, float]]:
        tokens = np.argsort(-p, kind="stable")[: self.most_likely].tolist()
        return [(self._decode([t]), float(p[t])) for t in tokens if p[t] > 0]
