"""What belongs to the book: the pages that `_toc.yml` names. Other notebooks are a reader's own."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def pages() -> list[str]:
    """The pages in their order, as in ``notebooks/01_train_a_language_model``."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *chapters]


def notebooks() -> dict[str, Path]:
    """The notebooks by name, in the order of the contents."""
    paths = (ROOT / f"{page}.ipynb" for page in pages())
    return {path.stem: path for path in paths if path.exists()}


def originals() -> dict[str, Path]:
    """The notebooks that are run: a translation has the code of its original."""
    return {name: path for name, path in notebooks().items() if not name.endswith("_ko")}


if __name__ == "__main__":  # for the Makefile: their paths, a line each
    sys.stdout.write("".join(f"{path.relative_to(ROOT)}\n" for path in notebooks().values()))
