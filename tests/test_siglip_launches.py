"""The launches of mmcore::siglip, and of the passes that it shares with sigmoid_similarity.

On a GPU that is not there: at most seven kernels a step, and none that clears, fills or adds up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mmcore

pytest.importorskip("triton")
from fake_gpu import Launches, fake_gpu

from mmcore.backends.inputs import SimilarityInputs
from mmcore.backends.reference.siglip import (
    SiglipInputs,
    SiglipResults,
    SiglipUpstream,
    SiglipWanted,
)
from mmcore.backends.triton.siglip import backward, forward
from mmcore.backends.triton.sigmoid_similarity import forward as sigmoid_forward

ROWS, WIDTH = 4096, 512
# Ops of torch that launch nothing.
VIEWS = ("as_strided", "permute", "t", "slice", "select", "view", "to", "unbind")
MEMORY = ("new_empty", "empty_like", "empty")
PASS = ["sigmoid_prepare_kernel", "hopper_sigmoid_tile_kernel", "sigmoid_totals_kernel"]


class Kernels(TorchDispatchMode):
    """What torch launches, and how often it is asked for memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.allocations = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        self.allocations += name in MEMORY
        if name not in VIEWS + MEMORY:
            self.names.append(name)
        return function(*arguments, **(options or {}))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    with fake_gpu(monkeypatch) as launches:
        yield launches


def inputs(dtype: torch.dtype, rows: int = ROWS) -> SiglipInputs:
    x, y = (torch.empty(rows, WIDTH, dtype=dtype) for _ in range(2))
    precision = "medium" if dtype == torch.bfloat16 else "highest"
    return SiglipInputs(x, y, torch.empty(()), torch.empty(()), precision)


def step(given: SiglipInputs, keeps: bool) -> tuple[SiglipResults, Any]:
    found = forward(given, 2 * given.x.numel() if keeps else 0)
    wanted = SiglipWanted(True, True, True, True)
    return found, backward(given, found, SiglipUpstream(found.loss), wanted, True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_has_six_kernels(gpu: Launches, dtype: torch.dtype) -> None:
    """Catches a launch more: a buffer that is cleared, sums by torch, a cast of a gradient."""
    given = inputs(dtype)
    with Kernels() as kernels:
        _, gradients = step(given, keeps=True)
    assert gpu.names() == [*PASS, "siglip_gradients_kernel"]
    assert kernels.names == ["addmm", "addmm"]
    assert kernels.allocations <= 11
    assert [each.dtype for each in gradients] == [dtype, dtype, torch.float32, torch.float32]


def test_a_loss_without_gradients_has_three_kernels(gpu: Launches) -> None:
    """Catches G, or products, for a loss that is only looked at."""
    with Kernels() as kernels:
        forward(inputs(torch.bfloat16), 0)
    assert gpu.names() == PASS
    assert kernels.names == []


def test_a_pass_of_the_primitive_has_the_same_launches(gpu: Launches) -> None:
    """Catches sums that torch clears or adds up where there is one chunk."""
    x, y, scale, bias, precision = inputs(torch.bfloat16)
    target = torch.empty(ROWS, dtype=torch.int64)
    matrix = SimilarityInputs(x, y, scale, bias, None, None, target, *[None] * 4)
    with Kernels() as kernels:
        sigmoid_forward(matrix._replace(precision=precision), 2 * x.numel())
    assert gpu.names() == PASS
    assert kernels.names == ["addmm", "addmm"]


def test_a_backward_that_computes_the_matrix_anew(gpu: Launches) -> None:
    """Catches a launch for each of its sums."""
    with Kernels() as kernels:
        step(inputs(torch.bfloat16), keeps=False)
    assert Counter(gpu.names()) == Counter([*PASS, *PASS, "scale_rows_kernel", "scale_rows_kernel"])
    assert sorted(kernels.names) == ["_to_copy", "_to_copy", "addmm", "mm"]


@pytest.mark.parametrize(("rows", "chunks"), [(500, 1), (4096, 7), (16384, 64), (65536, 512)])
def test_the_least_chunk_gives_every_processor_a_tile(
    gpu: Launches, rows: int, chunks: int
) -> None:
    """Catches a workspace of 0 whose chunks leave most of the GPU idle, and larger ones than that
    needs: 132 tiles are two blocks of 128 rows at N = 16,384, where a row of tiles is 128.
    """
    with mmcore.workspace(0):
        step(inputs(torch.bfloat16, rows), keeps=False)
    tiles = gpu.names().count("hopper_sigmoid_tile_kernel")
    assert tiles - 1 == chunks
