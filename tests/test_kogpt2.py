"""KoGPT2 at its full size, from a folder laid out as its repository is; the weights are random."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

from knnlm.datastore import Datastore
from knnlm.index import Index
from knnlm.language_model import LanguageModel
from knnlm.retrieval import Retrieval
from knnlm.text import Document, Split

SPECIAL = ["<s>", "</s>", "<usr>", "<pad>", "<sys>", "<unk>", "<mask>"]
WORDS = (
    "한국어 위키백과 사람이 도시에서 강을 따라 걸었다 서울은 대한민국의 수도이다 1988년"
).split()
CONFIG = {  # of skt/kogpt2-base-v2: no tokenizer_class, and a beginning that is not used
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "activation_function": "gelu_new",
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "n_ctx": 1024,
    "n_positions": 1024,
    "vocab_size": 51200,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 3,
}


def sentences(seed: int, words: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words)) + "."


@pytest.fixture(scope="module")
def kogpt2(tmp_path_factory) -> LanguageModel:
    """The model, loaded by a folder's name: config.json, tokenizer.json and weights, no more."""
    folder = tmp_path_factory.mktemp("skt") / "kogpt2-base-v2"
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**CONFIG)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").unlink()
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([sentences(i, 50) for i in range(40)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return LanguageModel.from_pretrained(folder, device="cpu", precision="float32")


def test_its_tokenizer_cuts_syllables_and_has_its_special_tokens(kogpt2):
    tokenizer = kogpt2.tokenizer
    roles = ("bos", "eos", "unk", "pad", "mask")
    special = {role: getattr(tokenizer, f"{role}_token") for role in roles}
    assert special == {
        "bos": "</s>",
        "eos": "</s>",
        "unk": "<unk>",
        "pad": "<pad>",
        "mask": "<mask>",
    }
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 1
    assert len(tokenizer) <= kogpt2.vocab_size == 51200
    sentence = "서울은 한국어 도시에서"
    ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).strip() == sentence
    assert 2 < len(ids) < len(sentence.encode()) / 2  # GPT-2's class would know none of its bytes
    assert all("\ufffd" not in tokenizer.decode([i]) for i in ids)


def test_its_keys_are_the_ffn_input_of_block_12_in_windows_of_1024(kogpt2, tmp_path):
    assert sum(p.numel() for p in kogpt2.model.parameters()) == pytest.approx(125e6, rel=0.01)
    assert kogpt2.context == 1024
    documents = [Document("하나", sentences(1, 800)), Document("둘", sentences(2, 450))]
    text = Split("ko", lambda: documents)
    store = Datastore.build(tmp_path / "store", kogpt2, text, dtype="float32")
    assert store.dim == 768
    assert (store.record["window"], store.record["stride"]) == (1024, 512)
    tokens = kogpt2.encode(text).tokens
    assert len(store) == len(tokens) - 1 > 1024 + 100
    assert np.array_equal(store.values, tokens[1:])
    heard = []
    norm = kogpt2.model.transformer.h[11].ln_2
    hook = norm.register_forward_hook(lambda module, inputs, output: heard.append(output[0]))
    with torch.inference_mode():
        for start in (0, len(store) - 1024):  # the first window, and the last, moved back
            kogpt2.model(torch.from_numpy(tokens[None, start : start + 1024].astype(np.int64)))
    hook.remove()
    first, last = (keys.numpy() for keys in heard)
    np.testing.assert_allclose(store.keys[:1024], first, rtol=1e-3, atol=1e-4)
    given = min(512, len(store) - 1024)
    np.testing.assert_allclose(store.keys[-given:], last[-given:], rtol=1e-3, atol=1e-4)

    index = Index.build(store, "Flat", metric="l2")
    held_out = Split.of([sentences(3, 60)])
    retrieval = Retrieval.run(kogpt2, index, held_out, 8)
    assert retrieval.perplexity(lam=0) == retrieval.perplexity_lm
    assert retrieval.perplexity(lam=0.1, k=8) < retrieval.perplexity_lm  # which knows nothing
