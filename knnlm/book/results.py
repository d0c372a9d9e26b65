"""The book's numbers: recorded by a chapter's last cell, filled into its prose by the build."""

import os
import sys
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from knnlm.artifacts import NOT_OURS, cache_folder, write_json
from knnlm.errors import needs
from knnlm.evaluation import Interval

used: set[str] = set()  # folders of the cache that this process asked for


def is_small() -> bool:
    """Whether chapters run with less text: ``KNNLM_SMALL=1`` in the environment."""
    return os.environ.get("KNNLM_SMALL", "") not in ("", "0")


def memory() -> int:
    """Return the bytes of memory that this process holds for itself, mapped files left out."""
    with needs("notebooks"):
        import psutil
    used = psutil.Process().memory_info()
    return used.rss - getattr(used, "shared", 0)


def peak_memory() -> int:
    """Return the most bytes of memory that this process has held at any time."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def record(chapter: str, **values: float | int | str | Interval) -> None:
    """Write the numbers of a chapter for the book's prose: ``{result}`chapter:name```.

    Of an interval there are three: ``name``, ``name_low`` and ``name_high``.

    They go to ``$KNNLM_RESULTS/<chapter>.json``, by default to ``results`` in the cache folder;
    a second call with the same chapter replaces the file. With them goes a list of the cache's
    folders that were used, so that others can be removed.

    Warns
    -----
    UserWarning
        When the cache may only be read: the numbers are then not kept.
    """
    named = os.environ.get("KNNLM_RESULTS")
    folder = Path(named).expanduser() if named else cache_folder() / "results"
    numbers = dict(chain.from_iterable(map(_numbers, values, values.values())))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{chapter}.json", numbers | {"artifacts": sorted(used)})
    except OSError as error:
        if named or error.errno not in NOT_OURS:
            raise
        warnings.warn(f"{folder} may only be read: these numbers are not kept.", stacklevel=2)


def _numbers(name: str, value: float | int | str | Interval) -> Iterator[tuple[str, object]]:
    """Yield names and values as json has them."""
    if isinstance(value, Interval):
        for end, bound in zip(("", "_low", "_high"), value, strict=True):
            yield name + end, float(bound)
    else:
        yield name, value.item() if isinstance(value, np.generic) else value


def claim(**claims: bool) -> None:
    """Assert what the prose of a chapter says, by name; only at full size, which it is about.

    Raises
    ------
    AssertionError
        When a claim does not hold.
    """
    wrong = [name for name, holds in claims.items() if not holds]
    if wrong and not is_small():
        raise AssertionError(f"The text of this chapter no longer holds: {', '.join(wrong)}.")
