# The development loop. `make help` lists the targets.
#
# Everything lives in .venv and build/; a stamp file stands for each finished step, so that only what
# changed is done again. Native sources are rebuilt when the package is next imported.

VENV ?= .venv
MODEL ?= smollm2-135m
PROMPT ?= In two sentences: why does memory bandwidth limit how fast a language model can talk?
WORKLOAD ?= chat

PYTHON ?= $(firstword $(foreach v,python3 python3.13 python3.12 python3.11 python,$(shell \
	$(v) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(v))))

BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
NATIVE_BUILD := build/native-tests
AARCH64_BUILD := build/native-tests-aarch64
NATIVE_OPTIONS := -G Ninja -DCMAKE_BUILD_TYPE=Release -DOUTPACE_TESTS=ON -DOUTPACE_PYTHON=OFF
SANITIZED_BUILD := build/native-sanitized
CLIENTS := build/clients
NATIVE_SOURCES := $(wildcard native/*.cpp native/*.h native/*/*.cpp native/*/*.h native/*/*.inl)
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The compilers are found by CMake; ninja and cmake come from the virtual environment.
export PATH := $(abspath $(BIN)):$(PATH)
# A prompt may hold any character: make must not expand a dollar sign in it, nor the shell see its quotes.
override PROMPT := $(value PROMPT)
export MODEL PROMPT

.DEFAULT_GOAL := help
.PHONY: help run test lint ctest ctest-aarch64 sanitize ctest-sanitized pytest clients test-clients bench format \
	wheel clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  make run PROMPT="..." MODEL=NAME; make bench MODEL=NAME WORKLOAD=NAME; make pytest ARGS="-k word"'

run: $(STAMPS)/install  ## Build, install, bring the default model and answer a prompt
	@$(BIN)/outpace run --stats --model "$$MODEL" -- "$$PROMPT"

test: lint ctest sanitize pytest  ## All that CI checks: linter, types, import rules, native and Python tests

lint: $(STAMPS)/lint $(STAMPS)/test  ## Linter, format, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE_SOURCES)
	$(BIN)/pyright
	$(BIN)/lint-imports

ctest: $(STAMPS)/install  ## Native tests, and those of aarch64 under emulation
	cmake -S . -B $(NATIVE_BUILD) $(NATIVE_OPTIONS)
	cmake --build $(NATIVE_BUILD)
	ctest --test-dir $(NATIVE_BUILD) --output-on-failure
	@if [ "$$(uname -m)" = aarch64 ]; then :; \
	elif command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null; \
	then $(MAKE) --no-print-directory ctest-aarch64; \
	else echo; echo "SKIPPED: aarch64 tests: apt-get install g++-aarch64-linux-gnu qemu-user"; echo; fi

# The same programs, which must come to the digests of the run before.
ctest-aarch64:
	cmake -S . -B $(AARCH64_BUILD) $(NATIVE_OPTIONS) -DOUTPACE_DIGESTS=$(abspath $(NATIVE_BUILD))/native/tests \
		--toolchain cmake/aarch64-linux-gnu.cmake
	cmake --build $(AARCH64_BUILD)
	ctest --test-dir $(AARCH64_BUILD) --output-on-failure --parallel 2

sanitize: $(STAMPS)/install  ## Native tests again, with the sanitizers of addresses, undefined behaviour and races
	@mkdir -p $(SANITIZED_BUILD)
	@if (for kind in address,undefined thread; do \
		echo 'int main() {}' | $${CXX:-c++} -fsanitize=$$kind -x c++ - -o $(SANITIZED_BUILD)/probe || exit 1; done); \
	then $(MAKE) --no-print-directory ctest-sanitized; \
	else echo; echo "SKIPPED: sanitized tests: the compiler's libraries for -fsanitize are missing"; echo; fi

ctest-sanitized:
	cmake -S . -B $(SANITIZED_BUILD) $(NATIVE_OPTIONS) -DOUTPACE_SANITIZE=ON
	cmake --build $(SANITIZED_BUILD)
	ctest --test-dir $(SANITIZED_BUILD) --output-on-failure

pytest: $(STAMPS)/test  ## Python tests; ARGS are pytest's
	$(BIN)/python -m pytest $(ARGS)

test-clients: $(STAMPS)/test  ## Tests with the coding agents that `make clients` installed
	OUTPACE_TEST_CLIENTS=$(CLIENTS) $(BIN)/python -m pytest tests/server/test_coding_agents.py $(ARGS)

# Claude Code puts its program in place by a script that npm may not run by itself.
clients: $(STAMPS)/pip  ## Install coding agents into build/clients (with npm), for test-clients
	npm install --no-audit --no-fund --prefix $(CLIENTS) @anthropic-ai/claude-code@2.1.197 \
		@openai/codex@0.171.0 @qwen-code/qwen-code@0.15.10 opencode-ai@1.18.33
	cd $(CLIENTS)/node_modules/@anthropic-ai/claude-code && node install.cjs
	$(PYTHON) -m venv $(CLIENTS)/aider && $(CLIENTS)/aider/bin/pip install --quiet aider-chat==0.86.2
	$(PYTHON) -m venv $(CLIENTS)/mini && $(CLIENTS)/mini/bin/pip install --quiet mini-swe-agent==2.4.6

bench: $(STAMPS)/install  ## Measure one step and a workload
	$(BIN)/outpace bench step --model "$$MODEL"
	$(BIN)/outpace bench generate --model "$$MODEL" --workload $(WORKLOAD)

format: $(STAMPS)/lint  ## Format the sources
	$(BIN)/clang-format -i $(NATIVE_SOURCES)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(STAMPS)/pip  ## Build a wheel into dist/
	$(PIP) wheel --no-deps --wheel-dir dist .

clean:  ## Remove the virtual environment and all that was built
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis

# --- set-up -------------------------------------------------------------------------------------

$(STAMPS)/pip:
	$(if $(PYTHON),,$(error Outpace needs Python 3.11 or newer; name one with make PYTHON=...))
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=25.1'  # dependency groups
	@mkdir -p $(STAMPS) && touch $@

# Editable, and built without isolation, so that an import can rebuild with the same tools.
$(STAMPS)/install: $(STAMPS)/pip pyproject.toml CMakeLists.txt
	$(PIP) install --quiet --group build
	$(PIP) install --quiet --no-build-isolation --editable .
	@touch $@

$(STAMPS)/lint: $(STAMPS)/pip pyproject.toml
	$(PIP) install --quiet --group lint
	@touch $@

$(STAMPS)/test: $(STAMPS)/install pyproject.toml
	$(PIP) install --quiet --group test
	@touch $@
