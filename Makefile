# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` need nothing but the packages that `make check` asks for: they make
# .venv, install the pinned dependencies and the package, and run. PYTHON=/path/to/python uses an
# environment that already has torch instead; nothing is installed into it.

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help check ready build demo format lint types test sanitize aot ptx hf-matrix trees vllm bench clean

ifdef PYTHON
PY := $(PYTHON)
# Not installed there: found by path, by child processes as well.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
# Quoted: the path of a checkout may hold spaces.
PY := "$(CURDIR)/.venv/bin/python"
endif
BASE_PYTHON ?= python3
CLANG_FORMAT = $(PY) -c 'import clang_format; clang_format.clang_format()'
SOURCES = $(shell find csrc python_tests -name '*.h' -o -name '*.cpp')

# Import names a target needs from an environment given by PYTHON=.
NEEDS := setuptools pybind11
demo: NEEDS += torch typer rich skimage matplotlib
bench: NEEDS += torch typer rich matplotlib cpuinfo
lint types test sanitize aot ptx hf-matrix vllm format: NEEDS += torch triton numpy typer rich skimage matplotlib transformers pytest \
  pytest_benchmark hypothesis ruff mypy clang_format

help:
	@echo 'make demo    choose patches of a photograph, write kept.png'
	@echo 'make test    lint, types and tests'
	@echo 'make build   the native module, in place'
	@echo 'make lint    ruff and clang-format     make format  apply them     make types   mypy'
	@echo 'make aot     compile every Triton kernel for every target (minutes)'
	@echo 'make ptx     run the compiled Triton kernels, instruction by instruction, without a GPU (long)'
	@echo 'make sanitize   the native kernels under the sanitizers of the compiler (minutes)'
	@echo 'make hf-matrix   the tests of pruned models on several versions of transformers (minutes)'
	@echo 'make vllm   the tests of every pruned model in vLLM (minutes)'
	@echo 'make bench   the benchmarks'
	@echo 'make clean   remove build outputs (.venv stays)'
	@echo 'PYTHON=/path/to/python uses an environment that has the dependencies, instead of .venv'
	@echo 'BASE_PYTHON=python3.12     makes .venv from that interpreter'

demo: build
	@$(PY) -m zspa_kernels.cli demo

# Each of several processes takes a stretch of the tests, and then of what the others have left. An
# environment given by PYTHON= may lack pytest-xdist: one process takes them all.
WORKERS = $(shell $(PY) -c 'import importlib.util as u; \
  print("-n auto --maxprocesses 4 --dist worksteal" if u.find_spec("xdist") else "")')

# Types take one core, downloads the other.
test: lint
	@$(MAKE) -j 2 types trees
	@$(PY) -m pytest $(WORKERS)

lint: build
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(CLANG_FORMAT) --dry-run -Werror $(SOURCES)

types: build
	@$(PY) -m mypy

format: ready
	@$(PY) -m ruff format -q .
	@$(CLANG_FORMAT) -i $(SOURCES)

aot: build
	@$(PY) -m pytest python_tests/test_triton_aot.py -m aot_full

ptx: build
	@$(PY) -m pytest python_tests/test_triton_ptx.py -m ptx_full

sanitize: ready
	@$(PY) -m python_tests.sanitize

hf-matrix: build
	@$(PY) -m python_tests.hf_matrix

vllm: build trees
	@ZSPA_VLLM_MODELS=all $(PY) -m pytest python_tests/test_vllm.py

# Not with PYTHON=, which downloads nothing: tests of what is not there are skipped and say so.
trees: ready
ifndef PYTHON
	@$(PY) -m python_tests.trees
endif

bench: build
	@$(PY) -m bench.run

# Without the pipes of a parallel make, which ninja asks for and does not get.
build: ready
	@MAKEFLAGS= $(PY) setup.py -q build_ext --inplace

clean:
	rm -rf build dist *.egg-info zspa_kernels/_C*.so .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# --- what has to be there -------------------------------------------------------------------------

ifdef PYTHON
ready:
	@$(PY) -c 'import importlib.util as u, sys; \
	  gone = [name for name in "$(NEEDS)".split() if u.find_spec(name) is None]; \
	  gone and sys.exit(f"{sys.executable} lacks: {chr(32).join(gone)}. The pinned versions are in constraints.txt.")'
else
ready: .venv/.installed

.venv/.installed: constraints.txt pyproject.toml
	@$(MAKE) check
	$(BASE_PYTHON) -m venv .venv
	$(PY) -m pip install -q -c constraints.txt cmake ninja pybind11 setuptools
	@# pip is one process for a minute: the compiler takes the other cores. Then all of them make the
	@# byte code, which pip would do by itself; packages hold files that are none of this Python's.
	MAKEFLAGS= $(PY) setup.py -q build_ext --inplace & native=$$!; \
	ZSPA_NO_NATIVE=1 $(PY) -m pip install -q --no-compile -c constraints.txt --no-build-isolation -e '.[dev]'; \
	installed=$$?; wait $$native && exit $$installed
	@$(PY) -m compileall -qq -j 0 .venv/lib || true
	@touch $@
endif

check:
	@missing=; \
	command -v $${CXX:-g++} >/dev/null || missing="$$missing g++"; \
	if command -v $(BASE_PYTHON) >/dev/null; then \
	  $(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo 'zspa_kernels needs Python 3.10 or newer; name one: make BASE_PYTHON=python3.11 ...'; exit 1; }; \
	  $(BASE_PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	  $(BASE_PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' \
	    || missing="$$missing python3-dev"; \
	else missing="$$missing python3 python3-venv python3-dev"; fi; \
	if [ -n "$$missing" ]; then \
	  echo "Missing:$$missing"; echo "On Debian or Ubuntu: sudo apt-get install$$missing"; exit 1; fi
