"""An index in the making: trained on a sample, filled with keys, saved now and then."""

import os
import time

import faiss
import numpy as np

from knnlm.artifacts import Claim
from knnlm.errors import InputError
from knnlm.factory import read_index, reason, train, write_index
from knnlm.progress import progress

ROWS_PER_CHUNK = 1 << 16
CHECKPOINT_SECONDS = 600
FILES = ("index.faiss", "index.faiss.part")


class IndexBuilder:
    """Trains an index, fills it with keys, and saves it in a claimed folder now and then.

    Parameters
    ----------
    made
        The folder, and the record of what is to be built.
    keys
        ``(N, dim)``, mapped from disk.
    index
        An empty index.
    rows
        Which keys to index; all where it is None.
    n
        How many these are.
    """

    def __init__(
        self,
        made: Claim,
        keys: np.ndarray,
        index: faiss.Index,
        rows: np.ndarray | None,
        n: int,
    ):
        self.claim, self.record, self.keys = made, made.record, keys
        self.index, self.rows, self.n = index, rows, n
        self.file = made.folder / "index.faiss"
        self.record.setdefault("seconds", 0.0)
        self._since = time.perf_counter()

    def _of(self, chosen: slice | np.ndarray) -> np.ndarray:
        """Return some of the keys to index, ``(…, dim) float32``."""
        chosen = chosen if self.rows is None else self.rows[chosen]
        return np.asarray(self.keys[chosen], dtype=np.float32)

    def fill(self) -> None:
        """Go on from what was saved last, or begin.

        Raises
        ------
        InputError
            When the sample is too small, or FAISS cannot build this; then nothing is left to go on
            from, unless something was saved before.
        """
        try:
            if "rows_done" in self.record:
                self.index = read_index(self.file, self.file.stat().st_size)
            else:
                self._train()
            self._add()
        except RuntimeError as error:
            raise InputError(
                f"FAISS cannot build {self.record['factory']!r} over {self.keys.shape[0]:,} keys: "
                f"{reason(error)}. Choose another factory string."
            ) from error

    def _train(self) -> None:
        if not self.index.is_trained:
            generator, size = np.random.default_rng(self.record["seed"]), self.record["train_size"]
            drawn = np.sort(generator.choice(self.n, size, replace=False))
            train(self.index, self._of(drawn), self.record["factory"], self.n)
        self.record["train_seconds"] = time.perf_counter() - self._since
        self._save()

    def _add(self) -> None:
        saved = time.perf_counter()
        done = self.index.ntotal  # a kill may have come between the file and the record
        with progress(description="index", unit="keys", total=self.n, done=done) as bar:
            for lo in range(done, self.n, ROWS_PER_CHUNK):
                some = slice(lo, lo + ROWS_PER_CHUNK)
                chunk = self._of(some)
                if self.rows is None:
                    self.index.add(chunk)
                else:
                    self.index.add_with_ids(chunk, self.rows[some])
                bar.update(len(chunk))
                if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                    self._save()
                    saved = time.perf_counter()
        self._save()

    def _save(self) -> None:
        partial = self.file.with_name(self.file.name + ".part")
        try:
            checksum = write_index(self.index, partial)
        except OSError:
            partial.unlink(missing_ok=True)  # it would be in the way of what needs room
            raise
        os.replace(partial, self.file)
        now = time.perf_counter()
        self.record["seconds"] += now - self._since
        self._since = now
        self.record |= {"rows_done": self.index.ntotal, "bytes": self.file.stat().st_size}
        self.record["crc32"] = {self.file.name: checksum}
        self.claim.save()
