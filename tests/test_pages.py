"""The built pages, read as files and shown in a browser."""

import os
import re
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import browser
import pytest
import serve
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
HTML = Path(os.environ.get("KNNLM_PAGES") or ROOT / "_build" / "test" / "_build" / "html")

# --- The pages as files ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def book():
    if not (HTML / "index.html").exists():
        pytest.fail("There are no pages to test. Build them first: make test")
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


@pytest.fixture(scope="module")
def address(book):
    with serve.Server(HTML, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.address
        server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    if not browser.find():
        (pytest.fail if browser.in_ci() else pytest.skip)(browser.missing())
    with browser.launch() as program:
        yield program


@pytest.fixture
def context(chromium):
    with chromium.new_context() as context:
        yield context


# A change of theme is told to the page with one of the next frames.
LOOK = """async (theme) => {
    const root = document.documentElement, end = Date.now() + 5000;
    while (root.dataset.theme !== theme && Date.now() < end)
        await new Promise(requestAnimationFrame);
    return {
        theme: root.dataset.theme,
        overflow: root.scrollWidth - window.innerWidth,
        mathErrors: document.querySelectorAll("mjx-merror").length,
        unset: document.querySelectorAll(".math:not(:has(mjx-container))").length,
    };
}"""


@pytest.mark.parametrize("part", [0, 1])  # side by side, with pytest -n 2
def test_pages_work_in_a_browser(part, book, address, context):
    """No script error, nothing from outside, nothing missing, no formula that failed to set, and no
    page wider than a desktop's or a phone's screen, in the light theme and in the dark one."""
    problems, shown = [], {}

    def watch(tab):
        def note_request(request):
            if not request.url.startswith((address, "data:", "blob:")):
                problems.append(f"{shown[tab]}: asks for {request.url}")

        def note_response(response):
            if response.status >= 400:
                problems.append(f"{shown[tab]}: {response.status} for {response.url}")

        tab.on("pageerror", lambda error: problems.append(f"{shown[tab]}: script error: {error}"))
        tab.on("request", note_request)
        tab.on("response", note_response)

    def turn(tab, theme, width):
        tab.emulate_media(color_scheme=theme)
        if tab.viewport_size["width"] != width:
            tab.set_viewport_size({"width": width, "height": 900})

    names = [name for name in sorted(book) if not name.startswith("_modules/")]
    names.remove("index.html")  # it only leads to the first page
    names = names[part::2]
    # One visit for all four, and every other page is loaded dark and narrow.
    looks = [("light", 1400), ("dark", 1400), ("dark", 390), ("light", 390)]
    visits = [(name, looks[:: -1 if i % 4 > 1 else 1]) for i, name in enumerate(names)]
    tab, following = context.new_page(), context.new_page()
    watch(tab)
    watch(following)

    def start(tab, name, looks):
        shown[tab] = name
        turn(tab, *looks[0])
        tab.goto(address + name, wait_until="commit")

    start(following, *visits[0])
    for i, (name, looks) in enumerate(visits):
        tab, following = following, tab
        if visits[i + 1 :]:  # one page loads while the one before is looked at
            start(following, *visits[i + 1])
        tab.wait_for_load_state("load")
        tab.evaluate("() => window.MathJax?.startup?.promise")
        for theme, width in looks:
            turn(tab, theme, width)
            seen = tab.evaluate(LOOK, theme)
            if seen != {"theme": theme, "overflow": 0, "mathErrors": 0, "unset": 0}:
                problems.append(f"{name}, {theme}, at {width} pixels: {seen}")
    assert not problems, "\n".join(problems)


CUT_OFF = """() => [...document.querySelectorAll(".bd-article *")].filter(element => {
    const page = document.documentElement.clientWidth, box = element.getBoundingClientRect();
    const cut = element.scrollWidth > element.clientWidth + 1 && element.clientWidth
        && getComputedStyle(element).overflowX !== "visible";
    return cut || (box.width && box.right > page + 1);
}).map(element => `${element.tagName}.${element.className}`)"""


def test_on_paper_nothing_is_cut_off_and_no_solution_shown(book, address, context):
    tab = context.new_page()
    tab.set_viewport_size({"width": 700, "height": 1000})  # A4 between its margins
    tab.emulate_media(media="print")
    problems = []
    for name in sorted(book):
        if name.startswith(("notebooks/", "book/")):
            tab.goto(address + name, wait_until="load")
            problems += [f"{name}: {element}" for element in tab.evaluate(CUT_OFF)]
            if any(solution.is_visible() for solution in tab.query_selector_all(".solution")):
                problems.append(f"{name}: a solution")
    assert not problems, "\n".join(problems)
