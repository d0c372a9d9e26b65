r"""A notebook's Markdown in the dialect that GitHub, JupyterLab, VS Code and Colab all show.

These programs do not know MyST: of a chapter's source they show the fences of boxes, roles instead
of numbers, links without words, and solutions that are open. :func:`portable` makes a copy that
says the same in plain Markdown. Code cells are those of the source, and the copy runs like it.

- Boxes become quotations with a bold title, and solutions ``<details>``: all four show these.
- Numbers, titles, citations and equations are written out as on the pages.
- Links lead to other copies, or to the published page when the book knows its repository.
- Drawings become ``<img>``, with the page's words for those who do not see them. Of a notebook
  that it does not trust, such as one that was downloaded, JupyterLab shows no SVG output, and
  GitHub has been seen to leave out the letters; the same SVG as the source of an image is shown.

Whatever looks like MyST and is not known here is a problem that is reported, and not passed on.
"""

from __future__ import annotations

import base64
import copy
import html
import json
import posixpath
import re
from typing import Protocol

from page_language import is_translation

TITLED = {"admonition", "dropdown", "exercise"}  # their argument is a title
NOTES = {
    name: name.capitalize()
    for name in "note tip hint important warning caution danger attention error".split()
} | {"seealso": "See also"}
WORDS = {
    "en": {"exercise": "Exercise {}", "solution": "Solution to Exercise {}"},
    "ko": {"exercise": "연습 문제 {}", "solution": "연습 문제 {} 풀이"},
}
OPTIONS = {"class", "label", "name"}
#: Environments of amsmath that are displays of their own, and what they are called inside one.
DISPLAYS = {"equation": "", "align": "aligned", "gather": "gathered"}
HIDE_SOURCE = {"hide-input", "remove-input", "hide-cell", "remove-cell"}

FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,}(?=[^`]*$)|~{3,}|:{3,}(?=\s*\S))(?P<info>.*)")
DIRECTIVE = re.compile(r"\s*\{(?P<name>[\w:+-]+)\}(?P<argument>.*)")
OPTION = re.compile(r":([\w-]+):\s*(.*)")
MATH = re.compile(r" *\$\$")
MATH_END = re.compile(r"\$\$\s*(\([^()\s]+\))?\s*$")
DISPLAY = re.compile(rf" *\\begin\{{(?P<name>{'|'.join(DISPLAYS)})(?P<star>\*?)\}}")
DROPPED = re.compile(r" {0,3}(%.*|\([^()]+\)=\s*|\+\+\+.*)|\s*")  # comment, target, break, blank
DEFINITION = re.compile(r" {0,3}[:~]\s+(?=\S)")
FIELD = re.compile(r" {0,3}:[^:\s`][^:`]*:(\s|$)")
ATTRIBUTES = re.compile(r"\s*\{([.#%]|[\w-]+=)[^{}]*\}\s*")
REFERENCE = re.compile(r" {0,3}\[[^\]]+\]:\s")
#: What cannot stand in the same paragraph as the words before it.
OWN_LINE = re.compile(r"([-*+>]|\d+[.)]|#+)\s|```|~~~|\$\$|\||<")
INLINE = re.compile(
    r"""\\[!-/:-@\[-`{-~]
    | \{(?P<role>[\w:.+-]+)\}(?P<ticks>`+)(?!`)(?P<content>.+?)(?<!`)(?P=ticks)(?!`)
    | (?P<code>`+)(?!`).+?(?<!`)(?P=code)(?!`)
    | \$\$.+?\$\$ | \$[^$]+\$
    | (?P<image>!?)\[(?P<text>(?:\\.|[^\[\]\\]|\[[^\[\]]*\])*)\]
      \((?P<target>(?:[^()\s]|\([^()\s]*\))*)(?P<title>\s+"[^"]*")?\)
    | <(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):[^<>\s]*>""",
    re.DOTALL | re.VERBOSE,
)
#: MyST, or a sign that something above was not understood.
RAW = re.compile(r":{3,}|`{3,}|\{[\w:.+-]+\}`|\{\{|\{%|\]\(|\]\{")


class Resolver(Protocol):
    """What a page must be told. Each method raises ValueError for what is not there."""

    def number(self, reference: str) -> str:
        """The text for ``chapter:key|format``."""

    def page(self, path: str) -> tuple[str, str]:
        """Title and address of a page, from the path of its source."""

    def citation(self, key: str) -> tuple[str, str, str]:
        """Authors, year, and an address, which may be empty."""

    def equation(self, label: str) -> tuple[str, str]:
        """The equation's number, and the address of its page."""

    def exercise(self, label: str) -> str:
        """The number of an exercise."""


def portable(notebook, path: str, resolver: Resolver, private=()) -> tuple[dict, list[str]]:
    """A copy of an executed notebook without MyST, and what could not be put into it.

    Parameters
    ----------
    notebook
        With its outputs.
    path
        Where its source is, from the book's root; its relative links start there.
    private
        Words that must not stand in a copy, such as folders of this machine.
    """
    result, problems = copy.deepcopy(notebook), []
    prose = Prose(path, resolver)
    translated = result.metadata.get("alt", {})
    for number, cell in enumerate(result.cells, 1):
        try:
            if cell.cell_type == "markdown":
                cell.source = prose.convert(cell.source)
            elif cell.cell_type == "code":
                tidy(cell)
                words = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
                for output in cell.outputs:
                    embed_drawing(output, translated.get(words, words))
            text = json.dumps(cell, ensure_ascii=False)
            if found := [word for word in private if word in text]:
                raise ValueError(f"{found[0]} stands in it")
        except ValueError as error:
            problems.append(f"cell {number}: {error}")
    return result, problems


def tidy(cell) -> None:
    """Fold what a page folds or leaves out, and drop what a page does not show."""
    cell.metadata.pop("execution", None)  # the time of day of each step
    if HIDE_SOURCE.intersection(cell.metadata.get("tags", [])):
        cell.metadata.setdefault("jupyter", {})["source_hidden"] = True
        cell.metadata["cellView"] = "form"  # Colab's name for it
    kept = []
    for output in cell.outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            if kept and kept[-1].output_type == "stream":  # what was between them is gone
                kept[-1].text += output.text
                continue
        kept.append(output)
    cell.outputs = kept


def embed_drawing(output, alt: str) -> None:
    """Put an SVG into HTML, where there is nothing else that shows it."""
    data = output.get("data", {})
    if "image/svg+xml" not in data or "text/html" in data or "image/png" in data:
        return
    encoded = base64.b64encode(data.pop("image/svg+xml").encode()).decode()
    data["text/html"] = f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{encoded}">'


class Prose:
    """Turns MyST into Markdown, for one notebook."""

    def __init__(self, path: str, resolver: Resolver):
        self.path = path
        self.resolver = resolver
        self.words = WORDS["ko" if is_translation(posixpath.splitext(path)[0]) else "en"]

    def convert(self, source: str) -> str:
        return "\n".join(self.blocks(source.split("\n"))).strip("\n")

    def blocks(self, lines: list[str], quoted: bool = False) -> list[str]:
        written, n = [], 0
        while n < len(lines):
            line, start = lines[n], n
            apart = True  # blank lines around it
            if match := FENCE.fullmatch(line):
                n = end_of_fence(lines, n, match["fence"])
                block = self.fence(match, lines[start:n], quoted)
                apart = block != lines[start:n]
            elif MATH.match(line):
                n = end_of_math(lines, n)
                text = MATH_END.sub("", "\n".join(lines[start:n]).strip())
                block = indent(display(text.removeprefix("$$"), quoted), line)
                apart = False
            elif match := DISPLAY.match(line):
                n = end_of_display(lines, n, f"\\end{{{match['name']}{match['star']}}}")
                text = "\n".join(lines[start:n]).strip()
                block = indent(display(inside(text, **match.groupdict()), quoted), line)
            elif DROPPED.fullmatch(line):
                n, block = n + 1, []
            else:
                while n < len(lines) and not ends_paragraph(lines[n]):
                    n += 1
                paragraph = lines[start:n]
                if any(DEFINITION.match(one) for one in paragraph):
                    while n < len(lines) and re.match(r"\s*$| {2,}\S", lines[n]):
                        n += 1  # further paragraphs of the definition
                    block = self.definitions(lines[start:n], quoted)
                else:
                    block, apart = self.inline("\n".join(paragraph)).split("\n"), False
            if (apart or not block) and written and written[-1]:
                written.append("")
            written += block
            if apart and block:
                written.append("")
        return strip(written)

    # Fences

    def fence(self, opening: re.Match, lines: list[str], quoted: bool) -> list[str]:
        directive = DIRECTIVE.fullmatch(opening["info"])
        if not directive:
            if opening["fence"].startswith(":") or "{" in opening["info"]:
                raise ValueError(f"a fence that is not known: {lines[0].strip()}")
            return lines
        depth = len(opening["indent"])
        body = [line[min(depth, len(line) - len(line.lstrip())) :] for line in lines[1:-1]]
        options = {}
        while body and (option := OPTION.fullmatch(body[0])):
            options[option[1]] = option[2]
            body = body[1:]
        name, argument = directive["name"], directive["argument"].strip()
        if unknown := set(options) - OPTIONS:
            raise ValueError(f"an option that is not known, of {{{name}}}: {min(unknown)}")
        if strip(body)[:1] == ["---"]:
            raise ValueError(f"options in YAML, of {{{name}}}")
        return indent(self.directive(name, argument, options, strip(body), quoted), lines[0])

    def directive(self, name, argument, options, body, quoted) -> list[str]:
        if name == "math":
            return display("\n".join([argument, *body]), quoted)
        if name in ("code", "code-block"):
            ticks = max([2, *(len(run) for run in re.findall("`+", "\n".join(body)))]) + 1
            return ["`" * ticks + argument, *body, "`" * ticks]
        if name == "raw":
            return body if argument == "html" else []
        if name == "solution":
            return self.folded(
                self.words["solution"].format(self.resolver.exercise(argument)), body, quoted
            )
        if name in NOTES:  # words behind the name are the first of the body
            title, body = NOTES[name], [argument, *body] if argument else body
        elif name not in TITLED:
            raise ValueError(f"a directive that is not known: {{{name}}}")
        elif name == "exercise":
            if "label" not in options:
                raise ValueError("an exercise without a label")
            title = self.words["exercise"].format(self.resolver.exercise(options["label"]))
            title += f" ({self.inline(argument)})" if argument else ""
        elif not argument:
            raise ValueError(f"{{{name}}} without a title")
        else:
            title = self.inline(argument)
        if name == "dropdown" or "dropdown" in options.get("class", "").split():
            return self.folded(title, body, quoted)
        box = [f"**{title}**", "", *self.blocks(body, quoted=True)]
        return [f"> {line}".rstrip() for line in box]

    def folded(self, title: str, body: list[str], quoted: bool) -> list[str]:
        if re.search(r"[`*_$\[\\<&]", title):  # <summary> is HTML: no Markdown in there
            raise ValueError(f"the title of something folded must be plain: {title}")
        summary = f"<details><summary>{html.escape(title)}</summary>"
        return [summary, "", *self.blocks(body, quoted), "", "</details>"]

    def definitions(self, lines: list[str], quoted: bool) -> list[str]:
        starts = [n for n, line in enumerate(lines) if DEFINITION.match(line)]
        if starts[0] != 1:
            raise ValueError(f"a definition needs one line above it: {lines[starts[0]].strip()}")
        written = []
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            width = len(DEFINITION.match(lines[start])[0])
            rest = [re.sub(rf"^ {{1,{width}}}", "", line) for line in lines[start + 1 : end]]
            body = self.blocks([lines[start][width:], *rest], quoted)
            if start == 1:
                term = self.inline(lines[0].strip())
                term = term if "**" in term else f"**{term}**"
                if OWN_LINE.match(body[0]):
                    body = [term, "", *body]
                else:
                    body[0] = f"{term}<br>{body[0]}"
            written += ["", *body]
        return strip(written)

    # Within a paragraph

    def inline(self, text: str) -> str:
        for line in text.split("\n"):
            if FIELD.match(line) or REFERENCE.match(line) or ATTRIBUTES.fullmatch(line):
                raise ValueError(f"MyST that is not known: {excerpt(line)}")
        written, done = "", 0
        for match in INLINE.finditer(text):
            written += plain(text[done : match.start()])
            token, done = self.token(match), match.end()
            if ATTRIBUTES.match(text, done) and text[done] == "{":
                raise ValueError(f"attributes: {excerpt(text[match.start() :])}")
            # "12." at the start of a line would begin a list.
            at_start = not written.rpartition("\n")[2].strip()
            if at_start and token.isdigit() and re.match(r"[.)](\s|$)", text[done:]):
                token += "\\"
            written += token
        return written + plain(text[done:])

    def token(self, match: re.Match) -> str:
        if match["role"]:
            content = " ".join(match["content"].split("\n"))
            return self.role(match["role"], content)
        if match[0].startswith("$"):  # on one line, since a quotation has marks between lines
            return formula(match[0].replace("\n", " "))
        if match["target"] is not None:
            return self.link(match)
        if match["scheme"] and match["scheme"].lower() not in ("http", "https", "mailto"):
            raise ValueError(f"a link that is not known: {match[0]}")
        return match[0]

    def role(self, name: str, content: str) -> str:
        if name == "result":
            return escape(self.resolver.number(content.replace("\\|", "|")))
        if name in ("cite", "cite:p", "cite:t"):
            form = "{} ({})" if name == "cite:t" else "{}, {}"
            cited = [self.resolver.citation(key.strip()) for key in content.split(",")]
            links = [
                link(escape(form.format(authors, year)), address)
                for authors, year, address in cited
            ]
            return ", ".join(links) if name == "cite:t" else f"({'; '.join(links)})"
        if name == "eq":
            number, address = self.resolver.equation(content)
            return link(f"({number})", address)
        if name == "math":
            return f"${formula(content)}$"
        kind = name.removeprefix("py:")
        if kind in ("func", "meth", "class", "attr", "data", "exc", "mod", "obj"):
            if titled := re.fullmatch(r"(.+?)\s*<.+>", content):
                return f"`{titled[1]}`"
            shown = content.lstrip("!")
            shown = shown[1:].rpartition(".")[2] if shown.startswith("~") else shown
            call = kind in ("func", "meth") and not shown.endswith(")")
            return f"`{shown}()`" if call else f"`{shown}`"
        raise ValueError(f"a role that is not known: {{{name}}}`{content}`")

    def link(self, match: re.Match) -> str:
        target = match["target"]
        if re.match(r"(https?|mailto):", target):
            title, address = target, target
        elif match["image"] and target.startswith("attachment:"):
            title, address = "", target
        elif match["image"]:
            raise ValueError(f"a picture that the copy would not have: {target}")
        elif not target or re.match(r"#|/|[a-z]+:", target):
            raise ValueError(f"a link that is not known: {match[0]}")
        else:
            path, hash_sign, anchor = target.partition("#")
            path = posixpath.normpath(posixpath.join(posixpath.dirname(self.path), path))
            title, address = self.resolver.page(path)
            address += hash_sign + anchor
        text = self.inline(match["text"]) or ("" if match["image"] else escape(title))
        return f"{match['image']}[{text}]({address}{match['title'] or ''})"


def ends_paragraph(line: str) -> bool:
    return bool(
        FENCE.fullmatch(line) or MATH.match(line) or DISPLAY.match(line) or DROPPED.fullmatch(line)
    )


def end_of_fence(lines: list[str], start: int, fence: str) -> int:
    """The line after a fence; the line that ends it is as long or longer."""
    for n in range(start + 1, len(lines)):
        if set(closing := lines[n].strip()) == {fence[0]} and len(closing) >= len(fence):
            return n + 1
    raise ValueError(f"a fence that does not end: {lines[start].strip()}")


def end_of_math(lines: list[str], start: int) -> int:
    for n in range(start, len(lines)):
        text = lines[n].strip()
        if MATH_END.search(text.removeprefix("$$") if n == start else text):
            return n + 1
    raise ValueError(f"a formula that does not end: {lines[start].strip()}")


def end_of_display(lines: list[str], start: int, end: str) -> int:
    for n in range(start, len(lines)):
        if lines[n].rstrip().endswith(end):
            return n + 1
    raise ValueError(f"a formula that does not end: {lines[start].strip()}")


def inside(text: str, name: str, star: str) -> str:
    """A display of amsmath, as it may stand between dollar signs."""
    text = text.removeprefix(f"\\begin{{{name}{star}}}").removesuffix(f"\\end{{{name}{star}}}")
    text = re.sub(r"\\label\{[^}]*\}", "", text).strip()
    name = DISPLAYS[name]
    return f"\\begin{{{name}}}\n{text}\n\\end{{{name}}}" if name else text


def formula(text: str) -> str:
    """The text of a formula, if it is one: two dollars of a price may have a role between them."""
    if "`" in text:
        raise ValueError(f"a formula with a backtick: {excerpt(text)}")
    return text


def display(text: str, quoted: bool) -> list[str]:
    """A formula between dollar signs.

    They stand on lines of their own, as GitHub and Colab want it; but in a quotation all is one
    line, since JupyterLab would take the marks of the quotation for a part of the formula.
    """
    lines = [line.strip() for line in formula(text).split("\n") if line.strip()]
    return [f"$$ {' '.join(lines)} $$"] if quoted else ["$$", *lines, "$$"]


def indent(lines: list[str], like: str) -> list[str]:
    spaces = " " * (len(like) - len(like.lstrip(" ")))
    return [spaces + line if line else line for line in lines]


def strip(lines: list[str]) -> list[str]:
    """Without blank lines at the ends."""
    kept = [n for n, line in enumerate(lines) if line.strip()]
    return lines[kept[0] : kept[-1] + 1] if kept else []


def plain(text: str) -> str:
    """Text with no role, link or formula in it."""
    if found := RAW.search(text):
        raise ValueError(f"MyST that is not known: {excerpt(text[found.start() :])}")
    return text.replace("~", r"\~")  # between two of them, as in "1~5", GitHub strikes words out


def excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:60]}…"


def escape(text: str) -> str:
    r"""Text in which Markdown finds no markup.

    >>> escape("ffn_input, 23.5%")
    'ffn\\_input, 23.5%'
    """
    return re.sub(r"([\\`*_\[\]<>|$~])", r"\\\1", text)


def link(text: str, address: str) -> str:
    return f"[{text}]({address})" if address else text
