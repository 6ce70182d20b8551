# Needs a Python of 3.11 to 3.14: the first target makes .venv, once, and again when the pins change.
.PHONY: demo test test-thorough test-all lint benchmarks pins clean
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Each is tried; the first that runs and has a file in constraints/ is taken. `make CANDIDATES=python3.12 demo` names one.
CANDIDATES := python3.13 python3.12 python3.11 python3.14 python3 python

demo: $(INSTALLED)
	$(BIN)/freescale render examples/demo.yaml --out demo.png

# Bytecode is kept whatever the environment says: the tests start many processes that would compile the code again.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(INSTALLED)
	$(PYTEST)

# What `make test` leaves out: the tests that are marked `thorough`. Some wait for real servers and processes, so those
# that fail are run once more; what fails twice is an error.
test-thorough: $(INSTALLED)
	$(PYTEST) -m thorough || $(PYTEST) -m thorough --last-failed --last-failed-no-failures none

test-all: $(INSTALLED)
	$(PYTEST) -m ""

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: docs
docs: $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[docs]'
	$(BIN)/python -m docs.generate
	$(BIN)/zensical build --clean --strict --config-file mkdocs.yml
	@echo "open build/site/index.html"

benchmarks: $(INSTALLED)
	$(BIN)/python -m benchmarks

$(INSTALLED): pyproject.toml $(wildcard constraints/*.txt)
	@python=; for candidate in $(CANDIDATES); do \
	  version=$$($$candidate -c 'import sys, ensurepip; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	  if [ -f "constraints/$$version.txt" ]; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "none of these runs, is a Python of $$(ls constraints | sed -n 's/\.txt$$//p' | xargs) and has venv: $(CANDIDATES)" >&2; \
	  exit 1; \
	fi; \
	echo "making $(VENV) with $$($$python --version)"; \
	$$python -m venv --clear $(VENV) && \
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints/$$version.txt --editable '.[dev]'
	@touch $@

# Resolve the versions anew after a change of pyproject.toml; needs uv and a network.
pins:
	uv run --no-project --with packaging constraints/resolve.py

clean:
	rm -rf $(VENV)
