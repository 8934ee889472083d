# Two commands matter: `make demo` and `make test`. Both make the environment they need; nothing is installed outside .venv.
PYTHON ?= python3
VENV := .venv
AUDIT := build/audit
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Arguments for pytest, e.g. `make test PYTEST_ARGS="-k ledger -x"`.
PYTEST_ARGS ?=
# The tests wait for servers more than they compute, so more of them run at once than a small machine has cores.
PROCESSES ?= 6
# Fewer of those that kill and freeze processes: a machine that is late by itself hides what they look for.
CALM_PROCESSES ?= 4
# For how long `make stress` begins new seeds.
MINUTES ?= 30
# How many seconds late `make test-late` has commits and sends answered.
LATE ?= 0.05
CODE := consumerkit tests examples benchmarks
# Directories that exist: a checkout without benchmarks is still checked.
PRESENT = $(wildcard $(CODE))

# The tests start hundreds of processes; where an environment forbids compiled files, each would compile everything again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo shop test check test-unit test-variants test-late test-crash test-mutants test-versions stress bench fmt lock sbom audit clean venv

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime  ## thousands of payments, resends, poison and kills; then the books are checked (under a minute)
	@$(BIN)/consumerkit demo

shop: $(VENV)/.dev  ## orders through a whole shop, with kills and faults anywhere, and then the books: ORDERS, KILLS, SEED
	@$(BIN)/python -m tests.services --prepare
	@$(BIN)/python -m tests.shop $(if $(ORDERS),--orders $(ORDERS)) $(if $(KILLS),--kills $(KILLS)) $(if $(SEED),--seed $(SEED))

# 2 is an interruption, and a choice of tests may leave one part empty (5).
in_two_parts = ran= failed=; for part in "not calm/$(PROCESSES)" "calm/$(CALM_PROCESSES)"; do \
		$(BIN)/python -m pytest tests -m "$${part%/*}" -n "$${part\#*/}" --dist worksteal $(1) $(PYTEST_ARGS); \
		case $$? in 0) ran=yes;; 2) exit 2;; 5) ;; *) failed=yes;; esac; done; \
		[ "$$ran" ] && [ ! "$$failed" ]

test: $(VENV)/.dev  ## every test on a real Kafka and a real PostgreSQL, started here (16 to 20 minutes on two cores)
	@$(BIN)/python -m tests.services --prepare
	@$(call in_two_parts)
	$(BIN)/python -m pytest --doctest-modules --ignore-glob='*/migrations/*' consumerkit

check: $(VENV)/.dev  ## format, lint, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(PRESENT)
	$(BIN)/lint-imports

test-unit: $(VENV)/.dev  ## the tests without any server, in seconds
	$(BIN)/python -m pytest tests/unit $(PYTEST_ARGS)

test-variants: $(VENV)/.dev  ## every test on each database, driver and client that it can run on, and its long cases
	@$(BIN)/python -m tests.services --prepare
	@$(call in_two_parts,--variants)

test-late: $(VENV)/.dev  ## every test beside servers with late answers to commits: finds tests that do not wait; LATE seconds
	@$(BIN)/python -m tests.services --prepare
	$(BIN)/python -m pytest tests/integration tests/contracts -m "not calm" -n $(PROCESSES) --dist worksteal \
		--late $(LATE) --timeout=1200 $(PYTEST_ARGS)

test-crash: $(VENV)/.dev  ## the full fault matrix: every named kill, each transport, the new group protocol
	@$(BIN)/python -m tests.services --prepare
	$(BIN)/python -m pytest tests/crash tests/integration/test_failpoint_raises.py tests/integration/test_benchmarks.py tests/integration/test_pooler.py \
		tests/contracts/test_confluent_protocol.py --matrix --timeout=1800 $(PYTEST_ARGS)

test-mutants: $(VENV)/.dev  ## each rule taken out of the product: its test, the stress or a crash run must fail
	@$(BIN)/python -m tests.services --prepare
	$(BIN)/python -m pytest tests/mutants tests/stress tests/crash/test_mutants.py --matrix $(PYTEST_ARGS)

test-versions: $(VENV)/.dev  ## unit and contract tests on each Python, PostgreSQL and Kafka that this machine has
	@$(BIN)/python -m tests.versions

stress: $(VENV)/.dev  ## new seeds of the stress for MINUTES (30), or one again: make stress SEED=n
	@$(BIN)/python -m tests.services --prepare
	@$(BIN)/python -m tests.stress $(if $(SEED),--seed $(SEED),--minutes $(MINUTES) --keep-going)

bench: $(VENV)/.bench  ## the same handler in other frameworks and hand-written loops, side by side
	@$(BIN)/python -m tests.services --prepare
	$(BIN)/python -m benchmarks

fmt: $(VENV)/.dev  ## format, and repair what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

COMPILE = $(AUDIT)/bin/uv pip compile pyproject.toml --python-version 3.11 --universal --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --quiet
lock: $(AUDIT)/.made  ## pin the newest allowed versions, and the oldest; write down what an installation brings with it
	@for group in demo dev bench; do \
		case $$group in demo) out=requirements.txt;; *) out=requirements-$$group.txt;; esac; \
		$(COMPILE) --group $$group --upgrade -o $$out || exit 1; done
	@$(COMPILE) --extra all --resolution lowest-direct -o requirements-oldest.txt
	@$(MAKE) sbom

sbom: $(AUDIT)/.made  ## write sbom.cdx.json, which the wheel contains
	@rm -rf build/sbom && mkdir -p build
	@$(COMPILE) --extra all -o build/all.txt
	@$(AUDIT)/bin/uv venv --quiet build/sbom && $(AUDIT)/bin/uv pip install --quiet --python build/sbom/bin/python -r build/all.txt
	@$(AUDIT)/bin/cyclonedx-py environment build/sbom/bin/python --pyproject pyproject.toml --output-reproducible \
		| $(PYTHON) -c "$$SHORTEN" > sbom.cdx.json

# What others say of their packages, and where, is theirs; what stays is name, version, licence and what needs what.
define SHORTEN
import json, sys
bom = json.load(sys.stdin)
bom["metadata"] = {"component": bom["metadata"]["component"]}
for one in bom["components"]:
    for gone in ("externalReferences", "description", "author", "properties"):
        one.pop(gone, None)
json.dump(bom, sys.stdout, indent=1, sort_keys=True)
print()
endef
export SHORTEN

# What could not be looked up fails nothing, since a machine may have no index; the last line says what it was.
audit:  ## look for known vulnerabilities of the pinned and of the oldest versions, where an index answers
	@missed=; found=; \
	if $(MAKE) --no-print-directory $(AUDIT)/.made; then \
		for file in requirements.txt requirements-oldest.txt; do \
			echo "Auditing $$file"; \
			told=$$(timeout 120 $(AUDIT)/bin/pip-audit --disable-pip --no-deps --progress-spinner off -r $$file 2>&1); code=$$?; \
			echo "$$told" | cut -c1-200; \
			if echo "$$told" | grep -q "Found [0-9]* known vulnerabilit"; then found=yes; \
			elif [ $$code -ne 0 ]; then missed="$$missed $$file (exit status $$code)"; \
			elif echo "$$told" | grep -q "Skip Reason"; then missed="$$missed some of $$file"; fi; done; \
	else missed=" requirements.txt requirements-oldest.txt (no index answers)"; fi; \
	if [ "$$missed" ]; then echo "NOT AUDITED:$$missed" >&2; fi; [ ! "$$found" ]

venv: $(VENV)/.dev  ## only make the environment

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find consumerkit tests -name __pycache__ -prune -exec rm -rf {} +

# One environment, filled in steps, so that the demo waits for nothing it does not need.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "consumerkit needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.runtime: $(VENV)/.created requirements.txt pyproject.toml
	@echo "Installing consumerkit into $(VENV)"
	@$(PIP) install --require-hashes -r requirements.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.txt
	@echo "Installing the development tools into $(VENV)"
	@$(PIP) install --require-hashes -r requirements-dev.txt
	@touch $@

$(AUDIT)/.made: pyproject.toml
	@$(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/python -m pip --disable-pip-version-check --quiet install --upgrade pip
	@$(AUDIT)/bin/python -m pip --disable-pip-version-check --quiet install --group audit
	@touch $@

$(VENV)/.bench: $(VENV)/.dev requirements-bench.txt
	@$(PIP) install --require-hashes -r requirements-bench.txt
	@touch $@
