# Two commands are enough: make workbook, make test. `make help` lists the rest.
#
# PYTHON=/path/to/python3.10   the interpreter to build .venv with (default: the first of 3.11, 3.10, 3.9)
# PROFILE, OUTPUT              what `make workbook` runs and where its results go
# ARGS                         more arguments for workbook (-p 04_lora.epochs=3), lab (--no-browser) or pytest (-k name)
SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install workbook test check lint types notebooks-stripped large-files test-py39 lab bench lock clean

PROFILE ?= smoke
OUTPUT ?= runs/$(PROFILE)
ARGS ?=
LARGEST := 512
UV := uv==0.13.9

# Nothing of the user's own Python site or shell may reach into .venv.
unexport PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE := 1
export JUPYTER_PREFER_ENV_PATH := 1

venv := .venv
python := $(venv)/bin/python
activate := PATH="$(CURDIR)/$(venv)/bin:$$PATH"

help: ## This list
	@echo "usage: make TARGET [PYTHON=python3.10] [ARGS=...]"
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## /  \1|/p' Makefile | awk -F'|' '{ printf "%-12s%s\n", $$1, $$2 }'
	@echo "Where torch has no CPU build among your package sources, pip takes gigabytes of CUDA libraries with it;"
	@echo "with internet access: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make install"

install: ## Make .venv and install the pinned packages; nothing when it is whole
	@found="$$(tools/find_python --venv $(venv))" && "$$found" tools/make_venv.py $(venv)

workbook: install ## Run the six notebooks on the CPU; a second call resumes
	@$(activate) $(python) -m qwenlib workbook run --profile $(PROFILE) --output $(OUTPUT) --resume $(ARGS)
	@echo "The results are in $(OUTPUT): run.json, and a folder for each stage with its notebook as .ipynb and .html."

test: install check test-py39 ## Lint, types, the MindSpore-free tests on 3.9, then all tests
	@$(python) -m pytest $(ARGS)

check: install lint types notebooks-stripped large-files ## Lint, formatting, types, stripped notebooks, large files

lint: install
	$(python) -m ruff check .
	$(python) -m ruff format --check .

types: install
	$(python) -m mypy

notebooks-stripped: install
	find notebooks tests -name '*.ipynb' -not -path '*/.*' -exec $(venv)/bin/nbstripout --verify --keep-id \
		--extra-keys "metadata.papermill cell.metadata.papermill" {} +

large-files:
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "not a git checkout: the sizes of its files are not checked"; exit 0; }; \
	large="$$(git ls-files -z --cached --others --exclude-standard \
		| xargs -0 sh -c 'find "$$@" -maxdepth 0 -type f -size +$(LARGEST)k 2>/dev/null || :' find)"; \
	[ -z "$$large" ] || { echo "larger than $(LARGEST) KiB, which no file of the project may be:"; echo "$$large"; exit 1; }

test-py39: ## The tests that need no MindSpore and run no notebook, on Python 3.9
	@if found="$$(PYTHON= tools/find_python --venv .venv-py39 3.9 2>/dev/null)"; then \
		"$$found" tools/make_venv.py .venv-py39 --lock requirements/min-py39.txt \
		&& .venv-py39/bin/python -m pytest -m "not stack and not notebook"; \
	else \
		echo "no Python 3.9 with venv and ensurepip here: its tests are not run"; \
	fi

lab: install ## JupyterLab on the notebooks
	@$(activate) $(python) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks $(ARGS)

bench: install ## The side-by-side measurements of benchmarks/
	@set -e; for script in benchmarks/[a-z]*.py; do \
		[ -f "$$script" ] || { echo "there are no benchmarks yet"; exit 0; }; \
		echo "== $$script"; $(python) "$$script"; \
	done

# Pins stay as they are where they still fit; to move them all: make lock ARGS=--upgrade
lock: ## Write requirements/*.txt anew from pyproject.toml
	@found="$$(tools/find_python)" && "$$found" -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --disable-pip-version-check --quiet $(UV)
	@set -e; lock() { \
		out=requirements/$$1-py$$(echo $$2 | tr -d .).txt; version=$$2; shift 2; echo "$$out"; \
		UV_CUSTOM_COMPILE_COMMAND="make lock" UV_PYTHON_DOWNLOADS=never .venv-lock/bin/uv pip compile pyproject.toml \
			--quiet --no-progress --python .venv-lock/bin/python --python-version $$version \
			--annotation-style line --output-file $$out $$@ $(ARGS); \
	}; \
	for version in 3.11 3.10 3.9; do \
		lock cpu $$version --extra cpu --extra torch --extra data --extra notebook --extra browser --extra dev; \
	done; \
	lock min 3.9 --extra data --extra dev

clean: ## Remove the environments and caches; runs/ stays
	rm -rf .venv .venv-py39 .venv-lock build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
