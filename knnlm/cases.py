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
    k = min(k, retrieval.k)
    if positions is None:
        gain = retrieval.log_prob(k=k, lam=lam, temperature=temperature) - retrieval.lm_log_prob
        gain = gain.round(9)  # all without the token among their neighbors lose alike: log(1 - λ)
        order = {  # of equals, where the model was surest comes first
            "helped": np.lexsort((-retrieval.lm_log_prob, -gain)),
            "hurt": np.lexsort((-retrieval.lm_log_prob, gain)),
            "position": np.arange(len(gain)),
        }
        positions = order[sort][:top]
    chosen = np.asarray(positions, dtype=np.int64)
    if len(chosen) > AT_ONCE:  # three distributions over the vocabulary for each
        parts = np.split(chosen, range(AT_ONCE, len(chosen), AT_ONCE))
        mixture = Setting(k, lam, temperature)
        return [
            case
            for part in parts
            for case in find_cases(
                lm, retrieval, mixture, positions=part, most_likely=most_likely, context=context
            )
        ]

    record = retrieval.record
    stream = TokenStream.of_record(record, retrieval.targets, lm.tokenizer_fingerprint)
    distances = np.asarray(retrieval.neighbors.distances[chosen, :k])
    ids = np.asarray(retrieval.neighbors.ids[chosen, :k])
    store = retrieval.index.datastore
    values = store.values_of(ids)
    shares = neighbor_shares(distances, temperature)
    log_lm = lm.log_distribution(stream, chosen, record["window"], record["stride"])
    p_lm = np.exp(log_lm.astype(np.float64))
    p_knn = knn_distribution(distances, values, lm.vocab_size, temperature)
    with np.errstate(divide="ignore"):
        p_mix = np.exp(interpolate(np.log(p_lm), np.log(p_knn), lam))

    def decode(tokens: list[int] | np.ndarray) -> str:
        return cast(str, lm.tokenizer.decode(tokens))  # of several texts it would be a list

    def likeliest(p: np.ndarray) -> list[tuple[str, float]]:
        tokens = np.argsort(-p, kind="stable")[:most_likely].tolist()
        return [(decode([t]), float(p[t])) for t in tokens if p[t] > 0]

    cases = []
    for i, position in enumerate(chosen.tolist()):
        target = int(retrieval.targets[position])
        document = int(retrieval.documents[position])
        first = max(int(stream.document_starts[document]), position - context + 1)
        found = np.flatnonzero(ids[i] >= 0)
        tokens, rows = values[i, found].tolist(), ids[i, found].tolist()
        neighbors = NeighborList(
            labels=[decode([token]) for token in tokens],
            values=tokens,
            distance=distances[i, found].tolist(),
            softmax=shares[i, found].tolist(),
            contexts=[decode(store.context(row, context)) for row in rows],
            documents=[store.document_name(row) for row in rows],
        )
        cases.append(
            Case(
                position=position,
                document=stream.document_names[document],
                context=decode(stream.tokens[first : position + 1]),
                label=decode([target]),
                lm=likeliest(p_lm[i]),
                knn=likeliest(p_knn[i]),
                knn_lm=likeliest(p_mix[i]),
                lm_probability=float(p_lm[i, target]),
                knn_probability=float(np.nan_to_num(p_knn[i, target])),
                knn_lm_probability=float(p_mix[i, target]),
                neighbors=neighbors,
            )
        )
    return cases
