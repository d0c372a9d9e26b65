"""The arrays of an artifact: reserved on the disk, filled row by row, mapped, checked."""

import os
import time
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from knnlm.artifacts import Claim, Record, damaged

CHECKPOINT_SECONDS = 30.0


class Rows:
    """Arrays of n rows each in a claimed folder, filled from the front; the record knows how far.

    Now and then, and at the end, what was written is made sure of and the record saved: with
    ``rows_done``, ``seconds``, and in ``crc32`` the checksum of each file. A kill costs what came
    after. Rows that are written again are the same, so that the bytes are too.
    """

    def __init__(self, claim: Claim, n: int):
        self.claim, self.n = claim, n
        self.arrays: dict[str, np.memmap] = {}
        claim.record.setdefault("rows_done", 0)
        claim.record.setdefault("seconds", 0.0)
        claim.record.setdefault("crc32", {})
        self._since = self._saved = time.perf_counter()

    @property
    def done(self) -> int:
        """How many rows are there."""
        return self.claim.record["rows_done"]

    def append(self, **rows: np.ndarray) -> None:
        """Write the next rows of every array; the first ones tell its type and width."""
        record = self.claim.record
        first, stop = self.done, self.done + len(next(iter(rows.values())))
        for name, values in rows.items():
            values = np.ascontiguousarray(values)
            array = self._array(name, values)
            array[first:stop] = values
            record["crc32"][f"{name}.npy"] = zlib.crc32(values.data, record["crc32"][f"{name}.npy"])
        record["rows_done"] = stop
        if stop == self.n or time.perf_counter() - self._saved > CHECKPOINT_SECONDS:
            self.save()

    def _array(self, name: str, like: np.ndarray) -> np.memmap:
        if name not in self.arrays:
            file, shape = self.claim.folder / f"{name}.npy", (self.n, *like.shape[1:])
            if self.done:
                self.arrays[name] = open_array(file, shape, "r+")
            else:
                self.arrays[name] = create_array(file, like.dtype, shape)
                self.claim.record["crc32"][file.name] = crc32(file, self.arrays[name].offset)
        return self.arrays[name]

    def save(self) -> None:
        """Bring what was written to the disk, and then the record."""
        for array in self.arrays.values():
            array.flush()
        now = time.perf_counter()
        self.claim.record["seconds"] += now - self._since
        self._since = self._saved = now
        self.claim.save()


def create_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """Return a new ``.npy`` file mapped for writing, its bytes reserved on the disk.

    Without the reservation a full disk would end the process in the middle of a write.
    """
    array = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def open_array(path: Path, shape: tuple[int, ...], mode: Literal["r", "r+"] = "r") -> np.memmap:
    """Return a ``.npy`` file, mapped.

    Raises
    ------
    InputError
        When it is missing, cannot be read, or has another shape.
    """
    try:
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except PermissionError:
        raise
    except (OSError, ValueError, EOFError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        raise damaged(path, reason) from error
    if array.shape != shape:
        raise damaged(path, f"its shape is {array.shape}, and the record says {shape}")
    return array


def crc32(path: Path, size: int | None = None) -> int:
    """Return the checksum of a file, or of its first bytes, read in pieces."""
    crc, left = 0, path.stat().st_size if size is None else size
    with open(path, "rb") as file:
        while left > 0 and (piece := file.read(min(left, 1 << 22))):
            crc = zlib.crc32(piece, crc)
            left -= len(piece)
    return crc


def check_files(folder: Path, record: Record) -> None:
    """Read every byte, and raise InputError where a checksum is not the record's."""
    for name, expected in record["crc32"].items():
        path = folder / name
        if not path.exists():
            raise damaged(path, "it is missing")
        if crc32(path) != expected:
            raise damaged(path, "its checksum is wrong")
