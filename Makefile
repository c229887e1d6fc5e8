# Every target makes the environment it needs from a bare python3, and is quick when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
COVERED := contracts io eval calibration
unexport PYTHONDONTWRITEBYTECODE # else each of the suite's processes compiles the libraries anew

.PHONY: demo test coverage check docs statistical chaos fuzz lock clean

demo: $(VENV)/.ready
	@$(BIN)/streetvision demo

test: $(VENV)/.ready
	@OMP_NUM_THREADS=1 $(BIN)/pytest

coverage: $(VENV)/.ready
	@$(BIN)/coverage erase
	@OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest $(COVERED:%=tests/%)
	@$(BIN)/coverage combine --quiet
	@for floor in $(COVERED); do $(BIN)/coverage report --include="*/streetvision/$$floor/*" || exit 1; done

statistical: $(VENV)/.ready
	@OMP_NUM_THREADS=1 $(BIN)/pytest tests/statistical

chaos: $(VENV)/.ready
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.robustness.chaos --runs 100

fuzz: $(VENV)/.ready
	@OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.robustness.fuzz images --n 5000 2>$(VENV)/fuzz.log
	@OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.robustness.fuzz files --n 2000 2>>$(VENV)/fuzz.log

check: $(VENV)/.ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/audit_dependencies.py

docs: $(VENV)/.ready
	@$(BIN)/python -m sphinx -q -W -b html docs outputs/site
	@echo "site          outputs/site/index.html"

lock: $(VENV)/.ready
	@$(BIN)/uv pip compile --quiet --python-version 3.11 --all-extras --generate-hashes --no-emit-index-url \
		--no-annotate --no-header pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) outputs

$(VENV)/.ready: requirements.lock pyproject.toml
	@echo "environment   installing into $(VENV) from requirements.lock"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet uv==$(UV_VERSION)
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@
