# Needs Python 3.11 (or 3.12) and make; everything else is installed into .venv.
#   make run               install, start the platform, land a good and a bad sample version
#   make run DATA=dir      the same with real data sets: dir/nsmc, ...
#   make test              install, run the whole suite (WORKERS=3 processes)
#   make platform          the READMEs' commands and the attacks, on a running platform (ten minutes more)
#   make check             formatting, lint, types, import rules
#   make bench             every figure of benchmarks/, written to benchmarks/RESULTS.md (QUICK=1: a minute each)

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
WORKERS ?= 3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: run test platform check bench install
.DELETE_ON_ERROR:

install: $(STAMP)

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
		|| { echo "Python 3.11 or 3.12 is needed, $(PYTHON) is not: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(STAMP): requirements.lock pyproject.toml | $(BIN)/uv
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --requirement requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --editable .
	@touch $@

run: install
	@$(BIN)/mlops up $(if $(DATA),--data $(DATA),--demo)

test: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

platform: install
	$(BIN)/python -m pytest -m platform $(ARGS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: install
	$(BIN)/python benchmarks/run_all.py $(if $(QUICK),--quick)
