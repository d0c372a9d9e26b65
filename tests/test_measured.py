"""The README's numbers: they are those of the last build, and chapters still record them."""

import ast
import json
from pathlib import Path

import contents
import measured
import nbformat
import pytest

# --- What the README says -------------------------------------------------------------------------


def test_the_readme_says_what_was_measured():
    readme = (measured.ROOT / "README.md").read_text("utf-8")
    _, begin, rest = readme.partition(measured.BEGIN)
    text, end, _ = rest.partition(measured.END)
    assert begin, "README.md has lost the line that begins its measured part"
    assert end, "README.md has lost the line that ends its measured part"
    expected = measured.section(json.loads(measured.MEASURED.read_text("utf-8")))
    assert text == expected, "README.md and book/measured.json differ: make measured"


def test_values_are_written_in_their_formats(monkeypatch):
    lines = {
        "on {date}": "on 2030-01-02",
        "{a:keys} keys, {a:bytes|bytes}": "1,234,567 keys, 829 MB",
        "in {a:seconds|duration}, {a:seconds|.0f} s": "in 5.6 minutes, 335 s",
        "**{b:perplexity|.1f}**, {b:perplexity}": "**12.3**, 12.35",
        "{b:share|%} of {b:large|,.0f}": "23.5% of 5,425",
        "λ {b:small|.0e}": "λ 5e-07",
        'the word "{b:word}"': 'the word "… {a:keys} ⏎"',
    }
    numbers = {
        "a:keys": 1234567,
        "a:bytes": 829e6,
        "a:seconds": 335.0,
        "b:perplexity": 12.345678,
        "b:share": 0.235,
        "b:large": 5424.97,
        "b:small": 5.4e-7,
        "b:word": "… {a:keys} ⏎",
    }
    monkeypatch.setattr(measured, "SECTION", "\n".join(lines))
    made = measured.section({"date": "2030-01-02", "numbers": numbers})
    assert made == "\n".join(lines.values())
    assert set(measured.references()) == set(numbers)


# --- What the chapters record ---------------------------------------------------------------------


def recorded(path: Path) -> dict[str, set[str]]:
    """The names that a notebook's last call of `record` gives, by the chapter that it names."""
    for cell in reversed(nbformat.read(path, as_version=4).cells):
        if cell.cell_type != "code" or "results.record(" not in cell.source:
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("results.record"):
                chapter = ast.literal_eval(node.args[0])
                return {chapter: {keyword.arg for keyword in node.keywords if keyword.arg}}
    return {}


def stale(notebooks: dict[str, Path]) -> list[str]:
    """What the README takes from chapters and is not there, as sentences."""
    problems = []
    for reference in measured.references():
        chapter, key = reference.split(":")
        if chapter not in notebooks:
            problems.append(f"the README's {reference}: there is no chapter {chapter}")
        elif key not in recorded(notebooks[chapter]).get(chapter, ()):
            problems.append(f"the README's {reference}: {chapter} does not record {key}")
    return problems


def test_chapters_record_what_the_readme_takes():
    assert measured.references()
    problems = stale(contents.originals())
    assert not problems, "\n".join([*problems, "Mend SECTION in tools/measured.py."])


def test_a_reference_to_nothing_is_noticed(monkeypatch):
    good = "04_mix_and_sweep:perplexity"
    section = f"{{date}} {{{good}|.1f}} {{04_mix_and_sweep:renamed|.1f}} {{99_gone:keys}}"
    monkeypatch.setattr(measured, "SECTION", section)
    assert stale(contents.originals()) == [
        "the README's 04_mix_and_sweep:renamed: 04_mix_and_sweep does not record renamed",
        "the README's 99_gone:keys: there is no chapter 99_gone",
    ]


@pytest.mark.parametrize(
    ("call", "problems"),
    [
        ('results.record("a", keys=1, other=2)', []),
        ('results.record("a", entries=1)', ["the README's a:keys: a does not record keys"]),
        ('results.record("b", keys=1)', ["the README's a:keys: a does not record keys"]),
        ("dict(keys=1)  # no record", ["the README's a:keys: a does not record keys"]),
    ],
)
def test_a_chapter_that_records_something_else_is_noticed(tmp_path, monkeypatch, call, problems):
    monkeypatch.setattr(measured, "SECTION", "{a:keys}")
    code = ["%matplotlib inline\n!ls", f"import knnlm\n{call}", "print('the end')"]
    cells = [nbformat.v4.new_code_cell(source) for source in code]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    assert stale({"a": tmp_path / "a.ipynb"}) == problems
