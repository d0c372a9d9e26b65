"""Commands that make something, and say what it costs and what it is."""

import math
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from knnlm.cli.console import Result, command, readable, table
from knnlm.cli.options import Device, Model, MoreTexts, Precision, Seed, Split, Texts
from knnlm.errors import InputError


@command
def train(
    text: Texts,
    out: Annotated[Path, Option(help="A new folder for the model.")],
    validation_text: MoreTexts = None,
    split_documents: Split = False,
    layers: Annotated[int, Option(min=1, help="Transformer blocks.")] = 4,
    width: Annotated[int, Option(min=1, help="Width of a representation.")] = 256,
    heads: Annotated[int, Option(min=1, help="Attention heads; they share the width.")] = 4,
    context: Annotated[int, Option(min=2, help="Tokens read at once.")] = 256,
    vocab_size: Annotated[int, Option(min=257, help="Tokens of the tokenizer.")] = 4096,
    alphabet: Annotated[
        str, Option(help="bytes, or characters: for scripts such as Hangul.")
    ] = "bytes",
    steps: Annotated[int, Option(min=1, help="Updates.")] = 650,
    batch_size: Annotated[int, Option(min=1, help="Contexts an update.")] = 8,
    learning_rate: Annotated[float, Option(help="The highest.")] = 8e-3,
    resume: Annotated[bool, Option("--resume", help="Go on with an interrupted training.")] = False,
    device: Device = "auto",
    precision: Precision = "auto",
    seed: Seed = 0,
) -> Result:
    """Train a tokenizer and a small GPT-2-shaped model from scratch."""
    if not 0 < learning_rate < math.inf:
        raise InputError(f"--learning-rate is {learning_rate}. Give a number above 0.")
    from knnlm.inputs import load_text
    from knnlm.inspection import training_summary
    from knnlm.training import train_language_model

    train_language_model(
        load_text(*text, split_documents=split_documents),
        out,
        validation=load_text(*validation_text, split_documents=split_documents)
        if validation_text
        else None,
        layers=layers,
        width=width,
        heads=heads,
        context=context,
        vocab_size=vocab_size,
        alphabet=alphabet,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        precision=precision,
        device=device,
        seed=seed,
        resume=resume,
    )
    record = training_summary(out) | {"model": str(out)}
    return record, record


@command
def plan(
    tokens: Annotated[int, Option(min=1, help="Tokens of text: a key each.")],
    dim: Annotated[int, Option(min=1, max=1 << 16, help="Width of a key: of the model.")],
    factory: Annotated[
        str | None, Option(help="FAISS's factory string; else Flat, beside some smaller ones.")
    ] = None,
    dtype: Annotated[str, Option(help="float16 or float32.")] = "float16",
) -> Result:
    """Say what a datastore and its index will cost: bytes on disk, memory, time."""
    from knnlm import planner

    record = planner.plan(tokens, dim, factory or "Flat", dtype)
    sizes = {name: tokens * dim * size for name, size in planner.KEY_BYTES.items()}
    record["keys"] = {f"{name}_bytes": size for name, size in sizes.items()}
    if factory:
        return record, record
    names = ("factory", "index_bytes", "train_bytes", "assign_hours")
    codes = [
        {name: code[name] for name in names}
        for code in planner.plan_codes(tokens, dim, record["gflops"])
    ]
    columns = ["index", "on disk", "memory to train it", "hours to assign keys"]
    rows = [[readable(value, name) for name, value in code.items()] for code in codes]
    return record | {"codes": codes}, [record, "", table(columns, rows)]


@command
def build(
    model: Model,
    text: Texts,
    out: Annotated[Path, Option(help="The datastore's folder; a build that was stopped goes on.")],
    split_documents: Split = False,
    window: Annotated[int | None, Option(min=1, help="Tokens read at once; all it can.")] = None,
    stride: Annotated[int | None, Option(min=1, help="New ones a window; half of it.")] = None,
    key_layer: Annotated[
        str, Option(help="Of the last block; ffn_input@3: of block 3.")
    ] = "ffn_input",
    dtype: Annotated[str, Option(help="float16 or float32.")] = "float16",
    device: Device = "auto",
    precision: Precision = "auto",
) -> Result:
    """Build a datastore: a (key, value) pair for each token of a text."""
    from knnlm.datastore import Datastore
    from knnlm.inputs import load_text
    from knnlm.inspection import describe
    from knnlm.language_model import LanguageModel

    documents = load_text(*text, split_documents=split_documents)
    lm = LanguageModel.from_pretrained(model, device=device, precision=precision)
    Datastore.build(
        out, lm, documents, window=window, stride=stride, key_layer=key_layer, dtype=dtype
    )
    record = describe(out, deep=False)
    return record, record


@command
def index(
    datastore: Annotated[Path, Option(help="What knnlm build wrote.")],
    factory: Annotated[str, Option(help="FAISS's: Flat, IVF4096,PQ64, HNSW32, …")] = "Flat",
    train_size: Annotated[int | None, Option(min=1, help="Keys to learn from.")] = None,
    nprobe: Annotated[int, Option(min=1, help="Lists visited for a query.")] = 32,
    metric: Annotated[str, Option(help="l2_squared, l2 or inner_product.")] = "l2_squared",
    out: Annotated[Path | None, Option(help="The index's folder, if not DATASTORE/index.")] = None,
    seed: Seed = 0,
) -> Result:
    """Build a FAISS index over a datastore's keys."""
    from knnlm.datastore import Datastore
    from knnlm.index import Index
    from knnlm.inspection import describe

    built = Index.build(
        Datastore.open(datastore),
        factory,
        metric=metric,
        train_size=train_size,
        nprobe=nprobe,
        seed=seed,
        path=out,
    )
    record = describe(built.path, deep=False)
    return record, record


@command
def inspect(
    path: Annotated[Path, Argument(help="A model, datastore, index or retrieval.")],
    deep: Annotated[bool, Option("--deep/--quick", help="Read every byte, or the records.")] = True,
) -> Result:
    """Say what a folder is, and whether it is whole."""
    from knnlm.inspection import describe

    record = describe(path, deep)
    return record, record
