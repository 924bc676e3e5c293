# make demo    install into .venv, train output layers of three kinds on 15,810 labels, compare them (5 minutes)
# make check   install into .venv, lint, check types, run the quick tests (a minute): before every commit
# make test    install into .venv, run all tests that need no GPU, and the tutorials (15 minutes)
# make docs    install into .venv, run the tutorials, build the site: docs/_build/html/index.html
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

.PHONY: demo test test-simulator test-compiled test-tutorials stress contracts gpu bench docs notebooks clean

demo: $(VENV)/demo.done
	$(PY) -m sparsemax_nb demo

.PHONY: check lint package regression

lint: $(VENV)/dev.done
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

check: lint
	NUMBA_ENABLE_CUDASIM=1 $(PY) -m pytest -q -n 2 -m quick tests

# The source archive and the wheel, in dist/.
package: $(VENV)/dev.done
	rm -rf dist
	$(PY) -m build --outdir dist
	$(PY) -m twine check --strict dist/*

# Has our code become slower since the last results of this type of machine? Takes minutes; nothing else should run.
regression: $(VENV)/demo.done
	$(PY) -m bench.regression

# Two runs, because one process can not both simulate CUDA and compile for it.
test: test-simulator test-compiled test-tutorials

test-simulator: $(VENV)/test.done
	NUMBA_ENABLE_CUDASIM=1 $(PY) -m pytest -q -n 2 --dist loadfile tests
	$(PY) -m pytest -q --doctest-modules --doctest-glob='*.md' sparsemax_nb README.md docs/tour.md

test-compiled: $(VENV)/test.done
	$(PY) -m pytest -q -n 2 --dist loadfile tests/contracts tests/compiled ptxsim

test-tutorials: $(VENV)/test.done
	$(PY) -m pytest -q -n 2 tutorials

# Threads, forks and processes, thousands of times, against the bits of a single thread; not a part of `make test`.
stress: $(VENV)/test.done
	$(PY) -m tests.stress

# Registers, shared memory, spills and occupancy of every CUDA kernel, compiled here: needs no GPU.
contracts: $(VENV)/test.done
	$(PY) -m tests.contracts.table

# On a machine with a GPU, with the packages that it has: the suite on CUDA and every benchmark, results in gpu_output/.
gpu:
	$(PYTHON) -m bench.gpu

bench: $(VENV)/demo.done
	$(PY) -m bench.forward
	$(PY) -m bench.step
	$(PY) -m bench.cross_entropy
	$(PY) -m bench.sampling
	$(PY) -m bench.memory_670k

# The site; tutorials run at full size, or in seconds with TUTORIAL_SMOKE=1.
docs: $(VENV)/docs.done
	$(PY) -m sphinx -W --keep-going -q docs docs/_build/html
	@echo docs/_build/html/index.html

# The tutorials as notebooks, without outputs, in notebooks/.
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
