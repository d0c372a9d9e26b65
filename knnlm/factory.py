"""FAISS's own indexes: made from a factory string, trained on a sample, written, read."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import faiss
import numpy as np

from knnlm.artifacts import damaged
from knnlm.errors import InputError
from knnlm.progress import waiting


class Metric(StrEnum):
    """What a distance is. The temperature makes up for the choice only in scale, not in shape."""

    L2_SQUARED = "l2_squared"
    """Σ (q − k)², what FAISS calls METRIC_L2: the paper."""
    L2 = "l2"
    """Its square root, the Euclidean distance: the Korean study."""
    INNER_PRODUCT = "inner_product"
    """−q·k, so that smaller is nearer."""


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
            f"{reason(error)}. "
            "Try Flat, IVF1024,PQ32x4fs,Refine(SQ8), IVF1024,RaBitQfs or HNSW32."
        ) from error


def reason(error: RuntimeError) -> str:
    """Return what FAISS says, without where in its source it says so."""
    return str(error).splitlines()[0].split(": ")[-1].rstrip(".")


def write_index(index: faiss.Index, file: Path) -> int:
    """Write an index to a file, and return the file's checksum.

    FAISS writes by itself, too, but does not notice when the last bytes find the disk full.
    """
    checksum = 0

    def write(piece: bytes) -> int:
        nonlocal checksum
        checksum = zlib.crc32(piece, checksum)
        return opened.write(piece)

    with open(file, "wb") as opened:
        faiss.write_index(index, faiss.PyCallbackIOWriter(write))  # type: ignore[attr-defined]
    return checksum


def read_index(file: Path, size: int, mmap: bool = False) -> faiss.Index:
    """Return FAISS's index in a file; raise InputError where its bytes are none, or too few."""
    try:
        found = file.stat().st_size
        with open(file, "rb"):
            pass  # where it may not be read, Python says so
    except FileNotFoundError as error:
        raise damaged(file, "it is missing") from error
    if found != size:
        raise damaged(file, f"it has {found:,} bytes, and the record says {size:,}")
    try:
        return faiss.read_index(str(file), faiss.IO_FLAG_MMAP if mmap else 0)
    except RuntimeError as error:
        raise damaged(file, reason(error)) from error


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


def parts(index: faiss.Index) -> Iterator[faiss.Index]:
    """Yield an index and those inside it (behind PCA, refinement, a graph), each as its type."""
    index = faiss.downcast_index(index)
    yield index
    for name in ("index", "base_index", "storage", "quantizer"):
        inner = getattr(index, name, None)
        if inner is not None:
            yield from parts(inner)


def train(index: faiss.Index, sample: np.ndarray, factory: str, n: int) -> None:
    """Train an index on a sample ``(size, dim) float32`` of n keys.

    Raises
    ------
    InputError
        When the sample is smaller than what is learned from it.
    """
    least = 1
    for part in parts(index):
        if isinstance(part, faiss.IndexIVF):
            part.cp.min_points_per_centroid = 1
            least = max(least, part.nlist)
        if hasattr(part, "pq"):
            part.pq.cp.min_points_per_centroid = 1
            least = max(least, 1 << part.pq.nbits)
        if hasattr(part, "do_polysemous_training"):
            # It orders codes for a way of searching that is not used here, and takes longer
            # than all other training: 50 times as long for PQ8 over 2,000 keys.
            part.do_polysemous_training = False
    if len(sample) < least:
        raise InputError(
            f"{factory} learns {least:,} centroids, but the training sample has {len(sample):,} "
            f"keys of {n:,}. Use a smaller index such as Flat, or more keys."
        )
    with waiting(f"train {factory}"):  # FAISS does not say how far it is
        index.train(sample)


@contextmanager
def searching(index: faiss.Index, lists: int | None, k: int) -> Iterator[None]:
    """Visit so many lists, and let a graph remember enough, while a search runs.

    A graph gives no more than it remembers: lists, where it leads to lists, or else keys. Afterward
    the index is as it was.
    """
    before = []
    for part in parts(index):
        if hasattr(part, "nprobe"):
            before.append((part, "nprobe", part.nprobe))
            part.nprobe = lists
        if hasattr(part, "hnsw"):
            before.append((part.hnsw, "efSearch", part.hnsw.efSearch))
            part.hnsw.efSearch = max(part.hnsw.efSearch, lists or k)
    try:
        yield
    finally:
        for part, name, value in before:
            setattr(part, name, value)
