"""For each notebook a copy with its outputs, in Markdown that other programs show.

A build leaves it in ``_build/executed``, and the same copy is what a page offers for download.
What could not be put into it is a warning, which with ``-W`` ends the build; it must not reach a
reader raw.

myst-nb's own ``_build/jupyter_execute`` is no help: of a notebook whose run is in the cache it
holds the source, without outputs. The outputs are taken from the cache itself.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from portable import portable
from pybtex.database import parse_file
from results import look_up, results_folder
from sphinx.util import logging

logger = logging.getLogger(__name__)


def read_citations(path) -> dict[str, tuple[str, str, str]]:
    """Authors, year and address of each entry of a file for BibTeX."""
    found = {}
    for key, entry in parse_file(str(path), "bibtex").entries.items():
        names = [
            " ".join(map(str, [*person.rich_prelast_names, *person.rich_last_names]))
            for person in entry.persons.get("author") or entry.persons.get("editor", [])
        ]
        authors = " and ".join(names) if len(names) <= 2 else f"{names[0]} et al."
        fields = entry.fields
        address = fields.get("url", "")
        if "doi" in fields:
            address = f"https://doi.org/{fields['doi']}"
        elif fields.get("archiveprefix", "").lower() == "arxiv" and "eprint" in fields:
            address = f"https://arxiv.org/abs/{fields['eprint']}"
        found[key] = authors, fields.get("year", ""), address
    return found


class Book:
    """A ``Resolver`` that knows what the pages were built from."""

    def __init__(self, app):
        self.app = app
        self.citations = {}
        for name in getattr(app.config, "bibtex_bibfiles", []):
            self.citations |= read_citations(Path(app.srcdir) / name)

    def number(self, reference):
        return look_up(reference, results_folder(self.app))

    def page(self, path):
        page = posixpath.splitext(path)[0]
        if page not in self.app.env.titles or source(self.app, page) != path:
            raise ValueError(f"no page of the book: {path}")
        return self.app.env.titles[page].astext(), self.address(page)

    def address(self, page):
        """From a copy: all copies lie in one folder, next to that of the pages."""
        if source(self.app, page).endswith(".ipynb"):
            return posixpath.basename(page) + ".ipynb"
        repository = self.app.config.html_theme_options.get("repository_url") or ""
        match = re.fullmatch(r"https://github\.com/([\w-]+)/([\w.-]+?)/?", repository)
        site = f"https://{match[1]}.github.io/{match[2]}" if match else "../html"
        return f"{site}/{self.app.builder.get_target_uri(page)}"

    def citation(self, key):
        if key not in self.citations:
            raise ValueError(f"no such source: {key}")
        return self.citations[key]

    def equation(self, label):
        env = self.app.env
        if label not in env.get_domain("math").equations:
            raise ValueError(f"no such equation: {label}")
        page, number = env.get_domain("math").equations[label]
        if env.config.math_numfig and env.config.numfig:
            numbers = env.toc_fignumbers.get(page, {}).get("displaymath", {})
            number = ".".join(map(str, numbers.get(f"equation-{label}", ())))
        return str(number), self.address(page)

    def exercise(self, label):
        registry = getattr(self.app.env, "sphinx_exercise_registry", {})
        page = registry.get(label, {}).get("docname")
        numbers = self.app.env.toc_fignumbers.get(page, {}).get("exercise", {})
        if label not in numbers:
            raise ValueError(f"no such exercise: {label}")
        return ".".join(map(str, numbers[label]))


def source(app, page: str) -> str:
    return Path(app.env.doc2path(page, base=False)).as_posix()


def read(app, path: str):
    """A notebook with the outputs of its run, which the cache of runs has."""
    notebook = nbformat.read(Path(app.srcdir) / path, as_version=4)
    cache = get_cache(app.env.mystnb_config.execution_cache_path)
    try:
        return cache.merge_match_into_notebook(notebook)[1]
    except KeyError:
        raise ValueError("its run is not in the cache") from None


def folders(app) -> list[str]:
    """Of this machine; no copy is to name them."""
    named = {str(app.srcdir), sys.prefix, os.environ.get("KNNLM_CACHE", ""), f"{Path.home()}/"}
    return sorted(folder for folder in named if folder.strip("/"))


def write_copies(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    target = Path(app.outdir).parent / "executed"
    target.mkdir(exist_ok=True)
    for stale in target.glob("*.ipynb"):
        stale.unlink()
    book, private = Book(app), folders(app)
    for page in sorted(app.env.found_docs):
        path = source(app, page)
        if not path.endswith(".ipynb"):
            continue
        try:
            copied, problems = portable(read(app, path), path, book, private)
        except ValueError as error:
            logger.warning("executed: %s: %s", path, error, type="executed")
            continue
        for problem in problems:
            logger.warning("executed: %s, %s", path, problem, type="executed")
        text = nbformat.writes(copied) + "\n"
        (target / Path(path).name).write_text(text, encoding="utf-8")
        download = Path(app.outdir) / "_sources" / path
        if download.exists():
            download.write_text(text, encoding="utf-8")


def setup(app):
    app.connect("build-finished", write_copies)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
