# Two commands do everything on a machine that has Python 3.11 or newer:
#   make demo   set up .venv, then integrate and embed the shipped data, with pictures
#   make test   set up .venv, then run the tests
# Both may be repeated at will: the set-up runs again only when its inputs change.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-fast test-newest test-lowest test-wheel lint types tutorials docs clean

demo: $(READY)
	$(BIN)/python tutorials/demo.py

# Tests in a process a core, at most four: most of them keep one core busy, whatever there is.
# ARGS goes to pytest, as in: make test ARGS=--durations=40
IN_PARALLEL := -n logical --maxprocesses 4 --dist worksteal $(ARGS)
PYTEST := $(BIN)/python -m pytest $(IN_PARALLEL)

test: $(READY)
	$(PYTEST)

test-fast: $(READY)
	$(PYTEST) -m "not slow"

# The newest release of everything that this Python can install, in a set-up of its own, and the
# tests that meet data: what the constraints hide is seen here first. anndata may not allow the
# newest pandas yet; it goes in last, without asking.
NEWEST := .venv-newest/bin/python
DATA_TESTS := tests/test_forms.py tests/test_source.py tests/test_covariates.py tests/test_check.py \
	tests/test_bad_h5ad.py tests/test_cli.py tests/test_cli_files.py tests/test_row_order.py \
	tests/test_on_disk.py

test-newest:
	test -x $(NEWEST) || $(PYTHON) -m venv .venv-newest
	grep "^torch==" constraints.txt > .venv-newest/torch.txt  # a newer one may come with CUDA, in gigabytes
	$(NEWEST) -m pip install --quiet --disable-pip-version-check --upgrade -c .venv-newest/torch.txt \
		--upgrade-strategy eager -e ".[multimodal,lazy]" pytest pytest-xdist hypothesis
	$(NEWEST) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade pandas
	$(NEWEST) -m pip list --disable-pip-version-check | grep -iE "^(anndata|numpy|pandas|scipy|torch|dask|zarr) "
	ANNDATA_ALLOW_WRITE_NULLABLE_STRINGS=1 $(NEWEST) -m pytest $(IN_PARALLEL) -m "not slow" $(DATA_TESTS)

# The oldest versions of everything, in a set-up of its own, and the tests of what meets them: data,
# kernels (numba), files (safetensors), pictures and neighbours (scanpy), tests of hypotheses (scipy).
# torch is the same in both set-ups, so that what meets torch alone would say nothing new here.
LOWEST := .venv-lowest/bin/python
LOWEST_TESTS := $(DATA_TESTS) tests/test_kernels.py tests/test_sparse_rows.py tests/test_fit.py \
	tests/test_several.py tests/test_model_files.py tests/test_written.py tests/test_progress.py \
	tests/test_plot.py tests/test_compare.py tests/test_loadings.py tests/test_markers.py

test-lowest:
	test -x $(LOWEST) || $(PYTHON) -m venv .venv-lowest
	grep "^torch==" constraints.txt | cat - constraints-lowest.txt > .venv-lowest/constraints.txt
	$(LOWEST) -m pip install --quiet --disable-pip-version-check -c .venv-lowest/constraints.txt \
		-e ".[multimodal]" zarr pytest pytest-xdist hypothesis  # newer anndata brings zarr
	$(LOWEST) -m pip list --disable-pip-version-check | grep -iE "^(anndata|mudata|numba|numpy|pandas|scanpy|scipy|torch|zarr) "
	$(LOWEST) -m pytest $(IN_PARALLEL) -m "not slow" $(LOWEST_TESTS)

# Source distribution and wheel, the wheel made from it, installed where there is no checkout.
WHEEL := .venv-wheel/bin/python

test-wheel:
	rm -rf dist .venv-wheel && $(PYTHON) -m venv .venv-wheel
	$(WHEEL) -m pip install --quiet --disable-pip-version-check build
	$(WHEEL) -m build --outdir dist .
	rm -rf .venv-wheel && $(PYTHON) -m venv .venv-wheel
	$(WHEEL) -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd dist && ../$(WHEEL) ../tests/installed.py
	ls -l dist

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

tutorials: $(READY)
	$(BIN)/python tutorials/run.py

# The site is looked at as it is built: a warning is an error, and so is a link that leads nowhere.
SITE := .venv/.site

docs: $(SITE)
	$(BIN)/python -m sphinx -E -a -W --keep-going -q -b html docs docs/_build/html
	$(BIN)/python docs/_site/links.py docs/_build/html

$(SITE): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[site]" -c constraints.txt
	touch $(SITE)

# torch goes first and alone: the constraints name its exact version, so that nothing later
# pulls in another build of it.
$(READY): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "scvae needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,docs,multimodal,lazy,disk,report]" -c constraints.txt
	touch $(READY)

clean:
	rm -rf .venv .venv-* docs/_build docs/api docs/commands docs/plots docs/tutorials demo-output .pytest_cache .mypy_cache .ruff_cache
