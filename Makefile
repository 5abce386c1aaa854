# Sets up, tests and tries out the project; `make help` lists the targets.
#
# A target makes the environment it needs, once: it is installed again only when pyproject.toml or its constraints
# change. `make demo` installs what generation needs; the targets that need more add it to the same environment.
# PYTHON=python3.12 chooses the interpreter; PIP_FLAGS= shows what pip does; WORKERS=0 tests in one process.

.DEFAULT_GOAL := help
.SUFFIXES:
.PHONY: help setup demo docs test test-browser test-upstream test-quantization fuzz check bench setup-optimum test-optimum

PYTHON ?= $(shell python3.11 --version >/dev/null 2>&1 && echo python3.11 || echo python3)
PIP_FLAGS ?= --quiet
PYTEST_FLAGS ?=
WORKERS ?= 2
# `make fuzz` tries so many times the cases of `make test`.
FUZZ_FACTOR ?= 50
MIN_PYTHON := $(shell sed -n 's/^requires-python = ">=\(.*\)"$$/\1/p' pyproject.toml)

VENV := .venv
OPTIMUM_VENV := .venv-optimum
# Present when an environment can generate, and when everything is installed in it.
CORE_READY := $(VENV)/.core-ready
READY := $(VENV)/.ready
OPTIMUM_READY := $(OPTIMUM_VENV)/.ready
# torchao and bitsandbytes, apart: where they are, every process imports them and prints their warnings.
QUANTIZATION := build/quantization
QUANTIZATION_TESTS := tests/modeling_llada/test_quantization.py tests/training/test_sft_command.py

# The packages as (folder, installed name): mypy looks for installed names.
PACKAGES := llada:llada modeling_llada:modeling_llada core:llada_core training:llada_training conversion:llada_conversion \
	evaluation:llada_evaluation serving:llada_serving cli:llada_cli checkpoints:llada_checkpoints
TYPED := build/typed

# Where transformers' own tests are unpacked.
UPSTREAM := build/upstream

# What runs under transformers 4.57: the Hub code and the tokenizer, and whatever is not left out here.
OPTIMUM_TESTS ?= tests $(foreach path,training evaluation experiments serving cli test_benchmarks.py test_imports.py test_packaging.py,--ignore tests/$(path))
OPTIMUM_MARKERS ?= not newest_only

# Nothing in the tests or the demonstration asks the Hub.
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Tests run in parallel with one thread each; the slowest stand in build/durations.txt.
PYTEST := OMP_NUM_THREADS=1 $(OFFLINE)
IN_PARALLEL := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 50

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and install the project into it
	@echo "$(VENV) is ready: $$($(VENV)/bin/llada --version), transformers $$($(VENV)/bin/python -c 'from importlib.metadata import version as v; print(v("transformers"), "and torch", v("torch"))')"

demo: $(CORE_READY) ## ask the bundled model three questions
	@echo "Asking the bundled model: llada generate …"
	@$(OFFLINE) $(VENV)/bin/llada generate --chat --max-new-tokens 32 "What is the capital of France?" \
		"What is the largest planet in the solar system?" "What do you call a baby cat?"

test: $(READY) ## run the tests
	@echo "Testing in $(VENV) …"
	@$(PYTEST) $(VENV)/bin/pytest $(IN_PARALLEL) $(PYTEST_FLAGS)

test-upstream: $(READY) ## run transformers' own model tests, downloaded with pip, on ours
	@$(VENV)/bin/python tests/upstream/download.py $(UPSTREAM)
	@echo "Testing with the tests of transformers $$($(VENV)/bin/python -c 'from importlib.metadata import version as v; print(v("transformers"))') …"
	@$(PYTEST) RUN_SLOW=1 PYTHONPATH="$(UPSTREAM)$${PYTHONPATH:+:$$PYTHONPATH}" $(VENV)/bin/pytest --numprocesses $(WORKERS) \
		-r fEx $(PYTEST_FLAGS) tests/upstream

test-quantization: $(QUANTIZATION)/.ready ## run the tests of 8 and 4 bits
	@echo "Testing with torchao and bitsandbytes …"
	@PYTHONPATH=$(QUANTIZATION) $(PYTEST) $(VENV)/bin/pytest -m quantization $(PYTEST_FLAGS) $(QUANTIZATION_TESTS)

fuzz: $(READY) ## try random models, options, files and data for up to an hour
	@echo "Fuzzing in $(VENV), $(FUZZ_FACTOR) times the cases of the tests …"
	@LLADA_FUZZ_PROFILE=long LLADA_FUZZ_FACTOR=$(FUZZ_FACTOR) $(PYTEST) $(VENV)/bin/pytest --numprocesses $(WORKERS) \
		--timeout 7200 $(PYTEST_FLAGS) tests/fuzz

# Debian's Chromium, or another that is on the path; Playwright downloads its own if it can. Without any, the test skips.
test-browser: $(READY) ## try the page of `llada demo` in a headless Chromium, installed if it is missing
	@mkdir -p build
	@command -v chromium chromium-browser google-chrome >/dev/null \
		|| { [ "$$(id -u)" = 0 ] && { apt-get update && apt-get install --yes --no-install-recommends chromium; } >build/chromium.log 2>&1; } \
		|| $(VENV)/bin/playwright install --only-shell chromium >>build/chromium.log 2>&1 \
		|| echo "Chromium cannot be installed here (build/chromium.log): the page is not tried."
	@$(PYTEST) $(VENV)/bin/pytest -rs $(PYTEST_FLAGS) tests/serving/test_demo_in_browser.py

check: $(READY) ## formatting, lint and types
	@echo "Formatting: ruff format --check"
	@$(VENV)/bin/ruff format --check . || { echo "Not formatted; this does it: $(VENV)/bin/ruff format ."; exit 1; }
	@echo "Lint: ruff check"
	@$(VENV)/bin/ruff check .
	@echo "Types: mypy"
	@rm -rf $(TYPED) && mkdir -p $(TYPED)
	@for package in $(PACKAGES); do ln -s "$(CURDIR)/$${package%%:*}" "$(TYPED)/$${package##*:}"; done
	@cd $(TYPED) && $(CURDIR)/$(VENV)/bin/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache \
		--python-executable $(CURDIR)/$(VENV)/bin/python $(foreach package,$(PACKAGES),-p $(lastword $(subst :, ,$(package))))

# Without --quiet, which also keeps MkDocs from counting the warnings that --strict makes errors.
docs: $(READY) ## build the documentation as a site in build/site; a broken link is an error
	@echo "Building the site: mkdocs build --strict"
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict
	@echo "build/site/index.html is ready."

bench: $(CORE_READY) ## measure the speed of generation
	@echo "Measuring: benchmarks/generation_speed.py"
	@env $(OFFLINE) $$($(VENV)/bin/python -m llada_core.host) $(VENV)/bin/python benchmarks/generation_speed.py

setup-optimum: $(OPTIMUM_READY) ## make .venv-optimum: transformers 4.57, Optimum, ONNX Runtime, OpenVINO
	@echo "$(OPTIMUM_VENV) is ready: $$($(OPTIMUM_VENV)/bin/llada --version), transformers $$($(OPTIMUM_VENV)/bin/python -c 'from importlib.metadata import version as v; print(v("transformers"), "and optimum", v("optimum"))')"

test-optimum: $(OPTIMUM_READY) ## run the model, remote-code and generation tests under transformers 4.57
	@echo "Testing in $(OPTIMUM_VENV) …"
	@$(PYTEST) $(OPTIMUM_VENV)/bin/pytest $(IN_PARALLEL) -m "$(OPTIMUM_MARKERS)" $(PYTEST_FLAGS) $(OPTIMUM_TESTS)

$(CORE_READY): pyproject.toml constraints/newest.txt
	$(call install,$(VENV),constraints/newest.txt,.)
	$(call finish,$(VENV),.core-ready)

$(READY): $(CORE_READY)
	$(call install,$(VENV),constraints/newest.txt,.[train$(comma)eval$(comma)onnx$(comma)openvino$(comma)gguf$(comma)serve$(comma)demo$(comma)docs$(comma)track$(comma)dev])
	@# DeepSpeed builds from source; where it does not, its tests are skipped.
	@$(VENV)/bin/python -m pip install --no-compile $(PIP_FLAGS) --constraint constraints/newest.txt --no-build-isolation deepspeed \
		|| echo "DeepSpeed cannot be built here: ZeRO is not tested."
	$(call finish,$(VENV),.core-ready .ready)

$(QUANTIZATION)/.ready: $(READY)
	@rm -rf $(QUANTIZATION)
	@echo "Installing torchao and bitsandbytes into $(QUANTIZATION) …"
	@$(VENV)/bin/python -m pip install --no-compile $(PIP_FLAGS) --no-deps --target $(QUANTIZATION) \
		$(shell grep -E '^(bitsandbytes|torchao)==' constraints/newest.txt)
	@touch $@

$(OPTIMUM_READY): pyproject.toml constraints/optimum.txt
	$(call install,$(OPTIMUM_VENV),constraints/optimum.txt,.[optimum$(comma)train$(comma)gguf$(comma)dev])
	$(call finish,$(OPTIMUM_VENV),.ready)

comma := ,

# $(call install,ENVIRONMENT,CONSTRAINTS,PROJECT[EXTRAS]), then $(call finish,ENVIRONMENT,MARKERS). The file .incomplete
# lies in an environment while it is worked on, and the markers do not: one that was interrupted is made afresh. The
# build tool is pinned and installed first, so that the build needs no other; most files are never imported, so none is
# compiled beforehand.
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(MIN_PYTHON)".split("."))))' 2>/dev/null || { \
	echo "Python $(MIN_PYTHON) or newer is needed, but $(PYTHON) is" \
		"$$($(PYTHON) --version 2>&1 | head -1). Name another: make PYTHON=python$(MIN_PYTHON) $(MAKECMDGOALS)" >&2; exit 1; }
@if [ -e $(1)/.incomplete ] || ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
	echo "Making $(1) with $$($(PYTHON) --version)"; \
	rm -rf $(1) && mkdir $(1) && touch $(1)/.incomplete && $(PYTHON) -m venv $(1); \
fi
@touch $(1)/.incomplete && rm -f $(1)/.core-ready $(1)/.ready
@echo "Installing $(3) into $(1), versions from $(2) …"
@$(1)/bin/python -m pip install --no-compile $(PIP_FLAGS) --constraint $(2) setuptools wheel
@$(1)/bin/python -m pip install --no-compile $(PIP_FLAGS) --constraint $(2) --no-build-isolation --editable "$(3)"
@$(1)/bin/python -m pip check
endef

define finish
@touch $(addprefix $(1)/,$(2)) && rm -f $(1)/.incomplete
endef
