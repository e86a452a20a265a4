# Begin with make demo or make test. Both create .venv first if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_USER = 0
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help install demo music experiment test test-all lint format soak bench study clean

help:
	@echo "make demo      synthesize music, train on it, continue it, evaluate it: the whole pipeline in a few minutes"
	@echo "make music     download 14 hours of free recordings from Debian's or Ubuntu's package archive into music/ (670 MB)"
	@echo "make experiment  the original experiment at full size on the music in music/ (QUICK=1: 20 to 40 minutes on 2 cores)"
	@echo "make test      the quick tests, offline"
	@echo "make test-all  all tests: kills, full disks, browser, SLURM where it is installed"
	@echo "make lint      ruff (rules and format) and shellcheck"
	@echo "make install   create .venv with the packages of requirements.txt"
	@echo "make soak      kill every script 200 times at random moments and compare the results"
	@echo "make bench     compare this code's speed with the original experiment's (needs ffmpeg); also measure the GPU if there is one"
	@echo "make study     train on music whose best possible prediction is known, and evaluate it"
	@echo "make clean     remove what the demo made"

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 10) <= v < (3, 15) and \
		f"Python 3.10 to 3.14 is needed, because torch has wheels for these; this is {v[0]}.{v[1]}. Add PYTHON=python3.12 to the make command")'
	@echo "installing PyTorch and the rest into $(VENV): a download of about 3 GB on Linux (GPU libraries), 0.3 GB on macOS"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@du -sh $(VENV) | sed 's/\t/ in /'
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@

demo: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash demo/run_demo.sh

music: $(VENV)/.installed
	$(BIN)/python demo/get_music.py --output_dir music

experiment: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" QUICK="$(QUICK)" bash demo/run_experiment.sh

# Run several test files at once, with one thread each: twice as fast on two cores. The tests of a file share fixtures.
PYTEST = OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest
PARALLEL = -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow" $(PARALLEL)

# The slow tests often wait, so three files at once use two cores better. SLURM jobs have time limits, so they run alone.
test-all: $(VENV)/.installed-dev
	$(PYTEST) -m "not slurm" $(PARALLEL) -n 3
	$(PYTEST) -m slurm tests/slurm

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@if command -v shellcheck >/dev/null; then shellcheck *.sh demo/*.sh benchmarks/*.sh .ci/run; else echo "shellcheck is not installed: scripts unchecked"; fi

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak: $(VENV)/.installed-dev
	$(BIN)/python tests/soak_kill.py

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run_benchmarks.py
	@! $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
		PYTHON=$(BIN)/python bash benchmarks/gpu.sh benchmarks/results

study: $(VENV)/.installed
	$(BIN)/python benchmarks/study_planted.py

clean:
	rm -rf demo/music demo/output
