"""The whole pipeline against the oracle; what a retrieval keeps, and what follows from it."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
from conftest import STRIDE, WINDOW, make_text

from knnlm import arrays, language_model, lookup
from knnlm.artifacts import FORMAT
from knnlm.cases import find_cases
from knnlm.datastore import Datastore
from knnlm.errors import InputError
from knnlm.evaluation import perplexity
from knnlm.index import Index
from knnlm.inspection import describe
from knnlm.language_model import LanguageModel, join
from knnlm.mixture import (
    Setting,
    interpolate,
    knn_distribution,
    knn_log_prob,
    knn_log_prob_grid,
)
from knnlm.retrieval import ROWS_PER_CHUNK, Retrieval
from knnlm.text import Split

METRICS = ("l2_squared", "l2", "inner_product")
SETTINGS = [(1, 0.3, 1.0), (8, 0.25, 10.0), (8, 0.9, 0.5), (32, 0.6, 3.0), (32, 0.1, 100.0)]


@pytest.fixture(scope="session")
def passes(model_folder, text, held_out):
    """The oracle's reading of the datastore's text and of the held-out text."""
    texts = [[document.text for document in split] for split in (text, held_out)]
    return [oracle.read(model_folder, documents, WINDOW, STRIDE) for documents in texts]


@pytest.fixture(scope="session")
def neighbors(passes):
    """The oracle's ranking of all keys, by metric."""
    stored, test = passes
    return {m: [oracle.nearest(key, stored.keys, m) for key in test.keys] for m in METRICS}


@pytest.mark.parametrize("metric", METRICS)
def test_the_pipeline_agrees_with_the_oracle(lm, flat, held_out, passes, neighbors, metric):
    stored, test = passes
    result = Retrieval.run(lm, flat[metric], held_out, 32)
    assert len(result) == len(test.tokens) - 1
    assert result.perplexity_lm == pytest.approx(
        oracle.perplexity(neighbors[metric], stored, test, 1, 0.0, 1.0), rel=1e-4
    )
    for k, lam, temperature in SETTINGS:
        expected = oracle.perplexity(neighbors[metric], stored, test, k, lam, temperature)
        found = result.perplexity(k=k, lam=lam, temperature=temperature)
        assert found == pytest.approx(expected, rel=1e-4), (k, lam, temperature)
        assert not math.isclose(found, result.perplexity_lm, rel_tol=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_the_neighbors_are_the_oracles(flat, passes, neighbors, lm, held_out, metric):
    stored, test = passes
    found = Retrieval.run(lm, flat[metric], held_out, 4).neighbors
    assert len(found.ids) == len(test.keys)
    for i, row in enumerate(neighbors[metric]):
        expected = [d for d, _ in row[:4]]
        of_ids = oracle.distances(test.keys[i], stored.keys[found.ids[i]], metric)
        np.testing.assert_allclose(found.distances[i], expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(of_ids, expected, rtol=1e-3, atol=1e-3)


def test_float16_keys_agree_with_the_oracle_more_loosely(
    lm, text, held_out, passes, neighbors, tmp_path
):
    stored, test = passes
    store = Datastore.build(tmp_path / "store", lm, text, window=WINDOW, stride=STRIDE)
    assert store.keys.dtype == np.float16
    result = Retrieval.run(lm, Index.build(store), held_out, 32)
    for k, lam, temperature in SETTINGS:
        expected = oracle.perplexity(neighbors["l2_squared"], stored, test, k, lam, temperature)
        found = result.perplexity(k=k, lam=lam, temperature=temperature)
        assert found == pytest.approx(expected, rel=2e-2), (k, lam, temperature)


def test_a_text_shorter_than_the_window_agrees_with_the_oracle(
    lm, flat, model_folder, passes, neighbors
):
    short = [make_text(500, 6)]
    test = oracle.read(model_folder, short, WINDOW, STRIDE)
    assert len(test.tokens) - 1 < WINDOW
    result = Retrieval.run(lm, flat["l2_squared"], Split.of(short), 8)
    order = [oracle.nearest(key, passes[0].keys, "l2_squared") for key in test.keys]
    expected = oracle.perplexity(order, passes[0], test, 8, 0.25, 5.0)
    assert result.perplexity(k=8, lam=0.25, temperature=5.0) == pytest.approx(expected, rel=1e-4)


def test_lambda_zero_is_the_language_model_to_the_last_bit(retrieval):
    assert np.array_equal(retrieval.log_prob(lam=0), retrieval.lm_log_prob)
    assert retrieval.perplexity(lam=0) == retrieval.perplexity_lm
    table = retrieval.sweep(lam=[0, 0.5], temperature=[1, 10], k=[1, 8]).table
    assert set(table[table["lam"] == 0]["perplexity"]) == {retrieval.perplexity_lm}
    assert retrieval.perplexity_lm not in set(table[table["lam"] > 0]["perplexity"])


def test_lambda_one_is_p_knn(retrieval):
    knn = retrieval.knn_log_prob(3.0, 8)
    assert np.array_equal(retrieval.log_prob(lam=1, temperature=3.0, k=8), knn)
    dense = knn_distribution(
        retrieval.neighbors.distances[:, :8],
        retrieval.index.datastore.values_of(retrieval.neighbors.ids[:, :8]),
        320,
        3.0,
    )
    of_targets = dense[np.arange(len(dense)), retrieval.targets]
    np.testing.assert_allclose(np.exp(knn), of_targets, rtol=1e-5, atol=1e-12)
    assert (of_targets > 0).any()


def test_the_sweep_is_the_perplexity_of_each_setting(retrieval):
    grid = {"lam": [0, 0.25, 1], "temperature": [0.5, 10, 200], "k": [2, 7, 32]}
    sweep = retrieval.sweep(**grid)
    assert len(sweep.table) == 27
    for row in sweep.table.itertuples(index=False):
        alone = retrieval.perplexity(lam=row.lam, temperature=row.temperature, k=int(row.k))
        assert row.perplexity == pytest.approx(alone, rel=1e-6)
    best = sweep.best()
    assert best.perplexity == sweep.table["perplexity"].min()
    assert retrieval.perplexity(best) == pytest.approx(best.perplexity, rel=1e-6)
    assert sweep.best(k=7).k == 7
    assert sweep.best(k=7, lam=0.25)[:2] == (7, 0.25)
    with pytest.raises(InputError, match="no row"):
        sweep.best(k=5)


def test_a_sweep_of_more_neighbors_than_were_retrieved_is_refused(retrieval):
    with pytest.raises(InputError, match=r"k = 33 .* 32 neighbors"):
        retrieval.sweep(lam=[0.5], temperature=[1], k=[8, 33])


def test_k_larger_than_the_datastore_is_cut(lm, flat, held_out, store):
    result = Retrieval.run(lm, flat["l2_squared"], held_out, 10**6)
    assert result.k == len(store)
    assert np.array_equal(np.sort(result.neighbors.ids[0]), np.arange(len(store)))
    assert result.log_prob(lam=0.5, k=10**6).shape == (len(result),)
    with pytest.raises(InputError, match="k is 0"):
        Retrieval.run(lm, flat["l2_squared"], held_out, 0)


def test_a_retrieval_opens_as_it_was_made(retrieval, lm, held_out):
    opened = Retrieval.open(retrieval.path, retrieval.index)
    again = Retrieval.run(lm, retrieval.index, held_out, 32, path=retrieval.path)
    for other in (opened, again):
        assert other.record == retrieval.record
        for name in ("lm_log_prob", "targets", "documents"):
            assert np.array_equal(getattr(other, name), getattr(retrieval, name))
        assert np.array_equal(other.neighbors.ids, retrieval.neighbors.ids)
        assert np.array_equal(other.neighbors.distances, retrieval.neighbors.distances)
        assert other.perplexity(lam=0.4) == retrieval.perplexity(lam=0.4)


def test_a_folder_with_another_retrieval_is_refused(retrieval, flat, lm, text, held_out, tmp_path):
    run = {"lm": lm, "index": retrieval.index, "text": held_out, "k": 32, "path": retrieval.path}
    for name, change in {
        "k 32, now it is 8": {"k": 8},
        "text": {"text": text},
        "metric 'l2_squared', now it is 'l2'": {"index": flat["l2"]},
        "window 24, now it is 20": {"window": 20},
        "exact False": {"exact": True},
    }.items():
        with pytest.raises(InputError, match=name):
            Retrieval.run(**{**run, **change})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no retrieval"):
        Retrieval.run(**{**run, "path": tmp_path})
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match=r"retrieval\.json is missing"):
        Retrieval.open(tmp_path, retrieval.index)


def test_another_model_or_datastore_is_refused(retrieval, make_lm, flat, lm, held_out, tmp_path):
    other = make_lm(seed=1, name="other")
    with pytest.raises(InputError, match=f"{lm.fingerprint}.*{other.fingerprint}"):
        Retrieval.run(other, flat["l2_squared"], held_out, 4)
    store = Datastore.build(tmp_path / "store", lm, held_out, window=WINDOW)
    with pytest.raises(InputError, match="was made from datastore"):
        Retrieval.open(retrieval.path, Index.build(store))


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("died_at", ["search", "rows"])
def test_a_retrieval_killed_anywhere_goes_on_to_the_same_bytes(
    lm, flat, held_out, tmp_path, monkeypatch, given, died_at
):
    monkeypatch.setattr(language_model, "TOKENS_PER_BATCH", 2 * WINDOW)
    monkeypatch.setattr(lookup, "ROWS_PER_CHUNK", 20)
    monkeypatch.setattr(arrays, "CHECKPOINT_SECONDS", 0)
    index, layer = flat["l2_squared"], flat["l2_squared"].datastore.record["key_layer"]
    how = {"window": WINDOW, "stride": STRIDE, "key_layers": [layer], "log_probs": True}
    run = {"lm": lm, "index": index, "text": held_out, "k": 5, "queries": True}
    if given:
        run["reading"] = join(lm.read(lm.encode(held_out), **how))
    whole = Retrieval.run(**run, path=tmp_path / "whole")
    path, done = tmp_path / "killed", []
    for calls in (0, 1, 2, 3):  # killed again and again
        with monkeypatch.context() as patch:
            owner, name = (Index, "search") if died_at == "search" else (arrays.Rows, "save")
            original, count = getattr(owner, name), iter(range(10**6))

            def dying(*arguments, original=original, count=count, last=calls, **options):
                if next(count) == last:
                    raise Killed
                return original(*arguments, **options)

            patch.setattr(owner, name, dying)
            with pytest.raises(Killed):
                Retrieval.run(**run, path=path)
        done.append(json.loads((path / "retrieval.json").read_text()).get("rows_done", 0))
        with pytest.raises(InputError, match=r"not whole.*goes on"):
            Retrieval.open(path, index)
    assert done[0] == 0
    assert done == sorted(done)
    assert 0 < done[-1] < len(whole)
    again = Retrieval.run(**run, path=path)
    assert (again.queries == whole.queries).all()
    for file in sorted(path.iterdir()):
        if file.suffix == ".npy":
            assert file.read_bytes() == (tmp_path / "whole" / file.name).read_bytes()
    untimed = [
        {name: value for name, value in r.record.items() if "seconds" not in name}
        for r in (again, whole)
    ]
    assert untimed[0] == untimed[1]


def test_a_retrieval_begun_by_reading_goes_on_with_what_was_read(
    lm, flat, held_out, tmp_path, monkeypatch
):
    """Their borders differ; no row is left out or comes twice."""
    monkeypatch.setattr(language_model, "TOKENS_PER_BATCH", 2 * WINDOW)
    monkeypatch.setattr(lookup, "ROWS_PER_CHUNK", 7)
    monkeypatch.setattr(arrays, "CHECKPOINT_SECONDS", 0)
    index, layer = flat["l2_squared"], flat["l2_squared"].datastore.record["key_layer"]
    how = {"window": WINDOW, "stride": STRIDE, "key_layers": [layer], "log_probs": True}
    reading = join(lm.read(lm.encode(held_out), **how))
    run = {"lm": lm, "index": index, "text": held_out, "k": 5}
    whole = Retrieval.run(**run)
    search, count = Index.search, iter(range(10**6))

    def dying(*arguments, **options):
        if next(count) == 4:
            raise Killed
        return search(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Index, "search", dying)
        with pytest.raises(Killed):
            Retrieval.run(**run, reading=reading, path=tmp_path / "mixed")
    mixed = Retrieval.run(**run, path=tmp_path / "mixed")
    assert np.array_equal(mixed.neighbors.ids, whole.neighbors.ids)
    np.testing.assert_allclose(mixed.lm_log_prob, whole.lm_log_prob, atol=1e-5)


@pytest.mark.parametrize("name", ["targets", "lm_log_prob", "distances", "ids"])
def test_a_damaged_table_is_found_by_its_files_name(retrieval, tmp_path, name):
    shutil.copytree(retrieval.path, tmp_path / "copy")
    file = tmp_path / "copy" / f"{name}.npy"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    assert f"{name}.npy is damaged: its checksum" in describe(tmp_path / "copy")["problem"]
    for left in (data[:-1], data[:50], b""):
        file.write_bytes(left)
        with pytest.raises(InputError, match=rf"{name}\.npy is damaged"):
            Retrieval.open(tmp_path / "copy", retrieval.index)
    file.unlink()
    with pytest.raises(InputError, match=rf"{name}\.npy is damaged: it is missing"):
        Retrieval.open(tmp_path / "copy", retrieval.index)


def test_queries_are_kept_on_request(retrieval, lm, flat, held_out, passes):
    kept = Retrieval.run(lm, flat["l2_squared"], held_out, 4, queries=True)
    found = flat["l2_squared"].search(kept.queries, 4)
    assert np.array_equal(found.ids, kept.neighbors.ids)
    with pytest.raises(InputError, match=r"has not kept its queries\. Run it again with queries"):
        _ = retrieval.queries


def test_missing_neighbors_leave_their_mass_and_empty_rows_leave_the_language_model(
    lm, store, held_out, tmp_path
):
    index = Index.build(store, "IVF16,Flat", path=tmp_path / "index", nprobe=1)
    result = Retrieval.run(lm, index, held_out, 200)
    ids, distances = result.neighbors.ids, result.neighbors.distances
    assert (ids < 0).any()
    assert (ids[:, 0] >= 0).all()
    found = result.log_prob(lam=0.5, temperature=10.0)
    for i in range(len(result)):  # the same sums over the neighbors that exist, and no others
        real = ids[i] >= 0
        dense = knn_distribution(
            distances[i : i + 1, real], store.values[ids[i, real]][None], 320, 10.0
        )
        p = 0.5 * dense[0, result.targets[i]] + 0.5 * np.exp(result.lm_log_prob[i])
        assert found[i] == pytest.approx(np.log(p), abs=1e-5)


def synthetic(tmp_path, documents: list[int], k: int = 4, seed: int = 0) -> Retrieval:
    """A retrieval of random numbers, with documents of the given lengths."""
    rng = np.random.default_rng(seed)
    n = sum(documents) - 1
    values = rng.integers(0, 5, 50, dtype=np.int32)
    ids = rng.integers(-1, 50, (n, k))
    ids[::7] = -1
    distances = np.sort(np.where(ids < 0, np.inf, rng.random((n, k)) * 9), axis=1)
    ids = np.where(np.isinf(distances), -1, np.maximum(ids, 0))
    for name, array in {
        "targets": rng.integers(0, 5, n, dtype=np.int32),
        "lm_log_prob": np.log(rng.random(n)).astype(np.float32),
        "distances": distances.astype(np.float32),
        "ids": ids.astype(np.int32),
    }.items():
        np.save(tmp_path / f"{name}.npy", array)
    starts = [0, *np.cumsum(documents)[:-1].tolist()]
    record = {"format": FORMAT, "tokens": n, "k": k, "document_starts": starts}
    return Retrieval(tmp_path, record, SimpleNamespace(datastore=SimpleNamespace(values=values)))


def test_long_texts_are_added_up_over_chunks(tmp_path):
    result = synthetic(tmp_path, [9000, 3 * ROWS_PER_CHUNK, 17])
    assert len(result) > 5 * ROWS_PER_CHUNK
    values = result.index.datastore.values
    is_target = (values[result.neighbors.ids] == result.targets[:, None]) & (
        result.neighbors.ids >= 0
    )
    distances = np.asarray(result.neighbors.distances)
    whole = knn_log_prob_grid(distances, is_target, [2.0], [3])[0, 0]
    assert np.array_equal(result.knn_log_prob(2.0, 3), whole, equal_nan=True)
    by_equation = knn_log_prob(distances[:, :3], is_target[:, :3], 2.0)
    np.testing.assert_allclose(whole, by_equation, rtol=1e-5, atol=1e-6)
    several = result.knn_log_prob([2.0, 5.0], [1, 3, 4])
    assert several.shape == (2, 3, len(result))
    assert result.knn_log_prob(2.0, [1, 3, 4]).shape == (3, len(result))
    assert result.knn_log_prob([2.0, 5.0], 3).shape == (2, len(result))
    np.testing.assert_allclose(several[0, 1], whole, atol=1e-5)

    alone = np.isinf(result.neighbors.distances).all(axis=1)
    assert alone.any()
    mixed = result.log_prob(lam=0.7, temperature=2.0, k=3)
    assert np.array_equal(mixed[alone], result.lm_log_prob[alone])
    assert np.array_equal(mixed, interpolate(np.float64(result.lm_log_prob), whole, 0.7))

    sweep = result.sweep(lam=[0, 0.7], temperature=[2.0], k=[3])
    assert sweep.table["perplexity"].tolist() == [
        result.perplexity_lm,
        pytest.approx(perplexity(mixed), rel=1e-6),
    ]
    assert result.perplexity(lam=0) == result.perplexity_lm
    assert result.perplexity(Setting(3, 0.0, 1.0)) == result.perplexity_lm


def test_targets_belong_to_the_document_that_they_stand_in(tmp_path):
    result = synthetic(tmp_path, [3, 1, 4])
    # The first token is no target; the first token of a later document is one of its own.
    assert result.documents.tolist() == [0, 0, 1, 2, 2, 2, 2]


def test_the_bootstrap_is_an_obvious_loop_over_documents(tmp_path):
    lengths = [40, 7, 100, 1, 60, 25, 33, 80]
    result = synthetic(tmp_path, lengths)
    mixed = result.log_prob(lam=0.5, temperature=3.0)
    intervals = result.bootstrap(mixed, samples=4000, seed=1)

    rng = np.random.default_rng(7)
    parts = [np.flatnonzero(result.documents == d) for d in range(len(lengths))]
    samples = {"perplexity_lm": [], "perplexity": [], "reduction": []}
    for _ in range(4000):
        drawn = np.concatenate([parts[d] for d in rng.choice(len(parts), len(parts))])
        lm, both = (perplexity(x[drawn]) for x in (result.lm_log_prob, mixed))
        for name, value in zip(samples, (lm, both, 1 - both / lm), strict=True):
            samples[name].append(value)
    assert set(intervals) == set(samples)
    for name, values in samples.items():
        low, high = np.percentile(values, [2.5, 97.5])
        interval = intervals[name]
        assert interval.low < interval.estimate < interval.high
        assert interval.low == pytest.approx(low, abs=0.08 * (high - low))
        assert interval.high == pytest.approx(high, abs=0.08 * (high - low))
    assert intervals["perplexity_lm"].estimate == pytest.approx(result.perplexity_lm, rel=1e-6)
    assert intervals["perplexity"].estimate == pytest.approx(perplexity(mixed), rel=1e-6)
    assert intervals["reduction"].estimate == pytest.approx(
        1 - perplexity(mixed) / result.perplexity_lm, rel=1e-6
    )
    against = 1 - np.exp(-mixed.mean() + result.log_prob(lam=0.2).mean())
    paired = result.bootstrap(mixed, against=result.log_prob(lam=0.2))["reduction"]
    assert paired.estimate == pytest.approx(against, rel=1e-6)
    assert paired.low < paired.estimate < paired.high
    assert result.bootstrap(mixed, against=mixed)["reduction"] == (0, 0, 0)
    assert result.bootstrap(mixed, seed=1) == result.bootstrap(mixed, seed=1)
    assert result.bootstrap(mixed, seed=1) != result.bootstrap(mixed, seed=2)


def test_a_setting_stands_for_the_three_numbers(retrieval, lm):
    setting = Setting(8, 0.3, 5.0)
    by_number = {"k": 8, "lam": 0.3, "temperature": 5.0}
    assert np.array_equal(retrieval.log_prob(setting), retrieval.log_prob(**by_number))
    assert retrieval.perplexity(setting) == retrieval.perplexity(**by_number)
    assert find_cases(lm, retrieval, setting, top=3) == find_cases(
        lm, retrieval, **by_number, top=3
    )


def test_methods_are_compared_by_the_bootstrap(retrieval):
    log_probs = {"alone": retrieval.log_prob(lam=0), "mixed": retrieval.log_prob(lam=0.3, k=8)}
    table = retrieval.compare(log_probs, against=log_probs["mixed"])
    assert list(table.index) == ["alone", "mixed"]
    for name, log_prob in log_probs.items():
        found = retrieval.bootstrap(log_prob, log_probs["mixed"])
        assert table.loc[name, "perplexity"] == found["perplexity"].estimate
        expected = 100 * np.array(found["reduction"])
        np.testing.assert_allclose(table.loc[name, ["gain, %", "low", "high"]].tolist(), expected)
    assert table.loc["mixed", "gain, %"] == 0
    against_lm = retrieval.compare(log_probs)["gain, %"]
    assert against_lm["alone"] == 0
    assert against_lm["mixed"] != 0


def test_perplexity_per_word_spreads_the_same_nats_over_words(retrieval, held_out):
    words = sum(len(document.text.split()) for document in held_out)
    assert retrieval.record["words"] == words
    assert retrieval.record["characters"] == sum(len(document.text) for document in held_out)
    log_prob = retrieval.log_prob(lam=0.25)
    per_token, per_word = perplexity(log_prob), perplexity(log_prob, words)
    assert per_word == pytest.approx(per_token ** (len(log_prob) / words), rel=1e-9)
    assert per_word > per_token


def test_a_text_read_before_is_not_read_again(retrieval, lm, flat, held_out, monkeypatch):
    layer = flat["l2_squared"].datastore.record["key_layer"]
    record = retrieval.record
    how = {"window": record["window"], "stride": record["stride"]}
    layers = [layer, "ffn_input@0"]
    reading = join(lm.read(lm.encode(held_out), key_layers=layers, log_probs=True, **how))
    monkeypatch.setattr(LanguageModel, "read", None)
    monkeypatch.setattr("knnlm.retrieval.ROWS_PER_CHUNK", 7)
    again = Retrieval.run(lm, flat["l2_squared"], held_out, 32, reading=reading)
    assert np.array_equal(again.lm_log_prob, retrieval.lm_log_prob)
    assert np.array_equal(again.neighbors.ids, retrieval.neighbors.ids)
    np.testing.assert_allclose(again.neighbors.distances, retrieval.neighbors.distances, rtol=1e-4)

    for wrong, message in (
        (reading._replace(stop=reading.stop - 1), "Read the whole text"),
        (reading._replace(keys={}), "has no keys of ffn_input"),
        (reading._replace(log_probs=None), "has no log-probabilities"),
    ):
        with pytest.raises(InputError, match=message):
            Retrieval.run(lm, flat["l2_squared"], held_out, 32, reading=wrong)
