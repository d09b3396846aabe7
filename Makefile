# Every target that needs Python builds .venv first; that is a no-op when it is up to date.
#   make setup PYTHON=python3.13           choose the interpreter (3.11 to 3.13)
#   make demo VOC=PATH WEIGHTS=PATH        the demo on a real devkit, from pretrained weights
.DEFAULT_GOAL := help
.PHONY: help setup demo test drill lint proto lock conformance bench clean force

BIN := .venv/bin
STAMP := .venv/.up-to-date
# One universal lock for Python 3.11 to 3.13; versions stay as they are unless pyproject.toml asks otherwise.
COMPILE := UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/python -m uv pip compile --quiet --universal \
	--python-version 3.11 --generate-hashes --no-emit-index-url

help:  ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16
# 2 GB that a server without a GPU does not load.
CUDA := nvidia-cublas nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-curand nvidia-nvjitlink

setup: $(STAMP)  ## build .venv from python3, or bring it up to date

# Naming an interpreter always asks install.sh, which keeps .venv where its version is that already.
$(STAMP): requirements/dev.txt requirements/uv.txt requirements/install.sh pyproject.toml $(if $(PYTHON),force)
	@PYTHON="$(PYTHON)" requirements/install.sh
	@touch $(STAMP)

demo: setup  ## search, export, serve, score and report on synthetic images (VOC=PATH WEIGHTS=PATH for real ones)
	@$(BIN)/python demo.py $(if $(VOC),--voc "$(VOC)") $(if $(WEIGHTS),--weights "$(WEIGHTS)")

test: setup  ## run all tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

drill: setup  ## run the fault drills at length: 20,000 fuzz cases, minutes of overload, 10 minutes of memory slope
	TAILACC_DRILL=long $(BIN)/python -m pytest -s --timeout 1800 tests/faults

lint: setup  ## check format, style, types, generated code and locks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python proto/generate.py --check
	@if grep -nE '[a-z]+://' requirements/*.txt; then echo "error: a lock file holds an address" >&2; exit 1; fi

proto: setup  ## generate the code of proto/ again
	$(BIN)/python proto/generate.py

lock: setup  ## renew the lock files from pyproject.toml
	$(COMPILE) --extra dev pyproject.toml -o requirements/dev.txt
	$(COMPILE) --extra serve -c requirements/dev.txt pyproject.toml -o requirements/serve.txt
	$(COMPILE) --extra serve -c requirements/dev.txt $(CUDA:%=--no-emit-package %) pyproject.toml -o requirements/serve-cpu.txt
	cp requirements/dev.txt requirements/tune.txt  # to start from: its markers for PyPy, as constraints, have no solution
	$(COMPILE) --extra tune pyproject.toml -o requirements/tune.txt
	$(COMPILE) --extra mlflow -c requirements/dev.txt pyproject.toml -o requirements/mlflow.txt
	sed -n 's/^\(uv==[0-9.]*\).*/\1/p' requirements/uv.txt | $(COMPILE) --no-config - -o requirements/uv.txt

conformance: setup  ## call the server with the unmodified tritonclient, in an environment of its own (runs/triton)
	@[ -x runs/triton/bin/python ] || { $(BIN)/python -m uv venv --quiet runs/triton && \
		$(BIN)/python -m uv pip install --quiet --python runs/triton 'tritonclient[grpc]==2.73.0'; }
	TRITONCLIENT_PYTHON=runs/triton/bin/python $(BIN)/python -m pytest -s tests/serve/test_inference_conformance.py

bench: setup  ## run every benchmark with its short default
	@for file in benchmarks/*.py; do \
		[ -e "$$file" ] || { echo "no benchmark in benchmarks/"; break; }; \
		echo "== $$file"; $(BIN)/python "$$file" || exit 1; \
	done

clean:  ## remove caches and build outputs (.venv, runs and the tracking store stay)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
