"""Show the repository's buttons when the book knows its repository, and none before.

jupyter-book refuses `use_repository_button: true` without an address, and fills in its own
repository when none is given. So the buttons are turned on here, once `_config.yml` has one.

Colab and Binder open the executed copies, which other programs show well. The workflow that
publishes the pages puts these on a branch of their own, ``executed``.
"""

from __future__ import annotations

JUPYTER_BOOK = "https://github.com/executablebooks/jupyter-book"
BUTTONS = ("use_repository_button", "use_issues_button", "use_edit_page_button")


def choose_buttons(app, config):
    options = config.html_theme_options
    if options.get("repository_url") == JUPYTER_BOOK:
        options["repository_url"] = ""
        options["launch_buttons"] = {}
    for button in BUTTONS:
        options[button] = bool(options.get("repository_url"))


def open_executed(app, page, template, context, doctree):
    branch = app.config.html_theme_options.get("repository_branch", "main")
    for group in context.get("header_buttons", []):
        if group.get("label") == "launch-buttons":
            for button in group["buttons"]:
                url = button["url"].replace(f"/blob/{branch}/", "/blob/executed/")
                button["url"] = url.replace(f"/{branch}?", "/executed?")


def setup(app):
    app.connect("config-inited", choose_buttons, priority=1)
    app.connect("html-page-context", open_executed, priority=600)  # the theme adds them at 501
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
