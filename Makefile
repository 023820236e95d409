# Two commands do everything, each with its own set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Debian packages: a compiler and Python's headers for DeepSpeed's small extension, venv, ffprobe, a browser, Slurm and PostgreSQL for the tests.
SYSTEM_RUN := g++ python3-dev python3-venv
SYSTEM_TEST := ffmpeg chromium slurm-wlm postgresql
SYSTEM_SLURM := slurm-wlm slurmdbd munge mariadb-server

.PHONY: help demo bench test test-data test-engine test-faults test-slurm test-tracking test-gpu slurm-install slurm-up slurm-down lint format clean system pictures

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

demo: $(VENV)/.ready ## render, pack, train five folds on this machine, print the table
	@$(BIN)/dfer demo

test: $(VENV)/.ready-test ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-data: $(VENV)/.ready-test ## whole data sets through packing, from the lists in $DFER_SPLITS; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m data_full

test-engine: $(VENV)/.ready-test ## more ways to train for real on one and two ranks; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m engine_full

test-faults: $(VENV)/.ready-test ## everything that can befall a run, done to real training; prints a table; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'faults_full or not faults_full' tests/faults tests/integration/checkpoints/test_checkpoints.py

test-slurm: $(VENV)/.ready-test ## training on a Slurm of four nodes on this machine (make slurm-install first); minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slurm or not slurm' tests/slurm

test-tracking: $(VENV)/.ready-test ## an mlflow server on PostgreSQL, and all that can befall it; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m 'tracking or not tracking' tests/tracking tests/unit/tracking/test_metrics_log.py tests/integration/tracking/test_mlflow_runs.py

test-gpu: $(VENV)/.ready-test ## golden parity, a fold in bf16, leaving and going on, on one GPU; fails where there is none
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu tests/gpu

slurm-install: ## install Debian's Slurm, munge and MariaDB for slurm-up and test-slurm (root or sudo)
	@tools=($(SYSTEM_SLURM)); $(install)

slurm-up: ## start a Slurm of four nodes on this machine, for trying things (docs/slurm.md)
	@$(PYTHON) slurm/testbed/cluster.py up

slurm-down: ## end it; its files stay
	@$(PYTHON) slurm/testbed/cluster.py down

lint: $(VENV)/.ready-test ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready-test ## let ruff reformat and mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pictures: $(VENV)/.ready-test ## draw the pictures in docs/ again, from runs/demo
	$(BIN)/python -m dfer_dist.demo.dataset --sheet docs/demo_classes.png
	cp runs/demo/summary.png docs/demo_summary.png
	$(BIN)/python docs/mlflow_page.py runs/demo docs/mlflow_page.png
	$(BIN)/dfer report runs/demo
	$(BIN)/python docs/report_page.py runs/demo/report.html docs/report.png --columns
	$(BIN)/dfer enrich data/demo/shards --landmarks-from data/demo/source/landmarks --parsing
	$(BIN)/dfer describe data/demo/shards --import data/demo/source/descriptions.csv
	$(BIN)/dfer crossval demo --nproc 1 --name dferclip
	$(BIN)/dfer crossval demo --nproc 1 --name lora model.image=lora
	$(BIN)/dfer crossval demo_finecliper --nproc 1 --name finecliper train.objective=both
	$(BIN)/dfer crossval demo_finecliper --nproc 1 --name fine-time train.objective=both model.temporal=transformer
	$(BIN)/python docs/mlflow_page.py runs/dferclip runs/lora runs/finecliper runs/fine-time docs/mlflow_compare.png
	$(BIN)/python docs/levels_picture.py docs/levels.png
	film=$$(mktemp --suffix .mp4); $(BIN)/python tests/helpers/videos.py $$film; \
	  $(BIN)/python -m dfer_dist.data.faces.contact_sheet $$film docs/faces.png; rm $$film

bench: $(VENV)/.ready ## run all benchmarks on this machine, which should be quiet, and write docs/benchmarks.md; minutes
	$(BIN)/python benchmarks/write.py

system: ## install the Debian packages that demo and tests need (root or sudo)
	@tools=($(SYSTEM_RUN) $(SYSTEM_TEST)); $(install)

clean: ## remove the demo's data and run, and what tests and builds left; keeps .venv
	rm -rf data/demo runs/demo runs/mlflow.db runs/mlartifacts build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find dfer_dist launch tests -name __pycache__ -prune -exec rm -rf {} +

# $(install) installs the packages in the shell array `tools`, or says how.
define install
	if [ $$(id -u) = 0 ]; then as=; elif sudo -n true 2>/dev/null; then as=sudo; else \
	  echo "please run: sudo apt-get update && sudo apt-get install -y $${tools[*]}" >&2; exit 1; fi; \
	$$as apt-get update -q && DEBIAN_FRONTEND=noninteractive $$as apt-get install -yq --no-install-recommends "$${tools[@]}"
endef

$(VENV)/.system:
	@missing=(); command -v g++ >/dev/null || missing+=(g++); \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv); \
	$(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null || missing+=(python3-dev); \
	tools=("$${missing[@]}"); if [ $${#tools[@]} -gt 0 ]; then $(install); fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $$($(PYTHON) --version) is here. Give another: make PYTHON=python3.12 …" >&2; exit 1; }
	@mkdir -p $(VENV) && touch $@

$(VENV)/.ready: setup.cfg pyproject.toml | $(VENV)/.system
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e .
	$(BIN)/python -m dfer_dist.training.engine
	@touch $@

$(VENV)/.system-test:
	@tools=(); command -v ffprobe >/dev/null || tools+=(ffmpeg); command -v chromium >/dev/null || tools+=(chromium); \
	PATH=$$PATH:/usr/sbin command -v slurmctld >/dev/null || tools+=(slurm-wlm); \
	compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || tools+=(postgresql); \
	if [ $${#tools[@]} -gt 0 ]; then $(install); fi
	@mkdir -p $(VENV) && touch $@

$(VENV)/.ready-test: setup.cfg $(VENV)/.ready | $(VENV)/.system-test
	$(BIN)/python -m pip install -q -e '.[test,lint]'
	@touch $@
