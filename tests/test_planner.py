"""The plan held to real files: what it says before, FAISS and NumPy write afterwards."""

import faiss
import numpy as np
import pytest

from knnlm.errors import InputError
from knnlm.factory import index_factory, inverted_file
from knnlm.planner import plan

FACTORIES = [
    "Flat",
    "SQ8",
    "IVF16,Flat",
    "IVF16,SQ8",
    "IVF16,PQ8",
    "IVF16,PQ16x4fs",
    "IVF16,RaBitQ",
    "IVF16,RaBitQfs",
    "HNSW16",
    "PCA16,IVF16,Flat",
    "OPQ8,IVF16,PQ8",
    "IVF16,RaBitQfs,Refine(SQ8)",
    "IVF16,PQ16x4fs,Refine(SQ8)",
]


@pytest.mark.parametrize("factory", FACTORIES)
def test_index_bytes_are_within_one_percent_of_the_file(factory, tmp_path):
    n, dim = 20_000, 32
    keys = np.random.default_rng(0).standard_normal((n, dim)).astype(np.float32)
    index = index_factory(dim, factory, "l2_squared")
    ivf = inverted_file(index)
    if ivf and hasattr(ivf := faiss.downcast_index(ivf), "do_polysemous_training"):
        ivf.do_polysemous_training = False  # takes seconds, and no byte
    index.train(keys[:1000])  # what it learns takes as many bytes
    index.add(keys)
    faiss.write_index(index, str(tmp_path / "index"))
    written = (tmp_path / "index").stat().st_size
    assert plan(n, dim, factory, gflops=1)["index_bytes"] == pytest.approx(written, rel=0.01)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_key_and_value_bytes_are_those_of_the_arrays(store, dtype):
    planned = plan(len(store), store.dim, dtype=dtype, gflops=1)
    assert planned["keys_bytes"] == store.keys.astype(dtype).nbytes
    assert planned["values_bytes"] == store.values.nbytes


def test_the_korean_study_needs_329_5_gigabytes_of_keys():
    planned = plan(107_274_239, 768, "IVF4096,PQ64", "float32", gflops=100)
    assert planned["keys_bytes"] / 1e9 == pytest.approx(329.5, abs=0.05)
    assert planned["index_bytes"] / 1e9 == pytest.approx(7.7, abs=0.05)
    assert planned["total_bytes"] == sum(
        planned[name] for name in ("keys_bytes", "values_bytes", "index_bytes")
    )


def test_time_goes_with_tokens_and_against_the_rate():
    one = plan(1_000_000, 256, "IVF1024,Flat", gflops=100)
    more = plan(3_000_000, 256, "IVF1024,Flat", gflops=50)
    for name in ("forward_hours", "assign_hours"):
        assert more[name] == pytest.approx(6 * one[name])


@pytest.mark.parametrize("wrong", [(0, 8), (8, 0), (-5, 8)])
def test_nothing_to_plan_is_refused(wrong):
    with pytest.raises(InputError):
        plan(*wrong)
