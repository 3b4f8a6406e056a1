"""Objectives at full size stay far below the matrix, which is 4 GiB in float32.

Each is a pass of many seconds or several, so a few are measured here and all of them by
`make test-memory`, which prints the figures.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from machines import by_tier
from objective_memory import MEASURED

MIB = 2**20
LIMIT_MIB = 128
FEW = by_tier(
    ("info_nce_loss, more keys",),
    ("info_nce_loss, more keys", "sup_con_loss, four of each class", "dcl_loss, weighted"),
)
NAMES = tuple(MEASURED) if os.environ.get("MMCORE_TEST_MEMORY") == "all" else FEW


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the high-water mark cannot be reset"
)
@pytest.mark.parametrize("name", NAMES)
def test_peak_above_inputs_and_gradients(name: str) -> None:
    script = Path(__file__).parent / "objective_memory.py"
    child = subprocess.run(
        [sys.executable, script, name],
        # glibc gives these back at once: the peak is what lives, not what an allocator holds back.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    peak_mib = int(child.stdout) / MIB
    print(f"{name}: {peak_mib:.1f} MiB")
    assert peak_mib <= LIMIT_MIB
