"""What a thing was made by: one rule for artifacts and notebooks, with no list kept by hand.

A model, a datastore, an index, a table, a notebook's outputs: each is made again when one of these
is another than when it was made, and else found.

- What goes in, by content: the documents of a text, the weights of a model, the keys of a store.
- The settings that its maker is given.
- The code that makes it: the file of its maker, the files of this package which that file imports,
  those which they import, and so on. Comments, docstrings, layout, and the words of errors do not
  count.
- The versions of Python and of the other packages that these files import.
"""

import ast
import hashlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def fingerprint(code: Iterable[str], given: Mapping[str, object], package: Path = PACKAGE) -> str:
    """Return 16 hex digits over what makes a thing, and what it is made of.

    Parameters
    ----------
    code
        The names of the files to begin with, as in ``"training"``.
    given
        Inputs and settings by name. What has a ``fingerprint`` is taken by that.
    package
        The folder of this package.
    """
    made_by = {"code": code_fingerprint(frozenset(code), package), "given": dict(given)}
    written = json.dumps(made_by, sort_keys=True, default=_content)
    return hashlib.sha256(written.encode()).hexdigest()[:16]


def _content(thing: object) -> str:
    """Return by what a thing goes that json does not know."""
    found = getattr(thing, "fingerprint", None)
    if not isinstance(found, str):
        raise TypeError(f"{type(thing).__name__} has no fingerprint.")
    return found


@cache
def code_fingerprint(files: frozenset[str], package: Path = PACKAGE) -> str:
    """Return 16 hex digits over some of our files, what they import, and the packages' versions."""
    reached = {name: _read(package, name) for name in sorted(reach(files, package))}
    foreign = set().union(*(others for _, _, others in reached.values()))
    parts = [(name, content) for name, (content, _, _) in reached.items()]
    return hashlib.sha256(repr((parts, versions(foreign))).encode()).hexdigest()[:16]


def reach(files: Iterable[str], package: Path = PACKAGE) -> set[str]:
    """Return these files and all files of this package that they import, directly or not."""
    reached, waiting = set(), set(files)
    while waiting:
        reached |= waiting
        waiting = set().union(*(_read(package, name)[1] for name in waiting)) - reached
    return reached


@cache
def _read(package: Path, dotted: str) -> tuple[str, set[str], set[str]]:
    """Return a digest of what counts in a file, and what it imports: ours, and others'."""
    tree = what_counts(_path(package, dotted).read_text(encoding="utf-8"))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), *imports(tree, package)


def imports(tree: ast.AST, package: Path = PACKAGE) -> tuple[set[str], set[str]]:
    """Return which of our files some code imports, and which other packages.

    A name that is used as in ``knnlm.Datastore`` stands for the file that has it.
    """
    ours, others = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules, names = [alias.name for alias in node.names], []
        elif isinstance(node, ast.ImportFrom):
            modules, names = [node.module or ""], [alias.name for alias in node.names]
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == package.name
        ):
            modules, names = [package.name], [node.attr]
        else:
            continue
        for module in modules:
            top, _, inner = module.partition(".")
            if top == package.name:
                ours |= {found for name in names or [""] if (found := _file(package, inner, name))}
            elif top not in sys.stdlib_module_names:
                others.add(top)
    return ours, others


def _file(package: Path, module: str, name: str) -> str | None:
    """Return the file, without its ending, in which a module's name is found."""
    for dotted in (f"{module}.{name}".strip("."), module, _files_of_names(package).get(name, "")):
        if dotted and _path(package, dotted).exists():
            return dotted
    return None


def _path(package: Path, dotted: str) -> Path:
    path = package.joinpath(*dotted.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _files_of_names(package: Path) -> dict[str, str]:
    """Return the file of each public name, as ``FILES`` in ``__init__.py`` says."""
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "FILES":
            files = ast.literal_eval(node.value)
            return {name: file for file, names in files.items() for name in names}
    return {}


def what_counts(source: str) -> ast.Module:
    """Return the parsed source without docstrings, and without the words of errors.

    >>> one = what_counts('def f(x):\\n    "Halve."\\n    raise ValueError(f"{x} is odd")  # why')
    >>> other = what_counts('def f(x):\\n    raise ValueError("not even")')
    >>> ast.dump(one) == ast.dump(other)
    True
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc.args = [part for part in node.exc.args if not _is_text(part)]
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [
                part
                for part in body
                if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
    return tree


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)


def versions(modules: Iterable[str]) -> dict[str, str]:
    """Return the version of each package that has one of these modules, and Python's."""
    found = {"python": "{}.{}".format(*sys.version_info)}
    for module in sorted(modules):
        for name in _distributions().get(module, ()):
            found[name] = importlib.metadata.version(name).partition("+")[0]
    return found


@cache
def _distributions() -> dict[str, list[str]]:
    return {
        name: sorted(set(of)) for name, of in importlib.metadata.packages_distributions().items()
    }


MAGIC = re.compile(r"^(\s*)[%!].*$", re.MULTILINE)


def notebook_fingerprint(
    cells: Iterable[str], given: Mapping[str, object], package: Path = PACKAGE
) -> str:
    """Return 16 hex digits over a notebook's code cells and what they use of this package.

    Parameters
    ----------
    cells
        The source of each code cell. All of it counts, since a page shows it.
    given
        What else decides its outputs, by name.
    """
    cells = list(cells)
    tree = ast.parse(MAGIC.sub(r"\1pass", "\n".join(cells)))
    ours, others = imports(tree, package)
    if any(f"-m {package.name}" in cell for cell in cells):
        ours.add("__main__")
    return fingerprint(ours, {"cells": cells, "packages": versions(others), **given}, package)
