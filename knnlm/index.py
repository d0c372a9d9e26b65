"""FAISS over a datastore's keys: trained, filled, saved, searched. Id −1 is no neighbor."""

import hashlib
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np

from knnlm.datastore import Datastore
from knnlm.errors import InputError
from knnlm.files import (
    FORMAT,
    file_crc32,
    read_record,
    refuse_differences,
    remove_files,
    write_json,
)
from knnlm.progress import progress, waiting

ROWS_PER_CHUNK = 1 << 16
CHECKPOINT_SECONDS = 600


class Metric(StrEnum):
    """What a distance is. The temperature makes up for the choice only in scale, not in shape."""

    L2_SQUARED = "l2_squared"
    """Σ (q − k)², what FAISS calls METRIC_L2: the paper."""
    L2 = "l2"
    """Its square root, the Euclidean distance: the Korean study."""
    INNER_PRODUCT = "inner_product"
    """−q·k, so that smaller is nearer."""


class Neighbors(NamedTuple):
    """For each of n queries its k nearest keys, nearest first."""

    distances: np.ndarray
    """``(n, k) float32``; ``inf`` where there is no neighbor."""
    ids: np.ndarray
    """``(n, k) int64``: rows of the datastore; −1 where there is no neighbor."""


def index_factory(dim: int, factory: str, metric: str) -> faiss.Index:
    """Return an empty FAISS index for a factory string.

    Raises
    ------
    InputError
        When FAISS does not know the string, or it does not fit the width of the keys.
    """
    is_product = metric == Metric.INNER_PRODUCT
    try:
        return faiss.index_factory(
            dim, factory, faiss.METRIC_INNER_PRODUCT if is_product else faiss.METRIC_L2
        )
    except RuntimeError as error:
        raise InputError(
            f"FAISS makes no index {factory!r} over {dim} dimensions: "
            f"{_reason(error)}. "
            "Try Flat, IVF1024,PQ32x4fs,Refine(SQ8), IVF1024,RaBitQfs or HNSW32."
        ) from error


def _reason(error: RuntimeError) -> str:
    """Return what FAISS says, without where in its source it says so."""
    return str(error).splitlines()[0].split(": ")[-1].rstrip(".")


def _read(file: Path, flags: int = 0) -> faiss.Index:
    """Return FAISS's index in a file; raise InputError where its bytes are none."""
    with open(file, "rb"):
        pass  # where it may not be read, Python says so
    try:
        return faiss.read_index(str(file), flags)
    except RuntimeError as error:
        raise InputError(
            f"{file} is damaged: {_reason(error)}. Delete {file.parent} and build the index again."
        ) from error


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


def inverted_file(index: faiss.Index) -> faiss.IndexIVF | None:
    """Return the inverted-file part of an index, or None."""
    try:
        return faiss.extract_index_ivf(index)
    except RuntimeError:
        return None


def default_train_size(index: faiss.Index) -> int:
    """Return how many keys an index is trained on by default: 64 a list, at least 65,536."""
    ivf = inverted_file(index)
    return max(64 * ivf.nlist if ivf else 0, 1 << 16)


def _parts(index: faiss.Index) -> Iterator[faiss.Index]:
    """Yield an index and those inside it (behind PCA, refinement, a graph), each as its type."""
    index = faiss.downcast_index(index)
    yield index
    for name in ("index", "base_index", "storage", "quantizer"):
        inner = getattr(index, name, None)
        if inner is not None:
            yield from _parts(inner)


@dataclass
class Index:
    """A FAISS index with the datastore it was built from; open one with :meth:`open`.

    Its folder holds ``index.faiss``, FAISS's own format, and ``index.json``.
    """

    path: Path
    record: dict
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
            "rows": None if rows is None else len(rows),
            "rows_crc32": None if rows is None else zlib.crc32(rows),
        }
        if (path / "index.json").exists():
            record = read_record(path, "index")
            refuse_differences(record, wanted, path)
        elif path.exists() and (
            not path.is_dir() or any(file.name != "index.faiss.part" for file in path.iterdir())
        ):
            raise InputError(f"{path} holds something that is no index. Choose another folder.")
        else:
            record = {"format": FORMAT, **wanted, "rows_done": -1, "bytes": 0, "seconds": 0.0}
        path.mkdir(parents=True, exist_ok=True)
        record["nprobe"] = min(nprobe, ivf.nlist) if ivf else None
        record["datastore_path"] = os.path.relpath(datastore.path, path)
        file = path / "index.faiss"
        if record["rows_done"] == n and file.exists() and file.stat().st_size == record["bytes"]:
            write_json(path / "index.json", record)
        else:
            build = cls(path, record, datastore, index)
            try:
                build._fill(rows)
            except (InputError, RuntimeError) as error:
                if record["rows_done"] <= 0:  # nothing to go on from: it would be in the way
                    remove_files(path, "index.json", "index.faiss")
                if isinstance(error, InputError):
                    raise
                raise InputError(
                    f"FAISS cannot build {factory!r} over {datastore.path}: {_reason(error)}. "
                    "Choose another factory string."
                ) from error
            build._save()
        return cls.open(path)

    def _fill(self, rows: np.ndarray | None) -> None:
        record, keys, n = self.record, self.datastore.keys, len(self)
        begun = time.perf_counter()
        if 0 <= record["rows_done"] < n:
            self.faiss_index = _read(self.path / "index.faiss")
            record["rows_done"] = self.faiss_index.ntotal  # a kill may have come before the json
        else:
            self._train(keys, rows)
            record["rows_done"] = 0
            record["train_seconds"] = time.perf_counter() - begun
            self._save()
        saved = time.perf_counter()
        done = record["rows_done"]
        with progress(description="index", unit="keys", total=n, done=done) as bar:
            for lo in range(done, n, ROWS_PER_CHUNK):
                some = slice(lo, lo + ROWS_PER_CHUNK)
                chunk = np.asarray(keys[some if rows is None else rows[some]], dtype=np.float32)
                if rows is None:
                    self.faiss_index.add(chunk)
                else:
                    self.faiss_index.add_with_ids(chunk, rows[some])
                record["rows_done"] = lo + len(chunk)
                bar.update(len(chunk))
                if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                    record["seconds"] += time.perf_counter() - begun
                    self._save()
                    begun = saved = time.perf_counter()
        record["seconds"] += time.perf_counter() - begun

    def _train(self, keys: np.ndarray, rows: np.ndarray | None) -> None:
        if self.faiss_index.is_trained:
            return
        n, size = len(self), self.record["train_size"]
        least = 1
        for part in _parts(self.faiss_index):
            if hasattr(part, "nlist"):
                part.cp.min_points_per_centroid = 1
                least = max(least, part.nlist)
            if hasattr(part, "pq"):
                part.pq.cp.min_points_per_centroid = 1
                least = max(least, 1 << part.pq.nbits)
            if hasattr(part, "do_polysemous_training"):
                # It orders codes for a way of searching that is not used here, and takes longer
                # than all other training: 50 times as long for PQ8 over 2,000 keys.
                part.do_polysemous_training = False
        if size < least:
            raise InputError(
                f"{self.record['factory']} learns {least:,} centroids, but the training sample has "
                f"{size:,} keys of {n:,}. Use a smaller index such as Flat, or more keys."
            )
        drawn = np.sort(np.random.default_rng(self.record["seed"]).choice(n, size, replace=False))
        sample = np.asarray(keys[drawn if rows is None else rows[drawn]], dtype=np.float32)
        with waiting(f"train {self.record['factory']}"):  # FAISS does not say how far it is
            self.faiss_index.train(sample)

    def _save(self) -> None:
        partial = self.path / "index.faiss.part"
        faiss.write_index(self.faiss_index, str(partial))
        os.replace(partial, self.path / "index.faiss")
        self.record["bytes"] = (self.path / "index.faiss").stat().st_size
        if self.record["rows_done"] == len(self):  # it reads all: not at each checkpoint
            self.record["crc32"] = file_crc32(self.path / "index.faiss")
        write_json(self.path / "index.json", self.record)

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
            When there is none, it is not whole, or its datastore is another or gone.
        """
        path = Path(path)
        if not (path / "index.json").exists() and (path / "index" / "index.json").exists():
            path = path / "index"  # the datastore's folder was given
        record = read_record(path, "index")
        file = path / "index.faiss"
        if datastore is None:
            datastore = Datastore.open((path / record["datastore_path"]).resolve())
        if record["datastore"] != datastore.fingerprint:
            raise InputError(
                f"The index {path} was built from datastore {record['datastore']}, but "
                f"{datastore.path} is {datastore.fingerprint}. Build the index again."
            )
        size = file.stat().st_size if file.exists() else 0
        n = record.get("rows") or len(datastore)
        if record["rows_done"] != n or size != record["bytes"]:
            raise InputError(
                f"The index {path} is not whole: {max(record['rows_done'], 0):,} of {n:,} keys, "
                f"{size:,} of {record['bytes']:,} bytes. "
                "Run the same build again: it goes on from there."
            )
        return cls(path, record, datastore, _read(file, faiss.IO_FLAG_MMAP if mmap else 0))

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
        return ivf and min(nprobe or self.record["nprobe"], ivf.nlist)

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
        before = []
        for part in _parts(self.faiss_index):
            if hasattr(part, "nprobe"):
                before.append((part, "nprobe", part.nprobe))
                part.nprobe = lists
            if hasattr(part, "hnsw"):  # it gives no more than it remembers: lists, or keys
                before.append((part.hnsw, "efSearch", part.hnsw.efSearch))
                part.hnsw.efSearch = max(part.hnsw.efSearch, lists or k)
        try:
            distances, ids = self.faiss_index.search(queries, k)
        finally:
            for part, name, value in before:
                setattr(part, name, value)
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
