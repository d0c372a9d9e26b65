"""The role ``{result}``: a number in the text that comes from a run.

``{result}`04_mix_and_sweep:perplexity``` reads the key ``perplexity`` from
``$KNNLM_RESULTS/04_mix_and_sweep.json``, which the notebook of that name wrote with
`knnlm.book.results.record`. Text after a bar says how to write the number: a Python format
specification (``gain|.1f``), ``%`` for a share as a percentage, ``bytes`` or ``duration``
(from seconds). In a table of Markdown the bar is written ``\\|``.

The chapter ``measured`` is ``book/measured.json``: what building the book took.

Notebooks run while Sphinx reads them, so the numbers are filled in after all pages are read. A
missing file or key, or a format that does not fit, is a warning; with ``-W`` it ends the build.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

logger = logging.getLogger(__name__)
MEASURED = Path(__file__).resolve().parent.parent / "measured.json"


class result_reference(nodes.Inline, nodes.TextElement):
    """Stands for a number until every page has been read."""


class ResultRole(SphinxRole):
    def run(self):
        node = result_reference(self.rawtext, reference=self.text)
        self.set_source_info(node)
        return [node], []


class FillInResults(SphinxPostTransform):
    default_priority = 5  # before the page's title and summary are taken from the tree

    def run(self, **kwargs):
        for node in list(self.document.findall(result_reference)):
            try:
                text = look_up(node["reference"], results_folder(self.app))
            except ValueError as error:
                logger.warning("result: %s", error, location=node, type="result")
                text = "?"
            node.replace_self(nodes.inline("", text, classes=["result"]))


def results_folder(app) -> Path:
    return Path(os.environ.get("KNNLM_RESULTS") or Path(app.outdir).parent / "results")


def look_up(reference: str, folder: Path) -> str:
    """The text for ``chapter:key|format``; ValueError says what is missing."""
    reference, _, spec = reference.partition("|")
    chapter, colon, key = reference.strip().partition(":")
    if not colon:
        raise ValueError(f"'{reference}' is not of the form chapter:key")
    path = MEASURED if chapter == "measured" else folder / f"{chapter}.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"'{reference}': the chapter {chapter} has recorded nothing") from None
    if "not here" in values:  # the chapter's page says why it was not run
        return "–"
    if key not in values:
        names = ", ".join(sorted(set(values) - {"artifacts"}))
        raise ValueError(f"'{reference}': {chapter} recorded only {names}")
    try:
        return write(values[key], spec.strip())
    except (TypeError, ValueError):
        raise ValueError(
            f"'{reference}': the format '{spec}' does not fit {values[key]!r}"
        ) from None


def write(value, spec: str) -> str:
    """A value as text.

    >>> write(1618304, ""), write(10.4472, ""), write(0.235, "%"), write("IVF1024", "")
    ('1,618,304', '10.45', '23.5%', 'IVF1024')
    >>> write(829e6, "bytes"), write(335, "duration"), write(41.2, "duration")
    ('829 MB', '5.6 minutes', '41 seconds')
    """
    if spec == "bytes":
        for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if value >= size:
                digits = 0 if value >= 100 * size else 1
                return f"{value / size:.{digits}f} {unit}"
        return f"{value:.0f} bytes"
    if spec == "duration":
        if value < 10:
            return f"{value:.2g} seconds"
        return f"{value / 60:.1f} minutes" if value >= 90 else f"{value:.0f} seconds"
    if not spec and not isinstance(value, str):
        spec = "," if isinstance(value, int) else ",.2f"
    return format(value, ".1%" if spec == "%" else spec)


def prepare(app):
    """Tell the notebooks, which inherit this environment, where their numbers go."""
    folder = results_folder(app).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["KNNLM_RESULTS"] = str(folder)


def setup(app):
    app.add_node(result_reference)
    app.add_role("result", ResultRole())
    app.add_post_transform(FillInResults)
    app.connect("builder-inited", prepare)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
