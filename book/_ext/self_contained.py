"""Keep the built book readable with no network.

Sphinx would load MathJax from a CDN, and jupyter-book always loads sphinx-thebe, whose script is
fetched from a CDN as well and declares its constants twice. This extension copies the few files of
MathJax that the book's formulas use, and unplugs thebe.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

#: Everything a page asks for: the program with TeX input, its fonts, and two commands that MathJax
#: fetches on first use. The whole package is 24 MB; this is 1.6 MB.
MATHJAX_FILES = (
    "tex-chtml.js",
    "output/chtml/fonts/woff-v2",
    "input/tex/extensions/boldsymbol.js",
    "input/tex/extensions/color.js",
)


def copy_mathjax(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    source = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for name in MATHJAX_FILES:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


def unplug_thebe(app):
    """Remove what sphinx-thebe registered; its scripts and settings then reach no page."""
    for listeners in app.events.listeners.values():
        listeners[:] = [
            one for one in listeners if not one.handler.__module__.startswith("sphinx_thebe")
        ]
    app.registry.css_files[:] = [
        one for one in app.registry.css_files if one[0] != "sphinx-thebe.css"
    ]


def setup(app):
    unplug_thebe(app)
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
