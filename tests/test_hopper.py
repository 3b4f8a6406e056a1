"""Hopper's tile kernels: what they become, who takes which tile, which calls are served.

All that without a GPU; results are compared on one (machines.py), of Hopper.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from assembly import Figures, compiler
from machines import HALVES, IS_GPU, by_tier
from torch import Tensor

import mmcore
from mmcore import functional

pytest.importorskip("triton")
from fake_gpu import PROCESSORS, fake_gpu

from mmcore.backends.inputs import (
    SigmoidUpstream,
    SigmoidWanted,
    SimilarityInputs,
    SoftmaxUpstream,
    SoftmaxWanted,
)
from mmcore.backends.triton import hopper, kept_size
from mmcore.backends.triton.hopper import launch
from mmcore.backends.triton.inputs import rounded
from mmcore.backends.triton.sigmoid_similarity import backward as sigmoid_backward
from mmcore.backends.triton.sigmoid_similarity import forward as sigmoid_forward
from mmcore.backends.triton.softmax_similarity import backward as softmax_backward
from mmcore.backends.triton.softmax_similarity import forward as softmax_forward

SHARED_MEMORY = 227 * 1024
# x stays in shared memory as a whole, or in part, or hardly.
DEPTHS, CALLS = [96, 512, 1032], ["clip", "one side"]
KERNELS = ["sum_exponentials", "sum_exponentials_kept", "store_gradient", "sigmoid_tile"]
COMPILED = by_tier(
    [
        *zip(KERNELS, [512, 1032, 96, 512], [*CALLS, *CALLS], strict=True),
        ("sigmoid_tile", 512, "siglip"),
    ],
    [
        *itertools.product(KERNELS, DEPTHS, CALLS),
        *(("sigmoid_tile", depth, "siglip") for depth in DEPTHS),
    ],
)
# What a thread may leave to the stack: sums of rows wait there while others are formed.
SPILLED_BYTES = {"store_gradient": 160, "sigmoid_tile": 400}


@pytest.fixture(scope="module")
def assembly() -> Iterator[Figures]:
    """What a kernel becomes."""
    with compiler("hopper_assembly.py") as figures:
        yield figures


@pytest.mark.parametrize(("kernel", "depth", "call"), COMPILED)
def test_matrix_units_and_the_copy_engine_within_a_multiprocessor(
    assembly: Figures, kernel: str, depth: int, call: str
) -> None:
    found = assembly("call", kernel, depth, call)
    assert found["matrix_instructions"] > 0
    assert found["tile_copies"] > 0
    assert found["shared"] <= SHARED_MEMORY
    assert found["spills"] <= SPILLED_BYTES.get(kernel, 0)


@pytest.mark.parametrize("rows", [1, 128, 8192, 65536])
@pytest.mark.parametrize("columns", [1, 129, 5000, 65536, 2**22])
def test_a_walk_takes_every_tile_and_little_longer_than_it_must(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int
) -> None:
    monkeypatch.setattr(launch, "processors", lambda _: PROCESSORS)
    walk = launch.Walk.over.__wrapped__(rows, columns, torch.device("meta"))
    tiles = -(-columns // launch.BN)
    assert walk.row_blocks == -(-rows // launch.BM)
    assert (walk.strips - 1) * walk.strip_tiles < tiles <= walk.strips * walk.strip_tiles
    items = walk.row_blocks * walk.strips
    assert 1 <= walk.programs <= min(PROCESSORS, items)
    longest = -(-items // walk.programs) * walk.strip_tiles
    fair = -(-walk.row_blocks * tiles // PROCESSORS)
    assert longest <= 1.1 * fair + 2


def described(x: Tensor, y: Tensor | None, **changes: Any) -> SimilarityInputs:
    """CLIP's similarity matrix."""
    target = torch.empty(len(x), dtype=torch.int64)
    inputs = SimilarityInputs(
        x, y, torch.empty(()), None, None, None, target, None, None, None, None, "all", True,
        "medium",
    )  # fmt: skip
    return inputs._replace(**changes)


def test_which_calls_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu(monkeypatch):
        x, ids = torch.empty(300, 64, dtype=torch.bfloat16), torch.empty(300, dtype=torch.int64)
        vector = torch.empty(300)
        assert hopper.serves(described(x, x.clone()))
        assert hopper.serves(described(x.half(), x.half()))
        assert hopper.serves(rounded(described(x.float(), x.float())))
        assert hopper.serves(described(x, x.clone(), target=None, has_columns=False))
        assert not hopper.serves(described(x, None))
        assert not hopper.serves(described(x.float(), x.float()))
        assert not hopper.serves(described(x, x.clone(), row_label=ids, col_label=ids))
        assert not hopper.serves(described(x, x.clone(), row_group=ids, col_group=ids))
        assert not hopper.serves(described(x, x.clone(), col_bias=vector))
        assert not hopper.serves(described(x, x.clone(), denominator="positives"))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (10, 0))
        assert not hopper.serves(described(x, x.clone()))


@pytest.mark.parametrize("workspace", [0, 2**20, 2**30])
def test_both_directions_are_launched(monkeypatch: pytest.MonkeyPatch, workspace: int) -> None:
    with fake_gpu(monkeypatch) as launches:
        x = torch.empty(1000, 96, dtype=torch.bfloat16)
        inputs = described(x, x.clone())
        kept = kept_size.softmax_similarity(workspace, inputs)
        statistics = softmax_forward(inputs, kept)
        wanted = SoftmaxWanted(True, True, True)
        softmax_backward(inputs, statistics, SoftmaxUpstream(*statistics[:4]), wanted, rounds=True)
        names = launches.names()
        assert "hopper_sum_exponentials_kernel" in names
        assert ("hopper_store_gradient_kernel" in names) == (workspace < 2**30)
        launches.clear()
        sums = sigmoid_forward(inputs, 2 * x.numel())
        assert sums.kept_sums.shape == (2,)
        assert "hopper_sigmoid_tile_kernel" in launches.names()
        launches.clear()
        without = sums._replace(kept=sums.kept[:0])
        upstream = SigmoidUpstream(sums.total, sums.positive)
        sigmoid_backward(inputs, without, upstream, SigmoidWanted(True, True, True, False), True)
        assert "hopper_sigmoid_tile_kernel" in launches.names()


needs_hopper = pytest.mark.skipif(not IS_GPU, reason="needs MMCORE_TEST_DEVICE=cuda")
SIZES = [(1, 1, 64), (130, 1029, 8), (700, 904, 96), (701, 905, 512), (300, 777, 1032)]


def features(rows: int, columns: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """x, y, scale; some rows and columns lie far below the bound of the others."""
    x, y = (F.normalize(torch.randn(size, width), dim=1) for size in (rows, columns))
    x[::7] *= 40
    y[columns // 3 :] *= 0.02
    return [each.requires_grad_() for each in (x.to(dtype), y.to(dtype), torch.tensor(20.0))]


def targets(rows: int, columns: int) -> Tensor:
    """Some of them none."""
    target = torch.randint(0, columns, (rows,))
    target[1::5] = -1
    return target


def results(
    inputs: list[Tensor], target: Tensor, family: str, workspace: int, backend: str
) -> list[Tensor]:
    """Statistics, and the gradients of a weighted sum of them."""
    with mmcore.workspace(workspace), mmcore.backend(backend):
        if family == "softmax":
            parts = list(functional.softmax_similarity(*inputs, target=target))
        else:
            parts = list(functional.sigmoid_similarity(*inputs, -5.0, target=target))
        weights = [torch.linspace(-1, 2, part.numel()).double().view(part.shape) for part in parts]
        total = torch.stack([(p * w).sum() for p, w in zip(parts, weights, strict=True)]).sum()
        return [*(part.detach() for part in parts), *torch.autograd.grad(total, inputs)]


@needs_hopper
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_results(size: tuple[int, int, int], family: str, dtype: torch.dtype) -> None:
    inputs, target = features(*size, dtype), targets(*size[:2])
    wide = [each.detach().double().requires_grad_() for each in inputs]
    expected = results(wide, target, family, 0, "reference")
    for workspace in (0, 2**30):
        found = results(inputs, target, family, workspace, "triton")
        statistics = len(expected) - 3
        for ours, exact in zip(found[:statistics], expected[:statistics], strict=True):
            torch.testing.assert_close(ours, exact, rtol=4e-6, atol=4e-6)
        for ours, exact in zip(found[statistics:], expected[statistics:], strict=True):
            limit = 2**-6 if dtype == torch.bfloat16 else 2**-9
            assert (ours.double() - exact).norm() <= limit * exact.norm() + 1e-12


@needs_hopper
def test_what_is_kept_changes_no_statistic() -> None:
    inputs, target = features(1000, 1200, 512, torch.bfloat16), targets(1000, 1200)
    lean, roomy, again = (
        results(inputs, target, "softmax", workspace, "triton") for workspace in (0, 2**30, 2**30)
    )
    assert all(torch.equal(*pair) for pair in zip(lean[:4], roomy[:4], strict=True))
    assert all(torch.equal(*pair) for pair in zip(roomy, again, strict=True))
