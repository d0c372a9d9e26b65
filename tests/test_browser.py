"""Which browser tools/browser.py takes, how it gets one, and what it says where there is none.

Every program is a shell script: those in PATH, and the Python that would run `playwright install`.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import browser
import pytest
from fontTools.ttLib import TTFont

TOOLS = Path(browser.__file__).parent
PROGRAM = """\
import sys
import browser
browser.PLACES, browser.is_root = [], lambda: {root}
browser.DOWNLOAD_SECONDS = {seconds}
sys.executable = {python!r}
sys.exit({call})
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="of Linux only")


class Machine:
    """A machine that has the programs which a test puts there, and knows which were called."""

    def __init__(self, folder):
        self.folder, self.programs, self.browsers = folder, folder / "bin", folder / "browsers"
        self.log = folder / "log"
        self.log.touch()
        self.programs.mkdir()
        self.python = self.put("elsewhere/python", "echo Error: no network; exit 1")

    def put(self, name, script="exit 0"):
        path = self.programs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        note = f'echo "{path.name} $*" >> {shlex.quote(str(self.log))}'
        path.write_text(f"#!/bin/sh\nPATH=/bin:/usr/bin\n{note}\n{script}\n")
        path.chmod(0o755)
        return path

    def run(self, call="browser.main()", root=False, seconds=60, **environment):
        given = {
            "PATH": str(self.programs),
            "HOME": str(self.folder),
            "PLAYWRIGHT_BROWSERS_PATH": str(self.browsers),
            "PYTHONPATH": str(TOOLS),
        }
        program = PROGRAM.format(call=call, root=root, seconds=seconds, python=str(self.python))
        return subprocess.run(
            [sys.executable, "-c", program],
            env=given | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def found(self, **environment):
        ran = self.run("print(browser.find())", **environment)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    def fetched(self):
        """The calls of what would install a browser."""
        calls = self.log.read_text().splitlines()
        return [call for call in calls if call.startswith(("apt-get ", "python "))]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def install(program, path):
    """The script that puts a program at its place."""
    program, path = Path(program), Path(path)
    folder, start, end = (shlex.quote(str(p)) for p in (path.parent, program, path))
    return f"mkdir -p {folder} && cp {start} {end}"


@pytest.fixture(scope="module")
def place_of_playwright(tmp_path_factory):
    """Where Playwright puts the program of its Chromium, below its folder of browsers."""
    folder = tmp_path_factory.mktemp("browsers")
    ask = "from playwright.sync_api import sync_playwright as s\n"
    ask += "with s() as p: print(p.chromium.executable_path)"
    environment = {**os.environ, "PLAYWRIGHT_BROWSERS_PATH": str(folder)}
    answer = subprocess.check_output([sys.executable, "-c", ask], env=environment, text=True)
    return Path(answer.strip()).relative_to(folder)


# --- Which one ------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("name", ["chromium", "google-chrome-stable", "microsoft-edge"])
def test_a_browser_in_path_is_taken_and_nothing_is_fetched(machine, name, root):
    machine.put("apt-get")
    program = machine.put(name)
    assert machine.found() == str(program)
    ran = machine.run(root=root, CI="true")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert machine.fetched() == []


def test_of_several_it_is_chromium(machine):
    for name in ("microsoft-edge", "google-chrome", "chromium"):
        machine.put(name)
    assert machine.found() == str(machine.programs / "chromium")


@linux
def test_a_program_that_does_not_start_is_passed_over(machine):
    machine.put("chromium", "echo error while loading shared libraries: libnss3.so; exit 127")
    machine.put("chromium-browser", "echo requires the chromium snap to be installed; exit 1")
    chrome = machine.put("google-chrome")
    assert machine.found() == str(chrome)


def test_what_playwright_has_downloaded_is_found(machine, place_of_playwright):
    program = machine.put(machine.browsers / place_of_playwright)
    assert machine.found() == str(program)
    ran = machine.run(CI="true")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert machine.fetched() == []


def test_the_variable_says_which_to_use(machine):
    machine.put("chromium")
    edge, own = machine.put("microsoft-edge"), machine.put("own/browser")
    assert machine.found(CHROMIUM="microsoft-edge") == str(edge)
    assert machine.found(CHROMIUM=str(own)) == str(own)


@pytest.mark.parametrize(("ci", "status"), [("", 0), ("true", 1)])
def test_where_the_variable_names_no_program_no_other_is_taken_or_fetched(machine, ci, status):
    machine.put("chromium")
    machine.put("apt-get")
    ran = machine.run(root=True, CHROMIUM="none", CI=ci)
    assert ran.returncode == status
    (line,) = (ran.stdout + ran.stderr).splitlines()
    assert line.startswith("CHROMIUM names none, which is no program.")
    assert machine.fetched() == []


# --- Where there is none --------------------------------------------------------------------------


def test_root_gets_the_systems(machine):
    ready, chromium = machine.put("elsewhere/ready"), machine.programs / "chromium"
    machine.put("apt-get", f"test $1 != install || ( {install(ready, chromium)} )")
    ran = machine.run(root=True, CI="true")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "installing Chromium" in ran.stdout
    update, get = machine.fetched()
    assert "update" in update
    assert get.split()[-1] == "chromium"
    assert machine.found() == str(chromium)


def test_a_mirror_may_fail_once(machine):
    ready, tried = machine.put("elsewhere/ready"), shlex.quote(str(machine.folder / "tried"))
    machine.put(
        "apt-get",
        f"test -e {tried} || {{ touch {tried}; echo E: Failed to fetch; exit 100; }}\n"
        f"test $1 != install || ( {install(ready, machine.programs / 'chromium')} )",
    )
    ran = machine.run(root=True, CI="true")
    assert ran.returncode == 0
    assert "failed" not in ran.stdout
    assert not any(call.startswith("python") for call in machine.fetched())


def test_who_is_not_root_gets_playwrights(machine, place_of_playwright):
    machine.put("apt-get")
    ready, program = machine.put("elsewhere/ready"), machine.browsers / place_of_playwright
    machine.python.write_text(machine.python.read_text().replace("exit 1", install(ready, program)))
    ran = machine.run(CI="true")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "installing Chromium" in ran.stdout
    (call,) = machine.fetched()
    assert call.startswith("python -m playwright install")
    assert "--with-deps" not in call  # for which it would ask for a password
    assert machine.found() == str(program)


def test_where_apt_has_none_playwright_is_asked_and_both_causes_are_said(machine):
    machine.put(
        "apt-get",
        "test $1 = update && exit\necho Reading package lists...\n"
        """echo "E: Package 'chromium' has no installation candidate"\nexit 100""",
    )
    ran = machine.run(root=True)
    assert ran.returncode == 0
    assert "apt-get failed: E: Package 'chromium' has no installation candidate\n" in ran.stdout
    assert "playwright install failed: Error: no network\n" in ran.stdout
    assert "--with-deps" in machine.fetched()[-1]


@pytest.mark.parametrize("ci", ["", "0", "false", "1", "true"])
def test_where_none_can_be_had_a_line_says_what_that_means_and_what_to_do(machine, ci):
    ran = machine.run(CI=ci)
    failure = ci in ("1", "true")
    assert ran.returncode == failure
    line = (ran.stderr if failure else ran.stdout).splitlines()[-1]
    assert bool(ran.stderr) == failure
    assert line.startswith("There is no browser.")
    assert ("tests of the pages in a browser are left out" in line) != failure
    on_debian, elsewhere = re.findall("`(.+?)`", line)
    assert on_debian == "sudo apt install chromium"
    program, *words = elsewhere.rsplit(maxsplit=2)
    assert words == ["install", "chromium"]
    assert shutil.which(program)


def test_a_download_that_hangs_is_given_up_and_leaves_nothing_running(machine):
    beats = machine.folder / "beats"
    machine.put(
        "elsewhere/python",
        f"while sleep 0.1; do echo >> {shlex.quote(str(beats))}; done & wait",
    )
    ran = machine.run(seconds=1)
    assert ran.returncode == 0
    assert "playwright install failed: not done after 1 seconds\n" in ran.stdout
    before = beats.stat().st_size
    assert before
    time.sleep(0.5)
    assert beats.stat().st_size == before


def test_to_start_none_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setenv("CHROMIUM", "none")
    with pytest.raises(FileNotFoundError, match="Install Chromium, Chrome or Edge"):
        with browser.launch():
            pass


# --- Letters for Korean ---------------------------------------------------------------------------


@pytest.fixture
def fonts(machine, monkeypatch):
    """The variables for a machine whose fc-list says so much; None: it has no fc-list."""

    def fonts(said):
        if said is not None:
            machine.put("fc-list", f"echo '{said}'")
        monkeypatch.setenv("PATH", str(machine.programs))
        folder = machine.folder / "a & b"
        folder.mkdir()
        return browser.korean_fonts(folder)

    return fonts


@linux
def test_where_the_system_has_korean_fonts_they_are_used(fonts):
    assert fonts("Noto Sans CJK KR") == {}


@linux
@pytest.mark.parametrize("said", ["", None])
def test_where_it_has_none_ours_are_added_to_its_own(fonts, said, monkeypatch):
    monkeypatch.setenv("FONTCONFIG_FILE", "/a & b/fonts.conf")
    file = ElementTree.parse(fonts(said)["FONTCONFIG_FILE"])
    assert file.findtext("include") == "/a & b/fonts.conf"
    files = list(Path(file.findtext("dir")).glob("*.ttf"))
    assert files
    for path in files:
        assert ord("한") in TTFont(path).getBestCmap()


@linux
def test_programs_find_them(fonts, monkeypatch):
    program = shutil.which("fc-list")
    if not program:
        pytest.skip("this machine has no fc-list")
    environment = {**os.environ, **fonts("")}
    command = [program, ":lang=ko", "family"]
    assert "NanumGothic" in subprocess.check_output(command, env=environment, text=True)
