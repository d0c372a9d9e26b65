"""A slow and obvious kNN-LM, written from the papers and the command line's description alone.

NumPy in float64 and Python loops; a GPT-2 written out from its weights. Nothing of ``knnlm`` is
used, so that whatever agrees with this was not wrong twice in the same way.
"""

import math
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoTokenizer


class Pass(NamedTuple):
    """What the model says at each position that has a next token."""

    tokens: list[int]
    keys: np.ndarray
    """``(n - 1, dim)``: the last block's feed-forward input, after its layer norm."""
    log_probs: np.ndarray
    """``(n - 1, V)``: log p_LM over the vocabulary."""


def encode(folder, documents: list[str]) -> list[int]:
    """Return one stream: no special tokens, an end-of-text token after each document."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stream = []
    for document in documents:
        stream.extend(tokenizer.encode(document, add_special_tokens=False))
        stream.append(tokenizer.eos_token_id)
    return stream


def windows(n: int, window: int, stride: int) -> list[tuple[int, int, list[int]]]:
    """Return ``(start, stop, positions given)`` of each window, as the command line describes."""
    if n < window + 1:
        return [(0, n - 1, list(range(n - 1)))]
    result, given = [], set()
    j = 0
    while len(given) < n - 1:
        start = j * stride
        if start + window > n - 1:
            start = n - 1 - window
        positions = [i for i in range(start, start + window) if i not in given]
        result.append((start, start + window, positions))
        given.update(positions)
        j += 1
    return result


def _norm(x, weight, bias, epsilon):
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon) * weight + bias


def _softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def gpt2(config, weights: dict, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return keys and log-probabilities at each of a window's tokens."""
    n, width, heads = len(tokens), config.n_embd, config.n_head
    x = weights["wte.weight"][tokens] + weights["wpe.weight"][:n]
    for layer in range(config.n_layer):
        w = {
            name.removeprefix(f"h.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"h.{layer}.")
        }
        h = _norm(x, w["ln_1.weight"], w["ln_1.bias"], config.layer_norm_epsilon)
        q, k, v = np.split(h @ w["attn.c_attn.weight"] + w["attn.c_attn.bias"], 3, axis=1)
        mixed = np.zeros((n, width))
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            scores = q[:, part] @ k[:, part].T / math.sqrt(width // heads)
            scores[np.triu_indices(n, 1)] = -np.inf  # a token sees none after it
            mixed[:, part] = _softmax(scores) @ v[:, part]
        x = x + mixed @ w["attn.c_proj.weight"] + w["attn.c_proj.bias"]
        key = _norm(x, w["ln_2.weight"], w["ln_2.bias"], config.layer_norm_epsilon)
        h = key @ w["mlp.c_fc.weight"] + w["mlp.c_fc.bias"]
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + h @ w["mlp.c_proj.weight"] + w["mlp.c_proj.bias"]
    x = _norm(x, weights["ln_f.weight"], weights["ln_f.bias"], config.layer_norm_epsilon)
    return key, np.log(_softmax(x @ weights["wte.weight"].T))


def read(folder, documents: list[str], window: int, stride: int) -> Pass:
    """Read documents window by window."""
    config = AutoConfig.from_pretrained(folder)
    weights = {
        name.removeprefix("transformer."): w.astype(np.float64)
        for name, w in load_file(f"{folder}/model.safetensors").items()
    }
    tokens = encode(folder, documents)
    keys, log_probs = [None] * (len(tokens) - 1), [None] * (len(tokens) - 1)
    for start, stop, positions in windows(len(tokens), window, stride):
        window_keys, window_log_probs = gpt2(config, weights, tokens[start:stop])
        for i in positions:
            keys[i] = window_keys[i - start]
            log_probs[i] = window_log_probs[i - start]
    return Pass(tokens, np.array(keys), np.array(log_probs))


def distances(query, keys, metric: str) -> np.ndarray:
    """Return how far each key is from a query: smaller is nearer."""
    if metric == "inner_product":
        return -(keys @ query)
    squared = ((keys - query) ** 2).sum(axis=1)
    return np.sqrt(squared) if metric == "l2" else squared


def nearest(query, keys, metric: str) -> list[tuple[float, int]]:
    """Return all keys as ``(distance, row)``, nearest first."""
    return sorted((float(d), row) for row, d in enumerate(distances(query, keys, metric)))


def knn_probabilities(neighbors, tokens, temperature: float, vocab_size: int) -> list[float]:
    """Return p_kNN over the vocabulary (eq. 2): the token after a neighbor gets its weight."""
    least = min(d for d, _ in neighbors)
    p = [0.0] * vocab_size
    for d, row in neighbors:
        p[tokens[row + 1]] += math.exp(-(d - least) / temperature)
    total = sum(p)
    return [weight / total for weight in p]


def perplexity(
    ranked: list[list[tuple[float, int]]],
    store: Pass,
    test: Pass,
    k: int,
    lam: float,
    temperature: float,
) -> float:
    """Return the mixture's perplexity (eq. 3); ``ranked`` has :func:`nearest` of each test key."""
    total = 0.0
    for i, target in enumerate(test.tokens[1:]):
        p_lm = math.exp(test.log_probs[i][target])
        vocab_size = len(test.log_probs[i])
        p_knn = knn_probabilities(ranked[i][:k], store.tokens, temperature, vocab_size)[target]
        total += math.log(lam * p_knn + (1 - lam) * p_lm)
    return math.exp(-total / (len(test.tokens) - 1))
