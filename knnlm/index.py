"""FAISS over a datastore's keys: trained, filled, saved, searched. Id −1 is no neighbor."""

import hashlib
import os
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np

from knnlm.artifacts import Record, claim, read_complete
from knnlm.datastore import Datastore
from knnlm.errors import InputError
from knnlm.factory import (
    Metric,
    default_train_size,
    index_factory,
    inverted_file,
    read_index,
    searching,
)
from knnlm.index_builder import FILES, IndexBuilder


class Neighbors(NamedTuple):
    """For each of n queries its k nearest keys, nearest first."""

    distances: np.ndarray
    """``(n, k) float32``; ``inf`` where there is no neighbor."""
    ids: np.ndarray
    """``(n, k) int64``: rows of the datastore; −1 where there is no neighbor."""


def _place_of_datastore(path: Path, relative: str) -> Path:
    """Return where the datastore stands, seen from the index; a link may lead to either of them."""
    seen = (path.resolve() / relative, Path(os.path.normpath(path.absolute() / relative)))
    return next((place for place in seen if (place / "datastore.json").exists()), seen[0]).resolve()


def _check_nprobe(nprobe: int) -> None:
    if nprobe < 1:
        raise InputError(f"nprobe is {nprobe}. At least one list must be visited: give 1 or more.")


def _check_rows(rows: np.ndarray, n: int) -> np.ndarray:
    """Return rows as ids for FAISS; raise InputError unless they are increasing rows of n."""
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    if not len(rows) or rows[0] < 0 or rows[-1] >= n or (np.diff(rows) < 1).any():
        raise InputError(
            f"{len(rows):,} rows were given that are no increasing row numbers below {n:,}. "
            "Give np.flatnonzero of which rows to index."
        )
    return rows


@dataclass
class Index:
    """A FAISS index with the datastore it was built from; open one with :meth:`open`.

    Its folder holds ``index.faiss``, FAISS's own format, and ``index.json``.
    """

    path: Path
    record: Record
    datastore: Datastore
    faiss_index: faiss.Index

    @classmethod
    def build(
        cls,
        datastore: Datastore,
        factory: str = "Flat",
        *,
        metric: str = Metric.L2_SQUARED,
        train_size: int | None = None,
        nprobe: int = 32,
        seed: int = 0,
        rows: np.ndarray | None = None,
        path: str | Path | None = None,
    ) -> "Index":
        """Train an index on a sample of the keys, add all keys, save it.

        A build that was stopped goes on from the trained index, or from what was added up to at
        most ten minutes before. Keys pass through memory in chunks.

        Parameters
        ----------
        datastore
            The complete datastore.
        factory
            FAISS's own string: ``Flat``, ``IVF4096,PQ64``, ``OPQ64,IVF…``, ``HNSW32``, ….
        metric
            See :class:`Metric`.
        train_size
            Keys in the training sample; by default 64 for each list, at least 65,536.
        nprobe
            Lists visited for a query, for IVF; what :meth:`search` uses by default.
        seed
            Of the training sample.
        rows
            Index only these rows of the datastore, in increasing order; a search gives them by
            their numbers in the whole. For ``IVF…``, or with ``IDMap,`` in front of what keeps no
            ids, such as ``IDMap,Flat``.
        path
            The folder to write; ``index`` in the datastore's folder by default.

        Raises
        ------
        InputError
            When FAISS knows no such index, the sample is too small for it, or the folder holds
            something else.
        """
        if metric not in set(Metric):
            raise InputError(f"There is no metric {metric!r}. Use one of {', '.join(Metric)}.")
        _check_nprobe(nprobe)
        path = datastore.path / "index" if path is None else Path(path)
        index = index_factory(datastore.dim, factory, metric)
        ivf = inverted_file(index)
        if ivf is not None and ivf.nlist < 1:
            raise InputError(f"{factory} has no list to hold a key. Give 1 or more behind IVF.")
        if "L2norm" in factory and isinstance(index, faiss.IndexRefine):
            raise InputError(
                f"{factory} would look for normalized keys and re-rank them by distances of keys "
                "as they are. Leave out the refinement."
            )
        rows = None if rows is None else _check_rows(rows, len(datastore))
        n = len(datastore) if rows is None else len(rows)
        if train_size is None:
            train_size = default_train_size(index)
        wanted = {
            "datastore": datastore.fingerprint,
            "factory": factory,
            "metric": str(metric),
            "train_size": min(train_size, n),
            "seed": seed,
            "rows": None if rows is None else n,
            "rows_crc32": None if rows is None else zlib.crc32(rows.data),
        }
        with claim(path, "index", wanted, FILES) as made:
            where = os.path.relpath(datastore.path.resolve(), path.resolve())
            now = {"nprobe": min(nprobe, ivf.nlist) if ivf else None, "datastore_path": where}
            changed = any(made.record.get(name) != value for name, value in now.items())
            made.record.update(now)
            if not made.is_complete:
                IndexBuilder(made, datastore.keys, index, rows, n).fill()
                made.complete()
            elif changed:
                made.save()
        return cls.open(path)

    @classmethod
    def open(
        cls, path: str | Path, datastore: Datastore | None = None, mmap: bool = False
    ) -> "Index":
        """Open an index and its datastore, which is found from the path in ``index.json``.

        Parameters
        ----------
        datastore
            Where it is open already.
        mmap
            Leave the lists of an ``IVF`` index on disk: the system reads those that a search
            visits, and keeps what fits in memory. Other indexes, and the fast-scan ones, are read.

        Raises
        ------
        InputError
            When there is none, it is not whole or damaged, or its datastore is another or gone.
        """
        path = Path(path)
        if not (path / "index.json").exists() and (path / "index" / "index.json").exists():
            path = path / "index"  # the datastore's folder was given
        record = read_complete(path, "index")
        if datastore is None:
            datastore = Datastore.open(_place_of_datastore(path, record["datastore_path"]))
        if record["datastore"] != datastore.fingerprint:
            raise InputError(
                f"The index {path} was built from datastore {record['datastore']}, but "
                f"{datastore.path} is {datastore.fingerprint}. Build the index again."
            )
        return cls(path, record, datastore, read_index(path / "index.faiss", record["bytes"], mmap))

    def __len__(self) -> int:
        return self.record.get("rows") or len(self.datastore)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over what a search goes by: the datastore, the index file, nprobe."""
        parts = (self.record[name] for name in ("datastore", "metric", "nprobe", "crc32"))
        return hashlib.sha256(repr(list(parts)).encode()).hexdigest()[:16]

    @property
    def metric(self) -> str:
        """The metric's name, see :class:`Metric`."""
        return self.record["metric"]

    def lists_to_visit(self, nprobe: int | None = None) -> int | None:
        """Return how many lists a search visits, given this ``nprobe``; None without lists."""
        ivf = inverted_file(self.faiss_index)
        if nprobe is not None:
            _check_nprobe(nprobe)
        return min(nprobe or self.record["nprobe"], ivf.nlist) if ivf else None

    def search(
        self, queries: np.ndarray, k: int, *, nprobe: int | None = None, exact: bool = False
    ) -> Neighbors:
        """Return the k nearest keys of each query.

        Parameters
        ----------
        queries
            ``(n, dim)``.
        k
            How many; fewer may be found, the rest have id −1 and distance ``inf``.
        nprobe
            Lists to visit, instead of what the index was built with. Ignored by indexes without
            lists.
        exact
            Compute the distances anew from the datastore's keys and sort by them: the neighbors
            are still those that the index found.
        """
        if k < 1:
            raise InputError(f"k is {k}. Ask for at least one neighbor.")
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.datastore.dim:
            raise InputError(
                f"The queries have shape {queries.shape}, the keys are {self.datastore.dim} wide. "
                "Read both from the same key layer of the same model."
            )
        if exact and "L2norm" in self.record["factory"]:
            raise InputError(
                f"{self.record['factory']} compares normalized keys, and exact=True computes "
                "distances of keys as they are. Search without it."
            )
        lists = self.lists_to_visit(nprobe)
        with searching(self.faiss_index, lists, k):
            distances, ids = self.faiss_index.search(queries, k)
        if exact:
            distances, ids = self._rerank(queries, ids)
        elif self.metric == Metric.INNER_PRODUCT:
            distances = -distances
        else:  # estimates by quantized codes can fall below zero
            distances = np.maximum(distances, 0, out=distances)
        if self.metric == Metric.L2:
            distances = np.sqrt(distances)
        distances[ids < 0] = np.inf
        return Neighbors(distances, ids)

    def _rerank(self, queries: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return exact distances (squared, or minus products) and the ids sorted by them."""
        distances = np.empty(ids.shape, dtype=np.float32)
        size = max(1, (1 << 22) // (ids.shape[1] * self.datastore.dim))
        for lo in range(0, len(ids), size):
            some = slice(lo, lo + size)
            keys = self.datastore.keys[np.maximum(ids[some], 0)].astype(np.float32)
            if self.metric == Metric.INNER_PRODUCT:
                distances[some] = -np.einsum("nd,nkd->nk", queries[some], keys)
            else:
                distances[some] = np.square(keys - queries[some, None]).sum(axis=2)
        distances[ids < 0] = np.inf
        order = np.argsort(distances, axis=1, kind="stable")
        return np.take_along_axis(distances, order, 1), np.take_along_axis(ids, order, 1)
