PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test check format bench results docs protos

# Everything a developer needs, at the tested versions.
install: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/fedzo demo

# Two files of tests at a time: much of what they take is starting processes. PYTEST_ARGS="-n 0" is one after the other.
test: install
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \
		$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tests/check_protos.py

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks.core

# The tables of docs/results/; goes on where it was stopped. RESULTS_ARGS=--missing only says what is not run yet.
results: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.results $(RESULTS_ARGS)

docs: install
	$(BIN)/python -m fedzo.cli.reference > docs/options.md

protos: install
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. protos/fedzo/v1/*.proto
	$(BIN)/python -m grpc_tools.protoc -Iprotos --grpc_python_out=. protos/fedzo/v1/rounds.proto
