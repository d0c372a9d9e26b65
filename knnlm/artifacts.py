"""Folders that say what they are: claimed, locked, gone on with after a kill, and never half.

An artifact is a folder with a record, ``KIND.json``, beside its files. The record is written before
anything else, with what the artifact is made of; only its being there makes a folder ours. It says
``"complete": true`` at the end. From then on nothing in the folder changes, so that whoever opens
it needs no lock, and may have no right to write.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import filelock
import platformdirs

from knnlm.errors import InputError
from knnlm.progress import waiting

FORMAT = 2
LOCK, HOLDER = ".lock", ".holder"
NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)  # what may only be read
LITTLE_ROOM = 1 << 20  # bytes: with less than these free, a disk counts as full


def cache_folders() -> list[Path]:
    """Return where artifacts are looked up, in this order; they are made in the first.

    ``$KNNLM_CACHE`` names the folder, or several with what separates the parts of ``PATH`` between
    them: one's own, and after it those of others, which one may only read. Without it, it is the
    platform's cache folder.
    """
    named = os.environ.get("KNNLM_CACHE", "").split(os.pathsep)
    folders = [Path(name).expanduser().absolute() for name in named if name]
    return folders or [Path(platformdirs.user_cache_dir("knnlm"))]


def cache_folder() -> Path:
    """Return where artifacts are made: the first of :func:`cache_folders`."""
    return cache_folders()[0]


def find(name: str, kind: str) -> Path:
    """Return the folder in a cache that holds this artifact whole, or else where to make it."""
    folders = [folder / name for folder in cache_folders()]
    return next((folder for folder in folders if is_complete(folder, kind)), folders[0])


# --- Records --------------------------------------------------------------------------------------


class Record(dict):
    """What a json file says; a name that is not there is the file's defect, not a ``KeyError``."""

    def __init__(self, path: Path, entries: Mapping[str, object]):
        super().__init__(entries)
        self.path = path

    def __missing__(self, name: str) -> NoReturn:
        raise InputError(f"{self.path} lacks {name!r}. Delete {self.path.parent} and build again.")


def write_json(path: Path, record: Mapping[str, object]) -> None:
    """Replace a json file in one step, so that a reader never meets half of one."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


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
        raise damaged(path, str(error)) from error
    made = record.get("format") if isinstance(record, dict) else None
    if made != FORMAT:
        raise InputError(
            f"{folder} has format {made}, this knnlm reads format {FORMAT}. Build it again."
        )
    return Record(path, record)


def damaged(path: Path, reason: str) -> InputError:
    """Return the error for a file of an artifact that is not what was written."""
    reason = reason.splitlines()[0].rstrip(".")
    return InputError(f"{path} is damaged: {reason}. Delete {path.parent} and build it again.")


def is_complete(folder: Path, kind: str) -> bool:
    """Whether a folder holds such an artifact, whole; one that is damaged is an ``InputError``."""
    return (folder / f"{kind}.json").exists() and bool(read_record(folder, kind)["complete"])


def read_complete(folder: Path, kind: str) -> Record:
    """Return the record of an artifact that is whole.

    Raises
    ------
    InputError
        When there is none, or it was interrupted while it was made.
    """
    record = read_record(folder, kind)
    if not record["complete"]:
        done = f" with {record['rows_done']:,} rows done" if "rows_done" in record else ""
        if (folder / HOLDER).exists():  # it stays when a process is killed
            state = f"{_holder(folder)} is writing it, or was killed{done}"
        else:
            state = f"it was interrupted{done}"
        raise InputError(
            f"The {kind} {folder} is not whole: {state}. "
            "Run the same command again: it goes on from there."
        )
    return record


def refuse_differences(record: Mapping, wanted: Mapping, folder: Path) -> None:
    """Raise InputError where a folder's record and what is wanted now disagree."""
    for name, value in wanted.items():
        before = record.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            refuse_differences(before, value, folder)
        elif before != value:
            raise InputError(
                f"{folder} was begun with {name} {before!r}, now it is {value!r}. "
                "Give the same inputs to go on, or another folder to start anew."
            )


# --- Claims ---------------------------------------------------------------------------------------


@contextmanager
def alone(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of a folder; it is made where it is not there.

    Who holds it may enter again. When a process dies, the system opens its locks.

    Raises
    ------
    InputError
        When another process holds the folder, unless ``wait``.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file. Choose another place for the folder.")
    lock = _acquire(folder, wait)
    outermost = lock.lock_counter == 1
    try:
        if outermost:
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            write_json(folder / HOLDER, {"pid": os.getpid(), "since": now})
        yield
    finally:
        if outermost:
            for name in (HOLDER, f"{HOLDER}.part", LOCK):
                with suppress(OSError):  # Windows removes no file that is open
                    (folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # what is not empty stays
                folder.rmdir()
        lock.release()


def _acquire(folder: Path, wait: bool) -> filelock.BaseFileLock:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK, is_singleton=True)
        try:
            lock.acquire(timeout=0)
        except FileNotFoundError:  # who held the folder has just removed it
            continue
        except filelock.Timeout as error:
            holder = _holder(folder)
            if not wait:
                raise InputError(
                    f"{folder} is being written by {holder}. "
                    "Wait until that has ended, or give another folder."
                ) from error
            with waiting(f"wait for {holder}"), suppress(FileNotFoundError):
                lock.acquire()
        if lock.is_locked and (folder / LOCK).exists():
            return lock
        lock.release()  # of a file that its holder has removed


def _holder(folder: Path) -> str:
    try:
        process = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "another process"
    return f"process {process['pid']} since {process['since']}"


@dataclass(frozen=True)
class Claim:
    """A folder that is held to make an artifact in it, or that has it; see :func:`claim`."""

    folder: Path
    kind: str
    record: Record
    files: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether the artifact is whole already: then there is nothing to do."""
        return self.record["complete"]

    def save(self) -> None:
        """Write the record; all that it tells of must be on the disk before."""
        write_json(self.folder / f"{self.kind}.json", self.record)

    def complete(self) -> None:
        """Say that the artifact is whole."""
        self.record["complete"] = True
        self.save()

    def discard(self) -> None:
        """Remove what was begun: it can never be completed."""
        for name in (f"{self.kind}.json", f"{self.kind}.json.part", *self.files):
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def claim(
    folder: Path, kind: str, wanted: Mapping[str, object], files: tuple[str, ...]
) -> Iterator[Claim]:
    """Claim a folder for an artifact: a new one, one begun with the same inputs, or one complete.

    Parameters
    ----------
    folder
        A new or empty folder, or one that holds such an artifact.
    kind
        What it is to be: the record is ``kind.json``.
    wanted
        What decides what the artifact is, by name: the first entries of its record.
    files
        What may stand in the folder beside the record, complete or not.

    Raises
    ------
    InputError
        When the folder holds something else or another artifact, or another process writes it. Of
        a new artifact, an ``InputError`` while it is made leaves nothing behind.
    OSError
        With ``ENOSPC``, whatever a library says when the disk is full.
    """
    record = _begun(folder, kind)
    if record is not None and record["complete"]:
        refuse_differences(record, wanted, folder)
        yield Claim(folder, kind, record, files)
        return
    with alone(folder):
        record = _begun(folder, kind)  # as it is now that nobody else writes
        is_new = record is None
        if record is None:
            entries = {"format": FORMAT, "complete": False, **wanted}
            record = Record(folder / f"{kind}.json", entries)
        refuse_differences(record, wanted, folder)
        made = Claim(folder, kind, record, files)
        try:
            with full_disk_named(folder):
                if is_new:
                    made.save()
                yield made
        except InputError:
            if is_new:
                made.discard()
            raise


def _begun(folder: Path, kind: str) -> Record | None:
    """Return the record of what was begun in a folder, None in an empty one; refuse any other."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if f"{kind}.json" in names:
        return read_record(folder, kind)
    if foreign := names - {LOCK, HOLDER, f"{HOLDER}.part", f"{kind}.json.part"}:
        raise InputError(
            f"{folder} holds something that is no {kind}: {min(foreign)}. Choose another folder."
        )
    return None


@contextmanager
def to_make(folder: Path, kind: str) -> Iterator[bool]:
    """Yield whether an artifact is still to be made here; others that want it wait for that.

    Raises
    ------
    InputError
        When it is to be made, and the folder is not ours to write.
    """
    if is_complete(folder, kind):
        yield False
        return
    try:
        held = ExitStack()
        held.enter_context(alone(folder, wait=True))
    except OSError as error:
        if error.errno not in NOT_OURS:
            raise
        raise InputError(
            f"{folder} is not there whole, and may not be written here. "
            "Put a folder of your own first: KNNLM_CACHE=mine:theirs."
        ) from error
    with held:
        yield not is_complete(folder, kind)  # whoever was waited for may have made it


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn what libraries say when a disk is full, each in its own words, into that ``OSError``."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) is None and _tells_of_a_full_disk(error, folder):
            reason = os.strerror(errno.ENOSPC)
            raise OSError(errno.ENOSPC, reason, str(folder)) from error
        raise


def _tells_of_a_full_disk(error: Exception, folder: Path) -> bool:
    if os.strerror(errno.ENOSPC) in str(error):
        return True
    with suppress(OSError):
        no_room = shutil.disk_usage(folder).free < LITTLE_ROOM
        return no_room and isinstance(error, OSError | RuntimeError)
    return False
