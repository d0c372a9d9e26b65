"""How long things take, on a computer that has other things to do."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd


def least_seconds(works: Mapping[str, Callable[[], int]], rounds: int = 3) -> pd.Series:
    """Return the least seconds a token of each work; they take turns, several rounds.

    Whatever else the computer does makes a work longer, never shorter; and taking turns, all works
    meet the same company.

    Parameters
    ----------
    works
        By name: what does the work once, and returns how many tokens it served.
    rounds
        How often each is done.
    """
    seconds = dict.fromkeys(works, np.inf)
    for _ in range(rounds):
        for name, work in works.items():
            begun = time.perf_counter()
            tokens = work()
            seconds[name] = min(seconds[name], (time.perf_counter() - begun) / tokens)
    return pd.Series(seconds)
