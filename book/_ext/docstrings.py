"""What autodoc and napoleon get wrong in the page about the module.

- The fields of a named tuple are listed as "Alias for field number 0", though the class describes
  them.
- A property or attribute whose sentence has a colon is taken for "type: description".
- An example below "Parameters" that has no heading of its own is taken for more parameters.
- The signature of an enumeration is that of its metaclass.
"""

from __future__ import annotations

import enum
import re

as_written: dict[str, list[str]] = {}


def skip_field_aliases(app, what, name, member, skip, options):
    alias = (getattr(member, "__doc__", None) or "").startswith("Alias for field number")
    return True if alias else None


def no_signature_for_enums(app, what, name, member, options, signature, returns):
    if what == "class" and issubclass(member, enum.Enum):
        return "", None
    return None


def prepare(app, what, name, member, options, lines):
    if what in ("property", "attribute"):
        as_written[name] = list(lines)
        return
    headed = False
    for number, line in enumerate(lines):
        headed = headed or bool(re.fullmatch(r"-{3,}", line))
        if line.startswith(">>>") and headed and "Examples" not in lines:
            lines[number:number] = ["Examples", "--------"]
            return


def restore(app, what, name, member, options, lines):
    if what in ("property", "attribute"):
        lines[:] = as_written.pop(name)


def setup(app):
    app.connect("autodoc-skip-member", skip_field_aliases)
    app.connect("autodoc-process-signature", no_signature_for_enums)
    app.connect("autodoc-process-docstring", prepare, priority=400)  # napoleon comes at 500
    app.connect("autodoc-process-docstring", restore, priority=600)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
