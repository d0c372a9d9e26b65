"""The one pass over a text: read it, look up its neighbors, write the table of a retrieval."""

import time
from collections.abc import Iterator

import numpy as np

from knnlm.arrays import Rows, crc32
from knnlm.artifacts import Claim, Record
from knnlm.errors import InputError
from knnlm.index import Index
from knnlm.language_model import LanguageModel, Reading
from knnlm.progress import progress
from knnlm.tokens import TokenStream

ROWS_PER_CHUNK = 4096
FILES = ("targets.npy", "lm_log_prob.npy", "distances.npy", "ids.npy", "queries.npy")


def check_reading(reading: Reading, layer: str, positions: int) -> None:
    """Raise InputError unless a reading has all that a retrieval takes from the model."""
    if (reading.first, reading.stop) != (0, positions):
        raise InputError(
            f"The reading is of positions {reading.first} to {reading.stop - 1}, the text has "
            f"0 to {positions - 1}. Read the whole text, and join what that gives."
        )
    if layer not in reading.keys or reading.log_probs is None:
        lacks = "log-probabilities" if layer in reading.keys else f"keys of {layer}"
        raise InputError(
            f"The reading has no {lacks}. Ask lm.read for log_probs and the datastore's key layer."
        )


def write_table(
    made: Claim, lm: LanguageModel, index: Index, stream: TokenStream, reading: Reading | None
) -> None:
    """Write the table into a claimed folder, from the row on at which an earlier run stopped."""
    record, layer = made.record, index.datastore.record["key_layer"]
    targets = made.folder / "targets.npy"
    if "tokens" not in record:
        np.save(targets, stream.tokens[1:])
        record |= {
            "tokens": len(stream) - 1,
            **stream.about(),
            "precision": lm.precision,
            "forward_seconds": 0.0,
            "search_seconds": 0.0,
            "crc32": {targets.name: crc32(targets)},
        }
        made.save()
    rows = Rows(made, record["tokens"])
    readings = (
        _read_from(lm, stream, record, layer, rows.done)
        if reading is None
        else _in_chunks(reading, layer, rows.done)
    )
    id_type = np.int32 if len(index.datastore) < 2**31 else np.int64
    last = time.perf_counter()
    with progress(description="retrieve", unit="tokens", total=rows.n, done=rows.done) as bar:
        for part in readings:
            assert part.log_probs is not None  # they are asked for, or checked
            read = time.perf_counter()
            distances, ids = index.search(
                part.keys[layer], record["k"], nprobe=record["nprobe"], exact=record["exact"]
            )
            now = time.perf_counter()
            record["forward_seconds"] += read - last
            record["search_seconds"] += now - read
            more = {"queries": part.keys[layer]} if record["queries"] else {}
            ids = ids.astype(id_type)
            rows.append(lm_log_prob=part.log_probs, distances=distances, ids=ids, **more)
            bar.update(part.stop - part.first)
            last = time.perf_counter()


def _read_from(
    lm: LanguageModel, stream: TokenStream, record: Record, layer: str, done: int
) -> Iterator[Reading]:
    """Yield what the model says of the text, from position ``done`` on."""
    how = {"window": record["window"], "stride": record["stride"]}
    for reading in lm.read(stream, **how, key_layers=[layer], log_probs=True, start=done):
        yield reading if reading.first >= done else _some(reading, layer, done, reading.stop)


def _in_chunks(reading: Reading, layer: str, done: int) -> Iterator[Reading]:
    for lo in range(done, reading.stop, ROWS_PER_CHUNK):
        yield _some(reading, layer, lo, min(lo + ROWS_PER_CHUNK, reading.stop))


def _some(reading: Reading, layer: str, first: int, stop: int) -> Reading:
    assert reading.log_probs is not None
    rows = slice(first - reading.first, stop - reading.first)
    return Reading(first, stop, {layer: reading.keys[layer][rows]}, reading.log_probs[rows])
