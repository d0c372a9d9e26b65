"""The portable copies of the notebooks: with outputs, and without MyST."""

import base64
import io
import json
import re
from pathlib import Path

import executed
import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


class Stub:
    """Knows a little of everything."""

    def number(self, reference):
        if reference == "chapter:nothing":
            raise ValueError("recorded only bytes")
        return {"chapter:seconds|duration": "5.6 minutes", "chapter:type": "a_b|c"}.get(
            reference, "1"
        )

    def page(self, path):
        if "missing" in path:
            raise ValueError(f"no page of the book: {path}")
        if path.endswith(".ipynb"):
            return "Read the cases", Path(path).name
        return "The method", f"https://o.github.io/n/{path.removesuffix('.md')}.html"

    def citation(self, key):
        return {
            "plain": ("Radford et al.", "2019", ""),
            "linked": ("Gao and Long", "2024", "https://arxiv.org/abs/1"),
        }[key]

    def equation(self, label):
        return "1", "https://o.github.io/n/book/method.html"

    def exercise(self, label):
        return {"first": "4.1"}.get(label, "4.2")


@pytest.fixture
def convert():
    def convert(source, path="notebooks/04_mix.ipynb"):
        notebook = new_notebook(cells=[new_markdown_cell(source)])
        result, problems = executed.portable(notebook, path, Stub())
        assert not problems
        return result.cells[0].source

    return convert


# --- One construct at a time ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        # numbers
        ("It is {result}`chapter:gain|.1f`%.", "It is 1%."),
        ("**{result}`chapter:seconds|duration`**", "**5.6 minutes**"),
        ("| {result}`chapter:seconds\\|duration` |", "| 5.6 minutes |"),
        ("{result}`chapter:type`", "a\\_b\\|c"),
        ("from 2 to\n{result}`chapter:gain`. It", "from 2 to\n1\\. It"),
        ("from 2 to {result}`chapter:gain`. It", "from 2 to 1. It"),
        # citations
        ("by {cite:t}`linked`:", "by [Gao and Long (2024)](https://arxiv.org/abs/1):"),
        ("it {cite}`linked`", "it ([Gao and Long, 2024](https://arxiv.org/abs/1))"),
        ("it {cite:p}`plain`", "it (Radford et al., 2019)"),
        (
            "it {cite:p}`plain, linked`",
            "it (Radford et al., 2019; [Gao and Long, 2024](https://arxiv.org/abs/1))",
        ),
        # other roles
        ("equation {eq}`eq-knn`", "equation [(1)](https://o.github.io/n/book/method.html)"),
        ("{func}`knnlm.bootstrap <knnlm.evaluation.bootstrap>`", "`knnlm.bootstrap`"),
        ("{py:func}`~knnlm.language_model.join` is", "`join()` is"),
        ("{py:class}`knnlm.Datastore`", "`knnlm.Datastore`"),
        ("{math}`a^2`", "$a^2$"),
        # links
        ("[](05_read_the_cases.ipynb) is", "[Read the cases](05_read_the_cases.ipynb) is"),
        ("[Chapter 5](05_read_the_cases.ipynb)", "[Chapter 5](05_read_the_cases.ipynb)"),
        ("[](../book/method.md)", "[The method](https://o.github.io/n/book/method.html)"),
        ("[](../book/method.md#why)", "[The method](https://o.github.io/n/book/method.html#why)"),
        ("[{result}`chapter:gain`](https://a.org)", "[1](https://a.org)"),
        ("[](https://a.org)", "[https://a.org](https://a.org)"),
        ("<https://a.org>", "<https://a.org>"),
        # left alone
        ("`{result}` and `` `a` {b} ``", "`{result}` and `` `a` {b} ``"),
        ("a set {a, b}, $\\{x\\}_{i}$, \\[b\\]", "a set {a, b}, $\\{x\\}_{i}$, \\[b\\]"),
        ("# A title\n\n- one\n- two", "# A title\n\n- one\n- two"),
        ("```python\nx = {y}\n\n\n# :::\n```", "```python\nx = {y}\n\n\n# :::\n```"),
        ("~~~\n{cite}`x`\n~~~", "~~~\n{cite}`x`\n~~~"),
        # GitHub strikes out what is between two of them
        ("장 1~5와 2~3", "장 1\\~5와 2\\~3"),
        # formulas
        ("so\n$$\na = b\n$$\nand", "so\n$$\na = b\n$$\nand"),
        ("$$ a = b $$ (eq-a)", "$$\na = b\n$$"),
        ("$$\na\n$$ (eq-a)\n\nand", "$$\na\n$$\n\nand"),
        ("- one\n\n  $$a$$", "- one\n\n  $$\n  a\n  $$"),
        ("```{math}\n:label: eq-a\na = b\n```", "$$\na = b\n$$"),
        (
            "\\begin{align*}\na &= b\\\\\n\\end{align*}",
            "$$\n\\begin{aligned}\na &= b\\\\\n\\end{aligned}\n$$",
        ),
        ("\\begin{equation}\\label{a}\na\n\\end{equation}", "$$\na\n$$"),
        # what a page does not show
        ("% a comment\n\n(a-target)=\n## A title\n+++\ntext", "## A title\n\ntext"),
        ("one\n% a comment\ntwo", "one\n\ntwo"),
        ("```{raw} html\n<b>1</b>\n```", "<b>1</b>"),
        ("one\n\n```{raw} latex\n\\b\n```\n\ntwo", "one\n\ntwo"),
        # definitions
        (
            "You need\n: Python,\n  no GPU.\n\n*Time*\n: {result}`chapter:gain`\n\n  More.\n\nEnd.",
            "**You need**<br>Python,\nno GPU.\n\n***Time***<br>1\n\nMore.\n\nEnd.",
        ),
        ("List\n: - one\n  - two", "**List**\n\n- one\n- two"),
        ("**A**\n: first", "**A**<br>first"),
        ("A\n: first\n: second", "**A**<br>first\n\nsecond"),
        # boxes
        (
            ":::{admonition} At a glance\n:class: glance\nYou need\n: Python.\n:::",
            "> **At a glance**\n>\n> **You need**<br>Python.",
        ),
        (
            "before\n```{warning}\nOne {result}`chapter:gain`\n\n- two\n```\nafter",
            "before\n\n> **Warning**\n>\n> One 1\n>\n> - two\n\nafter",
        ),
        (":::{note} One\ntwo\n:::", "> **Note**\n>\n> One\n> two"),
        ("- one\n\n  :::{note}\n  two\n  :::", "- one\n\n  > **Note**\n  >\n  > two"),
        (
            ":::{tip}\n$$\na\n= b\n$$\n\n| a |\n|---|\n| $b\nc$ |\n:::",
            "> **Tip**\n>\n> $$ a = b $$\n>\n> | a |\n> |---|\n> | $b c$ |",
        ),
        (
            "::::{note}\n:::{tip}\none\n:::\n::::",
            "> **Note**\n>\n> > **Tip**\n> >\n> > one",
        ),
        (
            "```{dropdown} More\none\n```",
            "<details><summary>More</summary>\n\none\n\n</details>",
        ),
        ("```{code-block} python\nx = {y}\n```", "```python\nx = {y}\n```"),
    ],
)
def test_construct(convert, myst, markdown):
    assert convert(myst) == markdown


EXERCISE = """\
```{exercise} A $\\lambda$ that adapts
:label: first

Why {result}`chapter:gain`?
```

````{solution} first
:class: dropdown

```python
print("{y}")
```

Because.
````
"""


def test_exercise_and_solution(convert):
    assert convert(EXERCISE) == (
        "> **Exercise 4.1 (A $\\lambda$ that adapts)**\n>\n> Why 1?\n\n"
        "<details><summary>Solution to Exercise 4.1</summary>\n\n"
        '```python\nprint("{y}")\n```\n\nBecause.\n\n</details>'
    )


def test_exercise_of_a_translation(convert):
    copied = convert(EXERCISE, "notebooks/04_mix_ko.ipynb")
    assert "**연습 문제 4.1 (" in copied
    assert "<summary>연습 문제 4.1 풀이</summary>" in copied


@pytest.mark.parametrize(
    ("myst", "says"),
    [
        ("{foo}`bar`", "a role that is not known: {foo}`bar`"),
        ("text {doc}`bar` text", "{doc}"),
        (":::{figure} a.png\n:::", "a directive that is not known: {figure}"),
        ("```{code-cell}\n1\n```", "{code-cell}"),
        (":::{note}\n:width: 1\ntext\n:::", "an option that is not known, of {note}: width"),
        (":::{note}\n---\nclass: a\n---\ntext\n:::", "options in YAML"),
        (":::{note}\ntext", "a fence that does not end"),
        ("::: note\ntext\n:::", "a fence that is not known"),
        ("text :::", "MyST that is not known: :::"),
        ("> :::{note}\n> text\n> :::", "MyST that is not known"),
        ("- ```{note}\n  text\n  ```", "MyST that is not known"),
        ("```{exercise}\ntext\n```", "an exercise without a label"),
        ("$$\na", "a formula that does not end"),
        ("from $5 to {result}`chapter:gain` of $6", "a formula with a backtick"),
        ("[text](x.md){.wide}", "attributes"),
        ("[text]{.wide}", "MyST that is not known"),
        ("{.wide}\ntext", "MyST that is not known"),
        ("{{ name }}", "MyST that is not known"),
        ("[](missing.ipynb)", "no page of the book: notebooks/missing.ipynb"),
        ("[](#target)", "a link that is not known"),
        ("<project:a.md>", "a link that is not known"),
        ("![drawing](a.png)", "a picture that the copy would not have"),
        ("[a]: ../book/method.md", "MyST that is not known"),
        (":field: text", "MyST that is not known"),
        (": a definition", "a definition needs one line above it"),
        ("{result}`chapter:nothing`", "recorded only bytes"),
    ],
)
def test_what_is_not_known_is_an_error(myst, says):
    cells = [new_code_cell("1"), new_markdown_cell(myst), new_markdown_cell("good")]
    copied, problems = executed.portable(new_notebook(cells=cells), "notebooks/a.ipynb", Stub())
    assert len(problems) == 1
    assert problems[0].startswith("cell 2: ")
    assert says in problems[0]
    assert copied.cells[2].source == "good"


# --- Outputs --------------------------------------------------------------------------------------


def test_outputs_and_metadata():
    svg = '<svg xmlns="http://www.w3.org/2000/svg"/>'
    cell = new_code_cell(
        "1",
        metadata={
            "tags": ["hide-input"],
            "execution": {"iopub.execute_input": "2026-01-01"},
            "mystnb": {"image": {"alt": 'a "curve"'}},
        },
        outputs=[
            new_output("stream", name="stdout", text="one\n"),
            new_output("stream", name="stderr", text="100%"),
            new_output("stream", name="stdout", text="two\n"),
            new_output("display_data", {"image/svg+xml": svg, "text/plain": "<Figure>"}),
            new_output("display_data", {"image/svg+xml": svg, "image/png": "AA=="}),
        ],
    )
    notebook = new_notebook(cells=[cell], metadata={"alt": {'a "curve"': "곡선"}})
    before = nbformat.writes(notebook)
    copied, problems = executed.portable(notebook, "notebooks/a.ipynb", Stub())
    assert not problems
    assert nbformat.writes(notebook) == before
    nbformat.validate(copied)
    metadata, outputs = copied.cells[0].metadata, copied.cells[0].outputs
    assert metadata["jupyter"]["source_hidden"] is True
    assert metadata["cellView"] == "form"
    assert "execution" not in metadata
    assert [output.output_type for output in outputs] == ["stream", "display_data", "display_data"]
    assert outputs[0].text == "one\ntwo\n"
    assert set(outputs[1].data) == {"text/html", "text/plain"}
    image = BeautifulSoup(outputs[1].data["text/html"], "html.parser").img
    assert image["alt"] == "곡선"
    assert base64.b64decode(image["src"].partition("base64,")[2]).decode() == svg
    assert set(outputs[2].data) == {"image/svg+xml", "image/png"}


def test_folder_of_this_machine_is_an_error():
    cells = [
        new_code_cell("1", outputs=[new_output("stream", name="stdout", text="in /home/me/x")])
    ]
    notebook = new_notebook(cells=cells)
    _, problems = executed.portable(notebook, "notebooks/a.ipynb", Stub(), ["/home/me/"])
    assert problems == ["cell 1: /home/me/ stands in it"]


def test_citations():
    found = executed.read_citations(ROOT / "book" / "references.bib")
    assert found["jegou2011"] == (
        "Jégou et al.",
        "2011",
        "https://doi.org/10.1109/TPAMI.2010.57",
    )
    assert found["gao2024"][0] == "Gao and Long"
    assert found["kogpt2"][:2] == ("SKT-AI", "2021")
    assert found["radford2019"][2] == ""


# --- The notebooks of the book --------------------------------------------------------------------


@pytest.fixture(scope="module")
def copies():
    """Of all notebooks, without outputs, and with 1 for each number."""

    class Numbers(Stub):
        citations = executed.read_citations(ROOT / "book" / "references.bib")

        def number(self, reference):
            return "1"

        def citation(self, key):
            return self.citations[key]

        def page(self, path):
            if not (ROOT / path).is_file():
                raise ValueError(path)
            return super().page(path)

    result = {}
    for path in NOTEBOOKS:
        name = f"notebooks/{path.name}"
        result[path.stem], problems = executed.portable(
            nbformat.read(path, as_version=4), name, Numbers()
        )
        assert not problems, name
    return result


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_without_myst(copies, path):
    source, copied = nbformat.read(path, as_version=4), copies[path.stem]
    nbformat.validate(copied)
    assert len(source.cells) == len(copied.cells)
    for before, after in zip(source.cells, copied.cells, strict=True):
        assert (before.cell_type, before.id) == (after.cell_type, after.id)
        if before.cell_type == "code":
            assert before.source == after.source
            hidden = {"hide-input", "remove-cell"}.intersection(before.metadata.get("tags", []))
            assert after.metadata.get("jupyter", {}).get("source_hidden", False) == bool(hidden)
        else:
            for raw in (":::", "```{", "{result}", "{cite", "{eq}", "func}`", "[](", ".md)"):
                assert raw not in after.source
            for box in ("{exercise}", "{solution}", "{admonition}", "{warning}"):
                assert box not in after.source
    text = "\n\n".join(cell.source for cell in copied.cells if cell.cell_type == "markdown")
    assert text.count("<details>") == text.count("</details>") > 0
    assert re.search(r"^> \*\*.+\*\*\n>\n> \*\*.+\*\*<br>", text, re.MULTILINE)


def test_copy_in_html(copies):
    """What the copy shows, in nbconvert's rendering."""
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter().from_notebook_node(copies["04_mix_and_sweep"])
    page = BeautifulSoup(body, "html.parser")
    box = page.select_one("blockquote")
    bold = [tag.get_text() for tag in box.select("p > strong")]
    assert bold[:3] == ["At a glance", "You will be able to", "You need"]
    remember = page.find("strong", string="What to remember").find_parent("blockquote")
    assert len(remember.select("ul > li")) > 2
    solutions = page.select("details")
    assert len(solutions) == 3
    for solution in solutions:
        assert solution.summary.get_text() == "Solution to Exercise 4.2"
        assert solution.select("p")
    assert any(solution.select(".highlight pre") for solution in solutions)
    assert len(page.select(".jp-RenderedMarkdown table tbody tr")) > 3
    assert page.find("a", string="Read the cases")["href"] == "05_read_the_cases.ipynb"
    shown = [markdown.get_text() for markdown in page.select(".jp-RenderedMarkdown")]
    assert not re.search(r"\*\*|<br>|</?details|^> |\]\(", "\n".join(shown), re.MULTILINE)


# --- In a build -----------------------------------------------------------------------------------

CONFIGURATION = """\
extensions = ["myst_nb", "sphinx_exercise", "sphinxcontrib.bibtex", "results", "executed"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}  # Sphinx keeps another test's otherwise
html_theme = "sphinx_book_theme"
html_theme_options = {"repository_url": "%s"}
html_sourcelink_suffix = ""
nb_execution_mode = "%s"
bibtex_bibfiles = ["references.bib"]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
"""
INDEX = "# A book\n\n```{toctree}\n:numbered:\nnotebooks/a\nbook/method\n```\n\n"
METHOD = """\
# The method

$$a$$ (eq-a)

```{bibliography}
```
"""
PROSE = """\
# Chapter *one*

By {cite:t}`someone`, {result}`a:gain|.1f`%, equation {eq}`eq-a` of [](../book/method.md),
[](a.ipynb).

```{exercise} The first
:label: the-first
Why?
```

```{solution} the-first
Because.
```
"""
SOMEONE = "@misc{someone, author={Long, A. and Gao, B.}, title={T}, year={2020}, doi={10/1}}"


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Build a book of one notebook, whose run is in the cache; return the copy and the warnings."""
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    monkeypatch.setenv("KNNLM_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("KNNLM_CACHE", str(tmp_path / "cache"))
    source, built = tmp_path / "source", tmp_path / "_build"
    for folder in (source / "notebooks", source / "book", built, tmp_path / "results"):
        folder.mkdir(parents=True)
    (tmp_path / "results" / "a.json").write_text(json.dumps({"gain": 23.456}))
    (source / "index.md").write_text(INDEX)
    (source / "book" / "method.md").write_text(METHOD)
    (source / "references.bib").write_text(SOMEONE)

    def build(prose=PROSE, repository="", printed="two\n", mode="cache"):
        (source / "conf.py").write_text(CONFIGURATION % (repository, mode))
        cells = [new_markdown_cell(prose), new_code_cell("print(1 + 1)", id="code")]
        notebook = new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
        nbformat.write(notebook, source / "notebooks" / "a.ipynb")
        ran = nbformat.reads(nbformat.writes(notebook), as_version=4)
        ran.cells[1].execution_count = 1
        ran.cells[1].outputs = [new_output("stream", name="stdout", text=printed)]
        if mode == "cache":
            get_cache(built / ".jupyter_cache").cache_notebook_bundle(
                CacheBundleIn(ran, str(source / "notebooks" / "a.ipynb")),
                check_validity=False,
                overwrite=True,
            )
        warnings = io.StringIO()
        with docutils_namespace():
            app = Sphinx(
                source,
                source,
                built / "html",
                built / "doctrees",
                "html",
                {},
                None,
                warnings,
                freshenv=True,
            )
            app.build(force_all=True)
        if not (built / "executed" / "a.ipynb").exists():
            return None, None, warnings.getvalue()
        text = (built / "executed" / "a.ipynb").read_text("utf-8")
        download = built / "html" / "_sources" / "notebooks" / "a.ipynb"
        assert download.read_text("utf-8") == text
        page = BeautifulSoup(
            (built / "html" / "notebooks" / "a.html").read_text("utf-8"), "html.parser"
        )
        return nbformat.reads(text, as_version=4), page, warnings.getvalue()

    return build


@pytest.mark.parametrize("repository", ["", "https://github.com/owner/name"])
def test_build_leaves_copies(build, repository):
    copied, page, warnings = build(repository=repository)
    assert "WARNING" not in warnings
    method = "https://owner.github.io/name" if repository else "../html"
    method += "/book/method.html"
    assert copied.cells[0].source == (
        "# Chapter *one*\n\n"
        f"By [Long and Gao (2020)](https://doi.org/10/1), 23.5%, equation [(2.1)]({method}) of "
        f"[The method]({method}),\n[Chapter one](a.ipynb).\n\n"
        "> **Exercise 1.1 (The first)**\n>\n> Why?\n\n"
        "<details><summary>Solution to Exercise 1.1</summary>\n\nBecause.\n\n</details>"
    )
    code = copied.cells[1]
    assert (code.source, code.id, code.execution_count) == ("print(1 + 1)", "code", 1)
    assert code.outputs[0].text == "two\n"
    assert "Exercise 1.1" in page.select_one(".exercise .admonition-title").get_text()
    assert "equation (2.1) of" in page.get_text()


def test_unknown_markup_is_a_warning(build):
    _, _, warnings = build(PROSE + "\n{sub}`x`\n")
    assert "WARNING: executed: notebooks/a.ipynb, cell 1: a role that is not known: {sub}`x`" in (
        warnings
    )


def test_folder_in_an_output_is_a_warning(build, tmp_path):
    _, _, warnings = build(printed=f"{tmp_path}/cache/x")
    assert f"WARNING: executed: notebooks/a.ipynb, cell 2: {tmp_path}/cache stands in it" in (
        warnings
    )


def test_notebook_that_did_not_run_is_a_warning(build):
    copied, _, warnings = build(mode="off")
    assert copied is None
    assert "WARNING: executed: notebooks/a.ipynb: its run is not in the cache" in warnings
