# Two commands do everything and install what they need: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PIP := $(BIN)/python -m pip install -q -c constraints.txt
UNIT := tests/unit tests/test_architecture.py tests/test_docs.py tests/test_words.py
RUN_UNIT = $(BIN)/python -m pytest -q -n logical --dist worksteal $(UNIT)
OTHERS := tests --ignore=tests/unit --ignore=tests/test_architecture.py --ignore=tests/test_docs.py --ignore=tests/test_words.py

# Debian packages: a compiler and Python's headers for DeepSpeed's extension, venv, and for the tests
# ffprobe, a browser, Slurm, PostgreSQL and LaTeX with booktabs.
SYSTEM_RUN := g++ python3-dev python3-venv
SYSTEM_TEST := ffmpeg curl chromium slurm-wlm postgresql texlive-latex-recommended
SYSTEM_SLURM := slurm-wlm slurmdbd munge mariadb-server
# where test-slurm-24 makes the root of a newer Debian (1.5 GB)
NEWER ?= /var/tmp/dfer-debian-13

# Tests start many processes, which would all compile the sources.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo bench test test-unit test-data test-engine test-faults test-slurm test-slurm-24 test-chaos test-tracking test-gpu gpu-report slurm-install slurm-up slurm-down lint format clean system pictures

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

demo: $(VENV)/.ready ## render and pack a small data set, train five folds, print the table
	@$(BIN)/dfer demo

test: $(VENV)/.ready-test ## run the whole test suite: unit tests, then the others, two files at a time
	@export OMP_NUM_THREADS=1 TIMEFORMAT='wall %0R s, CPU %0U s user + %0S s system'; failed=0; \
	time { $(RUN_UNIT) || failed=1; $(BIN)/python -m pytest -q -n 2 --dist loadfile $(OTHERS) || failed=1; }; \
	echo "load average: $$(cut -d' ' -f1-3 /proc/loadavg)"; exit $$failed

test-unit: $(VENV)/.ready-test ## run the unit tests only
	OMP_NUM_THREADS=1 $(RUN_UNIT)

test-data: $(VENV)/.ready-test ## pack the full official lists in $DFER_SPLITS and damage shards at random; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m data_full

test-engine: $(VENV)/.ready-test ## train for real in more configurations on one and two ranks; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m engine_full

test-faults: $(VENV)/.ready-test ## kill, hang and corrupt real training runs and print a table; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'faults_full or not faults_full' tests/faults tests/integration/checkpoints

test-slurm: $(VENV)/.ready-test ## train on a four-node Slurm on this machine (make slurm-install first); minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not chaos' tests/slurm

test-chaos: $(VENV)/.ready-test ## a fault of each kind at random moments on that Slurm, seeded by $DFER_CHAOS_SEED; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m chaos tests/slurm

test-slurm-24: $(VENV)/.ready-test ## the same on Slurm 24.11, in a root made with debootstrap in NEWER (needs root, a Python outside of /usr)
	OMP_NUM_THREADS=1 slurm/testbed/debian_root.sh trixie $(NEWER) $(BIN)/python -m pytest -m 'not chaos' tests/slurm

test-tracking: $(VENV)/.ready-test ## test against an MLflow server on PostgreSQL that fails again and again; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m 'tracking or not tracking' tests/tracking tests/unit/tracking tests/integration/tracking

test-gpu: $(VENV)/.ready-test ## test parity with the recorded steps, a fold in bf16, preemption and resume on one GPU; fails without one
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu tests/gpu

gpu-report: $(VENV)/.ready ## measure one GPU in at most 12 minutes and print tables for docs; on the CPU with DRY_RUN=1
	@$(BIN)/python benchmarks/gpu_report.py $(if $(DRY_RUN),--dry-run)

slurm-install: ## install Slurm, munge and MariaDB for slurm-up and test-slurm (needs root or sudo)
	@tools=($(SYSTEM_SLURM)); $(install)

slurm-up: ## start a four-node Slurm on this machine to try things (docs/guides/slurm.md)
	@$(PYTHON) slurm/testbed/cluster.py up

slurm-down: ## stop it and keep its files
	@$(PYTHON) slurm/testbed/cluster.py down

lint: $(VENV)/.ready-test ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready-test ## fix and format with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pictures: $(VENV)/.ready-test ## draw the pictures in docs/ from runs/demo
	$(BIN)/python docs/scripts/demo_picture.py docs/images/demo_classes.png
	$(BIN)/dfer report runs/demo
	$(BIN)/python docs/scripts/report_page.py runs/demo/report.html docs/images/report.png --columns
	$(BIN)/dfer enrich data/demo/shards --landmarks-from data/demo/source/landmarks --parsing
	$(BIN)/dfer describe data/demo/shards --import data/demo/source/descriptions.csv
	$(BIN)/dfer crossval demo --nproc 1 --name dferclip
	$(BIN)/dfer crossval demo --nproc 1 --name lora model.image=lora
	$(BIN)/dfer crossval demo_finecliper --nproc 1 --name finecliper train.objective=both
	$(BIN)/dfer crossval demo_finecliper --nproc 1 --name fine-time train.objective=both model.temporal=transformer
	$(BIN)/python docs/scripts/mlflow_page.py runs/dferclip runs/lora runs/finecliper runs/fine-time docs/images/mlflow_compare.png
	$(BIN)/python docs/scripts/modalities_picture.py docs/images/modalities.png
	video=$$(mktemp --suffix .mp4); $(BIN)/python tests/helpers/data/videos.py $$video; \
	  $(BIN)/python -m dfer_dist.data.faces.contact_sheet $$video docs/images/faces.png; rm $$video

bench: $(VENV)/.ready ## run all benchmarks (on a quiet machine) and write their page in docs; minutes
	$(BIN)/python benchmarks/write.py

system: ## install the Debian packages that demo and tests need (needs root or sudo)
	@tools=($(SYSTEM_RUN) $(SYSTEM_TEST)); $(install)

clean: ## remove the demo's data and run and what tests and builds left; keeps .venv
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

$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt | $(VENV)/.system
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[train]'
	$(BIN)/python -m dfer_dist.training.engine
	@touch $@

$(VENV)/.system-test:
	@tools=(); command -v ffprobe >/dev/null || tools+=(ffmpeg); command -v curl >/dev/null || tools+=(curl); command -v chromium >/dev/null || tools+=(chromium); \
	PATH=$$PATH:/usr/sbin command -v slurmctld >/dev/null || tools+=(slurm-wlm); \
	compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || tools+=(postgresql); \
	kpsewhich booktabs.sty >/dev/null 2>&1 || tools+=(texlive-latex-recommended); \
	if [ $${#tools[@]} -gt 0 ]; then $(install); fi
	@mkdir -p $(VENV) && touch $@

$(VENV)/.ready-test: setup.cfg constraints.txt $(VENV)/.ready | $(VENV)/.system-test
	$(PIP) -e '.[test,lint]'
	@touch $@
