"""The built book, in a browser and without one, and the numbers that runs put into its text."""

import doctest
import importlib.util
import json
import os
import re
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
EXTENSIONS = ROOT / "book" / "_ext"

# --- The role {result} ----------------------------------------------------------------------------


def load_extension(name):
    spec = importlib.util.spec_from_file_location(name, EXTENSIONS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_results_doctests():
    failed, tried = doctest.testmod(load_extension("results"))
    assert tried
    assert failed == 0


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
    monkeypatch.syspath_prepend(EXTENSIONS)
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


# --- The tool that builds the book ----------------------------------------------------------------


@pytest.fixture
def builder(tmp_path, monkeypatch):
    """tools/build_book.py for a project with one notebook, whose runs are pretended."""
    import build_book
    import nbformat
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn

    monkeypatch.setattr(build_book, "ROOT", tmp_path)
    for name in ("BUILD", "HTML", "RESULTS", "CACHE", "STAMPS"):
        inside = getattr(build_book, name).relative_to(ROOT)
        monkeypatch.setattr(build_book, name, tmp_path / inside)
    for name in ("knnlm", "notebooks"):
        (tmp_path / name).mkdir()
    (tmp_path / "requirements.lock").write_text("")
    (tmp_path / "knnlm" / "code.py").write_text("one = 1")

    class Project:
        path = tmp_path / "notebooks" / "01_first.ipynb"
        numbers = tmp_path / "_build" / "results" / "01_first.json"

        def write(self, source, prose="text"):
            cells = [nbformat.v4.new_markdown_cell(prose), nbformat.v4.new_code_cell(source)]
            nbformat.write(nbformat.v4.new_notebook(cells=cells), self.path)

        def build(self, number=1, succeeds=True):
            """What a build would do; return the chapters that it runs."""
            stamps = build_book.read_stamps()
            to_run = build_book.forget_what_changed(stamps)
            build_book.write_stamps(stamps)
            if to_run:
                self.numbers.parent.mkdir(parents=True, exist_ok=True)
                self.numbers.write_text(json.dumps({"number": number}))
                if succeeds:
                    bundle = CacheBundleIn(nbformat.read(self.path, 4), str(self.path))
                    cache = get_cache(build_book.CACHE)
                    cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            build_book.note_complete_runs(stamps)
            build_book.write_stamps(stamps)
            return to_run

    project = Project()
    project.write("a = 1")
    assert project.build() == ["01_first"]
    return project


def test_unchanged_notebook_is_not_run_again(builder):
    assert builder.build() == []
    builder.write("a = 1", prose="other words")
    assert builder.build() == []
    assert builder.numbers.exists()


def test_changed_code_runs_again(builder):
    builder.write("a = 2")
    assert builder.build() == ["01_first"]
    assert builder.build() == []


def test_changed_module_runs_everything_again(builder):
    (builder.path.parent.parent / "knnlm" / "code.py").write_text("one = 2")
    assert builder.build() == ["01_first"]
    assert builder.build() == []


def test_numbers_of_a_failed_run_do_not_survive(builder):
    builder.write("a = 2")
    assert builder.build(number=2, succeeds=False) == ["01_first"]
    builder.write("a = 1")  # back to the code that ran before: its cached run must not be trusted
    assert builder.build(number=1) == ["01_first"]
    assert json.loads(builder.numbers.read_text()) == {"number": 1}


@pytest.mark.parametrize("change", ["edited", "deleted"])
def test_numbers_changed_by_hand_are_made_again(builder, change):
    builder.numbers.write_text("{}") if change == "edited" else builder.numbers.unlink()
    assert builder.build(number=1) == ["01_first"]
    assert json.loads(builder.numbers.read_text()) == {"number": 1}


# --- The built pages ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def book():
    if not (HTML / "index.html").exists():
        pytest.fail("There is no book to test. Build it first: make book")
    paths = [path for path in HTML.rglob("*.html") if path.parent.name != "_static"]
    return {path.relative_to(HTML).as_posix(): path.read_text("utf-8") for path in paths}


@pytest.fixture(scope="module")
def pages(book):
    """Parsed, without the listings of source code."""
    return {
        name: BeautifulSoup(text, "html.parser")
        for name, text in book.items()
        if not name.startswith("_modules/")
    }


def test_every_page_of_the_contents_is_there(book):
    import yaml

    contents = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    chapters = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    assert {f"{name}.html" for name in [contents["root"], *chapters]} <= set(book)


def test_no_unfilled_markup(pages):
    left_over = {}
    for name, page in pages.items():
        words = [
            text
            for text in page.find_all(
                string=re.compile(r"\{\{|\{(result|cite|py:|doc|ref)|:::|\]\(")
            )
            if not text.find_parent(["pre", "code", "script", "style"])
        ]
        if words:
            left_over[name] = words
    assert not left_over


def test_no_path_of_this_machine(book):
    private = {str(ROOT), sys.prefix, f"{Path.home()}/", os.environ.get("KNNLM_CACHE") or str(ROOT)}
    found = {
        f"{path.relative_to(HTML)}: {words}"
        for path in HTML.rglob("*")
        if path.suffix in {".html", ".js", ".json", ".svg", ".ipynb", ".md", ".txt"}
        for words in private
        if words in path.read_text("utf-8")
    }
    assert not found


def test_internal_links_and_anchors_resolve(book, pages):
    ids = {name: set(re.findall(r'\b(?:id|name)="([^"]+)"', text)) for name, text in book.items()}
    broken = []
    for name, page in pages.items():
        for tag in page.find_all(href=True):
            target, anchor = urldefrag(urljoin(f"book:///{name}", tag["href"]))
            if urlparse(target).scheme != "book":
                continue
            path, anchor = unquote(urlparse(target).path).lstrip("/"), unquote(anchor)
            if not (HTML / path).is_file() or (anchor and anchor not in ids.get(path, {anchor})):
                broken.append(f"{name}: {tag['href']}")
    assert not broken


def test_images_have_a_text_in_their_place(pages):
    missing = []
    for name, page in pages.items():
        for image in page.select(".bd-article img"):
            words = image.get("alt", "")
            if not words or re.fullmatch(r"\S*\.(png|svg|jpe?g)", words):
                missing.append(f"{name}: {image.get('src')}")
        for drawing in page.select(".bd-article .picture svg"):
            if not drawing.get("aria-label"):
                missing.append(f"{name}: an inline drawing")
    assert not missing, "Give the cell the metadata mystnb.image.alt"


def test_reference_pages_are_not_empty(pages):
    assert len(pages["book/glossary.html"].select("dl.glossary > dt")) > 20
    objects = pages["book/api.html"].select("dl.py > dt[id]")
    assert len(objects) > 30
    assert ">>>" not in " ".join(tag.get_text() for tag in pages["book/api.html"].select("dd ul"))
    assert (
        len(pages["book/bibliography.html"].select(".citation-list .citation, div.citation")) > 10
    )


def test_commands_in_the_book_exist(pages):
    """The page on the command line shows every command, and no option that is not there."""
    from typer.main import get_command

    from knnlm.cli import app

    commands = get_command(app).commands
    shown = {}
    for name in ("book/cli.html", "book/how_to_use.html"):
        for code in pages[name].select("pre"):
            for line in code.get_text().replace("\\\n", " ").splitlines():
                if line.startswith("knnlm "):
                    shown.setdefault(line.split()[1], set()).update(re.findall(r"--[a-z-]+", line))
    assert set(shown) == set(commands)
    for name, options in shown.items():
        assert options <= {word for option in commands[name].params for word in option.opts}


# --- The pages in a browser -----------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(book):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if not program:
        pytest.fail(
            "The book is tested in a browser, and no Chromium was found. Install it "
            "(Debian, Ubuntu: apt install chromium), or name the program in CHROMIUM."
        )
    flags = (
        "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
        "--disable-sync --no-first-run"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=flags.split())
        yield browser
        browser.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_work_in_a_browser(book, address, browser, theme):
    """No script error, nothing from outside, nothing missing, no formula that failed to set, and no
    page wider than a desktop's or a phone's screen."""
    context = browser.new_context(color_scheme=theme)
    tab = context.new_page()
    problems, name = [], ""

    def note_request(request):
        if not request.url.startswith((address, "data:", "blob:")):
            problems.append(f"{name}: asks for {request.url}")

    def note_response(response):
        if response.status >= 400:
            problems.append(f"{name}: {response.status} for {response.url}")

    tab.on("pageerror", lambda error: problems.append(f"{name}: script error: {error}"))
    tab.on("request", note_request)
    tab.on("response", note_response)
    expected = {"theme": theme, "overflow": 0, "mathErrors": 0, "unset": 0}
    for name in sorted(book):
        if name.startswith("_modules/") or name == "index.html":
            continue
        tab.goto(address + name, wait_until="load")
        tab.evaluate("() => window.MathJax?.startup?.promise")
        for width in (1400, 390):
            tab.set_viewport_size({"width": width, "height": 900})
            seen = tab.evaluate(
                """() => ({
                    theme: document.documentElement.dataset.theme,
                    overflow: document.documentElement.scrollWidth - window.innerWidth,
                    mathErrors: document.querySelectorAll("mjx-merror").length,
                    unset: document.querySelectorAll(".math:not(:has(mjx-container))").length,
                })"""
            )
            if seen != expected:
                problems.append(f"{name} at {width} pixels: {seen}")
    context.close()
    assert not problems, "\n".join(problems)
