"""What the tests run on, and how much of it each tier runs.

Two tiers, chosen by MMCORE_TEST_TIER: "fast" (`make test`, the default), "full" (`make test-all`).
The full tier runs every case of every test. The fast tier leaves out what is marked `full`, and of
the tests marked `op` and `objective` it runs the cases that tiers.py selects.

| | fast | full |
|---|---|---|
| ops | every backend and instruction set; every pair of parameter values | every case |
| objectives, which are compositions of ops | the reference, one instruction set, Triton | all |
| random calls | RANDOM_CALLS | RANDOM_CALLS |
| compiled ahead of time | ASSEMBLY_TARGETS | ASSEMBLY_TARGETS |

On a CPU each instruction set counts as a backend, MMCORE_CPU_ISA narrows the list to that one, and
Triton's kernels run in its interpreter. MMCORE_TEST_DEVICE=cuda runs the tests on a GPU.
"""

from __future__ import annotations

import os
from typing import TypeVar

import pytest
import torch

from mmcore.backends import cpu

Value = TypeVar("Value")

TIERS = ("fast", "full")
TIER = os.environ.get("MMCORE_TEST_TIER", "fast")
if TIER not in TIERS:
    raise pytest.UsageError(f"MMCORE_TEST_TIER must be one of {', '.join(TIERS)}, got {TIER!r}")
IS_FULL = TIER == "full"


def by_tier(fast: Value, full: Value) -> Value:
    """The value of the tier that runs."""
    return full if IS_FULL else fast


DEVICE = os.environ.get("MMCORE_TEST_DEVICE", "cpu")
IS_GPU = DEVICE != "cpu"
# The matrix unit of the processor, or the same tiles without its instructions.
MATRIX_UNIT = "amx" if "amx" in cpu.instruction_sets() else "emulated_amx"
INSTRUCTION_SETS = () if IS_GPU else ("generic", "avx2", "avx512", "avx512_bf16", MATRIX_UNIT)
COMPILED = [f"cpu-{name}" for name in INSTRUCTION_SETS]
# As mmcore.backend names them.
BACKENDS = ["reference", "triton"] if IS_GPU else ["reference", "cpu", "triton"]

HALVES = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALVES]
# Draws of random inputs, at most, for a small problem of an op. Interpreted kernels are slow.
SMALL_DRAWS = by_tier({"compiled": 50, "interpreted": 10}, {"compiled": 50, "interpreted": 50})
# Rows and columns of an op's matrix in the interpreter: two tiles each way, where walks begin.
MOST_INTERPRETED_ROWS = 256
# Random calls of an op: on the best instruction set, on each of the others, on Triton.
RANDOM_CALLS = by_tier(
    {
        "softmax_similarity": {"best": 500, "others": 150, "triton": 40},
        "sigmoid_similarity": {"best": 250, "others": 75, "triton": 20},
        "project": {"best": 100, "others": 40},
        "l2_normalize": {"best": 50, "others": 25},
    },
    {
        "softmax_similarity": {"best": 1000, "others": 1000, "triton": 400},
        "sigmoid_similarity": {"best": 500, "others": 500, "triton": 200},
        "project": {"best": 150, "others": 150},
        "l2_normalize": {"best": 100, "others": 100},
    },
)
ASSEMBLY_TARGETS = by_tier(["sm_90", "gfx942"], ["sm_80", "sm_90", "sm_100", "gfx942"])

# Of tests that expect an error for a value, not for a shape or a dtype.
values_seen = pytest.mark.skipif(IS_GPU, reason="the host does not see the values on a GPU")
