# Two commands do everything on a machine that has Python 3.11 or newer:
#   make demo   set up .venv, then integrate and embed the shipped data, with pictures
#   make test   set up .venv, then run the tests
# Both may be repeated at will: the set-up runs again only when its inputs change.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-fast lint types tutorials benchmark clean

demo: $(READY)
	$(BIN)/python tutorials/demo.py

test: $(READY)
	$(BIN)/python -m pytest

test-fast: $(READY)
	$(BIN)/python -m pytest -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

tutorials: $(READY)
	$(BIN)/python tutorials/run.py

# torch goes first and alone: the constraints name its exact version, so that nothing later
# pulls in another build of it.
$(READY): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "scvae needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,docs,multimodal,lazy]" -c constraints.txt
	touch $(READY)

clean:
	rm -rf .venv demo-output .pytest_cache .mypy_cache .ruff_cache
