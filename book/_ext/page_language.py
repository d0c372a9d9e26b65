"""Translated pages, whose names end in _ko: their language, and what stands in a picture's place.

A translated notebook has the code cells of its original, metadata and all, so that one run serves
both. What its pictures show is said in its own metadata: ``alt``, from the original's words to the
translation's. By the language, browsers choose fonts and break lines, and screen readers a voice.
"""

from __future__ import annotations

import json
from pathlib import Path

from docutils import nodes


def is_translation(page: str) -> bool:
    return page.endswith("_ko")


def set_language(app, page, template, context, doctree):
    if is_translation(page):
        context["language"] = "ko"


def translate_alt(app, doctree):
    if is_translation(app.env.docname):
        notebook = Path(app.env.doc2path(app.env.docname))
        alt = json.loads(notebook.read_text("utf-8"))["metadata"].get("alt", {})
        for image in doctree.findall(nodes.image):
            image["alt"] = alt.get(image.get("alt"), image.get("alt", ""))


def setup(app):
    app.connect("html-page-context", set_language)
    app.connect("doctree-read", translate_alt)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
