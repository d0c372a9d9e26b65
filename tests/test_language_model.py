"""Windows in, keys and log-probabilities out: each key layer of each architecture, and its bits."""

import itertools

import numpy as np
import pytest
import torch
import transformers
from conftest import STRIDE, WINDOW, make_text, randomize

from knnlm import language_model
from knnlm.device import choose_device, choose_precision
from knnlm.errors import InputError
from knnlm.key_layers import ARCHITECTURES, KeyLayer, find_module
from knnlm.language_model import LanguageModel
from knnlm.text import Split
from knnlm.tokens import train_tokenizer

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 320}
LLAMA = {
    **SMALL,
    "intermediate_size": 48,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GEMMA = {**LLAMA, "head_dim": 16}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 320, "n_positions": 64}
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
NEOX = {**SMALL, **ENDS, "intermediate_size": 48, "max_position_embeddings": 64}
OPT = {
    **{**SMALL, **ENDS},
    "ffn_dim": 48,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
    "pad_token_id": 1,
}
NEO = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "attention_types": [[["global", "local"], 1]],
    "vocab_size": 320,
    "max_position_embeddings": 64,
    "window_size": 8,
    **ENDS,
}
# Architecture, configuration; then, in its last block: attention, the feed-forward layer, and the
# norm, if any, between attention and the sum to which it is added.
MODELS = {
    "gpt2": ("gpt2", {**GPT2, **ENDS}, "transformer.h.1.attn", "transformer.h.1.mlp", None),
    "gpt_neo": (
        "gpt_neo",
        NEO,
        "transformer.h.1.attn",
        "transformer.h.1.mlp",
        None,
    ),
    "gpt_neox": ("gpt_neox", NEOX, "gpt_neox.layers.1.attention", "gpt_neox.layers.1.mlp", None),
    "gpt_neox, sequential": (
        "gpt_neox",
        {**NEOX, "use_parallel_residual": False},
        "gpt_neox.layers.1.attention",
        "gpt_neox.layers.1.mlp",
        None,
    ),
    "opt": ("opt", OPT, "model.decoder.layers.1.self_attn", "model.decoder.layers.1.fc1", None),
    **{
        name: (name, config, "model.layers.1.self_attn", "model.layers.1.mlp", None)
        for name, config in {
            "llama": LLAMA,
            "mistral": {**LLAMA, "sliding_window": 8},
            "qwen2": LLAMA,
            "qwen3": GEMMA,
            "smollm3": LLAMA,
            "gemma": GEMMA,
        }.items()
    },
    **{
        name: (
            name,
            {**GEMMA, "sliding_window": 8},
            "model.layers.1.self_attn",
            "model.layers.1.mlp",
            "model.layers.1.post_attention_layernorm",
        )
        for name in ("gemma2", "gemma3_text")
    },
}


def make_model(architecture: str, **config):
    model_config = transformers.AutoConfig.for_model(architecture, **config)
    return randomize(transformers.AutoModelForCausalLM.from_config(model_config))


@pytest.fixture(scope="module", params=MODELS)
def case(request, make_lm):
    """A model wrapped, and what the case's name stands for in MODELS."""
    architecture, config, attention, feed_forward, norm = MODELS[request.param]
    lm = make_lm(make_model(architecture, **config), name=request.param)
    return lm, attention, feed_forward, norm


def first(value):
    return value[0] if isinstance(value, tuple) else value


def watched(model, tokens, inputs=(), outputs=()):
    """Run a model by itself; return its output and what went into and came out of modules."""
    seen = {}
    handles = []
    for path in inputs:
        handles.append(
            model.get_submodule(path).register_forward_pre_hook(
                lambda m, args, kwargs, path=path: seen.update(
                    {f"into {path}": args[0] if args else kwargs["hidden_states"]}
                ),
                with_kwargs=True,
            )
        )
    for path in outputs:
        handles.append(
            model.get_submodule(path).register_forward_hook(
                lambda m, args, out, path=path: seen.update({f"out of {path}": first(out)})
            )
        )
    with torch.no_grad():
        output = model(torch.tensor(tokens)[None], output_hidden_states=True, use_cache=False)
    for handle in handles:
        handle.remove()
    return output, {name: value.reshape(-1, value.shape[-1]) for name, value in seen.items()}


def only_reading(lm, stream, **options):
    (reading,) = lm.read(stream, **options)
    return reading


def test_the_table_of_architectures_is_covered():
    assert {architecture for architecture, *_ in MODELS.values()} == set(ARCHITECTURES)


def test_each_key_layer_is_what_its_name_says(case):
    """Against hooks on other modules, and the hidden states that transformers reports."""
    lm, attention, feed_forward, norm = case
    stream = lm.encode(Split.of([make_text(1, 6)]))
    reading = only_reading(lm, stream, window=64, key_layers=[*KeyLayer, "block_output@0"])
    assert len(stream) > 12
    assert (reading.first, reading.stop) == (0, len(stream) - 1)
    assert reading.log_probs is None

    head = next(n for n, m in lm.model.named_modules() if m is lm.model.get_output_embeddings())
    added = norm or attention
    output, seen = watched(
        lm.model, stream.tokens[:-1].tolist(), [attention, feed_forward, head], [added]
    )
    hidden = [state[0] for state in output.hidden_states]
    assert len(hidden) == 3
    parallel = getattr(lm.model.config, "use_parallel_residual", False)
    expected = {
        "attention_input": seen[f"into {attention}"],
        "attention_input_before_norm": hidden[1],
        "ffn_input": seen[f"into {feed_forward}"],
        "ffn_input_before_norm": hidden[1] + (0 if parallel else seen[f"out of {added}"]),
        "block_output@0": hidden[1],
        "final_norm_output": seen[f"into {head}"],
    }
    for layer, vectors in expected.items():
        found = reading.keys[layer]
        assert found.shape == (len(stream) - 1, 32)
        np.testing.assert_allclose(found, vectors.numpy(), rtol=1e-5, atol=1e-5, err_msg=layer)
    np.testing.assert_allclose(hidden[2].numpy(), reading.keys["final_norm_output"], atol=1e-5)

    # The last block's output, normalized, is the final norm's.
    final_norm, _ = find_module(lm.model, "final_norm_output")
    with torch.no_grad():
        normalized = final_norm(torch.from_numpy(reading.keys["block_output"]))
    np.testing.assert_allclose(normalized.numpy(), expected["final_norm_output"], atol=1e-5)

    different = [reading.keys[str(layer)] for layer in KeyLayer]
    for i, one in enumerate(different):
        for j, other in enumerate(different[:i]):
            same = parallel and {i, j} == {1, 3}  # both parts of a parallel block read its input
            assert np.allclose(one, other) == same


def test_blocks_are_counted_from_both_ends(case):
    lm, *_ = case
    stream = lm.encode(Split.of(["rice and wheat"]))
    layers = ["ffn_input", "ffn_input@1", "ffn_input@-1", "ffn_input@0", "ffn_input@-2"]
    keys = only_reading(lm, stream, window=64, key_layers=layers).keys
    last, by_number, by_minus, zero, minus_two = (keys[layer] for layer in layers)
    assert np.array_equal(last, by_number)
    assert np.array_equal(last, by_minus)
    assert np.array_equal(zero, minus_two)
    assert not np.allclose(last, zero)


def test_stopping_at_the_tap_changes_no_bit_and_log_probs_are_the_models(case):
    lm, *_ = case
    stream = lm.encode(Split.of([make_text(2, 20)]))
    read = {"window": 16, "stride": 7}
    stopped = list(lm.read(stream, **read))
    whole = list(lm.read(stream, **read, log_probs=True))
    assert len(whole) > 1
    for a, b in zip(stopped, whole, strict=True):
        assert a.log_probs is None
        assert a.keys["ffn_input"].tobytes() == b.keys["ffn_input"].tobytes()
    log_probs = np.concatenate([reading.log_probs for reading in whole])
    dense = lm.log_distribution(stream, np.arange(len(stream) - 1), **read)
    assert dense.shape == (len(stream) - 1, lm.vocab_size)
    np.testing.assert_allclose(np.exp(dense.astype(float)).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        log_probs, dense[np.arange(len(dense)), stream.tokens[1:]], rtol=1e-5, atol=1e-4
    )
    with torch.no_grad():  # the first window, by transformers alone
        logits = lm.model(torch.tensor(stream.tokens[None, :16].astype(np.int64))).logits[0]
    np.testing.assert_allclose(
        dense[:16], torch.log_softmax(logits, dim=-1).numpy(), rtol=1e-5, atol=1e-4
    )


def test_a_reading_stops_before_the_logits_and_before_what_follows_the_tap(lm):
    ran = []
    last = lm.model.transformer.h[-1]
    modules = {"mlp": last.mlp, "ln_f": lm.model.transformer.ln_f, "lm_head": lm.model.lm_head}
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in modules.items()
    ]
    stream = lm.encode(Split.of(["rice and wheat"]))
    list(lm.read(stream, key_layers=["ffn_input"]))
    assert ran == []
    list(lm.read(stream, key_layers=["ffn_input", "block_output"]))
    assert ran == ["mlp"]
    list(lm.read(stream, log_probs=True))
    assert ran == ["mlp", "mlp", "ln_f", "lm_head"]
    for handle in handles:
        handle.remove()


def test_no_hook_stays_behind(lm):
    module, _ = find_module(lm.model, "ffn_input")
    readings = lm.read(lm.encode(Split.of([make_text(3, 30)])), window=WINDOW)
    next(readings)
    assert len(module._forward_hooks) == 1
    readings.close()
    assert len(module._forward_hooks) == 0


@pytest.fixture
def small_batches(monkeypatch):
    """Batches of two windows."""
    monkeypatch.setattr(language_model, "TOKENS_PER_BATCH", 2 * WINDOW)


@pytest.mark.usefixtures("small_batches")
def test_readings_give_each_position_once_and_start_anywhere_with_the_same_bits(lm):
    stream = lm.encode(Split.of([make_text(5, 60)]))
    read = {"window": WINDOW, "stride": STRIDE, "log_probs": True}
    readings = list(lm.read(stream, **read))
    assert len(readings) > 5
    borders = [(reading.first, reading.stop) for reading in readings]
    assert borders[0][0] == 0
    assert borders[-1][1] == len(stream) - 1
    assert all(a[1] == b[0] for a, b in itertools.pairwise(borders))
    for reading in readings:
        assert len(reading.keys["ffn_input"]) == reading.stop - reading.first
        assert len(reading.log_probs) == reading.stop - reading.first
    for start in (1, WINDOW, borders[2][0], borders[2][0] + 1, borders[-1][0], len(stream) - 2):
        later = list(lm.read(stream, **read, start=start))
        expected = [reading for reading in readings if reading.stop > start]
        assert later[0].first <= start < later[0].stop
        for a, b in zip(later, expected, strict=True):
            assert (a.first, a.stop) == (b.first, b.stop)
            assert a.keys["ffn_input"].tobytes() == b.keys["ffn_input"].tobytes()
            assert a.log_probs.tobytes() == b.log_probs.tobytes()
    assert list(lm.read(stream, **read, start=len(stream) - 1)) == []


def test_the_batch_size_changes_no_number(lm, monkeypatch):
    stream = lm.encode(Split.of([make_text(5, 60)]))

    def keys_and_log_probs():
        readings = list(lm.read(stream, window=WINDOW, stride=STRIDE, log_probs=True))
        keys = np.concatenate([r.keys["ffn_input"] for r in readings])
        return keys, np.concatenate([r.log_probs for r in readings])

    expected = keys_and_log_probs()
    for name, size in (("TOKENS_PER_BATCH", WINDOW), ("LOGITS_PER_BATCH", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(language_model, name, size)
            for a, b in zip(keys_and_log_probs(), expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_models_context_is_the_widest_window(lm):
    assert lm.context == 32
    assert lm.windows(100) == lm.windows(100, 32, 16)
    with pytest.raises(InputError, match=r"window of 33 .* the 32 that"):
        lm.windows(100, 33)


def test_a_module_can_be_named_by_its_path(lm):
    stream = lm.encode(Split.of(["rice and wheat"]))
    same = {
        "input:transformer.h.1.mlp": "ffn_input",
        "output:transformer.h.1.ln_2": "ffn_input",
        "input:transformer.h.1.attn": "attention_input",
        "output:transformer.h.0": "block_output@0",
        "input:transformer.ln_f": "block_output",
    }
    keys = only_reading(lm, stream, key_layers=[*same, *same.values()]).keys
    for path, layer in same.items():
        assert np.array_equal(keys[path], keys[layer]), path
    wide = only_reading(lm, stream, key_layers=["output:transformer.h.1.mlp.c_fc"]).keys
    assert wide["output:transformer.h.1.mlp.c_fc"].shape == (len(stream) - 1, 128)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("ffn", "no key layer 'ffn'.*ffn_input, .*input:PATH"),
        ("ffn_input@2", "block '2' of 2.*0 to 1"),
        ("ffn_input@last", "block 'last' of 2"),
        ("input:transformer.h.7.mlp", "no module 'transformer.h.7.mlp'.*named_modules"),
    ],
)
def test_a_key_layer_that_does_not_exist_is_refused(lm, layer, message):
    with pytest.raises(InputError, match=message):
        find_module(lm.model, layer)


def test_an_unknown_architecture_is_told_how_to_name_a_module(make_lm):
    lm = make_lm(make_model("bloom", hidden_size=32, n_layer=2, n_head=2, vocab_size=320))
    stream = lm.encode(Split.of(["rice and wheat"]))
    with pytest.raises(InputError, match=r"bloom is an unknown.*key_layer='input:"):
        next(lm.read(stream))
    path = "transformer.h.1.mlp"
    keys = only_reading(lm, stream, key_layers=[f"input:{path}"], log_probs=True).keys
    _, seen = watched(lm.model, stream.tokens[:-1].tolist(), [path])
    np.testing.assert_allclose(keys[f"input:{path}"], seen[f"into {path}"].numpy(), atol=1e-5)


def test_a_post_norm_opt_is_refused_rather_than_read_in_the_wrong_place(make_lm):
    lm = make_lm(make_model("opt", **OPT, do_layer_norm_before=False))
    with pytest.raises(InputError, match=r"opt is a post-norm.*key_layer='input:"):
        find_module(lm.model, "ffn_input")


def test_a_saved_model_is_the_same_model(make_lm, model_folder, lm):
    made = make_lm()
    assert made.fingerprint == lm.fingerprint
    assert made.tokenizer_fingerprint == lm.tokenizer_fingerprint
    assert lm.name == str(model_folder)
    assert make_lm(seed=1).fingerprint != lm.fingerprint
    nudged = make_lm()
    with torch.no_grad():
        nudged.model.transformer.ln_f.bias[3] += 1e-6
    assert nudged.fingerprint != lm.fingerprint
    for change in ({"n_head": 1}, {"activation_function": "relu"}, {"layer_norm_epsilon": 1e-3}):
        config = transformers.GPT2Config(**{**lm.model.config.to_dict(), **change})
        other = transformers.GPT2LMHeadModel(config)
        other.load_state_dict(lm.model.state_dict())
        assert LanguageModel(other, lm.tokenizer).fingerprint != lm.fingerprint, change
    assert lm.vocab_size == 320


def test_a_module_without_a_vector_for_each_token_is_refused(lm):
    stream = lm.encode(Split.of(["rice and wheat " * 9]))
    with pytest.raises(InputError, match=r"input:lm_head gives .* one for each token"):
        next(lm.read(stream, key_layers=["input:lm_head"]))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json is missing"):
        LanguageModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="cannot be loaded"):
        LanguageModel.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="cannot be loaded"):
        LanguageModel.from_pretrained(tmp_path / "no" / "such" / "folder")


def test_a_stream_of_another_tokenizer_is_refused(lm, text):
    stream = lm.encode(text)
    assert lm.encode(stream) is stream
    other = train_tokenizer(text, 300)
    foreign = LanguageModel(lm.model, other, "other", "cpu", "float32").encode(text)
    with pytest.raises(InputError, match=f"{foreign.tokenizer}.*{lm.tokenizer_fingerprint}"):
        lm.encode(foreign)


def test_bfloat16_is_near_float32_and_keys_come_as_float32(lm, text):
    half = LanguageModel(lm.model, lm.tokenizer, "half", "cpu", "bfloat16")
    assert half.precision == "bfloat16"
    stream = lm.encode(Split.of([make_text(4, 5)]))
    a, b = (only_reading(x, stream, window=32, log_probs=True) for x in (lm, half))
    assert b.keys["ffn_input"].dtype == np.float32
    assert b.log_probs.dtype == np.float32
    np.testing.assert_allclose(a.keys["ffn_input"], b.keys["ffn_input"], atol=0.25)
    assert not np.array_equal(a.keys["ffn_input"], b.keys["ffn_input"])


def test_devices_and_precisions_that_do_not_exist_are_refused():
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_precision("float32", cpu) == torch.float32
    assert choose_precision("auto", cpu) in (torch.float32, torch.bfloat16)
    with pytest.raises(InputError, match="no device 'abacus'"):
        choose_device("abacus")
    with pytest.raises(InputError, match=r"no precision 'int4'.*float32"):
        choose_precision("int4", cpu)
