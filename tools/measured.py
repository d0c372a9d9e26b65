"""Write down what the last builds measured: the seconds, the disk, and the README's numbers.

    python tools/measured.py      (`make measured`, after `make book` and `make test`)

`book/measured.json` is committed: from it come the README's table and case, what the book says of
its own building, and the time left that a first build shows. Times are those of a build from an
empty cache; of a later one they are left as they were.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from datetime import date
from pathlib import Path

import build_book
import clean_cache
import contents
import nbformat
from jupyter_cache import get_cache

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book" / "_ext"))
from results import look_up, write  # noqa: E402

MEASURED = ROOT / "book" / "measured.json"
FIGURE = ROOT / "book" / "pictures" / "measured.svg"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
SECTION = """\
![Perplexity over λ, one curve for each number of neighbors: each falls from the language model's \
level to a minimum and rises again; more neighbors give a lower curve.](book/pictures/measured.svg)

| measured on {date}, on {machine} | |
|---|---|
| the model of the first chapters | {01_train_a_language_model:parameters} parameters, trained in \
{01_train_a_language_model:training_seconds|duration} |
| its memory | {02_build_a_datastore:keys} keys, {02_build_a_datastore:bytes|bytes} |
| perplexity on countries that neither has read | {04_mix_and_sweep:perplexity_lm|.1f} alone, \
**{04_mix_and_sweep:perplexity|.1f}** with the memory |
| a model of speeches that meets countries | \
{07_a_new_domain_without_training:perplexity_lm|,.0f} alone, \
**{07_a_new_domain_without_training:perplexity|.0f}** with a memory of countries |
| SmolLM2, 135 million parameters | {10_a_pretrained_model:perplexity_lm|.1f} alone, \
**{10_a_pretrained_model:perplexity|.1f}** with a memory |

One case, from the article on {05_read_the_cases:case_country}:

> {05_read_the_cases:case_context}

What comes next is "{05_read_the_cases:case_token}". The model alone gives that a
probability of {05_read_the_cases:case_lm|.0e}, with its memory
{05_read_the_cases:case_mixture|.1f}. The nearest
place that the memory found is in the article on {05_read_the_cases:case_source}:

> {05_read_the_cases:case_source_context}
"""


IN_BRACES = re.compile(r"\{([^}|]+)\|?([^}]*)\}")


def references() -> list[str]:
    """What the README's section takes from the chapters, as ``chapter:key``."""
    return [name for name, _ in IN_BRACES.findall(SECTION) if ":" in name]


def section(measured: dict) -> str:
    """The README's section, from what was measured."""
    values = measured | measured["numbers"]
    return IN_BRACES.sub(lambda found: write(values[found[1]], found[2]), SECTION)


def machine() -> str:
    """The kind of machine in words."""
    from knnlm.device import choose_device, choose_precision

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    dtype = str(choose_precision("auto", choose_device("auto"))).removeprefix("torch.")
    return f"{os.cpu_count()} cores ({name}) in {dtype}"


def numbers(results: Path) -> dict:
    """The raw values of the README's references."""
    found = {}
    for reference in references():
        look_up(reference, results)  # says what is missing
        chapter, key = reference.split(":")
        found[reference] = json.loads((results / f"{chapter}.json").read_text("utf-8"))[key]
    return found


def figure(place: build_book.Place) -> str:
    """The drawing of the sweep, from the run of chapter 4."""
    notebook = nbformat.read(contents.notebooks()["04_mix_and_sweep"], as_version=4)
    _, executed = get_cache(place.cache).merge_match_into_notebook(notebook)
    for cell in executed.cells:
        if "plotting.sweep_curves" in cell.source:
            for output in cell.outputs:
                if "image/svg+xml" in output.get("data", {}):
                    return output.data["image/svg+xml"]
    raise ValueError("Chapter 4 has no drawing of its sweep. Build the book first: make book")


def main() -> int:
    before = json.loads(MEASURED.read_text("utf-8")) if MEASURED.exists() else {}
    full, small = (build_book.Place(ROOT, of_test) for of_test in (False, True))
    measured = {"date": date.today().isoformat(), "machine": machine()}
    for name, place in (("full", full), ("small", small)):
        cold = place.read().get("cold")
        measured[name] = cold or before.get(name, {"seconds": {}, "whole": 0})
    used = clean_cache.in_use(sorted(full.results.glob("*.json"))) or set()
    folders = [clean_cache.cache_folder() / name for name in used]
    measured |= {
        "book_seconds": measured["full"]["whole"],
        "test_seconds": measured["small"]["whole"],
        "cache_bytes": sum(map(clean_cache.size, folders)),
        "packages_bytes": clean_cache.size(Path(sys.prefix)),
        "numbers": numbers(full.results),
    }
    text = json.dumps(measured, indent=1, ensure_ascii=False, sort_keys=True)
    MEASURED.write_text(text + "\n", "utf-8")
    FIGURE.write_text(figure(full), "utf-8")
    readme = ROOT / "README.md"
    head, rest = readme.read_text("utf-8").split(BEGIN)
    readme.write_text(head + BEGIN + section(measured) + END + rest.partition(END)[2], "utf-8")
    print(f"wrote {MEASURED.relative_to(ROOT)}, README.md and {FIGURE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
