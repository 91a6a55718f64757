# make demo   set up .venv if it is missing, run the default study, print its table
# make test   the same set-up, then the whole test suite
# make test-gpu   what needs a GPU, in three minutes, with PYTHON as it is (torch, numpy, pandas, PyYAML, pytest;
#             kd not installed): captured steps give the numbers of steps as they are for every loss and source, also
#             after failures, resumed, together; no step waits for the GPU; memory is freed. docs/gpu.md lists them
# make test-slurm   studies on a real SLURM of one node that is started here: needs root, slurm-wlm and munge
# make test-server   studies on a team's MLflow server, on a PostgreSQL that is started here: needs root, postgresql, and
#             psycopg2-binary in .venv
# make lint   formatters and linters, as the tests' style check runs them
# make settings   config.yaml, its schema and the tables of config/README.md, made from kd/settings/shapes.py
#
# TORCH picks the build of torch and torchvision: `default` is what the package index gives (CUDA on Linux),
# `cpu` or `cu130`, ... that of PyTorch's own index:   make demo TORCH=cpu
# PYTHON is the interpreter that .venv is made from (3.11 or 3.12).
TORCH ?= default
PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := demo
.PHONY: demo test test-gpu test-slurm test-server lint settings clean-results

BIN := .venv/bin
READY := .venv/.ready
ifneq ($(TORCH),default)
TORCH_INDEX := --index-url https://download.pytorch.org/whl/$(TORCH)
endif

demo: $(READY)
	@$(BIN)/snakemake --cores all
	@echo "commands  work after: source .venv/bin/activate"
	@echo
	@echo "Is SSD-KD better than Fast here?   python -m kd compare ssdkd fast --study demo"
	@$(BIN)/python -m kd compare ssdkd fast --study demo

test: $(READY)
	$(BIN)/python -m pytest -m "not alone and not slurm and not server" -n 2 --dist worksteal --durations 15
	$(BIN)/python -m pytest -m alone

test-gpu:
	@$(PYTHON) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make test-gpu: torch sees no GPU here")'
	$(PYTHON) -m pytest -m gpu --durations 5 $(addprefix tests/training/,test_capture_on_gpu.py test_no_host_sync.py test_host_waits.py)

# Debian's slurm-wlm and munge, and root: without them these are skipped, with a message
test-slurm: $(READY)
	$(BIN)/python -m pytest -m slurm -rs

# Debian's postgresql, `pip install psycopg2-binary`, and root: without them these are skipped, with a message
test-server: $(READY)
	$(BIN)/python -m pytest -m server -rs

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

settings: $(READY)
	$(BIN)/python -m kd.settings.documents

# Some Debians have python3 without ensurepip: then the environment is made without pip and the system's pip fills it.
$(READY): constraints.txt pyproject.toml
	@if ! $(PYTHON) -m venv .venv 2>/dev/null; then \
	  rm -rf .venv; $(PYTHON) -m venv --without-pip .venv 2>/dev/null \
	  || { echo "python3 cannot make a virtual environment; install it first: apt-get install python3-venv" >&2; exit 1; }; \
	fi
	@if [ -x $(BIN)/pip ]; then pip="$(BIN)/python -m pip"; else pip="$(PYTHON) -m pip --python $(BIN)/python"; fi; \
	$$pip --version >/dev/null 2>&1 || { echo "no pip; install it first: apt-get install python3-pip" >&2; exit 1; }; \
	echo "installing the pinned dependencies into .venv (some minutes, once)"; \
	$$pip install -q $(TORCH_INDEX) "$$(grep '^torch==' constraints.txt)"; \
	$$pip install -q --no-deps $(TORCH_INDEX) "$$(grep '^torchvision==' constraints.txt)"; \
	$$pip install -q -c constraints.txt -e '.[dev]'
	@touch $(READY)

clean-results:
	rm -rf results/runs results/studies results/data results/logs results/cache results/mlflow.db* results/mlartifacts
