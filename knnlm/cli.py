"""The command line: the book's steps on your own text and model.

Each command is a function from options to a record, and what of it to show. torch, transformers
and FAISS are imported inside: ``--help`` is quick.
"""

import json
import math
import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from knnlm.console import app, command, end_of, note, plain, readable, table
from knnlm.errors import InputError

TEXT = (
    "A UTF-8 file, a folder of .txt files, a corpus with its split (factbook:validation), or a hub "
    "dataset (hf:wikimedia/wikipedia:20231101.ko). Can be given more than once."
)
NUMBERS = "Numbers, and ranges first:last:step."
Model = Annotated[str, Option(help="A model folder, or a model's name on the hub.")]
Texts = Annotated[list[str], Option("--text", help=TEXT)]
MoreTexts = Annotated[list[str] | None, Option(help="Another text to report on, as --text.")]
Split = Annotated[bool, Option("--split-documents", help="Blank lines in files end documents.")]
IndexFolder = Annotated[Path, Option("--index", help="An index, or the datastore that holds it.")]
K = Annotated[int, Option("--k", min=1, help="Neighbors of each token.")]
Lam = Annotated[float, Option(help="λ, the share of p_kNN in the mixture: 0 to 1.")]
Temperature = Annotated[float, Option(help="T of p_kNN, above 0: it divides distances.")]
Nprobe = Annotated[int | None, Option(min=1, help="Lists visited, if not as the index was built.")]
Exact = Annotated[bool, Option("--exact", help="Compute distances anew from the keys.")]
Device = Annotated[str, Option(help="auto, cpu, cuda or mps.")]
Precision = Annotated[str, Option(help="auto, float32, bfloat16 or float16.")]
Seed = Annotated[int, Option(min=0, max=2**32 - 1, help="Of everything random.")]


def _check_mixture(lams: list[float], temperatures: list[float]) -> None:
    """Complain before a model has been loaded."""
    for lam in lams:
        if not 0 <= lam <= 1:
            raise InputError(f"λ is {lam}. It is a share: choose one from 0 to 1.")
    for temperature in temperatures:
        if not 0 < temperature < math.inf:
            raise InputError(
                f"The temperature is {temperature}. It divides distances: choose one above 0."
            )


def _check_output(*files: Path | None) -> None:
    """Complain about a file that could not be written, before the work that it is for."""
    for file in files:
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise InputError(f"{file} cannot be written. Give a file in a folder that exists.")


def _numbers(option: str, text: str, kind: type = float) -> list:
    """Return the numbers of a list with ranges, both ends included: ``0:1:0.25,8``."""
    numbers = []
    try:
        for part in text.split(","):
            first, *rest = map(kind, part.split(":"))
            last, step = rest or (first, 1)
            steps = (last - first) / step
            if not (step > 0 and 0 <= steps < 10_000):
                raise ValueError(f"no range: {part}")
            numbers += [round(first + i * step, 10) for i in range(int(steps + 1e-9) + 1)]
    except (ValueError, ArithmeticError) as error:
        raise InputError(
            f"{option} {text!r} is no list of {'whole ' * (kind is int)}numbers. "
            "Write e.g. 1,10,100 or first:last:step."
        ) from error
    return list(dict.fromkeys(numbers))


def _open(model: str, index: Path, device: str, precision: str):
    """Return the index and the model, the quicker to refuse first."""
    from knnlm.index import Index
    from knnlm.language_model import LanguageModel

    try:
        opened = Index.open(index)
    except RuntimeError as error:  # FAISS met bytes that are no index
        raise InputError(f"The index {index} is damaged. Build it again.") from error
    return opened, LanguageModel.from_pretrained(model, device=device, precision=precision)


def _retrieve(lm, index, text, k: int, nprobe: int | None, exact: bool):
    from knnlm.retrieval import Retrieval

    retrieval = Retrieval.run(lm, index, text, k, nprobe=nprobe, exact=exact)
    if retrieval.k < k:
        note(f"The datastore holds {retrieval.k} keys: k is {retrieval.k}, not {k}.")
    if retrieval.record["text"] == index.datastore.record["text"]:
        note("This text is the datastore's own: each token finds itself. Measure on another.")
    return retrieval


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
):
    """Train a tokenizer and a small GPT-2-shaped model from scratch."""
    if not 0 < learning_rate < math.inf:
        raise InputError(f"--learning-rate is {learning_rate}. Give a number above 0.")
    from knnlm.corpora import load_text
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
):
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
):
    """Build a datastore: a (key, value) pair for each token of a text."""
    from knnlm.corpora import load_text
    from knnlm.datastore import Datastore
    from knnlm.inspection import describe
    from knnlm.language_model import LanguageModel

    documents = load_text(*text, split_documents=split_documents)
    lm = LanguageModel.from_pretrained(model, device=device, precision=precision)
    how = {"window": window, "stride": stride, "key_layer": key_layer, "dtype": dtype}
    Datastore.build(out, lm, documents, **how)
    record = describe(out, checksums=False)
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
):
    """Build a FAISS index over a datastore's keys."""
    from knnlm.datastore import Datastore
    from knnlm.index import Index
    from knnlm.inspection import describe

    how = {"metric": metric, "train_size": train_size, "nprobe": nprobe, "seed": seed}
    path = Index.build(Datastore.open(datastore), factory, path=out, **how).path
    record = describe(path, checksums=False)
    return record, record


@command
def inspect(path: Annotated[Path, Argument(help="A model, datastore, index or retrieval.")]):
    """Say what a folder is, and whether it is whole, by reading all of it."""
    from knnlm.inspection import describe

    record = describe(path)
    return record, record


@command
def evaluate(
    model: Model,
    index: IndexFolder,
    text: Texts,
    split_documents: Split = False,
    k: K = 1024,
    lam: Lam = 0.25,
    temperature: Temperature = 1.0,
    nprobe: Nprobe = None,
    exact: Exact = False,
    device: Device = "auto",
    precision: Precision = "auto",
):
    """Measure the perplexity of the model, and of its mixture with the neighbors."""
    _check_mixture([lam], [temperature])
    from knnlm.corpora import load_text
    from knnlm.evaluation import perplexity

    documents = load_text(*text, split_documents=split_documents)
    opened, lm = _open(model, index, device, precision)
    retrieval = _retrieve(lm, opened, documents, k, nprobe, exact)
    log_prob_lm = retrieval.log_prob(lam=0)
    log_prob = retrieval.log_prob(k=k, lam=lam, temperature=temperature)
    words = retrieval.record["words"]
    record = {
        "tokens": len(retrieval),
        "words": words,
        "perplexity_lm": perplexity(log_prob_lm),
        "perplexity": perplexity(log_prob),
        "perplexity_per_word_lm": perplexity(log_prob_lm, words),
        "perplexity_per_word": perplexity(log_prob, words),
        "nll_lm": -log_prob_lm.mean(),
        "nll": -log_prob.mean(),
        "k": retrieval.k,
        "lam": lam,
        "temperature": temperature,
        "metric": opened.metric,
        "nprobe": retrieval.record["nprobe"],
        "precision": lm.precision,
        "datastore_size": len(opened.datastore),
        "tokens_per_second": len(retrieval) / retrieval.seconds,
    }
    return record, record


@command
def sweep(
    model: Model,
    index: IndexFolder,
    text: Texts,
    test_text: MoreTexts = None,
    split_documents: Split = False,
    k: Annotated[str, Option("--k", help=NUMBERS)] = "8,64,1024",
    lam: Annotated[str, Option(help=NUMBERS)] = "0:1:0.05",
    temperature: Annotated[str, Option(help=NUMBERS)] = "1,10,100",
    nprobe: Nprobe = None,
    exact: Exact = False,
    csv: Annotated[Path | None, Option(help="Write the whole grid here.")] = None,
    figure: Annotated[Path | None, Option(help="Draw it here, as .svg, .png or .pdf.")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    seed: Seed = 0,
):
    """Choose λ, T and k on one text, from one retrieval pass; report them on another."""
    ks, lams = _numbers("--k", k, int), _numbers("--lam", lam)
    temperatures = _numbers("--temperature", temperature)
    _check_mixture(lams, temperatures)
    if min(ks) < 1:
        raise InputError(f"k is {min(ks)}. Ask for at least one neighbor.")
    _check_output(csv, figure)
    if figure and figure.suffix not in (".svg", ".png", ".pdf"):
        raise InputError(f"{figure} names no kind of figure known here. End it in .svg.")
    from knnlm.corpora import load_text
    from knnlm.evaluation import perplexity

    documents = load_text(*text, split_documents=split_documents)
    test_documents = load_text(*test_text, split_documents=split_documents) if test_text else None
    opened, lm = _open(model, index, device, precision)
    retrieval = _retrieve(lm, opened, documents, max(ks), nprobe, exact)
    surface = retrieval.sweep(
        lams, temperatures, list(dict.fromkeys(min(k, retrieval.k) for k in ks))
    )
    best = surface.best()
    record = {"best": best._asdict(), "perplexity_lm": surface.perplexity_lm, "test": None}
    if test_documents:
        test = _retrieve(lm, opened, test_documents, best.k, nprobe, exact)
        log_prob = test.log_prob(best)
        interval = test.bootstrap(log_prob, seed=seed)["perplexity"]
        record["test"] = {
            **best._asdict(),
            "perplexity_lm": test.perplexity_lm,
            "perplexity": perplexity(log_prob),
            "interval_95": [interval.low, interval.high],
        }
        if len(set(test.documents.tolist())) == 1:
            note("The interval is over documents, and the test text is one. Give more of them.")
    record["precision"] = lm.precision
    rows = [surface.best(k=k) for k in surface.table["k"].unique()]
    if csv:
        surface.table.to_csv(csv, index=False)
    if figure:
        import matplotlib

        matplotlib.use("Agg")
        from knnlm import plotting

        plotting.use_style()
        plotting.sweep_curves(surface).savefig(figure)
    best_rows = table(["k", "best λ", "best T", "perplexity"], rows)
    return record | {"grid": surface.table.to_dict("records")}, [record, "", best_rows]


@command
def cases(
    model: Model,
    index: IndexFolder,
    text: Texts,
    split_documents: Split = False,
    k: K = 8,
    lam: Lam = 0.25,
    temperature: Temperature = 1.0,
    top: Annotated[int, Option(min=1, help="How many tokens.")] = 20,
    sort: Annotated[str, Option(help="helped, hurt or position.")] = "helped",
    jsonl: Annotated[Path | None, Option(help="Write an object a token here.")] = None,
    nprobe: Nprobe = None,
    exact: Exact = False,
    device: Device = "auto",
    precision: Precision = "auto",
):
    """Show the tokens where the neighbors helped or hurt, and who the neighbors were."""
    _check_mixture([lam], [temperature])
    _check_output(jsonl)
    if sort not in ("helped", "hurt", "position"):
        raise InputError(f"Cases cannot be sorted by {sort!r}. Use helped, hurt or position.")
    from knnlm.cases import find_cases
    from knnlm.corpora import load_text

    documents = load_text(*text, split_documents=split_documents)
    opened, lm = _open(model, index, device, precision)
    retrieval = _retrieve(lm, opened, documents, k, nprobe, exact)
    mixture = {"k": retrieval.k, "lam": lam, "temperature": temperature}
    found = find_cases(lm, retrieval, **mixture, top=top, sort=sort)
    records = [plain(case.to_dict()) for case in found]
    if jsonl:
        lines = [json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in records]
        jsonl.write_text("".join(lines), encoding="utf-8")
    rows = [
        (
            end_of(case.context, 32),
            repr(case.label)[1:-1],
            *(f"{p:.4f}" for p in (case.lm_probability, case.knn_probability)),
            f"{case.knn_lm_probability:.4f}",
        )
        for case in found
    ]
    shown = table(["context", "token", "p_LM", "p_kNN", "mixture"], rows)
    return {**mixture, "sort": sort, "precision": lm.precision, "cases": records}, shown


@command
def generate(
    model: Model,
    index: IndexFolder,
    prompt: Annotated[str, Option(help="The text to go on from.")],
    max_new_tokens: Annotated[int, Option(min=1, help="How far at most.")] = 50,
    k: K = 1024,
    lam: Lam = 0.25,
    temperature: Temperature = 1.0,
    sample: Annotated[bool, Option("--sample", help="Draw; else the likeliest token.")] = False,
    nprobe: Nprobe = None,
    device: Device = "auto",
    precision: Precision = "auto",
    seed: Seed = 0,
):
    """Continue a prompt with the mixture of the model and its neighbors."""
    _check_mixture([lam], [temperature])
    from knnlm import generation

    opened, lm = _open(model, index, device, precision)
    mixture = {"k": k, "lam": lam, "temperature": temperature, "sample": sample, "seed": seed}
    (continuation,) = generation.generate(
        lm, opened, [prompt], max_new_tokens=max_new_tokens, nprobe=nprobe, **mixture
    )
    record = {"prompt": prompt, "continuation": continuation, **mixture, "precision": lm.precision}
    return record, prompt + continuation


def main() -> None:
    """Run the command line: ``knnlm`` and ``python -m knnlm``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # λ and every language, whatever the locale
            stream.reconfigure(encoding="utf-8")
    app(prog_name="knnlm")
