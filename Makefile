# `make` lists the targets. Everything is installed into .venv at the versions of constraints.txt.

VENV := .venv
BIN := $(VENV)/bin
# Worker processes of the tests: one a core, four at most (each imports tensorflow and jax).
PYTEST_WORKERS ?= auto
# A worker that dies ends the run: with another in its place, xdist never ends in this mode.
PYTEST := $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --maxprocesses 4 --dist loadfile --max-worker-restart 0
AUDIT := .cache/audit
WHEEL := .cache/wheel
EMPTY := $(abspath $(WHEEL))/empty
# Further arguments for pytest, such as ARGS='-k masking'.
ARGS ?=
# The interpreter that makes .venv; by default python3.11, else python3.
PYTHON ?=

export TF_CPP_MIN_LOG_LEVEL ?= 3
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.DELETE_ON_ERROR:
.PHONY: help setup demo demo-finetune calibration test test-slow test-long test-parity kills claims lint docs wheel audit clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.installed  ## Make .venv with plug-jax and its pinned dependencies

demo: $(VENV)/.installed  ## Train a small PLUG on this machine and generate with it
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/plug-jax demo

demo-finetune: $(VENV)/.installed  ## Fine-tune its encoder on reviews, and compare
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/plug-jax demo-finetune

# Hours on a busy core; interrupted, it goes on where it was. ARGS='--claims b --seeds 3 --scale 4'.
claims: $(VENV)/.installed  ## Test the announcement's claims on a very small PLUG: docs/claims.md
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m claims $(ARGS)

calibration: $(VENV)/.installed  ## Compile the published runs that have no row in plug_jax/planning/calibration.json
	$(BIN)/python benchmarks/calibration.py $(ARGS)

test: $(VENV)/.installed  ## Run the tests, without the slow ones and those that need PyTorch
	$(PYTEST) -m 'not parity and not slow and not long' $(ARGS)

test-slow: $(VENV)/.installed  ## Run the slow tests, but for those of minutes
	$(PYTEST) -m 'slow and not long and not parity' $(ARGS)

test-long: $(VENV)/.installed  ## Run the slow tests that take minutes each
	$(PYTEST) -m long -o faulthandler_timeout=3600 $(ARGS)

test-parity: $(VENV)/.installed-parity  ## Install PyTorch and run the tests that compare with it
	$(PYTEST) -m parity $(ARGS)

kills: $(VENV)/.installed  ## Kill a run at 50 random moments, and compare what it leaves
	$(BIN)/python -m tests.reliability.kills --kills 50 --report kills.json $(ARGS)

lint: $(VENV)/.installed  ## Check style, format and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy plug_jax tasks claims

docs: $(VENV)/.installed-docs  ## Build the site in docs/_build/html, its tutorials executed
	$(BIN)/python -m sphinx --fail-on-warning --keep-going docs docs/_build/html $(ARGS)
	@echo "The site is docs/_build/html/index.html"

# In an environment that has nothing of this folder but the wheel, and in another directory.
wheel: $(WHEEL)/.installed  ## Build wheel and sdist in dist/, and try them in an empty environment
	rm -rf build dist $(EMPTY)
	$(WHEEL)/bin/python -m build --outdir dist
	$(WHEEL)/bin/python -m twine check --strict dist/*
	$(VENV)/bin/python -m venv $(EMPTY)
	$(EMPTY)/bin/python -m pip install --quiet -c constraints.txt "$$(echo dist/*.whl)[demo,serve]"
	$(EMPTY)/bin/python tests/try_installed.py

# A tool that nothing else needs, so it is kept out of $(VENV). It asks PyPI about each package;
# --strict: one that it cannot ask about is a failure too.
audit: $(AUDIT)/.installed  ## Look for known vulnerabilities of the pinned packages
	$(AUDIT)/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt -r constraints-parity.txt $(ARGS)

clean:  ## Remove .venv, caches and build files
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist docs/_build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@set -e; \
	python='$(PYTHON)'; \
	if [ -z "$$python" ]; then \
	  for python in python3.11 python3; do \
	    "$$python" -c '' 2>/dev/null && break; \
	  done; \
	fi; \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "plug-jax needs Python 3.11 or newer; found: $$("$$python" --version 2>&1 | tail -n 1)." >&2; \
	  echo "Install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$$python has no venv module. Install it (Debian, Ubuntu: apt install python3-venv)." >&2; \
	  exit 1; }; \
	echo "Making $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing the pinned dependencies into $(VENV) (4.1 GB on disk; takes minutes, once)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cache,clean,demo,dev,int8,serve,tpu]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "Installing Sphinx into $(VENV) for the site"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cache,clean,demo,dev,docs,int8,serve,tpu]'
	@touch $@

$(WHEEL)/.installed: $(VENV)/.created
	$(BIN)/python -m venv --clear $(WHEEL)
	$(WHEEL)/bin/python -m pip install --quiet build==1.6.1 twine==7.0.0
	@touch $@

$(AUDIT)/.installed: $(VENV)/.created
	$(BIN)/python -m venv --clear $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet pip-audit==2.10.1
	@touch $@

# PyPI's torch brings CUDA. For a CPU build, let PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL lead to one.
$(VENV)/.installed-parity: $(VENV)/.installed constraints-parity.txt
	@echo "Installing PyTorch and transformers into $(VENV) for the parity tests"
	$(BIN)/python -m pip install --quiet -c constraints.txt -c constraints-parity.txt -e '.[cache,clean,demo,dev,int8,serve,tpu,parity]'
	@touch $@
