"""Peak memory and time of a training step with gradient caching, in this process, a fresh one.

    python tests/caching_memory.py cached 16384    prints bytes above weights and inputs

`plain` is the same step without caching. The towers are transformers of two blocks over 16 tokens.
"""

from __future__ import annotations

import sys
import time

import torch
from objective_memory import measured_peak
from torch import nn

import mmcore

WIDTH, TOKENS, CHUNK = 64, 16, 256


def tower() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.1, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(1024, WIDTH))


def step(how: str, towers: list[nn.Module], inputs: list[torch.Tensor]) -> None:
    """Forward and backward."""
    rows = CHUNK if how == "cached" else len(inputs[0])
    if how == "cached":
        found = [mmcore.cached(t, x, rows) for t, x in zip(towers, inputs, strict=True)]
    else:
        found = [t(x) for t, x in zip(towers, inputs, strict=True)]
    mmcore.functional.clip_loss(*map(mmcore.functional.l2_normalize, found), 10.0).backward()


if __name__ == "__main__":
    torch.set_num_threads(1)
    how, count = sys.argv[1], int(sys.argv[2])
    towers = [tower(), tower()]
    step(how, towers, [torch.randn(64, TOKENS, WIDTH) for _ in range(2)])
    inputs = [torch.randn(count, TOKENS, WIDTH) for _ in range(2)]
    start = time.perf_counter()
    with mmcore.workspace(0):
        print(measured_peak(lambda: step(how, towers, inputs)))
    print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr)
