"""One progress bar for everything that takes more than two seconds."""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tqdm import tqdm  # text on stderr: no widget, whose scripts come from the network

quiet = os.environ.get("KNNLM_QUIET", "") not in ("", "0")


def progress(
    iterable: Iterable | None = None,
    *,
    description: str,
    unit: str,
    total: int | None = None,
    done: int = 0,
) -> tqdm:
    """Return a tqdm bar on stderr with rate and time left; it appears after two seconds.

    ``KNNLM_QUIET=1`` in the environment, or ``knnlm.progress.quiet = True``, silences all bars.
    """
    return tqdm(
        iterable,
        desc=description,
        unit=f" {unit}",
        total=total,
        initial=done,
        unit_scale=True,
        delay=2,
        leave=False,
        dynamic_ncols=True,
        disable=quiet,
    )


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """Show the time passed while a library works that does not say how far it is."""
    if quiet:
        yield
        return
    finished = threading.Event()

    def tick() -> None:
        with tqdm(desc=description, bar_format="{desc}: {elapsed}", leave=False, delay=2) as bar:
            while not finished.wait(1):
                bar.update()

    ticking = threading.Thread(target=tick, daemon=True)
    ticking.start()
    try:
        yield
    finally:
        finished.set()
        ticking.join()


@contextmanager
def one_bar() -> Iterator[None]:
    """Keep transformers from showing bars of its own, one for each file that it reads or writes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
