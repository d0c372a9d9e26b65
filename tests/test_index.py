"""FAISS over the keys: exact where it says so, whole after a kill, and −1 is no neighbor."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import faiss
import numpy as np
import oracle
import pytest
from conftest import WINDOW

from knnlm import index_builder
from knnlm.artifacts import Claim
from knnlm.datastore import Datastore
from knnlm.errors import InputError
from knnlm.index import Index, Neighbors
from knnlm.index_builder import IndexBuilder
from knnlm.inspection import describe

FACTORIES = (
    "Flat",
    "IVF16,Flat",
    "IVF16,SQ8",
    "IVF16,RaBitQfs",
    "IVF16,PQ16x4fs,Refine(SQ8)",
    "IVF16,PQ8",
    "IVF16,PQ16x4fs",
    "HNSW16",
    "PCA16,IVF16,Flat",
    "OPQ8,IVF16,PQ8",
)
METRICS = ("l2_squared", "l2", "inner_product")


@pytest.fixture(scope="session")
def queries(store) -> np.ndarray:
    """Between keys: near some, on none."""
    rng = np.random.default_rng(0)
    keys = store.keys[rng.choice(len(store), 40, replace=False)]
    return (keys + rng.normal(scale=0.3, size=keys.shape)).astype(np.float32)


def brute_force(store, queries, metric) -> np.ndarray:
    """The distance of every query to every key, ``(n, keys)``."""
    keys = store.keys.astype(np.float64)
    return np.array([oracle.distances(query, keys, metric) for query in queries.astype(float)])


@pytest.mark.parametrize("metric", METRICS)
def test_flat_is_brute_force(flat, store, queries, metric):
    exact = brute_force(store, queries, metric)
    found = flat[metric].search(queries, 10)
    order = np.argsort(exact, axis=1)[:, :10]
    np.testing.assert_allclose(
        found.distances, np.take_along_axis(exact, order, 1), rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(
        np.take_along_axis(exact, found.ids, 1), found.distances, rtol=1e-3, atol=1e-3
    )
    assert (found.ids == order).mean() > 0.99
    everything = flat[metric].search(queries, len(store))
    assert (np.sort(everything.ids, axis=1) == np.arange(len(store))).all()


def test_a_key_is_its_own_nearest_neighbor(flat, store):
    for metric in ("l2_squared", "l2"):
        found = flat[metric].search(store.keys[:50], 1, exact=True)
        assert found.ids[:, 0].tolist() == list(range(50))
        assert not found.distances.any()


@pytest.fixture(scope="session", params=FACTORIES)
def built(request, store, tmp_path_factory) -> Index:
    """An index of each kind, built with nprobe 4."""
    path = tmp_path_factory.mktemp("index") / "index"
    return Index.build(store, request.param, nprobe=4, path=path)


def check(found: Neighbors, n: int, k: int, size: int) -> None:
    """Shapes and types; sorted; −1 exactly where the distance is inf, and after all others."""
    assert found.distances.shape == found.ids.shape == (n, k)
    assert found.distances.dtype == np.float32
    assert found.ids.dtype == np.int64
    assert ((found.ids >= -1) & (found.ids < size)).all()
    assert np.array_equal(found.ids < 0, np.isposinf(found.distances))
    assert not np.isnan(found.distances).any()
    finite = np.where(found.ids < 0, np.finfo(np.float32).max, found.distances)
    assert (np.diff(finite, axis=1) >= 0).all()
    for row in found.ids:
        real = row[row >= 0]
        assert len(set(real.tolist())) == len(real)


def test_every_kind_of_index_is_built_saved_opened_and_searched(built, store, queries):
    opened = Index.open(built.path)
    assert opened.record == built.record
    assert opened.faiss_index.ntotal == len(store)
    found = opened.search(queries, 8)
    check(found, len(queries), 8, len(store))
    assert (found.ids[:, 0] >= 0).all()
    again = built.search(queries, 8)
    assert np.array_equal(found.ids, again.ids)
    assert np.array_equal(found.distances, again.distances)
    assert (found.distances >= 0).all()
    # Approximate, but no lottery: the nearest keys are among what is found.
    nearest = np.argmin(brute_force(store, queries, "l2"), axis=1)
    assert (built.search(queries, 50, nprobe=16).ids == nearest[:, None]).any(axis=1).mean() > 0.6


def test_places_without_a_neighbor_are_marked(built, store, queries):
    k = len(store)
    for options in ({}, {"exact": True}):
        found = built.search(queries, k, nprobe=1, **options)
        check(found, len(queries), k, len(store))
        if "IVF" in built.record["factory"]:
            assert (found.ids < 0).mean() > 0.5
    if built.record["factory"] == "Flat":
        found = built.search(queries, k + 3)
        check(found, len(queries), k + 3, len(store))
        assert (found.ids[:, k:] == -1).all()


def test_exact_distances_are_those_of_the_keys_found(built, store, queries):
    exact = brute_force(store, queries, "l2_squared")
    estimated = built.search(queries, 20)
    found = built.search(queries, 20, exact=True)
    check(found, len(queries), 20, len(store))
    expected = np.take_along_axis(exact, np.maximum(found.ids, 0), 1)
    expected[found.ids < 0] = np.inf
    np.testing.assert_allclose(found.distances, expected, rtol=1e-4, atol=1e-4)
    assert np.array_equal(np.sort(found.ids, axis=1), np.sort(estimated.ids, axis=1))


@pytest.mark.parametrize("metric", METRICS)
def test_exact_distances_follow_the_metric(store, queries, tmp_path, metric):
    index = Index.build(store, "IVF16,PQ8", metric=metric, path=tmp_path / "index")
    exact = brute_force(store, queries, metric)
    found = index.search(queries, 20, nprobe=2, exact=True)
    check(found, len(queries), 20, len(store))
    expected = np.take_along_axis(exact, np.maximum(found.ids, 0), 1)
    expected[found.ids < 0] = np.inf
    np.testing.assert_allclose(found.distances, expected, rtol=1e-4, atol=1e-4)
    rough = index.search(queries, 20, nprobe=2)
    check(rough, len(queries), 20, len(store))
    assert not np.allclose(rough.distances, found.distances, rtol=1e-3)


def test_more_lists_find_more(store, queries, tmp_path):
    index = Index.build(store, "IVF16,Flat", nprobe=1, path=tmp_path / "index")
    nearest = np.argmin(brute_force(store, queries, "l2"), axis=1)

    def recall(**options):
        return (index.search(queries, 1, **options).ids[:, 0] == nearest).mean()

    assert recall() == recall(nprobe=1) < recall(nprobe=16) == 1
    assert recall(nprobe=10**6) == 1  # no more than there are
    assert recall() == recall(nprobe=1)  # and only for that search


@pytest.mark.parametrize("factory", ["IVF16,Flat", "HNSW16", "IVF64_HNSW16,Flat", "PCA8,IVF16,PQ4"])
def test_a_search_leaves_the_index_as_it_was(store, queries, tmp_path, factory):
    index = Index.build(store, factory, nprobe=4, path=tmp_path / "index")
    before = faiss.serialize_index(index.faiss_index)
    index.search(queries, 300, nprobe=8)
    assert np.array_equal(faiss.serialize_index(index.faiss_index), before)


@pytest.mark.parametrize("factory", ["HNSW16", "IVF64_HNSW16,Flat"])
def test_a_graph_finds_as_many_as_are_asked_for(store, queries, tmp_path, factory):
    """FAISS looks at 16 nodes of a graph by default, and gives −1 for the rest."""
    k = 300
    index = Index.build(store, factory, nprobe=64, path=tmp_path / "index")
    few = index.search(queries, 5).ids
    found = index.search(queries, k)
    check(found, len(queries), k, len(store))
    assert np.array_equal(index.search(queries, 5).ids, few)  # and only for that search
    exact = np.argsort(brute_force(store, queries, "l2"), axis=1)[:, :k]
    assert (found.ids >= 0).all()
    assert np.mean([np.isin(a, b).mean() for a, b in zip(exact, found.ids, strict=True)]) > 0.95


def test_l2_is_the_root_of_l2_squared(flat, queries):
    squared, root = (flat[metric].search(queries, 9) for metric in ("l2_squared", "l2"))
    assert np.array_equal(squared.ids, root.ids)
    np.testing.assert_allclose(np.square(root.distances), squared.distances, rtol=1e-5)


def test_float16_keys_are_indexed_as_they_are_stored(lm, text, tmp_path, queries):
    store = Datastore.build(tmp_path / "store", lm, text, window=WINDOW)
    index = Index.build(store)
    assert index.path == store.path / "index"
    exact = np.sort(brute_force(store, queries, "l2_squared"), axis=1)[:, :5]
    np.testing.assert_allclose(index.search(queries, 5).distances, exact, rtol=1e-3, atol=1e-3)
    assert Index.open(store.path).record == index.record  # the store's folder names its index


class Killed(Exception):
    """Stands for the end of the process."""


def dying(monkeypatch, name: str, calls: int, owner=index_builder) -> None:
    """Let a function raise instead of its last of some calls."""
    original, count = getattr(owner, name), iter(range(10**6))

    def function(*arguments, **options):
        if next(count) == calls:
            raise Killed
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, function)


@pytest.mark.parametrize("factory", ["Flat", "IVF16,PQ8", "PCA16,IVF16,Flat", "HNSW16"])
@pytest.mark.parametrize(
    "death", ["before the file", "between file and record", "in the middle of adding"]
)
def test_a_build_that_was_stopped_goes_on_without_keys_twice_or_training_again(
    store, queries, tmp_path, monkeypatch, factory, death
):
    monkeypatch.setattr(index_builder, "ROWS_PER_CHUNK", 500)
    monkeypatch.setattr(index_builder, "CHECKPOINT_SECONDS", -1)
    whole = Index.build(store, factory, path=tmp_path / "whole")
    path = tmp_path / "killed"
    with monkeypatch.context() as patch:
        if death == "before the file":
            dying(patch, "write_index", 3)
        elif death == "between file and record":
            dying(patch, "save", 4, Claim)
        else:
            dying(patch, "_save", 3, IndexBuilder)
        with pytest.raises(Killed):
            Index.build(store, factory, path=path)
    with pytest.raises(InputError, match=r"not whole: .*1,000 rows done.* goes on"):
        Index.open(path)
    monkeypatch.setattr(IndexBuilder, "_train", lambda *_: 1 / 0)
    resumed = Index.build(store, factory, path=path)
    assert resumed.faiss_index.ntotal == len(store)
    assert {file.name for file in path.iterdir()} == {"index.faiss", "index.json"}
    a, b = (index.search(queries, 10, nprobe=16) for index in (whole, resumed))
    if factory == "HNSW16":  # its levels are drawn anew
        assert (a.ids[:, 0] == b.ids[:, 0]).mean() > 0.9
    else:
        assert np.array_equal(a.ids, b.ids)
        assert np.array_equal(a.distances, b.distances)
        assert (path / "index.faiss").read_bytes() == (
            tmp_path / "whole" / "index.faiss"
        ).read_bytes()


def test_a_build_killed_in_its_first_save_starts_again(store, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        dying(patch, "replace", 2, os)  # the first two are of the holder's name and the record
        with pytest.raises(Killed):
            Index.build(store, path=tmp_path / "index")
    names = sorted(file.name for file in (tmp_path / "index").iterdir())
    assert names == ["index.faiss.part", "index.json"]
    assert Index.build(store, path=tmp_path / "index").faiss_index.ntotal == len(store)


def test_building_again_keeps_the_index_and_takes_a_new_nprobe(store, queries, tmp_path):
    path = tmp_path / "index"
    first = Index.build(store, "IVF16,Flat", nprobe=2, path=path)
    before = (path / "index.faiss").read_bytes()
    found = first.search(queries, 5)
    again = Index.build(store, "IVF16,Flat", nprobe=2, path=path)
    assert (path / "index.faiss").read_bytes() == before
    assert np.array_equal(again.search(queries, 5).ids, found.ids)
    more = Index.build(store, "IVF16,Flat", nprobe=16, path=path)
    assert (path / "index.faiss").read_bytes() == before
    assert Index.open(path).record["nprobe"] == more.record["nprobe"] == 16


def test_a_damaged_index_is_found_and_never_overwritten(store, tmp_path):
    path = tmp_path / "index"
    Index.build(store, "IVF16,Flat", path=path)
    before = (path / "index.faiss").read_bytes()
    (path / "index.faiss").write_bytes(before[:-100])
    for attempt in (Index.open, lambda path: Index.build(store, "IVF16,Flat", path=path)):
        with pytest.raises(InputError, match=r"index\.faiss is damaged: it has .* bytes, and"):
            attempt(path)
    (path / "index.faiss").unlink()
    with pytest.raises(InputError, match=r"index\.faiss is damaged: it is missing"):
        Index.open(path)


@pytest.mark.parametrize("rows_done", [None, 100])
def test_what_faiss_cannot_read_is_a_damaged_file(store, tmp_path, rows_done):
    """Of the right length: a whole index is opened, one that was begun is gone on with."""
    path = Index.build(store, "IVF16,Flat", path=tmp_path / "index").path
    file, record = path / "index.faiss", json.loads((path / "index.json").read_text())
    file.write_bytes(file.read_bytes()[:50].ljust(record["bytes"], b"\xff"))
    if rows_done:
        unfinished = {"rows_done": rows_done, "complete": False}
        (path / "index.json").write_text(json.dumps(record | unfinished))
    with pytest.raises(InputError, match=r"index\.faiss is damaged: .*build it again"):
        Index.build(store, "IVF16,Flat", path=path)
    if not rows_done:
        with pytest.raises(InputError, match=r"index\.faiss is damaged"):
            Index.open(path)


def test_a_flipped_bit_is_found_by_inspection(store, tmp_path):
    path = Index.build(store, "IVF16,Flat", path=tmp_path / "index").path
    assert describe(path)["complete"]
    data = bytearray((path / "index.faiss").read_bytes())
    data[-1000] ^= 1
    (path / "index.faiss").write_bytes(data)
    assert "index.faiss is damaged: its checksum is wrong" in describe(path)["problem"]
    assert describe(path, deep=False)["complete"]


def test_the_seed_draws_the_training_sample(store, tmp_path):
    files = []
    for i, options in enumerate(({"seed": 0}, {"seed": 0}, {"seed": 1}, {"train_size": 500})):
        path = tmp_path / str(i)
        options = {"train_size": 600, **options}
        Index.build(store, "IVF16,Flat", path=path, **options)
        files.append((path / "index.faiss").read_bytes())
    assert files[0] == files[1]
    assert len(set(files)) == 3


def test_training_does_nothing_that_searching_does_not_use(store, tmp_path):
    """Polysemous codes: off, for they take longer than all the rest, and change no result."""
    index = Index.build(store, "PCA16,IVF16,PQ8x4", path=tmp_path / "index")
    inner = faiss.downcast_index(faiss.extract_index_ivf(index.faiss_index))
    assert isinstance(inner, faiss.IndexIVFPQ)
    assert not inner.do_polysemous_training


def sentences(error) -> int:
    return len(re.findall(r"[.?!](?= |$)", str(error.value)))


@pytest.mark.parametrize(
    "factory", ["Flatt", "IVF16,PQ7", "", "IVF,Flat", "PQ8x", "IVF16,Flat,Flat"]
)
def test_a_factory_that_faiss_does_not_know_is_an_error_of_two_sentences(store, tmp_path, factory):
    with pytest.raises(InputError, match="FAISS makes no index") as error:
        Index.build(store, factory, path=tmp_path / "index")
    assert "\n" not in str(error.value)
    assert sentences(error) == 2, str(error.value)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("factory", "least"),
    [("IVF4096,Flat", "4,096"), ("IVF16,PQ8x12", "4,096"), ("OPQ8,IVF16,PQ8x12", "4,096")],
)
def test_too_few_keys_for_a_factory_are_an_error_of_two_sentences(store, tmp_path, factory, least):
    assert len(store) < 4096
    with pytest.raises(InputError, match=f"learns {least} centroids.*{len(store):,}") as error:
        Index.build(store, factory, path=tmp_path / "index")
    assert sentences(error) == 2, str(error.value)
    assert Index.build(store, "Flat", path=tmp_path / "index").faiss_index.ntotal == len(store)


def test_what_cannot_be_searched_is_refused(flat, store, queries):
    index = flat["l2_squared"]
    for wrong in (queries[:, :-1], queries[0], np.zeros((2, 64), dtype=np.float32)):
        with pytest.raises(InputError, match=rf"{re.escape(str(wrong.shape))}.* 32 wide"):
            index.search(wrong, 3)
    with pytest.raises(InputError, match="k is 0"):
        index.search(queries, 0)
    with pytest.raises(InputError, match="nprobe is 0"):
        index.search(queries, 3, nprobe=0)
    assert index.search(queries[:0], 3).ids.shape == (0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "cosine"}, "no metric 'cosine'.*l2_squared"),
        ({"nprobe": 0}, "nprobe is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(store, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        Index.build(store, path=tmp_path / "index", **options)
    assert not (tmp_path / "index").exists()


def test_normalized_keys_are_not_ranked_by_keys_as_they_are(store, queries, tmp_path):
    """FAISS would take such a string, and sort what it found by distances of another kind."""
    for factory in ("L2norm,IVF16,Flat,Refine(Flat)", "L2norm,IVF16,PQ16x4fs,RFlat"):
        with pytest.raises(InputError, match="normalized keys"):
            Index.build(store, factory, path=tmp_path / "refined")
        assert not (tmp_path / "refined").exists()
    index = Index.build(store, "L2norm,Flat", path=tmp_path / "index")
    with pytest.raises(InputError, match="normalized keys"):
        index.search(queries, 4, exact=True)
    keys, unit = store.keys.astype(float), queries.astype(float)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    distances = np.sort(2 - 2 * unit @ keys.T, axis=1)[:, :4]
    np.testing.assert_allclose(index.search(queries, 4).distances, distances, atol=1e-5)


def test_a_folder_with_another_index_or_something_else_is_refused(flat, store, tmp_path):
    path = flat["l2_squared"].path
    for change, message in (
        ({"factory": "HNSW16"}, "factory 'Flat', now it is 'HNSW16'"),
        ({"metric": "l2"}, "metric 'l2_squared', now it is 'l2'"),
        ({"seed": 3}, "seed 0, now it is 3"),
    ):
        with pytest.raises(InputError, match=message):
            Index.build(store, path=path, **change)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="no index"):
        Index.build(store, path=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match=r"holds no index: index\.json is missing"):
        Index.open(tmp_path)


def test_another_datastore_is_refused(flat, lm, held_out, store, tmp_path):
    other = Datastore.build(tmp_path / "store", lm, held_out, window=WINDOW)
    index = flat["l2_squared"]
    with pytest.raises(InputError, match=f"{store.fingerprint}.*{other.fingerprint}"):
        Index.open(index.path, other)
    with pytest.raises(InputError, match=f"datastore '{store.fingerprint}', now"):
        Index.build(other, path=index.path)
    assert Index.open(index.path, store).datastore is store


def test_store_and_index_can_be_moved_together(lm, held_out, tmp_path):
    store = Datastore.build(tmp_path / "here" / "store", lm, held_out, window=WINDOW)
    inside = Index.build(store)
    beside = Index.build(store, path=tmp_path / "here" / "beside")
    queries = np.array(store.keys[:5], dtype=np.float32)
    expected = inside.search(queries, 3).ids
    shutil.move(tmp_path / "here", tmp_path / "there")
    for old in (inside, beside):
        moved = Index.open(tmp_path / "there" / old.path.relative_to(tmp_path / "here"))
        assert moved.datastore.path == tmp_path / "there" / "store"
        assert np.array_equal(moved.search(queries, 3, exact=True).ids, expected)
    shutil.rmtree(tmp_path / "there" / "store")
    with pytest.raises(InputError, match="holds no datastore"):
        Index.open(tmp_path / "there" / "beside")


def test_building_takes_and_records_time(flat):
    assert 0 < flat["l2"].record["seconds"] < time.perf_counter()
    assert flat["l2"].record["rows_done"] == len(flat["l2"].datastore)


@pytest.mark.parametrize("factory", ["IVF8,Flat", "IVF8,SQ8", "IVF8,PQ4", "PCA8,IVF8,Flat", "Flat"])
def test_an_index_left_on_disk_finds_the_same(store, queries, tmp_path, factory):
    built = Index.build(store, factory, nprobe=4, path=tmp_path / "index")
    mapped = Index.open(tmp_path / "index", mmap=True)
    for exact in (False, True):
        one, other = (index.search(queries, 20, exact=exact) for index in (built, mapped))
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.distances, other.distances)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_opening_an_index_on_disk_reads_none_of_its_lists(store, tmp_path):
    """A file of 64 MB: opened, it takes little memory; searched, only for what is visited."""
    index = faiss.index_factory(256, "IVF64,Flat")
    keys = np.random.default_rng(0).standard_normal((1 << 16, 256)).astype(np.float32)
    index.train(keys[:4096])
    index.add(keys)
    Index.build(store, "IVF8,Flat", path=tmp_path / "index")
    faiss.write_index(index, str(tmp_path / "index" / "index.faiss"))
    record = json.loads((tmp_path / "index" / "index.json").read_text())
    record["bytes"] = (tmp_path / "index" / "index.faiss").stat().st_size
    (tmp_path / "index" / "index.json").write_text(json.dumps(record))
    script = (
        "import sys, psutil, knnlm.index, faiss, numpy as np\n"
        "now = lambda: psutil.Process().memory_info().rss\n"
        "before = now()\n"
        "index = knnlm.index.Index.open(sys.argv[1], mmap=sys.argv[2] == 'mmap')\n"
        "opened = now()\n"
        "faiss.ParameterSpace().set_index_parameter(index.faiss_index, 'nprobe', 2)\n"
        "index.faiss_index.search(np.zeros((1, 256), np.float32), 1)\n"
        "print(opened - before, now() - opened)\n"
    )
    grown = {}
    for how in ("mmap", "read"):
        command = [sys.executable, "-c", script, str(tmp_path / "index"), how]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        grown[how] = [int(x) for x in done.stdout.split()]
    assert grown["read"][0] > 0.9 * record["bytes"]
    assert grown["mmap"][0] < 0.2 * record["bytes"]
    assert grown["mmap"][1] < 0.5 * record["bytes"]


@pytest.mark.parametrize("factory", ["IDMap,Flat", "IVF4,Flat", "IVF4,SQ8"])
def test_an_index_over_some_rows_finds_the_nearest_of_these(store, queries, tmp_path, factory):
    rows = np.sort(np.random.default_rng(1).choice(len(store), 200, replace=False))
    index = Index.build(store, factory, nprobe=4, rows=rows, path=tmp_path / "some")
    assert len(index) == 200
    found = index.search(queries, 300)
    assert set(np.unique(found.ids)) == {-1, *rows}
    exact = np.square(store.keys[rows][None] - queries[:, None]).sum(2)
    nearest = rows[exact.argmin(axis=1)]
    if factory != "IVF4,SQ8":
        assert found.ids[:, 0].tolist() == nearest.tolist()
        np.testing.assert_allclose(found.distances[:, :200], np.sort(exact), rtol=1e-3, atol=1e-2)
    reopened = Index.open(tmp_path / "some")
    assert len(reopened) == 200
    assert np.array_equal(reopened.search(queries, 300).ids, found.ids)
    again = Index.build(store, factory, nprobe=4, rows=rows, path=tmp_path / "some")
    assert again.record["crc32"] == index.record["crc32"]
    others = np.sort(np.random.default_rng(2).choice(len(store), 200, replace=False))
    with pytest.raises(InputError, match="rows_crc32"):
        Index.build(store, factory, nprobe=4, rows=others, path=tmp_path / "some")


@pytest.mark.parametrize("rows", [[], [3, 2], [3, 3], [-1, 4], [0, 10**6]])
def test_rows_that_are_none_are_refused(store, tmp_path, rows):
    with pytest.raises(InputError, match="no increasing row numbers"):
        Index.build(store, "IDMap,Flat", rows=np.array(rows), path=tmp_path / "some")
    assert not (tmp_path / "some").exists()


def test_some_rows_of_an_index_without_ids_are_refused_in_two_sentences(store, tmp_path):
    with pytest.raises(InputError, match=r"FAISS cannot build 'Flat' .*Choose another factory"):
        Index.build(store, "Flat", rows=np.arange(50), path=tmp_path / "some")
