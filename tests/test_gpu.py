"""What only a GPU shows: no waiting, memory, graphs, streams, several processes, real sizes.

`make test-gpu` runs these and the tests of every family on the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from machines import IS_GPU
from torch import Tensor

import mmcore
from mmcore import functional

pytestmark = pytest.mark.skipif(not IS_GPU, reason="needs MMCORE_TEST_DEVICE=cuda")

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def clip(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return functional.clip_loss(x, y, scale)


def siglip(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    sums = functional.sigmoid_similarity(x, y, scale, -10.0)
    return ((sums.total - sums.positive) / x.shape[0]).float()


def siglip_loss(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return functional.siglip_loss(x, y, scale, -10.0)


def sup_con(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    itself = torch.arange(len(x), device=x.device)
    label = itself // 4
    s = functional.softmax_similarity(x, x, scale, row_label=label, row_group=itself, columns=False)
    return (s.row_lse - s.row_pos / 3).mean().float() + 0 * y.float().sum()


def projected(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    weight = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return clip(functional.project(x, weight, norm="layer"), functional.l2_normalize(y), scale)


# Every tensor above names its device: compiled code need not follow the tests' default device.
LOSSES = [clip, siglip, siglip_loss, sup_con, projected]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)


def features(rows: int, width: int = 256, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """x, y and scale, whose gradients are wanted."""
    x, y = (F.normalize(torch.randn(rows, width), dim=1).to(dtype) for _ in range(2))
    return [each.requires_grad_() for each in (x, y, torch.tensor(20.0))]


def step(loss: Loss, inputs: list[Tensor]) -> list[Tensor]:
    """The value, and the gradients."""
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def replace(old: list[Tensor], new: list[Tensor]) -> None:
    """Other values in the same memory."""
    with torch.no_grad():
        for one, other in zip(old, new, strict=True):
            one.copy_(other)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the GPU raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_auto_is_triton() -> None:
    assert mmcore.backends.choose("auto", torch.ones(2, 2)) == "triton"


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_neither_forward_nor_backward_waits(loss: Loss, dtype: torch.dtype) -> None:
    inputs = features(600, dtype=dtype)
    first = step(loss, inputs)  # compiles
    with no_waiting():
        second = step(loss, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_loss
def test_a_graph_replays_what_it_captured(loss: Loss) -> None:
    inputs = features(512)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(loss, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(loss, inputs)
    fresh = features(512)
    replace(inputs, fresh)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(loss, fresh), strict=True))


@every_loss
@pytest.mark.parametrize("size", [0, 2**30])
def test_graphed_callables(loss: Loss, size: int) -> None:
    """Catches a backward that takes what the forward of another replay has left."""
    with mmcore.workspace(size):
        graphed = torch.cuda.make_graphed_callables(loss, tuple(features(512)))
        for _ in range(3):
            inputs = features(512)
            found, expected = step(graphed, inputs), step(loss, inputs)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@every_loss
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_with_reduced_overhead(loss: Loss) -> None:
    """Catches an op that CUDA graphs of torch.compile cannot hold, or replay with old values."""
    torch.compiler.reset()
    compiled, inputs = torch.compile(loss, fullgraph=True, mode="reduce-overhead"), features(300)
    for _ in range(4):  # warms up, records, replays
        replace(inputs, features(300))
        torch.compiler.cudagraph_mark_step_begin()
        found = [each.clone() for each in step(compiled, inputs)]
        for ours, theirs in zip(found, step(loss, inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=1e-3)


@every_loss
def test_a_stream_of_its_own(loss: Loss) -> None:
    inputs = features(700)
    expected = step(loss, inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = step(loss, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@every_loss
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_compiled_graph(loss: Loss) -> None:
    inputs = features(300)
    expected = step(loss, inputs)
    found = step(torch.compile(loss, fullgraph=True), inputs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=1e-3)


def test_autocast_multiplies_in_its_dtype() -> None:
    inputs = features(300, dtype=torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        loss = clip(*inputs)
    halves = [inputs[0].detach().bfloat16(), inputs[1].detach().bfloat16(), inputs[2].detach()]
    assert loss.dtype == torch.float32
    assert torch.equal(loss, clip(*halves))


def test_tensor_float_32_is_near_and_highest_is_nearer() -> None:
    x, y, scale = features(300, dtype=torch.float32)
    exact = clip(x.double(), y.double(), scale.double())
    exact = torch.autograd.grad(exact, x)[0].double()
    errors = {}
    for precision in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(precision)
        found = torch.autograd.grad(clip(x, y, scale), x)[0].double()
        errors[precision] = ((found - exact).norm() / exact.norm()).item()
    torch.set_float32_matmul_precision("highest")
    assert errors["highest"] < 1e-5
    assert errors["highest"] < errors["high"] < 1e-2
    assert errors["highest"] < errors["medium"] < 1e-1


@pytest.mark.parametrize("size", [0, 2**26, 2**30])
def test_memory_is_what_the_formula_says(size: int) -> None:
    """docs/gpu-tuning.md; the allocator rounds up, and the vendor's products want some as well."""
    from triton_memory import MIB, Batch, softmax_backward_bytes, softmax_forward_bytes

    batch = Batch(16384, 16384, 512, workspace=size)
    inputs = features(batch.rows, batch.width)
    with mmcore.workspace(size):
        step(clip, inputs)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(clip, inputs)
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= max(softmax_forward_bytes(batch), softmax_backward_bytes(batch)) + 40 * MIB


def test_more_pairs_than_32_bits_count() -> None:
    """Room for all of G and of E: offsets into both exceed 32 bits."""
    rows = 50_000
    x, y, scale = features(rows, 64)
    with mmcore.workspace(12 * 2**30):
        value, grad_x, _, grad_scale = step(clip, [x, y, scale])
    lean = step(clip, [x, y, scale])
    # Single numbers may cancel to nothing but the rounding of E. One wrong row of G in 50,000 would
    # already be 4e-3 of the norm, an offset that overflows spoils thousands.
    assert (grad_x.float() - lean[1].float()).norm() < 4e-3 * lean[1].float().norm()
    some = torch.arange(0, rows, 997)
    logits = scale * x[some].float() @ y.float().T
    statistics = functional.softmax_similarity(x, y, scale)
    expected = logits.double().logsumexp(1)
    torch.testing.assert_close(statistics.row_lse[some], expected, rtol=0, atol=1e-4)
    assert value.isfinite()
    assert grad_x.isfinite().all()
    assert grad_scale.isfinite()


def test_a_target_outside_the_matrix_harms_no_memory() -> None:
    x, y, scale = features(256)
    target = torch.arange(256)
    target[3], target[200] = 2**40, -7
    statistics = functional.softmax_similarity(x, y, scale, target=target)
    gradient = torch.autograd.grad(statistics.row_lse[:3].sum(), x)[0]
    torch.cuda.synchronize()
    assert statistics.row_lse[[3, 200]].isnan().all()
    assert statistics.row_lse.isnan().sum() == 2
    assert gradient[:3].isfinite().all()


def test_distributed_data_parallel() -> None:
    """One process: the hooks of DDP meet the ops, gradients are those without it."""
    if not torch.distributed.is_nccl_available():
        pytest.skip("torch has no NCCL")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29543")
    torch.distributed.init_process_group("nccl", rank=0, world_size=1)
    try:
        x, y, scale = features(300)
        plain = torch.nn.Linear(256, 64, dtype=torch.bfloat16)
        wrapped = torch.nn.parallel.DistributedDataParallel(plain)

        def gradient(module: torch.nn.Module) -> Tensor:
            plain.zero_grad()
            rows = [functional.l2_normalize(module(each.detach())) for each in (x, y)]
            clip(*rows, scale).backward()
            assert plain.weight.grad is not None
            return plain.weight.grad.clone()

        assert torch.equal(gradient(wrapped), gradient(plain))
    finally:
        torch.distributed.destroy_process_group()
