"""One retrieval pass, one table on disk; every λ, temperature and k from that table."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from knnlm.arrays import open_array
from knnlm.artifacts import Record, claim, read_complete
from knnlm.errors import InputError
from knnlm.evaluation import Interval, Sweep, bootstrap, perplexity
from knnlm.index import Index, Neighbors
from knnlm.language_model import LanguageModel, Reading
from knnlm.lookup import FILES, check_reading, write_table
from knnlm.mixture import Setting, interpolate, knn_log_prob_grid
from knnlm.progress import progress
from knnlm.tokens import document_of

ROWS_PER_CHUNK = 4096


@dataclass(frozen=True)
class Retrieval:
    """What the model and the index say of each token of a text: made once, then only read.

    For each of n positions: log p_LM of the token that follows, and that token's k neighbors.
    Arrays are mapped from the folder ``path``.
    """

    path: Path
    record: Record
    index: Index

    @classmethod
    def run(
        cls,
        lm: LanguageModel,
        index: Index,
        text: Iterable,
        k: int = 1024,
        *,
        path: str | Path | None = None,
        window: int | None = None,
        stride: int | None = None,
        nprobe: int | None = None,
        exact: bool = False,
        reading: Reading | None = None,
        queries: bool = False,
    ) -> "Retrieval":
        """Read a text once, search once, and keep the table; go on where an earlier run stopped.

        Parameters
        ----------
        lm
            The model that made the index's datastore.
        index
            Where to search.
        text
            Documents, or a token stream of the model's tokenizer.
        k
            Neighbors per token; more than the datastore holds are not asked for.
        path
            The folder to write; by default in a temporary place that is removed at exit. A folder
            that holds the same retrieval is read instead.
        window, stride
            Those of the datastore by default.
        nprobe, exact
            See :meth:`~knnlm.index.Index.search`.
        reading
            What the model says of the whole text, where it has been read before (with other
            indexes in mind, say): its log-probabilities and the keys of the datastore's key layer.
            Then nothing is read again.
        queries
            Keep the queries too, as :attr:`queries`: 4 · dim bytes a token.

        Raises
        ------
        InputError
            When model and datastore disagree, the folder holds something else or another process
            writes it, or ``reading`` is of another text or lacks what is needed.
        """
        store = index.datastore
        store.check_model(lm)
        stream = lm.encode(text)
        if k < 1:
            raise InputError(f"k is {k}. Ask for at least one neighbor.")
        window = store.record["window"] if window is None else window
        stride = min(store.record["stride"], window) if stride is None else stride
        lm.windows(len(stream), window, stride)
        layer = store.record["key_layer"]
        if reading is not None:
            check_reading(reading, layer, len(stream) - 1)
        wanted = {
            "text": stream.fingerprint,
            "model": lm.fingerprint,
            "datastore": store.fingerprint,
            "factory": index.record["factory"],
            "rows_crc32": index.record["rows_crc32"],
            "metric": index.metric,
            "nprobe": index.lists_to_visit(nprobe),
            "exact": exact,
            "k": min(k, len(index)),
            "window": window,
            "stride": stride,
            "queries": queries,
        }
        folder = _temporary_folder() if path is None else Path(path)
        with claim(folder, "retrieval", wanted, FILES) as made:
            if not made.is_complete:
                write_table(made, lm, index, stream, reading)
                made.complete()
        return cls.open(folder, index)

    @classmethod
    def open(cls, path: str | Path, index: Index) -> "Retrieval":
        """Open what :meth:`run` kept.

        Raises
        ------
        InputError
            When there is none, it is not whole or damaged, or made with another datastore.
        """
        record = read_complete(Path(path), "retrieval")
        if record["datastore"] != index.datastore.fingerprint:
            raise InputError(
                f"The retrieval {path} was made from datastore {record['datastore']}, not from "
                f"{index.datastore.fingerprint}. Give the index it was made with."
            )
        retrieval = cls(Path(path), record, index)
        _ = retrieval.targets, retrieval.lm_log_prob, retrieval.neighbors  # mapped, of their shapes
        return retrieval

    def _load(self, name: str, *shape: int) -> np.ndarray:
        return open_array(self.path / f"{name}.npy", (len(self), *shape))

    @cached_property
    def lm_log_prob(self) -> np.ndarray:
        """``(n,) float32``: log p_LM of each target, in nats."""
        return self._load("lm_log_prob")

    @cached_property
    def targets(self) -> np.ndarray:
        """``(n,) int32``: the token to predict at each position."""
        return self._load("targets")

    @cached_property
    def neighbors(self) -> Neighbors:
        """Distances and ids, ``(n, k)`` each, mapped from disk."""
        return Neighbors(self._load("distances", self.k), self._load("ids", self.k))

    @cached_property
    def queries(self) -> np.ndarray:
        """``(n, dim) float32``: what was searched with, where :meth:`run` was to keep it.

        Raises
        ------
        InputError
            When it was not.
        """
        if not self.record["queries"]:
            raise InputError(
                f"The retrieval {self.path} has not kept its queries. "
                "Run it again with queries=True."
            )
        return self._load("queries", self.index.datastore.dim)

    @cached_property
    def documents(self) -> np.ndarray:
        """``(n,)``: the number of the document to which each target belongs."""
        starts = np.asarray(self.record["document_starts"])
        return document_of(starts, np.arange(1, len(self) + 1))

    def __len__(self) -> int:
        return self.record["tokens"]

    @property
    def k(self) -> int:
        """Neighbors per token."""
        return self.record["k"]

    @property
    def seconds(self) -> float:
        """How long the pass took: forward and search."""
        return self.record["forward_seconds"] + self.record["search_seconds"]

    def _chunks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Yield rows, distances and whether each neighbor has the target, chunk by chunk."""
        distances, ids = self.neighbors
        values = np.asarray(self.index.datastore.values)
        for lo in range(0, len(self), ROWS_PER_CHUNK):
            rows = slice(lo, lo + ROWS_PER_CHUNK)
            found = values[np.maximum(ids[rows], 0)]
            is_target = (found == self.targets[rows, None]) & (ids[rows] >= 0)
            yield rows, distances[rows], is_target

    def knn_log_prob(
        self, temperature: npt.ArrayLike = 1.0, k: npt.ArrayLike | None = None
    ) -> np.ndarray:
        """Return log p_kNN of each target, ``(n,) float64``; with all neighbors where k is None.

        Where several temperatures or several k are given, there is a dimension for them before it.
        """
        ks = self.k if k is None else k
        parts = [
            knn_log_prob_grid(distances, is_target, temperature, ks)
            for _, distances, is_target in self._chunks()
        ]
        table = np.concatenate(parts, axis=-1)
        return table.reshape(*np.shape(temperature), *np.shape(ks), len(self))

    def log_prob(self, setting: Setting | None = None, **parameters: float) -> np.ndarray:
        """Return the mixture's log-probability of each target, ``(n,) float64``.

        Parameters
        ----------
        setting
            What :meth:`Sweep.best` returns; or give ``lam=``, ``temperature=`` and ``k=``.
        """
        given: dict[str, Any] = {"k": self.k, "temperature": 1.0, **parameters}
        chosen = Setting(**given) if setting is None else setting
        if chosen.lam == 0:
            return self.lm_log_prob.astype(np.float64)
        knn = self.knn_log_prob(chosen.temperature, min(chosen.k, self.k))
        return interpolate(self.lm_log_prob.astype(np.float64), knn, chosen.lam)

    def perplexity(self, setting: Setting | None = None, **parameters: float) -> float:
        """Return the mixture's perplexity per token; see :meth:`log_prob` for the parameters."""
        return perplexity(self.log_prob(setting, **parameters))

    @property
    def perplexity_lm(self) -> float:
        """The language model's perplexity per token."""
        return perplexity(self.lm_log_prob)

    def sweep(self, lam: npt.ArrayLike, temperature: npt.ArrayLike, k: npt.ArrayLike) -> Sweep:
        """Return perplexity at every combination, from this one pass: no model, no search."""
        lams, temperatures, ks = (np.atleast_1d(x) for x in (lam, temperature, k))
        too_many = ks[ks > self.k]
        if too_many.size:
            raise InputError(
                f"k = {too_many.max()} was asked for, but {self.k} neighbors were retrieved. "
                "Retrieve more, or sweep smaller k."
            )
        totals = np.zeros((len(ks), len(lams), len(temperatures)))
        with progress(description="sweep", unit="tokens", total=len(self)) as bar:
            for rows, distances, is_target in self._chunks():
                knn = knn_log_prob_grid(distances, is_target, temperatures, ks)
                lm = self.lm_log_prob[rows].astype(np.float64)
                for j, share in enumerate(lams.tolist()):
                    totals[:, j] += interpolate(lm, knn, share).sum(axis=-1).T
                bar.update(len(distances))
        totals[:, lams == 0] = self.lm_log_prob.astype(np.float64).sum()  # to the last bit
        grid = pd.MultiIndex.from_product(
            [ks.tolist(), lams.tolist(), temperatures.tolist()], names=["k", "lam", "temperature"]
        )
        with np.errstate(over="ignore"):
            table = pd.DataFrame({"perplexity": np.exp(-totals.ravel() / len(self))}, index=grid)
        return Sweep(table.reset_index(), self.perplexity_lm)

    def bootstrap(
        self,
        log_prob: np.ndarray,
        against: np.ndarray | None = None,
        *,
        samples: int = 1000,
        seed: int = 0,
    ) -> dict[str, Interval]:
        """Return 95 % intervals over documents: of the perplexity, and of its relative reduction.

        Parameters
        ----------
        log_prob
            What :meth:`log_prob` returns.
        against
            Log-probabilities of the same tokens to compare with; the language model's by default.
        samples, seed
            Of :func:`bootstrap`.

        Returns
        -------
        dict
            ``perplexity_lm``, ``perplexity`` and ``reduction``, a share of the perplexity that
            ``against`` has.
        """
        against = self.lm_log_prob if against is None else against
        difference = np.subtract(against, log_prob, dtype=np.float64)
        lm, mixture, lost = (
            bootstrap(values, self.documents, samples=samples, seed=seed)
            for values in (self.lm_log_prob, log_prob, difference)
        )
        return {
            "perplexity_lm": lm.through(lambda mean: np.exp(-mean)),
            "perplexity": mixture.through(lambda mean: np.exp(-mean)),
            "reduction": lost.through(lambda mean: 1 - np.exp(mean)),
        }

    def compare(
        self, log_probs: Mapping[str, np.ndarray], against: np.ndarray | None = None
    ) -> pd.DataFrame:
        """Return a table of methods on this text: perplexity, what each gains, and its bounds.

        Parameters
        ----------
        log_probs
            By name: log-probabilities of the targets, as :meth:`log_prob` returns.
        against
            What to compare with; the language model's by default.

        Returns
        -------
        pandas.DataFrame
            ``perplexity``, ``gain, %`` (its reduction), and ``low`` and ``high``, the bounds of the
            gain by :meth:`bootstrap`.
        """
        rows = {}
        for name, log_prob in log_probs.items():
            found = self.bootstrap(log_prob, against)
            gain = found["reduction"].through(lambda share: 100 * share)
            rows[name] = [found["perplexity"].estimate, *gain]
        return pd.DataFrame.from_dict(
            rows, orient="index", columns=["perplexity", "gain, %", "low", "high"]
        )


def _temporary_folder() -> Path:
    import atexit
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="knnlm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / "retrieval"
