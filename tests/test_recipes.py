"""Recipes: an artifact is made once, found again by what made it, and shared where it may be."""

import json
from dataclasses import asdict
from functools import wraps

import numpy as np
import pytest
from conftest import make_text
from hypothesis import given
from hypothesis import strategies as st

from knnlm.artifacts import cache_folder
from knnlm.book import recipes, results
from knnlm.book.recipes import spread
from knnlm.corpora import Corpus
from knnlm.errors import InputError
from knnlm.evaluation import Interval
from knnlm.language_model import LanguageModel
from knnlm.text import Document, Split


def forbid(monkeypatch, owner, name):
    """Let a maker be looked at, for its name, and not be called."""

    @wraps(getattr(owner, name))
    def refuse(*args, **kwargs):
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(owner, name, refuse)


def test_the_second_call_reads_what_the_first_made(recipe, monkeypatch):
    first = recipe.retrieval("test")
    made = {path: path.stat().st_mtime_ns for path in cache_folder().rglob("*.*npy")}
    assert made
    forbid(monkeypatch, recipes, "train_language_model")
    forbid(monkeypatch, recipes.Datastore, "build_each")
    forbid(monkeypatch, recipes.Index, "build")
    forbid(monkeypatch, recipes.Retrieval, "run")
    again = recipe.retrieval("test")
    assert again.perplexity(lam=0.3) == first.perplexity(lam=0.3)
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())


def test_recorded_numbers_are_plain_json_and_replace_the_earlier(monkeypatch, tmp_path, store):
    monkeypatch.setenv("KNNLM_RESULTS", str(tmp_path))
    monkeypatch.setattr(results, "used", {"tiny/model-2", "tiny/model-1"})
    results.record("01_x", a=1, gone=2)
    results.record("01_x", a=store.values[:3].mean(), b="text")
    written = json.loads((tmp_path / "01_x.json").read_text())
    assert written.pop("artifacts") == ["tiny/model-1", "tiny/model-2"]
    assert written == {"a": float(store.values[:3].mean()), "b": "text"}


def test_an_interval_is_recorded_with_its_bounds(monkeypatch, tmp_path):
    monkeypatch.setenv("KNNLM_RESULTS", str(tmp_path))
    results.record("01_x", gain=Interval(2.0, 1.0, np.float64(3.5)), n=np.int32(7))
    written = json.loads((tmp_path / "01_x.json").read_text())
    del written["artifacts"]
    assert written == {"gain": 2.0, "gain_low": 1.0, "gain_high": 3.5, "n": 7}


def test_memory_is_measured_in_bytes():
    assert 10e6 < results.memory() <= results.peak_memory() < 1e12


def test_claims_are_held_at_full_size_alone(monkeypatch):
    results.claim(holds=True)
    monkeypatch.setenv("KNNLM_SMALL", "0")
    with pytest.raises(AssertionError, match=r"no longer holds: memory helps\.$"):
        results.claim(**{"memory helps": False, "it costs": True})
    monkeypatch.setenv("KNNLM_SMALL", "1")
    results.claim(**{"memory helps": False})


def test_what_was_used_is_noted(recipe, monkeypatch):
    monkeypatch.setattr(results, "used", set())
    folder = recipe.index().path
    kinds = {name.split("/")[1].split("-")[0] for name in results.used}
    assert kinds == {"model", "datastore", "index"}
    assert f"tiny/{folder.name}" in results.used


def test_a_datastore_of_another_text_is_not_the_corpus(recipe):
    other = Split.of([Document("other", make_text(77, 90))])
    store = recipe.datastore(other)
    assert store.record["document_names"] == ["other"]
    assert store.path != recipe.datastore().path
    assert recipe.datastore(other).path == store.path


def test_a_pretrained_model_is_not_trained(recipe, model_folder, lm, monkeypatch):
    forbid(monkeypatch, recipes, "train_language_model")
    pretrained = recipe.but(pretrained=str(model_folder), window=16, stride=8)
    assert pretrained.model().fingerprint == lm.fingerprint
    retrieval = pretrained.retrieval("validation")
    assert retrieval.index.datastore.record["model"] == lm.fingerprint
    assert retrieval.record["window"] == 16


def test_one_switch_makes_every_chapter_small(monkeypatch):
    def sizes(small: str) -> dict:
        monkeypatch.setenv("KNNLM_SMALL", small)
        return {name: asdict(recipes.load_recipe(name)) for name in recipes.RECIPES}

    full, small = sizes("0"), sizes("1")
    assert full == sizes("") == {n: asdict(recipe) for n, recipe in recipes.RECIPES.items()}
    changed = {name for name in full if full[name] != small[name]}
    assert changed == set(recipes.SMALLER) == set(full) - {"kogpt2", "small"}
    for name in changed:
        for field, value in small[name].items():
            before = full[name][field]
            assert value == before or field == "factory" or 0 < value < (before or np.inf)


def test_an_unknown_recipe_is_refused():
    with pytest.raises(InputError, match=r"no recipe 'facts'\. Use one of factbook, "):
        recipes.load_recipe("facts")


def test_the_korean_studys_recipe_has_its_sizes():
    study = recipes.RECIPES["kogpt2"]
    assert (study.window, study.stride, study.k, study.dtype) == (1024, 512, 8, "float32")
    assert study.text().name == "kowiki"


def test_a_memory_of_another_corpus_is_what_is_stored_and_evaluated(recipe, monkeypatch):
    own = recipe.text()
    other = Corpus("other", "t", "none", "here", "nobody", lambda: others)
    others = [Document(f"o{i}", make_text(100 + i, 50)) for i in range(20)]
    monkeypatch.setattr(recipes, "load_corpus", lambda name: other if name == "other" else own)
    abroad = recipe.but(memory="other")
    assert abroad.model().fingerprint == recipe.model().fingerprint
    assert abroad.training()["settings"]["text"] == "tiny:train"
    names = set(abroad.datastore().record["document_names"])
    assert names == {document.name for document in other.train}
    assert set(abroad.retrieval("test").record["document_names"]) == {d.name for d in other.test}

    some = abroad.but(documents=5, held_out=1)
    everything = [document.name for document in other.train]
    assert some.datastore().record["document_names"] == [everything[i] for i in (0, 3, 6, 9, 12)]
    assert some.retrieval("test").record["document_names"] == [next(iter(other.test)).name]

    part = some.but(excerpt=40).retrieval("test").record
    assert (part["document_names"], part["characters"]) == ([next(iter(other.test)).name], 40)
    whole = next(iter(other.test)).text
    middle, opening = some.but(excerpt=40), some.but(excerpt=40, opening=True)
    start = (len(whole) - 40) // 2
    assert [d.text for d in middle.part("test")] == [whole[start : start + 40]]
    assert [d.text for d in opening.part("test")] == [whole[:40]]
    assert opening.retrieval("test").path != middle.retrieval("test").path
    assert opening.index().path == middle.index().path

    taught = recipe.but(learned=4)
    assert taught.training()["settings"]["text"] == "tiny:train, 4 documents"
    assert (
        taught.datastore().record["document_names"] == recipe.datastore().record["document_names"]
    )

    tuned = some.but(tuned=2)
    assert tuned.model().fingerprint != abroad.model().fingerprint
    record = tuned.training()
    assert record["settings"]["text"] == "other:train, 5 documents"
    assert record["settings"]["start"] == abroad.model().fingerprint
    assert record["settings"]["steps"] == 2
    assert tuned.datastore().record["model"] == tuned.model().fingerprint
    assert tuned.but(documents=6).model().fingerprint != tuned.model().fingerprint


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4))
def test_documents_are_spread_evenly_and_more_of_them_hold_the_fewer(total, count, times):
    split = Split("x", lambda: [Document(str(i), "") for i in range(total)])
    few = [int(d.name) for d in spread(split, count)]
    assert len(few) == min(count, total)
    assert few[0] == 0
    steps = np.diff([*few, total])
    assert steps.max() - steps.min() <= 1
    assert set(few) <= {int(d.name) for d in spread(split, count * times)}
    assert [d.name for d in spread(split, 0)] == [d.name for d in split]


def test_several_key_layers_are_read_in_one_pass_and_found_again(recipe, monkeypatch):
    layers = ["ffn_input", "attention_input", "ffn_input@0"]
    alone = recipe.but(key_layer="attention_input").datastore()
    passes = []
    read = LanguageModel.read
    monkeypatch.setattr(
        LanguageModel,
        "read",
        lambda self, *a, **kw: passes.append(kw["key_layers"]) or read(self, *a, **kw),
    )
    stores = recipe.datastores(layers)
    assert list(stores) == layers
    assert passes == [["ffn_input", "ffn_input@0"]]  # one pass, for what was not there
    assert stores["attention_input"].path == alone.path
    for layer, store in stores.items():
        assert store.record["key_layer"] == layer
        assert recipe.but(key_layer=layer).datastore().path == store.path
    assert len(passes) == 1


def test_the_seconds_of_some_runs_count_what_they_share_once(recipe, monkeypatch):
    few, more = recipe.but(documents=4), recipe.but(documents=8)
    parts = [recipe.training()["seconds"]]  # one model for both
    for run in (few, more):
        parts += [run.datastore().record["seconds"], run.index().record["seconds"]]
        parts += [run.retrieval(split).seconds for split in ("validation", "test")]
    assert recipes.making_seconds(few, more) == pytest.approx(sum(parts))
    assert recipes.making_seconds(few, few, splits=["test"]) == pytest.approx(
        parts[0] + sum(parts[1:3]) + parts[4]
    )


def test_a_model_that_was_not_trained_here_took_no_time(recipe, model_folder):
    taken = recipe.but(pretrained=str(model_folder))
    parts = taken.datastore().record["seconds"], taken.index().record["seconds"]
    assert recipes.making_seconds(taken, splits=[]) == pytest.approx(sum(parts))
