"""Write the address of the repository wherever it stands (`make repository URL=https://...`).

The one setting is `[project.urls]` in pyproject.toml. From it come the citation, the badges in the
README, the book's Colab, Binder and repository buttons, and `REPOSITORY` in the notebooks. An
empty URL takes them all out again: no address, no dead buttons.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = re.compile(r"https://github\.com/(?P<owner>[\w-]+)/(?P<name>[\w.-]+)")

# File -> what stands between its two marker lines while there is an address.
SECTIONS = {
    "pyproject.toml": """\
[project.urls]
Repository = "{url}"
""",
    "CITATION.cff": """\
repository-code: "{url}"
""",
    "_config.yml": """\
repository:
  url: {url}
  branch: main
launch_buttons:
  notebook_interface: classic
  binderhub_url: https://mybinder.org
  colab_url: https://colab.research.google.com
  thebe: false
""",
    "README.md": """\
[![Tests]({url}/actions/workflows/tests.yml/badge.svg)]({url}/actions/workflows/tests.yml)
[![Book]({url}/actions/workflows/book.yml/badge.svg)](https://{owner}.github.io/{name}/)
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/{owner}/{name}/blob/executed/{notebook})
[![Launch Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/{owner}/{name}/executed?labpath={notebook})
""",
}
# The line of a notebook's Colab cell, as its JSON has it.
IN_NOTEBOOK = re.compile(r'REPOSITORY = \\"[^"\\]*\\"')


def address(root: Path = ROOT) -> str:
    """The setting: the repository's address, empty while it has none."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "")


def texts(url: str, root: Path = ROOT) -> dict[Path, str]:
    """Every file that names the repository, with the text it has when the address is `url`.

    Raises
    ------
    ValueError
        If `url` is not https://github.com/OWNER/NAME, or a file lacks the place to write it to.
    """
    match = ADDRESS.fullmatch(url)
    if url and not match:
        raise ValueError(
            f"{url} is not the address of a GitHub repository. Give https://github.com/OWNER/NAME."
        )
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    first = notebooks[0].relative_to(root).as_posix() if notebooks else ""
    words = {"url": url, "notebook": first, **(match.groupdict() if match else {})}
    result = {}
    for name, section in SECTIONS.items():
        marker = "<!-- badges: {} -->\n" if name == "README.md" else "# repository: {}\n"
        begin, end = marker.format("begin"), marker.format("end")
        text = (root / name).read_text("utf-8")
        if text.count(begin) != 1 or end not in text.partition(begin)[2]:
            raise ValueError(f"{name} needs one line {begin!r} and, below it, {end!r}. Add them.")
        before, rest = text.split(begin)
        after = rest.partition(end)[2]
        between = section.format(**words) if url else ""
        result[root / name] = before + begin + between + end + after
    for path in notebooks:
        text, count = IN_NOTEBOOK.subn(f'REPOSITORY = \\\\"{url}\\\\"', path.read_text("utf-8"))
        if count != 1:
            raise ValueError(f'{path.name} has {count} lines REPOSITORY = "..."; it needs one.')
        result[path] = text
    return result


def outdated(url: str, root: Path = ROOT) -> dict[Path, str]:
    """The files among `texts` whose text is another now."""
    return {p: text for p, text in texts(url, root).items() if p.read_text("utf-8") != text}


def main(url: str, root: Path = ROOT) -> None:
    """Write the address, or take it out where `url` is empty, and say what was written."""
    try:
        files = outdated(url.rstrip("/").removesuffix(".git"), root)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    for path, text in files.items():
        path.write_text(text, "utf-8")
        print(f"wrote {path.relative_to(root)}")
    print(f"repository: {address(root) or 'not set'}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else address())
