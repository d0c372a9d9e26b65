"""How far each step is from what the machine can do, as ratios measured in one run.

    python benchmarks/pipeline.py

A ratio of times on one machine holds on others where the seconds do not. The model has the shape of
the book's with weights as initialized, which cost the same time; only a sweep costs more with
trained ones, whose neighbors have the target more often (chapter 4 times that). It takes about a
minute on two idle cores.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["KNNLM_QUIET"] = "1"

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import knnlm

TOKENS, CONTEXT, K = 12_288, 256, 1024
LAM, TEMPERATURES, KS = np.linspace(0, 1, 21), np.geomspace(1, 128, 10), (1, 8, 64, 256, 512, K)


def seconds(*tasks: Callable[[], object], repeats: int = 3) -> list[float]:
    """Return the shortest time of each task; they take turns, so that a slow moment meets all."""
    times = np.empty((repeats, len(tasks)))
    for task in tasks:
        task()
    for row in times:
        for j, task in enumerate(tasks):
            begun = time.perf_counter()
            task()
            row[j] = time.perf_counter() - begun
    return times.min(axis=0).tolist()


def model_and_text() -> tuple[knnlm.LanguageModel, knnlm.TokenStream]:
    """Return a model of the book's shape, and a stream of real text."""
    speeches = list(knnlm.load_corpus("sotu").test)
    tokenizer = knnlm.train_tokenizer(knnlm.Split.of(speeches), 4096)
    torch.manual_seed(0)
    shape = {"n_positions": CONTEXT, "n_embd": 256, "n_layer": 4, "n_head": 4}
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=4096, bos_token_id=end, eos_token_id=end, loss_type="ForCausalLM", **shape
    )
    lm = knnlm.LanguageModel(GPT2LMHeadModel(config), tokenizer)
    some, characters = [], 0
    for speech in speeches:
        if characters < 6 * TOKENS:
            some.append(speech)
            characters += len(speech.text)
    stream = lm.encode(some)
    short = stream.tokens[: TOKENS + 1]
    keep = stream.document_starts < len(short)
    names = tuple(np.asarray(stream.document_names)[keep].tolist())
    return lm, knnlm.TokenStream(
        short, stream.document_starts[keep], names, 1, characters, stream.tokenizer
    )


def forward_passes(lm: knnlm.LanguageModel, stream: knnlm.TokenStream) -> list[tuple]:
    """Compare reading keys with transformers alone, and with logits and without."""
    windows = torch.from_numpy(stream.tokens[:TOKENS].astype(np.int64)).view(-1, 16, CONTEXT)

    @torch.inference_mode()
    def bare():
        with torch.autocast("cpu", lm.dtype, enabled=lm.dtype != torch.float32):
            for batch in windows.to(lm.device):
                lm.model.transformer(batch, use_cache=False)

    def read(log_probs):
        for _ in lm.read(stream, window=CONTEXT, stride=CONTEXT, log_probs=log_probs):
            pass

    alone, keys, logits = seconds(bare, lambda: read(False), lambda: read(True))
    rate = TOKENS / keys
    return [
        ("keys: read() / transformers' body alone", keys / alone, f"{rate:,.0f} tokens/s"),
        ("with log p_LM / keys only", logits / keys, f"vocabulary {lm.vocab_size:,}"),
    ]


def flat_search(index: knnlm.Index, queries: np.ndarray) -> tuple:
    """Compare exact search with the product of queries and keys, which it cannot do without."""
    keys = torch.from_numpy(np.asarray(index.datastore.keys, dtype=np.float32).T.copy())
    rows = torch.from_numpy(queries)
    search, product = seconds(lambda: index.search(queries, 32), lambda: rows @ keys)
    note = f"{len(queries):,} queries, {keys.shape[1]:,} keys"
    return ("Flat search, k = 32 / matrix product", search / product, note)


def sweeping(lm: knnlm.LanguageModel, index: knnlm.Index, stream: knnlm.TokenStream) -> list[tuple]:
    """Compare a sweep with the pass it is made from, and one number with a whole vocabulary."""
    retrieval = knnlm.Retrieval.run(lm, index, stream, K)
    (sweep,) = seconds(lambda: retrieval.sweep(LAM, TEMPERATURES, KS), repeats=1)
    rows = slice(0, 1024)
    distances, ids = (np.asarray(x[rows]) for x in retrieval.neighbors)
    values, targets = index.datastore.values_of(ids), retrieval.targets[rows]

    def scatter():
        p = knnlm.knn_distribution(distances, values, lm.vocab_size, 10.0)
        return np.log(np.maximum(p[np.arange(len(p)), targets], 1e-30))

    target, dense = seconds(
        lambda: knnlm.knn_log_prob_grid(distances, values == targets[:, None], 10.0, K), scatter
    )
    settings = len(LAM) * len(TEMPERATURES) * len(KS)
    return [
        ("sweep / retrieval pass", sweep / retrieval.seconds, f"{settings:,} settings, k = {K}"),
        ("p_kNN of the target / of the vocabulary", target / dense, f"{len(values):,} tokens"),
    ]


def main() -> None:
    lm, stream = model_and_text()
    rows = forward_passes(lm, stream)
    with tempfile.TemporaryDirectory() as folder:
        store = knnlm.Datastore.build(Path(folder) / "store", lm, stream)
        flat = knnlm.Index.build(store, "Flat")
        queries = np.asarray(store.keys[::6], dtype=np.float32)
        rows.append(flat_search(flat, queries))
        fast = knnlm.Index.build(store, "IVF64,RaBitQfs", nprobe=8, path=Path(folder) / "fast")
        short = knnlm.TokenStream(
            stream.tokens[:6145], stream.document_starts[:1], ("text",), 1, 1, stream.tokenizer
        )
        rows += sweeping(lm, fast, short)
    print(f"{'ratio of times':42}{'':>8}  {lm.device.type}, {lm.precision}")
    for name, ratio, note in rows:
        print(f"{name:42}{ratio:8.2f}  {note}")


if __name__ == "__main__":
    main()
