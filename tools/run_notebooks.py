"""Run notebooks, some at a time, each by nbmake and from an empty folder of its own.

Notebooks that begin from one recipe share what it makes first, a model above all. So the first of
them in the contents runs before the others; of what may run, what has most to come goes first.
"""

from __future__ import annotations

import copy
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil

RECIPE = re.compile(r'load_recipe\("(\w+)"\)')
SOLUTION = re.compile(r"^(`{3,}|:{3,})\{solution\}.*?^\1\s*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GUESS = 60.0  # seconds of a notebook that was never run


@dataclass
class Outcome:
    """What became of one notebook."""

    name: str
    notebook: nbformat.NotebookNode
    seconds: float
    error: str = ""  # the exception's name, where it did not run to its end
    problem: str = ""  # what to show a person then


def code_of(notebook) -> list[str]:
    """The source of each code cell."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def solutions_of(notebook) -> list[str]:
    """The code of the exercises' solutions, which stands in the text."""
    return [
        code
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for solution in SOLUTION.finditer(cell.source)
        for code in CODE.findall(solution[0])
    ]


def rows_of(notebooks: Mapping[str, nbformat.NotebookNode]) -> list[list[str]]:
    """The names, those together that begin from one recipe."""
    rows: dict[str, list[str]] = {}
    for name, notebook in notebooks.items():
        found = RECIPE.search("\n".join(code_of(notebook)))
        rows.setdefault(found[1] if found else name, []).append(name)
    return list(rows.values())


def next_of(rows: list[list[str]], left: Mapping[str, float], running: Iterable[str]) -> str | None:
    """The notebook to begin with now: of those that may run, the one with most to come after it.

    ``left`` has the seconds of each; 0 where it has ended.
    """
    to_come = {}
    for first, *others in rows:
        to_come[first] = left[first] and left[first] + sum(map(left.get, others))
        to_come |= {name: left[name] for name in others if not left[first]}
    ready = [name for name in to_come if to_come[name] and name not in running]
    return max(ready, key=to_come.get, default=None)


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(75.4), clock(9)
    ('1:15', '0:09')
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def run_notebooks(
    notebooks: Mapping[str, nbformat.NotebookNode],
    jobs: int,
    environment: Mapping[str, str],
    known: Mapping[str, float],
    finished: Callable[[Outcome], None],
    solutions: bool = False,
) -> list[Outcome]:
    """Run notebooks, say when each begins and ends, and return what became of them.

    Where one fails, the others run all the same. However this ends, no child is left behind.

    Parameters
    ----------
    notebooks
        In the order of the contents; they are not changed.
    jobs
        How many at once.
    environment
        For the kernels, besides what is set already.
    known
        Seconds that a notebook took before, to say how long it may take now.
    finished
        Called with each outcome as it comes.
    solutions
        Whether the code of the solutions runs behind each notebook's own.
    """
    rows = rows_of(notebooks)
    threads = max(1, (os.cpu_count() or 1) // max(1, min(jobs, len(notebooks))))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),  # more of them than cores wait for each other
        "GOMP_SPINCOUNT": "10000",
        "TOKENIZERS_PARALLELISM": "false",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a warning of each kernel
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # the others take a second to load
        **environment,
    }
    left = {name: max(1.0, known.get(name, GUESS)) for name in notebooks}  # seconds; 0: ended
    width = max(map(len, notebooks), default=0)
    began, running, outcomes = time.monotonic(), {}, []
    ended: queue.Queue[Outcome] = queue.Queue()

    def say(name: str, what: str) -> None:
        now = time.monotonic()
        for other, (_, start, expected) in running.items():
            left[other] = max(5.0, expected - (now - start))
        longest = max(left[row[0]] + max(map(left.get, row[1:]), default=0) for row in rows)
        to_go = max(longest, sum(left.values()) / jobs)
        more = f", about {clock(to_go)} to go" if to_go else ""
        print(f"{clock(now - began):>6}  {name:{width}}  {what}{more}", flush=True)

    with tempfile.TemporaryDirectory(prefix="knnlm-", ignore_cleanup_errors=True) as folder:
        try:
            while len(outcomes) < len(notebooks):
                name = next_of(rows, left, running) if len(running) < jobs else None
                if name:
                    notebook = with_solutions(notebooks[name]) if solutions else notebooks[name]
                    process = _start(name, notebook, Path(folder), environment, ended)
                    running[name] = (process, time.monotonic(), left[name])
                    say(name, "begins")
                    continue
                outcome = ended.get()
                del running[outcome.name]
                left[outcome.name] = 0
                outcomes.append(outcome)
                how = "failed after" if outcome.error else "took"
                say(outcome.name, f"{how} {clock(outcome.seconds)}")
                finished(outcome)
        finally:
            end_processes(process for process, *_ in running.values())
    return outcomes


def with_solutions(notebook) -> nbformat.NotebookNode:
    """A copy that runs the solutions' code at its end, as a reader would who tries them."""
    longer = copy.deepcopy(notebook)
    longer.cells += [nbformat.v4.new_code_cell(code) for code in solutions_of(notebook)]
    return longer


def _start(name, notebook, folder: Path, environment, ended: queue.Queue) -> subprocess.Popen:
    """Have nbmake run a copy in a folder of its own; a thread waits for it."""
    own = folder / name
    own.mkdir()
    path, log = own / f"{name}.ipynb", folder / f"{name}.log"
    nbformat.write(notebook, path)
    nbmake = [sys.executable, "-m", "pytest", "-q", "-p", "nbmake.pytest_plugin"]
    nbmake += ["-p", "no:cacheprovider", "--rootdir", str(own)]
    nbmake += ["--nbmake", "--overwrite", "--nbmake-timeout", "3600", path.name]
    start = time.monotonic()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            nbmake,
            cwd=own,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes to us, and we end it
        )

    def wait() -> None:
        status = process.wait()
        seconds = time.monotonic() - start
        try:
            outcome = Outcome(name, nbformat.read(path, 4), seconds)
        except FileNotFoundError:  # we were stopped, and its folder is gone
            return
        if status:
            outcome.error, outcome.problem = _what_failed(outcome.notebook, log)
        shutil.rmtree(own, ignore_errors=True)
        ended.put(outcome)

    threading.Thread(target=wait, daemon=True).start()
    return process


def _what_failed(notebook, log: Path) -> tuple[str, str]:
    """The exception's name, and the cell with its traceback; else the end of what nbmake said."""
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                code = "\n".join(f"    {line}" for line in cell.source.splitlines())
                trace = "\n".join(output.traceback)
                return output.ename, f"cell {number}:\n\n{code}\n\n{trace}"
    said = log.read_text("utf-8", errors="replace").strip().splitlines()
    return "unknown", "\n".join(said[-20:]) or "It ended without a word."


def end_processes(processes: Iterable[subprocess.Popen]) -> None:
    """End processes and all that they started: kernels have sessions of their own."""
    family = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            family += [*parent.children(recursive=True), parent]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs(family, timeout=5)
    for member in alive:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(alive, timeout=5)
