"""Write environment.yml and requirements.lock from pyproject.toml (`make lock`).

environment.yml takes the ranges of the package and of its `book` extra, for conda and Binder.
requirements.lock takes the versions installed here of everything that the package, the book and
the tests lead to, and of nothing else.
"""

import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent

ENVIRONMENT = """\
# For conda and Binder: the package and what the book needs. Written by `make lock`; do not edit.
name: knnlm
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip
  - {torch}
  - pip:
      - {rest}
      - -e .
"""

LOCK = """\
# Exact versions for the book and the tests, on Python 3.11. Written by `make lock`; do not edit.
{pins}
"""


def requirements(*extras: str) -> list[str]:
    """What pyproject.toml asks for: of the package itself, and of the extras named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found, waiting = dict.fromkeys(project["dependencies"]), list(extras)
    while waiting:
        for text in project["optional-dependencies"][waiting.pop()]:
            if Requirement(text).name == project["name"]:
                waiting += Requirement(text).extras  # an extra that holds others
            else:
                found[text] = None
    return list(found)


def installed(wanted: Iterable[str]) -> dict[str, str]:
    """Name and version of every installed distribution that the requirements lead to.

    Local versions are cut (2.13.0+cpu becomes 2.13.0): pip takes any build of a pinned version.
    """
    versions: dict[str, str] = {}
    seen = set()
    queue = [Requirement(text) for text in wanted]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            found = distribution(name)
            versions[name] = Version(found.version).public
            needs = map(Requirement, found.requires or [])
            queue += [n for n in needs if not n.marker or n.marker.evaluate({"extra": extra})]
    return versions


def environment() -> str:
    """The text of environment.yml.

    Only torch comes from conda, which has a build without the libraries for GPUs.
    """
    wanted = sorted(requirements("book"), key=str.lower)
    torch = next(text for text in wanted if Requirement(text).name == "torch")
    wanted.remove(torch)
    return ENVIRONMENT.format(
        torch=torch.replace("torch", "pytorch-cpu"), rest="\n      - ".join(wanted)
    )


def lock() -> str:
    """The text of requirements.lock."""
    pins = installed(requirements("book", "test", "smollm2")).items()
    return LOCK.format(pins="\n".join(f"{name}=={version}" for name, version in sorted(pins)))


if __name__ == "__main__":
    (ROOT / "environment.yml").write_text(environment(), "utf-8")
    (ROOT / "requirements.lock").write_text(lock(), "utf-8")
