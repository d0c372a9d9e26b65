"""What every command shares: options to a record, the record to a table, an error to a message."""

import contextlib
import errno
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option
from typer.core import TyperCommand

from knnlm.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(
    help="k-nearest-neighbor language models: train, build a datastore, index it, measure, read.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, Option("--json", help="Print the result as one JSON object.")]
Quiet = Annotated[bool, Option("--quiet", help="Show no progress.")]
Result = tuple[dict, object]
"""A command's record, and what of it to show."""

RESUME = {
    "train": "Run the same command with --resume: it goes on from the last checkpoint.",
    "build": "Run the same command again: it goes on where it stopped.",
    "index": "Run the same command again: it goes on where it stopped.",
}


class Command(TyperCommand):
    """A command to which a value out of range is the user's input, not a wrong usage."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Exit with 1 for a value that an option cannot have; with 2, as ever, for others."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if type(error) is not typer.BadParameter:  # a required option is missing
                raise
            note(f"{error.format_message().rstrip('.')}. See {ctx.command_path} --help.")
            raise typer.Exit(1) from error


def command(function: Callable[..., Result]) -> Callable[..., Result]:
    """Make a command of a function that returns its record, and what of it to show."""

    @functools.wraps(function)
    def run(as_json: bool, quiet: bool, **options: object) -> None:
        try:
            _hush(quiet)
            with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints
                record, shown = function(**options)
            if as_json:
                print(json.dumps(plain(record), ensure_ascii=False, allow_nan=False))
            else:
                _show(shown)
        except BrokenPipeError:
            raise  # whoever reads, such as head, has enough
        except (ValueError, OSError, MemoryError) as error:
            note(_complaint(error))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            note(f"\nInterrupted. {RESUME.get(function.__name__, 'Nothing was kept.')}")
            raise typer.Exit(130) from error
        if record.get("problem"):
            note(f"{record['path']}: {record['problem']}")
            raise typer.Exit(1)

    own = signature(function)
    run.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[
            *(p.replace(kind=Parameter.KEYWORD_ONLY) for p in own.parameters.values()),
            Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=AsJson),
            Parameter("quiet", Parameter.KEYWORD_ONLY, default=False, annotation=Quiet),
        ]
    )
    app.command(function.__name__, cls=Command)(run)
    return function


def _hush(quiet: bool) -> None:
    """Keep libraries, before they are imported, to errors; with ``quiet`` switch their bars off."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    if quiet:
        import knnlm.progress

        knnlm.progress.quiet = True
        os.environ["HF_HUB_VERBOSITY"] = "error"
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # those of transformers, too
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


def note(message: str) -> None:
    print(message, file=sys.stderr)


def _complaint(error: Exception) -> str:
    """Return what is wrong and what to do, for an error that a user can cause."""
    text = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    match error:
        case InputError():
            return str(error)
        case MemoryError():
            return f"The memory is too small ({text}). Ask for less at once."
        case OSError(errno=errno.ENOSPC):
            return f"No space is left on the disk ({text}). Free some, and run the command again."
        case OSError(errno=errno.EROFS):
            return f"{error.filename} stands where one may only read. Give another path."
        case FileNotFoundError(filename=str() | Path()):
            return f"{error.filename} does not exist. Check the path."
        case PermissionError(filename=str() | Path()):
            return f"{error.filename} is not yours to read or write. Give another path."
        case OSError():
            return f"{text}. Check the path, the disk and the connection."
    return f"{text}. See knnlm --help for what can be given."


def plain(value: object) -> object:
    """Return the value as JSON can hold it: ``None`` for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value  # NumPy's numbers
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(shown: object) -> None:
    """Print a record as aligned lines, a string as it is, a table of rich by rich."""
    for part in shown if isinstance(shown, list) else [shown]:
        if isinstance(part, dict):
            width = max(map(len, part))
            for name, value in part.items():
                print(f"{name.replace('_', ' '):{width}}  {readable(value, name)}")
        elif isinstance(part, str):
            print(part)
        else:
            from rich.console import Console

            Console(file=sys.stdout, highlight=False).print(part)


def readable(value: object, name: str = "") -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{n.replace('_', ' ')} {readable(v, n or name)}" for n, v in value.items()
        )
    if isinstance(value, list | tuple):
        return " to ".join(map(readable, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int) and name.endswith("bytes"):
        power = min((len(str(value)) - 1) // 3, 5)
        unit = ("bytes", "kB", "MB", "GB", "TB", "PB")[power]
        return f"{value / 1000**power:,.{min(power, 2)}f} {unit}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < math.inf else f"{value:.5g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(columns: list[str], rows: Iterable[Iterable]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("context", "index") else "right")
    for row in rows:
        table.add_row(*(Text(readable(cell)) for cell in row))
    return table


def end_of(text: str, cells: int) -> str:
    """Return the end of a text in one line, as wide on a terminal as so many Latin letters."""
    from rich.cells import set_cell_size

    return "…" + set_cell_size(" ".join(text.split())[::-1], cells)[::-1].lstrip()
