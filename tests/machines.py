"""On which device and backends the tests run: MMCORE_TEST_DEVICE=cuda has a GPU's.

On a CPU every instruction set counts as a backend, MMCORE_CPU_ISA narrows the list to that one, and
Triton's kernels run in its interpreter.
"""

from __future__ import annotations

import os

DEVICE = os.environ.get("MMCORE_TEST_DEVICE", "cpu")
IS_GPU = DEVICE != "cpu"
INSTRUCTION_SETS = () if IS_GPU else ("generic", "avx2", "avx512", "avx512_bf16")
COMPILED = [f"cpu-{name}" for name in INSTRUCTION_SETS]
# As mmcore.backend names them.
BACKENDS = ["reference", "triton"] if IS_GPU else ["reference", "cpu", "triton"]
