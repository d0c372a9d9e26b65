"""Folders that say what they are: a json record beside arrays, written so that nothing is lost."""

import json
import os
import zlib
from pathlib import Path

import filelock
import numpy as np
import platformdirs

from knnlm.errors import InputError

FORMAT = 1


def cache_folder() -> Path:
    """Return where artifacts are kept: ``$KNNLM_CACHE``, or the platform's cache folder."""
    return Path(os.environ.get("KNNLM_CACHE") or platformdirs.user_cache_dir("knnlm"))


def alone(folder: Path) -> filelock.FileLock:
    """Return a lock, so that of two processes one makes an artifact and the other waits."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(f"{folder}.lock")


def write_json(path: Path, record: dict) -> None:
    """Replace a json file in one step, so that a reader never meets half of one."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


class Record(dict):
    """What a json file says; a name that is not there is the file's defect, not a ``KeyError``."""

    def __init__(self, path: Path, entries: dict):
        super().__init__(entries)
        self.path = path

    def __missing__(self, name: str):
        raise InputError(f"{self.path} lacks {name!r}. Delete {self.path.parent} and build again.")


def read_record(folder: Path, kind: str) -> Record:
    """Return what ``folder/kind.json`` says.

    Raises
    ------
    InputError
        When the folder holds no such thing, or one in another version of the format.
    """
    path = folder / f"{kind}.json"
    if not path.exists():
        raise InputError(
            f"{folder} holds no {kind}: {path.name} is missing. Check the path, or build one."
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}. Delete {folder} and build again.") from error
    made = record.get("format") if isinstance(record, dict) else None
    if made != FORMAT:
        raise InputError(
            f"{folder} has format {made}, this knnlm reads format {FORMAT}. Build it again."
        )
    return Record(path, record)


def refuse_differences(record: dict, wanted: dict, folder: Path) -> None:
    """Raise InputError where a folder's record and what is wanted now disagree."""
    for name, value in wanted.items():
        if record.get(name) != value:
            raise InputError(
                f"{folder} was begun with {name} {record.get(name)!r}, now it is {value!r}. "
                "Give the same inputs to go on, or another folder to start anew."
            )


def remove_files(folder: Path, *names: str) -> None:
    """Remove these of a folder's files, where they are there, and the folder if none remains."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def create_array(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a new ``.npy`` file mapped for writing, its bytes reserved on the disk.

    Without the reservation a full disk would end the process in the middle of a write.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def file_crc32(path: Path) -> int:
    """Return the checksum of a file, read in pieces."""
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            crc = zlib.crc32(piece, crc)
    return crc
