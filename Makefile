# make run        start the server in ./data (make run PORT=8009 for another port)
# make install    make .venv with the `ranvier` command
# make test       everything that CI runs; make test-quick the fast part of it
# make chaos      ten minutes of random faults upon a server of four workers (MINUTES=60 SEED=7 for others)
# make lint       ruff, mypy, import-linter
# make bench      measure against Synapse; results in bench/results

VENV := .venv
BENCH_VENV := bench/.venv
DATA ?= data
TESTS ?= tests
# Test processes: more than cores, as the tests of several servers mostly wait. TEST_PROCESSES=0 is one, in view.
TEST_PROCESSES ?= 3
MINUTES ?= 10

# The first Python that is new enough; PYTHON=… chooses another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)

# PIP installs into an environment that may have no pip of its own, as on a Debian without python3-venv.
define make_venv
	@test -n "$(PYTHON)" || { echo "Ranvier needs Python 3.11 or newer, and none was found" >&2; exit 1; }
	test -x $(1)/bin/python || "$(PYTHON)" -m venv $(1) 2>/dev/null || "$(PYTHON)" -m venv --clear --without-pip $(1)
endef
PIP = if test -x $(1)/bin/pip; then set -- $(1)/bin/python -m pip; else set -- "$(PYTHON)" -m pip --python $(1)/bin/python; fi; \
	"$$@" install --quiet --disable-pip-version-check --no-input

.PHONY: run install test test-quick chaos lint format bench clean

run: $(VENV)/.installed
	@exec $(VENV)/bin/ranvier up --data "$(DATA)" $(if $(PORT),--port $(PORT))

install: $(VENV)/.installed

# Written last: an interrupted installation is taken up again, a finished one costs nothing.
$(VENV)/.installed: requirements.txt pyproject.toml
	$(call make_venv,$(VENV))
	$(call PIP,$(VENV)) -r requirements.txt
	$(call PIP,$(VENV)) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(call PIP,$(VENV)) -r requirements-dev.txt
	@touch $@

$(BENCH_VENV)/.installed: requirements-bench.txt
	$(call make_venv,$(BENCH_VENV))
	$(call PIP,$(BENCH_VENV)) -r requirements-bench.txt
	@touch $@

test: lint
	@bash .ci/install
	$(VENV)/bin/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile $(TESTS)

test-quick: $(VENV)/.installed-dev
	$(VENV)/bin/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile tests/spec tests/storage tests/test_config.py

chaos: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check ranvier tests bench
	$(VENV)/bin/ruff format --check ranvier tests bench
	$(VENV)/bin/mypy -p ranvier
	$(VENV)/bin/lint-imports

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix ranvier tests bench
	$(VENV)/bin/ruff format ranvier tests bench

bench: $(VENV)/.installed $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/python -m bench --after-seed 1000000; single=$$?; \
	$(BENCH_VENV)/bin/python -m bench.workers && exit $$single

clean:
	rm -rf $(VENV) $(BENCH_VENV) build *.egg-info
