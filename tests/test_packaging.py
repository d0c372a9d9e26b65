"""The lists of packages, the repository's address and the notebooks' files agree."""

import ast
import json
import re
import shutil
import statistics
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import environment
import pytest
import repository
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from knnlm import FILES

ROOT = Path(__file__).resolve().parent.parent
URL = "https://github.com/somebody/some.book"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

locked_python = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="requirements.lock is for Python 3.11"
)


def names(requirements):
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def pins():
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


# --- lists of packages


@locked_python
def test_lock_is_what_is_installed_and_nothing_needless():
    assert environment.lock() == (ROOT / "requirements.lock").read_text("utf-8")


def test_lock_holds_plain_pins_of_all_that_is_asked_for():
    for line in pins():
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+", line)
    locked = dict(line.split("==") for line in pins())
    assert "setuptools" in locked  # `make venv` installs the package itself with it
    for text in environment.requirements("book", "test"):
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), text


def test_environment_yml_comes_from_pyproject():
    text = (ROOT / "environment.yml").read_text("utf-8")
    assert text == environment.environment()
    *conda, pip = yaml.safe_load(text)["dependencies"]
    assert conda[:2] == ["python=3.11", "pip"]
    assert names(conda[2:]) == {"pytorch-cpu"}
    assert pip["pip"][-1] == "-e ."
    assert names(pip["pip"][:-1]) | {"torch"} == names(environment.requirements("book"))


def test_torch_has_a_range_that_keeps_the_torch_of_colab():
    (torch,) = (text for text in environment.requirements() if names([text]) == {"torch"})
    assert torch == "torch>=2.4"


def imported(*folders):
    """Top-level modules that the Python files in folders import, ours left out."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {path.stem for path in paths} - {"knnlm"}


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (["knnlm"], ["cluster", "smollm2", "notebooks"]),
        (["knnlm/methods"], []),
        (["knnlm", "book", "tools", "tests", "benchmarks"], ["cluster", "smollm2", "book", "test"]),
    ],
)
def test_every_import_is_a_package_that_is_asked_for(folders, extras):
    asked = names(environment.requirements(*extras))
    packages = packages_distributions()
    for module in sorted(imported(*folders)):
        assert names(packages.get(module, [module])) & asked, f"{module} is not in pyproject.toml"


def test_type_checkers_see_the_public_names_where_they_are():
    seen = {
        (node.module, alias.name)
        for node in ast.parse((ROOT / "knnlm" / "__init__.pyi").read_text("utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {(f"knnlm.{file}", name) for file, names in FILES.items() for name in names}


def test_citation_and_package_have_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'version = "{citation["version"]}"' in pyproject
    assert f"## {citation['version']}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


# --- the repository's address


@pytest.fixture
def tree(tmp_path):
    """The files that name the repository, with no address in them."""
    for name in repository.SECTIONS:
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "notebooks").mkdir()
    cell = {
        "cell_type": "code",
        "source": ["import sys\n", "\n", 'REPOSITORY = ""\n', 'if REPOSITORY == "":\n', "    pass"],
    }
    for name in ("01_first.ipynb", "02_second.ipynb"):
        notebook = json.dumps({"cells": [cell]}, indent=1) + "\n"
        (tmp_path / "notebooks" / name).write_text(notebook, "utf-8")
    repository.main("", tmp_path)
    return tmp_path


def read_all(root):
    return {path: path.read_text("utf-8") for path in root.rglob("*") if path.is_file()}


def test_address_is_the_same_in_all_places():
    assert not repository.outdated(repository.address()), "run: make repository URL=..."


def test_address_is_written_everywhere(tree, capsys):
    repository.main(URL, tree)
    assert repository.address(tree) == URL
    assert len(capsys.readouterr().out.splitlines()) == len(read_all(tree)) + 1
    config = yaml.safe_load((tree / "_config.yml").read_text("utf-8"))
    assert config["repository"] == {"url": URL, "branch": "main"}
    assert config["launch_buttons"]["colab_url"]
    assert yaml.safe_load((tree / "CITATION.cff").read_text("utf-8"))["repository-code"] == URL
    badges = (tree / "README.md").read_text("utf-8")
    assert "/github/somebody/some.book/blob/executed/notebooks/01_first.ipynb" in badges
    for path in tree.glob("notebooks/*"):
        (cell,) = json.loads(path.read_text("utf-8"))["cells"]
        assert cell["source"][2:4] == [f'REPOSITORY = "{URL}"\n', 'if REPOSITORY == "":\n']


def test_keys_of_the_config_stand_once(tree):
    repository.main(URL, tree)
    text = (tree / "_config.yml").read_text("utf-8")
    keys = re.findall(r"^(\w+):", text, re.MULTILINE)
    assert len(keys) == len(set(keys))


def test_address_written_twice_changes_nothing_and_can_be_taken_out(tree, capsys):
    before = read_all(tree)
    repository.main(URL + ".git", tree)
    once = read_all(tree)
    repository.main(URL + "/", tree)
    assert read_all(tree) == once
    repository.main("", tree)
    assert read_all(tree) == before
    assert capsys.readouterr().out.endswith("repository: not set\n")


@pytest.mark.parametrize(
    "url", ["somebody/book", "http://github.com/a/b", "https://github.com/a", f"{URL}/tree/main"]
)
def test_another_address_is_refused_and_nothing_written(tree, url):
    before = read_all(tree)
    with pytest.raises(SystemExit, match="not the address of a GitHub repository"):
        repository.main(url, tree)
    assert read_all(tree) == before


def test_a_file_without_its_place_is_named_and_nothing_written(tree):
    (tree / "CITATION.cff").write_text("cff-version: 1.2.0\n", "utf-8")
    before = read_all(tree)
    with pytest.raises(SystemExit, match=r"CITATION\.cff needs one line"):
        repository.main(URL, tree)
    assert read_all(tree) == before


# --- the notebooks


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_without_outputs(path):
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def code_cells(path):
    """The source of each code cell that a reader sees, and of those that nobody sees."""
    shown, hidden = [], []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            unseen = "remove-cell" in cell["metadata"].get("tags", [])
            (hidden if unseen else shown).append("".join(cell["source"]))
    return shown, hidden


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short(path):
    lines = [len(source.splitlines()) for source in code_cells(path)[0]]
    assert max(lines) <= 15
    assert statistics.median(lines) <= 8


MAKES = {
    *("but", "model", "datastore", "datastores", "index", "retrieval", "training"),  # of recipes
    *("build", "encode", "fit", "generate", "log_prob", "read", "run", "search", "sweep"),
    *("bootstrap", "compare", "find_cases", "interpolate", "knn_log_prob", "read"),
}
COMPUTES = (ast.For, ast.While, ast.With, ast.FunctionDef, ast.Lambda, ast.comprehension)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_last_cell_records_and_does_not_compute(path):
    last = code_cells(path)[1][-1]
    assert "results.record(" in last
    for node in ast.walk(ast.parse(last)):
        assert not isinstance(node, COMPUTES), ast.unparse(node)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called.rpartition(".")[2] not in MAKES, called


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.stem.endswith("_ko")], ids=lambda path: path.stem
)
def test_a_translation_has_the_code_of_its_original(path):
    """Metadata and all, so that one run serves both pages; and every number is in both."""
    original = path.with_name(path.name.replace("_ko.ipynb", ".ipynb"))
    code, words = [], []
    for notebook in (path, original):
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        kinds = [cell["cell_type"] for cell in cells]
        code.append((kinds, [(c["id"], c) for c in cells if c["cell_type"] == "code"]))
        text = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        words.append(set(re.findall(r"\{result\}`([^`|\\]+)", text)))
    assert code[0] == code[1]
    assert words[0] == words[1]
    alt = json.loads(path.read_text("utf-8"))["metadata"]["alt"]
    shown = [c["metadata"].get("mystnb", {}).get("image", {}).get("alt") for _, c in code[0][1]]
    assert set(alt) == set(filter(None, shown))
    assert all(re.search("[가-힣]{2}", words) for words in alt.values())
