# `make` lists the targets. Whatever needs .venv builds it first.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo up test check format constraints clean

# A Python that starts (a pyenv shim may not), has venv, and is a version Reelserve supports.
USABLE := import ensurepip, sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	$$python -c '$(USABLE)' 2>/dev/null && echo $$python && break; done)
PIP := .venv/bin/python -m pip --disable-pip-version-check
# pip lists over a hundred packages; show only what takes time. Errors are on stderr.
BRIEFLY := awk '/Downloading.* MB\)|Building wheel/ { print; fflush() }'

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.installed ## Generate a video on this machine, without a GPU, and buy credits for another: out/demo.mp4
	@.venv/bin/python -m deployments.demo --out out/demo.mp4

up: .venv/.installed ## Start a cluster: make up ARGS="..."
	@.venv/bin/reelserve up $(ARGS)

test: .venv/.installed ## Run every test; fetches the servers they need into .tools
	@scripts/test-tools
	@.venv/bin/python -m pytest -n 2 $(ARGS)

check: .venv/.installed ## Lint, formatting, types, and which module may import which
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: .venv/.installed ## Format the code and fix what ruff can fix
	.venv/bin/ruff check --fix-only .
	.venv/bin/ruff format .

constraints: .venv/bin/python ## Install what pyproject.toml asks for, unpinned, and pin the outcome
	@$(PIP) install --editable '.[demo,test,check]' | $(BRIEFLY)
	@{ sed -n '/^#/p' constraints.txt; $(PIP) freeze --exclude-editable | sed 's/+.*//'; } > .venv/pins
	@mv .venv/pins constraints.txt
	@touch .venv/.installed

clean: ## Remove .venv, .tools, out and every cache
	rm -rf .venv .tools out dist build *.egg-info .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@"$(PYTHON)" -c '$(USABLE)' 2>/dev/null || { echo >&2 \
		"Reelserve needs Python 3.11 or 3.12 with its venv module: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Creating .venv with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv --clear .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing into .venv (the first time takes a few minutes)"
	@$(PIP) install --quiet --upgrade pip
	@$(PIP) install -c constraints.txt --editable '.[demo,test,check]' | $(BRIEFLY)
	@touch $@
