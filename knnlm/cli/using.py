"""Commands that use a model with its memory: measure, choose, read, write."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from knnlm.cli.console import Result, command, end_of, note, plain, table
from knnlm.cli.options import (
    NUMBERS,
    Device,
    Exact,
    IndexFolder,
    K,
    Lam,
    Model,
    MoreTexts,
    Nprobe,
    Precision,
    Seed,
    Split,
    Temperature,
    Texts,
    check_mixture,
    check_output,
    numbers,
)
from knnlm.errors import InputError, needs

if TYPE_CHECKING:
    from knnlm.index import Index
    from knnlm.language_model import LanguageModel
    from knnlm.mixture import Setting
    from knnlm.retrieval import Retrieval


def _open(model: str, index: Path, device: str, precision: str) -> "tuple[Index, LanguageModel]":
    """Return the index and the model, the quicker to refuse first."""
    from knnlm.index import Index
    from knnlm.language_model import LanguageModel

    opened = Index.open(index)
    return opened, LanguageModel.from_pretrained(model, device=device, precision=precision)


def _retrieve(
    lm: "LanguageModel",
    index: "Index",
    text: Iterable,
    k: int,
    nprobe: int | None,
    exact: bool,
    queries: bool = False,
) -> "Retrieval":
    from knnlm.retrieval import Retrieval

    retrieval = Retrieval.run(lm, index, text, k, nprobe=nprobe, exact=exact, queries=queries)
    if retrieval.k < k:
        note(f"The datastore holds {retrieval.k} keys: k is {retrieval.k}, not {k}.")
    if retrieval.record["text"] == index.datastore.record["text"]:
        note("This text is the datastore's own: each token finds itself. Measure on another.")
    return retrieval


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
) -> Result:
    """Measure the perplexity of the model, and of its mixture with the neighbors."""
    check_mixture([lam], [temperature])
    from knnlm.evaluation import perplexity
    from knnlm.inputs import load_text

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


def _adaptive(
    validation: "Retrieval", test: "Retrieval", best: "Setting", seed: int
) -> dict[str, object]:
    """Train a λ for each token on one text; report it on another, beside the best λ for all."""
    from knnlm.evaluation import perplexity
    from knnlm.methods.adaptive import AdaptiveLam, retrieval_features
    from knnlm.mixture import interpolate

    knn = [table.knn_log_prob(best.temperature, best.k) for table in (validation, test)]
    features = [retrieval_features(table, best.k) for table in (validation, test)]
    network = AdaptiveLam.fit(
        features[0], validation.lm_log_prob, knn[0], validation.documents, seed=seed
    )
    log_prob = interpolate(test.lm_log_prob, knn[1], network.lam(features[1]))
    found = test.bootstrap(log_prob, against=test.log_prob(best), seed=seed)
    return {
        "perplexity": perplexity(log_prob),
        "interval_95": [found["perplexity"].low, found["perplexity"].high],
        "reduction": found["reduction"].estimate,
        "reduction_95": [found["reduction"].low, found["reduction"].high],
    }


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
    adaptive: Annotated[
        bool,
        Option("--adaptive", help="Also a λ for each token: trained on --text, 2 documents up."),
    ] = False,
    csv: Annotated[Path | None, Option(help="Write the whole grid here.")] = None,
    figure: Annotated[Path | None, Option(help="Draw it here, as .svg, .png or .pdf.")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    seed: Seed = 0,
) -> Result:
    """Choose λ, T and k on one text, from one retrieval pass; report them on another."""
    ks, lams = numbers("--k", k, int), numbers("--lam", lam)
    temperatures = numbers("--temperature", temperature)
    check_mixture(lams, temperatures)
    if min(ks) < 1:
        raise InputError(f"k is {min(ks)}. Ask for at least one neighbor.")
    if adaptive and not test_text:
        raise InputError(
            "--adaptive trains on --text. Give another text to report on: --test-text."
        )
    check_output(csv, figure)
    if figure and figure.suffix not in (".svg", ".png", ".pdf"):
        raise InputError(f"{figure} names no kind of figure known here. End it in .svg.")
    if figure:
        with needs("plots"):
            import matplotlib
        matplotlib.use("Agg")
    from knnlm.evaluation import perplexity
    from knnlm.inputs import load_text

    documents = load_text(*text, split_documents=split_documents)
    test_documents = load_text(*test_text, split_documents=split_documents) if test_text else None
    opened, lm = _open(model, index, device, precision)
    retrieval = _retrieve(lm, opened, documents, max(ks), nprobe, exact, queries=adaptive)
    surface = retrieval.sweep(
        lams, temperatures, list(dict.fromkeys(min(k, retrieval.k) for k in ks))
    )
    best = surface.best()
    record = {"best": best._asdict(), "perplexity_lm": surface.perplexity_lm, "test": None}
    if test_documents:
        test = _retrieve(lm, opened, test_documents, best.k, nprobe, exact, queries=adaptive)
        log_prob = test.log_prob(best)
        interval = test.bootstrap(log_prob, seed=seed)["perplexity"]
        record["test"] = {
            **best._asdict(),
            "perplexity_lm": test.perplexity_lm,
            "perplexity": perplexity(log_prob),
            "interval_95": [interval.low, interval.high],
        }
        if adaptive:
            record["adaptive"] = _adaptive(retrieval, test, best, seed)
        if len(set(test.documents.tolist())) == 1:
            note("The interval is over documents, and the test text is one. Give more of them.")
    record["precision"] = lm.precision
    rows = [surface.best(k=k) for k in surface.table["k"].unique()]
    if csv:
        surface.table.to_csv(csv, index=False)
    if figure:
        from knnlm.book import plotting

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
) -> Result:
    """Show the tokens where the neighbors helped or hurt, and who the neighbors were."""
    check_mixture([lam], [temperature])
    check_output(jsonl)
    if sort not in ("helped", "hurt", "position"):
        raise InputError(f"Cases cannot be sorted by {sort!r}. Use helped, hurt or position.")
    from knnlm.cases import find_cases
    from knnlm.inputs import load_text

    documents = load_text(*text, split_documents=split_documents)
    opened, lm = _open(model, index, device, precision)
    retrieval = _retrieve(lm, opened, documents, k, nprobe, exact)
    found = find_cases(lm, retrieval, k=k, lam=lam, temperature=temperature, top=top, sort=sort)
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
    record = {
        "k": retrieval.k,
        "lam": lam,
        "temperature": temperature,
        "sort": sort,
        "precision": lm.precision,
        "cases": records,
    }
    return record, shown


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
) -> Result:
    """Continue a prompt with the mixture of the model and its neighbors."""
    check_mixture([lam], [temperature])
    from knnlm import generation

    opened, lm = _open(model, index, device, precision)
    (continuation,) = generation.generate(
        lm,
        opened,
        [prompt],
        max_new_tokens=max_new_tokens,
        k=k,
        lam=lam,
        temperature=temperature,
        sample=sample,
        seed=seed,
        nprobe=nprobe,
    )
    record = {
        "prompt": prompt,
        "continuation": continuation,
        "k": k,
        "lam": lam,
        "temperature": temperature,
        "sample": sample,
        "seed": seed,
        "precision": lm.precision,
    }
    return record, prompt + continuation
