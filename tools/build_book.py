"""Build the book into _build/html, and leave no number in it that another version of the code made.

    python tools/build_book.py            what changed; at once if nothing did
    python tools/build_book.py --force    the pages again, though nothing changed

Sphinx reports a page's warnings only when it reads the page, so every build starts without its
earlier pages. Executed notebooks are kept in _build/.jupyter_cache, which goes by their code cells
alone. What it does not see is watched here:

- the module and the pinned packages: when they change, every notebook runs again;
- the numbers a notebook recorded in _build/results: a notebook whose code changed, or whose file of
  numbers is not the one its last complete run left, loses both and runs again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from jupyter_cache import get_cache

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
HTML = BUILD / "html"
RESULTS = BUILD / "results"
CACHE = BUILD / ".jupyter_cache"
STAMPS = BUILD / "stamps.json"

MODULE = ("knnlm", "requirements.lock")
INPUTS = ("_config.yml", "_toc.yml", "book", "tools")  # of the pages, besides the module


def digest(*parts: bytes) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "big") + part)
    return sha.hexdigest()


def digest_files(*names: str | Path) -> str:
    """Of the names and contents of files, and of all files in folders."""
    found = []
    for name in names:
        path = ROOT / name
        found += [path] if path.is_file() else path.rglob("*")
    parts = []
    for path in sorted(found):
        name = path.relative_to(ROOT).as_posix()
        if path.is_file() and "/." not in name and "__pycache__" not in name:
            parts += [name.encode(), path.read_bytes()]
    return digest(*parts)


def digest_module() -> str:
    size = os.environ.get("KNNLM_SMALL", "")  # the recipes of chapters 7 and later go by it
    return digest(sys.version.encode(), size.encode(), digest_files(*MODULE).encode())


def digest_html() -> str | None:
    return digest_files(HTML) if (HTML / "index.html").exists() else None


def digest_code(notebook) -> str:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return digest(
        *(json.dumps([cell.source, cell.metadata.get("tags", [])]).encode() for cell in cells)
    )


def read_stamps() -> dict:
    try:
        return json.loads(STAMPS.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def write_stamps(stamps: dict) -> None:
    BUILD.mkdir(exist_ok=True)
    temporary = STAMPS.with_suffix(".tmp")
    temporary.write_text(json.dumps(stamps, indent=1, sort_keys=True), encoding="utf-8")
    os.replace(temporary, STAMPS)


def notebooks() -> dict[str, nbformat.NotebookNode]:
    return {
        path.stem: nbformat.read(path, as_version=4)
        for path in sorted(ROOT.glob("notebooks/*.ipynb"))
    }


def recorded(chapter: str) -> str | None:
    path = RESULTS / f"{chapter}.json"
    return digest(path.read_bytes()) if path.exists() else None


def cached(notebook):
    """The record of a complete run of exactly these code cells, or None."""
    try:
        return get_cache(CACHE).match_cache_notebook(notebook)
    except KeyError:
        return None


def forget_what_changed(stamps: dict) -> list[str]:
    """Drop runs and numbers that this code did not make; say which chapters will run."""
    module = digest_module()
    if stamps.get("module") != module:
        shutil.rmtree(CACHE, ignore_errors=True)
        shutil.rmtree(RESULTS, ignore_errors=True)
        stamps["runs"] = {}
    stamps["module"] = module
    runs, chapters, to_run = stamps.setdefault("runs", {}), notebooks(), []
    for chapter in list(runs):
        if chapter not in chapters:
            del runs[chapter]
    for chapter, notebook in chapters.items():
        last = {"code": digest_code(notebook), "numbers": recorded(chapter)}
        record = cached(notebook)
        if record is None or runs.get(chapter) != last:
            to_run.append(chapter)
            runs.pop(chapter, None)
            (RESULTS / f"{chapter}.json").unlink(missing_ok=True)
            if record is not None:
                get_cache(CACHE).remove_cache(record.pk)
    for path in RESULTS.glob("*.json"):
        if path.stem not in chapters:
            path.unlink()
    return to_run


def note_complete_runs(stamps: dict) -> None:
    for chapter, notebook in notebooks().items():
        if cached(notebook) is not None:
            stamps["runs"][chapter] = {"code": digest_code(notebook), "numbers": recorded(chapter)}


def run_jupyter_book() -> int:
    for stale in (HTML, BUILD / ".doctrees"):
        shutil.rmtree(stale, ignore_errors=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "KNNLM_RESULTS": str(RESULTS), "KNNLM_QUIET": "1"}
    jupyter_book = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    build = [*jupyter_book, "build", ".", "-W", "-n", "--keep-going"]
    return subprocess.run(build, cwd=ROOT, env=environment).returncode


def minutes(seconds: float) -> str:
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the book into _build/html.")
    parser.add_argument(
        "--force", action="store_true", help="build the pages though nothing changed"
    )
    force = parser.parse_args().force

    start = time.monotonic()
    stamps = read_stamps()
    inputs = digest(
        digest_module().encode(), digest_files(*INPUTS, *ROOT.glob("notebooks/*.ipynb")).encode()
    )
    unchanged = stamps.get("inputs") == inputs and stamps.get("html") == digest_html()
    if unchanged and not force:
        print(f"The book is up to date: {HTML.relative_to(ROOT)}/index.html")
        return 0

    stamps = {key: stamps[key] for key in ("module", "runs") if key in stamps}
    to_run = forget_what_changed(stamps)
    write_stamps(stamps)
    print("Notebooks to run:", ", ".join(to_run) or "none", flush=True)

    status = run_jupyter_book()
    note_complete_runs(stamps)
    if status == 0:
        stamps |= {"inputs": inputs, "html": digest_html()}
    write_stamps(stamps)

    took = minutes(time.monotonic() - start)
    if status == 0:
        print(f"Built the book in {took}: {HTML.relative_to(ROOT)}/index.html")
    else:
        print(
            f"The book was not built ({took}). Mend the warnings above; what ran is kept.",
            file=sys.stderr,
        )
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
