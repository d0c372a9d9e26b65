"""What a user's ``--text`` may be: files, folders, named corpora, data sets of the hub."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from knnlm.corpora import CORPORA, SPLITS, load_corpus
from knnlm.errors import InputError
from knnlm.text import Document, Split


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
            parts.append(Split(path.stem, partial(_read_path, path, split_documents)))
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
