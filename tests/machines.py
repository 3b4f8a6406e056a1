"""On which device and backends the tests run: MMCORE_TEST_DEVICE=cuda has a GPU's.

On a CPU every instruction set counts as a backend, MMCORE_CPU_ISA narrows the list to that one, and
Triton's kernels run in its interpreter.
"""

from __future__ import annotations

import os

import pytest

DEVICE = os.environ.get("MMCORE_TEST_DEVICE", "cpu")
IS_GPU = DEVICE != "cpu"
INSTRUCTION_SETS = () if IS_GPU else ("generic", "avx2", "avx512", "avx512_bf16")
COMPILED = [f"cpu-{name}" for name in INSTRUCTION_SETS]
# As mmcore.backend names them.
BACKENDS = ["reference", "triton"] if IS_GPU else ["reference", "cpu", "triton"]

# Of tests that expect an error for a value, not for a shape or a dtype.
values_seen = pytest.mark.skipif(IS_GPU, reason="the host does not see the values on a GPU")
