# Two commands on a fresh machine: `make demo` and `make test`. Needed: Python 3.11 or later with venv, a C++20 compiler, make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
NATIVE := $(shell find csrc -type f) CMakeLists.txt pyproject.toml constraints.txt
# Where the processor has no AVX-512, its kernels are compiled to AVX2 instructions for the tests, so that their tile
# shapes are exercised everywhere. The demo and the benchmarks never use such a build's AVX-512 by default.
EMULATE := $(if $(shell grep -m1 -o avx512bw /proc/cpuinfo),OFF,ON)
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: demo test bench report lint types format clean

demo: $(VENV)/.demo
	$(BIN)/python examples/glyphs/train.py $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest $(ARGS)

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/run.py $(ARGS)

report: $(VENV)/.bench
	$(BIN)/python benchmarks/report.py $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc -name '*.h' -o -name '*.cpp')

types: $(VENV)/.dev $(VENV)/.test
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell find csrc -name '*.h' -o -name '*.cpp')

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch first and by its exact version: a range would take the newest build, with gigabytes of CUDA.
$(VENV)/.torch: $(VENV)/.created constraints.txt
	$(PIP) torch numpy scikit-build-core pybind11 cmake ninja
	touch $@

$(VENV)/.demo: $(VENV)/.torch $(NATIVE)
	$(PIP) --no-build-isolation --editable .[demo]
	rm -f $(VENV)/.test $(VENV)/.bench
	touch $@

$(VENV)/.bench: $(VENV)/.demo
	$(PIP) --no-deps open_clip_torch lightly pytorch-metric-learning scipy
	touch $@

$(VENV)/.test: $(VENV)/.torch $(NATIVE)
	$(PIP) --no-build-isolation --config-settings=cmake.define.MMCORE_EMULATE_AVX512=$(EMULATE) --editable .[demo,test]
	rm -f $(VENV)/.demo $(VENV)/.bench
	touch $@

$(VENV)/.dev: $(VENV)/.created constraints.txt
	$(PIP) ruff mypy clang-format pre-commit
	touch $@

clean:
	rm -rf $(VENV) build
