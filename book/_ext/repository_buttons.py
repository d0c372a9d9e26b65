"""Show the repository's buttons when the book knows its repository, and none before.

jupyter-book refuses `use_repository_button: true` without an address, and fills in its own
repository when none is given. So the buttons are turned on here, once `_config.yml` has one.
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


def setup(app):
    app.connect("config-inited", choose_buttons, priority=1)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
