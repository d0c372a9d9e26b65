"""Named corpora, a file a source; all of them split by document.

A :class:`~knnlm.text.Split` is an iterable of documents, nothing more, so a corpus may be larger
than memory. A :class:`Corpus` has three splits and says whose text it is and how to cite it.
"""

from knnlm.corpora.corpus import SPLITS, Corpus
from knnlm.corpora.factbook import FACTBOOK
from knnlm.corpora.hub import KOWIKI, hub_corpus
from knnlm.corpora.korean import KOREAN
from knnlm.corpora.sotu import SOTU
from knnlm.errors import InputError

__all__ = ["CORPORA", "SPLITS", "Corpus", "load_corpus"]

CORPORA = {corpus.name: corpus for corpus in (FACTBOOK, SOTU, KOREAN, KOWIKI)}


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
        return hub_corpus(name.removeprefix("hf:"))
    if name not in CORPORA:
        raise InputError(
            f"There is no corpus {name!r}. Use {', '.join(CORPORA)}, hf:owner/dataset:config, "
            "or the path of your own text."
        )
    return CORPORA[name]
