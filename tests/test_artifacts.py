"""One rule for every kind of folder: whose it is, who writes it, what a full disk leaves of it."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import STRIDE, WINDOW, make_text

from knnlm import artifacts
from knnlm.artifacts import (
    alone,
    cache_folder,
    cache_folders,
    claim,
    find,
    is_complete,
    read_complete,
    to_make,
)
from knnlm.book import results
from knnlm.datastore import Datastore
from knnlm.errors import InputError
from knnlm.index import Index
from knnlm.inspection import describe
from knnlm.retrieval import Retrieval
from knnlm.text import Document, Split
from knnlm.training import train_language_model

TINY = {"layers": 1, "width": 16, "heads": 2, "context": 32, "vocab_size": 300, "steps": 9}
KINDS = ["training", "datastore", "index", "retrieval"]


@pytest.fixture(scope="session")
def makers(lm, text, held_out, store, flat) -> dict[str, Callable[[Path], object]]:
    """What makes an artifact of each kind in a folder, the same one each time."""

    def train(path: Path):
        resume = bool(list(path.glob("checkpoints/checkpoint-*")))
        device = {"device": "cpu", "precision": "float32"}
        return train_language_model(text, path, **TINY, **device, batch_size=2, resume=resume)

    return {
        "training": train,
        "datastore": lambda path: Datastore.build(path, lm, text, window=WINDOW, stride=STRIDE),
        "index": lambda path: Index.build(store, "IVF4,PQ4", path=path),
        "retrieval": lambda path: Retrieval.run(lm, flat["l2"], held_out, 8, path=path),
    }


@pytest.fixture(scope="session")
def whole(makers, tmp_path_factory) -> dict[str, Path]:
    """A whole artifact of each kind; not to be written to."""
    folder = tmp_path_factory.mktemp("whole")
    for kind, make in makers.items():
        make(folder / kind)
    return {kind: folder / kind for kind in KINDS}


def contents(folder: Path) -> dict[str, bytes | dict]:
    """The bytes of every file; of a record what is not a time, nor where the datastore stands."""
    found: dict[str, bytes | dict] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix == ".json" and file.stem in KINDS:
            record = json.loads(file.read_text())
            record.pop("datastore_path", None)
            record.pop("curve", None)  # has seconds
            found[file.name] = {n: v for n, v in record.items() if "seconds" not in n}
        elif file.is_file():
            found[str(file.relative_to(folder))] = file.read_bytes()
    return found


# --- Who writes -----------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from knnlm.artifacts import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def hold() -> Iterator[Callable[..., subprocess.Popen]]:
    """Let another process hold a folder, for some seconds or until it is killed."""
    processes = []

    def start(folder: Path, seconds: float = 600, program: str = HOLD) -> subprocess.Popen:
        command = [sys.executable, "-c", program, str(folder), str(seconds)]
        processes.append(process := subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("kind", KINDS)
def test_who_comes_second_is_told_who_holds_the_folder(makers, whole, hold, tmp_path, kind):
    path = tmp_path / "new"
    process = hold(path)
    begun = time.monotonic()
    with pytest.raises(InputError) as refusal:
        makers[kind](path)
    assert time.monotonic() - begun < 20
    assert f"{path} is being written by process {process.pid} since 20" in str(refusal.value)
    assert str(refusal.value).count(". ") == 1
    assert {file.name for file in path.iterdir()} == {artifacts.LOCK, artifacts.HOLDER}
    process.send_signal(signal.SIGKILL)
    process.wait()
    makers[kind](path)  # the system has opened the lock
    assert contents(path) == contents(whole[kind])


PAUSING = """
import sys, time
from pathlib import Path
from knnlm.cli import main
from knnlm.language_model import LanguageModel
read, go = LanguageModel._read_batch, Path(sys.argv.pop())
def pausing(self, stream, batch, *more):
    for _ in range(1200 * (batch[0].first > 200)):
        if not go.exists():
            time.sleep(0.1)
    return read(self, stream, batch, *more)
LanguageModel._read_batch = pausing
main()
"""


def test_two_builds_into_one_folder_leave_the_firsts_store(model_folder, lm, tmp_path):
    """A while apart, of other texts: the second is refused, the first is right to the byte."""
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.txt").write_text(make_text(seed, 6000), encoding="utf-8")
    path = tmp_path / "store"

    def build(name: str) -> subprocess.Popen:
        options = ["--model", model_folder, "--text", tmp_path / f"{name}.txt", "--out", path]
        how = ["--window", WINDOW, "--stride", STRIDE, "--quiet", "--precision", "float32"]
        command = [sys.executable, "-c", PAUSING, "build", *options, *how, tmp_path / "go"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*map(str, command)], text=True, **pipes)

    first = build("a")
    until = time.monotonic() + 90
    while not (path / "keys.npy").exists() and time.monotonic() < until:
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    second = build("b")
    _, said = second.communicate(timeout=90)
    assert first.poll() is None
    assert second.returncode == 1
    assert f"process {first.pid} since" in said
    assert len(said.splitlines()) == 1
    (tmp_path / "go").touch()
    _, said = first.communicate(timeout=90)
    assert (first.returncode, said) == (0, "")
    text = Split.of([Document("a", make_text(1, 6000).strip())])
    again = Datastore.build(tmp_path / "again", lm, text, window=WINDOW, stride=STRIDE)
    assert Datastore.open(path).fingerprint == again.fingerprint
    assert describe(path)["problem"] is None


MAKE_SLOWLY = """
import sys, time
from pathlib import Path
from knnlm.artifacts import claim, to_make
with to_make(Path(sys.argv[1]), "thing") as missing, claim(Path(sys.argv[1]), "thing", {}, ()) as c:
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    c.complete()
"""


def test_what_is_shared_is_waited_for(hold, tmp_path):
    process = hold(tmp_path / "thing", 1.0, MAKE_SLOWLY)
    with to_make(tmp_path / "thing", "thing") as missing:
        assert not missing
    assert process.wait(timeout=30) == 0
    assert [file.name for file in (tmp_path / "thing").iterdir()] == ["thing.json"]


def test_what_another_could_not_finish_is_made_by_who_waited(hold, tmp_path):
    process = hold(tmp_path / "thing", 600, MAKE_SLOWLY)
    process.kill()
    with to_make(tmp_path / "thing", "thing") as missing:
        assert missing
        with claim(tmp_path / "thing", "thing", {}, ()) as made:  # who holds may enter again
            made.complete()
    assert is_complete(tmp_path / "thing", "thing")


def test_what_is_being_written_is_not_said_to_be_interrupted(hold, tmp_path):
    process = hold(tmp_path / "thing", 600, MAKE_SLOWLY)
    with pytest.raises(InputError, match=rf"not whole: process {process.pid} since 2.* is writing"):
        read_complete(tmp_path / "thing", "thing")
    process.kill()
    process.wait()
    with pytest.raises(InputError, match=r"or was killed\. Run the same command again"):
        read_complete(tmp_path / "thing", "thing")
    with pytest.raises(KeyboardInterrupt), claim(tmp_path / "thing", "thing", {}, ()):
        raise KeyboardInterrupt
    with pytest.raises(InputError, match=r"it was interrupted\. Run the same command again"):
        read_complete(tmp_path / "thing", "thing")


def test_a_folder_that_is_left_empty_is_removed(tmp_path):
    with alone(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
        with alone(tmp_path / "a" / "b"):
            pass
        assert (tmp_path / "a" / "b" / artifacts.LOCK).exists()
    assert not (tmp_path / "a" / "b").exists()


# --- Whose the folder is --------------------------------------------------------------------------

OURS_IN_NAME = ["targets.npy", "tokens.part", "index.faiss.part", "keys.npy", "config.json"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OURS_IN_NAME)
def test_a_folder_without_our_record_is_not_ours(makers, tmp_path, kind, name):
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine" / name, np.arange(3))
    before = contents(tmp_path / "mine")
    with pytest.raises(InputError, match=f"holds something that is no {kind}: {name}"):
        makers[kind](tmp_path / "mine")
    assert contents(tmp_path / "mine") == before


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_user_keeps_beside_an_artifact_stays(makers, whole, tmp_path, kind):
    shutil.copytree(whole[kind], tmp_path / "copy")
    (tmp_path / "copy" / "notes.txt").write_text("mine")
    record = json.loads((tmp_path / "copy" / f"{kind}.json").read_text())
    (tmp_path / "copy" / f"{kind}.json").write_text(json.dumps(record | {"complete": False}))
    with claim(tmp_path / "copy", kind, {}, tuple(os.listdir(whole[kind]))) as made:
        made.discard()
    assert [file.name for file in (tmp_path / "copy").iterdir()] == ["notes.txt"]


DAMAGED = {
    "training": ["model.safetensors", "tokenizer.json"],
    "datastore": ["keys.npy", "values.npy"],
    "index": ["index.faiss"],
    "retrieval": ["targets.npy", "lm_log_prob.npy", "distances.npy", "ids.npy"],
}


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in DAMAGED.items() for n in names])
def test_damage_of_any_file_is_said_by_its_name(whole, tmp_path, kind, name):
    shutil.copytree(whole[kind], tmp_path / "copy", symlinks=True)
    file = tmp_path / "copy" / name
    data = bytearray(file.read_bytes())
    for place in (len(data) // 2, len(data) - 1):
        data[place] ^= 1
        file.write_bytes(data)
        problem = describe(tmp_path / "copy")["problem"]
        assert problem.startswith(f"{file} is damaged: its checksum is wrong. ")
        data[place] ^= 1
    for left in (data[:-1], data[: len(data) // 2], b""):
        file.write_bytes(left)
        assert f"{file} is damaged: " in describe(tmp_path / "copy")["problem"]
    file.unlink()
    assert f"{file} is damaged: it is missing. " in describe(tmp_path / "copy")["problem"]


# --- A full disk ----------------------------------------------------------------------------------


@dataclass
class Disk:
    """A file system of its own in memory, whose size can be changed."""

    path: Path

    def resize(self, pages: int) -> None:
        options = f"remount,size={pages * 4}k"
        subprocess.run(["mount", "-o", options, str(self.path)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this system lets nobody here mount a small file system")
    yield Disk(path)
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_full_at_any_moment_is_one_error_and_then_gone_on_with(
    makers, whole, disk, kind
):
    needs = sum(file.stat().st_size for file in whole[kind].rglob("*") if file.is_file()) // 4096
    path, refused = disk.path / "new", 0
    for pages in [1, 2, 3, 4, *range(5, 3 * needs, max(1, needs // 12)), 20 * needs]:
        disk.resize(pages)
        try:
            makers[kind](path)
            break
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            refused += 1
        assert not list(path.glob("*.faiss.part")), "it is in the way"
    assert refused > 3
    assert contents(path) == contents(whole[kind])
    assert describe(path)["problem"] is None


def test_the_command_line_says_it_in_one_line(store, disk, capfd):
    from knnlm.cli import app

    disk.resize(6)
    options = ["--datastore", str(store.path), "--out", str(disk.path / "new")]
    with pytest.raises(SystemExit) as ended:
        app(["index", *options], prog_name="knnlm")
    assert ended.value.code == 1
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("No space is left on the disk")


# --- A cache that may only be read ----------------------------------------------------------------


READ_ONLY = """
import os, sys
from conftest import TINY_RECIPE, tiny_documents
from knnlm.book import recipes
from knnlm.corpora import Corpus
corpus = Corpus("tiny", "t", "none", "here", "nobody", tiny_documents)
recipes.load_corpus = lambda name: corpus
place, recipe = os.environ["KNNLM_CACHE"], recipes.Recipe(**TINY_RECIPE)
recipe.retrieval  # imported
def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        path, writes = arguments[0] if arguments else "", event in CHANGES
    if writes and isinstance(path, str | os.PathLike) and str(path).startswith(place):
        print("writes:", event, path)
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.utime"}
sys.addaudithook(watch)
print(recipe.retrieval("test").perplexity(lam=0.3))
"""


def test_what_is_complete_is_opened_without_a_lock_and_without_writing(recipe, tmp_path):
    expected = recipe.retrieval("test").perplexity(lam=0.3)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    run = [sys.executable, "-c", READ_ONLY]
    ran = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert (ran.stdout, ran.returncode) == (f"{expected}\n", 0), ran.stderr


def test_a_cache_that_may_only_be_read_lies_beneath_ones_own(recipe, tmp_path, monkeypatch):
    theirs = recipe.retrieval("test")
    before = contents(tmp_path / "cache")
    places = [tmp_path / "mine", tmp_path / "cache"]
    monkeypatch.setenv("KNNLM_CACHE", os.pathsep.join(map(str, places)))
    assert cache_folders() == places
    assert recipe.retrieval("test").path == theirs.path
    assert not (tmp_path / "mine").exists()
    own = recipe.retrieval("validation")
    assert own.path.is_relative_to(tmp_path / "mine")
    assert own.index.path == theirs.index.path
    results.record("01_x", a=1)
    assert (tmp_path / "mine" / "results" / "01_x.json").exists()
    assert contents(tmp_path / "cache") == before


def refuse_writing(monkeypatch, place: Path) -> None:
    """Let a folder be one that may only be read, also for who may everything."""
    mkdir = Path.mkdir

    def refuse(self, *arguments, **options):
        if self.is_relative_to(place):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)


def test_what_is_missing_in_such_a_cache_is_said(recipe, tmp_path, monkeypatch):
    recipe.retrieval("test")
    refuse_writing(monkeypatch, tmp_path / "cache")
    recipe.retrieval("test")
    with pytest.raises(InputError, match=r"may not be written here\. Put .*KNNLM_CACHE=mine:"):
        recipe.retrieval("validation")
    with pytest.warns(UserWarning, match="these numbers are not kept"):
        results.record("01_x", a=1)


def test_a_tilde_is_ones_home_and_the_path_is_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNNLM_CACHE", "~/x")
    assert cache_folder() == tmp_path / "x"
    monkeypatch.setenv("KNNLM_CACHE", "x")
    assert cache_folder() == tmp_path / "x"
    assert find("a/b", "index") == tmp_path / "x" / "a" / "b"


# --- Links ----------------------------------------------------------------------------------------


def test_an_index_built_through_a_link_finds_its_datastore(lm, held_out, tmp_path):
    store = Datastore.build(tmp_path / "s", lm, held_out, window=WINDOW)
    (tmp_path / "disk" / "a" / "b").mkdir(parents=True)
    (tmp_path / "scratch").symlink_to("disk/a/b")
    Index.build(store, path=tmp_path / "scratch" / "ix")
    for path in (tmp_path / "scratch" / "ix", tmp_path / "disk" / "a" / "b" / "ix"):
        assert Index.open(path).datastore.fingerprint == store.fingerprint


def test_an_index_on_another_disk_is_found_through_the_link_in_its_place(lm, held_out, tmp_path):
    store = Datastore.build(tmp_path / "s", lm, held_out, window=WINDOW)
    index = Index.build(store)
    (tmp_path / "other" / "disk").mkdir(parents=True)
    shutil.move(index.path, tmp_path / "other" / "disk" / "index")
    index.path.symlink_to(tmp_path / "other" / "disk" / "index")
    assert Index.open(store.path).datastore.path == store.path.resolve()
    assert Index.build(store).path == index.path  # and is not built again


@pytest.mark.parametrize("kind", ["datastore", "retrieval", "training"])
def test_a_folder_may_be_a_link(makers, whole, tmp_path, kind):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    makers[kind](tmp_path / "link")
    assert contents(tmp_path / "real") == contents(whole[kind])
