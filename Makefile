# `make demo` and `make test` set up all they need, in .venv, and may be run again at any time.
PYTHON ?= python3
UV_VERSION := 0.13.9
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint bench scale chaos image-test cluster-test lock clean

BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# No stamp stands while an install is at work: one that was killed is done again from nothing.
RUN_READY := .venv/.run-ready
DEV_READY := .venv/.dev-ready
PIP_INSTALL := $(BIN)/python -m pip install --quiet --quiet --require-hashes --requirement

help: ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(RUN_READY) ## Train on samples/clipart, publish to models/clipart, ask the new model about three images
	$(BIN)/python -m job run --log-format text --data samples/clipart --models models --name clipart
	$(BIN)/python -m job predict --log-format text --model models/clipart \
	  samples/clipart/fruit/strawberry.jpg samples/clipart/mammal/dolphin.jpg samples/clipart/vehicle/bus-01.jpg

test: $(DEV_READY) ## Run the tests
	@command -v chromium >/dev/null || { \
	  if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	    echo "The tests open the report in a browser: install it first (on Debian: apt-get install chromium)" >&2; \
	    exit 1; \
	  fi; \
	  apt-get update -q && apt-get install -qy --no-install-recommends chromium; }
	$(BIN)/python -m pytest -n auto --dist worksteal --durations 10

lint: $(DEV_READY) ## Run every linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck entrypoint.sh .ci/run tests/*.sh tests/cluster/*.sh
	$(BIN)/yamllint --strict .yamllint k8s ci tests/cluster
	$(BIN)/hadolint Dockerfile

chaos: $(DEV_READY) ## Kill, stop, starve and lie to the job into docs/chaos.md (two hours; CHAOS_FLAGS=--short: minutes)
	$(BIN)/python tests/chaos.py $(CHAOS_FLAGS)

image-test: $(DEV_READY) ## Build the image with Debian's own tools and run its job in it (root, 8 GB, minutes; IMAGE_FLAGS=--write: docs/image.md)
	tests/image_test.sh $(IMAGE_FLAGS)

cluster-test: $(DEV_READY) ## Send Jobs to a real Kubernetes, built from Debian's source, into docs/cluster.md (root, Debian 12, 15 GB; 5 minutes, the first time 20)
	tests/cluster/run.sh $(SCENARIOS)

BENCH_TOOLS := make_image_classifier openvino obstore

bench: $(DEV_READY) $(BENCH_TOOLS:%=build/bench-venvs/%/.ready) ## Measure the job beside its alternatives into docs/benchmarks.md (Python 3.11, half an hour)
	$(BIN)/python benchmarks/bench.py $(BENCH_FLAGS)

build/bench-venvs/%/.ready: benchmarks/%.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --quiet --require-hashes --requirement $<
	touch $@

scale: $(DEV_READY) ## Run a million generated embeddings through index, cache and fit into docs/scale.md (half an hour, 15 GB of disk)
	$(BIN)/python benchmarks/scale.py

UV_COMPILE = build/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
  --custom-compile-command "make lock" $(UV_FLAGS)

lock: build/uv/.ready ## Pin requirements*.in with every hash (UV_FLAGS=--upgrade for new versions)
	for name in requirements requirements-dev requirements-gpu requirements-sbom $(BENCH_TOOLS:%=benchmarks/%); do \
	  $(UV_COMPILE) $$name.in -o $$name.txt; \
	done
	echo "tensorflow ; platform_machine != 'x86_64'" > build/uv/override.txt
	$(UV_COMPILE) --override build/uv/override.txt requirements-cpu.in -o requirements-cpu.txt

clean: ## Remove all that these commands made
	rm -rf .venv build models/clipart .mypy_cache .ruff_cache .hypothesis

$(RUN_READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "Found $$($(PYTHON) --version 2>&1); Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  package=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	  if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	    echo "$(PYTHON) lacks the venv module: install it first (on Debian: apt-get install $$package)" >&2; \
	    exit 1; \
	  fi; \
	  apt-get update -q && apt-get install -qy --no-install-recommends "$$package"; }
	@echo "Installing requirements.txt in .venv: a minute or two, once"
	@$(PYTHON) -m venv --clear .venv
	@$(PIP_INSTALL) requirements.txt
	@touch $@

$(DEV_READY): requirements-dev.txt $(RUN_READY)
	@rm -f $(RUN_READY)
	@$(PIP_INSTALL) requirements-dev.txt
	@touch $(RUN_READY) $@

build/uv/.ready: Makefile
	$(PYTHON) -m venv --clear build/uv
	build/uv/bin/python -m pip install --quiet uv==$(UV_VERSION)
	touch $@
