"""Keys and values on disk: what they are, that builds resume to the byte, what is refused."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from conftest import STRIDE, WINDOW, make_text
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm import arrays, artifacts, datastore, language_model
from knnlm.arrays import create_array
from knnlm.datastore import Datastore
from knnlm.errors import InputError
from knnlm.inspection import describe
from knnlm.language_model import LanguageModel
from knnlm.text import Document, Split
from knnlm.tokens import train_tokenizer

BUILD = {"window": WINDOW, "stride": STRIDE}


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file, but for how long the build took."""
    found = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }
    record = json.loads(found["datastore.json"])
    assert record.pop("seconds") > 0
    return {**found, "datastore.json": json.dumps(record).encode()}


def test_keys_and_values_are_the_oracles_in_plain_npy_files(store, model_folder, text):
    expected = oracle.read(model_folder, [document.text for document in text], WINDOW, STRIDE)
    keys = np.load(store.path / "keys.npy", allow_pickle=False)
    values = np.load(store.path / "values.npy", allow_pickle=False)
    assert keys.dtype == np.float32
    assert values.dtype == np.int32
    assert values.tolist() == expected.tokens[1:]
    np.testing.assert_allclose(keys, expected.keys, rtol=1e-4, atol=1e-4)
    assert len(store) == len(keys)
    assert store.dim == 32
    assert {file.name for file in store.path.iterdir()} == {
        "keys.npy",
        "values.npy",
        "datastore.json",
    }
    record = json.loads((store.path / "datastore.json").read_text())
    assert record["format"] == 2
    assert record["model_name"] == str(model_folder)
    assert (record["window"], record["stride"]) == (WINDOW, STRIDE)
    assert (record["dtype"], record["key_layer"]) == ("float32", "ffn_input")
    assert describe(store.path)["problem"] is None


def test_float16_keys_are_the_float32_keys_rounded(store, lm, text, tmp_path):
    half = Datastore.build(tmp_path / "half", lm, text, **BUILD)
    assert half.keys.dtype == np.float16
    assert np.array_equal(half.keys, store.keys.astype(np.float16))
    assert half.fingerprint != store.fingerprint


def test_a_token_stream_builds_the_same_store_as_its_text(store, lm, text, tmp_path):
    again = Datastore.build(tmp_path / "again", lm, lm.encode(text), dtype="float32", **BUILD)
    assert again.fingerprint == store.fingerprint


class Killed(Exception):
    """Stands for the end of the process."""


def dying(monkeypatch, batches: int) -> None:
    """Let the model raise after some batches."""
    read, count = LanguageModel._read_batch, iter(range(10**6))

    def read_batch(*arguments):
        if next(count) == batches:
            raise Killed
        return read(*arguments)

    monkeypatch.setattr(LanguageModel, "_read_batch", read_batch)


@pytest.fixture
def small_batches(monkeypatch):
    """Four windows in a batch, and a checkpoint after each batch."""
    monkeypatch.setattr(language_model, "TOKENS_PER_BATCH", 4 * WINDOW)
    monkeypatch.setattr(arrays, "CHECKPOINT_SECONDS", 0)


@pytest.mark.usefixtures("small_batches")
def test_a_build_killed_anywhere_goes_on_to_the_same_bytes(lm, text, tmp_path, monkeypatch):
    whole = Datastore.build(tmp_path / "whole", lm, text, **BUILD)
    path = tmp_path / "killed"
    rows = []
    for batches in (0, 1, 3, 5, 50):  # killed again and again
        with monkeypatch.context() as patch:
            dying(patch, batches)
            with pytest.raises(Killed):
                Datastore.build(path, lm, text, **BUILD)
        rows.append(json.loads((path / "datastore.json").read_text()).get("rows_done", 0))
        with pytest.raises(InputError, match=r"not whole: it was interrupted.*goes on"):
            Datastore.open(path)
    assert rows[0] == 0
    assert rows[1] == WINDOW
    assert rows == sorted(set(rows))  # it went on each time, and never started over
    assert rows[-1] < len(whole)
    Datastore.build(path, lm, text, **BUILD)
    assert contents(path) == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small_batches")
def test_rows_written_after_the_last_checkpoint_are_written_again(lm, text, tmp_path, monkeypatch):
    whole = Datastore.build(tmp_path / "whole", lm, text, **BUILD)
    path = tmp_path / "killed"
    with monkeypatch.context() as patch:
        dying(patch, 4)
        with pytest.raises(Killed):
            Datastore.build(path, lm, text, **BUILD)
    with monkeypatch.context() as patch:
        patch.setattr(arrays, "CHECKPOINT_SECONDS", 1e9)
        dying(patch, 6)
        with pytest.raises(Killed):
            Datastore.build(path, lm, text, **BUILD)
    done = json.loads((path / "datastore.json").read_text())["rows_done"]
    assert 0 < done < len(whole)
    assert np.load(path / "keys.npy", mmap_mode="r")[done + 1].any()
    Datastore.build(path, lm, text, **BUILD)
    assert contents(path) == contents(tmp_path / "whole")


@pytest.mark.parametrize("stage", ["record", "tokens", "values"])
def test_a_build_killed_before_its_first_key_starts_again(
    lm, text, store, tmp_path, monkeypatch, stage
):
    path = tmp_path / "killed"

    def killed(*_):
        raise Killed

    def documents():
        yield next(iter(text))
        raise Killed

    text_now = Split("tiny:train", documents) if stage == "tokens" else text
    with monkeypatch.context() as patch:
        if stage == "record":
            patch.setattr(artifacts.Claim, "save", killed)
        elif stage == "values":
            patch.setattr(datastore.np, "save", killed)
        with pytest.raises(Killed):
            Datastore.build(path, lm, text_now, dtype="float32", **BUILD)
    Datastore.build(path, lm, text, dtype="float32", **BUILD)
    assert contents(path) == contents(store.path)


KILL_ME = """
import sys, time
import torch
from conftest import STRIDE, WINDOW
from knnlm import arrays, datastore, language_model
from knnlm.inputs import load_text
from knnlm.language_model import LanguageModel
language_model.TOKENS_PER_BATCH = 4 * WINDOW
arrays.CHECKPOINT_SECONDS = 0
read = LanguageModel._read_batch
def slowly(*arguments):
    time.sleep(0.05)
    return read(*arguments)
LanguageModel._read_batch = slowly
model, text, path = sys.argv[1:]
lm = LanguageModel.from_pretrained(model, device="cpu", precision="float32")
datastore.Datastore.build(path, lm, load_text(text), window=WINDOW, stride=STRIDE)
"""


@pytest.mark.usefixtures("small_batches")
def test_a_process_that_is_killed_leaves_what_another_finishes(lm, model_folder, text, tmp_path):
    from knnlm.inputs import load_text

    (tmp_path / "text").mkdir()
    for document in text:
        (tmp_path / "text" / f"{document.name}.txt").write_text(document.text, encoding="utf-8")
    path = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", KILL_ME, str(model_folder), str(tmp_path / "text"), str(path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )

    def rows_done():
        try:
            return json.loads((path / "datastore.json").read_text()).get("rows_done", 0)
        except FileNotFoundError:
            return 0

    try:
        deadline = time.monotonic() + 120
        while rows_done() < 200:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    killed_at = rows_done()
    assert "tokens.part" in {file.name for file in path.iterdir()}

    split = load_text(tmp_path / "text")
    whole = Datastore.build(tmp_path / "whole", lm, split, **BUILD)
    assert 200 <= killed_at < len(whole)
    Datastore.build(path, lm, split, **BUILD)
    assert contents(path) == contents(whole.path)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("complete", [True, False])
def test_other_inputs_are_refused_with_both_values_and_change_nothing(
    lm, make_lm, text, tmp_path, monkeypatch, complete
):
    path = tmp_path / "store"
    build = {"lm": lm, "text": text, **BUILD}
    with monkeypatch.context() as patch:
        if complete:
            Datastore.build(path, **build)
        else:
            dying(patch, 3)
            with pytest.raises(Killed):
                Datastore.build(path, **build)
    before = contents(path)
    record = json.loads(before["datastore.json"])
    other = make_lm(seed=1)
    tokenizer = train_tokenizer(text, 319)
    retokenized = LanguageModel(lm.model, tokenizer, "other", "cpu", "float32")
    half = LanguageModel(lm.model, lm.tokenizer, "half", "cpu", "bfloat16")
    changes = {
        "precision": ({"lm": half}, "bfloat16"),
        "model": ({"lm": other}, other.fingerprint),
        "tokenizer": ({"lm": retokenized}, retokenized.tokenizer_fingerprint),
        "key_layer": ({"key_layer": "block_output"}, "block_output"),
        "dtype": ({"dtype": "float32"}, "float32"),
        "window": ({"window": WINDOW + 1}, WINDOW + 1),
        "stride": ({"stride": 5}, 5),
        "text": ({"text": (shorter := Split.of(list(text)[:-1]))}, lm.encode(shorter).fingerprint),
    }
    for name, (change, now) in changes.items():
        with pytest.raises(InputError) as refusal:
            Datastore.build(path, **{**build, **change})
        message = str(refusal.value)
        assert f"{name} {record[name]!r}, now it is {now!r}" in message
        assert message.count(". ") == 1
        assert contents(path) == before, name


def test_building_again_changes_nothing_and_reads_no_key(store, lm, text, monkeypatch):
    before = {file: file.read_bytes() for file in store.path.iterdir()}
    monkeypatch.setattr(LanguageModel, "read", lambda *_, **__: 1 / 0)
    again = Datastore.build(store.path, lm, text, dtype="float32", **BUILD)
    assert again.fingerprint == store.fingerprint
    assert {file: file.read_bytes() for file in store.path.iterdir()} == before


def test_a_folder_with_something_else_is_refused_and_untouched(lm, text, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="no datastore"):
        Datastore.build(tmp_path, lm, text, **BUILD)
    with pytest.raises(InputError, match=r"thesis\.tex is a file"):
        Datastore.build(tmp_path / "thesis.tex", lm, text, **BUILD)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_what_cannot_be_built_is_refused_before_anything_is_written(lm, text, tmp_path):
    for change, message in (
        ({"dtype": "int8"}, "Use float16 or float32"),
        ({"stride": WINDOW + 1}, f"stride of {WINDOW + 1} .* window of {WINDOW}"),
        ({"window": 33}, r"33 .* 32"),
        ({"key_layer": "ffn"}, "no key layer 'ffn'"),
        ({"text": Split.of([], "nothing")}, "nothing has 0 tokens"),
    ):
        with pytest.raises(InputError, match=message):
            Datastore.build(tmp_path / "new", **{"lm": lm, "text": text, **BUILD, **change})
        assert not (tmp_path / "new").exists()


def test_a_key_that_overflows_float16_is_an_error_and_fits_float32(
    make_lm, text, tmp_path, monkeypatch
):
    loud = make_lm()
    with torch.no_grad():
        loud.model.transformer.h[-1].ln_2.weight *= 1e5
    with pytest.raises(InputError, match=r"does not fit float16\. .*float32"):
        Datastore.build(tmp_path / "half", loud, text, **BUILD)
    assert not (tmp_path / "half").exists()
    with monkeypatch.context() as patch:
        patch.setattr(datastore.np, "save", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            Datastore.build(tmp_path / "kept", loud, text, **BUILD)
    (tmp_path / "kept" / "index").mkdir()
    with pytest.raises(InputError, match=r"does not fit float16\. .*float32"):
        Datastore.build(tmp_path / "kept", loud, text, **BUILD)
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["index"]
    store = Datastore.build(tmp_path / "half", loud, text, dtype="float32", **BUILD)
    assert np.abs(store.keys).max() > 65504
    assert np.isfinite(store.keys).all()


@pytest.fixture
def copy(store, tmp_path) -> Path:
    """A copy of the shared store, to be damaged."""
    for name in ("keys.npy", "values.npy", "datastore.json"):
        (tmp_path / name).write_bytes((store.path / name).read_bytes())
    return tmp_path


def test_a_store_can_be_moved(copy, store):
    assert Datastore.open(copy).fingerprint == store.fingerprint
    assert np.array_equal(Datastore.open(copy).keys, store.keys)


@pytest.mark.parametrize("name", ["keys.npy", "values.npy"])
def test_a_truncated_or_missing_file_is_found_on_opening(copy, name):
    data = (copy / name).read_bytes()
    for damaged in (data[:-1], data[: len(data) // 2], data[:60], b""):
        (copy / name).write_bytes(damaged)
        with pytest.raises(InputError, match=f"{name} is damaged: .*build it again"):
            Datastore.open(copy)
    (copy / name).unlink()
    with pytest.raises(InputError, match=f"{name} is damaged: it is missing"):
        Datastore.open(copy)
    np.save(copy / name, np.zeros((3, 32), dtype=np.float32))
    with pytest.raises(
        InputError, match=rf"{name} is damaged: its shape is \(3, 32\), and the record"
    ):
        Datastore.open(copy)


@pytest.mark.parametrize("name", ["keys.npy", "values.npy"])
def test_a_flipped_bit_is_found_by_the_checksums(copy, name):
    data = bytearray((copy / name).read_bytes())
    for place in (130, len(data) // 2, len(data) - 1):
        data[place] ^= 1
        (copy / name).write_bytes(data)
        Datastore.open(copy)
        assert f"{name} is damaged: its checksum is wrong" in describe(copy)["problem"]
        assert describe(copy, deep=False)["complete"]
        data[place] ^= 1
    (copy / name).write_bytes(data)
    assert describe(copy)["complete"]


def test_a_record_that_cannot_be_read_is_refused(copy):
    record = json.loads((copy / "datastore.json").read_text())
    (copy / "datastore.json").write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(InputError, match="has format 99, this knnlm reads format 2"):
        Datastore.open(copy)
    for name in ("complete", "dim", "crc32"):
        (copy / "datastore.json").write_text(
            json.dumps({n: v for n, v in record.items() if n != name})
        )
        with pytest.raises(InputError, match=f"lacks '{name}'"):
            _ = Datastore.open(copy).fingerprint
    (copy / "datastore.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        Datastore.open(copy)
    (copy / "datastore.json").unlink()
    with pytest.raises(InputError, match=r"holds no datastore: datastore\.json is missing"):
        Datastore.open(copy)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no bytes")
def test_a_new_array_has_its_bytes_reserved_on_the_disk(tmp_path):
    array = create_array(tmp_path / "keys.npy", "float16", (1000, 1000))
    assert not array.any()
    assert (tmp_path / "keys.npy").stat().st_blocks * 512 >= 2_000_000


def test_a_query_model_must_be_the_one_that_made_the_keys(store, lm, make_lm, text):
    store.check_model(lm)
    store.check_model(make_lm())  # the same weights, from elsewhere
    other = make_lm(seed=1, name="other")
    with pytest.raises(InputError, match=f"model {lm.fingerprint}.*{other.fingerprint} .other"):
        store.check_model(other)
    retokenized = LanguageModel(lm.model, train_tokenizer(text, 319), "other", "cpu", "float32")
    with pytest.raises(InputError, match=f"tokenizer {lm.tokenizer_fingerprint}"):
        store.check_model(retokenized)


def test_a_missing_neighbor_has_no_value(store):
    ids = np.array([[0, -1], [len(store) - 1, 5]])
    found = store.values_of(ids)
    assert found.dtype == np.int32
    expected = [[store.values[0], -1], [store.values[len(store) - 1], store.values[5]]]
    assert found.tolist() == expected


def test_contexts_and_names_end_at_document_borders(lm, tmp_path):
    documents = [
        Document("Peru", "rice"),
        Document("Chad", make_text(9, 12)),
        Document("Fiji", "a"),
    ]
    store = Datastore.build(tmp_path / "store", lm, Split.of(documents), window=16, stride=8)
    stream = lm.encode(Split.of(documents))
    starts = stream.document_starts.tolist()
    assert len(store) == len(stream) - 1
    for row in range(len(store)):
        document = max(i for i, start in enumerate(starts) if start <= row)
        assert store.document_name(row) == documents[document].name
        for length in (1, 3, 16):
            expected = stream.tokens[max(starts[document], row - length + 1) : row + 1]
            assert store.context(row, length).tolist() == expected.tolist()
            assert store.values[row] == stream.tokens[row + 1]
    assert store.document_name(starts[1] - 1) == "Peru"
    assert store.context(starts[1]).tolist() == [stream.tokens[starts[1]]]


def test_values_above_int16_are_kept(lm, tmp_path):
    """Vocabularies have more than 32,767 tokens."""
    stream = lm.encode(Split.of(["rice and wheat"]))
    assert Datastore.build(tmp_path / "s", lm, stream).values.dtype == np.int32


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 150), st.integers(1, WINDOW), st.data())
def test_any_window_and_stride_gives_each_pair_once_to_the_byte(lm, tmp_path_factory, n, w, data):
    stride = data.draw(st.integers(1, w))
    stream = lm.encode(Split.of([make_text(n, n)]))
    n = min(n, len(stream))
    stream = dataclasses.replace(stream, tokens=stream.tokens[:n])
    folder = tmp_path_factory.mktemp("store") / "of any shape"
    store = Datastore.build(folder, lm, stream, window=w, stride=stride, dtype="float32")
    assert store.values.tobytes() == stream.tokens[1:].tobytes()
    assert (folder / "keys.npy").stat().st_size == 128 + 4 * (n - 1) * store.dim
    for i in {0, (n - 2) // 2, n - 2}:  # each key: read from its own window, alone
        (start,) = [start for start, _, given in oracle.windows(n, w, stride) if i in given]
        alone = dataclasses.replace(stream, tokens=stream.tokens[start : i + 2])
        (reading,) = lm.read(alone, window=max(1, i + 1 - start), stride=1)
        np.testing.assert_allclose(
            store.keys[i], reading.keys["ffn_input"][-1], rtol=1e-4, atol=1e-5
        )


LAYERS = ["ffn_input", "ffn_input@0", "final_norm_output"]


@pytest.mark.usefixtures("small_batches")
def test_one_pass_for_several_layers_writes_what_a_pass_for_each_writes(
    lm, text, tmp_path, monkeypatch
):
    alone = {
        layer: Datastore.build(tmp_path / "alone" / layer, lm, text, key_layer=layer, **BUILD)
        for layer in LAYERS
    }
    paths = {layer: tmp_path / "each" / layer for layer in LAYERS}
    for batches in (0, 2, 4):
        with monkeypatch.context() as patch:
            dying(patch, batches)
            with pytest.raises(Killed):
                Datastore.build_each(paths, lm, text, **BUILD)
    # As if the last kill had come between the records of two of the stores.
    record = paths[LAYERS[1]] / "datastore.json"
    begun = json.loads(record.read_text())
    with monkeypatch.context() as patch:
        dying(patch, 1)
        with pytest.raises(Killed):
            Datastore.build_each(paths, lm, text, **BUILD)
    record.write_text(json.dumps(begun))
    stores = Datastore.build_each(paths, lm, text, **BUILD)
    assert list(stores) == LAYERS
    for layer in LAYERS:
        assert contents(paths[layer]) == contents(alone[layer].path)


def test_several_layers_are_refused_before_anything_is_written(lm, text, tmp_path):
    paths = {"ffn_input": tmp_path / "a", "ffn_input@9": tmp_path / "b"}
    with pytest.raises(InputError, match="block '9' of 2"):
        Datastore.build_each(paths, lm, text, **BUILD)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("dear")
    paths = {"ffn_input": tmp_path / "a", "ffn_input@0": tmp_path / "b"}
    with pytest.raises(InputError, match="b holds something that is no datastore"):
        Datastore.build_each(paths, lm, text, **BUILD)
    assert [file.name for file in tmp_path.rglob("*")] == ["b", "letter.txt"]


def test_an_overflow_in_one_layer_leaves_no_folder_behind(make_lm, text, tmp_path):
    lm = make_lm(seed=3)
    with torch.no_grad():
        lm.model.transformer.h[-1].ln_2.weight *= 1e6
    paths = {layer: tmp_path / layer for layer in ("ffn_input@0", "ffn_input")}
    with pytest.raises(InputError, match="does not fit float16"):
        Datastore.build_each(paths, lm, text, **BUILD)
    assert not any(path.exists() for path in paths.values())
