"""The one error that a user's input can cause, told apart from a defect of ours."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """What the caller gave cannot be used.

    The message is two sentences: what is wrong, with the values that disagree, and what to do.
    The command line prints it without a traceback and exits with code 1.
    """


class NotHere(InputError):
    """What is asked for cannot be had on this kind of system, whatever the input."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import what belongs to an extra; where it is not installed, say which to install.

    Raises
    ------
    InputError
        In place of ``ModuleNotFoundError``.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed. It comes with: pip install 'knnlm[{extra}]'"
        ) from error
