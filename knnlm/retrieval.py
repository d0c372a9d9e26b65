"""One retrieval pass, one table on disk; every λ, temperature and k from that table."""

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from knnlm.errors import InputError
from knnlm.evaluation import Interval, Setting, Sweep, bootstrap, perplexity
from knnlm.files import FORMAT, create_array, read_record, refuse_differences, write_json
from knnlm.index import Index, Neighbors
from knnlm.language_model import LanguageModel, Reading
from knnlm.mixture import interpolate, knn_log_prob_grid
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
    record: dict
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
    ) -> "Retrieval":
        """Read a text once, search once, and keep the table.

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

        Raises
        ------
        InputError
            When model and datastore disagree, the folder holds something else, or ``reading`` is
            of another text or lacks what is needed.
        """
        store = index.datastore
        store.check_model(lm)
        stream = lm.encode(text)
        if k < 1:
            raise InputError(f"k is {k}. Ask for at least one neighbor.")
        k = min(k, len(index))
        window = store.record["window"] if window is None else window
        stride = min(store.record["stride"], window) if stride is None else stride
        windows = lm.windows(len(stream), window, stride)
        layer = store.record["key_layer"]
        if reading is not None:
            _check_reading(reading, layer, len(stream) - 1)
        wanted = {
            "text": stream.fingerprint,
            "model": lm.fingerprint,
            "datastore": store.fingerprint,
            "factory": index.record["factory"],
            "rows_crc32": index.record.get("rows_crc32"),
            "metric": index.metric,
            "nprobe": index.lists_to_visit(nprobe),
            "exact": exact,
            "k": k,
            "window": window,
            "stride": stride,
        }
        path = _temporary_folder() if path is None else Path(path)
        if (path / "retrieval.json").exists():
            record = read_record(path, "retrieval")
            refuse_differences(record, wanted, path)
            return cls(path, record, index)
        if path.exists() and any(path.iterdir()) and not (path / "targets.npy").exists():
            raise InputError(f"{path} holds something that is no retrieval. Choose another folder.")
        path.mkdir(parents=True, exist_ok=True)
        n = windows[-1].stop
        np.save(path / "targets.npy", stream.tokens[1:])
        id_type = np.int32 if len(store) < 2**31 else np.int64
        arrays = {
            name: create_array(path / f"{name}.npy", dtype, shape)
            for name, dtype, shape in (
                ("lm_log_prob", np.float32, (n,)),
                ("distances", np.float32, (n, k)),
                ("ids", id_type, (n, k)),
            )
        }
        seconds = {"forward": 0.0, "search": 0.0}
        readings = (
            lm.read(stream, window=window, stride=stride, key_layers=[layer], log_probs=True)
            if reading is None
            else _in_chunks(reading, layer)
        )
        last = time.perf_counter()
        with progress(description="retrieve", unit="tokens", total=n) as bar:
            for reading in readings:
                rows = slice(reading.first, reading.stop)
                arrays["lm_log_prob"][rows] = reading.log_probs
                now = time.perf_counter()
                seconds["forward"] += now - last
                neighbors = index.search(reading.keys[layer], k, nprobe=nprobe, exact=exact)
                arrays["distances"][rows] = neighbors.distances
                arrays["ids"][rows] = neighbors.ids
                last = time.perf_counter()
                seconds["search"] += last - now
                bar.update(reading.stop - reading.first)
        for array in arrays.values():
            array.flush()
        record = {
            "format": FORMAT,
            **wanted,
            "tokens": n,
            "words": stream.words,
            "characters": stream.characters,
            "document_starts": stream.document_starts.tolist(),
            "document_names": list(stream.document_names),
            "first_token": int(stream.tokens[0]),
            "precision": lm.precision,
            "forward_seconds": seconds["forward"],
            "search_seconds": seconds["search"],
        }
        write_json(path / "retrieval.json", record)
        return cls(path, record, index)

    @classmethod
    def open(cls, path: str | Path, index: Index) -> "Retrieval":
        """Open what :meth:`run` kept."""
        record = read_record(Path(path), "retrieval")
        if record["datastore"] != index.datastore.fingerprint:
            raise InputError(
                f"The retrieval {path} was made from datastore {record['datastore']}, not from "
                f"{index.datastore.fingerprint}. Give the index it was made with."
            )
        return cls(Path(path), record, index)

    def _load(self, name: str) -> np.ndarray:
        return np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)

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
        return Neighbors(self._load("distances"), self._load("ids"))

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
        self, temperature: float | Sequence[float] = 1.0, k: int | Sequence[int] | None = None
    ) -> np.ndarray:
        """Return log p_kNN of each target, ``(n,) float64``; with all neighbors where k is None.

        Where several temperatures or several k are given, there is a dimension for them before it.
        """
        temperatures, ks = np.atleast_1d(temperature), np.atleast_1d(self.k if k is None else k)
        parts = [
            knn_log_prob_grid(distances, is_target, temperatures, ks)
            for _, distances, is_target in self._chunks()
        ]
        table = np.concatenate(parts, axis=-1)
        return table.reshape(*np.shape(temperature), *np.shape(k), len(self))

    def log_prob(self, setting: Setting | None = None, **parameters) -> np.ndarray:
        """Return the mixture's log-probability of each target, ``(n,) float64``.

        Parameters
        ----------
        setting
            What :meth:`Sweep.best` returns; or give ``lam=``, ``temperature=`` and ``k=``.
        """
        chosen = (
            Setting(**{"k": self.k, "temperature": 1.0, **parameters})
            if setting is None
            else setting
        )
        if chosen.lam == 0:
            return self.lm_log_prob.astype(np.float64)
        knn = self.knn_log_prob(chosen.temperature, min(chosen.k, self.k))
        return interpolate(self.lm_log_prob.astype(np.float64), knn, chosen.lam)

    def perplexity(self, setting: Setting | None = None, **parameters) -> float:
        """Return the mixture's perplexity per token; see :meth:`log_prob` for the parameters."""
        return perplexity(self.log_prob(setting, **parameters))

    @property
    def perplexity_lm(self) -> float:
        """The language model's perplexity per token."""
        return perplexity(self.lm_log_prob)

    def sweep(self, lam: Sequence[float], temperature: Sequence[float], k: Sequence[int]) -> Sweep:
        """Return perplexity at every combination, from this one pass: no model, no search."""
        lam, temperature, k = (np.atleast_1d(x) for x in (lam, temperature, k))
        too_many = k[k > self.k]
        if too_many.size:
            raise InputError(
                f"k = {too_many.max()} was asked for, but {self.k} neighbors were retrieved. "
                "Retrieve more, or sweep smaller k."
            )
        totals = np.zeros((len(k), len(lam), len(temperature)))
        with progress(description="sweep", unit="tokens", total=len(self)) as bar:
            for rows, distances, is_target in self._chunks():
                knn = knn_log_prob_grid(distances, is_target, temperature, k)
                lm = self.lm_log_prob[rows].astype(np.float64)
                for j, share in enumerate(lam.tolist()):
                    totals[:, j] += interpolate(lm, knn, share).sum(axis=-1).T
                bar.update(len(distances))
        totals[:, lam == 0] = self.lm_log_prob.astype(np.float64).sum()  # to the last bit
        grid = pd.MultiIndex.from_product(
            [k.tolist(), lam.tolist(), temperature.tolist()], names=["k", "lam", "temperature"]
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


def _check_reading(reading: Reading, layer: str, positions: int) -> None:
    """Raise InputError unless a reading has all that a retrieval takes from the model."""
    if (reading.first, reading.stop) != (0, positions):
        raise InputError(
            f"The reading is of positions {reading.first} to {reading.stop - 1}, the text has "
            f"0 to {positions - 1}. Read the whole text, and join what that gives."
        )
    if layer not in reading.keys or reading.log_probs is None:
        lacks = "log-probabilities" if layer in reading.keys else f"keys of {layer}"
        raise InputError(
            f"The reading has no {lacks}. Ask lm.read for log_probs and the datastore's key layer."
        )


def _in_chunks(reading: Reading, layer: str) -> Iterator[Reading]:
    for lo in range(0, reading.stop, ROWS_PER_CHUNK):
        rows = slice(lo, min(lo + ROWS_PER_CHUNK, reading.stop))
        yield Reading(lo, rows.stop, {layer: reading.keys[layer][rows]}, reading.log_probs[rows])


def _temporary_folder() -> Path:
    import atexit
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="knnlm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / "retrieval"
