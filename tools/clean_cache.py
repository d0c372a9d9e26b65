"""Remove from the cache what the last builds did not use (`make clean-cache`), and say how much.

Each chapter notes the artifacts that it used beside its numbers. Models, datastores, indexes and
tables that no chapter of the last full or small build noted are removed: those of other settings,
of code that has changed since, and those that you made in this folder yourself.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import build_book

from knnlm.artifacts import cache_folder

ARTIFACT = re.compile(r"(model|tuned|datastore|index|retrieval)-[0-9a-f]{12,16}")


def in_use(results: list[Path]) -> set[str] | None:
    """The artifacts that chapters noted, as ``corpus/kind-name``; None where nothing was built."""
    noted = [json.loads(path.read_text("utf-8")) for path in results]
    return set().union(*(one.get("artifacts", []) for one in noted)) if noted else None


def size(folder: Path) -> int:
    """Bytes on disk."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> int:
    places = [build_book.Place(build_book.ROOT, small) for small in (False, True)]
    used = in_use([path for place in places for path in sorted(place.results.glob("*.json"))])
    if used is None:
        print("Nothing has been built yet, so nothing is known to be in use. Run make book first.")
        return 1
    cache = cache_folder()
    found = [f for f in sorted(cache.glob("*/*")) if f.is_dir() and ARTIFACT.fullmatch(f.name)]
    unused = [f for f in found if f.relative_to(cache).as_posix() not in used]
    kept = sum(map(size, set(found) - set(unused)))
    gone = sum(map(size, unused))
    print(f"{cache}: {len(found) - len(unused)} artifacts in use, {kept / 1e9:.1f} GB")
    print(f"removing {len(unused)} that are not, {gone / 1e9:.1f} GB", flush=True)
    for folder in unused:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
