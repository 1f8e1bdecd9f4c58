# Each target does all its own set-up. The two that matter: make demo, make test.
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/
EXAMPLES_VENV ?= .venv-examples
# Two OpenMP threads beside another busy process slow down tenfold, and bits depend on their number.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test env lint types suite browser sixphase certify bench lock clean

demo: env ## Train on real text, interrupt it three times, once in the middle of a save, and compare every bit
	PATH="$(abspath $(VENV))/bin:$$PATH" bash scripts/demo.sh

test: env lint types suite ## Lint, types, the whole suite

env: $(VENV)/.complete ## The pinned environment

$(VENV)/.complete: requirements-cpu.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; give one with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)python -m pip install --quiet --disable-pip-version-check -r requirements-cpu.lock
	$(RUN)python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

lint: env
	$(RUN)ruff check .
	$(RUN)ruff format --check .

types: env
	$(RUN)mypy

suite: env browser
	$(RUN)pytest -q -m "not slow"

browser: ## Chromium, with which the HTML report is tested; without it those tests are skipped
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get install -qq -y --no-install-recommends chromium >/dev/null 2>&1; } \
		|| echo "chromium is missing, and cannot be installed: the tests of report.html will be skipped"

sixphase: env ## The six-phase test alone
	$(RUN)python test_training_resumption.py

certify: $(EXAMPLES_VENV)/.complete browser ## The slow tests of certify, and what it says of the programs in examples/
	$(EXAMPLES_VENV)/bin/pytest -q -m slow tests/certify

$(EXAMPLES_VENV)/.complete: examples/requirements.txt requirements-cpu.lock pyproject.toml
	$(PYTHON) -m venv $(EXAMPLES_VENV)
	$(EXAMPLES_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r examples/requirements.txt
	$(EXAMPLES_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

bench: env ## Speed and memory of saving and loading, against torch.save and torch.load
	$(RUN)python benchmarks/io/bench_io.py

lock: env ## Write what is installed into requirements-cpu.lock
	(head -2 requirements-cpu.lock; $(RUN)pip list --format=freeze | grep -viE '^(pip|neuromanifold)' | sed 's/+cpu//') > requirements-cpu.lock.new
	mv requirements-cpu.lock.new requirements-cpu.lock

clean:
	rm -rf $(VENV) $(EXAMPLES_VENV) .demo certify-report build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
