"""The book's numbers: recorded by a chapter's last cell, filled into its prose by the build."""

import os
import warnings
from pathlib import Path

from knnlm.artifacts import NOT_OURS, cache_folder, write_json

used: set[str] = set()  # folders of the cache that this process asked for


def is_small() -> bool:
    """Whether chapters run with less text: ``KNNLM_SMALL=1`` in the environment."""
    return os.environ.get("KNNLM_SMALL", "") not in ("", "0")


def record(chapter: str, **values: float | int | str) -> None:
    """Write the numbers of a chapter for the book's prose: ``{result}`chapter:name```.

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
    plain = {name: getattr(v, "item", lambda v=v: v)() for name, v in values.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{chapter}.json", plain | {"artifacts": sorted(used)})
    except OSError as error:
        if named or error.errno not in NOT_OURS:
            raise
        warnings.warn(f"{folder} may only be read: these numbers are not kept.", stacklevel=2)


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
