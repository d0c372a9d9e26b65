"""The command line, held to its description: results, streams, exit codes, and every bad input."""

import contextlib
import errno
import inspect
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import oracle
import pandas as pd
import pytest
from conftest import make_text
from transformers import AutoModelForCausalLM, AutoTokenizer

import knnlm.progress
from knnlm.cli import app
from knnlm.cli.options import numbers

COMMANDS = (
    "train plan build index inspect evaluate sweep cases generate".split()  # as cli.md has them
)
WINDOW, STRIDE = 32, 16
EVALUATE_KEYS = (
    "tokens words perplexity_lm perplexity perplexity_per_word_lm perplexity_per_word nll_lm nll k "
    "lam temperature metric nprobe precision datastore_size tokens_per_second"
).split()
CASE_KEYS = (
    "context label lm knn lm+knn lm_probability knn_probability knn_lm_percent neighbors"
).split()


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        assert self.code == 0, self.err
        return json.loads(self.out, parse_constant=pytest.fail)


def run(*args) -> Ran:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with pytest.raises(SystemExit) as exit:
            app([str(arg) for arg in args], prog_name="knnlm")
    return Ran(exit.value.code, out.getvalue(), err.getvalue())


def start(*args, **options) -> subprocess.Popen:
    """Start a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "knnlm", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"KNNLM_QUIET": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        **options,
    )


def run_apart(*args) -> Ran:
    """Run a command in a process of its own."""
    process = start(*args)
    out, err = process.communicate(timeout=120)
    return Ran(process.returncode, out, err)


def contents(folder: Path) -> dict:
    """Return every file below a folder, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with texts, and what ``train``, ``build`` and ``index`` make of them."""
    work = tmp_path_factory.mktemp("cli")
    texts = {
        "train": [make_text(i, 150) for i in range(5)],
        "validation": [make_text(50 + i, 30) for i in range(2)],
        "test": [make_text(70 + i, 30) for i in range(3)],
    }
    for name, documents in texts.items():
        (work / f"{name}.txt").write_text("\n\n".join(documents), encoding="utf-8")
    before = Path.cwd()
    os.chdir(work)
    yield work
    os.chdir(before)


@pytest.fixture(scope="module")
def trained(work):
    shape = "--layers 2 --width 32 --heads 2 --context 32 --vocab-size 320".split()
    effort = "--steps 20 --batch-size 4 --precision float32 --device cpu --seed 3".split()
    options = "--split-documents --validation-text validation.txt --out model --json".split()
    return run("train", "--text", "train.txt", *shape, *effort, *options).json


@pytest.fixture(scope="module")
def built(work, trained):
    options = "--out store --split-documents --dtype float32 --precision float32 --json".split()
    return run("build", "--model", "model", "--text", "train.txt", *options).json


@pytest.fixture(scope="module")
def indexed(work, built):
    return run("index", "--datastore", "store", "--json").json


@pytest.fixture(scope="module")
def search(indexed):
    """Options that every command with an index takes."""
    return "--model model --index store --precision float32".split()


@pytest.fixture(scope="module")
def held_out(search):
    return [*search, "--text", "validation.txt", "--split-documents"]


# What it is


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    ran = run(command, "--help")
    assert ran.code == 0
    assert ran.err == ""
    for option in ("--json", "--quiet", "--help"):
        assert option in ran.out


def test_help_is_there_and_quick():
    ran = run_apart("--help")
    assert ran.code == 0
    assert ran.err == ""
    assert all(command in ran.out for command in COMMANDS)
    heavy = (
        "import sys, knnlm.cli; print({'torch', 'transformers', 'faiss', 'numpy'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", heavy], text=True) == "set()\n"


def test_defaults_of_train_are_the_modules():
    from knnlm import training
    from knnlm.cli import making

    said = inspect.signature(making.train).parameters
    for name, own in inspect.signature(training.train_language_model).parameters.items():
        if own.default is not own.empty and name in said:
            assert said[name].default == own.default, name


# The whole path


def test_train(trained, work):
    assert trained["model"] == "model"
    assert trained["precision"] == "float32"
    assert trained["layers"] == 2
    assert trained["seed"] == 3
    assert 0 < trained["bits_per_character"] < 8
    record = json.loads((work / "model/training.json").read_text())
    assert trained["parameters"] == record["parameters"]
    assert record["settings"]["steps"] == 20
    AutoModelForCausalLM.from_pretrained(work / "model")


def test_build_says_what_it_made(built, work):
    tokens = oracle.encode("model", (work / "train.txt").read_text("utf-8").split("\n\n"))
    assert built["kind"] == "datastore"
    assert built["complete"] is True
    assert built["keys"] == len(tokens) - 1
    assert (built["window"], built["stride"]) == (WINDOW, STRIDE)
    assert (built["dtype"], built["precision"]) == ("float32", "float32")
    assert np.load(work / "store/values.npy").tolist() == tokens[1:]
    assert np.load(work / "store/keys.npy").shape == (built["keys"], 32)


def test_build_again_changes_nothing_and_other_inputs_are_refused(built, indexed, work):
    before = contents(work)
    same = (
        "--model model --text train.txt --out store --split-documents --precision float32".split()
    )
    assert run("build", *same, "--dtype", "float32").code == 0
    assert contents(work) == before
    ran = run("build", *same)
    assert ran.code == 1
    assert "'float32'" in ran.err
    assert "'float16'" in ran.err
    assert contents(work) == before


def test_texts_come_as_files_folders_and_several(trained, work, tmp_path):
    for i, document in enumerate((work / "train.txt").read_text("utf-8").split("\n\n")):
        (tmp_path / f"{i}.txt").write_text(document, encoding="utf-8")
    build = ["build", "--model", "model", "--precision", "float32", "--json", "--out"]
    whole = run(*build, tmp_path / "a", "--text", "train.txt", "--split-documents").json
    folder = run(*build, tmp_path / "b", "--text", tmp_path).json
    several = (f"--text={tmp_path / f'{i}.txt'}" for i in range(5))
    files = run(*build, tmp_path / "c", *several).json
    assert whole["fingerprint"] == folder["fingerprint"] == files["fingerprint"]
    assert whole["documents"] == folder["documents"] == files["documents"] == 5
    one = run(*build, tmp_path / "d", "--text", "train.txt").json
    assert one["documents"] == 1


def test_inspect_knows_what_it_is(trained, built, indexed):
    model = run("inspect", "model", "--json").json
    assert (model["kind"], model["complete"]) == ("model", True)
    assert model["architecture"] == "GPT2LMHeadModel"
    assert model["context"] == 32
    assert model["model"] == built["model"]
    assert model["training"]["bits_per_character"] == trained["bits_per_character"]
    assert model["training"]["model"] == model["model"]
    store = run("inspect", "store", "--json").json
    assert (store["kind"], store["complete"], store["problem"]) == ("datastore", True, None)
    assert store["file_bytes"]["keys.npy"] == 128 + store["keys"] * 32 * 4
    assert store["index"] == str(Path("store/index"))
    index = run("inspect", "store/index", "--json").json
    assert (index["kind"], index["complete"]) == ("index", True)
    assert index["datastore"] == store["fingerprint"]
    assert index["nprobe"] is None
    shown = run("inspect", "store")
    assert shown.code == 0
    assert "complete" in shown.out
    assert len(shown.out.splitlines()) < 30


@pytest.fixture(scope="module")
def passes(work, model_folder):
    """The oracle's reading of the datastore's text and the held-out text."""
    return [
        oracle.read(model_folder, (work / name).read_text("utf-8").split("\n\n"), WINDOW, STRIDE)
        for name in ("train.txt", "validation.txt")
    ]


def test_evaluate_agrees_with_the_oracle(model_folder, passes, work, tmp_path):
    """With a random model, a GPT-2 as the oracle knows it."""
    common = ["--model", model_folder, "--split-documents", "--precision", "float32"]
    store = ["--text", "train.txt", "--dtype", "float32", "--out", tmp_path / "store"]
    assert run("build", *common, *store).code == 0
    assert run("index", "--datastore", tmp_path / "store").code == 0
    held_out = [*common, "--index", tmp_path / "store", "--text", "validation.txt"]
    stored, test = passes
    ranked = [oracle.nearest(key, stored.keys, "l2_squared") for key in test.keys]
    words = len((work / "validation.txt").read_text("utf-8").split())
    n = len(test.tokens) - 1
    alone = oracle.perplexity(ranked, stored, test, 1, 0.0, 1.0)
    for k, lam, temperature in ((1, 0.3, 1.0), (8, 0.25, 1.0), (64, 0.7, 10.0)):
        mixture = f"--k {k} --lam {lam} --temperature {temperature}".split()
        found = run("evaluate", *held_out, *mixture, "--json").json
        assert list(found) == EVALUATE_KEYS
        expected = oracle.perplexity(ranked, stored, test, k, lam, temperature)
        assert found["perplexity_lm"] == pytest.approx(alone, rel=1e-4)
        assert found["perplexity"] == pytest.approx(expected, rel=1e-4)
        assert found["nll"] == pytest.approx(math.log(expected), rel=1e-4)
        assert found["nll_lm"] == pytest.approx(math.log(alone), rel=1e-4)
        assert found["perplexity_per_word"] == pytest.approx(expected ** (n / words), rel=1e-3)
        assert found["perplexity_per_word_lm"] == pytest.approx(alone ** (n / words), rel=1e-3)
        assert (found["tokens"], found["words"]) == (n, words)
        assert (found["k"], found["lam"], found["temperature"]) == (k, lam, temperature)
        assert (found["metric"], found["nprobe"]) == ("l2_squared", None)
        assert (found["precision"], found["datastore_size"]) == ("float32", len(stored.tokens) - 1)
        assert found["tokens_per_second"] > 0


def test_lambda_zero_is_the_model_to_the_last_bit(held_out):
    found = run("evaluate", *held_out, "--k", 8, "--lam", 0, "--json").json
    assert found["perplexity"] == found["perplexity_lm"]
    assert found["nll"] == found["nll_lm"]
    grid = run("sweep", *held_out, "--k", 8, "--lam", "0,0.5", "--json").json
    assert {r["perplexity"] for r in grid["grid"] if r["lam"] == 0} == {found["perplexity_lm"]}


def test_evaluate_through_lists_says_how_many(held_out, indexed, tmp_path):
    options = ["--factory", "IVF8,Flat", "--nprobe", 2, "--metric", "l2", "--out", tmp_path / "i"]
    made = run("index", "--datastore", "store", *options, "--json").json
    assert (made["factory"], made["nprobe"], made["metric"]) == ("IVF8,Flat", 2, "l2")
    args = ["evaluate", *held_out, "--index", tmp_path / "i", "--k", 8, "--json"]
    assert run(*args).json["nprobe"] == 2
    assert run(*args, "--nprobe", 3).json["nprobe"] == 3
    most = run(*args, "--nprobe", 1000).json
    assert (most["nprobe"], most["metric"]) == (8, "l2")
    exact = run(*args, "--nprobe", 8, "--exact").json
    assert exact["perplexity"] == pytest.approx(most["perplexity"], rel=1e-4)


def test_numbers_that_are_not_finite_are_null(held_out):
    """At k = 1 and λ = 1 some token has probability zero: its perplexity is infinite."""
    found = run("evaluate", *held_out, "--k", 1, "--lam", 1, "--json").json
    assert found["perplexity"] is None
    assert found["nll"] is None
    assert found["perplexity_lm"] > 0


def test_more_neighbors_than_keys_are_said(held_out, built):
    ran = run("evaluate", *held_out, "--k", 10**6, "--json")
    assert ran.json["k"] == built["keys"]
    assert "1000000" in ran.err
    ran = run("sweep", *held_out, "--k", f"8,{10**6}", "--lam", 0.5, "--json")
    assert {row["k"] for row in ran.json["grid"]} == {8, built["keys"]}


def test_the_datastores_own_text_is_pointed_out(search):
    ran = run("evaluate", *search, "--text", "train.txt", "--split-documents", "--k", 2)
    assert ran.code == 0
    assert "itself" in ran.err


def test_sweep(held_out, tmp_path, monkeypatch):
    from knnlm.retrieval import Retrieval

    passes = []
    own = Retrieval.run
    monkeypatch.setattr(Retrieval, "run", lambda *a, **o: passes.append(a[2]) or own(*a, **o))
    grid = "--k 2,8,32 --lam 0:1:0.25 --temperature 1,10".split()
    files = ["--csv", tmp_path / "grid.csv", "--figure", tmp_path / "grid.svg"]
    ran = run("sweep", *held_out, "--test-text", "test.txt", *grid, *files, "--json")
    found = ran.json
    assert len(passes) == 2
    assert set(found) == {"best", "perplexity_lm", "test", "grid", "precision"}
    assert set(found["best"]) == {"k", "lam", "temperature", "perplexity"}
    assert set(found["test"]) == {
        *("k", "lam", "temperature", "perplexity", "perplexity_lm", "interval_95")
    }
    assert len(found["grid"]) == 3 * 5 * 2
    finite = [row for row in found["grid"] if row["perplexity"] is not None]
    assert found["best"] == min(finite, key=lambda row: row["perplexity"])
    chosen = {name: found["best"][name] for name in ("k", "lam", "temperature")}
    assert {name: found["test"][name] for name in chosen} == chosen
    low, high = found["test"]["interval_95"]
    assert low <= found["test"]["perplexity"] <= high
    assert low < high

    table = pd.read_csv(tmp_path / "grid.csv")
    assert table.columns.tolist() == ["k", "lam", "temperature", "perplexity"]
    assert len(table) == len(found["grid"])
    assert ElementTree.parse(tmp_path / "grid.svg").getroot().tag.endswith("svg")

    mixture = [f"--{name}={value}" for name, value in chosen.items()]
    test = [*held_out, "--text", "test.txt"]
    test.remove("validation.txt")
    test.remove("--text")
    again = run("evaluate", *test, *mixture, "--json").json
    assert again["perplexity"] == pytest.approx(found["test"]["perplexity"], rel=1e-6)
    assert again["perplexity_lm"] == pytest.approx(found["test"]["perplexity_lm"], rel=1e-6)


def test_sweep_trains_a_lam_for_each_token_on_request(held_out, work, monkeypatch):
    from knnlm.index import Index
    from knnlm.inputs import load_text
    from knnlm.language_model import LanguageModel
    from knnlm.methods.adaptive import AdaptiveLam, retrieval_features
    from knnlm.retrieval import Retrieval

    how = [*held_out, "--test-text", "test.txt", "--k", "4,8"]
    how += ["--lam", "0.1,0.5", "--temperature", "10"]
    plain, found = (run("sweep", *how, *more, "--json").json for more in ([], ["--adaptive"]))
    adaptive = found.pop("adaptive")
    assert found == plain
    best = found["best"]
    lm = LanguageModel.from_pretrained("model", device="cpu", precision=found["precision"])
    texts = [load_text(name, split_documents=True) for name in ("validation.txt", "test.txt")]
    tables = [Retrieval.run(lm, Index.open("store"), x, best["k"], queries=True) for x in texts]
    knn = [table.knn_log_prob(best["temperature"]) for table in tables]
    features = [retrieval_features(table) for table in tables]
    first, second = tables
    network = AdaptiveLam.fit(features[0], first.lm_log_prob, knn[0], first.documents)
    expected = second.log_prob(lam=0), knn[1], network.lam(features[1])
    p = (1 - expected[2]) * np.exp(expected[0]) + expected[2] * np.exp(expected[1])
    assert adaptive["perplexity"] == pytest.approx(np.exp(-np.log(p).mean()), rel=1e-5)
    assert adaptive["interval_95"][0] <= adaptive["perplexity"] <= adaptive["interval_95"][1]
    change = 1 - adaptive["perplexity"] / found["test"]["perplexity"]
    assert adaptive["reduction"] == pytest.approx(change, abs=1e-5)
    assert "adaptive" in run("sweep", *how, "--adaptive").out


def test_an_adaptive_lam_needs_two_texts_and_documents(search):
    sweep = ["sweep", *search, "--text", "validation.txt", "--adaptive", "--k", 4]
    ran = run(*sweep)
    assert ran.code == 1
    assert "--test-text" in ran.err
    ran = run(*sweep, "--test-text", "test.txt")  # each file is one document
    assert ran.code == 1
    assert "are of one document" in ran.err


def test_sweep_without_a_test_text_reports_nothing(held_out):
    found = run("sweep", *held_out, "--k", 4, "--lam", "0.1", "--json").json
    assert found["test"] is None
    assert "best" in run("sweep", *held_out, "--k", 4, "--lam", "0.1").out


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("0:1:0.05", float, [i / 20 for i in range(21)]),
        ("0:0.3:0.1", float, [0, 0.1, 0.2, 0.3]),
        ("0:1:0.3", float, [0, 0.3, 0.6, 0.9]),
        ("1,10,100", float, [1, 10, 100]),
        ("0.5", float, [0.5]),
        ("8,64,1024", int, [8, 64, 1024]),
        ("1:9:4,9,64", int, [1, 5, 9, 64]),
    ],
)
def test_lists_and_ranges(text, kind, expected):
    assert numbers("--x", text, kind) == expected
    assert all(type(number) is kind for number in numbers("--x", text, kind))


def test_cases(held_out, tmp_path):
    mixture = "--k 8 --lam 0.3 --temperature 2 --top 6".split()
    ran = run("cases", *held_out, *mixture, "--jsonl", tmp_path / "c.jsonl", "--json")
    lines = (tmp_path / "c.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert ran.json["cases"] == records
    assert len(records) == 6
    tokenizer = AutoTokenizer.from_pretrained("model")
    gains = []
    for record in records:
        assert list(record) == CASE_KEYS
        neighbors = record["neighbors"]
        assert list(neighbors) == ["labels", "values", "distance", "softmax", "contexts"]
        assert {len(column) for column in neighbors.values()} == {8}
        assert neighbors["distance"] == sorted(neighbors["distance"])
        assert sum(neighbors["softmax"]) == pytest.approx(1)
        assert neighbors["labels"] == [tokenizer.decode([t]) for t in neighbors["values"]]
        mixed = 0.3 * record["knn_probability"] + 0.7 * record["lm_probability"]
        of_label = zip(neighbors["labels"], neighbors["softmax"], strict=True)
        shares = sum(share for label, share in of_label if label == record["label"])
        if "\ufffd" not in record["label"]:  # halves of letters look alike
            assert record["knn_probability"] == pytest.approx(shares)
            assert dict(record["lm+knn"]).get(record["label"], mixed) == pytest.approx(mixed)
        assert record["knn_lm_percent"] == pytest.approx(100 * mixed)
        gains.append(mixed / record["lm_probability"])
    assert gains == sorted(gains, reverse=True)
    hurt = run("cases", *held_out, *mixture, "--sort", "hurt", "--json").json["cases"]
    assert all(r["knn_lm_percent"] <= 100 * r["lm_probability"] for r in hurt)
    table = run("cases", *held_out, *mixture, "--sort", "position").out
    assert len(table.splitlines()) == 7


def test_generate(search):
    args = ["generate", *search, "--prompt", "The river", "--max-new-tokens", 6]
    found = run(*args, "--lam", 0, "--json").json
    tokenizer = AutoTokenizer.from_pretrained("model")
    tokens = tokenizer("The river", return_tensors="pt", add_special_tokens=False)
    model = AutoModelForCausalLM.from_pretrained("model")
    greedy = model.generate(**tokens, max_new_tokens=6, do_sample=False)
    expected = tokenizer.decode(greedy[0], skip_special_tokens=True)
    assert found["prompt"] + found["continuation"] == expected
    assert run(*args, "--lam", 0).out == expected + "\n"
    drawn = [run(*args, "--sample", "--seed", seed).out for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_plan():
    found = run(
        "plan", "--tokens", 107_274_239, "--dim", 768, "--factory", "IVF64,PQ64", "--json"
    ).json
    assert found["keys_bytes"] == 107_274_239 * 768 * 2
    assert found["values_bytes"] == 107_274_239 * 4
    codes = run("plan", "--tokens", 107_274_239, "--dim", 768, "--json").json
    assert codes["keys"] == {"float16_bytes": 164_773_231_104, "float32_bytes": 329_546_462_208}
    assert [code["factory"] for code in codes["codes"]] == [
        "Flat",
        "IVF4096,SQ8",
        "IVF4096,PQ64",
        "IVF4096,RaBitQ",
    ]
    assert codes["codes"][0]["index_bytes"] == 329_546_462_208
    assert codes["codes"][2]["index_bytes"] / 1e9 == pytest.approx(107.274239 * 72 / 1000, rel=0.01)
    shown = run("plan", "--tokens", 107_274_239, "--dim", 768).out
    assert "164.77 GB" in shown
    assert "329.55 GB" in shown
    assert "429.10 MB" in shown
    assert re.search(r"IVF4096,PQ64 +7.74 GB +805.31 MB", shown)


# Streams


def test_stdout_holds_one_json_object_and_quiet_is_quiet(held_out):
    ran = run_apart("evaluate", *held_out, "--k", 8, "--json", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("\n") == 1
    assert list(json.loads(ran.out)) == EVALUATE_KEYS


def test_what_libraries_print_is_no_result(held_out, monkeypatch):
    from knnlm.retrieval import Retrieval

    own = Retrieval.run
    monkeypatch.setattr(Retrieval, "run", lambda *a, **o: print("noise") or own(*a, **o))
    ran = run("evaluate", *held_out, "--k", 8, "--json")
    assert list(ran.json) == EVALUATE_KEYS
    assert "noise" in ran.err


def test_quiet_silences_our_bars(monkeypatch):
    monkeypatch.setattr(knnlm.progress, "quiet", False)
    for name in (
        "HF_HUB_VERBOSITY",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_DATASETS_DISABLE_PROGRESS_BARS",
    ):
        monkeypatch.setenv(name, "0")
    run("plan", "--tokens", 8, "--dim", 8)
    assert not knnlm.progress.quiet
    run("plan", "--tokens", 8, "--dim", 8, "--quiet")
    assert knnlm.progress.quiet


# Interruption


def test_interrupted_build_says_so_and_goes_on(work, trained, tmp_path):
    (tmp_path / "long.txt").write_text(make_text(0, 300_000), encoding="utf-8")
    store = tmp_path / "store"
    build = ["build", "--model", "model", "--text", tmp_path / "long.txt", "--out", store]
    # What a shell starts in the background ignores SIGINT, and so does all that it starts.
    process = start(*build, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    until = time.monotonic() + 90
    while not (store / "keys.npy").exists() and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Interrupted. Run the same command again" in err
    assert "Traceback" not in err
    ran = run("inspect", store, "--json")
    assert ran.code == 1
    assert json.loads(ran.out)["complete"] is False
    assert "Run the same command again" in ran.err
    assert run("index", "--datastore", store).code == 1


def test_interrupted_training_names_resume(work, monkeypatch, tmp_path):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("knnlm.training.train_language_model", interrupt)
    ran = run("train", "--text", "train.txt", "--out", tmp_path / "m")
    assert ran.code == 130
    assert "--resume" in ran.err


# Faults


@pytest.mark.parametrize(
    "args",
    ["evaluate --bogus", "nothing", "plan --dim 8", "inspect", "inspect a b", "build --model"],
)
def test_wrong_usage_is_two(args):
    ran = run(*args.split())
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err


BAD = """
build --text nosuch.txt
build --text nosuch/
build --text hf:
build --text ''
build --text factbook
build --text factbook:most
build --text bad/empty-folder
build --text bad/empty.txt
build --text bad/latin1.txt
build --text train.txt --text bad/latin1.txt
build --window 33
build --window 16 --stride 17
build --window 0
build --window -3
build --stride 0
build --window many
build --dtype int8
build --key-layer bogus
build --key-layer ffn_input@9
build --key-layer input:nowhere
build --device tpu
build --precision float8
build --model bad/empty-folder
build --model bad/weights
build --model bad/tokenizer
build --model 'no such model'
build --out bad
build --out model
build --out bad/latin1.txt
build --out store
index --datastore nosuch
index --datastore model
index --datastore bad/store-json
index --datastore bad/store-list
index --datastore bad/store-keys
index --datastore bad/store-values
index --factory garbage
index --factory ''
index --factory PQ7
index --factory IVF0,Flat
index --factory IVF9999,Flat
index --factory IVF99999999999999,Flat
index --metric cosine
index --train-size 0
index --train-size -5
index --train-size 5 --factory IVF16,Flat
index --nprobe 0
index --seed -1
index --out bad
index --out bad/latin1.txt
evaluate --text nosuch.txt
evaluate --text bad/empty.txt
evaluate --index nosuch
evaluate --index model
evaluate --index bad/index-short
evaluate --index bad/index-bytes
evaluate --index bad/index-gone
evaluate --index bad/store-keys
evaluate --model bad/other
evaluate --model bad/weights
evaluate --lam 2
evaluate --lam -0.1
evaluate --lam nan
evaluate --lam much
evaluate --temperature 0
evaluate --temperature -1
evaluate --temperature nan
evaluate --temperature inf
evaluate --k 0
evaluate --k -8
evaluate --k 1.5
evaluate --nprobe 0
evaluate --index bad/store-fields
index --datastore bad/store-fields
evaluate --device cuda:99
sweep --k ''
sweep --k 8.5
sweep --k 0,8
sweep --k 1:8
sweep --lam 0:1
sweep --lam 0:1:0
sweep --lam 1:0:0.1
sweep --lam 0:1:1e-9
sweep --lam 0:2:0.5
sweep --lam 0;1
sweep --temperature 0,1
sweep --temperature -1
sweep --temperature inf
sweep --temperature nan:1:1
sweep --csv nosuch/grid.csv
sweep --csv bad
sweep --figure nosuch/grid.svg
sweep --figure grid.bmp
sweep --test-text nosuch.txt
sweep --seed -1
cases --k 0
cases --top 0
cases --sort best
cases --lam 1.1
cases --temperature 0
cases --jsonl nosuch/cases.jsonl
cases --jsonl bad
generate --prompt ''
generate --max-new-tokens 0
generate --max-new-tokens 32
generate --lam 7
generate --temperature 0
generate --k 0
generate --seed -1
generate --seed 99999999999
train --text nosuch.txt
train --text bad/latin1.txt
train --text bad/short.txt
train --validation-text nosuch.txt
train --out model
train --out bad
train --out bad/latin1.txt
train --layers 0
train --width 30 --heads 4
train --heads -1
train --context 0
train --vocab-size 10
train --steps -1
train --batch-size 0
train --learning-rate 0
train --learning-rate nan
train --device tpu
train --precision float8
train --seed -1
train --resume
plan --tokens 0
plan --tokens -5
plan --tokens many
plan --dim 0
plan --dim 99999999999
plan --dim 7 --factory PQ64
plan --factory garbage
plan --dtype int3
inspect nosuch
inspect bad
inspect bad/empty-folder
inspect bad/latin1.txt
inspect bad/weights
inspect bad/other
inspect bad/index-bit
inspect bad/tokenizer
inspect bad/store-json
inspect bad/store-list
inspect bad/store-keys
inspect bad/store-values
inspect bad/store-bit
inspect bad/store-fields
inspect bad/index-short
inspect bad/index-bytes
inspect bad/index-gone
""".strip().splitlines()

USUAL = {  # what each command gets where the fault gives nothing else
    "build": {"--model": "model", "--text": "train.txt", "--out": "new"},
    "index": {"--datastore": "store", "--out": "new"},
    "evaluate": {"--model": "model", "--index": "store", "--text": "validation.txt", "--k": "8"},
    "generate": {"--model": "model", "--index": "store", "--prompt": "The", "--k": "8"},
    "train": {"--text": "train.txt", "--out": "new"},
    "plan": {"--tokens": "100", "--dim": "8"},
    "inspect": {},
}
USUAL["sweep"] = USUAL["cases"] = USUAL["evaluate"]


@pytest.fixture(scope="module")
def bad(work, indexed):
    """Things that cannot be used: texts, models, datastores, indexes."""
    bad = work / "bad"
    (bad / "empty-folder").mkdir(parents=True)
    (bad / "latin1.txt").write_bytes("café".encode("latin-1"))
    (bad / "empty.txt").write_text(" \n")
    (bad / "short.txt").write_text("Too short.")

    def change(source: str, name: str, file: str, edit) -> None:
        shutil.copytree(work / source, bad / name)
        path = bad / name / file
        path.write_bytes(edit(path.read_bytes()))

    def flip(data: bytes) -> bytes:
        at = len(data) // 2
        return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]

    change("model", "weights", "model.safetensors", lambda data: data[:500])
    change("model", "tokenizer", "tokenizer.json", lambda data: b"{")
    change("model", "other", "model.safetensors", flip)
    change("store", "store-json", "datastore.json", lambda data: data[:40])
    change("store", "store-list", "datastore.json", lambda data: b"[]")
    change("store", "store-fields", "datastore.json", lambda data: b'{"format": 1}')
    change("store", "store-keys", "keys.npy", lambda data: data[:-100])
    change("store", "store-bit", "keys.npy", flip)
    change("store", "store-values", "values.npy", lambda data: data[:-4])
    for name, edit in (
        ("short", lambda data: data[:-1]),
        ("bytes", lambda data: b"x" * len(data)),
        ("gone", lambda data: b""),
        ("bit", flip),
    ):
        change("store/index", f"index-{name}", "index.faiss", edit)
        record = json.loads((bad / f"index-{name}/index.json").read_text())
        record["datastore_path"] = "../../store"
        (bad / f"index-{name}/index.json").write_text(json.dumps(record))
    (bad / "index-gone/index.faiss").unlink()
    return contents(work)


@pytest.fixture
def nothing_new(bad, work):
    """Remove what a test left, so that it fails alone."""
    yield
    for name in sorted(contents(work).keys() - bad.keys(), reverse=True):
        path = work / name
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.usefixtures("nothing_new")
@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_and_changes_nothing(line, bad, work):
    command, *given = shlex.split(line)
    usual = [
        part
        for name, value in USUAL[command].items()
        if name not in given
        for part in (name, value)
    ]
    ran = run(command, *given, *usual)
    assert ran.code == 1, ran
    message = [line for line in ran.err.splitlines() if line and "Loading weights" not in line]
    assert len(message) == 1, message
    assert "Traceback" not in ran.err
    assert message[0].endswith(".")
    assert message[0].count(". ") >= 1, "what is wrong, and what to do"
    if command == "inspect":
        assert "problem" in ran.out
    else:
        assert ran.out == ""
    assert contents(work).keys() == bad.keys()
    if "--out" in given or command in ("build", "index"):
        assert contents(work) == bad


def test_bad_input_in_a_process_of_its_own():
    ran = run_apart("sweep", "--model", "m", "--index", "i", "--text", "t", "--lam", "2")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "λ is 2.0. It is a share: choose one from 0 to 1.\n"


def test_inspect_tells_what_is_wrong_as_json(bad):
    ran = run("inspect", "bad/store-bit", "--json")
    record = json.loads(ran.out)
    assert record["kind"] == "datastore"
    assert record["complete"] is False
    assert "keys.npy is damaged: its checksum" in record["problem"]
    assert json.loads(run("inspect", "bad", "--json").out)["kind"] is None
    assert run("inspect", "--deep", "bad/store-bit").code == 1
    assert run("inspect", "--quick", "bad/store-bit").code == 0  # which reads no key


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "keys.npy"), "Free some"),
        (PermissionError(errno.EACCES, "Permission denied", "keys.npy"), "another path"),
        (
            OSError(errno.EROFS, "Read-only file system", "new"),
            "new stands where one may only read",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", "keys.npy"), "Check the path"),
        (OSError("connection reset"), "connection"),
        (MemoryError("Unable to allocate 3 TiB"), "memory"),
        (ValueError("a library's\nlong story"), "knnlm --help"),
    ],
)
def test_what_the_machine_refuses(work, built, monkeypatch, error, said):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("knnlm.index.Index.build", fail)
    ran = run("index", "--datastore", "store", "--out", "new")
    assert ran.code == 1
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1


def test_our_own_defects_keep_their_traceback(monkeypatch):
    def fail(*args):
        raise ZeroDivisionError

    monkeypatch.setattr("knnlm.planner.plan", fail)
    with pytest.raises(ZeroDivisionError):
        run("plan", "--tokens", 8, "--dim", 8)
