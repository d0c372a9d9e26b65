"""What the tests share: a tiny GPT-2 with random weights, some text, its datastore and index."""

import os

os.environ["KNNLM_QUIET"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import random

import faiss
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from knnlm.datastore import Datastore
from knnlm.index import Index
from knnlm.language_model import LanguageModel
from knnlm.retrieval import Retrieval
from knnlm.text import Document, Split
from knnlm.tokens import train_tokenizer

torch.set_num_threads(1)
faiss.omp_set_num_threads(1)

WINDOW, STRIDE = 24, 10
WORDS = (
    "the a of and river mountain border export import copper wheat rice capital population "
    "climate tropical northern southern coast harbor railway railroad parliament president "
    "elected in 1990 2023 est. km has with is was few many, large small: 한국 서울 café note"
).split()


def make_text(seed: int, words: int) -> str:
    """Return sentences of random words: the same for the same seed, few of them alike."""
    choose = random.Random(seed)
    text = " ".join(choose.choice(WORDS) for _ in range(words))
    return text.capitalize() + ".\nEnd"


def randomize(model: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> torch.nn.Module:
    """Draw every weight, norms and biases too, so that no two places in the model look alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
            weight += float(weight.ndim == 1) * (weight > -5)  # norms: around one
    return model.eval()


# A run of the smallest shape, for what is about recipes and not about models.
TINY_RECIPE = {
    **{"corpus": "tiny", "vocab_size": 300, "layers": 1, "width": 16, "heads": 2, "context": 32},
    **{"steps": 3, "batch_size": 2, "window": 32, "stride": 16, "factory": "Flat", "k": 4},
}


def tiny_documents() -> list[Document]:
    """Return the twenty documents of the corpus that goes with it."""
    return [Document(f"d{i}", make_text(i, 60)) for i in range(20)]


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    """The tiny run, with a corpus and a cache of its own."""
    from knnlm.book import recipes
    from knnlm.corpora import Corpus

    corpus = Corpus("tiny", "t", "none", "here", "nobody", tiny_documents)
    monkeypatch.setenv("KNNLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(recipes, "load_corpus", lambda name: corpus)
    return recipes.Recipe(**TINY_RECIPE)


@pytest.fixture(scope="session")
def text() -> Split:
    """Six documents for the datastore."""
    return Split("tiny:train", lambda: [Document(f"d{i}", make_text(i, 120)) for i in range(6)])


@pytest.fixture(scope="session")
def held_out() -> Split:
    """Three documents for evaluation."""
    return Split("tiny:test", lambda: [Document(f"t{i}", make_text(100 + i, 35)) for i in range(3)])


@pytest.fixture(scope="session")
def tokenizer(text):
    """A byte-level tokenizer of 320 tokens."""
    return train_tokenizer(text, 320)


@pytest.fixture(scope="session")
def make_lm(tokenizer):
    """A function that wraps a transformers model, or makes a tiny GPT-2 from a seed."""

    def make(model=None, seed: int = 0, name: str = "tiny") -> LanguageModel:
        if model is None:
            config = GPT2Config(
                vocab_size=len(tokenizer),
                n_positions=32,
                n_embd=32,
                n_layer=2,
                n_head=2,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            model = randomize(GPT2LMHeadModel(config), seed)
        return LanguageModel(model, tokenizer, name, device="cpu", precision="float32")

    return make


@pytest.fixture(scope="session")
def model_folder(make_lm, tmp_path_factory):
    """The tiny GPT-2 and its tokenizer, saved."""
    folder = tmp_path_factory.mktemp("model")
    lm = make_lm()
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lm(model_folder) -> LanguageModel:
    """The tiny GPT-2, opened from its folder."""
    return LanguageModel.from_pretrained(model_folder, device="cpu", precision="float32")


@pytest.fixture(scope="session")
def store(lm, text, tmp_path_factory) -> Datastore:
    """A float32 datastore of the six documents; not to be written to."""
    path = tmp_path_factory.mktemp("shared") / "store"
    return Datastore.build(path, lm, text, window=WINDOW, stride=STRIDE, dtype="float32")


@pytest.fixture(scope="session")
def flat(store) -> dict[str, Index]:
    """An exact index for each metric."""
    return {
        metric: Index.build(store, "Flat", metric=metric, path=store.path.parent / metric)
        for metric in ("l2_squared", "l2", "inner_product")
    }


@pytest.fixture(scope="session")
def retrieval(lm, flat, held_out, store) -> Retrieval:
    """32 neighbors of each held-out token, by squared distance."""
    return Retrieval.run(lm, flat["l2_squared"], held_out, 32, path=store.path.parent / "retrieval")
