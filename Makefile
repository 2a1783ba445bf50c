# These do everything, set-up included:
#   make demo    the page in the browser
#   make train   the main job on the embedded data
#   make test    the tests
# and for those who change something:
#   make check      what the submission of a change runs
#   make test-all   the slow tests too
#   make docs-test  every command of the documents, in a fresh clone

UV_VERSION := 0.13.8
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
WITH_PAGE := .venv/.installed-web
UV := $(shell command -v uv || echo .uv/bin/uv)

.PHONY: demo train test test-all docs-test lint typecheck check setup requirements clean

setup: $(INSTALLED)

demo: $(WITH_PAGE)
	$(PYTHON) -m scripts.web

train: setup
	$(PYTHON) -m train multiperceptual_normal --k 2 --random-select --compare-direct

test: setup
	$(PYTHON) -m pytest -n auto -m "not slow and not gpu"

test-all: setup
	$(PYTHON) -m pytest -n auto

docs-test: setup
	$(PYTHON) -m tests.docs_walk

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/hadolint Dockerfile

typecheck: setup
	.venv/bin/mypy

check: lint typecheck test

# Compiled once here: where Python may not write its bytecode (PYTHONDONTWRITEBYTECODE, a folder of
# another user), each program would otherwise compile all of torch at its start, seven seconds.
$(INSTALLED): uv.lock pyproject.toml
	@command -v $(UV) >/dev/null || { python3 -m venv .uv && .uv/bin/pip install --quiet uv==$(UV_VERSION); }
	$(UV) sync --frozen --compile-bytecode $(if $(wildcard $(WITH_PAGE)),--extra web)
	@touch $@

# The page's packages. Once they are there, `make setup` keeps them.
$(WITH_PAGE): $(INSTALLED)
	$(UV) sync --frozen --compile-bytecode --extra web
	@touch $@

# The exact versions of uv.lock for users of pip and conda.
requirements: setup
	$(UV) export --frozen --no-dev --no-hashes --no-emit-project --output-file requirements.txt

clean:
	rm -rf .venv .uv .pytest_cache .ruff_cache .mypy_cache .hypothesis
