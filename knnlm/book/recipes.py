"""The book's runs by name: every artifact is made once, and found again by what made it."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from knnlm.artifacts import find, read_record, to_make
from knnlm.book import results, smollm2
from knnlm.book.changes import fingerprint
from knnlm.corpora import Corpus, load_corpus
from knnlm.datastore import Datastore
from knnlm.device import choose_device, choose_precision
from knnlm.errors import InputError
from knnlm.factory import Metric
from knnlm.index import Index
from knnlm.key_layers import KeyLayer
from knnlm.language_model import LanguageModel
from knnlm.retrieval import Retrieval
from knnlm.text import Document, Split
from knnlm.training import train_language_model

RECORDS = {"model": "training", "tuned": "training"}  # of the folders named otherwise
VALIDATION_EXCERPT = 4000  # characters of each held-out document, to follow a training by


def spread(split: Split, count: int) -> Split:
    """Return ``count`` documents of a split, from its beginning to its end; all for 0.

    Of a split in some order (by region, by year) they are a fair sample. Where one count is a
    multiple of another, the larger choice holds the smaller one.
    """

    def read() -> Iterator[Document]:
        total = sum(1 for _ in split)
        chosen = {i * total // count for i in range(count)}
        return (document for i, document in enumerate(split) if i in chosen)

    return replace(split, name=f"{split.name}, {count} documents", read=read) if count else split


def excerpts(split: Split, characters: int, opening: bool = False) -> Split:
    """Return the middle of each document, or its opening; all of it for 0 characters."""

    def read() -> Iterator[Document]:
        for document in split:
            spare = max(0, len(document.text) - characters)
            start = 0 if opening else spare // 2
            yield Document(document.name, document.text[start : start + characters])

    which = f"{'first' if opening else 'middle'} {characters} characters of each"
    return replace(split, name=f"{split.name}, {which}", read=read) if characters else split


@dataclass(frozen=True)
class Recipe:
    """One run from text to retrieval; its methods load an artifact, or make it.

    The model learns from ``corpus``, or is ``pretrained``: a folder, a name on the hub, or
    ``"smollm2"``, see :func:`~knnlm.book.smollm2.find`. The datastore and what is evaluated come
    from ``corpus`` too, or else from the corpus ``memory``. Of the training split, ``learned``
    documents teach the model and ``documents`` go into the datastore; of another split,
    ``held_out`` are evaluated. They are spread evenly over the split; all are taken where the
    number is 0. Of a document that is evaluated, ``excerpt`` characters are read, or all of it for
    0: those in its middle, or with ``opening`` its first. With ``tuned`` steps the model is
    fine-tuned on the datastore's text before. With ``queries``, retrievals keep theirs.

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
    layers: int = 4
    width: int = 128
    heads: int = 2
    context: int = 256
    steps: int = 450
    batch_size: int = 8
    learning_rate: float = 8e-3
    seed: int = 0
    window: int = 256
    stride: int = 128
    key_layer: str = KeyLayer.FFN_INPUT
    dtype: str = "float16"
    factory: str = "IVF1024,PQ64x4fs,Refine(SQ8)"
    metric: str = Metric.L2_SQUARED
    nprobe: int = 32
    k: int = 1024
    queries: bool = False

    def but(self, **changes: Any) -> "Recipe":
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
        return excerpts(spread(whole, self.held_out), self.excerpt, self.opening)

    def _place(self, kind: str, maker: Callable, **inputs: object) -> tuple[Path, dict]:
        """Return an artifact's folder, and the settings for its maker.

        The maker gets each setting of the recipe that it takes, and the folder is named after
        these, the inputs, and the maker's code; see :mod:`knnlm.book.changes`. So nothing that an
        artifact depends on can be left out of its name.
        """
        takes = inspect.signature(maker).parameters
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name in takes}
        code = maker.__module__.partition(".")[2]
        name = f"{self.corpus}/{kind}-{fingerprint([code], inputs | settings)}"
        results.used.add(name)
        return find(name, RECORDS.get(kind, kind)), settings

    def model_folder(self) -> Path:
        """Return the folder of the trained model; train it first where it is not there."""
        start = self.but(tuned=0).model() if self.tuned else None
        corpus = self.text() if start else load_corpus(self.corpus)
        device = choose_device("auto")
        inputs: dict[str, Any] = {
            "text": self.part("train") if start else spread(corpus.train, self.learned),
            "validation": excerpts(corpus.validation, VALIDATION_EXCERPT),
            "start": start,
            "device": device.type,
            "precision": str(choose_precision("auto", device)).removeprefix("torch."),
        }
        kind, recipe = "tuned" if start else "model", self.but(steps=self.tuned or self.steps)
        folder, settings = recipe._place(kind, train_language_model, **inputs)
        with to_make(folder, "training") as missing:
            if missing:
                resume = (folder / "training.json").exists()
                train_language_model(out=folder, resume=resume, **inputs, **settings)
        return folder

    def model(self) -> LanguageModel:
        """Return the model: the pretrained one, or one trained here."""
        pretrained = "" if self.tuned else self.pretrained
        return _open_model(pretrained or self.model_folder())

    def training(self) -> dict:
        """Return the record of the training: settings, seconds, loss curve."""
        return read_record(self.model_folder(), "training")

    def datastore(self, text: Split | None = None) -> Datastore:
        """Return the datastore of the corpus's training documents, or of another text."""
        return self.datastores([self.key_layer], text)[self.key_layer]

    def datastores(
        self, key_layers: Iterable[str], text: Split | None = None
    ) -> dict[str, Datastore]:
        """Return a datastore for each key layer; those that are not there come from one pass."""
        lm = self.model()
        text = self.part("train") if text is None else text
        folders = {}
        for layer in map(str, key_layers):
            inputs = _computing(lm) | {"text": text, "key_layer": layer}
            folders[layer], settings = self._place("datastore", Datastore.build_each, **inputs)
        with ExitStack() as held:  # in one order, so that no two processes wait for each other
            is_missing = {
                folder: held.enter_context(to_make(folder, "datastore"))
                for folder in sorted(folders.values())
            }
            missing = {layer: folder for layer, folder in folders.items() if is_missing[folder]}
            if missing:
                Datastore.build_each(missing, lm, text, **settings)
        return {layer: Datastore.open(folder) for layer, folder in folders.items()}

    def index(self) -> Index:
        """Return the index over :meth:`datastore`."""
        store = self.datastore()
        folder, settings = self._place("index", Index.build, datastore=store)
        with to_make(folder, "index") as missing:
            if missing:
                Index.build(store, path=folder, **settings)
        return Index.open(folder, store)

    def retrieval(self, split: str) -> Retrieval:
        """Return the retrieval pass over a split of the corpus, e.g. ``"validation"``."""
        lm, index, text = self.model(), self.index(), self.part(split)
        inputs = _computing(lm) | {"index": index, "text": text}
        folder, settings = self._place("retrieval", Retrieval.run, **inputs)
        with to_make(folder, "retrieval") as missing:
            if missing:
                Retrieval.run(lm, index, text, path=folder, **settings)
        return Retrieval.open(folder, index)


def making_seconds(*recipes: Recipe, splits: Iterable[str] = ("validation", "test")) -> float:
    """Return how long all that these runs have took to make; what they share counts once.

    That is the models that were trained, datastores, indexes, and the retrievals of the splits. It
    is what their records say: of what was found in the cache, the time it took when it was made.
    """
    seconds = {}
    for recipe in recipes:
        if recipe.tuned or not recipe.pretrained:
            seconds[recipe.model_folder()] = recipe.training()["seconds"]
        index = recipe.index()
        for made in (index.datastore, index):
            seconds[made.path] = made.record["seconds"]
        for table in map(recipe.retrieval, splits):
            seconds[table.path] = table.seconds
    return sum(seconds.values())


def _computing(lm: LanguageModel) -> dict[str, object]:
    """Return what decides the numbers that a model gives, to the bit."""
    return {"lm": lm, "precision": lm.precision, "device": lm.device.type}


@cache
def _open_model(folder: str | Path) -> LanguageModel:
    """Return a model, opened and fingerprinted once for all artifacts of a process."""
    return LanguageModel.from_pretrained(smollm2.find() if folder == "smollm2" else folder)


RECIPES = {
    "factbook": Recipe(excerpt=4000),
    "korean": Recipe(
        corpus="korean",
        held_out=90,
        alphabet="characters",
        steps=220,
        factory="IVF1024,Flat",
        nprobe=16,
        k=256,
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
        documents=60,
        held_out=12,
        excerpt=5000,
        vocab_size=4096,
        layers=2,
        steps=140,
        factory="IVF256,PQ64x4fs,Refine(SQ8)",
        nprobe=8,
        k=128,
    ),
    # Six layers to compare, and a store that can be built ten times over.
    "compact": Recipe(
        vocab_size=4096,
        layers=6,
        steps=240,
        documents=60,
        held_out=20,
        excerpt=5000,
        k=128,
        queries=True,
    ),
    # A pretrained model of thirty layers. Its keys are those of the sixth, where a pass can end: a
    # little worse than those of later ones, and five times as many in the same time.
    "smollm2": Recipe(
        pretrained="smollm2",
        documents=20,
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

# For KNNLM_SMALL=1: each chapter does all that it does with less text, to see in minutes that
# everything runs. Its numbers are then not those of the book.
TINY = {"layers": 2, "width": 64, "vocab_size": 2048, "steps": 40, "learned": 24}
SMALLER = {
    "factbook": TINY | {"documents": 8, "held_out": 6, "excerpt": 4000},
    "korean": TINY | {"documents": 120, "held_out": 20},
    "speeches": TINY | {"documents": 24, "held_out": 4, "excerpt": 2000},
    "compact": TINY | {"layers": 4, "documents": 12, "held_out": 6, "excerpt": 4000},
    "smollm2": {"documents": 1, "held_out": 4, "excerpt": 600},
}


def load_recipe(name: str) -> Recipe:
    """Return the run of this name; with ``KNNLM_SMALL=1`` in the environment, a smaller one.

    Raises
    ------
    InputError
        When there is no such run.
    """
    if name not in RECIPES:
        raise InputError(f"There is no recipe {name!r}. Use one of {', '.join(RECIPES)}.")
    return RECIPES[name].but(**SMALLER.get(name, {})) if results.is_small() else RECIPES[name]
