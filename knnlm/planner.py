"""Bytes, memory and time of a datastore and its index, before anything is built."""

import math
import time
from typing import Any

import faiss
import numpy as np
import torch

from knnlm.errors import InputError
from knnlm.factory import Metric, default_train_size, index_factory, inverted_file

KEY_BYTES = {"float16": 2, "float32": 4}


def plan(
    tokens: int,
    dim: int,
    factory: str = "Flat",
    dtype: str = "float16",
    *,
    layers: int = 12,
    gflops: float | None = None,
) -> dict:
    """Return what a datastore of ``tokens`` keys and its index cost.

    Parameters
    ----------
    tokens, dim
        Keys, and their width.
    factory
        FAISS's string of the index.
    dtype
        Of the stored keys.
    layers
        Blocks of a GPT-2-shaped model (12 · layers · dim² weights), for the time of its forward
        pass.
    gflops
        Rate of a float32 matrix product, in 10⁹ operations a second; measured here by default.

    Returns
    -------
    dict
        ``keys_bytes``, ``values_bytes``, ``index_bytes``, ``total_bytes`` on disk;
        ``train_bytes``: the training sample in memory; ``search_bytes``: the index in memory;
        ``forward_hours`` and ``assign_hours``: reading the text, and assigning keys to lists, at
        the full rate of a matrix product: no machine is faster, most take about twice as long.

    Examples
    --------
    The Korean study's keys, 329.5 GB:

    >>> plan(107_274_239, 768, dtype="float32", gflops=100)["keys_bytes"]
    329546462208
    """
    if tokens < 1 or dim < 1:
        raise InputError(f"{tokens:,} tokens of dimension {dim} make no store. Give 1 or more.")
    if dtype not in KEY_BYTES:
        raise InputError(f"Keys cannot be stored as {dtype!r}. Use float16 or float32.")
    index = index_factory(dim, factory, Metric.L2_SQUARED)
    ivf = inverted_file(index)
    lists = ivf.nlist if ivf else 0
    sample = 0 if index.is_trained else min(tokens, default_train_size(index))
    gflops = measure_gflops() if gflops is None else gflops
    index_bytes = round(_index_bytes(index, tokens))
    sizes = {
        "keys_bytes": tokens * dim * KEY_BYTES[dtype],
        "values_bytes": tokens * 4,
        "index_bytes": index_bytes,
    }
    return {
        "tokens": tokens,
        "dim": dim,
        "factory": factory,
        "dtype": dtype,
        **sizes,
        "total_bytes": sum(sizes.values()),
        "train_bytes": sample * dim * 4,
        "search_bytes": index_bytes,
        "gflops": gflops,
        "forward_hours": 2 * 12 * layers * dim**2 * tokens / (gflops * 1e9) / 3600,
        "assign_hours": 2 * lists * dim * tokens / (gflops * 1e9) / 3600,
    }


def plan_codes(tokens: int, dim: int, gflops: float | None = None) -> list[dict]:
    """Return :func:`plan` for four kinds of codes, from whole keys to a bit a dimension.

    About 4 √tokens lists, a power of two, at most the paper's 4096; product quantization in the
    paper's 64 bytes a key, or the fewer that divide the width.
    """
    gflops = measure_gflops() if gflops is None else gflops
    lists = min(4096, 1 << max(0, round(math.log2(4 * math.sqrt(max(tokens, 1))))))
    code = math.gcd(dim, 64)
    factories = ("Flat", f"IVF{lists},SQ8", f"IVF{lists},PQ{code}", f"IVF{lists},RaBitQ")
    return [plan(tokens, dim, factory, gflops=gflops) for factory in factories]


def _index_bytes(index: faiss.Index, n: int) -> float:
    """Return the size of ``index`` with n vectors, from its parts; file headers left out."""
    index = faiss.downcast_index(index)
    d = index.d
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain  # a vector of C++, not the list that FAISS's types say
        steps = [chain.at(i) for i in range(chain.size())]
        return sum(4 * t.d_in * t.d_out for t in steps) + _index_bytes(index.index, n)
    if isinstance(index, faiss.IndexRefine):
        return _index_bytes(index.base_index, n) + _index_bytes(index.refine_index, n)
    if isinstance(index, faiss.IndexHNSW):
        degree = index.hnsw.nb_neighbors(1)  # type: ignore[attr-defined]
        links = 8 * degree + 12 + 4 * degree / (degree - 1)  # ground floor, offsets, upper floors
        return n * links + _index_bytes(index.storage, n)
    if hasattr(index, "pq"):
        codebook = 4 * index.pq.ksub * d
    elif hasattr(index, "sq"):
        codebook = 8 * d
    else:
        codebook = 0
    if isinstance(index, faiss.IndexIVF):
        return n * (index.code_size + 8) + 4 * index.nlist * d + codebook
    if hasattr(index, "code_size"):
        return n * index.code_size + codebook
    raise InputError(f"The size of a {type(index).__name__} is not known here. Plan another index.")


def measure_gflops(size: int = 1024, repeats: int = 5) -> float:
    """Return the rate of a float32 matrix product here, in 10⁹ operations a second."""
    a = torch.ones(size, size)
    a @ a
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / float(np.min(seconds)) / 1e9
