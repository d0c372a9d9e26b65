"""The one rule for what changed: a line of each kind, and what is made again after it."""

import inspect
import shutil
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
from conftest import TINY_RECIPE, tiny_documents

from knnlm.book import changes, recipes
from knnlm.book.recipes import Recipe
from knnlm.corpora import Corpus
from knnlm.datastore import Datastore
from knnlm.index import Index
from knnlm.retrieval import Retrieval
from knnlm.text import Document, Split

EVERYTHING = ["model", "datastore", "index", "retrieval"]
NOTEBOOKS = {
    "trains": ['import knnlm\nlm = knnlm.load_recipe("small").model()'],
    "mixes": ["from knnlm.mixture import interpolate\nimport numpy as np", "%pip list\n1 + 1"],
    "asks": ["import sys\n!{sys.executable} -m knnlm --help"],
}


class Project:
    """A copy of the package and a corpus of its own; a recipe of it, and three notebooks."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.monkeypatch, self.copies = folder, monkeypatch, 0
        self.documents = tiny_documents()
        self.package = folder / "0" / "knnlm"
        shutil.copytree(changes.PACKAGE, self.package, ignore=shutil.ignore_patterns("*.pyc"))
        self.recipe = Recipe(**TINY_RECIPE)
        monkeypatch.setenv("KNNLM_CACHE", str(folder / "cache"))
        corpus = Corpus("tiny", "t", "none", "here", "nobody", lambda: list(self.documents))
        monkeypatch.setattr(recipes, "load_corpus", lambda name: corpus)

    def edit(self, file: str, old: str, new: str) -> None:
        """Change one line in a new copy: what was read of a file is remembered in a process."""
        self.copies += 1
        changed = self.folder / str(self.copies) / "knnlm"
        shutil.copytree(self.package, changed)
        self.package, path = changed, changed / file
        text = path.read_text("utf-8")
        assert text.count(old) == 1, f"{file} has {text.count(old)} times {old!r}"
        path.write_text(text.replace(old, new), "utf-8")

    def made(self) -> list[str]:
        """Ask for everything, and return what was not found."""
        found = []
        with self.monkeypatch.context() as patch:
            patch.setattr(
                recipes, "fingerprint", partial(changes.fingerprint, package=self.package)
            )

            def note(owner, name, kind):
                maker = getattr(owner, name)

                def wrapped(*args, **kwargs):
                    found.append(kind)
                    return maker(*args, **kwargs)

                wrapped.__signature__ = inspect.signature(maker)
                wrapped.__module__ = maker.__module__
                patch.setattr(owner, name, wrapped)

            note(recipes, "train_language_model", "model")
            note(Datastore, "build_each", "datastore")
            note(Index, "build", "index")
            note(Retrieval, "run", "retrieval")
            self.recipe.retrieval("test")
        return found

    def notebooks(self) -> dict[str, str]:
        return {
            name: changes.notebook_fingerprint(cells, {}, self.package)
            for name, cells in NOTEBOOKS.items()
        }

    def must_run(self, before: dict[str, str]) -> list[str]:
        return [name for name, now in self.notebooks().items() if now != before[name]]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        project = Project(tmp_path_factory.mktemp("project"), patch)
        assert project.made() == EVERYTHING
        assert project.made() == []
        yield project


SIZE = "CHECKPOINT_SECONDS = 600"
LINES = {  # a file, a line of it before and after, what is made again, which notebooks run
    "a comment": ("tokens.py", "END_OF_TEXT =", "# a remark\nEND_OF_TEXT =", [], []),
    "a docstring": ("training.py", '"""Training a small', '"""To train a small', [], []),
    "the layout": ("mixture.py", "import numpy as np\n", "import numpy as np\n\n\n\n", [], []),
    "a message": ("tokens.py", "is too small. It holds", "is small. It holds", [], []),
    "a message about text": ("inputs.py", "There is no text", "Nowhere is a text", [], []),
    "how text is read": ("tokens.py", "(text, 64)", "(text, 65)", EVERYTHING, ["trains", "asks"]),
    "how it is trained": (
        "muon.py",
        "import torch\n",
        "import torch\n\nX = 1\n",
        ["model"],
        ["trains", "asks"],
    ),
    "how it is indexed": (
        "index_builder.py",
        SIZE,
        SIZE + "0",
        ["index", "retrieval"],
        ["trains", "asks"],
    ),
    "how it is mixed": (
        "mixture.py",
        "import numpy as np\n",
        "import numpy as np\n\nX = 1\n",
        ["retrieval"],
        [*NOTEBOOKS],
    ),
    "how it is drawn": ("book/style.py", "CYCLE = [LM", "CYCLE = [KNN, LM", [], ["asks"]),
    "a command": ("cli/making.py", "import math\n", "import math\n\nX = 1\n", [], ["asks"]),
}


@pytest.mark.parametrize("kind", LINES)
def test_a_changed_line_makes_again_what_depends_on_it(project, kind):
    file, old, new, made, run = LINES[kind]
    before = project.notebooks()
    project.edit(file, old, new)
    assert (project.made(), project.must_run(before)) == (made, run)
    assert project.made() == []


FIELDS = {
    "steps": (4, EVERYTHING),
    "stride": (8, ["datastore", "index", "retrieval"]),
    "dtype": ("float32", ["datastore", "index", "retrieval"]),
    "key_layer": ("attention_input", ["datastore", "index", "retrieval"]),
    "metric": ("l2", ["index", "retrieval"]),
    "k": (3, ["retrieval"]),
    "held_out": (1, ["retrieval"]),
    "documents": (3, ["datastore", "index", "retrieval"]),
    "learned": (3, EVERYTHING),
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_changed_field_of_a_recipe_makes_again_what_depends_on_it(project, field):
    value, made = FIELDS[field]
    recipe = project.recipe
    project.recipe = recipe.but(**{field: value})
    assert project.made() == made
    project.recipe = recipe
    assert project.made() == []


def test_a_changed_document_makes_again_what_was_made_of_it(project):
    """Of the same training documents the same model comes, so its datastore is found."""
    corpus = recipes.load_corpus("tiny")
    for split, made in (
        ("test", ["retrieval"]),
        ("validation", ["model"]),
        ("train", EVERYTHING),
    ):
        name = next(iter(corpus.split(split))).name
        place = [d.name for d in project.documents].index(name)
        kept = project.documents[place]
        project.documents[place] = Document(name, kept.text + " And more.")
        assert project.made() == made, split
        project.documents[place] = kept
        assert project.made() == []


def test_which_documents_a_recipe_takes_counts(project, monkeypatch):
    """Whatever chooses them, in this module or another: what is chosen is what counts."""
    project.recipe, recipe = project.recipe.but(documents=3), project.recipe
    project.made()
    monkeypatch.setattr(
        recipes, "spread", lambda split, n: Split.of(list(split)[-n:], split.name) if n else split
    )
    assert project.made() == ["datastore", "index", "retrieval"]
    project.recipe = recipe


def test_device_and_precision_name_a_model_and_what_it_computes(project, monkeypatch):
    folders = set()
    for dtype in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(recipes, "choose_precision", lambda *args, dtype=dtype: dtype)
        folders.add(project.recipe.model_folder())
    assert len(folders) == 2


def test_a_package_that_is_imported_counts(project, monkeypatch):
    before = changes.code_fingerprint(frozenset(["tokens"]))
    real = changes.versions
    monkeypatch.setattr(changes, "versions", lambda modules: real(modules) | {"tokenizers": "9"})
    changes.code_fingerprint.cache_clear()
    assert changes.code_fingerprint(frozenset(["tokens"])) != before
    changes.code_fingerprint.cache_clear()


def test_versions_are_those_that_are_installed():
    found = changes.versions({"numpy", "faiss", "nothing_like_it"})
    assert set(found) == {"python", "numpy", "faiss-cpu"}
    assert found["numpy"] == numpy.__version__


def test_imports_are_followed_and_nothing_else():
    reached = changes.reach(["mixture"])
    assert reached == {"mixture"}
    assert {"training", "language_model", "tokens", "text"} <= changes.reach(["training"])
    assert not {"index", "cli", "book.plotting", "corpora"} & changes.reach(["datastore"])
    reached = changes.reach(["book.recipes"])
    assert reached >= {"corpora.korean", "book.smollm2", "evaluation", "text"}


def test_what_has_no_fingerprint_is_refused():
    with pytest.raises(TypeError, match="object has no fingerprint"):
        changes.fingerprint(["errors"], {"x": object()})


def test_texts_with_the_same_words_otherwise_divided_differ():
    one, other = (Split.of([Document(a, b)]) for a, b in (("ab", "c"), ("a", "bc")))
    assert one.fingerprint != other.fingerprint
    assert Split("a name", lambda: 1 / 0, streamed=True).fingerprint  # not walked
