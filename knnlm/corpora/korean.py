"""Korean text that Debian packages carry: fetched without root, cleaned, and checked.

Manuals of LibreOffice and GNOME, and what a game says: they are free, small, and a package client
finds them wherever there is one. What is kept in the cache is the clean text and a record of which
packages it came from.
"""

import gettext
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from knnlm.arrays import check_files, crc32
from knnlm.artifacts import claim, find, read_complete, to_make
from knnlm.corpora.corpus import Corpus
from knnlm.errors import InputError, NotHere, needs
from knnlm.progress import progress
from knnlm.text import Document

PACKAGES = {  # with the versions of which TEXT_SHA256 is the text
    "libreoffice-help-ko": "4:7.4.7-1+deb12u14",
    "gnome-user-docs": "43.0-2",
    "gnome-devel-docs": "40.3-1",
    "cataclysm-dda-data": "0.F-3-9",
}
TEXT_SHA256 = "192ad87a73319482c1586cd379c214f4ef7ee93aaae3f051f6b6c520df90218b"
DOCUMENTS = "documents.jsonl"
MESSAGES_A_DOCUMENT = 50
SHORTEST_DOCUMENT = 100  # characters
SHORTEST_MESSAGE = 20
HEADINGS_AND_PARAGRAPHS = ("h1", "h2", "h3", "h4", "h5", "h6", "p")
HANGUL = re.compile("[가-힣]")
LETTER = re.compile(r"[^\W\d_]")
PLACEHOLDER = re.compile(r"%[0-9$.]*[sdfcu]|<[a-z_]+>|\{\w*\}|\$\w+")
ALTERNATIVES = "Or use other Korean text: the corpus kowiki (from the hub), or your own files."


def documents() -> Iterator[Document]:
    """Yield a document a manual page, or fifty of a game's messages.

    They come from the cache, or after fetching the packages.

    Warns
    -----
    UserWarning
        When the packages have other versions than those of the book, and so another text.

    Raises
    ------
    NotHere
        When there is no Debian package client.
    InputError
        When it cannot fetch the packages.
    """
    folder = find(f"korean/text-{TEXT_SHA256[:16]}", "korean")
    with to_make(folder, "korean") as missing:
        if missing:
            _make(folder)
    check_files(folder, read_complete(folder, "korean"))
    with open(folder / DOCUMENTS, encoding="utf-8") as lines:
        for line in lines:
            name, text = json.loads(line)
            yield Document(name, text)


def _make(folder: Path) -> None:
    """Fetch the packages, clean their text, and write it with a record of what it came from."""
    with claim(folder, "korean", {"expected": TEXT_SHA256}, (DOCUMENTS,)) as made:
        file = folder / DOCUMENTS
        with tempfile.TemporaryDirectory(dir=folder) as place:
            packages = fetch(PACKAGES, Path(place))
            rows = (json.dumps(row, ensure_ascii=False) + "\n" for row in clean(_read(Path(place))))
            file.write_text("".join(rows), encoding="utf-8")
        found = _sha256(file)
        made.record.update(packages=packages, sha256=found, crc32={DOCUMENTS: crc32(file)})
        made.complete()
    if found != TEXT_SHA256:
        versions = {name: package["version"] for name, package in packages.items()}
        warnings.warn(
            "This Korean text is not the book's, so numbers will differ: it was made from "
            f"{versions}, the book's from {PACKAGES}.",
            stacklevel=2,
        )


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def fetch(names: Iterable[str], folder: Path) -> dict[str, dict[str, str]]:
    """Download Debian packages by name, without root, and unpack them into ``folder/NAME``.

    The client checks each against the archive's signed list. Where the system has no list of
    packages, one is fetched into ``folder``.

    Returns
    -------
    dict
        Of each package, its ``version`` and its ``sha256``.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise NotHere(
            "The corpus korean is made from Debian packages, and there is no apt-get and dpkg-deb "
            f"here. Use a Debian or Ubuntu system (Colab is one). {ALTERNATIVES}"
        )
    own: list[str] = []
    packages = {}
    for name in progress(names, description="fetch", unit="packages"):
        done = _run("apt-get", *own, "download", name, cwd=folder)
        if done.returncode and not own:
            for part in ("lists/partial", "cache/archives/partial"):
                (folder / part).mkdir(parents=True)
            own = ["-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
            _run("apt-get", *own, "update", cwd=folder)
            done = _run("apt-get", *own, "download", name, cwd=folder)
        file = next(folder.glob(f"{name}_*.deb"), None)
        if done.returncode or file is None:
            reasons = [line for line in done.stderr.splitlines() if line.startswith("E:")]
            raise InputError(
                f"The Debian package {name} cannot be fetched: "
                f"{(reasons or ['it is not there'])[0].removeprefix('E: ').rstrip('.')}. "
                f"Check the connection and apt's sources. {ALTERNATIVES}"
            )
        version = _run("dpkg-deb", "--field", str(file), "Version", cwd=folder).stdout.strip()
        done = _run("dpkg-deb", "--extract", str(file), str(folder / name), cwd=folder)
        if done.returncode:
            said = done.stderr.splitlines()
            full = [line for line in said if "No space left" in line]  # not the first that it says
            reason = (full or said or ["dpkg-deb does not say why"])[0]
            raise InputError(
                f"The Debian package {name} cannot be unpacked: {reason}. {ALTERNATIVES}"
            )
        packages[name] = {"version": version, "sha256": _sha256(file)}
        file.unlink()
    return packages


def _run(*command: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def _read(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield where each document stands, and its paragraphs as they are."""
    pages = folder / "libreoffice-help-ko/usr/share/libreoffice/help/ko/text"
    for file in sorted(pages.rglob("*.html")):
        yield "LibreOffice", list(_html_paragraphs(file))
    for package in ("gnome-user-docs", "gnome-devel-docs"):
        pages = folder / package / "usr/share/help/ko"
        for file in sorted(f for f in pages.rglob("*") if f.suffix in (".page", ".docbook")):
            yield "GNOME", list(_xml_paragraphs(file))
    catalog = folder / "cataclysm-dda-data/usr/share/locale/ko/LC_MESSAGES/cataclysm-dda.mo"
    with open(catalog, "rb") as opened:
        translations = gettext.GNUTranslations(opened)
    messages = translations._catalog  # type: ignore[attr-defined]  # no public way lists them
    lines = [
        line
        for _, message in sorted(m for m in messages.items() if isinstance(m[0], str) and m[0])
        for line in message.splitlines()
        if len(line) >= SHORTEST_MESSAGE
    ]
    for lo in range(0, len(lines), MESSAGES_A_DOCUMENT):
        yield "Cataclysm", lines[lo : lo + MESSAGES_A_DOCUMENT]


def _html_paragraphs(file: Path) -> Iterator[str]:
    with needs("corpora"):
        import lxml.html
    tree = lxml.html.parse(str(file), lxml.html.HTMLParser(encoding="utf-8"))
    for other_system in tree.xpath('//span[@class="MAC"]'):  # both keyboards are on the page
        other_system.drop_tree()
    for element in tree.iter(*HEADINGS_AND_PARAGRAPHS):
        yield element.text_content()


def _xml_paragraphs(file: Path) -> Iterator[str]:
    with needs("corpora"):
        import lxml.etree
    parser = lxml.etree.XMLParser(resolve_entities=False, no_network=True, recover=True)
    for element in lxml.etree.parse(str(file), parser).iter("{*}title", "{*}p", "{*}para"):
        yield "".join(element.itertext())


def clean(raw: Iterable[tuple[str, list[str]]]) -> Iterator[tuple[str, str]]:
    """Yield name and text of each document: Korean paragraphs, each a line, none of them twice.

    Paragraphs that are for the most part in another script (what was not translated, code), that
    hold a program's placeholders, or that stood in the same or an earlier document, are left out;
    so are documents of which hardly anything remains.
    """
    seen = set()
    number: dict[str, int] = {}
    for source, paragraphs in raw:
        lines = []
        for paragraph in paragraphs:
            line = " ".join(paragraph.split())
            hangul = len(HANGUL.findall(line))
            if hangul < 5 or 2 * hangul < len(LETTER.findall(line)) or PLACEHOLDER.search(line):
                continue
            if line not in seen:
                seen.add(line)
                lines.append(line)
        text = "\n".join(lines)
        if len(text) >= SHORTEST_DOCUMENT:
            number[source] = number.get(source, 0) + 1
            title = lines[0] if len(lines[0]) <= 30 else lines[0][:29] + "…"
            yield f"{source} {number[source]}: {title}", text


KOREAN = Corpus(
    name="korean",
    title="Korean manuals and a game's messages: about 1,850 documents, 1.4 M characters",
    license="MPL-2.0 (LibreOffice), CC BY-SA 3.0 (GNOME, some GFDL; Cataclysm)",
    source="the Debian packages libreoffice-help-ko, gnome-user-docs, gnome-devel-docs and "
    "cataclysm-dda-data",
    citation=(
        "The Document Foundation, LibreOffice Help. The GNOME Project, GNOME Help and "
        "developer documentation. CleverRaven, Cataclysm: Dark Days Ahead. The Korean "
        "translations are by their teams."
    ),
    read=documents,
)
