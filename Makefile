# The two commands to begin with:  make demo  and  make test. Each makes .venv first if need be.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install demo test lint format soak bench clean

help:
	@echo "make demo     synthesise music, train on it, continue it: the whole pipeline in a few minutes"
	@echo "make test     the whole test suite, offline"
	@echo "make lint     ruff (rules and format) and shellcheck"
	@echo "make install  only make .venv with what requirements.txt lists"
	@echo "make soak     kill every script 200 times at random moments and compare what they end with"
	@echo "make bench    measure it against the letter of the experiment's description (needs ffmpeg)"
	@echo "make clean    remove what the demo made"

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash demo/run_demo.sh

test: $(VENV)/.installed-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@if command -v shellcheck >/dev/null; then shellcheck *.sh demo/*.sh .ci/run; else echo "shellcheck is not installed: scripts unchecked"; fi

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak: $(VENV)/.installed-dev
	$(BIN)/python tests/soak_kill.py

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run_benchmarks.py

clean:
	rm -rf demo/music demo/output
