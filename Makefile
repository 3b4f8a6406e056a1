# Two commands on a fresh machine: `make demo` and `make test`. Needed: Python 3.11 or later with venv, a C++20 compiler, make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
NATIVE := $(shell find csrc -type f) CMakeLists.txt pyproject.toml constraints.txt
# Where the processor has no AVX-512, its kernels are compiled to AVX2 instructions for the tests, so that their tile
# shapes are exercised everywhere. The demo and the benchmarks never use such a build's AVX-512 by default.
EMULATE := $(if $(shell grep -m1 -o avx512bw /proc/cpuinfo),OFF,ON)
# The matrix unit is emulated for the tests on every processor: where there is one, the bits of both are compared.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

SANITIZE := OFF
BUILD := build/{wheel_tag}
# Every family at every instruction set, on random and on extreme inputs; hours would be needed for every test.
SANITIZED_TESTS := $(addprefix tests/test_,properties.py properties_rows.py pairs_page.py extremes.py projection.py projection_dtypes.py clip_loss.py \
	matryoshka.py distillation.py hardest_negatives.py)
SANITIZERS := LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1

.PHONY: demo launch-plan test test-all mutants test-memory test-gpu test-peers sanitize bench bench-objectives bench-gpu bench-host bench-distribution bench-retrieval report lint types format clean

demo: $(VENV)/.demo
	$(BIN)/python examples/glyphs/train.py $(ARGS)

# In two processes: in most tests Triton's interpreter or the compiler keeps one processor busy.
WORKERS ?= 2

PYTEST := $(BIN)/python -m pytest --ignore tests/peers --numprocesses $(WORKERS) --dist worksteal

# The fast tier, ten minutes: covering arrays of the cases (tests/machines.py).
test: $(VENV)/.test
	$(PYTEST) $(ARGS)

# The full tier, a few times as long: every case of every test, and more random calls.
test-all: $(VENV)/.test
	MMCORE_TEST_TIER=full $(PYTEST) $(ARGS)

# Tests the tests: one fault after another, each of which the fast tier must notice (tests/mutants/README.md).
mutants: $(VENV)/.test
	$(BIN)/python tests/mutants/run.py $(ARGS)

# Peak memory of every objective at N = 32,768, five minutes and more; `make test` measures a few.
test-memory: $(VENV)/.test
	MMCORE_TEST_MEMORY=all $(BIN)/python -m pytest -rP tests/test_objective_memory.py $(ARGS)

# Objectives beside the classes of other libraries, which are installed into the same venv.
test-peers: $(VENV)/.peers
	MMCORE_TEST_PEERS=all $(BIN)/python -m pytest tests/peers $(ARGS)

# With the torch and Triton that are there, from a bare checkout: nothing is built or installed. TIER=fast for a part.
GPU_TESTS := $(addprefix tests/test_,gpu.py hopper.py triton.py triton_tiles.py triton_memory.py triton_assembly.py softmax_similarity.py \
	softmax_pairs.py joined_positives.py objectives.py info_nce.py gram.py gram_objectives.py multimodal.py sigmoid_similarity.py \
	siglip_op.py siglip_step.py siglip_launches.py \
	clip_loss.py projection.py projection_dtypes.py extremes.py contracts.py contracts_objectives.py matryoshka.py distillation.py \
	hardest_negatives.py captioning.py volume.py symile.py discrepancy.py geometry.py ranking.py ranking_hardness.py \
	scale.py objective_arguments.py large_logits.py)
BARE := PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON)

TIER ?= full
test-gpu:
	MMCORE_TEST_DEVICE=cuda MMCORE_TEST_TIER=$(TIER) $(BARE) -m pytest -p no:cacheprovider $(GPU_TESTS) $(ARGS)

# Launches from C++ for a bare checkout: one call of the compiler, no CUDA.
launch-plan:
	$(CXX) -std=c++20 -O3 -fPIC -fvisibility=hidden -shared csrc/launch/*.cpp -ldl \
		$$($(PYTHON) -c "from sysconfig import get_config_var as var, get_path; \
			print('-I' + get_path('include'), '-o', 'mmcore/_launch' + var('EXT_SUFFIX'))")

# AddressSanitizer and UndefinedBehaviorSanitizer over the kernel tests, at every instruction set, in a venv of its own.
sanitize:
	$(MAKE) VENV=.venv-sanitize SANITIZE=ON BUILD=build/sanitize .venv-sanitize/.test
	$(SANITIZERS) .venv-sanitize/bin/python -m pytest -p no:cacheprovider -k "not triton" $(SANITIZED_TESTS) $(ARGS)

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/run.py $(ARGS)

# Every objective beside its rival.
bench-objectives: $(VENV)/.bench
	$(PIP) sentence-transformers
	$(BIN)/python benchmarks/objectives.py $(ARGS)

bench-gpu:
	$(BARE) benchmarks/gpu.py $(ARGS)

# The host's part of a GPU step, without a GPU; the venv of the tests has Triton.
bench-host: $(VENV)/.test
	$(BIN)/python benchmarks/host.py $(ARGS)

# What a loss over several processes exchanges, and two processes on this CPU.
bench-distribution: $(VENV)/.test
	$(BIN)/python benchmarks/distribution.py $(ARGS)

# Search beside faiss and torch.
bench-retrieval: $(VENV)/.bench
	$(PIP) faiss-cpu
	$(BIN)/python benchmarks/retrieval.py $(ARGS)

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
	$(PIP) --no-build-isolation --config-settings=build-dir=$(BUILD) --editable .[demo]
	rm -f $(VENV)/.test $(VENV)/.bench
	touch $@

$(VENV)/.bench: $(VENV)/.demo
	$(PIP) --no-deps open_clip_torch lightly pytorch-metric-learning scipy
	touch $@

$(VENV)/.test: $(VENV)/.torch $(NATIVE)
	$(PIP) --no-build-isolation --config-settings=cmake.define.MMCORE_EMULATE_AVX512=$(EMULATE) \
		--config-settings=cmake.define.MMCORE_EMULATE_AMX=ON \
		--config-settings=cmake.define.MMCORE_SANITIZE=$(SANITIZE) --config-settings=build-dir=$(BUILD) \
		--editable .[demo,test]
	rm -f $(VENV)/.demo $(VENV)/.bench
	touch $@

$(VENV)/.peers: $(VENV)/.test
	$(PIP) --no-deps open_clip_torch lightly pytorch-metric-learning symile
	$(PIP) scipy scikit-learn sentence-transformers faiss-cpu usearch pyarrow datasets safetensors
	touch $@

$(VENV)/.dev: $(VENV)/.created constraints.txt
	$(PIP) ruff mypy clang-format pre-commit
	touch $@

clean:
	rm -rf $(VENV) .venv-sanitize build
