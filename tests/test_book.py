"""The numbers that runs put into the text, the tool that builds the book, and how it runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import build_book
import contents
import nbformat
import psutil
import pytest
import run_notebooks
from bs4 import BeautifulSoup
from run_notebooks import Outcome

ROOT = Path(__file__).resolve().parent.parent

# --- The role {result} ----------------------------------------------------------------------------


PAGE = """\
# Numbers

Paragraph {result}`chapter:gain|.1f`%.

| in a table |
|---|
| {result}`chapter:seconds\\|duration` |

- in a list: {result}`chapter:keys`

:::{admonition} In a box
{result}`chapter:bytes|bytes`
:::
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Build one page with Sphinx; return its text, and the warnings."""
    monkeypatch.setenv("KNNLM_RESULTS", str(tmp_path / "results"))
    source, results = tmp_path / "source", tmp_path / "results"
    source.mkdir()
    results.mkdir()
    (results / "chapter.json").write_text(
        json.dumps({"gain": 23.456, "keys": 1618304, "seconds": 335.0, "bytes": 829e6})
    )
    (source / "conf.py").write_text(
        "extensions = ['myst_parser', 'results']\nmyst_enable_extensions = ['colon_fence']\n"
    )

    def build(page):
        from io import StringIO

        from sphinx.application import Sphinx
        from sphinx.util.docutils import docutils_namespace

        (source / "index.md").write_text(page)
        out, warnings = tmp_path / "out", StringIO()
        with docutils_namespace():
            app = Sphinx(source, source, out, out, "html", {}, None, warnings, freshenv=True)
            app.build(force_all=True)
        body = BeautifulSoup((out / "index.html").read_text("utf-8"), "html.parser")
        return body.find("div", class_="body").get_text(), warnings.getvalue()

    return build


def test_results_are_filled_in_everywhere(build):
    text, warnings = build(PAGE)
    assert not warnings
    for number in ("Paragraph 23.5%", "5.6 minutes", "in a list: 1,618,304", "829 MB"):
        assert number in text


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("chapter:nothing", "recorded only bytes, gain, keys, seconds"),
        ("other:gain", "the chapter other has recorded nothing"),
        ("chapter", "not of the form chapter:key"),
        ("chapter:gain|d", "the format 'd' does not fit 23.456"),
    ],
)
def test_missing_result_is_a_warning(build, reference, says):
    _, warnings = build(f"# Numbers\n\n{{result}}`{reference}`\n")
    assert "WARNING" in warnings
    assert says in warnings


def test_a_chapter_that_was_not_run_here_has_no_numbers(build, tmp_path):
    (tmp_path / "results" / "other.json").write_text(json.dumps({"not here": "no apt-get"}))
    text, warnings = build("# Numbers\n\nA gain of {result}`other:gain|.1f`%.\n")
    assert not warnings
    assert "A gain of –%." in text


# --- What is run again ----------------------------------------------------------------------------


class Project:
    """A book of two notebooks, whose runs and pages are pretended, and a copy of the package."""

    def __init__(self, folder, monkeypatch):
        self.root, self.place, self.ran, self.fails = folder, None, [], set()
        (folder / "notebooks").mkdir()
        files = ["root: book/intro", "parts:", "  - chapters:"]
        files += [f"      - file: notebooks/{name}" for name in ("01_first", "02_second")]
        (folder / "_toc.yml").write_text("\n".join(files))
        for module in (build_book, contents):
            monkeypatch.setattr(module, "ROOT", folder)
        monkeypatch.setattr(build_book, "run_notebooks", self.run)
        monkeypatch.setattr(build_book, "build_pages", self.pages)
        monkeypatch.setenv("KNNLM_CACHE", str(folder / "cache"))
        self.write("01_first", "import knnlm\na = 1")
        self.write("02_second", "b = 2")

    def write(self, name, source, prose="text"):
        cells = [nbformat.v4.new_markdown_cell(prose), nbformat.v4.new_code_cell(source)]
        path = self.root / "notebooks" / f"{name}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)

    def run(self, notebooks, jobs, environment, known, finished, solutions):
        outcomes = []
        for name, notebook in notebooks.items():
            self.ran.append(name)
            error = "ValueError" if name in self.fails else ""
            if not error:
                path = Path(environment["KNNLM_RESULTS"]) / f"{name}.json"
                path.write_text(json.dumps({"number": 1}))
            outcomes.append(Outcome(name, notebook, 1.0, error, "cell 1: it failed"))
            finished(outcomes[-1])
        return outcomes

    def pages(self, place):
        place.html.mkdir(parents=True, exist_ok=True)
        (place.html / "index.html").write_text("a page")
        self.ran.append("pages")
        return True

    def build(self, small=False):
        """Build, and return what that took."""
        self.ran, self.place = [], build_book.Place(self.root, small)
        self.status = build_book.build(self.place, 2)
        return self.ran

    def numbers(self, name):
        return self.place.results / f"{name}.json"


BOTH = ["01_first", "02_second", "pages"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    project = Project(tmp_path, monkeypatch)
    assert project.build() == BOTH
    assert project.build() == []
    return project


def test_after_a_sentence_no_notebook_runs(project):
    project.write("01_first", "import knnlm\na = 1", prose="other words")
    assert project.build() == ["pages"]
    assert project.build() == []


def test_after_a_code_cell_that_notebook_runs(project):
    project.write("02_second", "b = 3")
    assert project.build() == ["02_second", "pages"]
    assert project.build() == []


def test_the_two_sizes_do_not_disturb_each_other(project):
    assert project.build(small=True) == BOTH
    assert project.build() == []
    assert project.build(small=True) == []
    assert not (project.root / "_build" / "html" / "_build").exists()


def test_a_readers_own_notebooks_do_not_count(project):
    project.write("Copy of 02….ipynb", "1 / 0")
    project.write("Untitled", "raise SystemExit")
    assert project.build() == []


@pytest.mark.parametrize("change", ["edited", "deleted"])
def test_numbers_changed_by_hand_are_made_again(project, change):
    path = project.numbers("01_first")
    path.write_text("{}") if change == "edited" else path.unlink()
    assert project.build() == ["01_first", "pages"]
    assert json.loads(path.read_text()) == {"number": 1}


def test_pages_changed_by_hand_are_built_again(project):
    (project.place.html / "index.html").write_text("vandalized")
    assert project.build() == ["pages"]


def test_of_a_failed_run_nothing_is_kept_and_of_others_all(project, capsys):
    project.fails = {"01_first"}
    project.write("01_first", "import knnlm\na = 2")
    project.write("02_second", "b = 3")
    assert project.build() == ["01_first", "02_second"]
    assert project.status == 1
    assert "=== 01_first, cell 1: it failed" in capsys.readouterr().err
    assert not project.numbers("01_first").exists()
    project.fails = set()
    project.write("01_first", "import knnlm\na = 1")  # as it ran before: not trusted any more
    assert project.build() == ["01_first", "pages"]


def test_a_place_that_cannot_be_written_to_is_one_sentence(project, monkeypatch):
    (project.root / "file").write_text("")
    monkeypatch.setenv("KNNLM_CACHE", str(project.root / "file" / "cache"))
    project.write("02_second", "b = 3")
    with pytest.raises(
        SystemExit, match=r"The cache folder .* cannot be written to: Not a directory"
    ):
        project.build()


# --- How notebooks are run ------------------------------------------------------------------------


def notebook(*code):
    cells = [nbformat.v4.new_code_cell(source) for source in code]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)


def test_what_begins_from_one_recipe_is_one_row():
    from_one = notebook('import knnlm\nrecipe = knnlm.load_recipe("one")')
    from_two = notebook('recipe = knnlm.load_recipe("two").but(k=8)', 'knnlm.load_recipe("one")')
    given = {"a": from_one, "b": from_two, "c": from_one, "d": notebook("1")}
    assert run_notebooks.rows_of(given) == [["a", "c"], ["b"], ["d"]]


def test_the_first_from_a_recipe_runs_before_the_others_and_the_longest_first():
    rows, left = [["a", "b", "d"], ["c"]], {"a": 1, "b": 2, "c": 4, "d": 9}
    begun = []
    while name := run_notebooks.next_of(rows, left, running=[]):
        begun.append(name)
        left[name] = 0
    assert begun == ["a", "d", "c", "b"]
    assert run_notebooks.next_of(rows, {"a": 1, "b": 2, "c": 4, "d": 9}, ["a", "c"]) is None


SOLVED = """\
Text with `code`.

```python
not_a_solution()
```

````{solution} ex
:class: dropdown

```python
answer = 42
```

And then:

```python
print(answer)
```
````
"""


def test_notebooks_run_side_by_side_each_in_its_own_folder(tmp_path, capsys):
    good = notebook(
        "import os, pathlib\nassert [p.suffix for p in pathlib.Path().iterdir()] == ['.ipynb']",
        "print(os.environ['OMP_NUM_THREADS'], os.environ['SAID'])",
    )
    good.cells.append(nbformat.v4.new_markdown_cell(SOLVED))
    bad = notebook("x = 1", "x / 0", "print('never')")
    ended = []
    outcomes = run_notebooks.run_notebooks(
        {"good": good, "bad": bad}, 2, {"SAID": "so"}, {"good": 9}, ended.append, solutions=True
    )
    assert sorted(outcome.name for outcome in outcomes) == ["bad", "good"]
    assert outcomes == ended
    by_name = {outcome.name: outcome for outcome in outcomes}
    assert not by_name["good"].error
    outputs = [cell.outputs for cell in by_name["good"].notebook.cells if "outputs" in cell]
    threads = max(1, (os.cpu_count() or 1) // 2)
    assert outputs[1][0].text == f"{threads} so\n"
    assert outputs[-1][0].text == "42\n"  # the solution
    assert len(good.cells) == 3  # what was given stays as it was
    assert by_name["bad"].error == "ZeroDivisionError"
    assert "cell 1:\n\n    x / 0" in by_name["bad"].problem
    assert "never" not in by_name["bad"].problem
    said = capsys.readouterr().out
    for words in ("good  begins", "good  took", "bad   failed after", "to go"):
        assert words in said


def test_who_stops_a_build_leaves_no_process_behind(tmp_path):
    """The signal comes while a kernel computes; the kernel, nbmake and the tool all end."""
    mark = f"mark_{os.getpid()}"
    nbformat.write(
        notebook(f"import time\n{mark} = 1\nopen('{tmp_path}/on', 'w')", "time.sleep(600)"),
        tmp_path / "n.ipynb",
    )
    program = tmp_path / "program.py"
    program.write_text(
        "import signal, sys, nbformat\n"
        # `make test &` in a script has SIGINT ignored, and its children inherit that
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
        "from run_notebooks import run_notebooks\n"
        f"notebook = nbformat.read({str(tmp_path / 'n.ipynb')!r}, 4)\n"
        "run_notebooks({'n': notebook}, 1, {}, {}, print)\n"
    )
    process = subprocess.Popen([sys.executable, program], stderr=subprocess.DEVNULL)
    for _ in range(600):
        if (tmp_path / "on").exists():
            break
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_a_full_disk_is_one_sentence(capsys):
    notebook = nbformat.v4.new_notebook()
    trace = "Traceback of where\nOSError: [Errno 28] No space left on device"
    full = Outcome("01_full", notebook, 1.0, "OSError", trace)
    other = Outcome("02_other", notebook, 1.0, "KeyError", "cell 3: KeyError: 'x'")
    build_book.show_failures([full])
    said = capsys.readouterr().err
    assert "The disk is full. Make room, or set KNNLM_CACHE" in said
    assert "Traceback" not in said
    build_book.show_failures([other])
    said = capsys.readouterr().err
    assert "KeyError: 'x'" in said
    assert "disk" not in said
