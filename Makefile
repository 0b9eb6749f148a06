# make run: install, then the main job on scikit-learn's digits.   make test: install the test tools, then everything CI runs.
# make docs: the pages as a site, in build/docs.
# make newcomer: what the README promises, in a clean virtual environment: pictures in, a network of your own out; some minutes.
# make bench: ours against the field's way of doing it, about 20 minutes; results in benchmarks/results.
# make torture: commands are killed, disks fill up, two work at once, files are damaged; a table of what survived, in half an hour.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN ?= runs/digits

.PHONY: run test lint docs bench portability cluster newcomer torture clean

run: $(VENV)/.installed
	$(BIN)/limbeck demo --out $(RUN) --threads 1

# threads of the tests about threads do not spin for each other while other tests want the cores, as in the command line
test: lint
	OMP_NUM_THREADS=1 GOMP_SPINCOUNT=1000 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# warnings are errors; nothing is downloaded but the packages that build it
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs
	@echo "open build/docs/index.html"

# the compiled network by every compiler and for every processor that can be had here; skipped tests say what is missing
portability: $(VENV)/.installed-test
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest tests/laws/test_portability.py -rs -v

newcomer:
	PYTHON=$(PYTHON) tests/newcomer.sh

torture: $(VENV)/.installed-test
	PYTHONPATH=tests OMP_NUM_THREADS=1 GOMP_SPINCOUNT=1000 $(BIN)/python -m torture

# several processes: those of torchrun, one of which is killed, and a Ray cluster of two nodes, one of which is; for root on
# Linux also both on two machines, which are namespaces; ten minutes
cluster: $(VENV)/.installed-cluster
	LIMBECK_CLUSTER=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/laws/test_ranks.py tests/cli/test_cluster.py \
		tests/cli/test_object_store.py tests/cli/test_machines.py -rs -v

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.page

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "limbeck needs Python 3.11 or newer; name one with: make PYTHON=python3.12 run"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch first, alone and constrained: whatever comes after finds it there
$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

$(VENV)/.installed-cluster: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cluster]'
	touch $@

clean:
	rm -rf $(VENV) runs build src/*.egg-info
