"""Find a browser for the tests of the built pages, or get one (`make test` starts with this).

Chromium, Chrome and Edge will do. Where none can be had the tests of pages in a browser are left
out, and one line says so; with CI set in the environment that is a failure.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "microsoft-edge-stable",
    "msedge",
)
# Where macOS and Windows keep programs that are not in PATH.
PLACES = [
    Path(folder, f"{name}.app/Contents/MacOS/{name}")
    for folder in ("/Applications", Path.home() / "Applications")
    for name in ("Google Chrome", "Chromium", "Microsoft Edge")
] + [
    Path(os.environ[folder], name)
    for folder in ("ProgramFiles", "ProgramFiles(x86)", "LocalAppData")
    if folder in os.environ
    for name in (
        "Google/Chrome/Application/chrome.exe",
        "Chromium/Application/chrome.exe",
        "Microsoft/Edge/Application/msedge.exe",
    )
]
# Nothing of its own from the network, and no graphics card.
FLAGS = [
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
DOWNLOAD_SECONDS = 300  # for Playwright's Chromium, about 170 MB
HOW = (
    "Install Chromium, Chrome or Edge (on Debian `sudo apt install chromium`, elsewhere "
    f"`{Path(sys.executable).parent / 'playwright'} install chromium`), or name it in CHROMIUM."
)

FONTS = """\
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <include ignore_missing="yes">{system}</include>
  <dir>{fonts}</dir>
  <cachedir>{cache}</cachedir>
</fontconfig>
"""

# --- The program ----------------------------------------------------------------------------------


def starts(program: str) -> bool:
    """Whether it is more than a file. On Linux it may lack libraries, and Ubuntu's chromium-browser
    may be a script that only asks for a snap. Elsewhere asking would open a window."""
    if sys.platform != "linux":
        return True
    try:
        ask = subprocess.run(
            [program, "--version"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ask.returncode == 0


def downloaded() -> str | None:
    """The Chromium that `playwright install` has put into its own folder."""
    caches = {
        "darwin": "~/Library/Caches",
        "win32": os.environ.get("LOCALAPPDATA", "~/AppData/Local"),
    }
    cache = caches.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or f"{cache}/ms-playwright"
    # To ask Playwright takes a second, so look into the folder first ("0": inside its package).
    if folder != "0" and not any(Path(folder).expanduser().glob("chromium-*")):
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = playwright.chromium.executable_path
    return program if Path(program).exists() and starts(program) else None


def find() -> str | None:
    """The program of Chromium, Chrome or Edge; the one that CHROMIUM names, where that is set."""
    named = os.environ.get("CHROMIUM")
    for name in [named] if named else [*NAMES, *map(str, PLACES)]:
        program = shutil.which(name)
        if program and starts(program):
            return program
    return None if named else downloaded()


# --- Where there is none --------------------------------------------------------------------------


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def quietly(command: list[str], seconds: float | None = None) -> str:
    """Run a command; return nothing, or where it failed one line of what it said."""
    # A file, because a pipe would stay open in a grandchild; a session, to end those as well.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            start_new_session=True,
        )
        try:
            if process.wait(seconds) == 0:
                return ""
        except subprocess.TimeoutExpired:
            return f"not done after {seconds} seconds"
        finally:
            if process.poll() is None:
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGTERM)
                else:
                    process.terminate()
                process.wait()
        output.seek(0)
        lines = [line.strip() for line in output if line.strip()]
    # apt-get marks an error with "E:", Playwright with "Error:"; the first is the cause.
    errors = [line for line in lines if line.startswith(("E:", "Error"))]
    return (errors + lines[-1:] + [f"status {process.returncode}"])[0]


def get() -> str | None:
    """Install Chromium: with apt-get as root, otherwise Playwright's, which needs no rights."""
    if os.environ.get("CHROMIUM"):  # which says what to use, and so also to use none
        return None
    print(
        "No browser to test the pages in: installing Chromium, for which it may take minutes.",
        flush=True,
    )
    with_libraries = []
    if is_root() and shutil.which("apt-get"):
        install = "apt-get install -qq --no-install-recommends chromium"
        for _ in range(3):  # a mirror or a proxy may fail once
            failure = quietly("apt-get update -qq".split()) or quietly(install.split())
            if program := find():
                return program
        print(f"apt-get failed: {failure}", flush=True)
        with_libraries = ["--with-deps"]  # Ubuntu has no package chromium
    playwright = [sys.executable, "-m", "playwright", "install", "--no-shell", "chromium"]
    failure = quietly(playwright + with_libraries, DOWNLOAD_SECONDS)
    program = find()
    if not program:
        print(f"playwright install failed: {failure or 'its Chromium does not start'}", flush=True)
    return program


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def missing() -> str:
    """The line for where there is no browser: what that means, and what to do."""
    named = os.environ.get("CHROMIUM")
    why = f"CHROMIUM names {named}, which is no program." if named else "There is no browser."
    what = "" if in_ci() else " The tests of the pages in a browser are left out."
    return f"{why}{what} {HOW}"


def main() -> int:
    """Find or get a browser; 1 where there is none and CI is set."""
    if find() or get():
        return 0
    print(missing(), file=sys.stderr if in_ci() else sys.stdout)
    return 1 if in_ci() else 0


# --- To start it ----------------------------------------------------------------------------------


def korean_fonts(folder: Path) -> dict[str, str]:
    """The variables with which a program finds letters for Korean; none where the system has them.

    They point to a file in `folder` that adds the fonts which come with koreanize-matplotlib.
    """
    package = importlib.util.find_spec("koreanize_matplotlib")  # for its fonts; it is not imported
    if sys.platform != "linux" or not package:
        return {}
    if shutil.which("fc-list"):
        command = ["fc-list", ":lang=ko", "family"]
        if subprocess.run(command, capture_output=True, text=True).stdout.strip():
            return {}
    path = folder / "fonts.conf"
    text = FONTS.format(
        system=escape(os.environ.get("FONTCONFIG_FILE") or "/etc/fonts/fonts.conf"),
        fonts=escape(str(Path(package.origin).parent / "fonts")),
        cache=escape(str(folder / "cache")),
    )
    path.write_text(text, "utf-8")
    return {"FONTCONFIG_FILE": str(path)}


@contextmanager
def launch() -> Iterator["Browser"]:
    """Start the browser, without a window and with letters for Korean.

    Raises
    ------
    FileNotFoundError
        If there is none; the message says what to do.
    """
    program = find()
    if not program:
        raise FileNotFoundError(missing())
    from playwright.sync_api import Error, sync_playwright

    # The browser may still write to its folder while it ends.
    temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with temporary as folder, sync_playwright() as playwright:
        options = {
            "executable_path": program,
            "args": FLAGS,
            "env": {**os.environ, **korean_fonts(Path(folder))},
        }
        try:  # root cannot have Chromium's sandbox
            browser = playwright.chromium.launch(chromium_sandbox=not is_root(), **options)
        except Error:
            if is_root():
                raise
            # Nor can everybody in a container, or on Ubuntu. The pages are our own.
            browser = playwright.chromium.launch(chromium_sandbox=False, **options)
        yield browser
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
