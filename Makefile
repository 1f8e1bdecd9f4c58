# Each target does all its own set-up. The two that matter: make demo, make test.
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/
# Two OpenMP threads beside another busy process slow down tenfold, and bits depend on their number.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test env lint types suite sixphase exactness bench bench-exactness lock clean

demo: env ## Train, stop, resume, compare the files of both runs, then the six-phase test
	PATH="$(abspath $(VENV))/bin:$$PATH" OMP_NUM_THREADS=2 bash scripts/demo.sh

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

suite: env
	$(RUN)pytest -q -m "not slow"

sixphase: env ## The six-phase test alone
	$(RUN)python test_training_resumption.py

exactness: env ## Every cell of the exactness matrix in real processes, and the negative controls; half an hour
	$(RUN)pytest -q tests/exactness/test_negative_controls.py
	$(RUN)python -m tests.exactness.matrix

bench: env ## Speed and memory of saving and loading, against torch.save and torch.load
	$(RUN)python benchmarks/io/bench_io.py

bench-exactness: .venv-peers/.complete ## How exactly training resumes here, in Lightning, HF Trainer and accelerate; half an hour, own environment
	PYTHONPATH=$(CURDIR) nice .venv-peers/bin/python -m benchmarks.exactness.bench_exactness

.venv-peers/.complete: benchmarks/exactness/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

lock: env ## Write what is installed into requirements-cpu.lock
	(head -2 requirements-cpu.lock; $(RUN)pip list --format=freeze | grep -viE '^(pip|neuromanifold)' | sed 's/+cpu//') > requirements-cpu.lock.new
	mv requirements-cpu.lock.new requirements-cpu.lock

clean:
	rm -rf $(VENV) .venv-peers .demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
