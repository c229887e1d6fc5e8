# Every target creates the environment it needs from a bare python3 (3.11 or later), and is quick when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
COVERED := contracts io eval calibration
unexport PYTHONDONTWRITEBYTECODE # otherwise each process of the suite compiles the libraries again

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast statistical coverage chaos fuzz check format lint typecheck audit docs build lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.ready ## run six phases on drawn scenes and write the report
	@$(BIN)/streetvision demo

test: $(VENV)/.ready ## run the whole test suite
	@OMP_NUM_THREADS=1 $(BIN)/pytest

test-fast: $(VENV)/.ready ## run the tests that need no trained run
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow"

statistical: $(VENV)/.ready ## run the tests of statistical claims
	@OMP_NUM_THREADS=1 $(BIN)/pytest tests/statistical

coverage: $(VENV)/.ready ## measure branch coverage of contracts, io, eval and calibration
	@$(BIN)/coverage erase
	@OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest $(COVERED:%=tests/%)
	@$(BIN)/coverage combine --quiet
	@for package in $(COVERED); do $(BIN)/coverage report --include="*/streetvision/$$package/*" || exit 1; done

chaos: $(VENV)/.ready ## kill 100 runs at random moments and resume them
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.robustness.chaos --runs 100

fuzz: $(VENV)/.ready ## read mutated images, archives, files, arrays and requests
	@for inputs in "images --n 5000" "archives --n 5000" "files --n 2000" "arrays --n 500" "requests --n 20000"; do \
		OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.robustness.fuzz $$inputs 2>>$(VENV)/fuzz.log || exit 1; \
	done

check: lint typecheck ## lint and typecheck

format: $(VENV)/.ready ## format the code and sort imports
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

lint: $(VENV)/.ready ## check style and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

typecheck: $(VENV)/.ready ## check types with mypy, strict
	@$(BIN)/mypy

audit: $(VENV)/.ready ## check the locked packages for known vulnerabilities (needs the network)
	@$(BIN)/python scripts/audit_dependencies.py

docs: $(VENV)/.ready ## build the documentation in outputs/site
	@$(BIN)/python -m sphinx -q -W -b html docs outputs/site
	@echo "site          outputs/site/index.html"

build: $(VENV)/.ready ## build wheel and source distribution in outputs/dist, and try the wheel in an empty environment
	@rm -rf outputs/dist
	@$(BIN)/uv build --quiet --no-build-isolation --python $(BIN)/python --out-dir outputs/dist
	@$(BIN)/python scripts/try_wheel.py outputs/dist
	@ls outputs/dist

lock: $(VENV)/.ready ## resolve requirements.lock for Python 3.11 to 3.14 on Linux, macOS and Windows
	@$(BIN)/uv pip compile --quiet --python-version 3.11 --all-extras --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --universal pyproject.toml -o requirements.lock

clean: ## remove .venv and outputs
	rm -rf $(VENV) outputs

$(VENV)/.ready: requirements.lock pyproject.toml
	@echo "environment   installing into $(VENV) from requirements.lock"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet uv==$(UV_VERSION)
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@
