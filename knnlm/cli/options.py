"""Options that several commands take, and the checks of what is given for them."""

import math
from pathlib import Path
from typing import Annotated

from typer import Option

from knnlm.errors import InputError

TEXT = (
    "A UTF-8 file, a folder of .txt files, a corpus with its split (factbook:validation), or a hub "
    "dataset (hf:wikimedia/wikipedia:20231101.ko). Can be given more than once."
)
NUMBERS = "Numbers, and ranges first:last:step."
Model = Annotated[str, Option(help="A model folder, or a model's name on the hub.")]
Texts = Annotated[list[str], Option("--text", help=TEXT)]
MoreTexts = Annotated[list[str] | None, Option(help="Another text to report on, as --text.")]
Split = Annotated[bool, Option("--split-documents", help="Blank lines in files end documents.")]
IndexFolder = Annotated[Path, Option("--index", help="An index, or the datastore that holds it.")]
K = Annotated[int, Option("--k", min=1, help="Neighbors of each token.")]
Lam = Annotated[float, Option(help="λ, the share of p_kNN in the mixture: 0 to 1.")]
Temperature = Annotated[float, Option(help="T of p_kNN, above 0: it divides distances.")]
Nprobe = Annotated[int | None, Option(min=1, help="Lists visited, if not as the index was built.")]
Exact = Annotated[bool, Option("--exact", help="Compute distances anew from the keys.")]
Device = Annotated[str, Option(help="auto, cpu, cuda or mps.")]
Precision = Annotated[str, Option(help="auto, float32, bfloat16 or float16.")]
Seed = Annotated[int, Option(min=0, max=2**32 - 1, help="Of everything random.")]


def check_mixture(lams: list[float], temperatures: list[float]) -> None:
    """Complain before a model has been loaded."""
    for lam in lams:
        if not 0 <= lam <= 1:
            raise InputError(f"λ is {lam}. It is a share: choose one from 0 to 1.")
    for temperature in temperatures:
        if not 0 < temperature < math.inf:
            raise InputError(
                f"The temperature is {temperature}. It divides distances: choose one above 0."
            )


def check_output(*files: Path | None) -> None:
    """Complain about a file that could not be written, before the work that it is for."""
    for file in files:
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise InputError(f"{file} cannot be written. Give a file in a folder that exists.")


def numbers(option: str, text: str, kind: type = float) -> list:
    """Return the numbers of a list with ranges, both ends included: ``0:1:0.25,8``."""
    found = []
    try:
        for part in text.split(","):
            first, *rest = map(kind, part.split(":"))
            last, step = rest or (first, 1)
            steps = (last - first) / step
            if not (step > 0 and 0 <= steps < 10_000):
                raise ValueError(f"no range: {part}")
            found += [round(first + i * step, 10) for i in range(int(steps + 1e-9) + 1)]
    except (ValueError, ArithmeticError) as error:
        raise InputError(
            f"{option} {text!r} is no list of {'whole ' * (kind is int)}numbers. "
            "Write e.g. 1,10,100 or first:last:step."
        ) from error
    return list(dict.fromkeys(found))
