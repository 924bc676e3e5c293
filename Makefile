# Each target installs what it needs into .venv.
# make demo    tag artworks with 15,810 subjects: a linear layer over texts, and networks with five output layers
# make check   lint, check types, run the quick tests (a minute); run it before every commit
# make test    run all tests that need no GPU, the examples and the tutorials
# make docs    run the tutorials and build the site: docs/_build/html/index.html
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

.PHONY: demo check lint package regression test test-simulator test-compiled stress contracts gpu bench docs notebooks clean

demo: $(VENV)/demo.done
	$(PY) -m sparsemax_nb demo

lint: $(VENV)/dev.done
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

check: lint
	NUMBA_ENABLE_CUDASIM=1 $(PY) -m pytest -q -n 2 -m quick tests

# Build and check the source archive and the wheel, in dist/.
package: $(VENV)/dev.done
	rm -rf dist
	$(PY) -m build --outdir dist
	$(PY) -m twine check --strict dist/*

# Compare our times with the last results from this type of machine. Takes minutes; run nothing else meanwhile.
regression: $(VENV)/demo.done
	$(PY) -m bench.regression

# Two runs, because one process cannot both simulate CUDA and compile for it. Two processes share each; what compiles the
# same kernels stays together, and what takes long comes first (tests/conftest.py).
PYTEST := -m pytest -q -n 2 --dist loadgroup --no-loadscope-reorder
EXAMPLES := --doctest-modules --doctest-glob='*.md' sparsemax_nb README.md docs/tour.md docs/methods/embeddings.md

test: test-simulator test-compiled

test-simulator: $(VENV)/test.done
	NUMBA_ENABLE_CUDASIM=1 $(PY) $(PYTEST) tests

# Contracts; kernels run in the PTX emulator, and its own tests; the examples of the documentation; the tutorials at smoke size.
test-compiled: $(VENV)/test.done
	$(PY) $(PYTEST) tests/contracts tests/compiled ptxsim/tests $(EXAMPLES) tutorials --ignore-glob='tutorials/[0-9]*'

# Call everything from many threads and processes and compare the bits with one thread; not part of `make test`.
stress: $(VENV)/test.done
	$(PY) -m tests.stress

# Print registers, shared memory, spills and occupancy of every CUDA kernel. Compiles them; needs no GPU.
contracts: $(VENV)/test.done
	$(PY) -m tests.contracts.table

# On a machine with a GPU, with its installed packages: run the tests and the kernel benchmarks on CUDA,
# results in gpu_output/.
gpu:
	$(PYTHON) -m bench.gpu

bench: $(VENV)/demo.done
	$(PY) -m bench.forward
	$(PY) -m bench.step
	$(PY) -m bench.cross_entropy
	$(PY) -m bench.sampling
	$(PY) -m bench.memory_670k

# Build the site. Tutorials run at full size, or in seconds with TUTORIAL_SMOKE=1.
docs: $(VENV)/docs.done
	$(PY) -m sphinx -W --keep-going -q docs docs/_build/html
	@echo docs/_build/html/index.html

# Convert the tutorials to notebooks without outputs, in notebooks/.
notebooks: $(VENV)/docs.done
	mkdir -p notebooks
	cp tutorials/lesson.py notebooks/
	for lesson in tutorials/[0-9]*.py; do \
		$(PY) -m jupytext --quiet --to ipynb --output notebooks/$$(basename $$lesson .py).ipynb $$lesson || exit 1; \
	done

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.done: setup.cfg | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[plot]'
	touch $@

$(VENV)/test.done: setup.cfg | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

$(VENV)/dev.done: setup.cfg | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(VENV)/docs.done: setup.cfg | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) demo_output gpu_output docs/_build docs/generated notebooks build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
