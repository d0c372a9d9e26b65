"""Recipes: an artifact is made once, found again by what made it, and shared where it may be."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import make_text
from hypothesis import given
from hypothesis import strategies as st

from knnlm import recipes
from knnlm.corpora import Corpus, Document, Split
from knnlm.language_model import LanguageModel
from knnlm.recipes import Recipe, spread


@pytest.fixture
def recipe(monkeypatch, tmp_path) -> Recipe:
    documents = [Document(f"d{i}", make_text(i, 60)) for i in range(20)]
    corpus = Corpus("tiny", "t", "none", "here", "nobody", lambda: documents)
    monkeypatch.setenv("KNNLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(recipes, "load_corpus", lambda name: corpus)
    return Recipe(
        corpus="tiny",
        vocab_size=300,
        layers=1,
        width=16,
        heads=2,
        context=32,
        steps=3,
        batch_size=2,
        window=32,
        stride=16,
        factory="Flat",
        k=4,
    )


def test_the_second_call_reads_what_the_first_made(recipe, monkeypatch):
    first = recipe.retrieval("test")
    made = {path: path.stat().st_mtime_ns for path in recipes.cache_folder().rglob("*.*npy")}
    assert made
    monkeypatch.setattr(recipes, "train_language_model", None)
    monkeypatch.setattr(recipes.Datastore, "build", None)
    monkeypatch.setattr(recipes.Index, "build", None)
    monkeypatch.setattr(recipes.Retrieval, "run", None)
    again = recipe.retrieval("test")
    assert again.perplexity(lam=0.3) == first.perplexity(lam=0.3)
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())


def test_recipes_share_what_they_agree_in_and_nothing_else(recipe):
    def folders(r: Recipe) -> list[str]:
        return [r.folder(kind).name for kind in ("model", "datastore", "index")]

    model, store, index = folders(recipe)
    assert folders(recipe.but(factory="HNSW8"))[:2] == [model, store]
    assert folders(recipe.but(factory="HNSW8"))[2] != index
    assert folders(recipe.but(stride=8))[0] == model
    assert folders(recipe.but(stride=8))[1] != store
    assert folders(recipe.but(steps=4))[0] != model


def test_the_fingerprint_of_code_sees_code_but_not_words_about_it(monkeypatch, tmp_path):
    source = 'def f(x):\n    """Say."""\n    return x + 1  # why\n'
    versions = {
        "same": source.replace("Say.", "Say more.").replace("  # why", ""),
        "other": source.replace("+ 1", "+ 2"),
        "first": source,
    }
    monkeypatch.setattr(recipes, "__file__", str(tmp_path / "recipes.py"))
    for name, text in versions.items():
        (tmp_path / f"{name}.py").write_text(text)
    prints = {name: recipes.code_fingerprint.__wrapped__(name) for name in versions}
    assert prints["first"] == prints["same"] != prints["other"]


def test_recorded_numbers_are_plain_json_and_replace_the_earlier(monkeypatch, tmp_path, store):
    monkeypatch.setenv("KNNLM_RESULTS", str(tmp_path))
    recipes.record("01_x", a=1, gone=2)
    recipes.record("01_x", a=store.values[:3].mean(), b="text")
    written = json.loads((tmp_path / "01_x.json").read_text())
    assert written == {"a": float(store.values[:3].mean()), "b": "text"}


def test_a_pretrained_model_is_not_trained(recipe, model_folder, lm, monkeypatch):
    monkeypatch.setattr(recipes, "train_language_model", None)
    pretrained = recipe.but(pretrained=str(model_folder), window=16, stride=8)
    assert pretrained.model().fingerprint == lm.fingerprint
    retrieval = pretrained.retrieval("validation")
    assert retrieval.index.datastore.record["model"] == lm.fingerprint
    assert retrieval.record["window"] == 16


def test_one_switch_makes_the_later_chapters_small():
    def sizes(small: str) -> dict:
        say = (
            "import json; from knnlm import RECIPES as r; "
            "print(json.dumps({n: [r[n].steps, r[n].documents, r[n].held_out] for n in r}))"
        )
        environment = {**os.environ, "KNNLM_SMALL": small}
        run = [sys.executable, "-c", say]
        return json.loads(subprocess.run(run, env=environment, capture_output=True).stdout)

    full, small = sizes(""), sizes("1")
    assert sizes("0") == full
    changed = {name for name in full if full[name] != small[name]}
    assert changed == set(recipes.SMALL)
    assert not changed & {"factbook", "korean", "kogpt2"}  # chapters 1 to 6
    for name in changed:
        for fewer, all_of_it in zip(small[name], full[name], strict=True):
            assert 0 < fewer <= all_of_it or fewer == all_of_it


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
    assert opening.folder("retrieval") != middle.folder("retrieval")
    assert opening.folder("index") == middle.folder("index")

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
