"""What a text is: documents with names, walked as often as needed."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Document:
    """One text with a name that a reader recognizes (a country, a speech, a file)."""

    name: str
    text: str


@dataclass(frozen=True)
class Split:
    """Documents that belong together; can be walked more than once.

    Parameters
    ----------
    name
        For messages and records, e.g. ``"factbook:train"``.
    read
        Called for each walk; yields the documents in a fixed order.
    streamed
        Whether a walk is a download: then the name alone says which text it is.
    """

    name: str
    read: Callable[[], Iterable[Document]]
    streamed: bool = False

    def __iter__(self) -> Iterator[Document]:
        return iter(self.read())

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the documents; over the name where the text is streamed."""
        digest = hashlib.sha256()
        if self.streamed:
            digest.update(self.name.encode())
        else:
            for document in self:
                for part in (document.name, document.text):
                    encoded = part.encode("utf-8", "surrogatepass")
                    digest.update(len(encoded).to_bytes(8, "big") + encoded)
        return digest.hexdigest()[:16]

    @classmethod
    def of(cls, documents: Iterable[Document | str], name: str = "text") -> "Split":
        """Make a split of documents, or plain strings, that are already in memory."""
        listed = [
            d if isinstance(d, Document) else Document(f"{name} {i}", d)
            for i, d in enumerate(documents)
        ]
        return cls(name, lambda: listed)
