"""The command line: the book's steps on your own text and model.

Each command is a function from options to a record, and what of it to show. torch, transformers
and FAISS are imported inside: ``--help`` is quick.
"""

import sys

from knnlm.cli import making, using  # in the order of --help
from knnlm.cli.console import app

__all__ = ["app", "main", "making", "using"]


def main() -> None:
    """Run the command line: ``knnlm`` and ``python -m knnlm``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # λ and every language, whatever the locale
            stream.reconfigure(encoding="utf-8")
    app(prog_name="knnlm")
