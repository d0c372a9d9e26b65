"""(key, value) pairs on disk: built in one pass over any amount of text, resumable, checked."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from knnlm.arrays import Rows, crc32, open_array
from knnlm.artifacts import Claim, Record, claim, read_complete, refuse_differences
from knnlm.errors import InputError
from knnlm.key_layers import KeyLayer, find_module
from knnlm.language_model import LanguageModel, Reading
from knnlm.progress import progress
from knnlm.tokens import TokenStream, document_of

FILES = ("keys.npy", "values.npy", "tokens.part")


@dataclass(frozen=True)
class Datastore:
    """A folder of keys and values in the order of the text; open one with :meth:`open`.

    ``keys.npy`` is ``(n, dim)`` float16 or float32, ``values.npy`` is ``(n,)`` int32: row i is the
    representation after reading token i, and token i + 1. ``datastore.json`` says what made them.
    """

    path: Path
    record: Record

    @classmethod
    def build(
        cls,
        path: str | Path,
        lm: LanguageModel,
        text: Iterable,
        *,
        window: int | None = None,
        stride: int | None = None,
        key_layer: str = KeyLayer.FFN_INPUT,
        dtype: str = "float16",
    ) -> "Datastore":
        """Write the datastore of a text; go on where an earlier run with the same inputs stopped.

        The text's length need not be known. The result is the same to the byte however often the
        build was stopped. Nothing as large as the keys is ever in memory.

        Parameters
        ----------
        path
            The folder to write.
        lm
            The model whose representations are the keys.
        text
            Documents, or a token stream of the model's tokenizer.
        window, stride
            See :func:`~knnlm.tokens.sliding_windows`; the model's context, and half of it.
        key_layer
            See :func:`~knnlm.key_layers.find_module`.
        dtype
            ``"float16"`` or ``"float32"``.

        Raises
        ------
        InputError
            When the folder holds something else, another process writes it, or a key overflows
            float16.
        """
        stores = cls.build_each(
            {key_layer: path}, lm, text, window=window, stride=stride, dtype=dtype
        )
        return stores[str(key_layer)]

    @classmethod
    def build_each(
        cls,
        paths: Mapping[str, str | Path],
        lm: LanguageModel,
        text: Iterable,
        *,
        window: int | None = None,
        stride: int | None = None,
        dtype: str = "float16",
    ) -> "dict[str, Datastore]":
        """Write a datastore for each of several key layers in one pass over the text.

        Each is to the byte what :meth:`build` writes for its layer; only ``seconds``, in the
        record, is the time of the pass that they share.

        Parameters
        ----------
        paths
            A folder for each key layer.
        lm, text, window, stride, dtype
            See :meth:`build`.

        Raises
        ------
        InputError
            As :meth:`build`.
        """
        folders = {str(layer): Path(path) for layer, path in paths.items()}
        if dtype not in ("float16", "float32"):
            raise InputError(f"Keys cannot be stored as {dtype!r}. Use float16 or float32.")
        for layer in folders:
            find_module(lm.model, layer)  # complains before anything is written
        window = lm.context if window is None else window
        stride = max(1, window // 2) if stride is None else stride
        wanted = {
            "model": lm.fingerprint,
            "tokenizer": lm.tokenizer_fingerprint,
            "dtype": dtype,
            "window": window,
            "stride": stride,
            "precision": lm.precision,
        }
        claims = {}
        with ExitStack() as held:
            for layer, path in sorted(folders.items(), key=lambda item: item[1]):
                entered = claim(path, "datastore", wanted | {"key_layer": layer}, FILES)
                claims[layer] = held.enter_context(entered)
            with _encoded(text, lm, list(claims.values())) as stream:
                lm.windows(len(stream), window, stride)
                name = getattr(text, "name", "tokens")
                writers = [_Writer(claims[layer], lm, stream, name) for layer in folders]
                unfinished = [writer for writer in writers if not writer.claim.is_complete]
                _write_keys(unfinished, lm, stream)
        return {layer: cls.open(path) for layer, path in folders.items()}

    @classmethod
    def open(cls, path: str | Path) -> "Datastore":
        """Open a complete datastore without reading its keys.

        Raises
        ------
        InputError
            When there is none, it is not whole, or a file of it is damaged.
        """
        store = cls(Path(path), read_complete(Path(path), "datastore"))
        _ = store.keys, store.values  # mapped, and of the shapes that the record says
        return store

    def check_model(self, lm: LanguageModel) -> None:
        """Raise InputError unless ``lm`` is the model that made this datastore."""
        for what, made, now in (
            ("tokenizer", self.record["tokenizer"], lm.tokenizer_fingerprint),
            ("model", self.record["model"], lm.fingerprint),
        ):
            if made != now:
                raise InputError(
                    f"The datastore {self.path} was made with {what} {made} "
                    f"({self.record['model_name']}), not with {now} ({lm.name}). "
                    "Query a datastore with the model that made it, or build another."
                )

    @cached_property
    def keys(self) -> np.ndarray:
        """``(n, dim)``, mapped from disk."""
        return open_array(self.path / "keys.npy", (len(self), self.dim))

    @cached_property
    def values(self) -> np.ndarray:
        """``(n,) int32``, mapped from disk."""
        return open_array(self.path / "values.npy", (len(self),))

    @cached_property
    def document_starts(self) -> np.ndarray:
        """``(documents,) int64``: the row of each document's first token."""
        return np.asarray(self.record["document_starts"], dtype=np.int64)

    def __len__(self) -> int:
        return self.record["keys"]

    @property
    def dim(self) -> int:
        """The width of a key."""
        return self.record["dim"]

    @property
    def fingerprint(self) -> str:
        """The checksums of keys and values, by which an index knows its datastore."""
        crc = self.record["crc32"]
        return f"{crc['keys.npy']:08x}{crc['values.npy']:08x}"

    def values_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the value of each id, same shape, int32; −1 where the id is −1."""
        ids = np.asarray(ids)
        return np.where(ids < 0, np.int32(-1), self.values[np.maximum(ids, 0)])

    def context(self, row: int, length: int = 16) -> np.ndarray:
        """Return the last ``length`` token ids before a row's value, within its document."""
        start = int(self.document_starts[self._document_of(row)])
        first = max(start, row - length + 1)
        if first > 0:
            return np.asarray(self.values[first - 1 : row])
        return np.concatenate([[self.record["first_token"]], self.values[:row]])

    def document_name(self, row: int) -> str:
        """Return the name of the document that a row's key was read from."""
        return self.record["document_names"][self._document_of(row)]

    def _document_of(self, row: int) -> int:
        return int(document_of(self.document_starts, np.asarray(row)))


class _Writer:
    """Fills a claimed folder: with the values, which are known at once, and keys as they come."""

    def __init__(self, made: Claim, lm: LanguageModel, stream: TokenStream, text_name: str):
        self.claim, self.record, n = made, made.record, len(stream) - 1
        if "text" in self.record:
            refuse_differences(self.record, {"text": stream.fingerprint}, made.folder)
        else:
            values = made.folder / "values.npy"
            np.save(values, stream.tokens[1:])
            self.record |= {
                "text": stream.fingerprint,
                "text_name": text_name,
                "model_name": lm.name,
                "keys": n,
                "dim": None,
                **stream.about(),
                "crc32": {"values.npy": crc32(values)},
            }
            made.save()
        self.rows = Rows(made, n)

    def append(self, reading: Reading) -> None:
        """Write the keys of a reading, unless they are there: a kill came between two records."""
        if reading.first < self.rows.done:
            return
        keys = reading.keys[self.record["key_layer"]]
        with np.errstate(over="ignore"):
            keys = keys.astype(self.record["dtype"])
        if not np.isfinite(keys).all():
            raise InputError(
                f"A key at positions {reading.first} to {reading.stop - 1} does not fit "
                f"{self.record['dtype']}. Build the store with dtype float32."
            )
        self.record["dim"] = keys.shape[1]
        self.rows.append(keys=keys)


@contextmanager
def _encoded(text: Iterable, lm: LanguageModel, claims: list[Claim]) -> Iterator[TokenStream]:
    """Yield a text's tokens, which may be more than memory holds: from a file, then removed."""
    with tempfile.TemporaryDirectory(prefix="knnlm-") as elsewhere:
        folders = [made.folder for made in claims if not made.is_complete]
        spool = (folders or [Path(elsewhere)])[0] / "tokens.part"
        stream = lm.encode(text, spool)
        try:
            yield stream
        finally:
            del stream  # unmaps the file
            spool.unlink(missing_ok=True)


def _write_keys(writers: list[_Writer], lm: LanguageModel, stream: TokenStream) -> None:
    """Fill several stores from one pass, which begins where the least complete one ends."""
    if not writers:
        return
    n, done = len(stream) - 1, min(writer.rows.done for writer in writers)
    readings = lm.read(
        stream,
        window=writers[0].record["window"],
        stride=writers[0].record["stride"],
        key_layers=[writer.record["key_layer"] for writer in writers],
        start=done,
    )
    try:
        with progress(description="keys", unit="keys", total=n, done=done) as bar:
            for reading in readings:
                for writer in writers:
                    writer.append(reading)
                bar.update(reading.stop - reading.first)
    except InputError:  # what was begun can never be completed
        for writer in writers:
            writer.claim.discard()
        raise
    for writer in writers:
        writer.claim.complete()
