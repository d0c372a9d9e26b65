"""(key, value) pairs on disk: built in one pass over any amount of text, resumable, checked."""

import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from knnlm.errors import InputError
from knnlm.files import (
    FORMAT,
    create_array,
    read_record,
    refuse_differences,
    remove_files,
    write_json,
)
from knnlm.key_layers import KeyLayer, find_module
from knnlm.language_model import LanguageModel, Reading
from knnlm.progress import progress
from knnlm.tokens import TokenStream, document_of

CHECKPOINT_SECONDS = 30
FILES = ("datastore.json", "keys.npy", "values.npy", "tokens.part")


@dataclass(frozen=True)
class Datastore:
    """A folder of keys and values in the order of the text; open one with :meth:`open`.

    ``keys.npy`` is ``(n, dim)`` float16 or float32, ``values.npy`` is ``(n,)`` int32: row i is the
    representation after reading token i, and token i + 1. ``datastore.json`` says what made them.
    """

    path: Path
    record: dict

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
            When the folder holds something else, or a key overflows float16.
        """
        how = {"window": window, "stride": stride, "dtype": dtype}
        return cls.build_each({key_layer: path}, lm, text, **how)[str(key_layer)]

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
            When a folder holds something else, or a key overflows float16.
        """
        paths = {str(layer): Path(path) for layer, path in paths.items()}
        if dtype not in ("float16", "float32"):
            raise InputError(f"Keys cannot be stored as {dtype!r}. Use float16 or float32.")
        for layer, path in paths.items():
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                if not (path / "datastore.json").exists() and not (path / "tokens.part").exists():
                    raise InputError(
                        f"{path} holds something that is no datastore. Choose another."
                    )
            find_module(lm.model, layer)  # complains before anything is written
        spools = [path / "tokens.part" for path in paths.values()]
        for file in spools:  # all but the first stay empty: they say that a build was begun
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        window = lm.context if window is None else window
        stride = max(1, window // 2) if stride is None else stride
        try:
            stream = lm.encode(text, spools[0])
            lm.windows(len(stream), window, stride)
            wanted = {
                "model": lm.fingerprint,
                "tokenizer": lm.tokenizer_fingerprint,
                "dtype": dtype,
                "window": window,
                "stride": stride,
                "precision": lm.precision,
                "text": stream.fingerprint,
            }
            begun = {}
            for layer, path in paths.items():
                if (path / "datastore.json").exists():
                    begun[layer] = cls(path, read_record(path, "datastore"))
                    refuse_differences(begun[layer].record, wanted | {"key_layer": layer}, path)
        except InputError:
            for file in spools:
                remove_files(file.parent, file.name)
            raise
        name = getattr(text, "name", "tokens")
        stores = {
            layer: begun.get(layer) or cls._begin(path, lm, stream, wanted, layer, name)
            for layer, path in paths.items()
        }
        unfinished = [store for store in stores.values() if not store.is_complete]
        if unfinished:
            cls._write_keys(unfinished, lm, stream)
        del stream  # unmaps the spool
        for file in spools:
            file.unlink(missing_ok=True)
        return {layer: cls.open(path) for layer, path in paths.items()}

    @classmethod
    def _begin(cls, path, lm, stream: TokenStream, wanted: dict, layer: str, name: str):
        """Write the values, which are known before the keys, and the record of no key."""
        np.save(path / "values.npy", stream.tokens[1:])
        record = {
            "format": FORMAT,
            **wanted,
            "key_layer": layer,
            "model_name": lm.name,
            "text_name": name,
            "keys": len(stream) - 1,
            "dim": None,
            "first_token": int(stream.tokens[0]),
            "document_starts": stream.document_starts.tolist(),
            "document_names": list(stream.document_names),
            "words": stream.words,
            "characters": stream.characters,
            "rows_done": 0,
            "seconds": 0.0,
            "values_crc32": zlib.crc32(stream.tokens[1:]),
            "keys_crc32": 0,
        }
        write_json(path / "datastore.json", record)
        return cls(path, record)

    @staticmethod
    def _write_keys(stores: "list[Datastore]", lm: LanguageModel, stream: TokenStream) -> None:
        """Fill several stores from one pass, which begins where the least complete one ends."""
        n, done = len(stores[0]), min(store.record["rows_done"] for store in stores)
        readings = lm.read(
            stream,
            window=stores[0].record["window"],
            stride=stores[0].record["stride"],
            key_layers=[store.record["key_layer"] for store in stores],
            start=done,
        )
        begun = saved = time.perf_counter()
        keys = {}
        with progress(description="keys", unit="keys", total=n, done=done) as bar:
            for reading in readings:
                for store in stores:
                    if reading.first < store.record["rows_done"]:  # a kill came between two records
                        continue
                    try:
                        store._append(reading, keys)
                    except InputError:  # what was begun can never be completed
                        for other in stores:
                            remove_files(other.path, *FILES)
                        raise
                bar.update(reading.stop - reading.first)
                now = time.perf_counter()
                if now - saved > CHECKPOINT_SECONDS or reading.stop == n:
                    for array in keys.values():
                        array.flush()
                    for store in stores:
                        store.record["seconds"] += now - begun
                        write_json(store.path / "datastore.json", store.record)
                    begun = saved = now

    def _append(self, reading: Reading, open_keys: dict[Path, np.ndarray]) -> None:
        """Write the next rows of keys; ``open_keys`` holds the array of each folder."""
        record = self.record
        rows = reading.keys[record["key_layer"]]
        with np.errstate(over="ignore"):
            rows = rows.astype(record["dtype"])
        if not np.isfinite(rows).all():
            raise InputError(
                f"A key at positions {reading.first} to {reading.stop - 1} does not fit "
                f"{record['dtype']}. Build the store with dtype float32."
            )
        if self.path not in open_keys:
            record["dim"] = rows.shape[1]
            file = self.path / "keys.npy"
            open_keys[self.path] = (
                np.load(file, mmap_mode="r+", allow_pickle=False)
                if record["rows_done"]
                else create_array(file, record["dtype"], (len(self), rows.shape[1]))
            )
        open_keys[self.path][reading.first : reading.stop] = rows
        record["keys_crc32"] = zlib.crc32(rows, record["keys_crc32"])
        record["rows_done"] = reading.stop

    @classmethod
    def open(cls, path: str | Path) -> "Datastore":
        """Open a complete datastore without reading its keys.

        Raises
        ------
        InputError
            When there is none, or it is not whole.
        """
        path = Path(path)
        store = cls(path, read_record(path, "datastore"))
        problem = store.problem()
        if problem:
            raise InputError(f"The datastore {path} is not whole: {problem}")
        return store

    @property
    def is_complete(self) -> bool:
        """Whether every key has been written."""
        return self.record["rows_done"] == self.record["keys"]

    def problem(self, checksums: bool = False) -> str | None:
        """Return what is wrong with the folder in a sentence or two, or None.

        With ``checksums`` every byte is read; without, only the files' shapes.
        """
        record = self.record
        if not self.is_complete:
            return (
                f"{record['rows_done']:,} of {record['keys']:,} keys are there. "
                "Run the same build again: it goes on from there."
            )
        anew = "Delete the folder and build it again."
        shapes = {"keys": (record["keys"], record["dim"]), "values": (record["keys"],)}
        for name, shape in shapes.items():
            try:
                array = np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                return f"{name}.npy cannot be read ({error}). {anew}"
            if array.shape != shape:
                return f"{name}.npy is {array.shape}, the record says {shape}. {anew}"
            if checksums:
                crc = 0
                for lo in range(0, len(array), 1 << 18):
                    crc = zlib.crc32(np.ascontiguousarray(array[lo : lo + (1 << 18)]), crc)
                if crc != record[f"{name}_crc32"]:
                    return f"the checksum of {name}.npy is wrong. {anew}"
        return None

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
        return np.load(self.path / "keys.npy", mmap_mode="r", allow_pickle=False)

    @cached_property
    def values(self) -> np.ndarray:
        """``(n,) int32``, mapped from disk."""
        return np.load(self.path / "values.npy", mmap_mode="r", allow_pickle=False)

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
        """The checksum of keys and values, by which an index knows its datastore."""
        return f"{self.record['keys_crc32']:08x}{self.record['values_crc32']:08x}"

    def values_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the value of each id, same shape, int32; −1 where the id is −1."""
        ids = np.asarray(ids)
        return np.where(ids < 0, np.int32(-1), self.values[np.maximum(ids, 0)])

    def context(self, row: int, length: int = 16) -> np.ndarray:
        """Return the last ``length`` token ids before a row's value, within its document."""
        start = int(self.document_starts[document_of(self.document_starts, row)])
        first = max(start, row - length + 1)
        if first > 0:
            return np.asarray(self.values[first - 1 : row])
        return np.concatenate([[self.record["first_token"]], self.values[:row]])

    def document_name(self, row: int) -> str:
        """Return the name of the document that a row's key was read from."""
        return self.record["document_names"][int(document_of(self.document_starts, row))]
