# `make quickstart` from a fresh clone installs into .venv and runs the main job; the other targets install first too.

# The first Python that fits and can make virtual environments; `make PYTHON=/path/to/python …` to choose another.
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c 'import sys, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' 2>/dev/null \
	&& echo $$python && break; done)

BIN := .venv/bin
TORCH := $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' requirements.lock)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# The store and the port that `make ui` opens.
STORE ?= sqlite:///interpreto-quickstart/mlflow.db
PORT ?= 5000

# Interpreters for `make lock`, one for each supported Python.
# Two processes share the tests of the suite, each file's in one of them, in the order in which they are collected.
SHARED ?= -n 2 --dist loadgroup --no-loadscope-reorder

PYTHONS ?= python3.10 python3.11 python3.12

.PHONY: help install quickstart test check format ui lock docs clean benchmark-attributions benchmark-plausibility \
	benchmark-concepts benchmark-agreement benchmark-probes benchmark-tracking benchmark-autolog benchmark-catalogue
.DEFAULT_GOAL := help

help: ## show these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 30

install: .venv/.installed ## make .venv from requirements.lock, with the project in it

# torch goes first, with what this build of it needs; the rest without dependencies (the head of the lock says why).
.venv/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.10, 3.11 or 3.12 with venv found: install one (on Debian: python3 python3-venv) or run make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "installing into .venv (a few minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) -c requirements.lock $(TORCH)
	@$(PIP) --no-deps -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

quickstart: install ## train, explain, learn concepts and log it all, on real text
	@$(BIN)/interpreto-mlops quickstart

test: install ## run all tests, the quick ones first
	@$(BIN)/python -m pytest $(SHARED)

check: install ## lint, types, layers of imports, documentation
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PATH="$(CURDIR)/$(BIN):$$PATH" lint-imports --no-logo
	@$(BIN)/python tools/check_docs.py

format: install ## format the code and sort its imports
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: install ## write docs/reference.md anew
	@$(BIN)/python tools/check_docs.py --write

ui: install ## open the MLflow UI on the quickstart's store
	@echo "open http://127.0.0.1:$(PORT)/#/experiments?workflowType=machine_learning"
	@MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui --backend-store-uri $(STORE) --host 127.0.0.1 --port $(PORT)

lock: install ## resolve requirements.lock anew; needs all three Pythons
	@$(BIN)/python tools/lock.py $(PYTHONS:%=--python %)

benchmark-attributions: install ## time attributions beside other libraries, measure memory; writes docs/benchmarks.md
	@$(BIN)/python benchmarks/attributions.py --write
	@$(BIN)/python benchmarks/memory.py --write

benchmark-plausibility: install ## compare attributions with the human rationales in DATA=folder; writes docs/benchmarks.md
	@test -n "$(DATA)" || { echo "say where the data is: make $@ DATA=folder (docs/benchmarks.md)" >&2; exit 1; }
	@$(BIN)/python benchmarks/plausibility.py --data "$(DATA)" --write

benchmark-concepts: install ## time harvests, autoencoders and concept gradients, also beside other libraries; writes docs/benchmarks.md
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/concepts.py --write
	@$(BIN)/python benchmarks/sae_quality.py --write

benchmark-agreement: install ## compare concepts with human edits of reviews in DATA, on the sentiment classifier MODEL; writes docs/benchmarks.md
	@test -n "$(MODEL)" -a -n "$(DATA)" || { echo "say where model and data are: make $@ MODEL=folder DATA=folder (docs/benchmarks.md)" >&2; exit 1; }
	@$(BIN)/python benchmarks/concept_agreement.py --model "$(MODEL)" --data "$(DATA)" --write

benchmark-probes: install ## compare probes of aspects with human edits of reviews in DATA, on the sentiment classifier MODEL; writes docs/probes.md
	@test -n "$(MODEL)" -a -n "$(DATA)" || { echo "say where model and data are: make $@ MODEL=folder DATA=folder (docs/probes.md)" >&2; exit 1; }
	@$(BIN)/python benchmarks/cebab_probes.py --model "$(MODEL)" --data "$(DATA)" --write

benchmark-tracking: install ## time MLflow and catalogue in the quickstart; writes docs/benchmarks.md
	@MLFLOW_DISABLE_TELEMETRY=true $(BIN)/python benchmarks/tracking.py --write

benchmark-autolog: install ## time autologging beside the work that it logs
	@MLFLOW_DISABLE_TELEMETRY=true $(BIN)/python -m benchmarks.autolog

benchmark-catalogue: install ## time the catalogue's questions over a million rows, on SQLite and, where it is installed, PostgreSQL
	@$(BIN)/python benchmarks/catalogue.py

clean: ## remove .venv and caches; keeps the runs
	@rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
