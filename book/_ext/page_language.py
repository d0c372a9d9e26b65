"""Say in which language a page is: a name that ends in _ko is Korean, all others are English.

Browsers choose fonts and break lines by it, and screen readers a voice.
"""

from __future__ import annotations


def set_language(app, page, template, context, doctree):
    if page.endswith("_ko"):
        context["language"] = "ko"


def setup(app):
    app.connect("html-page-context", set_language)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
