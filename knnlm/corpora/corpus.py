"""What a corpus is: documents of one source, in three splits, with whose text it is."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from knnlm.errors import InputError
from knnlm.text import Document, Split

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Corpus:
    """A text collection, who made it, and its documents, assigned to splits ten by ten.

    Of each ten documents in order, eight go to ``train``, one to ``validation`` and one to
    ``test``, drawn by a generator seeded with ``seed``. So the shares hold, an ordered collection
    (by region, by year) is sampled evenly, and a stream of unknown length can be split as it comes.
    """

    name: str
    title: str
    license: str
    source: str
    citation: str
    read: Callable[[], Iterable[Document]]
    seed: int = 0
    streamed: bool = False

    def split(self, name: str) -> Split:
        """Return one split, or all documents with ``"all"``."""
        if name == "all":
            return Split(f"{self.name}:all", self.read, self.streamed)
        if name not in SPLITS:
            raise InputError(
                f"{self.name} has no split {name!r}. Use one of {', '.join(SPLITS)} or all."
            )
        return Split(f"{self.name}:{name}", lambda: self._documents_of(name), self.streamed)

    def _documents_of(self, split: str) -> Iterator[Document]:
        generator = np.random.default_rng(self.seed)
        ten = ["train"] * 8 + ["validation", "test"]
        for i, document in enumerate(self.read()):
            if i % 10 == 0:
                assigned = generator.permutation(ten)
            if assigned[i % 10] == split:
                yield document

    @property
    def train(self) -> Split:
        """Eight documents of ten: for training the model and for the datastore."""
        return self.split("train")

    @property
    def validation(self) -> Split:
        """One document of ten: for choosing λ, T and k."""
        return self.split("validation")

    @property
    def test(self) -> Split:
        """One document of ten: for reporting."""
        return self.split("test")


def remembered(read: Callable[[], Iterator[Document]]) -> Callable[[], tuple[Document, ...]]:
    """Keep a small corpus in memory: it is walked for each split, and to know its content."""
    return cache(lambda: tuple(read()))
