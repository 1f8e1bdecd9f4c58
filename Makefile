# Each target does all its own set-up. The two that matter: make demo, make test.
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/
EXAMPLES_VENV ?= .venv-examples
# Two OpenMP threads beside another busy process slow down tenfold, and bits depend on their number.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test env lint types strace browser suite faults fuzz sixphase exactness certify bench bench-exactness lock clean

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

strace: ## The tracer that kills processes at their system calls; where it cannot be had, those tests are skipped
	@command -v strace >/dev/null || { \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	  command -v apt-get >/dev/null && $$sudo apt-get -qq update && $$sudo apt-get -qq install --yes strace; \
	} >/dev/null 2>&1 || echo "strace is not installed and cannot be: tests that need it are skipped"

# Faults come from the tracer and from records of what was written, so files may lie in memory, where fsync is fast.
TESTS_DIR ?= $(shell test -w /dev/shm && test "$$(df -Pk /dev/shm | awk 'NR == 2 {print $$4}')" -gt 4000000 && echo /dev/shm || echo /tmp)

# A test that hangs ends after four minutes, with the stacks of its threads.
suite: env strace browser
	PYTEST_DEBUG_TEMPROOT=$(TESTS_DIR) $(RUN)pytest -q -n 2 --dist loadfile -m "not slow" --max-worker-restart=0 \
	  -o faulthandler_timeout=240 -o faulthandler_exit_on_timeout=true -o tmp_path_retention_policy=failed

faults: env strace ## All kills, errors, power losses, damage and hostile files; the counts at the end; more than an hour
	TMPDIR=$(TESTS_DIR) $(RUN)pytest -q -n 2 -o tmp_path_retention_policy=failed tests/faults tests/checkpoint/test_retention.py

FUZZ_SEC ?= 300
fuzz: env ## Coverage-guided fuzzing of manifests and unified files, FUZZ_SEC seconds each; atheris stays out of the environment
	$(RUN)python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .fuzz/site atheris==3.0.0
	for target in manifest archive; do mkdir -p tests/faults/findings/$$target; \
	  PYTHONPATH=.fuzz/site $(RUN)python -m tests.faults.fuzz $$target .fuzz/$$target -max_total_time=$(FUZZ_SEC) \
	    -timeout=30 -rss_limit_mb=4096 -artifact_prefix=tests/faults/findings/$$target/ || exit 1; done

browser: ## Chromium, with which the HTML report is tested; without it those tests are skipped
	@command -v chromium >/dev/null || { \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	  command -v apt-get >/dev/null && $$sudo apt-get -qq update && $$sudo apt-get -qq install --yes --no-install-recommends chromium; \
	} >/dev/null 2>&1 || echo "chromium is not installed and cannot be: the tests of report.html are skipped"

sixphase: env ## The six-phase test alone
	$(RUN)python test_training_resumption.py

exactness: env ## Every cell of the exactness matrix in real processes, the negative controls, more of train.py; half an hour
	$(RUN)pytest -q tests/exactness/test_negative_controls.py
	$(RUN)pytest -q -m slow tests/training tests/state tests/data tests/lightning_io
	$(RUN)python -m tests.exactness.matrix

certify: $(EXAMPLES_VENV)/.complete browser ## The slow tests of certify, and what it says of the programs in examples/
	$(EXAMPLES_VENV)/bin/pytest -q -m slow tests/certify

$(EXAMPLES_VENV)/.complete: examples/requirements.txt requirements-cpu.lock pyproject.toml
	$(PYTHON) -m venv $(EXAMPLES_VENV)
	$(EXAMPLES_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r examples/requirements.txt
	$(EXAMPLES_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

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
	rm -rf $(VENV) $(EXAMPLES_VENV) .venv-peers .demo .fuzz certify-report build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
